package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

const (
	// probeTimeout is how long a probe waits for the node. Probes of service managers and load
	// balancers give up after a few seconds themselves.
	probeTimeout = 3 * time.Second
	// maxConns is how many watchers may be connected; more wait.
	maxConns = 64
	// maxScrapes is how many may read the metrics at once; more are answered 503.
	maxScrapes = 4

	headerTimeout = 10 * time.Second
	writeTimeout  = time.Minute
	idleTimeout   = 5 * time.Minute
	maxHeader     = 16 << 10 // bytes
)

// Probe tells how a program is. It returns nil if all is well, otherwise the reason in words, one
// short sentence for the operator. It returns soon once ctx ends.
type Probe func(ctx context.Context) error

// Config says what a [Server] shows. A nil field takes the documented default.
type Config struct {
	// Alive is the probe of /healthz: the node does its work, however little it can do now. An
	// error is a reason to start the process again, and nothing else may be one.
	// Default: it is alive as long as it answers.
	Alive Probe
	// Ready is the probe of /readyz: the program serves its purpose now. Default: it does.
	Ready Probe
	// Collectors are what /metrics has beside those of Go and of the process.
	Collectors []prometheus.Collector
	// Page answers every other path, GET and HEAD alone. Its context ends when the server
	// stops. Default: a list of the paths above.
	Page http.Handler
	Log  *slog.Logger // default: discard
}

// Server answers HTTP until [Server.Close].
type Server struct {
	http *http.Server
	addr net.Addr
	done chan struct{}
}

// Listen opens the address HOST:PORT, or :PORT for all addresses of the machine. What connects
// before [Serve] waits.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", addr)
}

// Serve begins to answer on l, which the server closes.
func Serve(l net.Listener, cfg Config) *Server {
	log := cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registry.MustRegister(cfg.Collectors...)

	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: errorLog{log}, ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes, Timeout: writeTimeout / 2,
	}))
	mux.Handle("/healthz", probe("alive", cfg.Alive))
	mux.Handle("/readyz", probe("ready", cfg.Ready))
	if cfg.Page != nil {
		mux.Handle("/", cfg.Page)
	} else {
		mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
			text(w, http.StatusOK, "/metrics\n/healthz\n/readyz")
		})
	}
	s := &Server{addr: l.Addr(), done: make(chan struct{})}
	s.http = &http.Server{
		Handler: readOnly(mux), ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout,
		WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	log.Info("listening on", "addr", s.addr.String(), "for", "monitoring")
	go func() {
		defer close(s.done)
		if err := s.http.Serve(netutil.LimitListener(l, maxConns)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the node cannot be monitored any more", "addr", s.addr.String(), "err", err)
		}
	}()
	return s
}

// Addr returns the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.addr }

// Close ends the server at once. It closes all connections, which ends the contexts of requests, and
// waits for no watcher.
func (s *Server) Close() {
	// The error is that of closing the listener, which has served its time.
	_ = s.http.Close()
	<-s.done
}

// readOnly refuses what is no question.
func readOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			text(w, http.StatusMethodNotAllowed, "only GET and HEAD: nothing can be changed here")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// probe answers with 200 and the word for what is well, or with 503 and the reason.
func probe(well string, p Probe) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if p != nil {
			ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
			defer cancel()
			if err := p(ctx); err != nil {
				text(w, http.StatusServiceUnavailable, err.Error())
				return
			}
		}
		text(w, http.StatusOK, well)
	})
}

func text(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	// What the other side does not read is its loss.
	_, _ = fmt.Fprintln(w, strings.TrimSuffix(line, "\n"))
}

// errorLog logs what promhttp says: a metric that could not be collected.
type errorLog struct{ log *slog.Logger }

// Println implements [promhttp.Logger].
func (l errorLog) Println(v ...any) {
	l.log.Error("metrics are not complete", "err", strings.TrimSuffix(fmt.Sprintln(v...), "\n"))
}
