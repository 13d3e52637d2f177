package repair

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// entry is a range of the history, and what stands for it.
type entry struct {
	after, upto tid.TID
	line        *snapshot.Segment // what stands for it now
	gap         *snapshot.Gap     // or a gap; neither: it is not known
	page        *snapshot.Page    // of which the line is, if that page is good
	lost        *snapshot.Page    // the page that is not, of which nothing is known
	tail        int64             // number of the tail of which it is; 0: of the manifest
	open        bool              // upto is not known
	again       bool              // it copies what is gone: it is read again, with data

	err error // what is wrong with it

	// make stores what takes its place, and returns that; nil: it stays. With olds it takes the place of these lines.
	make func(ctx context.Context) ([]snapshot.Item, error)
	olds []string
	hole snapshot.Hole // that it makes
	last *candidate    // what takes its place, if it is that
	tip  snapshot.Hash // of its last transaction, if it was read from the source

	items []snapshot.Item // what make returned
}

func (x *entry) key() string {
	if x.line != nil {
		return x.line.Key
	}
	return ""
}

// draft is the manifest to be.
type draft struct {
	base    *backup.State // nil: there is none
	broken  bool          // its chain of tails, or the end of it is gone
	lastN   int64         // of a broken one: number of the last tail that is there
	entries []*entry

	end      snapshot.Chain // after the last tail that it sums up
	head     tid.TID
	m        snapshot.Manifest // what is not in the entries
	tip      snapshot.Hash     // of the last transaction; of a later one that is made
	notes    []func(context.Context) error
	pages    map[string][]snapshot.Segment // of lost pages, that were found
	upToTail int64                         // the last tail that must be summed up
	rewrite  bool                          // a manifest is needed though all entries stay
}

// known are the entries of a state: of its manifest and of its tails.
func (e *engine) known(ctx context.Context, p *Plan, d *draft, s *backup.State) error {
	for _, i := range s.Manifest.Items {
		after, upto := i.Range()
		switch {
		case i.Gap != nil:
			d.entries = append(d.entries, &entry{after: after, upto: upto, gap: i.Gap})
			e.gaps = append(e.gaps, *i.Gap)
		case i.Segment != nil:
			d.entries = append(d.entries, &entry{after: after, upto: upto, line: i.Segment})
		default:
			list, err := e.page(ctx, e.repo, s.Lineage, i.Page)
			p.Objects++
			page := i.Page
			switch {
			case err == nil && e.tampered(i.Page.Key):
				d.rewrite, page = true, nil
				p.step(Step{Key: i.Page.Key, After: after, Upto: upto, Problem: "the catalog page " + i.Page.Key + " was overwritten or deleted", Means: Version})
			case wrong(err) && e.o.From != nil:
				var e2 error
				if list, e2 = e.page(ctx, e.o.From, s.Lineage, i.Page); e2 == nil {
					d.rewrite, page = true, nil
					p.step(Step{Key: i.Page.Key, After: after, Upto: upto, Problem: problem(err), Means: Copy})
					err = nil
				} else if !wrong(e2) {
					return e2
				}
			}
			if wrong(err) {
				d.entries = append(d.entries, &entry{after: after, upto: upto, lost: i.Page, err: err})
				continue
			}
			if err != nil {
				return err
			}
			for _, l := range list {
				d.entries = append(d.entries, &entry{after: l.After, upto: l.End(), line: &l, page: page})
			}
		}
	}
	e.tips = append(e.tips, tipAt{s.Manifest.Head, s.Manifest.Tip})
	for _, t := range s.Tails {
		if err := d.addTail(e, p, t); err != nil {
			return err
		}
	}
	return nil
}

// page returns the lines of a catalog page.
func (e *engine) page(ctx context.Context, r *backup.Repository, lineage snapshot.ID, p *snapshot.Page) ([]snapshot.Segment, error) {
	s := &backup.State{Lineage: lineage, Manifest: &snapshot.Manifest{Items: []snapshot.Item{{Page: p}}}}
	var list []snapshot.Segment
	for part, err := range r.Parts(ctx, s, tid.Zero, tid.Max) {
		if err != nil {
			return nil, err
		}
		list = append(list, *part.Segment)
	}
	return list, ctx.Err()
}

// addTail adds what a tail has.
func (d *draft) addTail(e *engine, p *Plan, t *backup.StoredTail) error {
	p.Objects++
	d.end, d.head = t.Chain(), t.Upto
	d.m.Asof, d.m.MaxOID = t.Asof, max(d.m.MaxOID, t.MaxOID)
	d.m.Reserved = append(d.m.Reserved, t.Reserved...)
	if t.ExactFrom != 0 {
		d.m.Holes = snapshot.AddHole(d.m.Holes, snapshot.Hole{From: t.After, To: t.ExactFrom})
	}
	if t.Tip != (snapshot.Hash{}) {
		d.tip = t.Tip
		e.tips = append(e.tips, tipAt{t.Upto, t.Tip})
	}
	if t.Bytes == 0 {
		for i := range t.Segments {
			l := &t.Segments[i]
			d.entries = append(d.entries, &entry{after: l.After, upto: l.Upto, line: l, tail: t.N})
		}
		return nil
	}
	l, err := t.Line()
	if err != nil {
		// The header of the age file is damaged. The note has all else.
		l = &snapshot.Segment{After: t.After, Upto: t.Upto, Bytes: t.Bytes, SHA256: t.SHA256, Raw: t.Raw, Text: t.Text, Txns: t.Txns, Records: t.Records, MaxOID: t.MaxOID, KID: t.KID}
		l.SetTail(t.Key, t.NoteSize())
	}
	d.entries = append(d.entries, &entry{after: t.After, upto: t.Upto, line: l, tail: t.N, err: err})
	return nil
}

