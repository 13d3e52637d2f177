package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// chain is a lineage that is added to, as its writer knows it. One goroutine owns it;
// what is published is a copy.
type chain struct {
	w  *Writer
	id snapshot.ID

	manifest *snapshot.Manifest // newest
	hash     snapshot.Hash      // of its object
	tails    []*tail            // after it
	end      snapshot.Chain     // after the last tail
	tip      snapshot.Hash
	asof     time.Time

	uncertain bool      // a tail may have been stored, or not
	opened    mark      // before the chain was read
	checked   bool      // the lineage was still current long enough after that
	apart     bool      // small segments too are objects of their own
	cutAt     int64     // bytes at which a segment is cut
	acked     mark      // of the last own tail, or before the chain was read
	tailAt    time.Time // when the last tail was stored, by this process
	flushed   time.Time // when the last flush began

	publication *publication // under way
	notBefore   time.Time    // of the next publication, after one that was given up
}

// tail is a tail after the newest manifest.
type tail struct {
	*snapshot.Tail
	lines []snapshot.Segment // what is stored behind it or was before it
}

func (w *Writer) newChain(s *backup.State, at mark) (*chain, error) {
	c := &chain{w: w, id: s.Lineage, manifest: s.Manifest, hash: s.Hash, end: s.Chain(), tip: s.Tip(), asof: s.Manifest.Asof, acked: at, tailAt: at.at, opened: at}
	for _, t := range s.Tails {
		lines, err := w.linesOf(t)
		if err != nil {
			return nil, err
		}
		c.tails = append(c.tails, &tail{t.Tail, lines})
		c.asof = t.Asof
	}
	c.cut()
	return c, nil
}

// linesOf returns the lines of the segments of a tail that was read. Behind an encrypted one
// the directory cannot be read; its length comes from the spool, or is not known.
func (w *Writer) linesOf(t *backup.StoredTail) ([]snapshot.Segment, error) {
	if t.Bytes == 0 {
		return t.Segments, nil
	}
	l, err := t.Line()
	if err != nil {
		return nil, err
	}
	name := pieceName(t.Lineage, l)
	if _, ok := w.spool.find(name); ok {
		r, f, err := w.spool.open(name, l)
		if err != nil {
			w.dropPiece(name, err)
		} else {
			footer := r.Footer()
			l.Meta = footer.MetaLength()
			f.Close()
		}
	}
	return []snapshot.Segment{*l}, nil
}

// dropPiece gives up a plaintext that cannot be used: its segment stays as it is.
func (w *Writer) dropPiece(name string, err error) {
	w.log.Warn("the copy of a segment in the state directory cannot be used; the segment is not merged", "segment", name, "err", err)
	if err := w.spool.remove(name); err != nil {
		w.log.Warn("the state directory cannot be written", "err", err)
	}
}

// lines yields the lines after the pages and gaps of the manifest, and those of the tails.
func (c *chain) lines() []*snapshot.Segment {
	var list []*snapshot.Segment
	for _, i := range c.manifest.Items {
		if i.Segment != nil {
			list = append(list, i.Segment)
		}
	}
	for _, t := range c.tails {
		for i := range t.lines {
			list = append(list, &t.lines[i])
		}
	}
	return list
}

// cleanSpool removes what belongs neither to a line of the lineage nor to the lineage next,
// that of a rebase.
func (w *Writer) cleanSpool(next snapshot.ID) error {
	known := map[string]bool{}
	for _, l := range w.chain.lines() {
		known[pieceName(w.chain.id, l)] = true
	}
	return w.spool.keep(func(name string) bool {
		return known[name] || next != snapshot.ID{} && strings.HasPrefix(name, next.String())
	})
}

// stored are the bytes of the tails since the manifest, as due counts them.
func (c *chain) stored() (sum int64) {
	for _, t := range c.tails {
		for i := range t.lines {
			sum += t.lines[i].Bytes
		}
	}
	return sum
}

// publishIfDue takes over a publication that is done, and begins one that is due.
func (c *chain) publishIfDue(ctx context.Context) error {
	if p := c.publication; p != nil {
		select {
		case <-p.done:
			if err := c.settle(); err != nil {
				return err
			}
			if err := c.w.writeMark(ctx, c); err != nil {
				return err
			}
		default:
		}
	}
	now := time.Now()
	if c.publication == nil && !now.Before(c.notBefore) && c.w.o.limits.due(len(c.tails), c.stored(), now.Sub(c.manifest.Created)) {
		if err := c.stillCurrent(ctx); err != nil {
			return err
		}
		c.publish(ctx, "")
	}
	return nil
}

// quiesce waits for a publication under way.
func (c *chain) quiesce() error {
	if c.publication == nil {
		return nil
	}
	<-c.publication.done
	return c.settle()
}

