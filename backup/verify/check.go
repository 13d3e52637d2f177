package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// CheckOptions say how [Check] works. A zero field takes the default.
type CheckOptions struct {
	// StateDir is where this host keeps what it has seen: see [Seen]. Default: nothing is
	// compared or kept.
	StateDir string
	Report   func(Finding) // is told everything that is found; default: none
}

// Summary says what [Check] has looked at.
type Summary struct {
	Objects   int64     `json:"objects"`
	Bytes     int64     `json:"bytes"`
	Lineages  []Lineage `json:"lineages,omitempty"`
	Spare     int64     `json:"spare_objects"` // that nothing needs: the next prune may delete them
	SpareSize int64     `json:"spare_bytes"`
	// NotLooked names what could not be looked at, and why.
	NotLooked []string `json:"not_looked_at,omitempty"`
	Damage    int64    `json:"damage"` // findings that are no warnings
	Warnings  int64    `json:"warnings"`
}

// Lineage is what a lineage has.
type Lineage struct {
	K        int64       `json:"k"`
	Lineage  snapshot.ID `json:"lineage"`
	Seq      int64       `json:"seq"`  // of the newest manifest that verifies, 0: none
	Tail     int64       `json:"tail"` // last one of the unbroken run
	Head     tid.TID     `json:"head"`
	Segments int64       `json:"segments"`
	Bytes    int64       `json:"bytes"` // of segments
}

// maxNote is the greatest length of a note that is read.
const maxNote = 64 << 20

// Check lists all objects of a repository, reads marker, notes, manifests, catalog pages and
// the notes of tails, and reports all that is wrong with them. The error is about what
// prevented that.
func Check(ctx context.Context, cfg backup.Config, o CheckOptions) (*Summary, error) {
	c := &checker{ctx: ctx, cfg: cfg, reporter: reporter{report: o.Report}, objects: map[string]store.Info{}, needed: map[string]bool{}}
	if err := c.check(o.StateDir); err != nil {
		return nil, err
	}
	c.sum.Damage, c.sum.Warnings = c.damage, c.warnings
	return &c.sum, nil
}

type checker struct {
	reporter
	ctx     context.Context
	cfg     backup.Config
	repo    snapshot.ID
	age     bool
	objects map[string]store.Info
	kinds   map[snapshot.Kind][]snapshot.Key // ascending by key
	needed  map[string]bool
	epochs  map[snapshot.KID]bool // that have a note
	used    map[snapshot.KID]string
	sum     Summary
}

func (c *checker) check(stateDir string) error {
	if err := c.list(); err != nil {
		return err
	}
	if ok, err := c.marker(); err != nil || !ok {
		return err
	}
	for _, f := range []func() error{c.keys, c.lineages, c.doomed, c.versions} {
		if err := f(); err != nil {
			return err
		}
	}
	for _, kid := range slices.Sorted(maps.Keys(c.used)) {
		if !c.epochs[kid] {
			c.add(Finding{Kind: Missing, Key: snapshot.Key{Kind: snapshot.KindEpoch, N: int64(kid)}.String(), Text: fmt.Sprintf("the epoch with which %s is encrypted has no note", c.used[kid])})
		}
	}
	for key, info := range c.objects {
		if k, err := snapshot.ParseKey(key); err == nil && !c.needed[key] {
			switch k.Kind {
			case snapshot.KindSegment, snapshot.KindPage, snapshot.KindTail, snapshot.KindManifest, snapshot.KindRun:
				c.sum.Spare++
				c.sum.SpareSize += info.Size
			}
		}
	}
	if stateDir == "" {
		return nil
	}
	return c.seen(stateDir)
}

