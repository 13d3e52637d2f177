package s3store_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/storetest"
)

// missing returns the checks that a store fails.
func missing(t *testing.T, s store.Store, o store.ProbeOptions) []string {
	t.Helper()
	rep, err := store.Probe(t.Context(), s, o)
	if err != nil {
		t.Fatalf("Probe: %v", err)
	}
	err = rep.Err("the store")
	if err == nil {
		return nil
	}
	t.Log(err)
	u, ok := errors.AsType[*store.UnsuitableError](err)
	if !ok {
		t.Fatalf("%T, want *UnsuitableError", err)
	}
	var checks []string
	for _, f := range u.Missing {
		checks = append(checks, f.Check)
		if f.Detail == "" || !strings.Contains(err.Error(), f.Check) {
			t.Errorf("the message does not say what is missing: %+v", f)
		}
	}
	return checks
}

// s3rver ignores conditions and reads wrong ranges: no repository is kept there.
func TestS3rverIsRefused(t *testing.T) {
	server := storetest.S3rver(t)
	got := strings.Join(missing(t, open(t, server, server.Bucket(t, false), "p"), store.ProbeOptions{}), " ")
	for _, want := range []string{"create-once", "ranges", "create-race"} {
		if !strings.Contains(got, want) {
			t.Errorf("the probe misses %q, want %q too", got, want)
		}
	}
}

// A store with one fault is refused, and the fault named.
func TestFaultyServersAreRefused(t *testing.T) {
	inner := storetest.GoFakeS3(t)
	target, err := url.Parse("http://" + inner.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		request func(*http.Request)
		answer  func(*http.Response) error
		lock    store.Mode
		want    string
	}{
		{name: "good", want: ""},
		{name: "conditions ignored", request: func(r *http.Request) { r.Header.Del("If-None-Match") }, want: "create-once create-race"},
		{name: "ranges ignored", request: func(r *http.Request) { r.Header.Del("Range") }, want: "ranges"},
		{name: "suffix taken for an offset", request: func(r *http.Request) {
			if n, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=-"); ok {
				r.Header.Set("Range", "bytes="+n+"-")
			}
		}, want: "ranges"},
		{name: "start-after ignored", request: func(r *http.Request) {
			q := r.URL.Query()
			q.Del("start-after")
			r.URL.RawQuery = q.Encode()
		}, want: "list"},
		{name: "clock", answer: func(r *http.Response) error {
			r.Header.Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			return nil
		}, want: "clock"},
		{name: "no lock", lock: store.Compliance, want: "object-lock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proxy := &httputil.ReverseProxy{
				Rewrite: func(r *httputil.ProxyRequest) {
					r.SetURL(target)
					if tt.request != nil {
						tt.request(r.Out)
					}
				},
				ModifyResponse: tt.answer,
			}
			front := httptest.NewServer(proxy)
			defer front.Close()
			server := &storetest.Server{Name: tt.name, Endpoint: strings.TrimPrefix(front.URL, "http://"), AccessKey: "a", SecretKey: "s"}
			bucket := inner.Bucket(t, false)
			if got := strings.Join(missing(t, open(t, server, bucket, ""), store.ProbeOptions{Lock: tt.lock}), " "); got != tt.want {
				t.Errorf("missing: %q, want %q", got, tt.want)
			}
		})
	}
}

// Credentials that may neither delete nor see retentions are those of a writer.
func TestProbeWithoutDelete(t *testing.T) {
	inner := storetest.GoFakeS3(t)
	target, err := url.Parse("http://" + inner.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, multi := r.URL.Query()["delete"]; multi || r.Method == http.MethodDelete {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusForbidden)
			w.Write([]byte(`<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>`))
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	server := &storetest.Server{Endpoint: strings.TrimPrefix(front.URL, "http://"), AccessKey: "a", SecretKey: "s"}
	s := open(t, server, inner.Bucket(t, false), "p")
	rep, err := store.Probe(t.Context(), s, store.ProbeOptions{})
	if err != nil || rep.Err("") != nil {
		t.Fatalf("%v, %v", err, rep.Err(""))
	}
	if len(rep.Left) == 0 || len(storetest.Keys(t, s, "probe/", "")) != len(rep.Left) {
		t.Errorf("left: %q", rep.Left)
	}
}
