// Package backuptest makes backup repositories for tests, object by object: any history, in
// any form that a repository may have it.
package backuptest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// Writer is what the notes of the tests name as their writer.
const Writer = "host/1/test"

// Repo is a repository that a test writes.
type Repo struct {
	*backup.Repository
	Keys     *backup.Keys
	Signer   *snapshot.Signer // of the writer
	Keeper   *snapshot.Signer
	Driver   *snapshot.Signer
	Identity age.Identity // of the operator; nil without encryption
	Lineage  snapshot.ID

	t         testing.TB
	epoch     *snapshot.Epoch
	chain     snapshot.Chain
	tip       snapshot.Hash
	manifest  *snapshot.Manifest
	hash      snapshot.Hash // of the manifest
	lines     []snapshot.Segment
	plaintext map[string][]byte // of segments, by raw hash
}

// New makes a repository in an empty store.
func New(t testing.TB, s store.Store, encrypted bool) *Repo {
	t.Helper()
	r := &Repo{t: t, plaintext: map[string][]byte{}}
	var public []string
	for role, signer := range map[snapshot.Role]**snapshot.Signer{snapshot.Writer: &r.Signer, snapshot.Keeper: &r.Keeper, snapshot.Driver: &r.Driver} {
		private, verifier, err := snapshot.GenerateKey("test", role)
		r.must(err)
		*signer, err = snapshot.NewSigner(private)
		r.must(err)
		public = append(public, verifier)
	}
	slices.Sort(public)
	trusted, err := snapshot.NewVerifiers(public...)
	r.must(err)
	o := backup.InitOptions{Name: "test", Signer: r.Signer, Sign: public, Source: snapshot.Source{Kind: "file", Name: "Data.fs"}, Writer: Writer}
	if encrypted {
		id, err := age.GenerateX25519Identity()
		r.must(err)
		r.Identity = id
		o.Recipients = []snapshot.Recipient{id.Recipient()}
	}
	r.Repository, err = backup.Init(t.Context(), backup.Config{Store: s, Trusted: trusted}, o)
	r.must(err)
	if encrypted {
		r.Keys = r.Unlock(r.Identity)
		epochs, err := r.Epochs(t.Context())
		r.must(err)
		r.epoch = epochs[0]
	} else {
		r.Keys = r.Unlock()
	}
	l, err := r.Current(t.Context())
	r.must(err)
	r.Lineage = l.Lineage
	state := r.Now()
	r.manifest, r.hash = state.Manifest, state.Hash
	return r
}

func (r *Repo) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// Now returns the state of the lineage.
func (r *Repo) Now() *backup.State {
	r.t.Helper()
	s, err := r.State(r.t.Context(), r.Lineage, nil)
	r.must(err)
	return s
}

// Put stores an object.
func (r *Repo) Put(key string, b []byte) {
	r.t.Helper()
	r.must(r.Store.Put(r.t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{Create: true}))
}

// Plain returns the plaintext of a segment with all of the transactions after one.
func (r *Repo) Plain(after tid.TID, exactFrom tid.TID, txns []*txn.Transaction) ([]byte, *snapshot.Written) {
	r.t.Helper()
	var b snapshot.Buffer
	w, err := snapshot.NewSegmentWriter(&b, snapshot.Header{Repo: r.Marker.ID, Lineage: r.Lineage, After: after}, snapshot.WriterOptions{Concurrency: 1})
	r.must(err)
	for _, t := range txns {
		r.add(w, t)
	}
	written, err := w.Close(txns[len(txns)-1].TID, exactFrom)
	r.must(err)
	return b.Bytes(), written
}

func (r *Repo) add(w *snapshot.SegmentWriter, t *txn.Transaction) {
	r.t.Helper()
	r.must(w.Begin(t))
	for rec, err := range t.Records {
		r.must(err)
		r.must(w.Record(snapshot.RecordOf(rec, true)))
	}
	r.must(w.End())
}

