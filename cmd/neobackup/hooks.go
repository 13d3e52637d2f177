package main

import (
	"context"
	"sync"
	"time"

	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// hooks are how a daemon has a part in the commands that it runs. A nil one has none.
type hooks struct {
	file  *config.File // what the daemon has read when it started
	log   *cli.Log     // takes what commands log
	meter *meter
	flush func(took time.Duration)
	write func(w *writer.Writer) // called with a writer that was opened, and with nil when it is closed
}

type hooksKey struct{}

// withHooks returns a context for commands.
func withHooks(ctx context.Context, h *hooks) context.Context {
	return context.WithValue(ctx, hooksKey{}, h)
}

func hooksOf(ctx context.Context) *hooks {
	h, _ := ctx.Value(hooksKey{}).(*hooks)
	return h
}

// flushed returns what is called after each flush.
func (h *hooks) flushed() func(time.Duration) {
	if h == nil {
		return nil
	}
	return h.flush
}

// opened tells of a writer until the result is called.
func (h *hooks) opened(w *writer.Writer) func() {
	if h == nil || h.write == nil {
		return func() {}
	}
	h.write(w)
	return func() { h.write(nil) }
}

// OpenLog opens the log of the command: that of the daemon if it runs in one.
func (o *common) OpenLog(env *cli.Env) (*cli.Log, error) {
	if o.hooks != nil {
		return o.hooks.log, nil
	}
	return o.Logging.OpenLog(env)
}

// meter counts what is asked of stores, one after the other and at the same time.
type meter struct {
	mu    sync.Mutex
	open  []*store.Counted
	ended store.Stats
	up    *meter // counts as well what this one does
}

// add counts what is asked of a store from now on.
func (m *meter) add(c *store.Counted) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open = append(m.open, c)
	if m.up != nil {
		m.up.add(c)
	}
}

// stats returns what was asked so far.
func (m *meter) stats() store.Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := m.ended
	for _, c := range m.open {
		addStats(&sum, c.Stats())
	}
	return sum
}

// end gives up the stores that were added to a meter below: nothing more is asked of them.
func (m *meter) end(below *meter) {
	below.mu.Lock()
	defer below.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range below.open {
		for i, x := range m.open {
			if x == c {
				m.open = append(m.open[:i], m.open[i+1:]...)
				addStats(&m.ended, c.Stats())
				break
			}
		}
	}
}

func addStats(sum *store.Stats, s store.Stats) {
	sum.Puts += s.Puts
	sum.Gets += s.Gets
	sum.Lists += s.Lists
	sum.Deletes += s.Deletes
	sum.Others += s.Others
	sum.Failed += s.Failed
	sum.Sent += s.Sent
	sum.Received += s.Received
}
