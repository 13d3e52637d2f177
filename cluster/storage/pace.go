package storage

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultReplicationShare is how many percent of the time replication takes
	// while clients are served, if Config.ReplicationShare is 0.
	DefaultReplicationShare = 10

	// attention is how long after its last packet a client still counts as served:
	// it is about to send the next one.
	attention = 100 * time.Millisecond
	// burst is how long replication works between two rests. It bounds how long a
	// client waits for it, and is worth a flush of the database.
	burst = 2 * time.Millisecond
	// nap is how long a rest lasts before it is looked whether it is still needed.
	nap = 5 * time.Millisecond
	// maxRest is the longest rest, after the longest work: the link with the other
	// storage is not read meanwhile.
	maxRest = 2 * time.Second
	// maxAhead is how many packets of replication may wait to be processed while
	// clients are served: those of clients wait behind them.
	maxAhead = 16
)

// service is when clients were served last, for the work that yields to them.
type service struct {
	begin time.Time
	last  atomic.Int64 // since begin; 0: never
}

// seen is called for each packet of a client, and when its answer goes out.
func (s *service) seen() {
	now := int64(time.Since(s.begin)) + 1
	if last := s.last.Load(); last == 0 || now-last > int64(attention/100) { // not to write it for each
		s.last.Store(now)
	}
}

// busy reports whether clients are being served.
func (s *service) busy() bool {
	last := s.last.Load()
	return last > 0 && time.Since(s.begin) < time.Duration(last)+attention
}

// pace makes work yield to clients: while they are served it takes at most a share of
// the time, in bursts between which the database and the disk are free. Otherwise it
// goes on without pause.
//
// Work is measured, not estimated: what a slow disk or a busy processor makes longer
// is followed by a longer rest.
type pace struct {
	clients *service
	share   float64 // of the time, above 0; 1: it never yields
	rate    int64   // bytes per second, with or without clients; 0: no limit

	mu      sync.Mutex
	until   time.Time // when the share is kept again
	resting bool      // until then
	sent    time.Time // when what was sent is sent at the rate
	ahead   int       // packets that wait to be processed
}

// worked counts work that was done.
func (p *pace) worked(d time.Duration, bytes int) {
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
func (p *pace) workedLocked(d time.Duration) {
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

// wait returns how long the next piece of work has to wait now.
func (p *pace) wait() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 && p.share >= 1 {
		return 0
	}
	now := time.Now()
	d := time.Duration(0)
	if p.rate > 0 {
		d = p.sent.Sub(now)
	}
	if p.share >= 1 || !p.clients.busy() {
		p.until, p.resting = time.Time{}, false
		return max(d, 0)
	}
	left := p.until.Sub(now)
	p.resting = left > 0 && (p.resting || left >= time.Duration(float64(burst)*(1/p.share-1)))
	if p.resting {
		d = max(d, left)
	}
	if p.ahead >= maxAhead {
		d = max(d, nap/10)
	}
	return max(d, 0)
}

// rest waits until work may go on. It reports false if one of the channels was
// closed before.
func (p *pace) rest(end, alsoEnd <-chan struct{}) bool {
	for {
		d := p.wait()
		if d == 0 {
			return true
		}
		select {
		case <-end:
			return false
		case <-alsoEnd:
			return false
		case <-time.After(min(d, nap)):
		}
	}
}

// queued counts a packet that waits to be processed.
func (p *pace) queued() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead++
}

// processed counts work on a packet that was queued.
func (p *pace) processed(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead--
	p.workedLocked(d)
}