// seal returns what is stored of a segment.
func (r *Repo) seal(plain []byte, w *snapshot.Written) ([]byte, snapshot.Stored) {
	r.t.Helper()
	var to snapshot.Recipient
	var kid snapshot.KID
	if r.epoch != nil {
		var err error
		to, err = snapshot.ParseRecipient(r.epoch.Recipient)
		r.must(err)
		kid = r.epoch.KID
	}
	var b bytes.Buffer
	st, err := snapshot.Seal(&b, bytes.NewReader(plain), to, kid)
	r.must(err)
	r.plaintext[w.Footer.Raw.String()] = plain
	return b.Bytes(), st
}

// segment stores a segment and returns its line.
func (r *Repo) segment(plain []byte, w *snapshot.Written) snapshot.Segment {
	r.t.Helper()
	b, st := r.seal(plain, w)
	l := w.Line(st)
	l.Key = snapshot.SegmentKey(r.Lineage, l.After, l.Upto, l.SHA256)
	r.Put(l.Key, b)
	return l
}

// tail stores the next tail, with the segment behind its note.
func (r *Repo) tail(t *snapshot.Tail, behind []byte) string {
	r.t.Helper()
	t.Repo, t.Lineage, t.N, t.Prev = r.Marker.ID, r.Lineage, r.chain.N+1, r.chain.Hash
	t.Writer, t.Asof, t.Tip = Writer, time.Now().UTC().Truncate(time.Second), r.tip
	t.MaxOID = max(t.MaxOID, r.maxOID())
	note, err := t.Sign(r.Signer)
	r.must(err)
	key := snapshot.TailKey(r.Lineage, t.N)
	r.Put(key, append(note, behind...))
	r.chain = t.Chain()
	return key
}

func (r *Repo) maxOID() tid.OID {
	oid := r.manifest.MaxOID
	for _, l := range r.lines {
		oid = max(oid, l.MaxOID)
	}
	return oid
}

// Tail stores a tail with a segment of these transactions behind its note. It returns its key.
func (r *Repo) Tail(txns ...*txn.Transaction) string { return r.TailExact(0, txns...) }

// TailExact is Tail with the TID from which it is exact.
func (r *Repo) TailExact(exactFrom tid.TID, txns ...*txn.Transaction) string {
	r.t.Helper()
	plain, w := r.Plain(r.chain.Head, exactFrom, txns)
	b, st := r.seal(plain, w)
	t := &snapshot.Tail{}
	t.SetSegment(w, st)
	r.tip = snapshot.Tip(txns[len(txns)-1])
	key := r.tail(t, b)
	l := w.Line(st)
	l.SetTail(key, t.NoteSize())
	r.lines = append(r.lines, l)
	return key
}

// Listed stores each of the lists as a segment, and a tail that lists them. It returns the keys
// of the segments.
func (r *Repo) Listed(lists ...[]*txn.Transaction) []string {
	r.t.Helper()
	var lines []snapshot.Segment
	after := r.chain.Head
	for _, txns := range lists {
		lines = append(lines, r.segment(r.Plain(after, 0, txns)))
		after = txns[len(txns)-1].TID
		r.tip = snapshot.Tip(txns[len(txns)-1])
	}
	return r.list(lines)
}

func (r *Repo) list(lines []snapshot.Segment) []string {
	r.t.Helper()
	t := &snapshot.Tail{}
	t.SetSegments(lines)
	r.tail(t, nil)
	r.lines = append(r.lines, lines...)
	var keys []string
	for _, l := range lines {
		keys = append(keys, l.Key)
	}
	return keys
}

// Cut stores a transaction in several segments, of each list of records one, and a tail that
// lists them.
func (r *Repo) Cut(t *txn.Transaction, lists ...[]txn.Record) []string {
	r.t.Helper()
	return r.CutAfter(nil, t, lists...)
}