// after returns the entries after a TID.
func (d *draft) after(t tid.TID) []*entry {
	i := slices.IndexFunc(d.entries, func(x *entry) bool { return x.after >= t })
	if i < 0 {
		return nil
	}
	return d.entries[i:]
}

func problem(err error) string {
	if err == nil {
		return ""
	}
	if c, ok := errors.AsType[*snapshot.CorruptError](err); ok {
		return fmt.Sprintf("%s is damaged: %v", c.Name, c.Err)
	}
	return err.Error()
}

func (p *Plan) step(s Step) { p.Steps = append(p.Steps, s) }

// tampered reports whether an older version of an object is read in its place.
func (e *engine) tampered(key string) bool {
	return slices.ContainsFunc(e.repo.Tampered(), func(t backup.Tampering) bool { return t.Key == key })
}

// numbers returns the numbers of all objects of a kind that are stored, or were and were deleted, where the store tells: ascending.
func (e *engine) numbers(ctx context.Context, kind snapshot.Kind) ([]int64, error) {
	var list []int64
	add := func(key string) {
		if k, err := snapshot.ParseKey(key); err == nil && k.Kind == kind {
			list = append(list, k.N)
		}
	}
	prefix := snapshot.Prefix(kind, e.id)
	for info, err := range e.repo.Bare().List(ctx, prefix, "") {
		if err != nil {
			return nil, err
		}
		add(info.Key)
	}
	for v, err := range store.Versions(ctx, e.repo.Bare(), prefix) {
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, store.ErrDenied) {
			break
		}
		if err != nil {
			return nil, err
		}
		add(v.Key)
	}
	slices.Sort(list)
	return slices.Compact(list), ctx.Err()
}

// beyond adds the tails after a break of the chain.
func (e *engine) beyond(ctx context.Context, p *Plan, d *draft) error {
	all, err := e.numbers(ctx, snapshot.KindTail)
	if err != nil {
		return err
	}
	last := e.o.SeenTail
	if n := len(all); n > 0 {
		last = max(last, all[n-1])
	}
	if last <= d.end.N {
		return nil
	}
	var lost []int64
	var lastHash snapshot.Hash
	for n := d.end.N + 1; n <= last; n++ {
		key := snapshot.TailKey(e.id, n)
		t, err := e.repo.Tail(ctx, e.id, n)
		means := Listed
		if wrong(err) && e.o.From != nil {
			other, e2 := e.o.From.Tail(ctx, e.id, n)
			if e2 == nil {
				t, means = other, Copy
				p.step(Step{Key: key, After: t.After, Upto: t.Upto, Problem: problem(err), Means: means})
				err = nil
			} else if !wrong(e2) {
				return e2
			}
		}
		if errors.Is(err, store.ErrNotFound) {
			at := &d.end
			if len(lost) > 0 {
				at = nil
			}
			b, how, e2 := e.deletedTail(ctx, key, at)
			if e2 != nil {
				return e2
			}
			if b != nil {
				note, e2 := snapshot.OpenTail(b, key, e.repo.Marker.ID, e.repo.Trusted)
				if e2 != nil {
					return e2
				}
				t = &backup.StoredTail{Tail: note, Key: key, Size: int64(len(b)), Object: b}
				p.step(Step{Key: key, After: t.After, Upto: t.Upto, Problem: key + " was deleted", Means: how})
				err = nil
			}
		}
		if err != nil && !wrong(err) {
			return err
		}
		if err == nil && t.After < d.head {
			// Two writers have gone on from the same place, or a note was put there that the writer signed elsewhere.
			err = &snapshot.CorruptError{Name: key, Offset: 0, Err: fmt.Errorf("it begins after %v, but the history before it ends with %v", t.After, d.head)}
		}
		if err != nil {
			lost = append(lost, n)
			lastHash = e.noteHash(ctx, key)
			p.step(Step{Key: key, Problem: problem(err), Means: Listed, Detail: "its number is summed up"})
			continue
		}
		if t.After > d.head {
			d.entries = append(d.entries, &entry{after: d.head, upto: t.After, tail: n, err: fmt.Errorf("the tails %s are lost", spread(lost))})
		}
		lost = nil
		if e.tampered(key) {
			p.step(Step{Key: key, After: t.After, Upto: t.Upto, Problem: key + " was overwritten or deleted", Means: Version})
		}
		if err := d.addTail(e, p, t); err != nil {
			return err
		}
	}
	if len(lost) > 0 {
		d.end = snapshot.Chain{N: last, Hash: lastHash, Head: d.head}
		d.entries = append(d.entries, &entry{after: d.head, upto: d.head, open: true, tail: last, err: fmt.Errorf("the last tails (%s) are lost", spread(lost))})
	}
	d.upToTail = last
	return nil
}

