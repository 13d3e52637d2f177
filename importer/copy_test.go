package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/testlog"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

const testPartitions = 3

// created gives a native backend its partition table.
func created(t testing.TB, native backend.Backend) Native {
	t.Helper()
	cells, err := native.Cells()
	if err == nil && len(cells) == 0 {
		var changes []proto.CellChange
		for p := range testPartitions {
			changes = append(changes, proto.CellChange{Partition: p, ID: 1, State: proto.UpToDate})
		}
		err = errors.Join(native.SetID(1), native.ChangePartitionTable(1, 0, changes, true, 0), native.Commit())
	}
	if err != nil {
		t.Fatal(err)
	}
	return native.(Native)
}

func opened(t testing.TB, m *backendtest.Memory) Native {
	t.Helper()
	native, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	return created(t, native)
}

func openedSQLite(t testing.TB, path string) Native {
	t.Helper()
	native, err := sqlitedb.Open(t.Context(), path, sqlitedb.Options{HalfImported: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { native.Close() })
	return created(t, native)
}

// importOf returns an import as a node begins it.
func importOf(t testing.TB, source txn.Database, native Native) (*Backend, *testlog.Buffer) {
	t.Helper()
	l := &testlog.Buffer{}
	b := &Backend{native: native, source: source, log: slog.New(slog.NewTextHandler(l, nil))}
	var err error
	if b.end, err = source.LastTID(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.prepare(-1, nil); err != nil {
		t.Fatal(err)
	}
	return b, l
}

// runs lets an import work until it ends, or the test does.
func runs(t *testing.T, b *Backend) (ended <-chan error, cancel func()) {
	ctx, cancel := context.WithCancel(t.Context())
	c := make(chan error, 1)
	go func() { c <- b.Run(ctx) }()
	return c, cancel
}

// finishes runs an import to its end.
func finishes(t *testing.T, b *Backend, l *testlog.Buffer) {
	t.Helper()
	ended, cancel := runs(t, b)
	defer cancel()
	for {
		select {
		case err := <-ended:
			if err != nil || !b.own.Load() || b.Progress().State != importing.Done {
				t.Fatalf("Run: %v, in state %v\n%s", err, b.Progress().State, l)
			}
			return
		case <-time.After(10 * time.Millisecond):
			if s := b.Progress().State; s == importing.Failed || s == importing.Different {
				cancel()
				<-ended
				t.Fatalf("the import stands still: %v\n%s", s, l)
			}
		}
	}
}

// want is what the native backend has to have of a source.
type want struct {
	metas   map[tid.TID]backend.Meta
	records map[backend.Key]txn.Record
}

func wanted(t testing.TB, source txn.History, upTo tid.TID) want {
	t.Helper()
	w := want{map[tid.TID]backend.Meta{}, map[backend.Key]txn.Record{}}
	for tr, err := range source.Transactions(t.Context(), 0, upTo) {
		if err != nil {
			t.Fatal(err)
		}
		var oids []tid.OID
		for r, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			oids = slices.DeleteFunc(oids, func(o tid.OID) bool { return o == r.OID })
			oids = append(oids, r.OID)
			c := *r
			if r.Data != nil {
				c.Data = append([]byte{}, r.Data...)
			}
			w.records[backend.Key{TID: tr.TID, OID: r.OID}] = c
		}
		w.metas[tr.TID] = backend.Meta{User: bytes.Clone(tr.User), Description: bytes.Clone(tr.Description), Extension: bytes.Clone(tr.Extension),
			Packed: tr.Status == txn.Packed, TTID: tr.TID, OIDs: oids}
	}
	return w
}

// same verifies that a native backend has exactly what is wanted.
func (w want) same(t testing.TB, native Native) {
	t.Helper()
	ctx := context.Background()
	n := 0
	for p := range testPartitions {
		tids, err := native.TIDsFrom(ctx, p, 0, tid.Max, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range tids {
			n++
			got, err := native.Transaction(ctx, id)
			m := w.metas[id]
			if err != nil || !bytes.Equal(got.User, m.User) || !bytes.Equal(got.Description, m.Description) || !bytes.Equal(got.Extension, m.Extension) ||
				got.Packed != m.Packed || got.TTID != m.TTID || !slices.Equal(got.OIDs, m.OIDs) {
				t.Fatalf("transaction %v: %+v, %v, want %+v", id, got, err, m)
			}
		}
	}
	if n != len(w.metas) {
		t.Fatalf("%d transactions, want %d", n, len(w.metas))
	}
	n = 0
	for p := range testPartitions {
		keys, err := native.RecordsFrom(ctx, p, 0, tid.Max, 0, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			n++
			r, ok := w.records[k]
			o, err := native.FetchObject(ctx, k.OID, k.TID)
			if !ok || err != nil || o.DataSerial != r.DataTID || deflate.Absent(&o.ObjectData) != (r.Data == nil) {
				t.Fatalf("object %v at %v: %+v, %v, want %+v, %v", k.OID, k.TID, o, err, r, ok)
			}
			if r.Data == nil {
				continue
			}
			if data, err := deflate.Unpack(&o.ObjectData); err != nil || !bytes.Equal(data, r.Data) {
				t.Fatalf("object %v at %v: %d bytes, %v, want %d", k.OID, k.TID, len(data), err, len(r.Data))
			}
			if o.Compression == deflate.None && len(o.Data) != len(r.Data) || o.Compression != deflate.None && len(o.Data) >= len(r.Data) {
				t.Errorf("object %v at %v: compressed without gain", k.OID, k.TID)
			}
		}
	}
	if n != len(w.records) {
		t.Fatalf("%d records, want %d", n, len(w.records))
	}
}

func tidAt(i int) tid.TID { return 0x03e0_0000_0000_0000 + tid.TID(i)<<20 }

// history returns a database of the given transactions.
func history(t testing.TB, transactions ...[]txn.Record) *txntest.Memory {
	t.Helper()
	m := &txntest.Memory{}
	for i, records := range transactions {
		id := tidAt(i + 1)
		for j := range records {
			records[j].TID = id
		}
		if err := m.Append(&txn.Transaction{TID: id, Status: "p "[i%2], User: []byte{byte(i)}, Description: []byte("d"), Extension: []byte("}q."), Records: txn.Slice(records)}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func data(s string) []byte { return []byte(s) }

// Whatever is in the sources is in the native backend when the import ends.
func TestCopy(t *testing.T) {
	long := make([]txn.Record, 3000)
	for i := range long {
		long[i] = txn.Record{OID: tid.OID(i), Data: bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 2000)}
	}
	again := slices.Clone(long)
	for i := range 10 {
		again = append(again, txn.Record{OID: tid.OID(i * 200), Data: data("again")})
	}
	many := make([][]txn.Record, 2000)
	for i := range many {
		many[i] = []txn.Record{{OID: tid.OID(i), Data: data(fmt.Sprint(i))}}
	}
	for _, tt := range []struct {
		name   string
		source txn.Database
		twice  int64
		blobs  int64
	}{
		{name: "empty transactions", source: history(t, nil, nil)},
		{name: "small", source: txntest.Small()},
		{name: "random", source: txntest.Random(1, 500, 60)},
		{name: "many transactions", source: history(t, many...)},
		{name: "long transaction", source: history(t, []txn.Record{{OID: 1, Data: data("before")}}, long, []txn.Record{{OID: 1, Data: data("after")}})},
		{name: "twice in a long transaction", source: history(t, again), twice: 10},
		{name: "large record", source: history(t, []txn.Record{{OID: 1, Data: make([]byte, maxAhead+1)}, {OID: 2, Data: make([]byte, 200000)}, {OID: 3, Data: []byte{}}})},
		{name: "twice", source: history(t,
			[]txn.Record{{OID: 1, Data: data("a")}},
			[]txn.Record{{OID: 1, Data: data("b")}, {OID: 2, Data: data("c")}, {OID: 1, Data: data("d")}, {OID: 1, Data: data("e")}},
			[]txn.Record{{OID: 1, Data: data("e"), DataTID: tidAt(2)}}), twice: 2},
		{name: "chain that ends without data", source: history(t,
			[]txn.Record{{OID: 1, Data: data("a")}}, []txn.Record{{OID: 1}}, []txn.Record{{OID: 1, DataTID: tidAt(2)}})},
		{name: "link to what a pack removed", source: history(t, []txn.Record{{OID: 1, Data: data("a"), DataTID: tidAt(0)}})},
		{name: "blobs", source: history(t, []txn.Record{{OID: 1, Data: data("\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N.")}, {OID: 2, Data: data("ZODB.blob")}}), blobs: 1},
	} {
		for kind, open := range map[string]func(t *testing.T) Native{
			"memory": func(t *testing.T) Native { return opened(t, backendtest.NewMemory()) },
			"sqlite": func(t *testing.T) Native { return openedSQLite(t, filepath.Join(t.TempDir(), "db")) },
		} {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				native := open(t)
				b, l := importOf(t, tt.source, native)
				finishes(t, b, l)
				w := wanted(t, tt.source, b.end)
				w.same(t, native)
				r := b.Progress()
				if r.Transactions != int64(len(w.metas)) || r.Records != int64(len(w.records)) || r.Last != b.end || r.Twice != tt.twice || r.Blobs != tt.blobs || r.Compared != b.end || r.Differences != 0 {
					t.Errorf("progress %+v", r)
				}
				if n := strings.Count(l.String(), "the sources have blobs"); n != int(min(tt.blobs, 1)) {
					t.Errorf("%d warnings of blobs", n)
				}
				if !strings.Contains(l.String(), `level=INFO msg="All data are imported.`) {
					t.Errorf("the end is not logged:\n%s", l)
				}
				stored, err := native.ImportProgress()
				if p, err2 := parseProgress(stored); err != nil || err2 != nil || !finished(p) {
					t.Errorf("stored progress %q: %v, %v", stored.V, err, err2)
				}
			})
		}
	}
}

// A link to a record that was replaced in its own transaction would lead to other data.
func TestLinkToReplaced(t *testing.T) {
	source := history(t,
		[]txn.Record{{OID: 1, Data: data("a")}, {OID: 1, Data: data("b")}},
		[]txn.Record{{OID: 1, Data: data("a"), DataTID: tidAt(1)}})
	for _, restart := range []bool{false, true} {
		m := backendtest.NewMemory()
		native := opened(t, m)
		if restart { // after the first transaction
			b, _ := importOf(t, source, native)
			b.end = tidAt(1)
			if err := b.copyAll(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		b, l := importOf(t, source, native)
		finishes(t, b, l)
		w := wanted(t, source, b.end)
		k := backend.Key{TID: tidAt(2), OID: 1}
		r := w.records[k]
		r.DataTID = tid.Zero
		w.records[k] = r
		w.same(t, native)
	}
}

// failing is a native backend that fails as Faulty does.
type failing struct {
	*backendtest.Faulty
	backend.Importing
}

func (f failing) SetImportProgress(p proto.Opt[string]) error {
	if f.Fired() {
		return backendtest.ErrFault
	}
	return f.Importing.SetImportProgress(p)
}

func (f failing) DeleteObject(oid tid.OID, t tid.TID) error {
	if f.Fired() {
		return backendtest.ErrFault
	}
	return f.Faulty.DeleteObject(oid, t)
}

// An import that is killed at any moment goes on where it was.
func TestKilled(t *testing.T) {
	source := txntest.Random(3, 120, 20)
	end, _ := source.LastTID(t.Context())
	w := wanted(t, source, end)
	step := 5
	if testing.Short() {
		step = 37
	}
	resumed := 0
	for n := 1; ; n += step {
		ended := false
		synctest.Test(t, func(t *testing.T) {
			m := backendtest.NewMemory()
			native := opened(t, m)
			if err := native.SetImportProgress(some(progress{Limit: chunkBytes / 2}.String())); err != nil { // a commit after each chunk
				t.Fatal(err)
			}
			if err := native.Commit(); err != nil {
				t.Fatal(err)
			}
			for attempt := 0; ; attempt++ {
				f := backendtest.FailAt(native, n+attempt*7)
				b, l := importOf(t, source, failing{f, native})
				if attempt > 0 && b.done.Load() > 0 {
					resumed++
				}
				err := b.Run(t.Context())
				if !f.Fired() {
					if err != nil || !b.own.Load() {
						t.Fatalf("fault %d, attempt %d: %v\n%s", n, attempt, err, l)
					}
					ended = attempt == 0
					break
				}
				if !errors.Is(err, backendtest.ErrFault) {
					t.Fatalf("fault %d: %v", n, err)
				}
				m.Crash()
				native = opened(t, m)
			}
			w.same(t, native)
		})
		if ended {
			if resumed < 10 {
				t.Errorf("%d of the imports up to fault %d were resumed behind the first transaction", resumed, n)
			}
			return
		}
	}
}

// What a database has committed by itself, behind the stored progress, is written anew, even
// with other compression.
func TestLeftovers(t *testing.T) {
	source := txntest.Random(4, 100, 20)
	for _, open := range []func() Native{
		func() Native { return opened(t, backendtest.NewMemory()) },
		func() Native { return openedSQLite(t, filepath.Join(t.TempDir(), "db")) },
	} {
		native := open()
		b, _ := importOf(t, source, native)
		b.copying.packer.Level = 0
		if err := b.copyAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		var middle tid.TID
		n := 0
		for tr := range source.Transactions(t.Context(), 0, tid.Max) {
			if n++; n == 50 {
				middle = tr.TID
			}
		}
		p := b.copying.p
		p.TID = hexTID(middle)
		if err := errors.Join(native.SetImportProgress(some(p.String())), native.DeleteTransaction(b.end), native.Commit()); err != nil {
			t.Fatal(err)
		}
		b, l := importOf(t, source, native)
		finishes(t, b, l)
		wanted(t, source, b.end).same(t, native)
	}
}

// faulty is a source of which something cannot be read.
type faulty struct {
	txn.Database
	mu     sync.Mutex
	record func(t tid.TID, oid tid.OID) error
	before func(t tid.TID) error // at a transaction
}

func (f *faulty) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *faulty) bad(t tid.TID, oid tid.OID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.record == nil {
		return nil
	}
	return f.record(t, oid)
}

func (f *faulty) badAt(t tid.TID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.before == nil {
		return nil
	}
	return f.before(t)
}

func (f *faulty) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for tr, err := range f.Database.Transactions(ctx, after, upTo) {
			if err == nil {
				err = f.badAt(tr.TID)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			c := *tr
			c.Records = func(yield func(*txn.Record, error) bool) {
				for r, err := range tr.Records {
					if err == nil {
						err = f.bad(tr.TID, r.OID)
					}
					if err != nil {
						yield(nil, err)
						return
					}
					if !yield(r, nil) {
						return
					}
				}
			}
			if !yield(&c, nil) {
				return
			}
		}
	}
}

func (f *faulty) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	if err := f.bad(at, oid); err != nil {
		return txn.Revision{}, err
	}
	return f.Database.LoadAt(ctx, oid, at)
}

// reach waits until an import is in a state.
func reach(t *testing.T, b *Backend, s importing.State, l *testlog.Buffer) importing.Report {
	t.Helper()
	for range 10000 {
		synctest.Wait()
		if r := b.Progress(); r.State == s {
			return r
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("state %v, want %v\n%s", b.Progress().State, s, l)
	panic("not reached")
}

func order(t *testing.T, b *Backend, o importing.Order) {
	t.Helper()
	if err := b.Order(o); err != nil {
		t.Fatalf("order %+v: %v", o, err)
	}
}

var errDamaged = errors.New("file Data.fs, offset 4711: damaged")

func damagedSource(t *testing.T) (source *faulty, plain *txntest.Memory) {
	plain = history(t,
		[]txn.Record{{OID: 1, Data: data("a")}, {OID: 2, Data: data("b")}, {OID: 3, Data: data("c")}, {OID: 4, Data: data("d")}},
		[]txn.Record{{OID: 1, Data: data("a2")}, {OID: 2, Data: data("b2")}, {OID: 3}, {OID: 4, Data: data("d2")}},
		[]txn.Record{{OID: 1, Data: data("a3")}})
	return &faulty{Database: plain, record: func(tr tid.TID, oid tid.OID) error {
		if tr == tidAt(2) && oid == 2 {
			return errDamaged
		}
		return nil
	}}, plain
}

// A record that cannot be read stops the import, until the operator decides.
func TestDamagedRecord(t *testing.T) {
	for _, tt := range []struct {
		name string
		mend func(*Backend, *faulty)
		oid  proto.Opt[tid.OID]
		skip bool
	}{
		{name: "mended", mend: func(b *Backend, f *faulty) { f.set(func() { f.record = nil }) }},
		{name: "record skipped", skip: true, oid: some(tid.OID(2))},
		{name: "transaction skipped", skip: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source, plain := damagedSource(t)
				m := backendtest.NewMemory()
				native := opened(t, m)
				b, l := importOf(t, source, native)
				ended, cancel := runs(t, b)
				defer cancel()
				r := reach(t, b, importing.Failed, l)
				if r.Last != tidAt(1) || !strings.Contains(r.Note, errDamaged.Error()) || !strings.Contains(r.Note, tidAt(2).String()) || !strings.Contains(r.Note, "neoctl import skip") {
					t.Errorf("report %+v", r)
				}
				wanted(t, plain, tidAt(1)).same(t, native)
				time.Sleep(time.Hour) // it stays
				order(t, b, importing.Order{Kind: importing.Resume})
				if r := reach(t, b, importing.Failed, l); r.Last != tidAt(1) {
					t.Errorf("report %+v", r)
				}
				w := wanted(t, plain, b.end)
				if tt.skip {
					order(t, b, importing.Order{Kind: importing.Skip, TID: tidAt(2), OID: tt.oid})
					k := backend.Key{TID: tidAt(2), OID: 2}
					rec := w.records[k]
					rec.Data = nil
					w.records[k] = rec
				} else {
					tt.mend(b, source)
					order(t, b, importing.Order{Kind: importing.Resume})
				}
				if err := <-ended; err != nil || !b.own.Load() {
					t.Fatalf("%v\n%s", err, l)
				}
				w.same(t, native)
				skipped := int64(0)
				if tt.skip {
					skipped = 1
				}
				if r := b.Progress(); r.Skipped != skipped || r.Differences != 0 {
					t.Errorf("report %+v", r)
				}
				if n := strings.Count(l.String(), "unreadable in the sources"); n != int(skipped) {
					t.Errorf("%d records in the comparison were not readable, want %d", n, skipped)
				}
			})
		})
	}
}

