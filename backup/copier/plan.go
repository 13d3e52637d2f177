package copier

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// plan finds out what a copy has, and what is there already.
func (c *copier) plan(ctx context.Context) error {
	c.prev = c.sum.Copied
	copied, read := c.sum.Copied, c.sum.Read
	c.sum = Summary{Copied: copied, Read: read, LeftOut: map[string]Count{}}
	c.before, c.lineages, c.end, c.broken, c.total, c.to = nil, nil, nil, nil, Count{}, nil
	c.needed = map[string]int64{snapshot.MarkerKey: -1}
	var err error
	if c.marker, _, err = store.ReadAll(ctx, c.o.From.Store, snapshot.MarkerKey, maxNote); err != nil {
		return err
	}
	// The copy first: what is put there meanwhile is found when it is created.
	if c.have, err = c.list(ctx, c.o.To); err != nil {
		return err
	}
	if err := c.isCopy(ctx); err != nil {
		return err
	}
	if c.from, err = c.list(ctx, c.o.From.Store); err != nil {
		return err
	}
	if err := c.epochs(ctx); err != nil {
		return err
	}
	notes, err := c.o.From.Lineages(ctx)
	if err != nil {
		return err
	}
	for _, n := range notes {
		l, err := c.lineage(ctx, n)
		if err != nil {
			return fmt.Errorf("lineage %v: %w", n.Lineage, err)
		}
		if err := c.relate(ctx, l); err != nil {
			return err
		}
		c.lineages = append(c.lineages, l)
		c.sum.Lineage, c.sum.State = n, l.state
	}
	c.sum.Lineages = int64(len(notes))
	if err := c.ahead(notes); err != nil {
		return err
	}
	if err := c.policies(ctx); err != nil {
		return err
	}
	c.summarize(notes)
	return ctx.Err()
}

// list returns all objects of a store by their keys.
func (c *copier) list(ctx context.Context, s store.Store) (map[string]store.Info, error) {
	all := map[string]store.Info{}
	for info, err := range s.List(ctx, "", "") {
		if err != nil {
			return nil, err
		}
		all[info.Key] = info
	}
	return all, ctx.Err()
}

// isCopy makes sure that what is in the place of the copy is a copy, or nothing.
func (c *copier) isCopy(ctx context.Context) error {
	if _, ok := c.have[snapshot.MarkerKey]; !ok {
		c.sum.First = true
		return c.isEmpty(ctx)
	}
	b, _, err := store.ReadAll(ctx, c.o.To, snapshot.MarkerKey, maxNote)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, c.marker) {
		m := &snapshot.Marker{}
		id := "which cannot be read"
		if err := snapshot.OpenUnsigned(b, snapshot.MarkerKey, snapshot.ID{}, m); err == nil {
			id = fmt.Sprintf("%s, %v", m.Name, m.ID)
		}
		return fmt.Errorf("%s: %w: %s; the one to be copied is %s, %v", c.o.Name, ErrOther, id, c.o.From.Marker.Name, c.o.From.Marker.ID)
	}
	c.to, err = backup.Open(ctx, backup.Config{Store: c.o.To, Trusted: c.o.From.Trusted, Log: c.o.Log})
	return err
}

// isEmpty makes sure that a place without marker has nothing, or what an interrupted copy has left.
func (c *copier) isEmpty(ctx context.Context) error {
	notes, err := c.o.From.Lineages(ctx)
	if err != nil {
		return err
	}
	ours := map[snapshot.ID]bool{}
	for _, n := range notes {
		ours[n.Lineage], ours[n.Parent] = true, true // a fork may use one that has no note any more
	}
	var foreign []string
	for _, key := range slices.Sorted(maps.Keys(c.have)) {
		k, err := snapshot.ParseKey(key)
		if err == nil && k.Lineage != (snapshot.ID{}) && ours[k.Lineage] {
			continue
		}
		if err == nil && k.Kind == snapshot.KindProbe {
			continue
		}
		if err == nil && slices.Contains([]snapshot.Kind{snapshot.KindEpoch, snapshot.KindWrap, snapshot.KindLineage, snapshot.KindPolicy}, k.Kind) {
			same, err := c.equal(ctx, key)
			if err != nil {
				return err
			}
			if same {
				continue
			}
		}
		if foreign = append(foreign, key); len(foreign) == 3 {
			break
		}
	}
	if len(foreign) > 0 {
		return fmt.Errorf("%s: %w", c.o.Name, &backup.NotEmptyError{Keys: foreign})
	}
	return nil
}

