package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/neozodb/neo/cluster/systemd"
)

// ErrBusy reports a repository that another daemon of this host looks after.
var ErrBusy = errors.New("another neobackup daemon looks after this repository")

// Config is what a daemon does. Repositories is required.
type Config struct {
	Repositories []Repository
	Notifiers    []Notifier
	Listener     net.Listener     // of /metrics and /healthz; nil: none. Run closes it
	Host         string           // name of this host, for notices
	Manager      *systemd.Manager // default: none
	Log          *slog.Logger     // default: discard

	// Flushes are the durations of flushes, observed by the commands; nil: none are.
	Flushes *prometheus.HistogramVec
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// StoppedError says that nothing is left to do: no source is followed any more, and nothing else was asked for.
type StoppedError struct {
	Repository string
	Outcome    Outcome // of its command follow
}

func (e *StoppedError) Error() string {
	return fmt.Sprintf("repository %s: the source is not followed any more, and nothing else is to be done: %s", e.Repository, e.Outcome.Message)
}

// daemon is a daemon under way.
type daemon struct {
	Config
	log   *slog.Logger
	repos []*repo

	noticeErrors atomic.Int64
}

func (d *daemon) now() time.Time { return d.Now().Round(0).UTC() }

// statusEvery is how often the service manager is told how the daemon is.
const statusEvery = 10 * time.Second

// Run looks after all repositories until ctx ends, and then returns nil when all that was running has ended. It returns a
// *StoppedError if nothing is left to do, and an error if it cannot begin.
func Run(ctx context.Context, cfg Config) (err error) {
	d := &daemon{Config: cfg, log: cfg.Log}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Manager == nil {
		d.Manager = systemd.NewManager("")
	}
	if cfg.Listener != nil {
		defer cfg.Listener.Close() // also if it is never served
	}
	defer func() {
		for _, r := range d.repos {
			err = errors.Join(err, r.lock.Close())
		}
	}()
	for _, set := range cfg.Repositories {
		r, err := newRepo(d, set, d.now())
		if err != nil {
			err = fmt.Errorf("repository %s: %w", set.Settings.Name, err)
			if cfg.Listener != nil {
				err = errors.Join(err, cfg.Listener.Close())
			}
			return err
		}
		d.repos = append(d.repos, r)
	}
	if l := cfg.Listener; l != nil {
		stop := d.serve(l) // which reads d.repos
		defer stop()
	}
	var wg sync.WaitGroup
	for _, r := range d.repos {
		wg.Go(func() { r.run(ctx) })
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	d.tell("READY=1")
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for stopping := ctx.Done(); ; {
		select {
		case <-done:
			d.tell("STOPPING=1")
			return d.end(ctx)
		case <-stopping:
			stopping = nil
			d.tell("STOPPING=1", "STATUS=stopping")
		case <-tick.C:
			d.tell("STATUS=" + d.status())
		}
	}
}

// end returns the error of a daemon that has ended.
func (d *daemon) end(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	for _, r := range d.repos {
		if r.stopped != nil {
			return &StoppedError{r.name, *r.stopped}
		}
	}
	return errors.New("nothing is to be done: no repository has a [schedule NAME], max_rpo or proof_max_age")
}

func (d *daemon) tell(lines ...string) {
	if err := d.Manager.Tell(lines...); err != nil {
		d.log.Info("the service manager cannot be told", "err", err)
	}
}

// status returns how the repositories are.
func (d *daemon) status() string {
	var list []string
	for _, r := range d.repos {
		list = append(list, r.brief())
	}
	return strings.Join(list, "; ")
}

// send sends a notice to all notifiers, and reports whether one of them has delivered it.
func (d *daemon) send(ctx context.Context, n *Notice) bool {
	var wg sync.WaitGroup
	var delivered atomic.Bool
	for _, to := range d.Notifiers {
		wg.Go(func() {
			if err := deliver(ctx, to, n); err != nil {
				if ctx.Err() == nil {
					d.noticeErrors.Add(1)
					d.log.Error("a notice cannot be delivered", "to", to.Name(), "notice", n.Subject(), "err", err)
				}
				return
			}
			delivered.Store(true)
		})
	}
	wg.Wait()
	return delivered.Load()
}

// serve answers HTTP until stop is called.
func (d *daemon) serve(l net.Listener) (stop func()) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{d})
	if d.Flushes != nil {
		registry.MustRegister(d.Flushes)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", d.health)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("metrics are not served any more", "err", err)
		}
	}()
	return func() {
		s.Close()
		<-done
	}
}

// stuckAfter is when the goroutine of a repository that does not turn counts as stuck.
const stuckAfter = 2 * time.Minute

// health answers 200 as long as the daemon works, whatever the alarms: to start it again would end none of them.
func (d *daemon) health(w http.ResponseWriter, _ *http.Request) {
	code := http.StatusOK
	var lines []string
	now := d.now()
	for _, r := range d.repos {
		lines = append(lines, r.brief())
		r.mu.Lock()
		if !r.ticked.IsZero() && now.Sub(r.ticked) > stuckAfter && !r.st.Stopped {
			code = http.StatusServiceUnavailable
			lines[len(lines)-1] = r.name + ": the daemon is stuck"
		}
		r.mu.Unlock()
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	// What the other side does not read is its loss.
	_, _ = fmt.Fprintln(w, strings.Join(lines, "\n"))
}
