package storage

import (
	"cmp"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/replica"
)

// fetchRate is a token bucket for what is fetched from the upstream cluster. What is asked
// for is as large as it is, so it is paid afterwards, before the next piece is asked for.
type fetchRate struct {
	debt float64   // bytes that are fetched and not paid at moment at; negative: saved
	at   time.Time // of debt
	mean float64   // bytes of a record, of late; 0: not known
}

const (
	// pieceTime is about how long what is asked for at a time lasts at the rate. leastPiece
	// bounds what the questions cost.
	pieceTime  = 250 * time.Millisecond
	leastPiece = 10
	// usualRecord is the size of a record as long as none is known.
	usualRecord = 8 << 10
)

// piece returns how many records to ask for, at most n.
func (f *fetchRate) piece(t *following.Terms, n int) int {
	if t == nil || t.Rate == 0 {
		return n
	}
	return min(n, max(leastPiece, int(pieceTime.Seconds()*float64(t.Rate)/cmp.Or(f.mean, usualRecord))))
}

// saved is how long what is not fetched may be fetched later.
const saved = 100 * time.Millisecond

// pay takes off what the rate allows since the last time.
func (f *fetchRate) pay(now time.Time, rate int64) {
	f.debt = max(f.debt-now.Sub(f.at).Seconds()*float64(rate), -saved.Seconds()*float64(rate))
	f.at = now
}

// fetched counts bytes. Without terms, or without limit in them, there is nothing to pay.
func (f *fetchRate) fetched(now time.Time, t *following.Terms, bytes int) {
	if t == nil || t.Rate == 0 {
		f.debt, f.at = 0, now
		return
	}
	f.pay(now, t.Rate)
	f.debt += float64(bytes)
	if f.mean == 0 {
		f.mean = float64(bytes)
	}
	f.mean += (float64(bytes) - f.mean) / 100
}

// wait returns how long the next piece must wait.
func (f *fetchRate) wait(now time.Time, t *following.Terms) time.Duration {
	if t == nil || t.Rate == 0 {
		f.debt, f.at = 0, now
		return 0
	}
	f.pay(now, t.Rate)
	return time.Duration(max(0, f.debt/float64(t.Rate)) * float64(time.Second))
}

// fetchedSize returns about how many bytes a packet has that a source sends.
func fetchedSize(p proto.Packet) int {
	switch q := p.(type) {
	case *proto.AddObject:
		return 64 + len(q.Data)
	case *proto.AddTransaction:
		return 64 + len(q.User) + len(q.Description) + len(q.Extension) + 9*len(q.OIDs)
	}
	return 0
}

// fetchLater puts off a question to a storage of the upstream cluster, if the master wants
// it. It reports whether it has.
func (r *replicator) fetchLater(e *replica.Effect) bool {
	if !r.m.Awaits(e.Ask) {
		return false // a check, which the operator wants
	}
	t := r.n.terms
	wait := r.rate.wait(time.Now(), t)
	paused := t != nil && t.Paused
	if !paused && wait == 0 {
		return false
	}
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	later := *e
	r.waiting = &later
	if !paused {
		r.timer = time.AfterFunc(wait, func() {
			r.n.post(func() error {
				if r.n.session != r.s {
					return nil
				}
				return r.askWaiting()
			})
		})
	}
	return true
}

// askWaiting asks what was put off, if it is still wanted and may be asked now.
func (r *replicator) askWaiting() error {
	e := r.waiting
	r.waiting = nil
	if e == nil || !r.m.Awaits(e.Ask) {
		return nil
	}
	return r.carryOut(e)
}