// equal compares a small object of both.
func (c *copier) equal(ctx context.Context, key string) (bool, error) {
	a, _, err := store.ReadAll(ctx, c.o.From.Store, key, maxNote)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b, _, err := store.ReadAll(ctx, c.o.To, key, maxNote)
	return bytes.Equal(a, b), err
}

// verified returns what verifies a note with a key.
func (c *copier) verified(key string, n snapshot.Note) func([]byte) error {
	return func(b []byte) error { return snapshot.Open(b, key, c.o.From.Marker.ID, n, c.o.From.Trusted) }
}

// need adds an object to those that the copy needs.
func (c *copier) need(list []object, x object) []object {
	if _, ok := c.needed[x.key]; ok {
		return list
	}
	c.needed[x.key] = x.size
	return append(list, x)
}

// small compares objects that both have: there are few of these, and no hash of them is known.
func (c *copier) small(ctx context.Context, key string) error {
	if _, ok := c.have[key]; !ok {
		return nil
	}
	same, err := c.equal(ctx, key)
	if err == nil && !same {
		err = fmt.Errorf("%s: %w: %w under %s", c.o.Name, ErrDiverged, ErrConflict, key)
	}
	return err
}

// epochs plans the keys: of each epoch the wraps, then the note.
func (c *copier) epochs(ctx context.Context) error {
	notes, err := c.o.From.Epochs(ctx)
	if err != nil {
		return err
	}
	for _, e := range notes {
		var wraps []snapshot.Key
		for key := range c.from {
			if k, err := snapshot.ParseKey(key); err == nil && k.Kind == snapshot.KindWrap && k.N == int64(e.KID) {
				wraps = append(wraps, k)
			}
		}
		slices.SortFunc(wraps, func(a, b snapshot.Key) int { return int(a.Wrap - b.Wrap) })
		for _, k := range wraps {
			x := object{key: k.String(), kind: k.Kind, size: -1}
			if k.Wrap == 1 {
				x.sum = e.Wrap
			}
			if _, ok := c.have[x.key]; ok {
				same, err := c.equal(ctx, x.key)
				if err != nil {
					return err
				}
				if !same { // each of the two was rotated by itself; any wrap of the epoch will do
					c.o.Log.Warn("a wrap of the key of an epoch is another one in the copy, and stays", "key", x.key)
					c.sum.OtherWraps++
					continue
				}
			}
			c.before = c.need(c.before, x)
		}
		key := snapshot.Key{Kind: snapshot.KindEpoch, N: int64(e.KID)}.String()
		if err := c.small(ctx, key); err != nil {
			return err
		}
		c.before = c.need(c.before, object{key: key, kind: snapshot.KindEpoch, size: -1, check: c.verified(key, &snapshot.Epoch{})})
	}
	return nil
}