// commit signs a tail, whose range and content are set, and creates it as the next one. body is
// what follows the note. When it returns nil, the tail is acknowledged.
func (c *chain) commit(ctx context.Context, t *snapshot.Tail, body *scratch) error {
	w := c.w
	t.Repo, t.Lineage, t.N, t.Prev, t.Writer = w.repo.Marker.ID, c.id, c.end.N+1, c.end.Hash, w.name
	if err := t.Follows(c.end); err != nil {
		return err
	}
	object, err := t.Sign(w.o.Signer)
	if err != nil {
		return err
	}
	if body != nil {
		note := len(object)
		object = append(object, make([]byte, body.size)...)
		if n, err := body.ReadAt(object[note:], 0); int64(n) < body.size {
			return fmt.Errorf("reading a segment of %d bytes: %w", body.size, err)
		}
	}
	key := snapshot.TailKey(c.id, t.N)
	err = w.put(ctx, key, bytes.NewReader(object), int64(len(object)), snapshot.Sum(object), short)
	if errors.Is(err, store.ErrExists) {
		err = c.isOwn(ctx, key, object)
	}
	if err != nil {
		c.uncertain = true
		return err
	}
	now := w.mark()
	if c.acked.stalled(now) {
		err = c.reopen(ctx, t)
	} else if !c.checked {
		// A rebase that had ended this lineage when the chain was read makes the next one soon.
		err = c.stillCurrent(ctx)
	}
	if err != nil {
		c.uncertain = true // it is stored
		return err
	}
	c.checked = c.checked || c.opened.stalled(now)
	lines := t.Segments
	if body != nil {
		lines = nil // the caller knows more
	}
	c.tails = append(c.tails, &tail{t, lines})
	c.end, c.asof, c.acked, c.tailAt = t.Chain(), t.Asof, now, now.at
	if !t.Heartbeat() {
		c.tip = t.Tip
	}
	w.report(c)
	return nil
}

// isOwn returns nil if what is stored as a tail is the object, from an earlier try, else the
// writer that created it, in the error.
func (c *chain) isOwn(ctx context.Context, key string, object []byte) error {
	got, info, err := c.w.repo.Store.Get(ctx, key, 0, snapshot.MaxTailNote+int64(len(object)))
	if err != nil {
		return err
	}
	defer got.Close()
	b, err := io.ReadAll(got)
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	if info.Size == int64(len(object)) && bytes.Equal(b, object) {
		return nil
	}
	other, err := snapshot.OpenTail(b, key, c.w.repo.Marker.ID, c.w.repo.Trusted)
	if err != nil {
		return fmt.Errorf("%s, which this writer was to create, exists: %w", key, err)
	}
	return &FencedError{key, other.Writer, other.Asof}
}

// reopen makes sure that a tail that was stored after a long time is the last one of its
// lineage: its number may have been used and deleted meanwhile, so that creating it proves
// nothing.
func (c *chain) reopen(ctx context.Context, t *snapshot.Tail) error {
	w := c.w
	w.log.Info("the chain of tails is read again, after a long time without one", "since", c.acked.at.Round(0), "tail", t.N)
	if err := w.checkCurrent(ctx, c); err != nil {
		return err
	}
	s, err := w.repo.State(ctx, c.id, c.known())
	if err != nil {
		return err
	}
	if s.Chain() != t.Chain() {
		return takenOver(s)
	}
	return nil
}

// known returns what is known of the lineage without its tails, so that a list that is late does
// not matter.
func (c *chain) known() *backup.State {
	return &backup.State{Lineage: c.id, Manifest: c.manifest, Hash: c.hash}
}

// takenOver returns the error that another writer has added to a lineage last.
func takenOver(s *backup.State) error {
	if n := len(s.Tails); n > 0 {
		other := s.Tails[n-1]
		return &FencedError{other.Key, other.Writer, other.Asof}
	}
	return &FencedError{snapshot.ManifestKey(s.Lineage, s.Manifest.Seq), s.Manifest.Writer, s.Manifest.Created}
}

// stillCurrent returns an ErrDiverged if the lineage after that of the writer exists. A lineage that
// is filled has no note yet.
func (c *chain) stillCurrent(ctx context.Context) error {
	w := c.w
	if c.id != w.note.Lineage {
		return nil
	}
	key := snapshot.Key{Kind: snapshot.KindLineage, N: w.note.K + 1}.String()
	body, _, err := w.repo.Store.Get(ctx, key, 0, 0)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	body.Close()
	if err := w.checkCurrent(ctx, c); err != nil {
		return err
	}
	return fmt.Errorf("%s exists, but is not the current lineage", key)
}

// checkCurrent returns an ErrDiverged if another lineage took the place of that of the writer.
func (w *Writer) checkCurrent(ctx context.Context, c *chain) error {
	note, err := w.repo.Current(ctx)
	if err != nil {
		return err
	}
	if note.K != w.note.K || note.Lineage != w.note.Lineage {
		return &DivergedError{Head: c.end.Head, Common: c.end.Head, Err: fmt.Errorf("the repository has lineage %v since %s (%s): restart the writer to add to it", note.Lineage, note.Created.UTC().Format(time.RFC3339), note.Why)}
	}
	return nil
}

// heartbeat stores a tail that says only that the source had nothing new.
func (c *chain) heartbeat(ctx context.Context, asof time.Time) error {
	t := &snapshot.Tail{After: c.end.Head, Upto: c.end.Head, Asof: asof, Tip: c.tip}
	if err := c.commit(ctx, t, nil); err != nil {
		return err
	}
	c.w.count(func(s *Stats) { s.Heartbeats++ })
	return nil
}
