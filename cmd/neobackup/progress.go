package main

import (
	"sync"
	"time"

	"github.com/neozodb/neo/cmd/internal/cli"
)

// progressEvery is the time between two lines when not on a terminal.
const progressEvery = 10 * time.Second

// progress shows how far something is: a bar on a terminal, else lines, those of JSON with --json.
type progress struct {
	bar *cli.Progress // nil: JSON or nothing

	o     *common
	env   *cli.Env
	what  string
	mu    sync.Mutex
	shown time.Time
}

// progress begins to show progress. items is what is counted beside bytes.
func (o *common) progress(env *cli.Env, what, items string, total int64) *progress {
	p := &progress{o: o, env: env, what: what, shown: time.Now()}
	if !o.json {
		p.bar = cli.NewProgress(env, cli.ProgressConfig{What: what, Items: items, Bytes: true, Total: total, Quiet: o.quiet, Every: progressEvery})
	}
	return p
}

// set says how much was done in all; total is 0 if it is not known.
func (p *progress) set(items, bytes, total int64) {
	if p.bar != nil {
		if total > 0 {
			p.bar.SetTotal(total)
		}
		p.bar.Set(items, bytes)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); !p.o.quiet && now.Sub(p.shown) >= progressEvery {
		p.shown = now
		// An error of stderr must not end the work.
		_ = p.o.line(p.env.Stderr, map[string]any{"progress": p.what, "items": items, "bytes": bytes, "total_bytes": total})
	}
}

// done ends the display.
func (p *progress) done() {
	if p.bar != nil {
		p.bar.Done()
	}
}
