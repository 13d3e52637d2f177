package feedtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Database is a source that the suite fills.
type Database interface {
	// Append commits transactions, each with its TID and with links to earlier data.
	Append(t *testing.T, list ...Transaction)
	// Pack removes what was superseded at a TID, and returns when that is done. It returns the
	// TID of the transaction that ordered it, without user and records and with this
	// description; Zero if there is none.
	Pack(t *testing.T, upTo tid.TID) (order tid.TID, description string)
	// Open opens a feed, which the suite closes.
	Open(t *testing.T) feed.Feed
}

// Options say what a source cannot do.
type Options struct {
	NoEmptyRecords bool // records of no bytes
	NoPack         bool // packs, while its history goes on
	NoChecks       bool // objects that were only checked
	Seeds          int  // random histories with packs; default: 1
}

// Run checks what every [feed.Feed] promises, on empty databases made by create.
func Run(t *testing.T, o Options, create func(t *testing.T) Database) {
	for name, test := range map[string]func(*testing.T, Options, Database){
		"Empty": testEmpty, "History": testHistory, "Random": testRandom, "WhileReading": testWhileReading,
		"Context": testContext, "Mark": testMark,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, o, create(t))
		})
	}
	if !o.NoPack {
		RunPacks(t, o, create)
	}
}

// RunPacks is the part of [Run] about packs.
func RunPacks(t *testing.T, o Options, create func(t *testing.T) Database) {
	t.Run("Deletions", func(t *testing.T) {
		t.Parallel()
		testDeletions(t, o, create(t))
	})
	for seed := range max(1, o.Seeds) {
		t.Run(fmt.Sprintf("Packs/%d", seed), func(t *testing.T) {
			t.Parallel()
			testPacks(t, o, create(t), uint64(seed))
		})
	}
}

// rig is a database beside its model.
type rig struct {
	Database
	t     *testing.T
	o     Options
	model *Memory
	last  tid.TID
	rnd   *rand.Rand
}

func newRig(t *testing.T, o Options, db Database, seed uint64) *rig {
	return &rig{Database: db, t: t, o: o, model: New("model"), rnd: rand.New(rand.NewPCG(seed, 2))}
}

// commit commits transactions to both. Those without a TID get one.
func (r *rig) commit(list ...Transaction) tid.TID {
	r.t.Helper()
	for i := range list {
		if list[i].TID == tid.Zero {
			list[i].TID = max(first, r.last+1<<26)
		}
		if r.o.NoChecks {
			list[i].Checked = nil
		}
		r.last = list[i].TID
		r.model.Commit(list[i])
		full := r.model.history[len(r.model.history)-1].full // with data of links
		list[i].Records = full
	}
	r.Append(r.t, list...)
	return r.last
}

// pause lets ten minutes pass: storages keep deletions for a while.
func (r *rig) pause() { r.last += 10 << 32 }

// pack packs both, some time later.
func (r *rig) pack(upTo tid.TID) {
	r.t.Helper()
	r.pause()
	r.commit(Transaction{Description: "later"})
	order, description := r.Pack(r.t, upTo)
	if order != tid.Zero {
		r.model.Commit(Transaction{TID: order, Description: description})
		r.last = order
	}
	r.model.Pack(upTo)
}

func (r *rig) open() feed.Feed {
	r.t.Helper()
	f := r.Open(r.t)
	r.t.Cleanup(func() {
		if err := f.Close(); err != nil {
			r.t.Errorf("Close: %v", err)
		}
	})
	return f
}

