package repair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// maxUnreferenced is how long an object may be named by nothing: a prune may doom it after 24 hours.
const maxUnreferenced = 12 * time.Hour

// ready completes a plan when all is decided.
func (e *engine) ready(ctx context.Context, p *Plan, d *draft) error {
	p.e, p.d = e, d
	p.Head, p.Holes, p.Gaps = d.head, d.m.Holes, e.gaps
	if d.base != nil && !d.broken {
		p.Head, p.Holes = max(d.base.Head(), p.more), d.base.Holes()
		for _, h := range d.m.Holes {
			p.Holes = snapshot.AddHole(p.Holes, h)
		}
	}
	needed := d.rewrite || d.upToTail > 0
	for _, x := range d.entries {
		needed = needed || x.make != nil
	}
	if !needed {
		return nil
	}
	p.Tail = d.end.N
	if d.base != nil {
		p.Seq = d.base.Manifest.Seq + 1
		if d.upToTail == 0 {
			p.Tail = d.base.Manifest.Tail
		}
	}
	all, err := e.numbers(ctx, snapshot.KindManifest)
	if err != nil {
		return err
	}
	if len(all) > 0 {
		p.Seq = max(p.Seq, all[len(all)-1]+1)
	}
	// Of a lineage that has anything, manifest 1 existed: its key is not used again.
	p.Seq = max(p.Seq, e.o.SeenManifest+1, 2)
	return nil
}

// Apply carries out the plan: it stores objects, and publishes a manifest last. The error is an [ErrRefused] if
// there is something for which there is no means, and an [ErrChanged] if the plan does not fit any more.
func (p *Plan) Apply(ctx context.Context) (*Result, error) {
	if err := p.Err(); err != nil {
		return nil, err
	}
	e, d := p.e, p.d
	if e.o.Signer == nil {
		return nil, errors.New("a manifest is signed with the key of the writer, which was not given")
	}
	res := &Result{Head: p.Head}
	// What was stored earlier may be doomed before it is named.
	ctx, cancel := context.WithTimeout(ctx, maxUnreferenced)
	defer cancel()
	for _, put := range d.notes {
		if err := put(ctx); err != nil {
			return nil, err
		}
	}
	if p.Seq != 0 {
		for _, x := range d.entries {
			if x.make == nil {
				continue
			}
			var err error
			if x.items, err = x.make(ctx); err != nil {
				return nil, err
			}
		}
		m, err := e.publish(ctx, p, d)
		if err != nil {
			return nil, err
		}
		res.Seq = m.Seq
	}
	res.Objects, res.Bytes = e.objects, e.bytes
	return res, nil
}

// publish creates the manifest, on top of what was published meanwhile.
func (e *engine) publish(ctx context.Context, p *Plan, d *draft) (*snapshot.Manifest, error) {
	// The plan may have taken long: a keeper may have doomed since what it uses.
	if err := e.readDoomed(ctx); err != nil {
		return nil, err
	}
	for range 20 {
		now, err := e.rebase(ctx, p, d)
		if err != nil {
			return nil, err
		}
		m, err := e.manifest(ctx, p, now)
		if err != nil {
			return nil, err
		}
		b, err := m.Sign(e.o.Signer)
		if err != nil {
			return nil, err
		}
		err = e.putBytes(ctx, snapshot.ManifestKey(e.id, m.Seq), b, true)
		if err == nil {
			e.log.Info("published a manifest", "manifest", m.Seq, "tail", m.Tail, "head", m.Head)
			return m, nil
		}
		if !errors.Is(err, store.ErrExists) {
			return nil, err
		}
		if d.base == nil || d.broken {
			return nil, fmt.Errorf("%w: manifest %d was published by another program: plan it again", ErrChanged, m.Seq)
		}
	}
	return nil, fmt.Errorf("%w: a writer publishes all the time", ErrChanged)
}