// CutAfter is Cut, with earlier transactions in the first segment.
func (r *Repo) CutAfter(before []*txn.Transaction, t *txn.Transaction, lists ...[]txn.Record) []string {
	r.t.Helper()
	var lines []snapshot.Segment
	for i, records := range lists {
		var b snapshot.Buffer
		h := snapshot.Header{Repo: r.Marker.ID, Lineage: r.Lineage, After: r.chain.Head}
		if i > 0 {
			h.After, h.Continues = t.TID, true
		}
		w, err := snapshot.NewSegmentWriter(&b, h, snapshot.WriterOptions{Concurrency: 1})
		r.must(err)
		if i == 0 {
			for _, t := range before {
				r.add(w, t)
			}
			r.must(w.Begin(t))
		}
		for _, rec := range records {
			r.must(w.Record(snapshot.RecordOf(&rec, true)))
		}
		if i == len(lists)-1 {
			r.must(w.End())
		}
		written, err := w.Close(t.TID, 0)
		r.must(err)
		lines = append(lines, r.segment(b.Bytes(), written))
	}
	r.tip = snapshot.Tip(t)
	return r.list(lines)
}

// Heartbeat stores a tail that says that there is nothing new.
func (r *Repo) Heartbeat() string {
	r.t.Helper()
	return r.tail(&snapshot.Tail{After: r.chain.Head, Upto: r.chain.Head}, nil)
}

// Manifest stores the next manifest, for all tails. With merge the segments since the last one
// are written again as one; otherwise those behind tails stay there. With page all segments
// before it are in catalog pages.
func (r *Repo) Manifest(merge, page bool) string {
	r.t.Helper()
	s := r.Now()
	m := *s.Manifest
	m.Seq, m.Prev, m.Tail, m.Chain = m.Seq+1, s.Hash, r.chain.N, r.chain.Hash
	m.Created = time.Now().UTC().Truncate(time.Second)
	m.Asof, m.Tip, m.Holes = m.Created, r.tip, s.Holes()
	m.Items = slices.Clone(m.Items)
	if page {
		var old []snapshot.Segment
		var items []snapshot.Item
		for _, i := range m.Items {
			if i.Segment != nil && i.Segment.Offset() == 0 && i.Segment.Clip == 0 {
				old = append(old, *i.Segment)
				continue
			}
			// Those behind tails, and those of a fork, stay as they are.
			items, old = append(r.pages(items, old), i), nil
		}
		m.Items = r.pages(items, old)
	}
	lines := r.lines
	if merge && len(lines) > 0 {
		var b snapshot.Buffer
		w, err := snapshot.NewSegmentWriter(&b, snapshot.Header{Repo: r.Marker.ID, Lineage: r.Lineage, After: lines[0].After}, snapshot.WriterOptions{Concurrency: 1})
		r.must(err)
		for _, l := range lines {
			plain := r.plaintext[l.Raw.String()]
			seg, err := snapshot.NewReader(bytes.NewReader(plain), int64(len(plain)), l.Key)
			r.must(err)
			r.must(w.Copy(seg))
		}
		written, err := w.Close(r.chain.Head, 0)
		r.must(err)
		lines = []snapshot.Segment{r.segment(b.Bytes(), written)}
	}
	for i := range lines {
		m.Items = append(m.Items, snapshot.Item{Segment: &lines[i]})
	}
	r.lines = nil
	m.SumUp()
	m.MaxOID = max(m.MaxOID, s.MaxOID())
	b, err := m.Sign(r.Signer)
	r.must(err)
	key := snapshot.ManifestKey(r.Lineage, m.Seq)
	r.Put(key, b)
	r.manifest, r.hash = &m, snapshot.Sum(b)
	return key
}

// pages stores catalog pages of segments, and adds their lines.
func (r *Repo) pages(items []snapshot.Item, list []snapshot.Segment) []snapshot.Item {
	r.t.Helper()
	for c := range slices.Chunk(list, snapshot.PageSegments) {
		if c[len(c)-1].Upto == c[0].After || c[0].After == c[0].Upto { // parts of a transaction alone are no page
			for i := range c {
				items = append(items, snapshot.Item{Segment: &c[i]})
			}
			continue
		}
		b, l, err := snapshot.NewPage(r.Lineage, c)
		r.must(err)
		r.Put(l.Key, b)
		items = append(items, snapshot.Item{Page: &l})
	}
	return items
}