// An order to leave out a record is about no other one.
func TestSkipOnlyOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, plain := damagedSource(t)
		source.record = func(tr tid.TID, oid tid.OID) error {
			if tr == tidAt(2) && oid%2 == 0 {
				return fmt.Errorf("object %v: %w", oid, errDamaged)
			}
			return nil
		}
		native := opened(t, backendtest.NewMemory())
		b, l := importOf(t, source, native)
		ended, cancel := runs(t, b)
		defer cancel()
		for _, oid := range []tid.OID{2, 4} {
			if r := reach(t, b, importing.Failed, l); !strings.Contains(r.Note, oid.String()) || r.Last != tidAt(1) {
				t.Errorf("report %+v, want object %v", r, oid)
			}
			order(t, b, importing.Order{Kind: importing.Skip, TID: tidAt(2), OID: some(oid)})
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		w := wanted(t, plain, b.end)
		for _, oid := range []tid.OID{2, 4} {
			k := backend.Key{TID: tidAt(2), OID: oid}
			r := w.records[k]
			r.Data = nil
			w.records[k] = r
		}
		w.same(t, native)
		if r := b.Progress(); r.Skipped != 2 {
			t.Errorf("report %+v", r)
		}
	})
}

// Where not even a transaction can be read, the ones behind it can be had by order.
func TestDamagedTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, plain := damagedSource(t)
		source := &faulty{Database: plain, before: func(tr tid.TID) error {
			if tr == tidAt(2) {
				return errDamaged
			}
			return nil
		}}
		native := opened(t, backendtest.NewMemory())
		b, l := importOf(t, source, native)
		ended, cancel := runs(t, b)
		defer cancel()
		reach(t, b, importing.Failed, l)
		if err := b.Order(importing.Order{Kind: importing.Skip, TID: tidAt(9)}); err == nil {
			t.Error("a transaction behind the end was skipped")
		}
		order(t, b, importing.Order{Kind: importing.Skip, TID: tidAt(2)})
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		w := wanted(t, plain, b.end)
		delete(w.metas, tidAt(2))
		for k := range w.records {
			if k.TID == tidAt(2) {
				delete(w.records, k)
			}
		}
		w.same(t, native)
	})
}