// manifest makes the manifest of a draft.
func (e *engine) manifest(ctx context.Context, p *Plan, d *draft) (*snapshot.Manifest, error) {
	m := d.m
	m.Repo, m.Lineage, m.Seq = e.repo.Marker.ID, e.id, p.Seq
	m.Tail, m.Chain = d.end.N, d.end.Hash
	m.Created, m.Writer, m.Tip = time.Now().UTC().Truncate(time.Second), e.name, d.tip
	if d.base != nil {
		m.Seq = max(m.Seq, d.base.Manifest.Seq+1)
	}
	var err error
	if m.Prev, err = e.stored(ctx, m.Seq-1); err != nil {
		return nil, err
	}
	old := map[string]bool{}
	if d.base != nil {
		for _, x := range d.entries {
			if x.line != nil {
				old[x.line.Key] = true
			}
		}
	}
	for i := 0; i < len(d.entries); {
		x := d.entries[i]
		n := i + 1
		if x.page != nil && x.items == nil {
			for n < len(d.entries) && d.entries[n].page == x.page && d.entries[n].items == nil {
				n++
			}
			if int64(n-i) == x.page.N {
				m.Items = append(m.Items, snapshot.Item{Page: x.page})
				i = n
				continue
			}
			n = i + 1
		}
		i = n
		switch {
		case x.items != nil:
			for _, item := range x.items {
				if item.Segment != nil && !old[item.Segment.Key] {
					if list := e.doomed[item.Segment.Key]; list != "" {
						return nil, fmt.Errorf("%s: %w: %s names it; cancel that first", item.Segment.Key, ErrDoomed, list)
					}
				}
			}
			m.Items = append(m.Items, x.items...)
		case x.gap != nil:
			m.Items = append(m.Items, snapshot.Item{Gap: x.gap})
		case x.line != nil:
			m.Items = append(m.Items, snapshot.Item{Segment: x.line})
		case x.lost != nil:
			m.Items = append(m.Items, snapshot.Item{Page: x.lost})
		default:
			return nil, fmt.Errorf("%w: nothing stands for transactions after %v up to %v", ErrRefused, x.after, x.upto)
		}
	}
	known := m.MaxOID
	m.SumUp()
	m.MaxOID = max(m.MaxOID, known)
	if m.Head != d.head {
		return nil, fmt.Errorf("manifest %d would end with %v, want %v", m.Seq, m.Head, d.head)
	}
	switch n := len(m.Items); {
	case m.Head == tid.Zero:
		m.Tip = snapshot.Hash{}
	case n > 0 && m.Items[n-1].Gap != nil: // it may be that of a transaction before the gap
		m.Tip = d.tipIfKnown(e)
	}
	return &m, nil
}

// tipIfKnown returns what signed notes say of the last transaction.
func (d *draft) tipIfKnown(e *engine) snapshot.Hash {
	for _, t := range e.tips {
		if t.tid == d.head && d.head != tid.Zero {
			return t.tip
		}
	}
	return snapshot.Hash{}
}

// stored returns the hash of what is stored as a manifest, of nothing if it is gone.
func (e *engine) stored(ctx context.Context, seq int64) (snapshot.Hash, error) {
	b, _, err := store.ReadAll(ctx, e.repo.Bare(), snapshot.ManifestKey(e.id, seq), 64<<20)
	if errors.Is(err, store.ErrNotFound) {
		return snapshot.Sum(nil), nil
	}
	return snapshot.Sum(b), err
}