// fill commits one transaction of each kind.
func (r *rig) fill() {
	a := r.commit(Transaction{User: "admin", Description: "first", Records: []txn.Record{{OID: 0, Data: []byte("root")}, {OID: 7, Data: []byte("seven")}}})
	b := r.commit(Transaction{Description: "not sorted", Extension: "}q\x01X\x01\x00\x00\x00aq\x02K\x01s.", Records: []txn.Record{
		{OID: 9, Data: bytes.Repeat([]byte("nine "), 30_000)}, {OID: 3, Data: []byte("three")}, {OID: 5, Data: []byte("five")},
	}})
	r.commit(Transaction{Description: "nothing"})
	c := r.commit(Transaction{Records: []txn.Record{{OID: 3, Data: []byte("three, changed")}}, Checked: []tid.OID{0, 5}})
	d := r.commit(Transaction{Description: "undo", Records: []txn.Record{{OID: 3, DataTID: b}}})
	r.commit(Transaction{Description: "redo", Records: []txn.Record{{OID: 3, DataTID: c}}})
	r.commit(Transaction{Description: "undo of an undo", Records: []txn.Record{{OID: 3, DataTID: d}}})
	e := r.commit(Transaction{Description: "deletion", Records: []txn.Record{{OID: 7}}})
	r.commit(Transaction{Records: []txn.Record{{OID: 7, DataTID: a}}})
	r.commit(Transaction{Description: "copy of a deletion", Records: []txn.Record{{OID: 7, DataTID: e}}})
	if !r.o.NoEmptyRecords {
		f := r.commit(Transaction{Description: "no bytes", Records: []txn.Record{{OID: 11, Data: []byte{}}}})
		r.commit(Transaction{Description: "more", Records: []txn.Record{{OID: 11, Data: []byte("eleven")}}})
		r.commit(Transaction{Description: "no bytes again", Records: []txn.Record{{OID: 11, DataTID: f}}})
	}
}

// lastOf calls Last, and checks it.
func (r *rig) lastOf(f feed.Feed) tid.TID {
	r.t.Helper()
	before := time.Now()
	last, at, err := f.Last(r.t.Context())
	if err != nil {
		r.t.Fatalf("Last: %v", err)
	}
	if last < r.model.last {
		r.t.Fatalf("Last = %v, %v was committed before", last, r.model.last)
	}
	if at.Before(before.Add(-time.Second)) || at.After(time.Now()) {
		r.t.Errorf("Last is of %v, it was asked at %v", at, before)
	}
	return last
}

// read reads a range and compares it with the model, exactly.
func (r *rig) read(f feed.Feed, after, upTo tid.TID) {
	r.t.Helper()
	i := 0
	history := r.model.history
	for i < len(history) && history[i].TID <= after {
		i++
	}
	for got, err := range f.Read(r.t.Context(), after, upTo) {
		if err != nil {
			r.t.Fatalf("Read(%v, %v): %v", after, upTo, err)
		}
		if i == len(history) || history[i].TID > upTo {
			r.t.Fatalf("Read(%v, %v): %v is one too many", after, upTo, got.TID)
		}
		want := history[i]
		i++
		sameMetadata(r.t, got, want)
		for range 2 {
			n := 0
			for rec, err := range got.Records {
				if err != nil {
					r.t.Fatalf("transaction %v: %v", got.TID, err)
				}
				if n == len(want.left) {
					r.t.Fatalf("transaction %v: the record of %v is one too many", got.TID, rec.OID)
				}
				if w := want.left[n]; !same(*rec, w) {
					r.t.Errorf("transaction %v: record %+v, want %+v", got.TID, *rec, w)
				}
				n++
			}
			if n != len(want.left) {
				r.t.Errorf("transaction %v has %d records, want %d", got.TID, n, len(want.left))
			}
		}
	}
	if i < len(history) && history[i].TID <= upTo {
		r.t.Errorf("Read(%v, %v) ended before %v", after, upTo, history[i].TID)
	}
}

func same(a, b txn.Record) bool {
	return a.OID == b.OID && a.TID == b.TID && a.DataTID == b.DataTID && sameData(a.Data, b.Data)
}