// What no cluster can have is refused with its place.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := history(t, []txn.Record{{OID: 1, Data: data("a")}}, []txn.Record{{OID: 1 << 63, Data: data("a")}})
		b, l := importOf(t, source, opened(t, backendtest.NewMemory()))
		ended, cancel := runs(t, b)
		r := reach(t, b, importing.Failed, l)
		if !strings.Contains(r.Note, "8000000000000000") || !strings.Contains(r.Note, tidAt(2).String()) {
			t.Error(r.Note)
		}
		cancel()
		<-ended
	})
	synctest.Test(t, func(t *testing.T) {
		a, z := history(t, nil), history(t, nil, nil)
		source := &faulty{Database: z}
		b, l := importOf(t, disordered{source, a}, opened(t, backendtest.NewMemory()))
		ended, cancel := runs(t, b)
		r := reach(t, b, importing.Failed, l)
		if !strings.Contains(r.Note, "do not increase") {
			t.Error(r.Note)
		}
		cancel()
		<-ended
	})
	synctest.Test(t, func(t *testing.T) { // replaced by a shorter one
		b, l := importOf(t, history(t, nil), opened(t, backendtest.NewMemory()))
		b.end = tidAt(2)
		ended, cancel := runs(t, b)
		r := reach(t, b, importing.Failed, l)
		if r.Last != tidAt(1) || !strings.Contains(r.Note, "the sources end here") {
			t.Error(r.Note)
		}
		cancel()
		<-ended
	})
}