// rebase returns the draft on top of what is stored now.
func (e *engine) rebase(ctx context.Context, p *Plan, d *draft) (*draft, error) {
	if d.base == nil {
		return d, nil
	}
	repo := e.repo
	if d.broken { // as it is stored: versions that the plan has found since are no part of the chain
		var err error
		if repo, err = backup.Open(ctx, backup.Config{Store: e.repo.Bare(), Trusted: e.repo.Trusted, Log: e.log}); err != nil {
			return nil, err
		}
	}
	now, err := repo.State(ctx, e.id, nil)
	b, broken := errors.AsType[*backup.BrokenError](err)
	if err != nil && !broken {
		return nil, err
	}
	if d.broken {
		last := now.Chain().N
		if broken {
			last = b.Last
		}
		if now.Hash != d.base.Hash || now.Chain() != d.base.Chain() || last != d.lastN {
			return nil, fmt.Errorf("%w: a writer has gone on: plan it again", ErrChanged)
		}
		return d, nil
	}
	if broken {
		return nil, fmt.Errorf("%w: the chain of tails is not what it was: plan it again", ErrChanged)
	}
	n := &draft{base: now}
	n.begin(now)
	quiet := &Plan{}
	if d.upToTail == 0 {
		bare := *now
		bare.Tails = nil
		now = &bare
	}
	if err := e.known(ctx, quiet, n, now); err != nil {
		return nil, err
	}
	for i := 0; i < len(n.entries); i++ {
		if x := n.entries[i]; x.lost != nil && d.pages[x.lost.Key] != nil {
			n.entries = slices.Replace(n.entries, i, i+1, entriesOfLines(d.pages[x.lost.Key])...)
		}
	}
	for _, x := range d.entries {
		if x.items == nil {
			continue
		}
		from := slices.IndexFunc(n.entries, func(o *entry) bool { return o.after == x.after && (len(x.olds) == 0 || o.key() == x.olds[0]) })
		if from < 0 {
			if slices.ContainsFunc(n.entries, func(o *entry) bool { return slices.Contains(x.olds, o.key()) }) {
				return nil, fmt.Errorf("%w: transactions after %v up to %v are in other segments: plan it again", ErrChanged, x.after, x.upto)
			}
			continue // the writer had it, and has stored it again
		}
		upTo := from + max(len(x.olds), 1)
		if upTo > len(n.entries) || n.entries[upTo-1].upto != x.upto {
			return nil, fmt.Errorf("%w: transactions after %v up to %v are in other segments: plan it again", ErrChanged, x.after, x.upto)
		}
		for i, key := range x.olds {
			if n.entries[from+i].key() != key {
				return nil, fmt.Errorf("%w: transactions after %v up to %v are in other segments: plan it again", ErrChanged, x.after, x.upto)
			}
		}
		n.m.Holes = snapshot.AddHole(n.m.Holes, x.hole)
		n.entries = slices.Replace(n.entries, from, upTo, x)
	}
	return n, nil
}

// begin sets what a draft takes over from the newest manifest.
func (d *draft) begin(s *backup.State) {
	m := s.Manifest
	d.m = snapshot.Manifest{Source: m.Source, Asof: m.Asof, Holes: slices.Clone(m.Holes), MaxOID: m.MaxOID, Reserved: slices.Clone(m.Reserved)}
	d.end, d.head, d.tip = m.ChainEnd(), m.Head, m.Tip
}

// Repair finds what is wrong with a lineage, and how it can be repaired. The error is an [ErrNoManifest] if the newest
// manifest does not verify.
func Repair(ctx context.Context, o Options) (*Plan, error) {
	e, err := newEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	p := &Plan{Lineage: e.id}
	state, err := e.repo.State(ctx, e.id, nil)
	broken, isBroken := errors.AsType[*backup.BrokenError](err)
	if err != nil && !isBroken {
		if wrong(err) {
			err = fmt.Errorf("%w: %w", ErrNoManifest, err)
		}
		return nil, err
	}
	p.Old = state.Head()
	d := &draft{base: state, broken: isBroken}
	d.begin(state)
	if key := snapshot.ManifestKey(e.id, state.Manifest.Seq); e.tampered(key) {
		d.rewrite = true
		p.step(Step{Key: key, Problem: key + " was overwritten or deleted", Means: Version, Detail: "another manifest takes its place"})
	}
	without := *d // the tails
	if err := e.known(ctx, p, d, state); err != nil {
		return nil, err
	}
	for _, t := range state.Tails {
		if e.tampered(t.Key) && t.Bytes == 0 {
			d.upToTail = t.N
			p.step(Step{Key: t.Key, After: t.After, Upto: t.Upto, Problem: t.Key + " was overwritten or deleted", Means: Version, Detail: "the new manifest sums it up"})
		}
	}
	if isBroken {
		e.log.Warn("the chain of tails is broken", "err", broken)
		d.lastN = broken.Last
	}
	if err := e.newerManifest(ctx, p, d, state); err != nil {
		return nil, err
	}
	if err := e.ending(ctx, p, d, state); err != nil {
		return nil, err
	}
	if err := e.lostPages(ctx, p, d); err != nil {
		return nil, err
	}
	if err := e.inspect(ctx, p, d.entries); err != nil {
		return nil, err
	}
	if err := e.decide(ctx, p, d); err != nil {
		return nil, err
	}
	if err := e.checkNotes(ctx, p, d); err != nil {
		return nil, err
	}
	if d.upToTail == 0 {
		// The tails stay as they are.
		d.entries = slices.DeleteFunc(d.entries, func(x *entry) bool { return x.tail != 0 })
		holes := d.m.Holes
		d.m, d.end, d.head, d.tip = without.m, without.end, without.head, without.tip
		for _, h := range holes {
			if h.From < d.head {
				d.m.Holes = snapshot.AddHole(d.m.Holes, h)
			}
		}
	}
	return p, e.ready(ctx, p, d)
}

