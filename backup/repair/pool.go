package repair

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// maxManifests is how many of the newest manifests are asked what they name.
const maxManifests = 100

// candidate is segments that together end with a whole transaction: several only if one is cut between them.
type candidate struct {
	lines       []snapshot.Segment
	after, upto tid.TID
	signed      bool              // a signed note names them
	from        store.Store       // where they are; nil: in the repository
	bad         bool              // one of them is not what its line says
	good        bool              // all are
	same        *bool             // the source has the same; nil: not compared
	headers     []snapshot.Header // once they were opened
}

// pool is all segments of a lineage that are there, or were named once.
type pool struct {
	list      []*candidate
	keys      map[string]bool // of objects that a list names
	odd       []Step          // objects that are no segments
	holes     []snapshot.Hole // that signed notes tell of
	maxOID    tid.OID
	manifests []*snapshot.Manifest // that verify
	tails     []*backup.StoredTail
}

// candidates finds all segments of the lineage: those that signed notes name, those of catalog pages, and what else is
// stored there.
func (e *engine) candidates(ctx context.Context) (*pool, error) {
	if e.pool != nil {
		return e.pool, nil
	}
	p := &pool{keys: map[string]bool{}}
	if err := e.signedNotes(ctx, p, e.repo, nil); err != nil {
		return nil, err
	}
	if e.o.From != nil {
		if err := e.signedNotes(ctx, p, e.o.From, e.o.From.Store); err != nil {
			return nil, err
		}
	}
	if err := e.pages(ctx, p); err != nil {
		return nil, err
	}
	if err := e.nameless(ctx, p); err != nil {
		return nil, err
	}
	e.pool = p
	return p, ctx.Err()
}

// add adds lines that follow each other, in groups that end with whole transactions. What another copy of the repository has,
// may be in the repository too.
func (p *pool) add(lines []snapshot.Segment, signed bool, from store.Store) {
	if from != nil {
		p.add(lines, signed, nil)
	}
	for i := 0; i < len(lines); {
		n := i + 1
		for n < len(lines) && lines[n].After == lines[n].Upto && lines[n].After == lines[i].Upto {
			n++
		}
		c := &candidate{lines: lines[i:n:n], after: lines[i].After, upto: lines[n-1].End(), signed: signed, from: from}
		i = n
		if c.after == c.upto {
			continue // without its beginning
		}
		for _, l := range c.lines {
			p.keys[l.Key] = true
		}
		if !slices.ContainsFunc(p.list, func(o *candidate) bool { return o.from == from && o.signed == signed && sameLines(o.lines, c.lines) }) {
			p.list = append(p.list, c)
		}
	}
}

func sameLines(a, b []snapshot.Segment) bool {
	return slices.EqualFunc(a, b, func(a, b snapshot.Segment) bool {
		return a.Key == b.Key && a.SHA256 == b.SHA256 && a.Clip == b.Clip
	})
}

