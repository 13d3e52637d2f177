package s3store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/s3store"
)

// answering returns a store whose server is h.
func answering(t *testing.T, h http.HandlerFunc) *s3store.Store {
	t.Helper()
	return answeringIn(t, h, time.Minute)
}

// answeringIn is answering with a timeout.
func answeringIn(t *testing.T, h http.HandlerFunc, timeout time.Duration) *s3store.Store {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	s, err := s3store.New(s3store.Config{
		Endpoint: strings.TrimPrefix(server.URL, "http://"), Bucket: "bucket", Insecure: true,
		Credentials: s3store.Credentials{AccessKey: "access", SecretKey: "secret"}, Timeout: timeout,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What an answer means decides whether a call is repeated.
func TestErrors(t *testing.T) {
	temporary := errors.New("temporary")
	final := errors.New("final")
	for _, tt := range []struct {
		status int
		code   string
		put    error // of a create
		slow   bool
	}{
		{412, "PreconditionFailed", store.ErrExists, false},
		{409, "ConditionalRequestConflict", temporary, false},
		{409, "OperationAborted", temporary, false},
		{409, "BucketNotEmpty", final, false},
		{403, "AccessDenied", store.ErrDenied, false},
		{403, "SignatureDoesNotMatch", store.ErrDenied, false},
		{403, "InvalidAccessKeyId", store.ErrDenied, false},
		{400, "ExpiredToken", store.ErrDenied, false},
		{403, "RequestTimeTooSkewed", final, false},
		{400, "BadDigest", temporary, false},
		{400, "RequestTimeout", temporary, false},
		{400, "InvalidRequest", final, false},
		{404, "NoSuchBucket", final, false},
		{429, "TooManyRequests", temporary, true},
		{500, "InternalError", temporary, false},
		{501, "NotImplemented", errors.ErrUnsupported, false},
		{502, "", temporary, false},
		{503, "SlowDown", temporary, true},
		{503, "", temporary, true},
		{504, "", temporary, false},
	} {
		t.Run(fmt.Sprint(tt.status, " ", tt.code), func(t *testing.T) {
			var requests atomic.Int64
			s := answering(t, func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				io.Copy(io.Discard, r.Body)
				w.Header().Set("Retry-After", "7")
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(tt.status)
				if tt.code != "" {
					fmt.Fprintf(w, "<Error><Code>%s</Code><Message>It is so.</Message></Error>", tt.code)
				}
			})
			check := func(call string, err error) {
				t.Helper()
				e, isTemporary := errors.AsType[*store.TemporaryError](err)
				switch {
				case err == nil:
					t.Errorf("%s succeeds", call)
				case tt.put == temporary:
					if !isTemporary || e.SlowDown != tt.slow || e.After != 7*time.Second {
						t.Errorf("%s: %v, slow down and after: %+v", call, err, e)
					}
				case isTemporary:
					t.Errorf("%s: %v is temporary", call, err)
				case tt.put != final && !errors.Is(err, tt.put) && call == "Put":
					t.Errorf("%s: %v, want %v", call, err, tt.put)
				}
				if strings.Contains(fmt.Sprint(err), "secret") {
					t.Errorf("%s: the message has the secret: %v", call, err)
				}
			}
			check("Put", s.Put(t.Context(), "a", strings.NewReader("body"), 4, store.PutOptions{Create: true}))
			if n := requests.Load(); n != 1 {
				t.Errorf("%d requests for one Put", n)
			}
			_, _, err := s.Get(t.Context(), "a", 0, store.All)
			check("Get", err)
			err = nil
			for _, e := range s.List(t.Context(), "", "") {
				err = e
			}
			check("List", err)
			check("Delete", s.Delete(t.Context(), []string{"a", "b"}))
			if n := requests.Load(); n > 6 {
				t.Errorf("%d requests: something repeats them", n)
			}
		})
	}
}

// A server that cannot be reached, hangs up, is silent or stops in the middle: another
// try may help. The end of the caller's context is none of these.
func TestNetwork(t *testing.T) {
	silent := func(r *http.Request) { // until the client goes away, which is seen once the body is read
		io.Copy(io.Discard, r.Body)
		select {
		case <-time.After(5 * time.Minute):
		case <-r.Context().Done():
		}
	}
	for _, tt := range []struct {
		name string
		h    http.HandlerFunc
	}{
		{"hangs up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"silent", func(_ http.ResponseWriter, r *http.Request) { silent(r) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := answeringIn(t, tt.h, 200*time.Millisecond)
			if err := s.Put(t.Context(), "a", bytes.NewReader(make([]byte, 1<<20)), 1<<20, store.PutOptions{Create: true}); !store.Temporary(err) {
				t.Errorf("Put: %v", err)
			}
			if _, _, err := s.Get(t.Context(), "a", 0, store.All); !store.Temporary(err) {
				t.Errorf("Get: %v", err)
			}
			var err error
			for _, e := range s.List(t.Context(), "", "") {
				err = e
			}
			if !store.Temporary(err) {
				t.Errorf("List: %v", err)
			}
			if err := s.Delete(t.Context(), []string{"a"}); !store.Temporary(err) {
				t.Errorf("Delete: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if _, _, err := s.Get(ctx, "a", 0, store.All); tt.name == "silent" && (store.Temporary(err) || !errors.Is(err, context.DeadlineExceeded)) {
				t.Errorf("Get: %v, want the end of the context", err)
			}
		})
	}
	body := func(w http.ResponseWriter) {
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", "1000")
		w.Write(make([]byte, 500))
		w.(http.Flusher).Flush()
	}
	for name, h := range map[string]http.HandlerFunc{
		"half a body": func(w http.ResponseWriter, _ *http.Request) { body(w); panic(http.ErrAbortHandler) },
		"stalls": func(w http.ResponseWriter, r *http.Request) {
			body(w)
			silent(r)
		},
	} {
		slow := func(timeout time.Duration) ([]byte, error) {
			r, _, err := answeringIn(t, h, timeout).Get(t.Context(), "a", 0, store.All)
			if err != nil {
				return nil, err
			}
			defer r.Close()
			time.Sleep(timeout + timeout/5) // a slow reader is not a silent server
			return io.ReadAll(r)
		}
		b, err := slow(time.Second)
		if len(b) == 0 { // what took so long may have been this machine
			b, err = slow(40 * time.Second)
		}
		if len(b) != 500 || !store.Temporary(err) {
			t.Errorf("%s: %d bytes, %v, want 500 and a *TemporaryError", name, len(b), err)
		}
	}
	s := answering(t, nil)
	c, err := s3store.Parse(s.String())
	if err != nil {
		t.Fatal(err)
	}
	c.Endpoint = "127.0.0.1:1"
	c.Credentials = s3store.Credentials{AccessKey: "a", SecretKey: "s"}
	if s, err = s3store.New(c); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(t.Context(), "a", 0, store.All); !store.Temporary(err) {
		t.Errorf("unreachable: %v", err)
	}
}

// An answer that cannot be true is not used.
func TestLies(t *testing.T) {
	list := func(keys ...string) string {
		var b strings.Builder
		b.WriteString(`<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>`)
		for _, k := range keys {
			fmt.Fprintf(&b, `<Contents><Key>%s</Key><LastModified>2026-11-20T20:10:03.000Z</LastModified><Size>1</Size></Contents>`, k)
		}
		return b.String() + `</ListBucketResult>`
	}
	for name, text := range map[string]string{
		"descending": list("l/b", "l/a"), "twice": list("l/a", "l/a"), "another prefix": list("m/a"), "not after": list("l/0"),
	} {
		s := answering(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) })
		var err error
		for _, e := range s.List(t.Context(), "l/", "l/1") {
			err = e
		}
		if !errors.Is(err, store.ErrLied) || store.Temporary(err) {
			t.Errorf("%s: %v, want ErrLied", name, err)
		}
	}
	for name, cr := range map[string]string{
		"elsewhere": "bytes 11-20/100", "longer": "bytes 10-20/100", "of nothing": "bytes */100", "damaged": "what", "beyond": "bytes 10-19/15",
	} {
		s := answering(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			w.Header().Set("Content-Range", cr)
			w.WriteHeader(http.StatusPartialContent)
			w.Write(make([]byte, 10))
		})
		if _, _, err := s.Get(t.Context(), "a", 10, 10); !errors.Is(err, store.ErrLied) {
			t.Errorf("Content-Range %s: %v, want ErrLied", name, err)
		}
	}
}