func spread(list []int64) string {
	if len(list) == 0 {
		return "none"
	}
	if len(list) == 1 {
		return fmt.Sprint(list[0])
	}
	return fmt.Sprintf("%d to %d", list[0], list[len(list)-1])
}

// noteHash returns the hash of the note of a tail as it is stored, of something else if it is damaged beyond that: what the
// next one refers to must not be nothing.
func (e *engine) noteHash(ctx context.Context, key string) snapshot.Hash {
	b, err := e.read(ctx, key, snapshot.MaxTailNote)
	if err != nil {
		return snapshot.Sum([]byte(key))
	}
	if n, err := snapshot.SplitTail(b, key); err == nil && n <= int64(len(b)) {
		b = b[:n]
	}
	return snapshot.Sum(b)
}

// inspect verifies the objects of all lines.
func (e *engine) inspect(ctx context.Context, p *Plan, entries []*entry) error {
	var total, done int64
	for _, x := range entries {
		if x.line != nil {
			total += x.line.Bytes
		}
	}
	sizes := map[string]int64{}
	if e.o.Quick {
		for info, err := range e.repo.Bare().List(ctx, "", "") {
			if err != nil {
				return err
			}
			sizes[info.Key] = info.Size
		}
	}
	var mu sync.Mutex
	g, within := errgroup.WithContext(ctx)
	g.SetLimit(e.o.Parallel)
	for _, x := range entries {
		if x.line == nil || x.err != nil {
			continue
		}
		g.Go(func() error {
			l := x.line
			var err error
			if size, ok := sizes[l.Key]; e.o.Quick && ok && size == l.Offset()+l.Bytes && !e.tampered(l.Key) {
				err = nil
			} else if err = e.intact(within, l); err == nil && e.tampered(l.Key) {
				err = fmt.Errorf("%s was overwritten or deleted: %w", l.Key, errTampered)
			}
			if err != nil && !wrong(err) && !errors.Is(err, errTampered) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			x.err = err
			done += l.Bytes
			p.Objects++
			p.Bytes += l.Bytes
			if e.o.Progress != nil {
				e.o.Progress(done, total)
			}
			return nil
		})
	}
	return g.Wait()
}

// errTampered reports an object of which an older version is right.
var errTampered = errors.New("an older version of it is right")

// decide finds the means for all that is wrong. The entries are then those of the manifest to be.
func (e *engine) decide(ctx context.Context, p *Plan, d *draft) error {
	var out []*entry
	for i := 0; i < len(d.entries); {
		n := i + 1
		for n < len(d.entries) && d.entries[i].line != nil && d.entries[n].line != nil && d.entries[n].after == d.entries[n].upto && d.entries[n].after == d.entries[i].upto {
			n++
		}
		group := d.entries[i:n]
		i = n
		bad := slices.ContainsFunc(group, func(x *entry) bool { return x.err != nil || x.again })
		if !bad {
			out = append(out, group...)
			continue
		}
		for _, x := range group {
			d.upToTail = max(d.upToTail, x.tail)
		}
		var fixed []*entry
		var err error
		if group[0].line == nil {
			fixed, err = e.fill(ctx, p, d, group[0])
		} else if slices.ContainsFunc(group, func(x *entry) bool { return x.again }) {
			fixed, err = e.withData(ctx, p, d, group, d.entries[i:])
		} else {
			fixed, err = e.mend(ctx, p, d, group, d.entries[i:])
		}
		if err != nil {
			return err
		}
		if x := group[0]; x.lost != nil && len(fixed) > 1 {
			fixed = []*entry{together(x, fixed)}
		}
		out = append(out, fixed...)
	}
	d.entries = out
	return nil
}

// together makes one entry of those that take the place of one.
func together(x *entry, list []*entry) *entry {
	one := &entry{after: x.after, upto: x.upto, tail: x.tail, lost: x.lost, err: x.err}
	for _, n := range list {
		if n.make == nil {
			return one // there is no means for it
		}
		switch h := n.hole; {
		case h.To <= h.From: // it makes none
		case one.hole.To <= one.hole.From:
			one.hole = h
		default:
			one.hole = snapshot.Hole{From: min(one.hole.From, h.From), To: max(one.hole.To, h.To)}
		}
	}
	one.make = func(ctx context.Context) ([]snapshot.Item, error) {
		var all []snapshot.Item
		for _, n := range list {
			items, err := n.make(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, items...)
		}
		return all, nil
	}
	return one
}

// stepOf begins the step of an entry.
func stepOf(x *entry) Step {
	s := Step{Key: x.key(), After: x.after, Upto: x.upto, Problem: problem(x.err)}
	if x.lost != nil {
		s.Key = x.lost.Key
	}
	return s
}