// list reads the names of all objects.
func (c *checker) list() error {
	c.kinds = map[snapshot.Kind][]snapshot.Key{}
	last := ""
	for info, err := range c.cfg.Store.List(c.ctx, "", "") {
		if err != nil {
			return err
		}
		if info.Key <= last {
			return fmt.Errorf("%w: the list has %s after %s", store.ErrLied, info.Key, last)
		}
		last = info.Key
		c.sum.Objects++
		c.sum.Bytes += info.Size
		k, err := snapshot.ParseKey(info.Key)
		if err != nil {
			c.add(Finding{Kind: Foreign, Warning: true, Key: info.Key, Text: err.Error()})
			continue
		}
		c.objects[info.Key] = info
		c.kinds[k.Kind] = append(c.kinds[k.Kind], k)
	}
	return c.ctx.Err()
}

// read returns a whole object; nil if that is damage, which is reported.
func (c *checker) read(key string, limit int64) ([]byte, error) {
	b, info, err := store.ReadAll(c.ctx, c.cfg.Store, key, limit)
	if kind, ok := kindOf(err); ok {
		c.add(Finding{Kind: kind, Key: key, Err: err})
		return nil, nil
	}
	if err != nil {
		if info.Size > limit {
			c.add(Finding{Kind: Damaged, Key: key, Err: err})
			return nil, nil
		}
		return nil, err
	}
	return b, nil
}

// readAll reads objects at the same time. What is damaged is reported and nil.
func (c *checker) readAll(keys []string, limit int64) ([][]byte, error) {
	out := make([][]byte, len(keys))
	var g errgroup.Group
	g.SetLimit(16)
	for i, key := range keys {
		g.Go(func() (err error) {
			out[i], err = c.read(key, limit)
			return err
		})
	}
	return out, g.Wait()
}

// opened reports what is wrong with a note; true if nothing is.
func (c *checker) opened(key string, err error) bool {
	if err == nil {
		return true
	}
	kind, ok := kindOf(err)
	if !ok {
		kind = Damaged
	}
	c.add(Finding{Kind: kind, Key: key, Err: err})
	return false
}

// marker reads the marker. Without it nothing else can be verified.
func (c *checker) marker() (bool, error) {
	if _, ok := c.objects[snapshot.MarkerKey]; !ok {
		if len(c.objects) == 0 {
			return false, backup.ErrNoRepository
		}
		c.add(Finding{Kind: Missing, Key: snapshot.MarkerKey, Text: "the marker of the repository is missing: nothing else can be verified"})
		return false, nil
	}
	b, err := c.read(snapshot.MarkerKey, maxNote)
	if err != nil || b == nil {
		return false, err
	}
	var m snapshot.Marker
	if !c.opened(snapshot.MarkerKey, snapshot.Open(b, snapshot.MarkerKey, snapshot.ID{}, &m, c.cfg.Trusted)) {
		return false, nil
	}
	c.repo, c.age = m.ID, m.Encryption == snapshot.EncryptionAge
	return true, nil
}

// keys reads the notes of epochs and compares the wraps with them.
func (c *checker) keys() error {
	c.epochs, c.used = map[snapshot.KID]bool{}, map[snapshot.KID]string{}
	wraps := map[int64]bool{}
	for _, k := range c.kinds[snapshot.KindWrap] {
		wraps[k.N] = true
	}
	for _, k := range c.kinds[snapshot.KindEpoch] {
		key := k.String()
		b, err := c.read(key, maxNote)
		if err != nil {
			return err
		}
		var e snapshot.Epoch
		if b == nil || !c.opened(key, snapshot.Open(b, key, c.repo, &e, c.cfg.Trusted)) {
			continue
		}
		c.epochs[e.KID] = true
		first := snapshot.Key{Kind: snapshot.KindWrap, N: k.N, Wrap: 1}.String()
		if _, ok := c.objects[first]; !ok {
			// Later ones may take its place, after a rotation.
			c.add(Finding{Kind: Missing, Warning: wraps[k.N], Key: first, Text: fmt.Sprintf("the first wrap of the key of epoch %v is missing", e.KID)})
			continue
		}
		if b, err = c.read(first, maxNote); err != nil {
			return err
		}
		if b != nil && snapshot.Sum(b) != e.Wrap {
			c.add(Finding{Kind: Damaged, Warning: len(wraps) > 1 && c.count(k.N) > 1, Key: first, Text: fmt.Sprintf("its SHA-256 is %v, the note of the epoch says %v", snapshot.Sum(b), e.Wrap)})
		}
	}
	if c.age && len(c.epochs) == 0 {
		c.add(Finding{Kind: Missing, Key: "keys/", Text: "the repository is encrypted, but no epoch has a note that verifies"})
	}
	return nil
}

