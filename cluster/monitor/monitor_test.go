package monitor

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// serve starts a server and returns its URL.
func serve(t *testing.T, cfg Config) string {
	t.Helper()
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, cfg)
	t.Cleanup(s.Close)
	return "http://" + s.Addr().String()
}

// ask returns status and body.
func ask(t *testing.T, method, url string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestPaths(t *testing.T) {
	waits := func(ctx context.Context) error {
		if _, limited := ctx.Deadline(); !limited {
			return errors.New("no deadline")
		}
		return nil
	}
	good := serve(t, Config{Alive: waits, Ready: waits, Page: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page "+r.URL.Path) })})
	bad := serve(t, Config{
		Alive: func(context.Context) error { return errors.New("the master hangs") },
		Ready: func(context.Context) error { return errors.New("there is no primary master") },
	})
	for _, tt := range []struct {
		method, url string
		code        int
		want        string
	}{
		{"GET", good + "/healthz", 200, "alive\n"},
		{"GET", good + "/readyz", 200, "ready\n"},
		{"HEAD", good + "/readyz", 200, ""},
		{"GET", good + "/", 200, "page /"},
		{"GET", good + "/style.css", 200, "page /style.css"},
		{"GET", bad + "/healthz", 503, "the master hangs\n"},
		{"GET", bad + "/readyz", 503, "there is no primary master\n"},
		{"HEAD", bad + "/readyz", 503, ""},
		{"GET", bad + "/", 200, "/metrics\n/healthz\n/readyz\n"},
		{"GET", bad + "/debug/pprof/", 404, "404 page not found\n"},
		{"POST", good + "/", 405, "only GET and HEAD: nothing can be changed here\n"},
		{"PUT", good + "/metrics", 405, "only GET and HEAD: nothing can be changed here\n"},
		{"DELETE", bad + "/healthz", 405, "only GET and HEAD: nothing can be changed here\n"},
	} {
		res, body := ask(t, tt.method, tt.url)
		if res.StatusCode != tt.code || body != tt.want {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.url, res.StatusCode, body, tt.code, tt.want)
		}
		if tt.code == 405 && res.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: Allow: %q", tt.method, tt.url, res.Header.Get("Allow"))
		}
	}
}

func TestMetrics(t *testing.T) {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "neo_test_total", Help: "A test."})
	c.Add(3)
	res, body := ask(t, "GET", serve(t, Config{Collectors: []prometheus.Collector{c}})+"/metrics")
	for _, want := range []string{"neo_test_total 3\n", "go_goroutines ", "process_start_time_seconds "} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	if ct := res.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") {
		t.Errorf("content type %q", ct)
	}
}

// What watches does not keep the server from its end, whatever it waits for.
func TestCloseWaitsForNoWatcher(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	s := Serve(l, Config{Page: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})})
	silent, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	waiting, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if _, err := io.WriteString(waiting, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-asked
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Fatal("the server does not end")
	}
	if _, err := net.DialTimeout("tcp", s.Addr().String(), time.Second); err == nil {
		t.Error("it listens after its end")
	}
}

func TestAddressIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for addr, want := range map[string]string{
		l.Addr().String(): "address already in use",
		"9100":            "missing port",
		"localhost:nine":  "nine",
	} {
		if l, err := Listen(t.Context(), addr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen(%q) = %v, %v, want %q in the error", addr, l, err, want)
		}
	}
}