// disordered yields one history after another.
type disordered struct {
	txn.Database
	then txn.History
}

func (d disordered) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for _, h := range []txn.History{d.Database, d.then} {
			for tr, err := range h.Transactions(ctx, after, upTo) {
				if !yield(tr, err) || err != nil {
					return
				}
			}
		}
	}
}

// A source that cannot be reached is asked again by itself, every minute.
func TestUnavailable(t *testing.T) {
	for _, inside := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			_, plain := damagedSource(t)
			source := &faulty{Database: plain}
			gone := fmt.Errorf("server db.example: %w", txn.ErrUnavailable)
			if inside {
				source.record = func(tr tid.TID, oid tid.OID) error {
					if tr == tidAt(2) {
						return gone
					}
					return nil
				}
			} else {
				source.before = func(tid.TID) error { return gone }
			}
			native := opened(t, backendtest.NewMemory())
			b, l := importOf(t, source, native)
			begin := time.Now()
			ended, cancel := runs(t, b)
			defer cancel()
			r := reach(t, b, importing.Failed, l)
			if !strings.Contains(r.Note, "db.example") || !strings.Contains(r.Note, "every minute") || strings.Contains(r.Note, "skip") {
				t.Error(r.Note)
			}
			time.Sleep(90*time.Second - time.Since(begin))
			source.set(func() { source.before, source.record = nil, nil })
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if d := time.Since(begin); d < 110*time.Second || d > 130*time.Second {
				t.Errorf("it went on after %v", d)
			}
			wanted(t, plain, b.end).same(t, native)
		})
	}
}