// count returns how many wraps an epoch has.
func (c *checker) count(kid int64) (n int) {
	for _, k := range c.kinds[snapshot.KindWrap] {
		if k.N == kid {
			n++
		}
	}
	return n
}

// lineages checks all lineages that have a note.
func (c *checker) lineages() error {
	list := c.kinds[snapshot.KindLineage]
	if len(list) == 0 {
		c.add(Finding{Kind: Missing, Key: "l/", Text: "the repository has no lineage"})
	}
	next := int64(1)
	for _, k := range list {
		for ; next < k.N; next++ {
			// A keeper deletes old ones, whole, from the first on.
			c.add(Finding{Kind: Missing, Warning: true, Key: snapshot.Key{Kind: snapshot.KindLineage, N: next}.String(), Text: "a later lineage is there, this one is not"})
		}
		next = k.N + 1
		key := k.String()
		b, err := c.read(key, maxNote)
		if err != nil {
			return err
		}
		var l snapshot.Lineage
		if b == nil || !c.opened(key, snapshot.Open(b, key, c.repo, &l, c.cfg.Trusted)) {
			continue
		}
		if err := c.lineage(&l); err != nil {
			return fmt.Errorf("lineage %v: %w", l.Lineage, err)
		}
	}
	return nil
}

// of returns the keys of a kind of a lineage, ascending by number.
func (c *checker) of(kind snapshot.Kind, lineage snapshot.ID) []snapshot.Key {
	var list []snapshot.Key
	for _, k := range c.kinds[kind] {
		if k.Lineage == lineage {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b snapshot.Key) int { return cmp.Compare(a.N, b.N) })
	return list
}

// lineage checks a lineage.
func (c *checker) lineage(l *snapshot.Lineage) error {
	sum := Lineage{K: l.K, Lineage: l.Lineage}
	m, at, err := c.manifests(l, &sum)
	if err != nil {
		return err
	}
	if m != nil {
		for _, i := range m.Items {
			if err := c.item(i, &sum); err != nil {
				return err
			}
		}
		for _, r := range m.Reserved {
			c.reserved(r)
		}
		sum.Head = m.Head
	}
	if err := c.tails(l, m, at, &sum); err != nil {
		return err
	}
	c.sum.Lineages = append(c.sum.Lineages, sum)
	return nil
}

