package drill

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// attempts are made to find a moment at random that is exact.
const attempts = 32

// choose finds out which moment is restored.
func (d *run) choose(ctx context.Context) error {
	head := d.state.Head()
	d.at = d.o.At
	var err error
	switch {
	case head == tid.Zero:
		err = fmt.Errorf("%w: the repository has no transaction yet", backup.ErrNotExact)
	case d.at == Head:
		d.at, err = newest(d.state)
	case d.at != tid.Zero:
		err = d.state.Exact(d.at)
	default:
		if d.at, err = newest(d.state); err != nil {
			break
		}
		if d.headProved(ctx) {
			var t tid.TID
			if t, err = d.random(ctx); err == nil && t != tid.Zero {
				d.at = t
			}
		}
	}
	if errors.Is(err, backup.ErrNotExact) {
		d.began = false // nothing is wrong with the repository
	}
	d.proof.TID, d.res.Head = d.at, d.at == head
	return err
}

// newest returns the greatest exact TID.
func newest(s *backup.State) (tid.TID, error) {
	err := s.Exact(s.Head())
	if e, ok := errors.AsType[*backup.NotExactError](err); ok && e.Before != tid.Zero {
		return e.Before, nil
	}
	return s.Head(), err
}

// headProved reports whether the newest proof that says ok is of what was the head then: it is the
// turn of another moment.
func (d *run) headProved(ctx context.Context) bool {
	for _, p := range d.proofs {
		if p.Result != snapshot.ResultOK {
			continue
		}
		head, err := d.headOf(ctx, p.Proof)
		if err != nil {
			d.o.Log.Info("it is not known whether the last proof was of the head: the head is restored", "proof", p.Key, "err", err)
			return false
		}
		return head == p.TID
	}
	return false
}

// headOf returns what was the head when a proof was made.
func (d *run) headOf(ctx context.Context, p *snapshot.Proof) (tid.TID, error) {
	at := func(m *snapshot.Manifest) (tid.TID, bool) { return m.Head, m.Tail == p.Tail }
	if c := d.state.Chain(); c.N == p.Tail {
		return c.Head, nil
	}
	if t, ok := at(d.state.Manifest); ok {
		return t, nil
	}
	key := snapshot.ManifestKey(p.Lineage, p.Seq)
	b, _, err := store.ReadAll(ctx, d.repo.Store, key, 64<<20)
	if err != nil {
		return 0, err
	}
	m, err := snapshot.OpenManifest(b, key, d.repo.Marker.ID, d.o.Trusted)
	if err != nil {
		return 0, err
	}
	if t, ok := at(m); ok {
		return t, nil
	}
	t, err := d.repo.Tail(ctx, p.Lineage, p.Tail)
	if err != nil {
		return 0, err
	}
	return t.Upto, nil
}

// random returns an exact TID at random, in a segment that is chosen by how many transactions it
// has; Zero if it finds none. It need not be that of a transaction.
func (d *run) random(ctx context.Context) (tid.TID, error) {
	// What is read here must not make the first read faster.
	r, err := backup.Open(ctx, d.config())
	if err != nil {
		return 0, err
	}
	keys, total := r.Unlock(d.o.Identities...), int64(0)
	for part, err := range r.Parts(ctx, d.state, tid.Zero, d.state.Head()) {
		if err != nil {
			return 0, err
		}
		if part.Segment != nil {
			total += part.Segment.Txns
		}
	}
	if total == 0 {
		return 0, nil
	}
	n := d.o.Rand.Int64N(total)
	for part, err := range r.Parts(ctx, d.state, tid.Zero, d.state.Head()) {
		if err != nil {
			return 0, err
		}
		if part.Segment == nil {
			continue
		}
		if n -= part.Segment.Txns; n >= 0 {
			continue
		}
		s, err := r.OpenPart(ctx, keys, part)
		if err != nil {
			return 0, err
		}
		first, last := s.Footer().First, min(s.Footer().Last, part.Segment.End())
		for range attempts {
			if last < first {
				break
			}
			t := first + tid.TID(d.o.Rand.Uint64N(uint64(last-first)+1))
			if d.state.Exact(t) == nil {
				return t, nil
			}
		}
		return 0, nil
	}
	return 0, nil
}

// openEpochs shows that an operator opens what is encrypted: the epochs of all segments, and the one
// that the writer uses.
func (d *run) openEpochs(ctx context.Context) error {
	if !d.repo.Encrypted() {
		return nil
	}
	epochs, err := d.repo.Epochs(ctx)
	if err != nil {
		return err
	}
	used := map[snapshot.KID]bool{}
	if n := len(epochs); n > 0 {
		used[epochs[n-1].KID] = true
	}
	for part, err := range d.repo.Parts(ctx, d.state, tid.Zero, d.state.Head()) {
		if err != nil {
			return err
		}
		if l := part.Segment; l != nil && l.KID != 0 {
			used[l.KID] = true
		}
	}
	var errs []error
	for _, e := range epochs {
		_, err := d.keys.Epoch(ctx, e.KID)
		switch {
		case err == nil:
			d.proof.Epochs = append(d.proof.Epochs, e.KID)
		case used[e.KID]:
			errs = append(errs, err)
		default:
			d.warn("%v; nothing in this lineage needs it", err)
		}
		delete(used, e.KID)
	}
	for kid := range used {
		errs = append(errs, fmt.Errorf("epoch %v: %w: its note", kid, backup.ErrIncomplete))
	}
	return errors.Join(errs...)
}