// ForkAt makes a lineage that has the history up to a transaction by reference to the present one,
// and goes on with it.
func (r *Repo) ForkAt(t *txn.Transaction) *snapshot.Lineage {
	r.t.Helper()
	current, err := r.Current(r.t.Context())
	r.must(err)
	m, err := r.Fork(r.t.Context(), r.Now(), snapshot.NewID(), t.TID, snapshot.Tip(t))
	r.must(err)
	m.Writer = Writer
	b, err := m.Sign(r.Signer)
	r.must(err)
	r.Put(snapshot.ManifestKey(m.Lineage, 1), b)
	l := &snapshot.Lineage{Repo: r.Marker.ID, K: current.K + 1, Lineage: m.Lineage, Parent: r.Lineage, At: t.TID, Created: m.Created, Why: "fork"}
	r.must(r.NewLineage(r.t.Context(), r.Signer, l))
	r.Lineage, r.chain, r.tip, r.lines = m.Lineage, snapshot.Chain{Head: t.TID}, m.Tip, nil
	r.manifest, r.hash = m, snapshot.Sum(b)
	return l
}

// ForkWithin stores transactions of which the last ones are in a segment together with later ones,
// in a form that rnd chooses, and makes a lineage that ends between them.
func (r *Repo) ForkWithin(rnd *rand.Rand, before []*txn.Transaction) *snapshot.Lineage {
	r.t.Helper()
	last := before[len(before)-1]
	// Another history: the same objects at what may be the same TIDs, some of them copies.
	var later []*txn.Transaction
	revision := map[tid.OID]tid.TID{}
	for i := range 3 {
		id := last.TID + tid.TID(1+i)
		var records []txn.Record
		for oid := range tid.OID(5) {
			rec := txn.Record{OID: oid, Data: fmt.Appendf(nil, "not of this history: %v", id)}
			if from, ok := revision[oid]; ok && rnd.IntN(2) == 0 {
				rec.DataTID = from
			}
			records = append(records, rec)
		}
		for _, rec := range records {
			revision[rec.OID] = id
		}
		later = append(later, Txn(id, records...))
	}
	form := rnd.IntN(4)
	switch form {
	case 0:
		r.Tail(append(slices.Clone(before), later...)...)
	case 1:
		r.Listed(append(slices.Clone(before), later[:2]...), later[2:])
	case 2: // the last transaction of the segment goes on in others
		var records []txn.Record
		for rec := range later[0].Records {
			records = append(records, *rec)
		}
		r.CutAfter(before, later[0], records[:2], records[2:3], records[3:])
		r.Tail(later[1:]...)
	default:
		r.Tail(before...)
		r.Tail(later...)
		r.Manifest(true, false)
	}
	if form < 2 && rnd.IntN(2) == 0 {
		r.Manifest(false, false)
	}
	return r.ForkAt(last)
}

// Txn returns a transaction with these records, whose TIDs are set.
func Txn(id tid.TID, records ...txn.Record) *txn.Transaction {
	for i := range records {
		records[i].TID = id
	}
	return &txn.Transaction{TID: id, Status: txn.Committed, User: []byte("user"), Description: []byte("tests"), Records: txn.Slice(records)}
}

// History is a history in memory.
type History []*txn.Transaction

// Transactions implements [txn.History].
func (h History) Transactions(_ context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for _, t := range h {
			if t.TID > after && t.TID <= upTo && !yield(t, nil) {
				return
			}
		}
	}
}

// LastTID implements [txn.History].
func (h History) LastTID(context.Context) (tid.TID, error) {
	if len(h) == 0 {
		return tid.Zero, nil
	}
	return h[len(h)-1].TID, nil
}

// ReadFile reads a Data.fs into memory.
func ReadFile(t testing.TB, path string) History {
	t.Helper()
	f, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list History
	for tr, err := range f.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		c := *tr
		c.User, c.Description, c.Extension = bytes.Clone(tr.User), bytes.Clone(tr.Description), bytes.Clone(tr.Extension)
		var records []txn.Record
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			r := *rec
			r.Data = bytes.Clone(rec.Data) // what is empty stays so, and is not nil
			records = append(records, r)
		}
		c.Records = txn.Slice(records)
		list = append(list, &c)
	}
	return list
}