// The operator stops and limits the copy, also before a restart.
func TestPauseAndLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := txntest.Random(5, 1000, 100) // 2.5 MB
		size := int64(0)
		for _, r := range wanted(t, source, tid.Max).records {
			size += int64(len(r.Data))
		}
		m := backendtest.NewMemory()
		native := opened(t, m)
		b, l := importOf(t, source, native)
		if err := b.Order(importing.Order{Kind: importing.Resume}); err == nil {
			t.Error("resumed what does not stand still")
		}
		order(t, b, importing.Order{Kind: importing.Limit, Rate: size / 100})
		ended, cancel := runs(t, b)
		time.Sleep(30 * time.Second)
		order(t, b, importing.Order{Kind: importing.Pause})
		r := reach(t, b, importing.Paused, l)
		if r.Bytes < size/5 || r.Bytes > size/2 || r.Limit != size/100 {
			t.Errorf("report %+v of %d bytes", r, size)
		}
		order(t, b, importing.Order{Kind: importing.Compare}) // what there is
		time.Sleep(100 * time.Second)
		if got := b.Progress(); got.Compared != r.Last || got.Differences != 0 || got.State != importing.Paused || got.Last != r.Last {
			t.Errorf("report %+v, was %+v\n%s", got, r, l)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if s := b.Progress().State; s != importing.Waiting {
			t.Error(s)
		}
		m.Crash()
		native = opened(t, m)
		b, _ = importOf(t, source, native)
		ended, cancel = runs(t, b)
		defer cancel()
		time.Sleep(time.Hour)
		if got := b.Progress(); got.State != importing.Paused || got.Last != r.Last || got.Bytes != r.Bytes || got.Limit != size/100 {
			t.Errorf("after a restart %+v, was %+v", got, r)
		}
		order(t, b, importing.Order{Kind: importing.Resume})
		time.Sleep(20 * time.Second)
		if got := b.Progress(); got.State != importing.Copying || got.Rate < float64(size/200) || got.Rate > float64(size/50) || got.Slow != "limit" {
			t.Errorf("report %+v", got)
		}
		order(t, b, importing.Order{Kind: importing.Limit})
		begin := time.Now()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > time.Minute {
			t.Errorf("without limit it took %v", d)
		}
		wanted(t, source, b.end).same(t, native)
	})
}