func sameData(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

func sameMetadata(t *testing.T, got *txn.Transaction, want *transaction) {
	t.Helper()
	if got.TID != want.TID || !bytes.Equal(got.User, want.User) || !bytes.Equal(got.Description, want.Description) || !bytes.Equal(got.Extension, want.Extension) {
		t.Errorf("transaction %v %q %q %q, want %v %q %q %q", got.TID, got.User, got.Description, got.Extension,
			want.TID, want.User, want.Description, want.Extension)
	}
	if got.Status != txn.Committed && got.Status != txn.Packed {
		t.Errorf("transaction %v has status %q", got.TID, got.Status)
	}
}

func testEmpty(t *testing.T, o Options, db Database) {
	r := newRig(t, o, db, 1)
	f := r.open()
	if s := f.Source(); s.Kind == "" || s.Name == "" || (s.Kind == feed.KindFile) != (s.NP == 0) {
		t.Errorf("Source = %+v", s)
	}
	if last := r.lastOf(f); last != tid.Zero {
		t.Errorf("Last = %v of an empty database", last)
	}
	r.read(f, 0, 0)
	if p, err := f.Packed(t.Context()); p != tid.Zero || err != nil {
		t.Errorf("Packed = %v, %v", p, err)
	}
	if _, err := f.Info(t.Context(), first); !errors.Is(err, txn.ErrNotFound) {
		t.Errorf("Info of no transaction: %v", err)
	}
	r.commit(Transaction{Records: []txn.Record{{OID: 0, Data: []byte("root")}}})
	if err := f.Wait(t.Context()); err != nil {
		t.Errorf("Wait: %v", err)
	}
	r.read(f, 0, r.lastOf(f))
}

func testHistory(t *testing.T, o Options, db Database) {
	r := newRig(t, o, db, 1)
	r.fill()
	f := r.open()
	r.checkHistory(f)
	if p, err := f.Packed(t.Context()); p != tid.Zero || err != nil {
		t.Errorf("Packed = %v, %v", p, err)
	}
	if last, _, err := f.Last(t.Context()); last != r.last || err != nil {
		t.Errorf("Last = %v, %v, want %v", last, err, r.last)
	}
}

// checkHistory compares all that is not packed.
func (r *rig) checkHistory(f feed.Feed) {
	t, ctx := r.t, r.t.Context()
	last := r.lastOf(f)
	r.read(f, 0, last)
	n := len(r.model.history)
	middle, third := r.model.history[n/2].TID, r.model.history[n/3].TID
	for _, b := range [][2]tid.TID{{third, middle}, {third - 1, third}, {third, third}, {middle, last}, {last - 1, last}, {third + 1, third + 2}} {
		r.read(f, b[0], b[1])
	}
	for range f.Read(ctx, 0, last) {
		break // must be possible
	}
	for tr, err := range f.Read(ctx, 0, last) { // without their records, or not all of them
		if err != nil {
			t.Fatal(err)
		}
		for range tr.Records {
			break
		}
	}
	for _, c := range r.model.history {
		got, err := f.Info(ctx, c.TID)
		if err != nil {
			t.Errorf("Info(%v): %v", c.TID, err)
			continue
		}
		sameMetadata(t, got, c)
		for _, rec := range c.full {
			for at, want := range map[tid.TID]bool{c.TID: true, c.TID + 1: false} {
				if has, err := f.Has(ctx, rec.OID, at); has != want || err != nil {
					t.Errorf("Has(%v, %v) = %v, %v, want %v", rec.OID, at, has, err, want)
				}
			}
		}
		if has, err := f.Has(ctx, 12345, c.TID); has || err != nil {
			t.Errorf("Has of an unknown object = %v, %v", has, err)
		}
	}
	for _, at := range []tid.TID{1, third + 1, last + 1, tid.Max} {
		if tr, err := f.Info(ctx, at); !errors.Is(err, txn.ErrNotFound) {
			t.Errorf("Info(%v) = %v, %v, want ErrNotFound", at, tr, err)
		}
	}
}

func testRandom(t *testing.T, o Options, db Database) {
	r := newRig(t, o, db, 1)
	for range 150 {
		r.commit(r.random(r.rnd, 30))
	}
	r.checkHistory(r.open())
}

// random returns a transaction on one of n objects, which links to what no pack has
// removed.
func (r *rig) random(rnd *rand.Rand, n int) Transaction {
	t := Transaction{Description: fmt.Sprint(rnd.IntN(1000))}
	for range rnd.IntN(5) {
		oid := tid.OID(rnd.IntN(n))
		if slices.ContainsFunc(t.Records, func(r txn.Record) bool { return r.OID == oid }) || slices.Contains(t.Checked, oid) {
			continue
		}
		var before []txn.Record
		for _, c := range r.model.history {
			for _, rec := range c.left {
				if rec.OID == oid {
					before = append(before, rec)
				}
			}
		}
		rec := txn.Record{OID: oid}
		exists := len(before) > 0 && before[len(before)-1].Data != nil
		switch k := rnd.IntN(10); {
		case k < 2 && exists: // deleted
		case k < 4 && exists:
			t.Checked = append(t.Checked, oid)
			continue
		case k < 6 && len(before) > 1:
			rec.DataTID = before[rnd.IntN(len(before)-1)].TID
		case k == 6 && !r.o.NoEmptyRecords:
			rec.Data = []byte{}
		default:
			rec.Data = make([]byte, 1+rnd.IntN(2000))
			for j := range rec.Data {
				rec.Data[j] = byte(rnd.IntN(4))
			}
		}
		t.Records = append(t.Records, rec)
	}
	return t
}

func testWhileReading(t *testing.T, o Options, db Database) {
	r := newRig(t, o, db, 1)
	r.fill()
	f := r.open()
	upTo := r.lastOf(f)
	n := 0
	for tr, err := range f.Read(t.Context(), 0, upTo) {
		if err != nil {
			t.Fatal(err)
		}
		if tr.TID > upTo {
			t.Fatalf("Read up to %v gives %v", upTo, tr.TID)
		}
		n++
		r.commit(Transaction{Records: []txn.Record{{OID: 3, Data: fmt.Appendf(nil, "%d", n)}}})
		for _, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := len(r.model.history) - n; n != want {
		t.Errorf("%d transactions were read, want %d", n, want)
	}
	if err := f.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := r.lastOf(f)
	r.read(f, upTo, last)
	r.read(f, 0, last)

	// A commit ends a wait that is under way, again and again.
	for i := range 3 {
		waited := make(chan error, 1)
		go func() {
			for {
				if err := f.Wait(t.Context()); err != nil {
					waited <- err
					return
				}
				if now, _, err := f.Last(t.Context()); err != nil || now > last {
					waited <- err
					return
				}
			}
		}()
		r.commit(Transaction{Records: []txn.Record{{OID: 3, Data: fmt.Appendf(nil, "again %d", i)}}})
		if err := <-waited; err != nil {
			t.Fatalf("Wait: %v", err)
		}
		next := r.lastOf(f)
		r.read(f, last, next)
		last = next
	}
}

func testContext(t *testing.T, o Options, db Database) {
	r := newRig(t, o, db, 1)
	r.fill()
	f := r.open()
	last := r.lastOf(f)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	for {
		if err := f.Wait(ctx); err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Wait until the context ends: %v", err)
			}
			break
		}
	}
	ended := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a context that has ended: %v", what, err)
		}
	}
	ended("Wait", f.Wait(ctx))
	var err error
	for _, err = range f.Read(ctx, 0, last) {
		if err != nil {
			break
		}
	}
	ended("Read", err)

	// It ends in the middle too.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err = range f.Read(ctx, 0, last) {
		n++
		cancel()
		if err != nil {
			break
		}
	}
	ended("Read", err)
	if n < 2 {
		t.Error("Read gave nothing before its context ended")
	}
	r.read(f, 0, last) // and all goes on
}

