package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

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
	c := newChecker(ctx, cfg, o.Report)
	if err := c.check(o.StateDir); err != nil {
		return nil, err
	}
	c.sum.Damage, c.sum.Warnings = c.damage, c.warnings
	return &c.sum, nil
}

// checker is a check. A repository of some years has tens of millions of objects, most of them
// superseded: of those only numbers are kept.
type checker struct {
	reporter
	ctx    context.Context
	cfg    backup.Config
	repo   snapshot.ID
	age    bool
	few    map[string]bool                  // keys of the kinds of which there are few
	kinds  map[snapshot.Kind][]snapshot.Key // the same, ascending by key
	seqs   map[snapshot.ID][]int64          // of manifests
	after  map[snapshot.ID]int64            // the tails after this one are needed
	needed map[string]*want                 // other objects of lineages that are needed
	epochs map[snapshot.KID]bool            // that have a note
	used   map[snapshot.KID]string
	sum    Summary
}

// want is what an object has to be.
type want struct {
	size        int64 // -1: any
	after, upto tid.TID
	missing     string // what is said if it is not there; "": that was said already
	warning     bool   // it is not needed to restore
}

func newChecker(ctx context.Context, cfg backup.Config, report func(Finding)) *checker {
	return &checker{
		ctx: ctx, cfg: cfg, reporter: reporter{report: report}, few: map[string]bool{}, kinds: map[snapshot.Kind][]snapshot.Key{},
		seqs: map[snapshot.ID][]int64{}, after: map[snapshot.ID]int64{}, needed: map[string]*want{},
	}
}

func (c *checker) check(stateDir string) error {
	var before *Seen
	if stateDir != "" {
		var err error
		if before, err = readSeen(stateDir); err != nil {
			return err
		}
	}
	if err := c.list(); err != nil {
		return err
	}
	if ok, err := c.marker(); err != nil || !ok {
		return err
	}
	for _, f := range []func() error{c.keys, c.lineages, c.objects, c.doomed, c.versions} {
		if err := f(); err != nil {
			return err
		}
	}
	for _, kid := range slices.Sorted(maps.Keys(c.used)) {
		if !c.epochs[kid] {
			c.add(Finding{Kind: Missing, Key: snapshot.Key{Kind: snapshot.KindEpoch, N: int64(kid)}.String(), Text: fmt.Sprintf("the epoch with which %s is encrypted has no note", c.used[kid])})
		}
	}
	// A writer may have added some meanwhile.
	c.sum.Spare, c.sum.SpareSize = max(c.sum.Spare, 0), max(c.sum.SpareSize, 0)
	if stateDir == "" {
		return nil
	}
	return c.seen(stateDir, before.of(c.repo))
}

// list reads the names of all objects.
func (c *checker) list() error {
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
		switch k.Kind {
		case snapshot.KindMarker, snapshot.KindEpoch, snapshot.KindWrap, snapshot.KindLineage, snapshot.KindDoom, snapshot.KindVoid:
			c.few[info.Key] = true
			c.kinds[k.Kind] = append(c.kinds[k.Kind], k)
		case snapshot.KindManifest:
			c.seqs[k.Lineage] = append(c.seqs[k.Lineage], k.N)
			fallthrough
		case snapshot.KindSegment, snapshot.KindPage, snapshot.KindTail, snapshot.KindRun:
			// Those that turn out to be needed are taken away again.
			c.spare(1, info.Size)
		}
	}
	return c.ctx.Err()
}

func (c *checker) spare(n, size int64) {
	c.sum.Spare += n
	c.sum.SpareSize += size
}

// want notes that an object is needed.
func (c *checker) want(key string, w want) {
	if c.needed[key] == nil {
		c.needed[key] = &w
	}
}

// isNeeded reports whether something is lost without an object.
func (c *checker) isNeeded(key string) bool {
	if c.needed[key] != nil {
		return true
	}
	k, err := snapshot.ParseKey(key)
	if err != nil || k.Kind != snapshot.KindTail {
		return false
	}
	after, ok := c.after[k.Lineage]
	return ok && k.N > after
}

