package restore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Errors of a restore, for errors.Is. They come wrapped, with what they are about.
var (
	// ErrNotEmpty reports a target that has something already.
	ErrNotEmpty = errors.New("not empty")
	// ErrForeign reports a target into which something else is being restored.
	ErrForeign = errors.New("another restore has begun there")
	// ErrSpace reports a target with too little room.
	ErrSpace = errors.New("not enough space")
	// ErrBlobs reports a repository with blobs, which this version cannot restore.
	ErrBlobs = errors.New("blobs cannot be restored by this version")
	// ErrDifferent reports a target that is not what the repository has.
	ErrDifferent = errors.New("the restored data differ from the repository")
)

// Source is what is restored. Repo and State are required.
type Source struct {
	Repo  *backup.Repository
	Keys  *backup.Keys // of an encrypted repository
	State *backup.State
	At    tid.TID // the last transaction is the greatest one up to this; Zero: all
	// WithoutBlobs restores all but the blobs of a repository that has some. Default:
	// [ErrBlobs].
	WithoutBlobs bool
	// AllowGaps restores a moment after a gap, to a Data.fs only: what is lost in it is left out, and
	// PATH.unknown lists the objects that may have changed in it. Default: an ErrIncomplete.
	AllowGaps bool
	Fetch     backup.FetchOptions
	Log       *slog.Logger // default: discard
}

func (s *Source) at() tid.TID {
	if s.At == tid.Zero {
		return s.State.Head()
	}
	return s.At
}

func (s *Source) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// Phase is what a restore does.
type Phase string

// The phases, in their order.
const (
	Writing   Phase = "restoring"
	Comparing Phase = "comparing"
)

// Progress is told how far a restore is: the last transaction, and the bytes of dump text
// up to there of all that there are. It is called from one goroutine at a time.
type Progress func(p Phase, last tid.TID, done, total int64)

// Result is what was restored and compared. Counts are of all that the target has.
type Result struct {
	At      tid.TID // as asked for
	Last    tid.TID // the last transaction of the target; Zero: it is empty
	Resumed tid.TID // where the restore began; Zero: at the beginning
	// Compared is false if the target was not read again.
	Compared bool
	Segments int64 // compared
	Txns     int64
	Records  int64
	Bytes    int64 // of dump text
	// Unknown is how many objects may have changed in a gap, or copy a revision that is lost in one. UnknownFile
	// lists them.
	Unknown     int64
	UnknownFile string
}

// Plan is what a restore would read.
type Plan struct {
	Lineage  snapshot.ID `json:"lineage"`
	At       tid.TID     `json:"at"`
	Exact    bool        `json:"exact"`
	NotExact string      `json:"not_exact,omitempty"` // why not
	Before   tid.TID     `json:"exact_before,omitempty"`
	After    tid.TID     `json:"exact_after,omitempty"` // the nearest exact TIDs, if At is not
	Objects  int64       `json:"objects"`
	Bytes    int64       `json:"bytes"` // stored
	// What the segments hold. The last one may hold more than what is restored.
	Text    int64       `json:"text"`
	Txns    int64       `json:"txns"`
	Records int64       `json:"records"`
	MaxOID  tid.OID     `json:"max_oid"`
	Epochs  []PlanEpoch `json:"epochs,omitempty"`
	Gaps    []string    `json:"gaps,omitempty"` // accepted losses up to At
	gaps    []snapshot.Gap
	Blobs   bool `json:"blobs,omitempty"`
}

// PlanEpoch is an epoch that a restore needs.
type PlanEpoch struct {
	KID     snapshot.KID `json:"kid"`
	Objects int64        `json:"objects"`
	Bytes   int64        `json:"bytes"`
	Opens   bool         `json:"opens"`
	Problem string       `json:"problem,omitempty"` // why it does not

	err error
}