func testMark(t *testing.T, o Options, db Database) {
	r := newRig(t, o, db, 1)
	r.fill()
	f := r.Open(t)
	last := r.lastOf(f)
	r.read(f, 0, last)
	mark, err := f.Mark(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.commit(Transaction{Records: []txn.Record{{OID: 3, Data: []byte("later")}}})
	for _, m := range []string{mark, "", "a mark of something else"} {
		f = r.open()
		if err := f.Resume(t.Context(), m); err != nil {
			t.Errorf("Resume(%q): %v", m, err)
		}
		r.read(f, last, r.lastOf(f))
	}
}

// chain is what a backup has of a database: what was read, in order.
type chain struct {
	head    tid.TID
	exact   tid.TID // a hole reaches up to here
	records []txn.Record
}

// extend reads all there is, and checks that it is complete. step is called before each
// transaction is taken.
func (r *rig) extend(f feed.Feed, c *chain, step func(i int)) {
	t, ctx := r.t, r.t.Context()
	t.Helper()
	upTo := r.lastOf(f)
	var metadata []tid.TID
	records := map[tid.TID][]txn.Record{}
	i := 0
	// A reader may go on in several steps, whole ranges or not.
	for after := c.head; after < upTo; {
		to, stop := upTo, tid.Max
		if r.rnd.IntN(3) == 0 {
			to = r.between(after, upTo)
		}
		if r.rnd.IntN(3) == 0 {
			stop = r.between(after, upTo)
		}
		for tr, err := range f.Read(ctx, after, to) {
			if err != nil {
				t.Fatalf("Read(%v, %v): %v", after, to, err)
			}
			if step != nil {
				step(i)
			}
			i++
			metadata = append(metadata, tr.TID)
			for rec, err := range tr.Records {
				if err != nil {
					t.Fatalf("transaction %v: %v", tr.TID, err)
				}
				if rec.TID != tr.TID {
					t.Errorf("transaction %v has a record of %v", tr.TID, rec.TID)
				}
				copied := *rec
				copied.Data = slices.Clone(rec.Data)
				records[tr.TID] = append(records[tr.TID], copied)
				c.records = append(c.records, copied)
			}
			if tr.TID >= stop {
				to = tr.TID
				break
			}
		}
		after = to
	}
	packed, err := f.Packed(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if packed > c.head {
		c.exact = max(c.exact, packed)
	}
	for _, m := range r.model.history {
		if m.TID <= c.head || m.TID > upTo {
			continue
		}
		if len(metadata) == 0 || metadata[0] != m.TID {
			t.Fatalf("transaction %v was not read", m.TID)
		}
		metadata = metadata[1:]
		got := records[m.TID]
		for _, want := range m.full {
			j := slices.IndexFunc(got, func(r txn.Record) bool { return r.OID == want.OID })
			if j < 0 {
				if m.TID > packed {
					t.Errorf("object %v is missing in transaction %v, only what is up to %v was packed", want.OID, m.TID, packed)
				}
				continue
			}
			if !same(got[j], want) && (got[j].Data != nil || m.TID > packed) {
				t.Errorf("transaction %v: record %+v, want %+v", m.TID, got[j], want)
			}
			got = slices.Delete(got, j, j+1)
		}
		for _, rec := range got {
			// A deletion that is restored may be where the object was only checked.
			if rec.Data != nil || m.TID > packed || !slices.Contains(m.oids, rec.OID) {
				t.Errorf("transaction %v: the record %+v is one too many", m.TID, rec)
			}
		}
	}
	if len(metadata) > 0 {
		t.Errorf("transaction %v is one too many", metadata[0])
	}
	c.head = upTo
	r.compare(c)
}

// between returns the TID of a transaction of (after, upTo], or upTo.
func (r *rig) between(after, upTo tid.TID) tid.TID {
	list := []tid.TID{upTo}
	for _, m := range r.model.history {
		if m.TID > after && m.TID <= upTo {
			list = append(list, m.TID)
		}
	}
	return list[r.rnd.IntN(len(list))]
}

// compare compares all objects at all TIDs at which the chain is exact.
func (r *rig) compare(c *chain) {
	r.t.Helper()
	state := func(records []txn.Record, at tid.TID) map[tid.OID][]byte {
		m := map[tid.OID][]byte{}
		for _, rec := range records {
			if rec.TID > at {
				continue
			}
			if m[rec.OID] = rec.Data; rec.Data == nil {
				delete(m, rec.OID)
			}
		}
		return m
	}
	var full []txn.Record
	moments := []tid.TID{c.exact}
	for _, m := range r.model.history {
		full = append(full, m.full...)
		if m.TID > c.exact && m.TID <= c.head {
			moments = append(moments, m.TID)
		}
	}
	for _, at := range moments {
		if at > c.head {
			continue
		}
		got, want := state(c.records, at), state(full, at)
		for oid, data := range want {
			if !sameData(got[oid], data) {
				r.t.Errorf("object %v at %v is %.20q in the backup, should be %.20q", oid, at, got[oid], data)
			}
		}
		for oid, data := range got {
			if _, ok := want[oid]; !ok {
				r.t.Errorf("object %v, which does not exist at %v, is %.20q in the backup", oid, at, data)
			}
		}
		if r.t.Failed() {
			r.t.FailNow()
		}
	}
}

// testDeletions: what was deleted, and packed away with its deletion while the backup did
// not look, does not rise again.
func testDeletions(t *testing.T, o Options, db Database) {
	r := newRig(t, o, db, 1)
	data := func(s string) []byte { return []byte(s) }
	r.commit(Transaction{Records: []txn.Record{{OID: 0, Data: data("root")}}})
	created := r.commit(Transaction{Records: []txn.Record{{OID: 1, Data: data("1")}, {OID: 2, Data: data("2")}, {OID: 3, Data: data("3")},
		{OID: 4, Data: data("4")}, {OID: 5, Data: data("5")}}})
	var c chain
	f := r.open()
	r.extend(f, &c, nil)
	if c.exact != tid.Zero {
		t.Errorf("Packed = %v before any pack", c.exact)
	}

	deleted := r.commit(Transaction{Records: []txn.Record{{OID: 1}, {OID: 2}}})
	r.commit(Transaction{Records: []txn.Record{{OID: 3, Data: data("3, changed")}}, Checked: []tid.OID{4}})
	r.commit(Transaction{Records: []txn.Record{{OID: 2, Data: data("2, created again")}}})
	r.commit(Transaction{Records: []txn.Record{{OID: 5, Data: data("5, changed")}}})
	r.commit(Transaction{Records: []txn.Record{{OID: 5, DataTID: created}}})
	r.commit(Transaction{Records: []txn.Record{{OID: 5}}})
	upTo := r.commit(Transaction{Records: []txn.Record{{OID: 6, Data: data("6")}}})
	r.commit(Transaction{Records: []txn.Record{{OID: 1, DataTID: deleted}, {OID: 6, Data: data("6, changed")}}})
	r.pack(upTo)
	r.extend(f, &c, nil)
	if c.exact != upTo {
		t.Errorf("Packed = %v, want %v", c.exact, upTo)
	}

	// Another feed, which saw nothing of that, tells the same.
	var anew chain
	r.extend(r.open(), &anew, nil)
	if anew.exact != upTo {
		t.Errorf("Packed = %v in another feed, want %v", anew.exact, upTo)
	}
	// A pack of what was read already makes no hole.
	r.commit(Transaction{Records: []txn.Record{{OID: 3}}})
	upTo = r.last
	r.commit(Transaction{Records: []txn.Record{{OID: 4}}})
	r.extend(f, &c, nil)
	before := c.exact
	r.pack(upTo)
	r.commit(Transaction{Records: []txn.Record{{OID: 3, Data: data("3, created again")}}})
	r.extend(f, &c, nil)
	if c.exact != before {
		t.Errorf("a pack of what was read has made a hole up to %v", c.exact)
	}
}

// testPacks commits, packs and reads in random order.
func testPacks(t *testing.T, o Options, db Database, seed uint64) {
	r := newRig(t, o, db, seed)
	rnd := r.rnd
	f := r.open()
	var c chain
	pack := func() {
		h := r.model.history
		upTo := h[rnd.IntN(len(h))].TID
		r.pack(upTo)
	}
	for round := range 12 {
		for range 1 + rnd.IntN(15) {
			r.commit(r.random(rnd, 12))
		}
		if rnd.IntN(2) == 0 {
			pack()
		}
		if rnd.IntN(3) == 0 {
			continue // not read yet
		}
		var step func(int)
		if rnd.IntN(3) == 0 {
			when := rnd.IntN(10)
			step = func(i int) {
				if i == when {
					pack()
				}
			}
		}
		r.extend(f, &c, step)
		if round%4 == 3 {
			var anew chain
			r.extend(r.open(), &anew, nil)
		}
	}
}
