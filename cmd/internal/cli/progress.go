package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/neozodb/neo/cluster/importing"
)

// ProgressConfig says what a [Progress] measures.
type ProgressConfig struct {
	What  string // in plain words: "importing"
	Items string // what Add counts: "transactions"; "" if only bytes count
	// Bytes: both items and bytes are counted, and Total is in bytes. Without it, the bar is
	// about items until bytes are counted for the first time.
	Bytes bool
	// Total is what the work amounts to: bytes if any are ever counted, otherwise
	// items. 0 or less: unknown.
	Total int64
	Quiet bool          // show nothing
	Every time.Duration // between two lines when not on a terminal; default 5 s
}

// Progress shows how far a long piece of work is: a bar with rate and remaining
// time on a terminal, a line every few seconds anywhere else, nothing if quiet.
// It may be used by several goroutines.
type Progress struct {
	mu     sync.Mutex
	cfg    ProgressConfig
	w      io.Writer
	bar    *progressbar.ProgressBar // on a terminal
	now    func() time.Time
	start  time.Time
	shown  time.Time
	items  int64
	bytes  int64
	done   bool
	inText string // what a bar counts beside its own unit
}

// NewProgress starts to show progress on stderr. Call Done at the end of the work,
// whatever its outcome.
func NewProgress(env *Env, cfg ProgressConfig) *Progress {
	cfg.Every = cmp.Or(cfg.Every, 5*time.Second)
	p := &Progress{cfg: cfg, w: env.Stderr, now: time.Now}
	p.start = p.now()
	p.shown = p.start
	if f, ok := env.Stderr.(*os.File); ok && !cfg.Quiet && term.IsTerminal(int(f.Fd())) {
		if cfg.Bytes && cfg.Items != "" {
			p.both()
		} else {
			p.bar = p.newBar()
		}
	}
	return p
}

func (p *Progress) newBar() *progressbar.ProgressBar {
	total := p.cfg.Total
	if total <= 0 {
		total = -1
	}
	opts := []progressbar.Option{
		progressbar.OptionSetWriter(p.w),
		progressbar.OptionSetDescription(p.cfg.What),
		progressbar.OptionShowCount(),
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionSetWidth(20),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetElapsedTime(true),
		// The spinner of an unknown total would need a goroutine of its own.
		progressbar.OptionSetSpinnerChangeInterval(0),
	}
	if p.cfg.Items == "" {
		opts = append(opts, progressbar.OptionShowBytes(true))
	} else {
		opts = append(opts, progressbar.OptionShowIts(), progressbar.OptionSetItsString(p.cfg.Items))
	}
	bar := progressbar.NewOptions64(total, opts...)
	bar.StartWithoutRender() // the time until the first step counts
	return bar
}

// Add counts work that was done.
func (p *Progress) Add(items, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(p.items+items, p.bytes+bytes)
}

// Set says how much work was done in all.
func (p *Progress) Set(items, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(items, bytes)
}

// SetTotal changes what the work amounts to, for instance once it is known.
func (p *Progress) SetTotal(total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cfg.Total = total
	if p.bar != nil && total > 0 {
		p.bar.ChangeMax64(total)
	}
}

func (p *Progress) set(items, bytes int64) {
	p.items, p.bytes = items, bytes
	if p.done || p.cfg.Quiet {
		return
	}
	if p.bar != nil {
		p.showBar()
		return
	}
	if now := p.now(); now.Sub(p.shown) >= p.cfg.Every {
		p.shown = now
		fmt.Fprintln(p.w, p.line(now))
	}
}

// counted returns what Total is compared with.
func (p *Progress) counted() int64 {
	if p.bytes > 0 {
		return p.bytes
	}
	return p.items
}

// showBar passes on what was counted. Errors of the terminal do not matter: the
// work goes on without being watched.
func (p *Progress) showBar() {
	if p.bytes > 0 && p.cfg.Items != "" && p.inText == "" {
		p.both()
	}
	n := p.counted()
	if p.cfg.Total > 0 {
		n = min(n, p.cfg.Total) // beyond it the bar refuses
	}
	if p.inText != "" {
		p.bar.Describe(fmt.Sprintf("%s: %s %s", p.cfg.What, humanize.Comma(p.items), p.inText))
	}
	_ = p.bar.Set64(n)
}

// both makes a bar for both: it is about bytes, the items go to its text.
func (p *Progress) both() {
	p.inText = p.cfg.Items
	items := p.cfg.Items
	p.cfg.Items = ""
	p.bar = p.newBar()
	p.cfg.Items = items
}

// Done ends the display with a summary, unless quiet.
func (p *Progress) Done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return
	}
	p.done = true
	if p.cfg.Quiet {
		return
	}
	if p.bar != nil {
		_ = p.bar.Exit()
		fmt.Fprintln(p.w)
	}
	now := p.now()
	fmt.Fprintf(p.w, "%s: %s in %s\n", p.cfg.What, p.amount(), took(now.Sub(p.start)))
}

// maxLeft is a remaining time that says nothing: the work has hardly begun.
const maxLeft = 10 * 365 * 24 * time.Hour

// line is the progress as a text, as [importing.Report] has it:
// importing: 12.0 % (5.0 of 41 MB), 1,200 transactions, 1.0 MB/s, 40 s left
func (p *Progress) line(now time.Time) string {
	var parts []string
	n, total := p.counted(), p.cfg.Total
	switch {
	case total > 0 && p.counts():
		parts = append(parts, importing.Portion(n, total))
		if p.cfg.Items != "" {
			parts = append(parts, p.count(p.items))
		}
	case total > 0:
		parts = append(parts, importing.Percent(n, total), p.amount())
	default:
		parts = append(parts, p.amount())
	}
	seconds := now.Sub(p.start).Seconds()
	if seconds > 0 && n > 0 {
		rate := float64(n) / seconds
		if p.counts() {
			parts = append(parts, size(rate)+"/s")
		} else {
			parts = append(parts, p.count(int64(rate))+"/s")
		}
		if left := float64(total-n) / rate; left > 0 && left < maxLeft.Seconds() {
			parts = append(parts, importing.Duration(time.Duration(left*float64(time.Second)))+" left")
		}
	}
	return p.cfg.What + ": " + strings.Join(parts, ", ")
}

// counts reports whether it is bytes that are counted.
func (p *Progress) counts() bool { return p.bytes > 0 || p.cfg.Items == "" }

// count writes a number of items.
func (p *Progress) count(n int64) string { return humanize.Comma(n) + " " + p.cfg.Items }

func (p *Progress) amount() string {
	var parts []string
	if p.cfg.Items != "" {
		parts = append(parts, p.count(p.items))
	}
	if p.counts() {
		parts = append(parts, size(float64(p.bytes)))
	}
	return strings.Join(parts, ", ")
}

// took writes how long something has taken.
func took(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return importing.Duration(d)
}

// size writes bytes in decimal units.
func size(n float64) string { return humanize.Bytes(uint64(max(n, 0))) }