// objects looks whether the needed objects are there, with their sizes. The list of each kind and
// lineage is read once more, beside the sorted keys.
func (c *checker) objects() error {
	var alone []string // are asked for one by one
	keys := slices.Sorted(maps.Keys(c.needed))
	for len(keys) > 0 {
		k, err := snapshot.ParseKey(keys[0])
		if err != nil {
			return err // a note that verifies has none
		}
		prefix := snapshot.Prefix(k.Kind, k.Lineage)
		n := 0
		for n < len(keys) && strings.HasPrefix(keys[n], prefix) {
			n++
		}
		group := keys[:n]
		keys = keys[n:]
		switch k.Kind {
		case snapshot.KindTail, snapshot.KindManifest: // there are many others
			alone = append(alone, group...)
			continue
		}
		for info, err := range c.cfg.Store.List(c.ctx, prefix, "") {
			if err != nil {
				return err
			}
			for len(group) > 0 && group[0] < info.Key {
				alone = append(alone, group[0])
				group = group[1:]
			}
			if len(group) == 0 {
				break
			}
			if group[0] == info.Key {
				c.there(info)
				group = group[1:]
			}
		}
		alone = append(alone, group...)
	}
	var g errgroup.Group
	g.SetLimit(16)
	var m sync.Mutex
	found := map[string]store.Info{}
	for _, key := range alone {
		g.Go(func() error {
			for info, err := range c.cfg.Store.List(c.ctx, key, "") {
				if err != nil {
					return err
				}
				if info.Key == key {
					m.Lock()
					found[key] = info
					m.Unlock()
				}
				break
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, key := range alone {
		if info, ok := found[key]; ok {
			c.there(info)
		} else if w := c.needed[key]; w.missing != "" {
			c.add(Finding{Kind: Missing, Warning: w.warning, Key: key, After: w.after, Upto: w.upto, Text: w.missing})
		}
	}
	return c.ctx.Err()
}

// there compares a needed object with what it has to be.
func (c *checker) there(info store.Info) {
	c.spare(-1, -info.Size)
	if w := c.needed[info.Key]; w.size >= 0 && w.size != info.Size {
		c.add(Finding{Kind: Damaged, Key: info.Key, After: w.after, Upto: w.upto, Text: fmt.Sprintf("%d bytes, want %d", info.Size, w.size)})
	}
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
	if !c.few[snapshot.MarkerKey] {
		if len(c.few) == 0 && c.sum.Spare == 0 {
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
		if !c.few[first] {
			// Later ones may take its place, after a rotation.
			c.add(Finding{Kind: Missing, Warning: wraps[k.N], Key: first, Text: fmt.Sprintf("the first wrap of the key of epoch %v is missing", e.KID)})
			continue
		}
		if b, err = c.read(first, maxNote); err != nil {
			return err
		}
		if b != nil && snapshot.Sum(b) != e.Wrap {
			c.add(Finding{Kind: Damaged, Warning: c.count(k.N) > 1, Key: first, Text: fmt.Sprintf("its SHA-256 is %v, the note of the epoch says %v", snapshot.Sum(b), e.Wrap)})
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
	list := c.seqs[l.Lineage]
	slices.Sort(list)
	if len(list) == 0 {
		c.add(Finding{Kind: Missing, Key: snapshot.Prefix(snapshot.KindManifest, l.Lineage), Text: fmt.Sprintf("lineage %v has no manifest", l.Lineage)})
		return nil, snapshot.Chain{}, nil
	}
	var prev snapshot.Hash
	var before *snapshot.Manifest
	var newest *snapshot.Manifest
	var superseded []Finding // of the manifests before
	last := list[0] - 1      // of the one before
	for chunk := range slices.Chunk(list, 64) {
		var keys []string
		for _, seq := range chunk {
			keys = append(keys, snapshot.ManifestKey(l.Lineage, seq))
		}
		objects, err := c.readAll(keys, maxNote)
		if err != nil {
			return nil, snapshot.Chain{}, err
		}
		for i, b := range objects {
			key, seq := keys[i], chunk[i]
			if seq != last+1 {
				// Superseded ones go, but those that proofs name; a copy has only some from the first on.
				before, prev = nil, snapshot.Hash{}
				c.later(superseded, nil)
				superseded = nil
			}
			newest, last = nil, seq
			if b == nil {
				before, prev = nil, snapshot.Hash{}
				continue
			}
			m, err := snapshot.OpenManifest(b, key, c.repo, c.cfg.Trusted)
			if err != nil {
				kind, ok := kindOf(err)
				if !ok {
					kind = Damaged
				}
				superseded = append(superseded, Finding{Kind: kind, Key: key, Err: err})
				before, prev = nil, snapshot.Sum(b)
				continue
			}
			c.later(superseded, func() bool { return m.Prev == prev })
			superseded = nil
			switch {
			case prev != snapshot.Hash{} && m.Prev != prev:
				c.add(Finding{Kind: Broken, Key: key, Text: fmt.Sprintf("prev is %v, manifest %d has %v", m.Prev, seq-1, prev)})
			case before != nil && (m.Head < before.Head || m.Tail < before.Tail):
				c.add(Finding{Kind: Broken, Key: key, Text: fmt.Sprintf("it ends with %v, tail %d; manifest %d before it ended with %v, tail %d", m.Head, m.Tail, seq-1, before.Head, before.Tail)})
			}
			newest, before, prev = m, m, snapshot.Sum(b)
		}
	}
	c.later(superseded, nil)
	c.want(snapshot.ManifestKey(l.Lineage, list[len(list)-1]), want{size: -1})
	if newest == nil {
		return nil, snapshot.Chain{}, nil // reported
	}
	sum.Seq, sum.Tail = newest.Seq, newest.Tail
	return newest, newest.ChainEnd(), nil
}

// later reports what was found in manifests before one, or before a hole. One that names the last of them as it is,
// damaged, takes their place: only a repair writes that.
func (c *checker) later(list []Finding, named func() bool) {
	for _, f := range list {
		if named != nil && named() {
			f.Warning = true
			f.Text = f.Err.Error() + "; a later manifest takes its place"
		}
		c.add(f)
	}
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
		c.want(p.Key, want{size: -1})
		b, info, err := store.ReadAll(c.ctx, c.cfg.Store, p.Key, snapshot.MaxPage)
		if kind, ok := kindOf(err); ok || err != nil && info.Size > snapshot.MaxPage {
			text := ""
			if kind == Missing {
				text = fmt.Sprintf("the catalog page of %d segments is missing", p.N)
			} else {
				kind = Damaged
			}
			c.add(Finding{Kind: kind, Key: p.Key, After: p.After, Upto: p.Upto, Text: text, Err: err})
			return nil
		}
		if err != nil {
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
	c.want(l.Key, want{size: l.Offset() + l.Bytes, after: l.After, upto: l.End(), missing: "the segment is missing"})
	sum.Segments++
	sum.Bytes += l.Bytes
	if l.KID != 0 {
		c.used[l.KID] = l.Key
	}
	if (l.KID != 0) != c.age {
		c.add(Finding{Kind: Damaged, Key: l.Key, After: l.After, Upto: l.End(), Text: fmt.Sprintf("epoch %v, but the marker says encryption %v", l.KID, c.age)})
	}
}

func (c *checker) reserved(r snapshot.Reserved) {
	// An index run carries no truth.
	c.want(r.Key, want{size: -1, warning: r.Kind == snapshot.ReservedRun, missing: "an object that a line of kind " + r.Kind + " refers to is missing"})
}

// tails verifies the tails after the newest manifest. Those that it sums up are not
// needed any more, but for segments behind them.
func (c *checker) tails(l *snapshot.Lineage, m *snapshot.Manifest, at snapshot.Chain, sum *Lineage) error {
	from := "" // all, if no manifest verifies
	if m != nil {
		from = snapshot.TailKey(l.Lineage, at.N)
	}
	c.after[l.Lineage] = at.N
	known := m != nil // whether at is the tail before
	unbroken := known // whether all up to at is good
	look := func(chunk []store.Info) error {
		objects := make([][]byte, len(chunk))
		var g errgroup.Group
		g.SetLimit(16)
		for i, info := range chunk {
			c.spare(-1, -info.Size)
			g.Go(func() (err error) {
				objects[i], err = c.tailNote(info)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for i, info := range chunk {
			key := info.Key
			k, err := snapshot.ParseKey(key)
			if err != nil {
				return err // not put into the chunk
			}
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
			c.tail(t, info, sum)
		}
		return nil
	}
	var chunk []store.Info
	for info, err := range c.cfg.Store.List(c.ctx, snapshot.Prefix(snapshot.KindTail, l.Lineage), from) {
		if err != nil {
			return err
		}
		if _, err := snapshot.ParseKey(info.Key); err != nil {
			continue // reported
		}
		if chunk = append(chunk, info); len(chunk) == 64 {
			if err := look(chunk); err != nil {
				return err
			}
			chunk = chunk[:0]
		}
	}
	return look(chunk)
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
func (c *checker) tailNote(info store.Info) ([]byte, error) {
	key := info.Key
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
func (c *checker) tail(t *snapshot.Tail, info store.Info, sum *Lineage) {
	key := info.Key
	for _, r := range t.Reserved {
		c.reserved(r)
	}
	for i := range t.Segments {
		c.segment(&t.Segments[i], sum)
	}
	want := t.NoteSize() + t.Bytes
	if info.Size != want {
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
	done := map[string]bool{} // a list that was carried out is named by a later one
	for _, k := range slices.Backward(c.kinds[snapshot.KindDoom]) {
		key := k.String()
		void := k
		void.Kind = snapshot.KindVoid
		cancelled := false
		if c.few[void.String()] {
			b, err := c.read(void.String(), maxNote)
			if err != nil {
				return err
			}
			var v snapshot.Void
			cancelled = b != nil && c.opened(void.String(), snapshot.Open(b, void.String(), c.repo, &v, c.cfg.Trusted))
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
		for _, other := range d.Done {
			done[other] = true
		}
		if cancelled || done[key] {
			continue // what is there still was spared
		}
		for _, o := range d.Objects {
			if c.isNeeded(o.Key) {
				c.add(Finding{Kind: Doomed, Warning: true, Key: o.Key, Text: fmt.Sprintf("it is needed, and named by the doom list %s", key)})
			}
		}
	}
	return nil
}

// versions looks for keys under which several objects were stored, where the store keeps them.
func (c *checker) versions() error {
	last, n := "", 0 // versions of an object come one after the other
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
		if v.Key != last {
			last, n = v.Key, 0
		}
		switch {
		case v.Deleted && v.Latest && c.isNeeded(v.Key):
			c.add(Finding{Kind: Overwritten, Key: v.Key, Text: "it was deleted while it was needed; an older version may be there still"})
		case v.Deleted:
		default:
			if n++; n == 2 {
				// Which one is right, its hash or signature tells when it is read.
				c.add(Finding{Kind: Overwritten, Warning: !c.isNeeded(v.Key), Key: v.Key, Text: "another object was stored under this key before: keys are written once"})
			}
		}
	}
	return nil
}

// seen compares the newest states with what this host had seen before they were read, and remembers them.
func (c *checker) seen(dir string, before *Seen) error {
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
		for _, text := range before.compare(l.Lineage, l.Seq, l.Tail, l.Head) {
			c.add(Finding{Kind: Older, Key: snapshot.Prefix(snapshot.KindManifest, l.Lineage), Text: text})
		}
		s.update(l.Lineage, l.Seq, l.Tail, l.Head)
	}
	if newest < before.K {
		c.add(Finding{Kind: Older, Key: snapshot.Key{Kind: snapshot.KindLineage, N: before.K}.String(), Text: fmt.Sprintf("the newest lineage is number %d, this host has seen number %d", newest, before.K)})
	}
	s.changed = s.changed || newest > s.K
	s.K = max(s.K, newest)
	return s.Save(dir)
}