// newerManifest looks for manifests after the newest one that is there: those that this host has seen, and those of which the store
// has kept a version. They tell of tails that are gone as well.
func (e *engine) newerManifest(ctx context.Context, p *Plan, d *draft, s *backup.State) error {
	all, err := e.numbers(ctx, snapshot.KindManifest)
	if err != nil {
		return err
	}
	newest := e.o.SeenManifest
	if n := len(all); n > 0 && all[n-1] > s.Manifest.Seq {
		newest = max(newest, all[n-1])
		pool, err := e.candidates(ctx)
		if err != nil {
			return err
		}
		for _, m := range pool.manifests {
			e.o.SeenTail = max(e.o.SeenTail, m.Tail)
		}
	}
	if newest <= s.Manifest.Seq {
		return nil
	}
	d.rewrite = true
	p.step(Step{Key: snapshot.ManifestKey(e.id, newest), Problem: fmt.Sprintf("manifest %d was the newest one, and was deleted", newest), Means: Listed, Detail: "the new one gets the number after it"})
	return nil
}

// ending finds what came after the chain of tails as readers see it: behind a break, or since the last tails were deleted.
func (e *engine) ending(ctx context.Context, p *Plan, d *draft, s *backup.State) error {
	if !d.broken {
		notes, steps := len(d.notes), len(p.Steps)
		end, err := e.deletedTails(ctx, p, d, s)
		if err != nil {
			return err
		}
		last := e.o.SeenTail
		if end > s.Chain().N || d.rewrite { // something was deleted: others may have been
			all, err := e.numbers(ctx, snapshot.KindTail)
			if err != nil {
				return err
			}
			if n := len(all); n > 0 {
				last = max(last, all[n-1])
			}
		}
		if end >= last {
			return nil
		}
		// More was lost than can be created again as it was: the new manifest sums it up.
		d.notes, p.Steps, p.more = d.notes[:notes], p.Steps[:steps], tid.Zero
		d.broken, d.lastN = true, s.Chain().N
	}
	return e.beyond(ctx, p, d)
}

// lostPages finds the segments of catalog pages that are lost: where the page that they make has the hash that the manifest
// says, they are the right ones.
func (e *engine) lostPages(ctx context.Context, p *Plan, d *draft) error {
	var out []*entry
	for _, x := range d.entries {
		if x.lost == nil {
			out = append(out, x)
			continue
		}
		pool, err := e.candidates(ctx)
		if err != nil {
			return err
		}
		list, err := e.pageAgain(ctx, pool, x.lost)
		if err != nil {
			return err
		}
		if list == nil {
			out = append(out, x)
			continue
		}
		s := stepOf(x)
		s.Means, s.Detail = Listed, "its segments are known, with the digest that the page had; the new manifest lists them"
		p.step(s)
		d.rewrite = true
		var lines []snapshot.Segment
		for _, c := range list {
			lines = append(lines, c.lines...)
		}
		if d.pages == nil {
			d.pages = map[string][]snapshot.Segment{}
		}
		d.pages[x.lost.Key] = lines
		out = append(out, entriesOfLines(lines)...)
	}
	d.entries = out
	return nil
}

func entriesOfLines(lines []snapshot.Segment) []*entry {
	var list []*entry
	for _, l := range lines {
		list = append(list, &entry{after: l.After, upto: l.End(), line: &l})
	}
	return list
}