// While clients are served the copy takes its share of the time.
func TestYields(t *testing.T) {
	took := func(served bool) (d time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			source := txntest.Random(6, 1000, 100)
			b, _ := importOf(t, source, slow{opened(t, backendtest.NewMemory())})
			begin := time.Now()
			ended, cancel := runs(t, b)
			defer cancel()
			for {
				if served {
					b.served.Seen()
				}
				select {
				case err := <-ended:
					if err != nil {
						t.Fatal(err)
					}
					d = time.Since(begin)
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
		return d
	}
	alone, beside := took(false), took(true)
	if beside < 2*alone || beside > 8*alone {
		t.Errorf("%v without clients, %v with them", alone, beside)
	}
}

// slow is a native backend in which a record takes its time.
type slow struct{ Native }

func (s slow) AddObject(oid tid.OID, t tid.TID, d proto.ObjectData, from proto.Opt[tid.TID]) error {
	time.Sleep(time.Millisecond)
	return s.Native.AddObject(oid, t, d, from)
}

// The comparison finds whatever may differ, and does not let the sources go.
func TestCompare(t *testing.T) {
	k := tidAt(2)
	record := func(s string) proto.ObjectData {
		p := deflate.Packer{}
		return p.Pack([]byte(s))
	}
	meta := func(n Native) backend.Meta {
		m, err := n.Transaction(context.Background(), k)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	put := func(n Native, m backend.Meta) error {
		return errors.Join(n.DeleteTransaction(k), n.AddTransaction(k, m, nil))
	}
	for _, tt := range []struct {
		name   string
		damage func(Native) error
		kinds  []string
		oid    proto.Opt[tid.OID]
	}{
		{name: "a record is missing", damage: func(n Native) error { return n.DeleteObject(2, k) }, kinds: []string{"missing in the copy"}, oid: some(tid.OID(2))},
		{name: "other data", damage: func(n Native) error {
			return errors.Join(n.DeleteObject(2, k), n.AddObject(2, k, record("x"), proto.Opt[tid.TID]{}))
		}, kinds: []string{"other data in the copy"}, oid: some(tid.OID(2))},
		{name: "no data", damage: func(n Native) error {
			return errors.Join(n.DeleteObject(2, k), n.AddObject(2, k, proto.ObjectData{}, proto.Opt[tid.TID]{}))
		}, kinds: []string{"without data in the copy"}, oid: some(tid.OID(2))},
		{name: "data for a deletion", damage: func(n Native) error {
			return errors.Join(n.DeleteObject(3, k), n.AddObject(3, k, record("x"), proto.Opt[tid.TID]{}))
		}, kinds: []string{"without data in the sources"}, oid: some(tid.OID(3))},
		{name: "wrong checksum", damage: func(n Native) error {
			d := record("b2")
			d.Checksum[0]++
			return errors.Join(n.DeleteObject(2, k), n.AddObject(2, k, d, proto.Opt[tid.TID]{}))
		}, kinds: []string{"the data in the copy differ from their checksum"}, oid: some(tid.OID(2))},
		{name: "other link", damage: func(n Native) error {
			return errors.Join(n.DeleteObject(1, tidAt(4)), n.AddObject(1, tidAt(4), record("a2"), proto.Opt[tid.TID]{}))
		}, kinds: []string{otherLink}},
		{name: "a record too many", damage: func(n Native) error { return n.AddObject(9, k, record("x"), proto.Opt[tid.TID]{}) }, kinds: []string{"missing in the sources"}, oid: some(tid.OID(9))},
		{name: "a record too many, between", damage: func(n Native) error { return n.AddObject(9, k-1, record("x"), proto.Opt[tid.TID]{}) }, kinds: []string{"missing in the sources"}},
		{name: "a transaction too many", damage: func(n Native) error { return n.AddTransaction(k-1, backend.Meta{TTID: k - 1}, nil) }, kinds: []string{"missing in the sources"}},
		{name: "a transaction is missing", damage: func(n Native) error { return n.DeleteTransaction(k) }, kinds: []string{"missing in the copy"}},
		{name: "user", damage: func(n Native) error { m := meta(n); m.User = data("x"); return put(n, m) }, kinds: []string{"other metadata in the copy"}},
		{name: "status", damage: func(n Native) error { m := meta(n); m.Packed = !m.Packed; return put(n, m) }, kinds: []string{"other status in the copy"}},
		{name: "order", damage: func(n Native) error {
			m := meta(n)
			m.OIDs = slices.Clone(m.OIDs)
			slices.Reverse(m.OIDs)
			return put(n, m)
		}, kinds: []string{"other records, or in another order, in the copy"}},
		{name: "several", damage: func(n Native) error {
			return errors.Join(n.DeleteObject(1, k), n.DeleteObject(2, k), n.AddTransaction(k+1, backend.Meta{TTID: k + 1}, nil))
		}, kinds: []string{"missing in the copy", "missing in the sources"}},
		{name: "transactions after the end are those of clients", damage: func(n Native) error {
			return errors.Join(n.AddObject(1, tidAt(5), record("x"), proto.Opt[tid.TID]{}), n.AddTransaction(tidAt(5), backend.Meta{TTID: tidAt(5), OIDs: []tid.OID{1}}, nil))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := history(t,
					[]txn.Record{{OID: 1, Data: data("a")}, {OID: 2, Data: data("b")}, {OID: 3, Data: data("c")}},
					[]txn.Record{{OID: 1, Data: data("a2")}, {OID: 2, Data: data("b2")}, {OID: 3}},
					[]txn.Record{{OID: 1, Data: data("a3")}},
					[]txn.Record{{OID: 1, Data: data("a2"), DataTID: tidAt(2)}})
				m := backendtest.NewMemory()
				native := opened(t, m)
				b, l := importOf(t, source, native)
				if err := b.copyAll(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(tt.damage(native), native.Commit()); err != nil {
					t.Fatal(err)
				}
				ended, cancel := runs(t, b)
				defer cancel()
				if tt.kinds == nil {
					if err := <-ended; err != nil || !b.own.Load() {
						t.Fatal(err)
					}
					return
				}
				r := reach(t, b, importing.Different, l)
				if r.Differences == 0 || r.Compared != b.end || b.own.Load() || r.Note == "" {
					t.Errorf("report %+v", r)
				}
				for _, kind := range tt.kinds {
					if !strings.Contains(l.String(), kind) {
						t.Errorf("%q is not logged:\n%s", kind, l)
					}
				}
				if err := b.Order(importing.Order{Kind: importing.Resume}); err == nil {
					t.Error("resumed in spite of differences")
				}
				// A restart changes nothing.
				cancel()
				<-ended
				m.Crash()
				native = opened(t, m)
				b, l = importOf(t, source, native)
				ended, cancel = runs(t, b)
				defer cancel()
				if r := reach(t, b, importing.Different, l); r.Differences == 0 {
					t.Errorf("report %+v\n%s", r, l)
				}
				if !tt.oid.OK {
					return
				}
				order(t, b, importing.Order{Kind: importing.Skip, TID: k, OID: tt.oid})
				order(t, b, importing.Order{Kind: importing.Compare})
				if err := <-ended; err != nil || !b.own.Load() || b.Progress().Differences != 0 {
					t.Errorf("after the difference was accepted: %v, %+v\n%s", err, b.Progress(), l)
				}
			})
		})
	}
}

// A comparison that cannot read the native backend ends the work, and one that cannot read the
// sources waits.
func TestCompareFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, _ := damagedSource(t)
		bad := source.record
		source.record = nil
		native := opened(t, backendtest.NewMemory())
		b, l := importOf(t, source, native)
		if err := b.copyAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		source.set(func() { source.record = bad })
		ended, cancel := runs(t, b)
		defer cancel()
		if r := reach(t, b, importing.Failed, l); !strings.Contains(r.Note, errDamaged.Error()) {
			t.Error(r.Note)
		}
		source.set(func() { source.record = nil })
		order(t, b, importing.Order{Kind: importing.Resume})
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
	errBroken := errors.New("broken")
	b, _ := importOf(t, txntest.Small(), unreadable{opened(t, backendtest.NewMemory()), errBroken})
	if err := b.Run(t.Context()); !errors.Is(err, errBroken) || b.own.Load() {
		t.Error(err)
	}
}

// So does one that was ordered while the copy goes on.
func TestCompareOnDemandFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errBroken := errors.New("broken")
		b, l := importOf(t, txntest.Random(7, 300, 50), unreadable{opened(t, backendtest.NewMemory()), errBroken})
		order(t, b, importing.Order{Kind: importing.Limit, Rate: 10000})
		ended, cancel := runs(t, b)
		defer cancel()
		time.Sleep(20 * time.Second)
		reach(t, b, importing.Copying, l)
		order(t, b, importing.Order{Kind: importing.Compare})
		if err := <-ended; !errors.Is(err, errBroken) {
			t.Error(err)
		}
	})
}

