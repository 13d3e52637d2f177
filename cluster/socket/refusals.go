package socket

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// refusalInterval is the least time between two records about one address.
const refusalInterval = time.Minute

// maxRefused is how many records are made in an interval at most.
const maxRefused = 1024

// Refusals logs the peers that were refused, and those that refuse us: at once, but
// each address and reason at most once a minute, with the number of times that were
// not told, since peers come back and scanners never rest. The zero Refusals is ready
// for use, by several goroutines.
type Refusals struct {
	mu    sync.Mutex
	since map[string]refused
	more  int // beyond the first maxRefused, since the last record
}

type refused struct {
	told   time.Time
	untold int // since then
}

// Log logs a warning that says what became of a connection with an address, and
// why. key is what is counted: the address, or only its host.
func (r *Refusals) Log(log *slog.Logger, msg, key, addr string, err error) {
	key += " " + strings.Map(func(c rune) rune { // without ports, which are others each time
		if c >= '0' && c <= '9' {
			return -1
		}
		return c
	}, err.Error())
	r.mu.Lock()
	now := time.Now()
	last, known := r.since[key]
	if known && now.Sub(last.told) < refusalInterval {
		last.untold++
		r.since[key] = last
		r.mu.Unlock()
		return
	}
	if len(r.since) >= maxRefused {
		for k, l := range r.since {
			if now.Sub(l.told) >= refusalInterval {
				delete(r.since, k)
			}
		}
	}
	if r.since == nil {
		r.since = map[string]refused{}
	}
	if !known && len(r.since) >= maxRefused {
		r.more++
		r.mu.Unlock()
		return
	}
	r.since[key] = refused{told: now}
	more := r.more
	r.more = 0
	r.mu.Unlock()
	attrs := []any{"addr", addr, "err", err}
	if last.untold > 0 {
		attrs = append(attrs, "untold", last.untold)
	}
	if more > 0 {
		attrs = append(attrs, "more", more)
	}
	log.Warn(msg, attrs...)
}