// manifests verifies all manifests of a lineage, and returns the newest one. If that does
// not verify, nothing is said about what older ones refer to: it may be superseded.
func (c *checker) manifests(l *snapshot.Lineage, sum *Lineage) (*snapshot.Manifest, snapshot.Chain, error) {
	list := c.of(snapshot.KindManifest, l.Lineage)
	if len(list) == 0 {
		c.add(Finding{Kind: Missing, Key: snapshot.Prefix(snapshot.KindManifest, l.Lineage), Text: fmt.Sprintf("lineage %v has no manifest", l.Lineage)})
		return nil, snapshot.Chain{}, nil
	}
	var prev snapshot.Hash
	var before *snapshot.Manifest
	var newest *snapshot.Manifest
	last := list[0].N - 1 // of the manifest before
	for chunk := range slices.Chunk(list, 64) {
		var keys []string
		for _, k := range chunk {
			keys = append(keys, k.String())
		}
		objects, err := c.readAll(keys, maxNote)
		if err != nil {
			return nil, snapshot.Chain{}, err
		}
		for i, b := range objects {
			key, seq := keys[i], chunk[i].N
			if seq != last+1 {
				for n := last + 1; n < seq && n < last+100; n++ {
					c.add(Finding{Kind: Missing, Warning: true, Key: snapshot.ManifestKey(l.Lineage, n), Text: "an older and a newer manifest are there, this one is not"})
				}
				before, prev = nil, snapshot.Hash{}
			}
			newest, last = nil, seq
			if b == nil {
				before, prev = nil, snapshot.Hash{}
				continue
			}
			m, err := snapshot.OpenManifest(b, key, c.repo, c.cfg.Trusted)
			if !c.opened(key, err) {
				before, prev = nil, snapshot.Sum(b)
				continue
			}
			switch {
			case prev != snapshot.Hash{} && m.Prev != prev:
				c.add(Finding{Kind: Broken, Key: key, Text: fmt.Sprintf("prev is %v, manifest %d has %v", m.Prev, seq-1, prev)})
			case before != nil && (m.Head < before.Head || m.Tail < before.Tail):
				c.add(Finding{Kind: Broken, Key: key, Text: fmt.Sprintf("it ends with %v, tail %d; manifest %d before it ended with %v, tail %d", m.Head, m.Tail, seq-1, before.Head, before.Tail)})
			}
			newest, before, prev = m, m, snapshot.Sum(b)
		}
	}
	c.needed[list[len(list)-1].String()] = true
	if newest == nil {
		return nil, snapshot.Chain{}, nil // reported
	}
	sum.Seq, sum.Tail = newest.Seq, newest.Tail
	return newest, newest.ChainEnd(), nil
}

// item checks what a line of a manifest refers to.
func (c *checker) item(i snapshot.Item, sum *Lineage) error {
	switch {
	case i.Gap != nil:
		c.add(Finding{Kind: Gap, Warning: true, After: i.Gap.After, Upto: i.Gap.Upto, Text: "lost, as was accepted: " + i.Gap.Note})
	case i.Segment != nil:
		c.segment(i.Segment, sum)
	default:
		p := i.Page
		c.needed[p.Key] = true
		if _, ok := c.objects[p.Key]; !ok {
			c.add(Finding{Kind: Missing, Key: p.Key, After: p.After, Upto: p.Upto, Text: fmt.Sprintf("the catalog page of %d segments is missing", p.N)})
			return nil
		}
		b, err := c.read(p.Key, snapshot.MaxPage)
		if err != nil || b == nil {
			return err
		}
		list, err := snapshot.OpenPage(b, p)
		if err != nil {
			c.add(Finding{Kind: Damaged, Key: p.Key, After: p.After, Upto: p.Upto, Err: err})
			return nil
		}
		for i := range list {
			c.segment(&list[i], sum)
		}
	}
	return nil
}

// segment looks whether a segment is there, with its size.
func (c *checker) segment(l *snapshot.Segment, sum *Lineage) {
	c.needed[l.Key] = true
	sum.Segments++
	sum.Bytes += l.Bytes
	if l.KID != 0 {
		c.used[l.KID] = l.Key
	}
	if (l.KID != 0) != c.age {
		c.add(Finding{Kind: Damaged, Key: l.Key, After: l.After, Upto: l.End(), Text: fmt.Sprintf("epoch %v, but the marker says encryption %v", l.KID, c.age)})
	}
	info, ok := c.objects[l.Key]
	switch want := l.Offset() + l.Bytes; {
	case !ok:
		c.add(Finding{Kind: Missing, Key: l.Key, After: l.After, Upto: l.End(), Text: "the segment is missing"})
	case info.Size != want:
		c.add(Finding{Kind: Damaged, Key: l.Key, After: l.After, Upto: l.End(), Text: fmt.Sprintf("%d bytes, want %d", info.Size, want)})
	}
}