// minio-go keeps errors InvalidArgument of a deletion to itself.
func TestDeleteWithoutAnswer(t *testing.T) {
	s := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			if strings.HasSuffix(r.URL.Path, "/gone") {
				w.WriteHeader(http.StatusNotFound)
			}
			return
		}
		io.WriteString(w, `<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>InvalidArgument</Code></Error></DeleteResult>`)
	})
	err := s.Delete(t.Context(), []string{"a", "b", "c", "gone"})
	if err == nil || strings.Contains(err.Error(), "delete a") || !strings.Contains(err.Error(), "delete b") || !strings.Contains(err.Error(), "delete c") || strings.Contains(err.Error(), "gone") {
		t.Errorf("%v, want errors of b and c", err)
	}
}

func TestParse(t *testing.T) {
	c, err := s3store.Parse("s3://backups/prod/main/?endpoint=s3.example.org:9000&region=eu-1&insecure=1&lookup=path")
	want := s3store.Config{Endpoint: "s3.example.org:9000", Bucket: "backups", Prefix: "prod/main", Region: "eu-1", Insecure: true, Lookup: "path"}
	if err != nil || c != want {
		t.Errorf("%+v, %v, want %+v", c, err, want)
	}
	if again, err := s3store.Parse(c.String()); err != nil || again != c {
		t.Errorf("%s: %+v, %v", c, again, err)
	}
	if c, err := s3store.Parse("s3://backups?region=eu-central-1&credentials=instance"); err != nil || c.Endpoint != "s3.eu-central-1.amazonaws.com" || !c.Credentials.Instance {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []string{
		"s3://access:secret@backups/prod?region=eu-1", "s3://backups/prod?region=eu-1&secret_key=secret", "s3://backups/%zz?x=secret",
		"s3://backups/prod?region=eu-1&access_key=secret&secret", "s3://backups/prod?endpoint=access:secret@host",
		"s3://backups/prod?region=eu-1&region=secret", "s3://backups/prod?region=eu-1&credentials=secret",
		"s3://backups/prod", "s3://BACK_UPS/prod?region=eu-1", "s3:///prod?region=eu-1", "s3://backups/a//b?region=eu-1", "s3://backups/../b?region=eu-1",
		"s3://backups/a b?region=eu-1", "s3://backups/prod?region=eu-1&insecure=yes", "s3://backups/prod?region=eu-1&lookup=best",
		"s3://backups/prod?endpoint=https://host", "s3://backups/" + strings.Repeat("a", 100) + "?region=eu-1", "http://backups/prod", "",
	} {
		if c, err := s3store.Parse(bad); err == nil || strings.Contains(err.Error(), "secret@") || strings.Contains(err.Error(), "=secret") {
			t.Errorf("Parse(%q) = %+v, %v, want an error without secrets", bad, c, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	config := s3store.Config{Bucket: "bucket", Region: "eu-1"}
	env := map[string]string{}
	open := func() error {
		config.Credentials = s3store.FromEnv(func(name string) string { return env[name] })
		_, err := s3store.New(config)
		return err
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), s3store.EnvAccessKey) {
		t.Errorf("none: %v", err)
	}
	env[s3store.EnvAccessKey] = "a"
	if err := open(); err == nil || !strings.Contains(err.Error(), s3store.EnvSecretKey) {
		t.Errorf("half: %v", err)
	}
	env[s3store.EnvSecretKey] = "s"
	if err := open(); err != nil {
		t.Error(err)
	}
	clear(env)
	file := filepath.Join(t.TempDir(), "credentials")
	env[s3store.EnvFile] = file
	if err := open(); err == nil {
		t.Error("a missing file is accepted")
	}
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = a\naws_secret_access_key = s\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "chmod 600 "+file) {
		t.Errorf("a file that others can read: %v", err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Error(err)
	}
}

// Whatever is accepted means the same when it is written again.
func FuzzParse(f *testing.F) {
	f.Add("s3://backups/prod/main?endpoint=s3.example.org:9000&region=eu-1&insecure=1&lookup=path")
	f.Add("s3://backups?region=eu-1&credentials=instance")
	f.Add("s3://a:b@backups/x?region=eu-1")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := s3store.Parse(text)
		if err != nil {
			return
		}
		if again, err := s3store.Parse(c.String()); err != nil || again != c {
			t.Errorf("%q: %+v is written as %s, read as %+v, %v", text, c, c, again, err)
		}
	})
}

// A deletion that was refused while the object was locked says so, although the time has come when
// the lock is asked for.
func TestLockEndsMeanwhile(t *testing.T) {
	until := time.Date(2026, 11, 29, 12, 0, 1, 0, time.UTC)
	s := answering(t, func(w http.ResponseWriter, r *http.Request) {
		date := until.Add(-time.Second)
		if r.Method == http.MethodHead {
			date = until.Add(time.Second)
			w.Header().Set("X-Amz-Object-Lock-Mode", "GOVERNANCE")
			w.Header().Set("X-Amz-Object-Lock-Retain-Until-Date", until.Format(time.RFC3339))
			w.Header().Set("Last-Modified", until.Add(-time.Hour).Format(http.TimeFormat))
			w.Header().Set("ETag", `"1"`)
			w.Header().Set("Content-Length", "1")
		}
		w.Header().Set("Date", date.Format(http.TimeFormat))
		if r.Method == http.MethodPost {
			io.WriteString(w, `<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code></Error></DeleteResult>`)
		}
	})
	err := s.Delete(t.Context(), []string{"a"})
	if l, ok := errors.AsType[*store.LockedError](err); !ok || !l.Until.Equal(until) {
		t.Errorf("Delete: %v, want a *LockedError until %v", err, until)
	}
}
