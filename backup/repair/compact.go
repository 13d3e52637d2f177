package repair

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

// Compact plans to merge the segments behind tails, and small ones that are in no catalog page, to greater ones: a writer
// cannot, once it has lost its spool. Keys are needed if the repository is encrypted.
func Compact(ctx context.Context, o Options) (*Plan, error) {
	e, err := newEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	state, err := e.repo.State(ctx, e.id, nil)
	if err != nil {
		return nil, err
	}
	p := &Plan{Lineage: e.id, Old: state.Head()}
	d := &draft{base: state}
	d.begin(state)
	if err := e.known(ctx, p, d, state); err != nil {
		return nil, err
	}
	if n := len(state.Tails); n > 0 {
		d.upToTail = state.Tails[n-1].N
	}
	var out []*entry
	for i := 0; i < len(d.entries); {
		n, size := i, int64(0)
		for n < len(d.entries) && e.small(d.entries, n) && size+d.entries[n].line.Bytes <= e.o.SegmentSize {
			size += d.entries[n].line.Bytes
			n++
		}
		if n-i < 2 && (n == i || d.entries[i].line.Offset() == 0) {
			n = max(n, i+1)
			out = append(out, d.entries[i:n]...)
			i = n
			continue
		}
		run := d.entries[i:n]
		i = n
		x := &entry{after: run[0].after, upto: run[len(run)-1].upto, tail: run[len(run)-1].tail}
		for _, r := range run {
			x.olds = append(x.olds, r.line.Key)
			p.Objects++
			p.Bytes += r.line.Bytes
		}
		x.make = func(ctx context.Context) ([]snapshot.Item, error) {
			line, err := e.merge(ctx, run)
			return []snapshot.Item{{Segment: &line}}, err
		}
		p.step(Step{After: x.after, Upto: x.upto, Problem: fmt.Sprintf("%d segments with %d bytes", len(run), size), Means: Merged})
		out = append(out, x)
	}
	d.entries = out
	if len(p.Steps) == 0 {
		d.upToTail = 0
	}
	return p, e.ready(ctx, p, d)
}

// small reports whether a line may be merged: a whole one of this lineage, without a transaction that is cut.
func (e *engine) small(list []*entry, i int) bool {
	x := list[i]
	cut := func(i int) bool { return i < len(list) && list[i].after == list[i].upto }
	return x.line != nil && x.page == nil && x.line.Clip == 0 && lineageOf(x.line) == e.id && x.line.Bytes < e.o.SegmentSize/2 && !cut(i) && !cut(i+1)
}

// merge stores the content of several segments as one, and makes sure that it is that of all.
func (e *engine) merge(ctx context.Context, run []*entry) (snapshot.Segment, error) {
	var none snapshot.Segment
	t, err := e.temp()
	if err != nil {
		return none, err
	}
	defer t.Close()
	after := run[0].after
	w, err := snapshot.NewSegmentWriter(t, snapshot.Header{Repo: e.repo.Marker.ID, Lineage: e.id, After: after}, snapshot.WriterOptions{Level: e.o.Level})
	if err != nil {
		return none, err
	}
	raw := sha256.New()
	var exact tid.TID
	for _, x := range run {
		h, err := e.mergeOne(ctx, w, raw, x.line)
		if err != nil {
			return none, err
		}
		if h.ExactFrom > h.After {
			exact = max(exact, h.ExactFrom)
		}
	}
	written, err := w.Close(run[len(run)-1].upto, e.salted(exact, after))
	if err != nil {
		return none, err
	}
	if got, want := written.Footer.Raw, snapshot.Hash(raw.Sum(nil)); got != want {
		return none, fmt.Errorf("merged, transactions after %v up to %v have the digest %v; those of the segments have %v", after, written.Header.Upto, got, want)
	}
	return e.storeNew(ctx, made{written, t})
}

// mergeOne adds a segment, and its text to a digest.
func (e *engine) mergeOne(ctx context.Context, w *snapshot.SegmentWriter, raw io.Writer, l *snapshot.Segment) (snapshot.Header, error) {
	good, err := e.fetch(ctx, e.repo.Store, l)
	if err != nil {
		return snapshot.Header{}, err
	}
	defer good.Close()
	r, err := e.open(ctx, l, good)
	if err != nil {
		return snapshot.Header{}, err
	}
	if _, err := io.Copy(raw, r.Text()); err != nil { // which verifies the digest of the line
		return snapshot.Header{}, err
	}
	h, err := r.Header()
	if err != nil {
		return h, err
	}
	return h, w.Copy(r)
}