// An order that comes before the first transaction of an import that another program
// has begun does not begin it anew.
func TestOrderBeforeProgress(t *testing.T) {
	source := txntest.Random(8, 50, 20)
	native := opened(t, backendtest.NewMemory())
	b, _ := importOf(t, source, native)
	if err := b.copyAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(native.SetImportProgress(proto.Opt[string]{}), native.Commit()); err != nil {
		t.Fatal(err)
	}
	b, _ = importOf(t, source, native)
	b.advance(b.end) // found from the transactions
	order(t, b, importing.Order{Kind: importing.Pause})
	b, _ = importOf(t, source, native)
	if got := tid.TID(b.done.Load()); got != b.end {
		t.Errorf("after a restart %v is copied, want %v", got, b.end)
	}
}

func FuzzProgress(f *testing.F) {
	f.Add(progress{Skip: []skip{{tid: 1}, {tid: 2, oid: some(tid.OID(3))}}, Verdict: equal}.String())
	f.Add("{}")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseProgress(some(s))
		if err != nil {
			return
		}
		if again, err := parseProgress(some(p.String())); err != nil || again.String() != p.String() {
			t.Errorf("%q: %s, again %s, %v", s, p, again, err)
		}
	})
}

type unreadable struct {
	Native
	err error
}

func (u unreadable) GetObjects(ctx context.Context, keys []backend.ObjectKey, f func(i int, o *backend.Object, err error) bool) {
	for i := range keys {
		f(i, nil, u.err)
	}
}

func TestProgressRow(t *testing.T) {
	p := progress{TID: hexTID(tidAt(1)), Transactions: 1, Records: 2, Bytes: 3, Twice: 4, Blobs: 5, Paused: true, Limit: 6, Skipped: 7,
		Skip:     []skip{{tid: tidAt(2)}, {tidAt(3), some(tid.OID(4))}},
		Compared: hexTID(tidAt(4)), ComparedAt: time.Now().UTC().Truncate(time.Second), Differences: 8, Verdict: different}
	got, err := parseProgress(some(p.String()))
	if err != nil || got.String() != p.String() || !slices.Equal(got.Skip, p.Skip) {
		t.Errorf("%s: %s, %v", p, got, err)
	}
	for _, bad := range []string{"", "x", `{"tid":"x"}`, `{"skip":["1"]}`, `{"skip":["00000000000000010000000000000002"]}`, `{"verdict":"fine"}`} {
		if _, err := parseProgress(some(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
