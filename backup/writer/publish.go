package writer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// pauseAfterFault is how long after a publication that was given up the next one begins.
const pauseAfterFault = time.Minute

// publication makes and stores a manifest, while its lineage goes on.
type publication struct {
	w      *Writer
	c      chain // as it was; only what does not change is used
	source snapshot.Source
	label  string
	begun  time.Time

	unmerged bool     // lines stay as they are
	made     []string // plaintexts of segments that only this manifest names

	done chan struct{}
	// When it is done:
	manifest *snapshot.Manifest // the newest one, of another writer too; nil: it was given up
	hash     snapshot.Hash
	spent    []string // plaintexts that are not needed any more
	err      error
}

// line is a line of the manifest to be.
type line struct {
	item snapshot.Item
	name string // of the plaintext
	piece
}

// publish begins to publish a manifest that sums up all tails.
func (c *chain) publish(ctx context.Context, label string) *publication {
	p := &publication{w: c.w, c: *c, source: c.w.o.Feed.Source(), label: label, begun: time.Now(), done: make(chan struct{})}
	c.publication = p
	go func() {
		defer close(p.done)
		p.err = p.run(ctx)
	}()
	return p
}

// settle takes over what a publication that is done has stored.
func (c *chain) settle() error {
	p := c.publication
	c.publication = nil
	if p.err != nil {
		return p.err
	}
	if p.manifest == nil {
		c.notBefore = time.Now().Add(pauseAfterFault)
		return nil
	}
	m := p.manifest
	n := 0
	for n < len(c.tails) && c.tails[n].N <= m.Tail {
		n++
	}
	at := c.manifest.ChainEnd()
	if n > 0 {
		at = c.tails[n-1].Chain()
	}
	if m.ChainEnd() != at {
		return &FencedError{snapshot.ManifestKey(c.id, m.Seq), m.Writer, m.Created}
	}
	c.manifest, c.hash = m, p.hash
	c.tails = append([]*tail(nil), c.tails[n:]...)
	if err := c.w.spool.remove(p.spent...); err != nil {
		c.w.log.Warn("the state directory cannot be written", "err", err)
	}
	c.w.report(c)
	c.w.log.Debug("published a manifest", "manifest", m.Seq, "tail", m.Tail, "head", m.Head)
	return nil
}

// run merges, seals and publishes.
func (p *publication) run(ctx context.Context) error {
	// Nothing that was stored too long ago may be named.
	limit, cancel := context.WithDeadline(ctx, p.begun.Add(maxUnreferenced))
	defer cancel()
	err := p.try(limit)
	if local, ok := errors.AsType[*localError](err); ok {
		p.w.log.Error("segments cannot be merged now; they are later", "err", local.err)
		p.w.count(func(s *Stats) { s.Postponed++ })
		p.forget()
		p.unmerged = true
		err = p.try(limit)
	}
	if err != nil {
		p.forget()
	}
	if errors.Is(err, store.ErrExists) {
		return p.adopt(ctx)
	}
	if err != nil && limit.Err() != nil && ctx.Err() == nil {
		p.w.log.Error("a manifest could not be stored in time; it is made again", "err", err)
		return nil
	}
	return err
}

// forget gives up what was merged.
func (p *publication) forget() {
	if err := p.w.spool.remove(p.made...); err != nil {
		p.w.log.Warn("the state directory cannot be written", "err", err)
	}
	p.made, p.spent = nil, nil
}

// localError is a fault of the state directory.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// pieceError is an error of a plaintext.
type pieceError struct {
	name string
	err  error
}

func (e *pieceError) Error() string { return fmt.Sprintf("%s: %v", e.name, e.err) }
func (e *pieceError) Unwrap() error { return e.err }