// signedNotes adds what manifests and tails of a repository name that verify.
func (e *engine) signedNotes(ctx context.Context, p *pool, r *backup.Repository, from store.Store) error {
	n := 0
	for info, err := range r.Bare().List(ctx, snapshot.Prefix(snapshot.KindManifest, e.id), "") {
		if err != nil {
			return err
		}
		if n++; n > maxManifests {
			break
		}
		if err := e.signedManifest(ctx, p, r, from, info, false); err != nil {
			return err
		}
	}
	// Those that were overwritten or deleted, where the store keeps them.
	n = 0
	for v, err := range store.Versions(ctx, r.Bare(), snapshot.Prefix(snapshot.KindManifest, e.id)) {
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, store.ErrDenied) {
			break
		}
		if err != nil {
			return err
		}
		if v.Deleted || v.Latest || v.Version == "" {
			continue
		}
		if n++; n > maxManifests {
			break
		}
		if err := e.signedManifest(ctx, p, r, from, v.Info, true); err != nil {
			return err
		}
	}
	for info, err := range r.Store.List(ctx, snapshot.Prefix(snapshot.KindTail, e.id), "") {
		if err != nil {
			return err
		}
		k, err := snapshot.ParseKey(info.Key)
		if err != nil {
			continue
		}
		t, err := r.Tail(ctx, e.id, k.N)
		if wrong(err) {
			continue
		}
		if err != nil {
			return err
		}
		if err := p.tail(t, from); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// signedManifest adds what a manifest names, the newest or a version of it, if it verifies.
func (e *engine) signedManifest(ctx context.Context, p *pool, r *backup.Repository, from store.Store, info store.Info, version bool) error {
	var body io.ReadCloser
	var err error
	if version {
		body, _, err = store.GetVersion(ctx, r.Bare(), info.Key, info.Version, 0, 64<<20)
	} else {
		body, _, err = r.Bare().Get(ctx, info.Key, 0, 64<<20)
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err != nil {
		return fmt.Errorf("read %s: %w", info.Key, err)
	}
	m, err := snapshot.OpenManifest(b, info.Key, e.repo.Marker.ID, e.repo.Trusted)
	if wrong(err) || errors.Is(err, snapshot.ErrVersion) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.named(ctx, p, r, m, from)
}

// tail adds the segments of a tail.
func (p *pool) tail(t *backup.StoredTail, from store.Store) error {
	p.maxOID = max(p.maxOID, t.MaxOID)
	p.tails = append(p.tails, t)
	if t.ExactFrom != 0 {
		p.holes = snapshot.AddHole(p.holes, snapshot.Hole{From: t.After, To: t.ExactFrom})
	}
	if t.Bytes == 0 {
		p.add(t.Segments, true, from)
		return nil
	}
	l, err := t.Line()
	if err != nil {
		return nil // its object is damaged behind the note
	}
	p.add([]snapshot.Segment{*l}, true, from)
	return nil
}

// named adds what a manifest names, also in the pages that have the hash that it says.
func (e *engine) named(ctx context.Context, p *pool, r *backup.Repository, m *snapshot.Manifest, from store.Store) error {
	p.maxOID = max(p.maxOID, m.MaxOID)
	p.manifests = append(p.manifests, m)
	for _, h := range m.Holes {
		p.holes = snapshot.AddHole(p.holes, h)
	}
	var run []snapshot.Segment
	for _, i := range m.Items {
		switch {
		case i.Segment != nil:
			run = append(run, *i.Segment)
			continue
		case i.Page != nil:
			s := &backup.State{Lineage: e.id, Manifest: &snapshot.Manifest{Items: []snapshot.Item{i}}}
			var list []snapshot.Segment
			err := error(nil)
			for part, e := range r.Parts(ctx, s, i.Page.After, i.Page.Upto) {
				if e != nil {
					err = e
					break
				}
				list = append(list, *part.Segment)
			}
			if err == nil {
				run = append(run, list...)
				continue
			}
			if !wrong(err) {
				return err
			}
		}
		p.add(run, true, from)
		run = nil
	}
	p.add(run, true, from)
	return nil
}

// pages adds the lines of catalog pages whose name is right. That says nothing about their origin.
func (e *engine) pages(ctx context.Context, p *pool) error {
	for info, err := range e.repo.Store.List(ctx, snapshot.Prefix(snapshot.KindPage, e.id), "") {
		if err != nil {
			return err
		}
		k, err := snapshot.ParseKey(info.Key)
		if err != nil || info.Size > snapshot.MaxPage {
			continue
		}
		b, _, err := store.ReadAll(ctx, e.repo.Store, info.Key, snapshot.MaxPage)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if snapshot.Sum(b).Short() != k.Sum {
			continue
		}
		if list, err := snapshot.ParsePage(b, info.Key); err == nil {
			p.add(list, false, nil)
		}
	}
	return ctx.Err()
}

// nameless adds the objects that no list names: segments, and what is behind tails whose note does not verify.
func (e *engine) nameless(ctx context.Context, p *pool) error {
	var single []*candidate
	look := func(key string, size int64) error {
		l, h, err := e.lineOf(ctx, key, size)
		if wrong(err) || errors.Is(err, backup.ErrKeys) {
			p.odd = append(p.odd, Step{Key: key, Problem: "an object that no note names cannot be read: " + err.Error(), Means: None})
			return nil
		}
		if err != nil {
			return err
		}
		single = append(single, &candidate{lines: []snapshot.Segment{*l}, after: l.After, upto: l.Upto, good: true, headers: []snapshot.Header{h}})
		return nil
	}
	for _, kind := range []snapshot.Kind{snapshot.KindSegment, snapshot.KindTail} {
		for info, err := range e.repo.Store.List(ctx, snapshot.Prefix(kind, e.id), "") {
			if err != nil {
				return err
			}
			k, err := snapshot.ParseKey(info.Key)
			if err != nil || k.Kind != kind || p.keys[info.Key] {
				continue
			}
			if kind == snapshot.KindTail {
				if t, err := e.repo.Tail(ctx, e.id, k.N); err == nil && t.Bytes == 0 {
					continue // a heartbeat, or one that lists segments
				}
			}
			if err := look(info.Key, info.Size); err != nil {
				return err
			}
		}
	}
	// Parts of a transaction that is cut: their order is only sure if there is one beginning, one end, and at most
	// one part between.
	for _, c := range single {
		if h := c.headers[0]; h.Continues {
			continue
		} else if h.Continued {
			var middle, end []*candidate
			first := 0
			for _, o := range single {
				if o.upto == c.upto && o.headers[0].Continued && !o.headers[0].Continues {
					first++
				}
				if o.headers[0].Continues && o.upto == c.upto {
					if o.headers[0].Continued {
						middle = append(middle, o)
					} else {
						end = append(end, o)
					}
				}
			}
			if first != 1 || len(middle) > 1 || len(end) != 1 {
				continue
			}
			for _, o := range append(middle, end...) {
				c.lines = append(c.lines, o.lines...)
				c.headers = append(c.headers, o.headers...)
			}
		}
		p.list = append(p.list, c)
	}
	return ctx.Err()
}

// lineOf makes the line of a segment from itself.
func (e *engine) lineOf(ctx context.Context, key string, size int64) (*snapshot.Segment, snapshot.Header, error) {
	var none snapshot.Header
	k, err := snapshot.ParseKey(key)
	if err != nil {
		return nil, none, err
	}
	l := &snapshot.Segment{Key: key, After: k.After, Upto: k.Upto, Bytes: size}
	if k.Kind == snapshot.KindTail {
		b, err := e.read(ctx, key, snapshot.MaxTailNote+4096)
		if err != nil {
			return nil, none, err
		}
		at := beginning(b, e.repo.Encrypted())
		if at <= 0 {
			return nil, none, &snapshot.CorruptError{Name: key, Offset: -1, Err: errors.New("no segment is behind its note")}
		}
		l.SetTail(key, int64(at))
		l.Bytes = size - int64(at)
	}
	t, err := e.temp()
	if err != nil {
		return nil, none, err
	}
	defer t.Close()
	body, _, err := e.repo.Store.Get(ctx, key, l.Offset(), l.Bytes)
	if err != nil {
		return nil, none, err
	}
	defer body.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(t, sum), body); err != nil {
		return nil, none, err
	}
	l.SHA256 = snapshot.Hash(sum.Sum(nil))
	if k.Kind == snapshot.KindSegment && l.SHA256.Short() != k.Sum {
		return nil, none, &snapshot.CorruptError{Name: key, Offset: -1, Err: errors.New("its SHA-256 is not the one in its name")}
	}
	if e.repo.Encrypted() {
		if l.Header, err = snapshot.HeaderOf(io.NewSectionReader(t, 0, t.size), key); err != nil {
			return nil, none, err
		}
		if l.KID, err = e.epochOf(ctx, l); err != nil {
			return nil, none, err
		}
	}
	plain, n, err := e.plaintext(ctx, l, t)
	if err != nil {
		return nil, none, err
	}
	r, err := snapshot.NewReader(plain, n, key)
	if err != nil {
		return nil, none, err
	}
	h, err := r.Header()
	if err != nil {
		return nil, none, err
	}
	if h.Repo != e.repo.Marker.ID || h.Lineage != e.id || k.Kind == snapshot.KindSegment && (h.After != k.After || h.Upto != k.Upto) {
		return nil, none, &snapshot.CorruptError{Name: key, Offset: 0, Err: errors.New("its header says that it is of another repository, lineage or range")}
	}
	if err := r.Check(nil); err != nil {
		return nil, none, err
	}
	f := r.Footer()
	l.After, l.Upto = h.After, h.Upto
	l.Raw, l.Text, l.Txns, l.Records, l.MaxOID, l.Meta = f.Raw, f.Text, f.Txns, f.Records, f.MaxOID, f.MetaLength()
	return l, h, nil
}

// epochOf returns the epoch to which a segment is encrypted.
func (e *engine) epochOf(ctx context.Context, l *snapshot.Segment) (snapshot.KID, error) {
	epochs, err := e.repo.Epochs(ctx)
	if err != nil && len(epochs) == 0 {
		return 0, err
	}
	var errs []error
	for _, n := range slices.Backward(epochs) {
		if n.KID == 0 {
			continue
		}
		id, err := e.o.Keys.Epoch(ctx, n.KID)
		if err == nil {
			if _, err = snapshot.FileKey(l.Header, l.Key, id); err == nil {
				return n.KID, nil
			}
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(append(errs, backup.ErrKeys)...)
}

// beginning returns where the segment behind the note of a tail begins, of which the note may be damaged; -1 if it is not
// found.
func beginning(b []byte, encrypted bool) int {
	magic := []byte{0x5a, 0x2a, 0x4d, 0x18, 72, 0, 0, 0, 'N', 'E', 'O', 'B', 'K', 'S', 'G'}
	if encrypted {
		magic = []byte("age-encryption.org/v1\n")
	}
	return bytes.Index(b, magic)
}

// read returns the first n bytes of an object.
func (e *engine) read(ctx context.Context, key string, n int64) ([]byte, error) {
	body, _, err := e.repo.Store.Get(ctx, key, 0, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// usable verifies the objects of a candidate, once.
func (e *engine) usable(ctx context.Context, c *candidate) (bool, error) {
	if c.bad || c.good {
		return c.good, nil
	}
	for i := range c.lines {
		l := &c.lines[i]
		var err error
		if c.from != nil {
			err = copySegment(ctx, c.from, l, io.Discard)
		} else {
			if list := e.doomed[l.Key]; list != "" {
				c.bad = true
				return false, nil
			}
			if err = e.intact(ctx, l); err == nil && !c.signed {
				err = e.look(ctx, c, l)
			}
		}
		if wrong(err) {
			c.bad = true
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	c.good = true
	return true, nil
}

// look opens a segment that no signed note names, verifies all of it, and keeps its header.
func (e *engine) look(ctx context.Context, c *candidate, l *snapshot.Segment) error {
	t, err := e.fetch(ctx, e.repo.Store, l)
	if err != nil {
		return err
	}
	defer t.Close()
	r, err := e.open(ctx, l, t)
	if err != nil {
		return err
	}
	if err := r.Check(nil); err != nil {
		return err
	}
	h, err := r.Header()
	c.headers = append(c.headers, h)
	return err
}

// intact verifies the object of a line, in the version that is right.
func (e *engine) intact(ctx context.Context, l *snapshot.Segment) error {
	err := copySegment(ctx, e.repo.Store, l, io.Discard)
	if again, e2 := e.repo.Rescue(ctx, l, err); e2 != nil {
		return e2
	} else if again {
		return copySegment(ctx, e.repo.Store, l, io.Discard)
	}
	return err
}

// cover returns candidates that stand for (after, upto] as far as that is possible, in their order: with the fewest ranges
// missing, and then the fewest segments. ok says which may be used. With open, upto is the end of the last one that is found.
func (e *engine) cover(ctx context.Context, p *pool, after, upto tid.TID, open bool, ok func(*candidate) bool) ([]*candidate, error) {
	for {
		list := tile(p.list, after, upto, open, func(c *candidate) bool { return !c.bad && ok(c) })
		again := false
		for _, c := range list {
			good, err := e.usable(ctx, c)
			if err != nil {
				return nil, err
			}
			again = again || !good
		}
		if !again {
			return list, nil
		}
	}
}

// tile chooses among candidates.
func tile(all []*candidate, after, upto tid.TID, open bool, ok func(*candidate) bool) []*candidate {
	var list []*candidate
	points := []tid.TID{after}
	if !open {
		points = append(points, upto)
	}
	for _, c := range all {
		if c.after >= after && (open || c.upto <= upto) && ok(c) {
			list = append(list, c)
			points = append(points, c.after, c.upto)
		}
	}
	slices.Sort(points)
	points = slices.Compact(points)
	if open {
		upto = points[len(points)-1]
	}
	type way struct {
		missing, segments int
		gap               bool // it begins with a gap
		next              tid.TID
		by                *candidate
	}
	best := map[tid.TID]way{upto: {}}
	slices.SortStableFunc(list, func(a, b *candidate) int { return cmp.Compare(a.after, b.after) })
	for i := len(points) - 1; i >= 0; i-- {
		at := points[i]
		if at >= upto {
			continue
		}
		n := best[points[i+1]]
		w := way{missing: n.missing, segments: n.segments, gap: true, next: points[i+1]}
		if !n.gap {
			w.missing++
		}
		from, _ := slices.BinarySearchFunc(list, at, func(c *candidate, t tid.TID) int { return cmp.Compare(c.after, t) })
		for _, c := range list[from:] {
			if c.after != at {
				break
			}
			n, ok := best[c.upto]
			if !ok {
				continue
			}
			got := way{missing: n.missing, segments: n.segments + len(c.lines), next: c.upto, by: c}
			if got.missing < w.missing || got.missing == w.missing && (w.gap || got.segments < w.segments || got.segments == w.segments && w.by.from != nil && c.from == nil) {
				w = got
			}
		}
		best[at] = w
	}
	var out []*candidate
	for at := after; at < upto; {
		w := best[at]
		if w.by != nil {
			out = append(out, w.by)
		}
		at = w.next
	}
	return out
}