func (c *checker) reserved(r snapshot.Reserved) {
	c.needed[r.Key] = true
	if _, ok := c.objects[r.Key]; !ok {
		// An index run carries no truth.
		c.add(Finding{Kind: Missing, Warning: r.Kind == snapshot.ReservedRun, Key: r.Key, Text: "an object that a line of kind " + r.Kind + " refers to is missing"})
	}
}

// tails verifies the tails after the newest manifest. Those that it sums up are not
// needed any more, but for segments behind them.
func (c *checker) tails(l *snapshot.Lineage, m *snapshot.Manifest, at snapshot.Chain, sum *Lineage) error {
	var list []snapshot.Key
	for _, k := range c.of(snapshot.KindTail, l.Lineage) {
		if m == nil || k.N > at.N {
			list = append(list, k)
		}
	}
	known := m != nil // whether at is the tail before
	unbroken := known // whether all up to at is good
	for chunk := range slices.Chunk(list, 64) {
		objects := make([][]byte, len(chunk))
		var g errgroup.Group
		g.SetLimit(16)
		for i, k := range chunk {
			c.needed[k.String()] = true
			g.Go(func() (err error) {
				objects[i], err = c.tailNote(k.String())
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for i, k := range chunk {
			key := k.String()
			if known && k.N != at.N+1 {
				c.missingTails(l.Lineage, at.N+1, k.N, at.Head)
				known, unbroken = false, false
			}
			if objects[i] == nil {
				known, unbroken = false, false
				continue
			}
			t, err := snapshot.OpenTail(objects[i], key, c.repo, c.cfg.Trusted)
			if !c.opened(key, err) {
				known, unbroken = false, false
				continue
			}
			if known {
				if err := t.Follows(at); err != nil {
					c.add(Finding{Kind: Broken, Key: key, After: t.After, Upto: t.Upto, Err: err})
					unbroken = false
				}
			}
			if unbroken {
				sum.Tail, sum.Head = t.N, t.Upto
			}
			at, known = t.Chain(), true
			c.tail(t, key, sum)
		}
	}
	return nil
}

// maxListed is how many missing numbers are named one by one.
const maxListed = 100

func (c *checker) missingTails(lineage snapshot.ID, from, to int64, after tid.TID) {
	for n := from; n < to && n < from+maxListed; n++ {
		c.add(Finding{Kind: Missing, Key: snapshot.TailKey(lineage, n), Text: fmt.Sprintf("the tail is missing, and later ones are there: the history ends with %v", after)})
	}
	if to-from > maxListed {
		c.add(Finding{Kind: Missing, Key: snapshot.TailKey(lineage, from+maxListed), Text: fmt.Sprintf("so are the tails up to number %d", to-1)})
	}
}

// tailNote reads the note of a tail, nil if it is damaged, which is reported.
func (c *checker) tailNote(key string) ([]byte, error) {
	info := c.objects[key]
	if info.Size <= 64<<10 {
		return c.read(key, 64<<10)
	}
	get := func(n int64) ([]byte, error) {
		body, _, err := c.cfg.Store.Get(c.ctx, key, 0, n)
		if kind, ok := kindOf(err); ok {
			c.add(Finding{Kind: kind, Key: key, Err: err})
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		defer body.Close()
		return io.ReadAll(body)
	}
	b, err := get(64 << 10)
	if err != nil || b == nil {
		return nil, err
	}
	n, err := snapshot.SplitTail(b, key)
	if err != nil {
		c.opened(key, err)
		return nil, nil
	}
	if n > int64(len(b)) {
		return get(n)
	}
	return b, nil
}

// tail looks at what a tail refers to.
func (c *checker) tail(t *snapshot.Tail, key string, sum *Lineage) {
	for _, r := range t.Reserved {
		c.reserved(r)
	}
	for i := range t.Segments {
		c.segment(&t.Segments[i], sum)
	}
	want := t.NoteSize() + t.Bytes
	if info := c.objects[key]; info.Size != want {
		c.add(Finding{Kind: Damaged, Key: key, After: t.After, Upto: t.Upto, Text: fmt.Sprintf("%d bytes, its note says %d", info.Size, want)})
	}
	if t.Bytes == 0 {
		return
	}
	sum.Segments++
	sum.Bytes += t.Bytes
	if t.KID != 0 {
		c.used[t.KID] = key
	}
	if (t.KID != 0) != c.age {
		c.add(Finding{Kind: Damaged, Key: key, After: t.After, Upto: t.Upto, Text: fmt.Sprintf("epoch %v, but the marker says encryption %v", t.KID, c.age)})
	}
}

// doomed reads the doom lists that are not void, and warns of needed objects in them.
func (c *checker) doomed() error {
	for _, k := range c.kinds[snapshot.KindDoom] {
		key := k.String()
		void := k
		void.Kind = snapshot.KindVoid
		if _, ok := c.objects[void.String()]; ok {
			b, err := c.read(void.String(), maxNote)
			if err != nil {
				return err
			}
			var v snapshot.Void
			if b != nil && c.opened(void.String(), snapshot.Open(b, void.String(), c.repo, &v, c.cfg.Trusted)) {
				continue
			}
		}
		b, err := c.read(key, maxNote)
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		d, err := snapshot.OpenDoom(b, key, c.repo, c.cfg.Trusted)
		if !c.opened(key, err) {
			continue
		}
		for _, o := range d.Objects {
			if c.needed[o.Key] {
				c.add(Finding{Kind: Doomed, Warning: true, Key: o.Key, Text: fmt.Sprintf("it is needed, and named by the doom list %s", key)})
			}
		}
	}
	return nil
}

// versions looks for keys under which several objects were stored, where the store keeps them.
func (c *checker) versions() error {
	n := map[string]int{}
	for v, err := range store.Versions(c.ctx, c.cfg.Store, "") {
		if errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		if errors.Is(err, store.ErrDenied) {
			c.sum.NotLooked = append(c.sum.NotLooked, fmt.Sprintf("versions of objects: %v", err))
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case v.Deleted && v.Latest && c.needed[v.Key]:
			c.add(Finding{Kind: Overwritten, Key: v.Key, Text: "it was deleted while it was needed; an older version may be there still"})
		case v.Deleted:
		default:
			if n[v.Key]++; n[v.Key] == 2 {
				// Which one is right, its hash or signature tells when it is read.
				c.add(Finding{Kind: Overwritten, Warning: !c.needed[v.Key], Key: v.Key, Text: "another object was stored under this key before: keys are written once"})
			}
		}
	}
	return nil
}

// seen compares the newest states with what this host has seen, and remembers them.
func (c *checker) seen(dir string) error {
	s, err := LoadSeen(dir, c.repo)
	if err != nil {
		return err
	}
	newest := int64(0)
	for _, l := range c.sum.Lineages {
		newest = max(newest, l.K)
		if l.Seq == 0 {
			continue // reported
		}
		for _, text := range s.compare(l.Lineage, l.Seq, l.Tail, l.Head) {
			c.add(Finding{Kind: Older, Key: snapshot.Prefix(snapshot.KindManifest, l.Lineage), Text: text})
		}
		s.update(l.Lineage, l.Seq, l.Tail, l.Head)
	}
	if newest < s.K {
		c.add(Finding{Kind: Older, Key: snapshot.Key{Kind: snapshot.KindLineage, N: s.K}.String(), Text: fmt.Sprintf("the newest lineage is number %d, this host has seen number %d", newest, s.K)})
	}
	s.changed = s.changed || newest > s.K
	s.K = max(s.K, newest)
	return s.Save(dir)
}