// try makes and stores the manifest. The error is an ErrExists if there is another one.
func (p *publication) try(ctx context.Context) error {
	lines, err := p.merged(ctx)
	for {
		bad, ok := errors.AsType[*pieceError](err)
		if !ok {
			break
		}
		p.w.dropPiece(bad.name, bad.err)
		p.forget()
		lines, err = p.merged(ctx)
	}
	if err != nil {
		return err
	}
	if lines, err = p.paged(ctx, lines); err != nil {
		return err
	}
	old := p.c.manifest
	m := &snapshot.Manifest{
		Repo: old.Repo, Lineage: old.Lineage, Seq: old.Seq + 1, Prev: p.c.hash, Tail: p.c.end.N, Chain: p.c.end.Hash,
		Created: time.Now(), Writer: p.w.name, Source: p.source, Asof: p.c.asof, Tip: p.c.tip, Holes: old.Holes, Label: p.label, Reserved: old.Reserved,
	}
	for i := range lines {
		m.Items = append(m.Items, lines[i].item)
	}
	m.SumUp()
	if m.Head != p.c.end.Head {
		return fmt.Errorf("manifest %d would end with %v, the lineage ends with %v", m.Seq, m.Head, p.c.end.Head)
	}
	m.MaxOID = max(m.MaxOID, old.MaxOID)
	txns, records, text := old.Txns, old.Records, old.Text
	for _, t := range p.c.tails {
		m.MaxOID = max(m.MaxOID, t.MaxOID)
		if t.ExactFrom != 0 {
			m.Holes = snapshot.AddHole(m.Holes, snapshot.Hole{From: t.After, To: t.ExactFrom})
		}
		m.Reserved = append(m.Reserved[:len(m.Reserved):len(m.Reserved)], t.Reserved...)
		txns, records, text = txns+t.Txns, records+t.Records, text+t.Text
	}
	if m.Txns != txns || m.Records != records || m.Text != text {
		return fmt.Errorf("manifest %d would have %d transactions, %d records and %d bytes of text; the lineage has %d, %d and %d", m.Seq, m.Txns, m.Records, m.Text, txns, records, text)
	}
	b, err := m.Sign(p.w.o.Signer)
	if err != nil {
		return err
	}
	hash := snapshot.Sum(b)
	if err := p.w.put(ctx, snapshot.ManifestKey(m.Lineage, m.Seq), bytes.NewReader(b), int64(len(b)), hash, short); err != nil {
		return err
	}
	p.w.count(func(s *Stats) { s.Manifests++ })
	p.manifest, p.hash = m, hash
	return nil
}

// adopt takes the manifest that exists: an own one of an earlier try, that of a repair or a
// compaction, or that of a writer which was fenced later. All say the same of the tails that
// they sum up.
func (p *publication) adopt(ctx context.Context) error {
	s, err := p.w.repo.State(ctx, p.c.id, p.c.known())
	if err != nil {
		return err
	}
	if s.Manifest.Seq <= p.c.manifest.Seq {
		return fmt.Errorf("manifest %d exists, but is not found", p.c.manifest.Seq+1)
	}
	p.w.log.Info("a manifest was published already", "manifest", s.Manifest.Seq, "writer", s.Manifest.Writer)
	p.manifest, p.hash = s.Manifest, s.Hash
	return nil
}

// merged carries out the plan of merges.
func (p *publication) merged(ctx context.Context) ([]line, error) {
	var out, open []line
	flush := func() error {
		if len(open) == 0 {
			return nil
		}
		pieces := make([]piece, len(open))
		for i := range open {
			pieces[i] = open[i].piece
		}
		if p.unmerged {
			out, open = append(out, open...), nil
			return nil
		}
		for _, r := range p.w.o.limits.merges(pieces, p.w.o.SegmentSize) {
			l, err := p.merge(ctx, open[r.from:r.to], r, r.copied(pieces))
			if err != nil {
				return err
			}
			out = append(out, l)
		}
		open = nil
		return nil
	}
	add := func(s *snapshot.Segment, clip bool) {
		l := line{item: snapshot.Item{Segment: s}, name: pieceName(p.c.id, s)}
		l.bytes = s.Bytes
		l.tail = s.Offset() != 0
		if l.tier, l.open = p.w.spool.find(l.name); clip {
			l.open = false
		}
		open = append(open, l)
	}
	for _, i := range p.c.manifest.Items {
		if i.Segment == nil {
			if err := flush(); err != nil {
				return nil, err
			}
			out = append(out, line{item: i})
			continue
		}
		add(i.Segment, i.Segment.Clip != 0)
	}
	for _, t := range p.c.tails {
		for i := range t.lines {
			add(&t.lines[i], false)
		}
	}
	return out, flush()
}