// withData reads a range again that copies revisions which are gone: the source has their data.
func (e *engine) withData(ctx context.Context, p *Plan, d *draft, group, later []*entry) ([]*entry, error) {
	after, upto := group[0].after, group[len(group)-1].upto
	x, hole, err := e.reduced(ctx, d, after, upto, later)
	if err != nil && !errors.Is(err, errExact) {
		return nil, err
	}
	s := stepOf(group[0])
	s.Upto, s.Means = upto, Again
	s.Problem = fmt.Sprintf("%s copies revisions of objects that the source does not have any more", group[0].line.Key)
	if hole.To > hole.From {
		s.Means, s.Detail = Reduced, fmt.Sprintf("moments between %v and %v cannot be restored any more", hole.From, hole.To)
	}
	p.step(s)
	for _, g := range group {
		x.olds = append(x.olds, g.line.Key)
	}
	x.tail = group[0].tail
	return []*entry{x}, nil
}

// dangling marks the entries that copy revisions of (after, upto] which are not in the segments that take its place.
func (e *engine) dangling(ctx context.Context, later []*entry, after, upto tid.TID, list []made) error {
	type revision struct {
		oid tid.OID
		at  tid.TID
	}
	have := map[revision]bool{}
	for _, m := range list {
		r, err := snapshot.NewReader(m.plain, m.Size, "segment made again")
		if err != nil {
			return err
		}
		for x, err := range r.Entries() {
			if err != nil {
				return err
			}
			have[revision{x.OID, x.TID}] = true
		}
	}
	for _, x := range later {
		if x.line == nil || x.err != nil || x.again {
			continue
		}
		t, err := e.fetch(ctx, e.repo.Store, x.line)
		if wrong(err) {
			continue
		}
		if err != nil {
			return err
		}
		r, err := e.open(ctx, x.line, t)
		if err == nil {
			for ev, e := range r.Walk() {
				if err = e; err != nil {
					break
				}
				if rec := ev.Record; rec != nil && rec.DataTID > after && rec.DataTID <= upto && !have[revision{rec.OID, rec.DataTID}] {
					x.again = true
					break
				}
			}
		}
		t.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// mend finds the means for segments of which everything is known: one, or those of a transaction that is cut.
func (e *engine) mend(ctx context.Context, p *Plan, d *draft, group, later []*entry) ([]*entry, error) {
	var left []*entry
	first := len(p.Steps)
	for _, x := range group {
		if x.err == nil {
			continue
		}
		s := stepOf(x)
		from, err := e.elsewhere(ctx, x)
		if err != nil {
			return nil, err
		}
		if from == nil {
			left = append(left, x)
			p.step(s)
			continue
		}
		s.Means = Version
		if from != e.repo.Store {
			s.Means = Copy
		}
		if why := e.unopened(ctx, x.line, s.Means); why != nil {
			// Without the identity nothing else can be done with the right bytes.
			s.Means, s.Detail = None, fmt.Sprintf("the right bytes are there (%s), but: %v", s.Means, why)
			p.step(s)
			continue
		}
		p.step(s)
		l := x.line
		x.olds = []string{l.Key}
		x.make = func(ctx context.Context) ([]snapshot.Item, error) {
			good, err := e.fetch(ctx, from, l)
			if err != nil {
				return nil, err
			}
			defer good.Close()
			line, err := e.again(ctx, l, good)
			line.Clip = l.Clip
			return []snapshot.Item{{Segment: &line}}, err
		}
	}
	if len(left) == 0 {
		return group, nil
	}
	set := func(m Means, detail string) {
		for i := first; i < len(p.Steps); i++ {
			if p.Steps[i].Means == "" {
				p.Steps[i].Means, p.Steps[i].Detail = m, detail
			}
		}
	}
	after, upto := group[0].after, group[len(group)-1].upto
	var olds []string
	for _, x := range group {
		olds = append(olds, x.line.Key)
	}
	// Other segments that signed notes name, as those that were merged into this one.
	pool, err := e.candidates(ctx)
	if err != nil {
		return nil, err
	}
	list, err := e.cover(ctx, pool, after, upto, false, func(c *candidate) bool { return c.signed })
	if err != nil {
		return nil, err
	}
	if whole(list, after, upto) {
		set(Smaller, fmt.Sprintf("%d segments", lines(list)))
		x := &entry{after: after, upto: upto, olds: olds, tail: group[0].tail, make: e.take(list)}
		return []*entry{x}, nil
	}
	// The same content.
	why := e.source(ctx, upto)
	clip := group[len(group)-1].line.Clip != 0
	switch {
	case why != nil && !errors.Is(why, ErrDiverged) && e.o.Source != nil:
		return nil, why
	case why == nil && clip:
		why = fmt.Errorf("it is used up to %v only, where this lineage begins: its digest does not tell", upto)
	case why == nil:
		same, err := e.sameContent(ctx, d, group)
		if err != nil {
			return nil, err
		}
		if same == nil {
			set(Source, "")
			return group, nil
		}
		why = same
	}
	// What a packed source still has.
	if e.sameAs && !e.file {
		x, hole, err := e.reduced(ctx, d, after, upto, later)
		if err != nil && !errors.Is(err, errExact) {
			return nil, err
		}
		if err == nil {
			set(Reduced, fmt.Sprintf("moments between %v and %v cannot be restored any more", hole.From, hole.To))
			x.olds, x.tail = olds, group[0].tail
			return []*entry{x}, nil
		}
	}
	if list, err := e.unsigned(ctx, p, pool, after, upto); err != nil {
		return nil, err
	} else if list != nil {
		set(Unsigned, fmt.Sprintf("%d segments", lines(list)))
		return []*entry{{after: after, upto: upto, olds: olds, tail: group[0].tail, make: e.take(list)}}, nil
	}
	if !e.o.AcceptGaps {
		set(None, why.Error())
		return group, nil
	}
	set(Gap, why.Error())
	x := e.gap(after, upto, problem(left[0].err))
	x.olds, x.tail = olds, group[0].tail
	return []*entry{x}, nil
}

// elsewhere returns where the right bytes of a segment are: an older version, or another copy of the repository.
func (e *engine) elsewhere(ctx context.Context, x *entry) (store.Store, error) {
	if errors.Is(x.err, errTampered) {
		return e.repo.Store, nil
	}
	if e.o.From == nil {
		return nil, nil
	}
	t, err := e.fetch(ctx, e.o.From.Store, x.line)
	if again, e2 := e.o.From.Rescue(ctx, x.line, err); e2 != nil {
		return nil, e2
	} else if again {
		t, err = e.fetch(ctx, e.o.From.Store, x.line)
	}
	if wrong(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer t.Close()
	if len(x.line.Header) == 0 && x.line.KID != 0 { // what was behind the note could not be read
		if x.line.Header, err = snapshot.HeaderOf(t.reader(), x.line.Key); err != nil {
			return nil, nil
		}
	}
	return e.o.From.Store, nil
}

// unopened returns why the right bytes of a segment cannot be stored again: that needs its plaintext, unless the old object is gone.
func (e *engine) unopened(ctx context.Context, l *snapshot.Segment, m Means) error {
	if l.KID == 0 {
		return nil
	}
	_, err := e.o.Keys.Epoch(ctx, l.KID)
	if !errors.Is(err, backup.ErrKeys) || l.Offset() != 0 {
		return err
	}
	if _, _, gone := e.repo.Bare().Get(ctx, l.Key, 0, 0); errors.Is(gone, store.ErrNotFound) {
		return nil
	}
	return err
}

func lines(list []*candidate) (n int) {
	for _, c := range list {
		n += len(c.lines)
	}
	return n
}

// whole reports whether candidates stand for a range without a gap.
func whole(list []*candidate, after, upto tid.TID) bool {
	for _, c := range list {
		if c.after != after {
			return false
		}
		after = c.upto
	}
	return after == upto
}

// take returns what names segments that exist, and copies those that are elsewhere.
func (e *engine) take(list []*candidate) func(context.Context) ([]snapshot.Item, error) {
	return func(ctx context.Context) ([]snapshot.Item, error) {
		var items []snapshot.Item
		for _, c := range list {
			for _, l := range c.lines {
				if c.from == nil && !e.tampered(l.Key) {
					items = append(items, snapshot.Item{Segment: &l})
					continue
				}
				from := c.from
				if from == nil {
					from = e.repo.Store
				}
				good, err := e.fetch(ctx, from, &l)
				if err != nil {
					return nil, err
				}
				line, err := e.again(ctx, &l, good)
				good.Close()
				if err != nil {
					return nil, err
				}
				line.Clip = l.Clip
				items = append(items, snapshot.Item{Segment: &line})
			}
		}
		return items, nil
	}
}

// exactOf returns from when on a segment is exact whose content is what it always was.
func (d *draft) exactOf(after, upto tid.TID) tid.TID {
	var exact tid.TID
	for _, h := range d.m.Holes {
		if after <= h.From && h.From < upto {
			exact = max(exact, h.To)
		}
	}
	return exact
}

// sameContent reads a group again from the source. It returns nil if all that is wrong can be made again with the same digest, else
// what differs.
func (e *engine) sameContent(ctx context.Context, d *draft, group []*entry) (differs error, err error) {
	after, upto := group[0].after, group[len(group)-1].line.Upto
	lineage := lineageOf(group[0].line)
	var cuts []int64
	for _, x := range group {
		cuts = append(cuts, x.line.Text)
	}
	build := func(ctx context.Context) ([]made, error) {
		list, _, _, err := e.build(ctx, lineage, after, upto, cuts, func(after, _ tid.TID) tid.TID { return d.exactOf(after, upto) })
		if err != nil {
			return nil, err
		}
		for i, x := range group {
			if x.err == nil || x.make != nil {
				continue
			}
			if i >= len(list) || list[i].Footer.Raw != x.line.Raw || list[i].Footer.Text != x.line.Text {
				closeAll(list)
				return nil, fmt.Errorf("%w: what it has of transactions after %v up to %v is not the same as what was stored", ErrDiverged, after, upto)
			}
		}
		return list, nil
	}
	list, err := build(ctx)
	if errors.Is(err, ErrDiverged) {
		return err, nil
	}
	if err != nil {
		return nil, err
	}
	closeAll(list)
	for i, x := range group {
		if x.err == nil || x.make != nil {
			continue
		}
		x.olds = []string{x.line.Key}
		x.make = func(ctx context.Context) ([]snapshot.Item, error) {
			list, err := build(ctx)
			if err != nil {
				return nil, err
			}
			defer closeAll(list)
			line, err := e.storeNew(ctx, list[i])
			return []snapshot.Item{{Segment: &line}}, err
		}
	}
	return nil, nil
}

// storeNew stores a segment that was built, in other bytes if its key is taken.
func (e *engine) storeNew(ctx context.Context, m made) (snapshot.Segment, error) {
	line, err := e.store(ctx, m.Written, m.plain)
	if !errors.Is(err, snapshot.ErrCorrupt) {
		return line, err
	}
	r, err := snapshot.NewReader(m.plain, m.Size, "segment made again")
	if err != nil {
		return line, err
	}
	return e.recode(ctx, r)
}

// errExact reports a source that was not packed, so that there is no reason for it to have less.
var errExact = errors.New("the source was not packed since")

// reduced reads a range from a packed source. The error is an errExact, beside the entry, if that does not make a hole.
func (e *engine) reduced(ctx context.Context, d *draft, after, upto tid.TID, later []*entry) (*entry, snapshot.Hole, error) {
	var hole snapshot.Hole
	x, packed, list, err := e.readRange(ctx, d, after, upto)
	if err != nil {
		return nil, hole, err
	}
	defer closeAll(list)
	if packed <= after {
		return x, hole, errExact
	}
	if err := e.dangling(ctx, later, after, upto, list); err != nil {
		return nil, hole, err
	}
	hole = snapshot.Hole{From: after, To: packed}
	d.m.Holes = snapshot.AddHole(d.m.Holes, hole)
	x.hole = hole
	return x, hole, nil
}

// readRange reads a range from the source. What it would store is read again when it is stored.
func (e *engine) readRange(ctx context.Context, d *draft, after, upto tid.TID) (*entry, tid.TID, []made, error) {
	build := func(ctx context.Context) ([]made, snapshot.Hash, tid.TID, error) {
		return e.build(ctx, e.id, after, upto, nil, func(_, packed tid.TID) tid.TID { return packed })
	}
	list, tip, packed, err := build(ctx)
	if err != nil {
		return nil, 0, nil, err
	}
	if upto >= d.head {
		d.tip = tip
	}
	return &entry{after: after, upto: upto, tip: tip, make: func(ctx context.Context) ([]snapshot.Item, error) {
		list, _, now, err := build(ctx)
		if err != nil {
			return nil, err
		}
		defer closeAll(list)
		if max(now, after) != max(packed, after) {
			return nil, fmt.Errorf("%w: the source was packed up to %v", ErrChanged, now)
		}
		return e.storeAll(ctx, list)
	}}, packed, list, nil
}

func (e *engine) storeAll(ctx context.Context, list []made) ([]snapshot.Item, error) {
	var items []snapshot.Item
	for _, m := range list {
		line, err := e.storeNew(ctx, m)
		if err != nil {
			return nil, err
		}
		items = append(items, snapshot.Item{Segment: &line})
	}
	return items, nil
}

// gap makes a range a gap.
func (e *engine) gap(after, upto tid.TID, why string) *entry {
	if len(why) > 500 {
		why = why[:500]
	}
	g := snapshot.Gap{Gap: true, After: after, Upto: upto, Note: why}
	e.gaps = append(e.gaps, g)
	return &entry{after: after, upto: upto, make: func(context.Context) ([]snapshot.Item, error) { return []snapshot.Item{{Gap: &g}}, nil }}
}

// unsigned returns segments that no signed note names for a range, nil if there are none that may be used.
func (e *engine) unsigned(ctx context.Context, p *Plan, pool *pool, after, upto tid.TID) ([]*candidate, error) {
	if !e.o.AcceptUnsigned {
		return nil, nil
	}
	list, err := e.cover(ctx, pool, after, upto, false, func(*candidate) bool { return true })
	if err != nil || !whole(list, after, upto) {
		return nil, err
	}
	p.unsigned(list)
	return list, nil
}

func (p *Plan) unsigned(list []*candidate) {
	for _, c := range list {
		for _, l := range c.lines {
			if !c.signed {
				p.Unsigned = append(p.Unsigned, l.Key)
			}
		}
	}
	slices.Sort(p.Unsigned)
	p.Unsigned = slices.Compact(p.Unsigned)
}

// fill finds what can stand for a range of which nothing is known.
func (e *engine) fill(ctx context.Context, p *Plan, d *draft, x *entry) ([]*entry, error) {
	pool, err := e.candidates(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range pool.holes {
		if x.after <= h.From && (x.open || h.From < x.upto) {
			d.m.Holes = snapshot.AddHole(d.m.Holes, h)
		}
	}
	if x.open {
		return e.fillEnd(ctx, p, d, pool, x)
	}
	list, err := e.cover(ctx, pool, x.after, x.upto, false, func(c *candidate) bool { return c.signed })
	if err != nil {
		return nil, err
	}
	var out []*entry
	at := x.after
	for _, c := range list {
		if c.after > at {
			more, err := e.missing(ctx, p, d, pool, x, at, c.after)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		}
		out = append(out, e.found(p, d, x, c)...)
		at = c.upto
	}
	if at < x.upto {
		more, err := e.missing(ctx, p, d, pool, x, at, x.upto)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// found makes entries of a candidate for a range of which nothing was known.
func (e *engine) found(p *Plan, d *draft, x *entry, c *candidate) []*entry {
	s := stepOf(x)
	s.After, s.Upto = c.after, c.upto
	switch {
	case c.from != nil:
		s.Means = Copy
	case c.signed:
		s.Means, s.Detail = Smaller, c.lines[0].Key
	default:
		s.Means, s.Detail = Unsigned, c.lines[0].Key
		p.unsigned([]*candidate{c})
	}
	p.step(s)
	return e.entriesOf(d, x, []*candidate{c})
}

// entriesOf makes entries of candidates, with the holes that their headers tell of.
func (e *engine) entriesOf(d *draft, x *entry, list []*candidate) []*entry {
	var out []*entry
	for _, c := range list {
		for i, l := range c.lines {
			if i < len(c.headers) && c.headers[i].ExactFrom > l.After {
				d.m.Holes = snapshot.AddHole(d.m.Holes, snapshot.Hole{From: l.After, To: c.headers[i].ExactFrom})
			}
		}
		out = append(out, &entry{after: c.after, upto: c.upto, tail: x.tail, last: c, make: e.take([]*candidate{c})})
	}
	return out
}

// missing finds what can stand for a range that no signed note tells of: the source, what is not signed, or a gap.
func (e *engine) missing(ctx context.Context, p *Plan, d *draft, pool *pool, x *entry, after, upto tid.TID) ([]*entry, error) {
	s := stepOf(x)
	s.After, s.Upto = after, upto
	if list, same, err := e.compared(ctx, pool, after, upto); err != nil {
		return nil, err
	} else if len(list) > 0 && !(same == 1 && list[0].after == after && list[0].upto == upto) {
		// Piece by piece.
		var out []*entry
		at := after
		for _, c := range append(list, &candidate{after: upto, upto: upto}) {
			if c.after > at {
				more, err := e.missing(ctx, p, d, pool, x, at, c.after)
				if err != nil {
					return nil, err
				}
				out = append(out, more...)
			}
			if c.lines != nil {
				out = append(out, e.foundSame(p, d, x, c)...)
			}
			at = c.upto
		}
		return out, nil
	} else if len(list) > 0 {
		return e.foundSame(p, d, x, list[0]), nil
	}
	why := e.source(ctx, upto)
	if why != nil && !errors.Is(why, ErrDiverged) && e.o.Source != nil {
		return nil, why
	}
	if why == nil {
		n, packed, list, err := e.readRange(ctx, d, after, upto)
		if err != nil {
			return nil, err
		}
		if packed > after && !e.file {
			err = e.dangling(ctx, d.after(upto), after, upto, list)
		}
		closeAll(list)
		if err != nil {
			return nil, err
		}
		switch {
		case packed > after && e.file:
			why = fmt.Errorf("the source was packed: a pack of a Data.fs leaves no trace of what it drops")
		case packed > after:
			s.Means, s.Detail = Reduced, fmt.Sprintf("moments between %v and %v cannot be restored any more", after, packed)
			n.hole = snapshot.Hole{From: after, To: packed}
			d.m.Holes = snapshot.AddHole(d.m.Holes, n.hole)
		default:
			s.Means = Again
		}
		if s.Means != "" {
			n.tail = x.tail
			p.step(s)
			return []*entry{n}, nil
		}
	}
	if list, err := e.unsigned(ctx, p, pool, after, upto); err != nil {
		return nil, err
	} else if list != nil {
		s.Means, s.Detail = Unsigned, fmt.Sprintf("%d segments", lines(list))
		p.step(s)
		return e.entriesOf(d, x, list), nil
	}
	s.Detail = why.Error()
	if !e.o.AcceptUnsigned {
		list, err := e.cover(ctx, pool, after, upto, false, func(*candidate) bool { return true })
		if err != nil {
			return nil, err
		}
		if whole(list, after, upto) {
			s.Detail += fmt.Sprintf("; %d segments are there that no signed note names", lines(list))
		}
	}
	if !e.o.AcceptGaps {
		s.Means = None
		p.step(s)
		return []*entry{{after: after, upto: upto, tail: x.tail, err: x.err}}, nil
	}
	s.Means = Gap
	p.step(s)
	g := e.gap(after, upto, s.Problem)
	g.tail = x.tail
	return []*entry{g}, nil
}

// compared returns the segments of a range that no signed note names and of which the source has the same content.
func (e *engine) compared(ctx context.Context, pool *pool, after, upto tid.TID) (list []*candidate, same int, err error) {
	if e.o.Source == nil || e.noSame != nil {
		return nil, 0, nil
	}
	last, _, err := e.o.Source.Last(ctx)
	if err != nil || last < upto {
		return nil, 0, err
	}
	all, err := e.cover(ctx, pool, after, upto, false, func(*candidate) bool { return true })
	if err != nil {
		return nil, 0, err
	}
	for _, c := range all {
		equal, err := e.sameAsSource(ctx, c)
		if err != nil {
			return nil, 0, err
		}
		if equal {
			list = append(list, c)
			same++
		}
	}
	return list, same, nil
}

// sameAsSource reports whether the source has the content of a candidate.
func (e *engine) sameAsSource(ctx context.Context, c *candidate) (bool, error) {
	if c.same != nil {
		return *c.same, nil
	}
	var cuts []int64
	for _, l := range c.lines {
		if l.Clip != 0 {
			return false, nil
		}
		cuts = append(cuts, l.Text)
	}
	list, _, _, err := e.build(ctx, e.id, c.after, c.upto, cuts, func(_, _ tid.TID) tid.TID { return 0 })
	if errors.Is(err, ErrDiverged) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer closeAll(list)
	same := len(list) == len(c.lines)
	for i := range c.lines {
		same = same && list[i].Footer.Raw == c.lines[i].Raw
	}
	c.same = &same
	return same, nil
}

// foundSame makes entries of a candidate that is the same as the source has.
func (e *engine) foundSame(p *Plan, d *draft, x *entry, c *candidate) []*entry {
	s := stepOf(x)
	s.After, s.Upto, s.Means, s.Detail = c.after, c.upto, Compared, c.lines[0].Key
	p.step(s)
	return e.entriesOf(d, x, []*candidate{c})
}

// fillEnd finds what the last tails had, of which nothing tells where it ends.
func (e *engine) fillEnd(ctx context.Context, p *Plan, d *draft, pool *pool, x *entry) ([]*entry, error) {
	list, err := e.cover(ctx, pool, x.after, 0, true, func(c *candidate) bool { return c.signed })
	if err != nil {
		return nil, err
	}
	if len(list) == 0 && e.o.AcceptUnsigned {
		if list, err = e.cover(ctx, pool, x.after, 0, true, func(c *candidate) bool { return true }); err != nil {
			return nil, err
		}
	}
	// Only what goes on where the history ends.
	var out []*entry
	at := x.after
	for _, c := range list {
		if c.after != at {
			break
		}
		out = append(out, e.found(p, d, x, c)...)
		at = c.upto
		tip, err := e.tipOf(ctx, c)
		if err != nil {
			return nil, err
		}
		d.tip, d.head, d.end.Head = tip, at, at
	}
	s := stepOf(x)
	s.After, s.Upto = 0, 0
	last := tid.Zero
	if e.o.Source != nil {
		if err := e.source(ctx, at); err != nil && !errors.Is(err, ErrDiverged) {
			return nil, err
		} else if err == nil {
			if last, _, err = e.o.Source.Last(ctx); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case last > at:
		n, err := e.missing(ctx, p, d, pool, x, at, last)
		out = append(out, n...)
		if err != nil || slices.ContainsFunc(n, func(x *entry) bool { return x.make == nil }) {
			return out, err
		}
		t, err := e.o.Source.Info(ctx, last)
		if err != nil {
			return nil, err
		}
		d.head, d.end.Head, d.tip = last, last, snapshot.Tip(t)
		return out, nil
	case len(out) > 0:
		return out, nil
	case last == x.after:
		s.Means, s.Detail = Listed, fmt.Sprintf("the source has nothing after %v", x.after)
	case e.o.AcceptGaps:
		s.Means, s.Detail = Gap, fmt.Sprintf("the history ends with %v; if the source has more, the next run of the writer stores it again", x.after)
	default:
		s.Means, s.Detail = None, fmt.Sprintf("no source was given that has what came after %v", x.after)
	}
	p.step(s)
	return nil, nil
}

// tipOf identifies the last transaction of a candidate.
func (e *engine) tipOf(ctx context.Context, c *candidate) (snapshot.Hash, error) {
	var tip snapshot.Hash
	for _, l := range c.lines {
		from := c.from
		if from == nil {
			from = e.repo.Store
		}
		good, err := e.fetch(ctx, from, &l)
		if err != nil {
			return tip, err
		}
		r, err := e.open(ctx, &l, good)
		if err == nil {
			for ev, e := range r.Walk() {
				if err = e; err != nil {
					break
				}
				if ev.Txn != nil && (l.Clip == 0 || ev.Txn.TID <= l.Clip) {
					tip = snapshot.Tip(ev.Txn)
				}
			}
		}
		good.Close()
		if err != nil {
			return tip, err
		}
	}
	return tip, nil
}

// pageAgain finds the segments of a catalog page that is lost: they are the right ones if the page that they make has the hash
// that the manifest says.
func (e *engine) pageAgain(ctx context.Context, pool *pool, lost *snapshot.Page) ([]*candidate, error) {
	var sealed []*candidate
	for _, c := range pool.list {
		if c.from == nil && c.after >= lost.After && c.upto <= lost.Upto && c.lines[0].Offset() == 0 && c.lines[0].Clip == 0 {
			sealed = append(sealed, c)
		}
	}
	slices.SortStableFunc(sealed, func(a, b *candidate) int { return cmp.Compare(a.after, b.after) })
	list := tile(sealed, lost.After, lost.Upto, false, func(c *candidate) bool { return !c.bad })
	if !whole(list, lost.After, lost.Upto) {
		return nil, nil
	}
	var all []snapshot.Segment
	for _, c := range list {
		all = append(all, c.lines...)
	}
	_, page, err := snapshot.NewPage(e.id, all)
	if err != nil || page.SHA256 != lost.SHA256 {
		return nil, nil
	}
	return list, ctx.Err()
}
