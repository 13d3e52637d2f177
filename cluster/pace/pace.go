// Package pace makes work yield to the clients of a node.
package pace

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Burst is how long work goes on between two rests. It bounds how long a
	// client waits for it, and is worth a flush of the database.
	Burst = 2 * time.Millisecond
	// MaxAhead is how many pieces of queued work may wait to be processed while
	// clients are served, who wait behind them.
	MaxAhead = 16

	// attention is how long after its last packet a client still counts as served:
	// it is about to send the next one.
	attention = 100 * time.Millisecond
	// nap is how long a rest lasts before it is looked whether it is still needed.
	nap = 5 * time.Millisecond
	// maxRest is the longest rest, after the longest work: the link with another
	// storage is not read meanwhile.
	maxRest = 2 * time.Second
)

// Service is when clients were served last, for the work that yields to them.
type Service struct {
	begin time.Time
	last  atomic.Int64 // since begin; 0: never
}

// NewService returns a Service of clients that were not served yet.
func NewService() *Service { return &Service{begin: time.Now()} }

// Seen is called for each request of a client, and when its answer goes out. It may be
// called by several goroutines.
func (s *Service) Seen() {
	now := int64(time.Since(s.begin)) + 1
	if last := s.last.Load(); last == 0 || now-last > int64(attention/100) { // not to write it for each
		s.last.Store(now)
	}
}

// Busy reports whether clients are being served.
func (s *Service) Busy() bool {
	last := s.last.Load()
	return last > 0 && time.Since(s.begin) < time.Duration(last)+attention
}

// Pace makes work yield to clients: while they are served it takes at most a share of
// the time, in bursts between which the database and the disk are free. Otherwise it
// goes on without pause.
//
// Work is measured, not estimated: what a slow disk or a busy processor makes longer
// is followed by a longer rest. Its methods may be called by several goroutines.
type Pace struct {
	clients *Service
	share   float64 // of the time, above 0; 1: it never yields

	mu      sync.Mutex
	rate    int64     // bytes per second, with or without clients; 0: no limit
	until   time.Time // when the share is kept again
	resting bool      // until then
	sent    time.Time // when what was sent is sent at the rate
	ahead   int       // pieces that wait to be processed
}

// New returns the pace of work that takes at most a share of the time, above 0, while
// clients are served; 1: it never yields. Whether or not they are, it handles at most rate
// bytes per second; 0: no limit.
func New(clients *Service, share float64, rate int64) *Pace {
	return &Pace{clients: clients, share: share, rate: rate}
}

// SetRate changes the limit in bytes per second; 0: none.
func (p *Pace) SetRate(rate int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.sent = rate, time.Time{}
}

// Worked counts work that was done.
func (p *Pace) Worked(d time.Duration, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.workedLocked(d)
	if p.rate > 0 {
		// At the beginning, and after a pause, a little goes at once.
		if early := time.Now().Add(-nap); p.sent.Before(early) {
			p.sent = early
		}
		p.sent = p.sent.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
	}
}

// workedLocked puts off the moment when the share is kept, after work that ends now.
func (p *Pace) workedLocked(d time.Duration) {
	if p.share >= 1 || d <= 0 {
		return
	}
	if begin := time.Now().Add(-d); p.until.Before(begin) {
		p.until = begin
	}
	p.until = p.until.Add(time.Duration(float64(d) / p.share))
	if latest := time.Now().Add(maxRest); p.until.After(latest) {
		p.until = latest
	}
}

// wait returns how long the next piece of work has to wait now, and whether that is
// for the rate more than for the clients.
func (p *Pace) wait() (d time.Duration, limited bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 && p.share >= 1 {
		return 0, false
	}
	now := time.Now()
	rate := time.Duration(0)
	if p.rate > 0 {
		rate = max(p.sent.Sub(now), 0)
	}
	if p.share >= 1 || !p.clients.Busy() {
		p.until, p.resting = time.Time{}, false
		return rate, rate > 0
	}
	left := p.until.Sub(now)
	p.resting = left > 0 && (p.resting || left >= time.Duration(float64(Burst)*(1/p.share-1)))
	if p.resting {
		d = left
	}
	if p.ahead >= MaxAhead {
		d = max(d, nap/10)
	}
	return max(d, rate), rate > d
}

// Rest waits until work may go on. It reports false if one of the channels was
// closed before.
func (p *Pace) Rest(end, alsoEnd <-chan struct{}) bool {
	_, ok := p.RestFor(end, alsoEnd)
	return ok
}

// RestFor is Rest that returns how much of the wait was for the rate; the other part was
// for the clients.
func (p *Pace) RestFor(end, alsoEnd <-chan struct{}) (limited time.Duration, ok bool) {
	for {
		d, rate := p.wait()
		if d == 0 {
			return limited, true
		}
		d = min(d, nap)
		select {
		case <-end:
			return limited, false
		case <-alsoEnd:
			return limited, false
		case <-time.After(d):
		}
		if rate {
			limited += d
		}
	}
}

// Queued counts a piece of work that waits to be processed.
func (p *Pace) Queued() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead++
}

// Processed counts work on a piece that was queued.
func (p *Pace) Processed(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead--
	p.workedLocked(d)
}