// merge makes one line of some. A segment is stored if copied is set.
func (p *publication) merge(ctx context.Context, in []line, r run, copied bool) (line, error) {
	w := p.w
	if !copied {
		l := in[0]
		if r.sealed && l.open {
			p.spent = append(p.spent, l.name)
			l.open = false
		}
		return l, nil
	}
	buf := w.spool.scratch()
	defer buf.close()
	after := in[0].item.Segment.After
	seg, err := snapshot.NewSegmentWriter(buf, snapshot.Header{Repo: w.repo.Marker.ID, Lineage: p.c.id, After: after}, snapshot.WriterOptions{Level: cmp.Or(w.o.Level, snapshot.Default)})
	if err != nil {
		return line{}, err
	}
	var exact tid.TID
	var txns, records, text int64
	for i := range in {
		h, err := p.copy(ctx, seg, &in[i])
		if err != nil {
			return line{}, err
		}
		s := in[i].item.Segment
		if h.ExactFrom > h.After { // else it says nothing, but might for a range that begins earlier
			exact = max(exact, h.ExactFrom)
		}
		txns, records, text = txns+s.Txns, records+s.Records, text+s.Text
	}
	written, err := seg.Close(in[len(in)-1].item.Segment.Upto, w.salted(exact, after))
	if err != nil {
		return line{}, &localError{err}
	}
	if f := &written.Footer; f.Txns != txns || f.Records != records || f.Text != text {
		return line{}, fmt.Errorf("a merged segment has %d transactions, %d records and %d bytes of text; what it is made of has %d, %d and %d", f.Txns, f.Records, f.Text, txns, records, text)
	}
	sealed := w.spool.scratch()
	defer sealed.close()
	st, err := snapshot.Seal(sealed, buf.reader(), w.to, w.kid)
	if err != nil {
		return line{}, &localError{err}
	}
	s := written.Line(st)
	l := line{item: snapshot.Item{Segment: &s}, name: pieceName(p.c.id, &s)}
	l.tier, l.bytes, l.open = r.tier, s.Bytes, !r.sealed
	stored, err := w.putHashed(ctx, s.Key, sealed, sealed.size, st.SHA256, !r.sealed)
	if err != nil {
		return line{}, err
	}
	if err := old(s.Key, s.Bytes, stored); err != nil {
		return line{}, &localError{err}
	}
	if l.open {
		w.keep(l.name, r.tier, buf)
		p.made = append(p.made, l.name)
	}
	for i := range in {
		p.spent = append(p.spent, in[i].name)
	}
	return l, nil
}

// copy adds a plaintext to a segment, and returns its header.
func (p *publication) copy(ctx context.Context, seg *snapshot.SegmentWriter, l *line) (snapshot.Header, error) {
	if err := ctx.Err(); err != nil {
		return snapshot.Header{}, err
	}
	var h snapshot.Header
	r, f, err := p.w.spool.open(l.name, l.item.Segment)
	if err == nil {
		defer f.Close()
		h, err = r.Header()
	}
	if err == nil {
		err = seg.Copy(r)
	}
	switch {
	case err == nil:
		return h, nil
	case errors.Is(err, snapshot.ErrCorrupt), errors.Is(err, snapshot.ErrVersion), errors.Is(err, fs.ErrNotExist):
		return h, &pieceError{l.name, err}
	}
	return h, &localError{err} // it may be readable later
}

// paged makes pages of sealed lines.
func (p *publication) paged(ctx context.Context, lines []line) ([]line, error) {
	places := make([]placed, len(lines))
	for i := range lines {
		s := lines[i].item.Segment
		places[i] = placed{s != nil && !lines[i].open && !lines[i].tail && s.Clip == 0, s != nil && s.After == s.Upto}
	}
	var out []line
	at := 0
	for _, r := range pages(places, p.w.o.limits.page) {
		from, to := r[0], r[1]
		// The page of a process that was killed may be old: one with less has another key.
		for ; to > from; to = pageEnd(places, from, to-1) {
			list := make([]snapshot.Segment, to-from)
			for i := range list {
				list[i] = *lines[from+i].item.Segment
			}
			b, page, err := snapshot.NewPage(p.c.id, list)
			if err != nil {
				return nil, err
			}
			stored, err := p.w.putHashed(ctx, page.Key, bytes.NewReader(b), int64(len(b)), page.SHA256, long)
			if errors.Is(err, snapshot.ErrCorrupt) {
				p.w.log.Error("a catalog page was overwritten: another one is made, with fewer segments", "err", err)
				continue
			}
			if err != nil {
				return nil, err
			}
			if old(page.Key, int64(len(b)), stored) != nil {
				continue
			}
			out = append(out, lines[at:from]...)
			out = append(out, line{item: snapshot.Item{Page: &page}})
			at = to
			break
		}
	}
	return append(out, lines[at:]...), nil
}
