package storetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Server is an S3 server that runs until a test ends.
type Server struct {
	Name      string
	Endpoint  string // host:port, without TLS
	AccessKey string
	SecretKey string
	buckets   atomic.Int64
}

// Env returns the environment that gives a program the credentials.
func (s *Server) Env() []string {
	return []string{"NEOBACKUP_S3_ACCESS_KEY=" + s.AccessKey, "NEOBACKUP_S3_SECRET_KEY=" + s.SecretKey}
}

// URL returns the URL of a prefix of a bucket.
func (s *Server) URL(bucket, prefix string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=%s&insecure=1", bucket, prefix, url.QueryEscape(s.Endpoint))
}

// Client returns a client of the server, for what a store does not do.
func (s *Server) Client(t testing.TB) *minio.Client {
	t.Helper()
	c, err := minio.New(s.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: "us-east-1", BucketLookup: minio.BucketLookupPath})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Bucket makes a bucket, with object lock and versions if lock is set.
func (s *Server) Bucket(t testing.TB, lock bool) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", s.buckets.Add(1))
	if err := s.Client(t).MakeBucket(t.Context(), name, minio.MakeBucketOptions{ObjectLocking: lock}); err != nil {
		t.Fatalf("%s: make bucket %s: %v", s.Name, name, err)
	}
	return name
}

// Missing ends a test for which the machine lacks something. Where all tests must
// run, with CI or NEO_TEST_PEERS=required in the environment, the test has failed;
// elsewhere it is left out.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" || os.Getenv("NEO_TEST_PEERS") == "required" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// program returns the path of an S3 server, below the directory of the environment
// variable NEO_TEST_S3, or else below .s3 at the root of the project.
func program(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("NEO_TEST_S3")
	if dir == "" {
		out, err := exec.Command("go", "env", "GOMOD").Output()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(filepath.Dir(strings.TrimSpace(string(out))), ".s3")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		Missing(t, "no %s (make install-s3-servers, or set NEO_TEST_S3): %v", name, err)
	}
	return path
}

// start runs a server until the test ends and returns it once it answers. args gets
// its address and directories of its own.
func start(t testing.TB, name, path, access, secret string, env []string, args func(host, port string, dir func(string) string) []string) *Server {
	t.Helper()
	base := t.TempDir()
	dir := func(name string) string {
		d := filepath.Join(base, name)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		return d
	}
	for attempt := 0; ; attempt++ { // another program may take the port meanwhile
		addr := freeAddress(t)
		host, port, _ := net.SplitHostPort(addr)
		cmd := exec.Command(path, args(host, port, dir)...)
		cmd.Env = append(os.Environ(), env...)
		cmd.Dir = base
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		err := answers("http://"+addr, ended)
		if err == nil {
			t.Cleanup(func() {
				cmd.Process.Kill()
				<-ended
			})
			return &Server{Name: name, Endpoint: addr, AccessKey: access, SecretKey: secret}
		}
		cmd.Process.Kill()
		<-ended
		if attempt == 3 {
			t.Fatalf("%s does not start: %v\n%s", name, err, &out)
		}
	}
}

// freeAddress returns an address that nothing listens on. Its port is below those that the system
// gives to connections and to servers that take any: none of these gets it before it is used.
func freeAddress(t testing.TB) string {
	t.Helper()
	for attempt := 0; ; attempt++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.IntN(5_000))))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
		if attempt == 100 {
			t.Fatal(err)
		}
	}
}

// answers waits for any answer from a server.
func answers(url string, ended chan error) error {
	var last error
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("it has ended: %w", err)
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err == nil {
			var resp *http.Response
			if resp, err = http.DefaultClient.Do(req); err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}
		cancel()
		// MinIO answers 503 until it is ready.
		if err == nil {
			return nil
		}
		last = err
	}
	return last
}

// MinIO starts MinIO, the full target.
func MinIO(t testing.TB) *Server {
	t.Helper()
	s := start(t, "MinIO", program(t, "bin/minio"), "testadmin", "testsecret",
		[]string{"MINIO_ROOT_USER=testadmin", "MINIO_ROOT_PASSWORD=testsecret", "MINIO_BROWSER=off", "MINIO_UPDATE=off"},
		func(host, port string, dir func(string) string) []string {
			return []string{"server", "--quiet", "--address", net.JoinHostPort(host, port), dir("data")}
		})
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get("http://" + s.Endpoint + "/minio/health/ready")
		if err == nil {
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode == http.StatusOK {
			return s
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("MinIO is not ready: %v", err)
		}
	}
}

// VersityGW starts the Versity gateway, the second opinion. Its directory needs
// extended attributes.
func VersityGW(t testing.TB) *Server {
	t.Helper()
	return start(t, "versitygw", program(t, "bin/versitygw"), "testadmin", "testsecret", nil,
		func(host, port string, dir func(string) string) []string {
			return []string{"--access", "testadmin", "--secret", "testsecret", "--port", net.JoinHostPort(host, port), "--quiet",
				"posix", "--versioning-dir", dir("versions"), dir("data")}
		})
}

// Moto starts moto, which insists on Content-MD5 for locked objects as AWS does, and
// accepts any secret key. It serves requests in several threads but is not made for that: of
// several writers that create one object at the same time two may succeed, and others fail. So it
// gets one request after the other.
func Moto(t testing.TB) *Server {
	t.Helper()
	s := start(t, "moto", program(t, "moto/bin/moto_server"), "testadmin", "testsecret", nil,
		func(host, port string, _ func(string) string) []string { return []string{"-H", host, "-p", port} })
	front := httptest.NewServer(&oneByOne{to: s.Endpoint})
	t.Cleanup(front.Close)
	s.Endpoint = strings.TrimPrefix(front.URL, "http://")
	return s
}

// oneByOne passes requests on to a server, one at a time. What the client does with the answer
// keeps no other one waiting.
type oneByOne struct {
	to string // host:port
	mu sync.Mutex
}

// ServeHTTP implements http.Handler.
func (o *oneByOne) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the client has gone
	}
	answer, content, err := o.pass(req, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	for name, values := range answer.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.StatusCode)
	w.Write(content)
}

// pass returns the answer to a request.
func (o *oneByOne) pass(req *http.Request, body []byte) (*http.Response, []byte, error) {
	out := req.Clone(context.WithoutCancel(req.Context()))
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", o.to
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	o.mu.Lock()
	defer o.mu.Unlock()
	answer, err := plain.RoundTrip(out)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	return answer, content, err
}

// plain takes answers as they are.
var plain = &http.Transport{DisableCompression: true}

// S3rver starts s3rver, a store that must be refused: it ignores conditions.
func S3rver(t testing.TB) *Server {
	t.Helper()
	return start(t, "s3rver", program(t, "s3rver/node_modules/.bin/s3rver"), "S3RVER", "S3RVER", nil,
		func(host, port string, dir func(string) string) []string {
			return []string{"-d", dir("data"), "-a", host, "-p", port, "--silent"}
		})
}

// GoFakeS3 starts a server in this process, fast and with no more than single PUTs,
// GETs, lists and conditions: neither locks nor secrets.
func GoFakeS3(t testing.TB) *Server {
	t.Helper()
	s := httptest.NewServer(gofakes3.New(s3mem.New()).Server())
	t.Cleanup(s.Close)
	return &Server{Name: "gofakes3", Endpoint: strings.TrimPrefix(s.URL, "http://"), AccessKey: "testadmin", SecretKey: "testsecret"}
}