// Plan finds out what a restore would read. It reads catalog pages, and key wraps. What
// prevents a restore is in the plan, not in the error.
func (s *Source) Plan(ctx context.Context) (*Plan, error) {
	p := &Plan{Lineage: s.State.Lineage, At: s.at(), MaxOID: s.State.MaxOID(), Blobs: s.State.HasBlobs()}
	err := s.State.Exact(p.At)
	p.Exact = err == nil
	if err != nil {
		p.NotExact = err.Error()
		if e, ok := errors.AsType[*backup.NotExactError](err); ok {
			p.Before, p.After = e.Before, e.After
		}
	}
	epochs := map[snapshot.KID]int{}
	for part, err := range s.Repo.Parts(ctx, s.State, tid.Zero, p.At) {
		if err != nil {
			return nil, err
		}
		if g := part.Gap; g != nil {
			p.gaps = append(p.gaps, *g)
			p.Gaps = append(p.Gaps, fmt.Sprintf("%v to %v: %s", g.After, g.Upto, g.Note))
			continue
		}
		l := part.Segment
		p.Objects++
		p.Bytes += l.Bytes
		p.Text += l.Text
		p.Txns += l.Txns
		p.Records += l.Records
		if l.KID == 0 {
			continue
		}
		i, ok := epochs[l.KID]
		if !ok {
			i = len(p.Epochs)
			epochs[l.KID] = i
			p.Epochs = append(p.Epochs, s.epoch(ctx, l.KID))
		}
		p.Epochs[i].Objects++
		p.Epochs[i].Bytes += l.Bytes
	}
	return p, ctx.Err()
}

func (s *Source) epoch(ctx context.Context, kid snapshot.KID) PlanEpoch {
	e := PlanEpoch{KID: kid, err: fmt.Errorf("epoch %v: no identity was given: %w", kid, backup.ErrKeys)}
	if s.Keys != nil {
		_, e.err = s.Keys.Epoch(ctx, kid)
	}
	if e.Opens = e.err == nil; !e.Opens {
		e.Problem = e.err.Error()
	}
	return e
}

// check makes sure of all that can be known before anything is written.
func (s *Source) check(ctx context.Context) (*Plan, error) {
	if err := s.State.Exact(s.at()); err != nil {
		return nil, err
	}
	if s.State.HasBlobs() && !s.WithoutBlobs {
		return nil, fmt.Errorf("repository %s: %w", s.Repo.Marker.Name, ErrBlobs)
	}
	p, err := s.Plan(ctx)
	if err != nil {
		return nil, err
	}
	if len(p.Gaps) > 0 && !s.AllowGaps {
		return nil, fmt.Errorf("repository %s: what is lost, as an operator accepted (%s), is %w: a restore of a moment before it, or one that allows gaps", s.Repo.Marker.Name, p.Gaps[0], backup.ErrIncomplete)
	}
	var bad []error
	for _, e := range p.Epochs {
		if !e.Opens {
			bad = append(bad, e.err)
		}
	}
	return p, errors.Join(bad...)
}

// history is what is restored, as the source of a copy. Of records that share data with
// an earlier one it has what load says.
type history struct {
	s    *Source
	load func(oid tid.OID, at tid.TID) ([]byte, error)
	gaps []snapshot.Gap // that are left out
}

// LastTID implements [txn.History]. It is a bound: there need not be such a transaction.
func (h *history) LastTID(context.Context) (tid.TID, error) { return h.s.at(), nil }

// Transactions implements [txn.History].
func (h *history) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	if upTo = min(upTo, h.s.at()); after >= upTo {
		return func(func(*txn.Transaction, error) bool) {}
	}
	if len(h.gaps) > 0 {
		return h.withGaps(ctx, after, upTo)
	}
	return h.s.Repo.Transactions(ctx, h.s.Keys, h.s.State, after, upTo, h.s.Fetch, func(oid tid.OID, at tid.TID) ([]byte, error) { return h.load(oid, at) })
}

// Linked is called by a copy into a file, which has what was copied before.
func (h *history) Linked(load func(oid tid.OID, at tid.TID) ([]byte, error)) { h.load = load }