// lineage plans what a lineage needs.
func (c *copier) lineage(ctx context.Context, n *snapshot.Lineage) (*lineage, error) {
	l := &lineage{note: n}
	var err error
	l.state, err = c.o.From.State(ctx, n.Lineage, nil)
	if b, ok := errors.AsType[*backup.BrokenError](err); ok {
		c.broken = append(c.broken, fmt.Errorf("lineage %v: %w", n.Lineage, b))
		err = nil
	}
	if err != nil {
		return nil, err
	}
	s := l.state
	for _, i := range s.Manifest.Items {
		if i.Page != nil {
			l.data = c.need(l.data, object{key: i.Page.Key, kind: snapshot.KindPage, size: -1, sum: i.Page.SHA256})
		}
	}
	tails := map[string]bool{}
	for _, t := range s.Tails {
		tails[t.Key] = true
	}
	for p, err := range c.o.From.Parts(ctx, s, tid.Zero, s.Head()) {
		if err != nil {
			return nil, err
		}
		g := p.Segment
		if g == nil || tails[g.Key] {
			continue
		}
		k, err := snapshot.ParseKey(g.Key)
		if err != nil {
			return nil, err
		}
		x := object{key: g.Key, kind: k.Kind, size: g.Offset() + g.Bytes, sum: g.SHA256}
		if g.Offset() > 0 {
			x.sum, x.line = snapshot.Hash{}, g
			l.tails = c.need(l.tails, x)
			continue
		}
		l.data = c.need(l.data, x)
	}
	reserved := slices.Clone(s.Manifest.Reserved)
	for _, t := range s.Tails {
		reserved = append(reserved, t.Reserved...)
	}
	for _, r := range reserved {
		k, err := snapshot.ParseKey(r.Key)
		if err != nil {
			return nil, err
		}
		if _, ok := c.from[r.Key]; !ok && r.Kind == snapshot.ReservedRun {
			continue // it carries no truth
		}
		l.data = c.need(l.data, object{key: r.Key, kind: k.Kind, size: -1})
	}
	c.needed[snapshot.ManifestKey(n.Lineage, s.Manifest.Seq)] = -1
	for _, t := range s.Tails {
		x := object{key: t.Key, kind: snapshot.KindTail, size: t.Size}
		if t.Bytes > 0 {
			if x.line, err = t.Line(); err != nil {
				return nil, err
			}
		} else {
			x.check = func(b []byte) error {
				_, err := snapshot.OpenTail(b, t.Key, c.o.From.Marker.ID, c.o.From.Trusted)
				return err
			}
		}
		l.after = c.need(l.after, x)
	}
	key := snapshot.Key{Kind: snapshot.KindLineage, N: n.K}.String()
	if err := c.small(ctx, key); err != nil {
		return nil, err
	}
	c.needed[key] = -1
	return l, c.proofs(ctx, l)
}

// manifest is the newest one of a state.
func (c *copier) manifest(s *backup.State) object {
	key := snapshot.ManifestKey(s.Lineage, s.Manifest.Seq)
	return object{key: key, kind: snapshot.KindManifest, size: -1, sum: s.Hash, check: func(b []byte) error {
		_, err := snapshot.OpenManifest(b, key, c.o.From.Marker.ID, c.o.From.Trusted)
		return err
	}}
}

// proofs plans the proofs of a lineage, and the manifests that they are about.
func (c *copier) proofs(ctx context.Context, l *lineage) error {
	list, err := c.o.From.Proofs(ctx, l.note.Lineage)
	if err != nil {
		return err
	}
	slices.Reverse(list)
	for _, p := range list {
		key := snapshot.ManifestKey(p.Lineage, p.Seq)
		if _, ok := c.from[key]; ok && p.Result == snapshot.ResultOK {
			l.later = c.need(l.later, object{key: key, kind: snapshot.KindManifest, size: -1, sum: p.Manifest})
		}
		l.later = c.need(l.later, object{key: p.Key, kind: snapshot.KindProof, size: -1, check: c.verified(p.Key, &snapshot.Proof{})})
	}
	return nil
}

