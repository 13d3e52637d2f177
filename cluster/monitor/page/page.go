package page

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/status"
)

const (
	// DefaultInterval is the time between two looks at the cluster.
	DefaultInterval = 10 * time.Second
	// samples is how many rates are kept to be drawn: half an hour at the default.
	samples = 180
	// fresh is for how long a status is shown to several readers.
	fresh = time.Second
	// collectTimeout is how long the admin has to tell how the cluster is.
	collectTimeout = 5 * time.Second
)

// Config configures a [Page]. A zero field takes the documented default.
type Config struct {
	// Collect asks how the cluster is, as status.Collect does; required. It returns a status
	// also if the cluster cannot be asked.
	Collect func(context.Context) *status.Status
	// Repositories are the addresses of the metrics of daemons of neobackup, whose last proofs
	// are shown. Default: none are.
	Repositories []*url.URL

	Version  string        // of the program; default: not shown
	Interval time.Duration // between two looks, also of the page itself; default: DefaultInterval
	Log      *slog.Logger  // default: discard
}

// Page answers requests with the status of a cluster: / is the page, /status.json the same
// for programs.
type Page struct {
	cfg Config

	mu      sync.Mutex // held while the cluster is asked
	last    *status.Status
	commits ring
	loads   ring

	repositories []repository // as they were last asked
}

// New returns a page. It collects nothing before it is asked, or runs.
func New(cfg Config) *Page {
	cfg.Interval = cmp.Or(cfg.Interval, DefaultInterval)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	return &Page{cfg: cfg, commits: newRing(samples), loads: newRing(samples)}
}

// Run looks at the cluster from time to time until ctx ends, so that there is a past to show.
func (p *Page) Run(ctx context.Context) {
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	for {
		p.sample(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *Page) sample(ctx context.Context) {
	repositories := askRepositories(ctx, p.cfg.Repositories)
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.collectLocked(ctx)
	p.commits.add(s.CommitsPerSecond)
	p.loads.add(s.LoadsPerSecond)
	p.repositories = repositories
}

func (p *Page) collectLocked(reader context.Context) *status.Status {
	ctx, cancel := context.WithTimeout(reader, collectTimeout)
	defer cancel()
	s := p.cfg.Collect(ctx)
	if reader.Err() == nil { // else it tells only that the reader is gone
		p.last = s
	}
	return s
}

// status returns how the cluster is.
func (p *Page) status(ctx context.Context) *status.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.statusLocked(ctx)
}

func (p *Page) statusLocked(ctx context.Context) *status.Status {
	if s := p.last; s != nil && time.Since(s.Time) <= fresh {
		return s
	}
	return p.collectLocked(ctx)
}

// view returns what is to be shown.
func (p *Page) view(ctx context.Context) *view {
	p.mu.Lock()
	defer p.mu.Unlock()
	return newView(p.statusLocked(ctx), p.cfg, p.commits.points(), p.loads.points(), p.repositories)
}

// The page, its style and its script are part of the program.
var (
	//go:embed page.html
	htmlText string
	//go:embed page.css
	style string
	//go:embed page.js
	script string
)

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"style":  func() template.CSS { return template.CSS(style) },
	"script": func() template.JS { return template.JS(script) },
}).Parse(htmlText))

// policy allows the page its style and its script, and to read itself again; nothing else.
var policy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	sha(style), sha(script))

// sha returns how a policy names a text that is part of a page.
func sha(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// document is what neoctl status --json prints too.
type document struct {
	*status.Status
	Health status.Health `json:"health"`
}

// ServeHTTP implements [http.Handler].
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	var body []byte
	switch r.URL.Path {
	case "/":
		var b bytes.Buffer
		if err := pageTemplate.Execute(&b, p.view(r.Context())); err != nil {
			p.cfg.Log.Error("the status page cannot be made", "err", err)
			http.Error(w, "the page cannot be made: see the log of the program", http.StatusInternalServerError)
			return
		}
		h.Set("Content-Type", "text/html; charset=utf-8")
		body = b.Bytes()
	case "/status.json":
		s := p.status(r.Context())
		b, err := json.Marshal(document{s, s.Health()})
		if err != nil {
			p.cfg.Log.Error("the status cannot be written as JSON", "err", err)
			http.Error(w, "the status cannot be made: see the log of the program", http.StatusInternalServerError)
			return
		}
		h.Set("Content-Type", "application/json")
		body = append(b, '\n')
	default:
		http.Error(w, "nothing is here: the page is at /, for programs at /status.json, /metrics, /healthz and /readyz", http.StatusNotFound)
		return
	}
	h.Set("Content-Length", fmt.Sprint(len(body)))
	_, _ = w.Write(body) // what the reader does not take is its loss
}