// policies plans the policy notes that a trusted key signed.
func (c *copier) policies(ctx context.Context) error {
	for _, key := range slices.Sorted(maps.Keys(c.from)) {
		k, err := snapshot.ParseKey(key)
		if err != nil || k.Kind != snapshot.KindPolicy {
			continue
		}
		b, _, err := store.ReadAll(ctx, c.o.From.Store, key, maxNote)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		check := c.verified(key, &snapshot.Policy{})
		if err := check(b); errors.Is(err, snapshot.ErrUntrusted) || errors.Is(err, snapshot.ErrCorrupt) {
			c.o.Log.Warn("a policy is left out", "key", key, "err", err)
			continue
		} else if err != nil {
			return err
		}
		if err := c.small(ctx, key); err != nil {
			return err
		}
		c.end = c.need(c.end, object{key: key, kind: snapshot.KindPolicy, size: -1, check: check})
	}
	return nil
}

// relate makes sure that what the copy has of a lineage is an earlier state of it, or the same.
func (c *copier) relate(ctx context.Context, l *lineage) error {
	if c.to == nil {
		return nil
	}
	id := l.note.Lineage
	theirs, err := c.to.State(ctx, id, nil)
	if theirs == nil {
		if errors.Is(err, backup.ErrIncomplete) {
			return nil // nothing of it
		}
		return fmt.Errorf("%s: %w", c.o.Name, err)
	}
	ours := l.state
	diverged := func(format string, args ...any) error {
		return fmt.Errorf("%s: lineage %v: %w: %s", c.o.Name, id, ErrDiverged, fmt.Sprintf(format, args...))
	}
	a, b := theirs.Chain(), ours.Chain()
	switch m, n := theirs.Manifest.Seq, ours.Manifest.Seq; {
	case m > n:
		return diverged("it has manifest %d, the repository ends with %d", m, n)
	case a.N > b.N || a.Head > b.Head:
		return diverged("it has tail %d and transactions up to %v, the repository ends with tail %d and %v", a.N, a.Head, b.N, b.Head)
	case m == n && theirs.Hash != ours.Hash:
		return diverged("manifest %d is another one", m)
	}
	// The end of its chain of tails is a place in that of the repository.
	shown := a.N == 0 || a == b || a == ours.Manifest.ChainEnd()
	for _, t := range ours.Tails {
		if t.N == a.N {
			if shown = t.Chain() == a; !shown {
				return diverged("tail %d is another one", a.N)
			}
		}
	}
	if !shown && a.N > 0 && a.N <= ours.Manifest.Tail {
		t, err := c.o.From.Tail(ctx, id, a.N)
		switch {
		case err == nil && t.Chain() == a:
			shown = true
		case err == nil:
			return diverged("tail %d is another one", a.N)
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
	}
	// Or its newest manifest is one of the repository's, and nothing came after it.
	key := snapshot.ManifestKey(id, theirs.Manifest.Seq)
	if _, ok := c.from[key]; ok {
		same, err := c.equal(ctx, key)
		if err != nil {
			return err
		}
		if !same {
			return diverged("manifest %d is another one", theirs.Manifest.Seq)
		}
		shown = shown || len(theirs.Tails) == 0
	}
	if shown {
		return nil
	}
	left, err := c.recall()
	if err != nil {
		return err
	}
	if at, ok := left[id.String()]; ok && at == markOf(theirs) {
		return nil
	}
	if c.o.AssumeSameHistory {
		c.o.Log.Warn("nothing shows that the copy is an earlier state of the repository; it is assumed", "lineage", id, "head", a.Head)
		return nil
	}
	return fmt.Errorf("%s: lineage %v: %w: it ends with manifest %d, tail %d and transaction %v, and neither the repository has these notes any more, nor did this host leave it so", c.o.Name, id, ErrUnknown, theirs.Manifest.Seq, a.N, a.Head)
}

// ahead refuses a copy with keys or lineages that were begun there.
func (c *copier) ahead(notes []*snapshot.Lineage) error {
	if c.to == nil {
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(c.have)) {
		k, err := snapshot.ParseKey(key)
		if err != nil {
			continue
		}
		_, ours := c.from[key]
		switch {
		case k.Kind == snapshot.KindEpoch && !ours, k.Kind == snapshot.KindLineage && k.N > notes[len(notes)-1].K:
			return fmt.Errorf("%s: %w: it has %s, which the repository has not: a writer adds to it", c.o.Name, ErrDiverged, key)
		}
	}
	return nil
}

// summarize counts.
func (c *copier) summarize(notes []*snapshot.Lineage) {
	known := map[snapshot.ID]bool{}
	for _, n := range notes {
		known[n.Lineage], known[n.Parent] = true, true
	}
	for key, size := range c.needed {
		if info, ok := c.from[key]; ok {
			size = info.Size
		}
		size = max(size, 0) // of what came after the list
		c.sum.Needed.add(size)
		if _, ok := c.have[key]; ok {
			c.sum.Equal.add(size)
		} else {
			c.total.add(size)
		}
	}
	for key, info := range c.from {
		if _, ok := c.needed[key]; ok {
			continue
		}
		k, err := snapshot.ParseKey(key)
		why := Spare
		switch {
		case err != nil:
			why = Foreign
		case k.Kind == snapshot.KindProbe:
			why = ProbeLeft
		case k.Kind == snapshot.KindDoom, k.Kind == snapshot.KindVoid:
			why = DoomList
		case k.Kind == snapshot.KindPolicy, k.Kind == snapshot.KindProof:
			why = Untrusted
		case k.Lineage != snapshot.ID{} && !known[k.Lineage]:
			why = Unfinished
		}
		n := c.sum.LeftOut[why]
		n.add(info.Size)
		c.sum.LeftOut[why] = n
	}
	// What an earlier try has copied counts as copied.
	c.total.Objects += c.prev.Objects
	c.total.Bytes += c.prev.Bytes
	c.sum.Equal.Objects -= c.prev.Objects
	c.sum.Equal.Bytes -= c.prev.Bytes
}

// mark is the state in which a copy of a lineage was left.
type mark struct {
	Seq  int64  `json:"seq"`
	Tail int64  `json:"tail"`
	Note string `json:"chain"`
	Hash string `json:"manifest"`
}

func markOf(s *backup.State) mark {
	c := s.Chain()
	return mark{s.Manifest.Seq, c.N, c.Hash.String(), s.Hash.String()}
}

// left is what the state directory keeps of the copies that this host has made.
type left struct {
	Repo   string                     `json:"repo"`
	Copies map[string]map[string]mark `json:"copies"` // by name of the copy and lineage
}

func (c *copier) leftPath() string { return filepath.Join(c.o.StateDir, "copies.json") }

func (c *copier) readLeft() (left, error) {
	l := left{Repo: c.o.From.Marker.ID.String(), Copies: map[string]map[string]mark{}}
	if c.o.StateDir == "" {
		return l, nil
	}
	b, err := os.ReadFile(c.leftPath())
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("state directory: %w", err)
	}
	var got left
	if err := json.Unmarshal(b, &got); err != nil || got.Repo != l.Repo || got.Copies == nil {
		c.o.Log.Warn("what the state directory says of copies is not of this repository, and is ignored", "file", c.leftPath())
		return l, nil
	}
	return got, nil
}

// recall returns in which state this host has left the lineages of the copy.
func (c *copier) recall() (map[string]mark, error) {
	l, err := c.readLeft()
	return l.Copies[c.o.Name], err
}

// remember keeps in which state the copy is left. The copy is complete, also if that fails.
func (c *copier) remember() {
	if c.o.StateDir == "" {
		return
	}
	if err := c.writeLeft(); err != nil {
		c.o.Log.Warn("how the copy was left is not kept for the next time", "err", err)
	}
}

func (c *copier) writeLeft() error {
	l, err := c.readLeft()
	if err != nil {
		return err
	}
	marks := map[string]mark{}
	for _, x := range c.lineages {
		marks[x.note.Lineage.String()] = markOf(x.state)
	}
	l.Copies[c.o.Name] = marks
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	tmp := c.leftPath() + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.leftPath())
}
