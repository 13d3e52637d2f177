package importer

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

var (
	seeds    = flag.Int("seeds", 300, "number of random histories")
	seedFlag = flag.Uint64("seed", 0, "first random history")
)

const (
	np = 3
	me = proto.NodeID(1)
)

var none proto.Opt[tid.TID]

// watched is a source that can be closed, and counts what it is asked.
type watched struct {
	txn.Database
	closed atomic.Bool
	loads  atomic.Int64 // of objects and their histories
	walks  atomic.Int64 // of transactions
}

func (w *watched) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	w.walks.Add(1)
	return w.Database.Transactions(ctx, after, upTo)
}

func (w *watched) check() error {
	w.loads.Add(1)
	if w.closed.Load() {
		return errors.New("the source is closed")
	}
	return nil
}

func (w *watched) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	if err := w.check(); err != nil {
		return txn.Revision{}, err
	}
	return w.Database.LoadBefore(ctx, oid, before)
}

func (w *watched) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	return w.Database.Revisions(ctx, oid, n)
}

// knowing is a source that knows of each record where its data come from, and the last
// revisions of objects.
type knowing struct {
	*watched
	from map[backend.Key]tid.TID
	last map[tid.OID]tid.TID
}

func (k *knowing) DataTID(_ context.Context, oid tid.OID, at tid.TID) (tid.TID, error) {
	return k.from[backend.Key{TID: at, OID: oid}], nil
}

func (k *knowing) LastRevision(oid tid.OID) (tid.TID, bool) { return k.last[oid], true }

// table makes every partition UP_TO_DATE on this node.
func table(tb testing.TB, b backend.Backend) {
	tb.Helper()
	var cells []proto.CellChange
	for p := range np {
		cells = append(cells, proto.CellChange{Partition: p, ID: me, State: proto.UpToDate})
	}
	ok(tb, b.SetID(me))
	ok(tb, b.ChangePartitionTable(1, 0, cells, true, 0))
	ok(tb, b.Commit())
}

func ok(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// write adds a record as the copy does, without compression.
func write(b backend.Writing, r *txn.Record) error {
	var d proto.ObjectData
	if r.Data != nil {
		d = proto.ObjectData{Checksum: sha1.Sum(r.Data), Data: slices.Clone(r.Data)}
	}
	return b.AddObject(r.OID, r.TID, d, proto.Opt[tid.TID]{V: r.DataTID, OK: r.DataTID != 0})
}

func writeMeta(b backend.Writing, t *txn.Transaction, oids []tid.OID) error {
	return b.AddTransaction(t.TID, backend.Meta{
		User: clone(t.User), Description: clone(t.Description), Extension: clone(t.Extension),
		Packed: t.Status == txn.Packed, TTID: t.TID, OIDs: oids,
	}, nil)
}

// copyOne copies a transaction.
func copyOne(b backend.Writing, t *txn.Transaction) error {
	var oids []tid.OID
	for r, err := range t.Records {
		if err != nil {
			return err
		}
		if err := write(b, r); err != nil {
			return err
		}
		oids = append(oids, r.OID)
	}
	return writeMeta(b, t, oids)
}

// world is an import of a random history, and what the native backend will be.
type world struct {
	testing.TB
	seed     uint64
	rand     *rand.Rand
	source   *watched
	history  []*txn.Transaction
	objects  int
	full     backend.Backend
	b        *Backend
	native   Native
	linked   bool
	tids     []tid.TID // all transactions
	nativeTo tid.TID   // all records of the sources up to it are in the native backend
}

func newWorld(tb testing.TB, seed uint64, native Native) *world {
	w := &world{TB: tb, seed: seed, rand: rand.New(rand.NewPCG(seed, 7)), native: native}
	w.objects = 3 + w.rand.IntN(8)
	m := txntest.Random(seed, 1+w.rand.IntN(25), w.objects)
	w.source = &watched{Database: m}
	var source txn.Database = w.source
	k := &knowing{w.source, map[backend.Key]tid.TID{}, map[tid.OID]tid.TID{}}
	oids := tid.OID(0)
	for t, err := range m.Transactions(tb.Context(), 0, tid.Max) {
		ok(tb, err)
		w.history = append(w.history, t)
		w.tids = append(w.tids, t.TID)
		for r := range t.Records {
			oids = max(oids, r.OID+1)
			k.last[r.OID] = t.TID
			if r.DataTID != 0 {
				k.from[backend.Key{TID: t.TID, OID: r.OID}] = r.DataTID
			}
		}
	}
	if w.linked = seed%3 == 0; w.linked {
		source = k
	}
	end := w.tids[len(w.tids)-1]
	w.b = newBackend(native, source, end, oids, nil)
	ok(tb, w.b.learnFirst(tb.Context()))
	w.b.ahead = func(r *txn.Record) error { return write(native, r) }
	full, err := backendtest.NewMemory().Open()
	ok(tb, err)
	w.full = full
	table(tb, w.full)
	table(tb, w.b)
	for _, t := range w.history {
		ok(tb, copyOne(w.full, t))
	}
	return w
}

// copyTo copies transactions up to an index, and leaves rows of some that follow.
func (w *world) copyTo(n int) {
	for _, t := range w.history[:n] {
		ok(w, copyOne(w.native, t))
		w.nativeTo = t.TID
	}
	for range w.rand.IntN(3) { // left by a crash
		if n == len(w.history) {
			break
		}
		t := w.history[n]
		if w.rand.IntN(2) == 0 {
			for r := range t.Records {
				if w.rand.IntN(2) == 0 {
					ok(w, write(w.native, r))
				}
			}
			break
		}
		ok(w, copyOne(w.native, t))
		n++
	}
	ok(w, w.native.Commit()) // as the copy does
	w.b.advance(w.nativeTo)
}

// commit makes transactions of clients after the end of the sources.
func (w *world) commit(n int) {
	last := w.tids[len(w.tids)-1]
	for range n {
		last += tid.TID(1 + w.rand.IntN(5))
		var oids []tid.OID
		for range 1 + w.rand.IntN(3) {
			oid := tid.OID(w.rand.IntN(w.objects + 4))
			if slices.Contains(oids, oid) {
				continue
			}
			oids = append(oids, oid)
			r := &txn.Record{OID: oid, TID: last}
			switch prev, err := w.full.GetObject(w.Context(), oid, none, none); {
			case w.rand.IntN(5) == 0: // a deletion
			case err == nil && w.rand.IntN(3) == 0:
				r.DataTID = prev.Serial
				if prev.Checksum != proto.ZeroHash {
					r.Data = slices.Clone(prev.Data)
				}
			default:
				r.Data = fmt.Appendf(nil, "%d/%d", last, oid)
			}
			ok(w, write(w.full, r))
			ok(w, write(w.native, r))
		}
		t := &txn.Transaction{TID: last, User: []byte("joe")}
		ok(w, writeMeta(w.full, t, oids))
		ok(w, writeMeta(w.native, t, oids))
		w.tids = append(w.tids, last)
	}
}

func (w *world) fatal(what string, got, want any) {
	w.Helper()
	w.Fatalf("seed %d, copied to %d of %d: %s: %v, want %v", w.seed, slices.Index(w.tids, tid.TID(w.b.done.Load())), len(w.history), what, got, want)
}

// kind names the error of an answer.
func kind(err error) string {
	for _, e := range []error{backend.ErrNonReadable, backend.ErrNotFound, backend.ErrNoSuchObject, backend.ErrNotImplemented} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return fmt.Sprint(err)
}

func (w *world) sameObject(what string, exact bool, got backend.Object, err error, want backend.Object, wantErr error) {
	w.Helper()
	if kind(err) != kind(wantErr) {
		w.fatal(what, err, wantErr)
	}
	if !exact && got.DataSerial == 0 {
		want.DataSerial = 0
	}
	if err == nil && (got.Serial != want.Serial || got.Next != want.Next || got.DataSerial != want.DataSerial ||
		got.Checksum != want.Checksum || got.Compression != want.Compression || !bytes.Equal(got.Data, want.Data)) {
		w.fatal(what, describe(got), describe(want))
	}
}

func describe(o backend.Object) string {
	return fmt.Sprintf("%v until %v as %v, %d bytes %x", o.Serial, o.Next, o.DataSerial, len(o.Data), o.Checksum[:4])
}

func (w *world) same(what string, got any, err error, want any, wantErr error) {
	w.Helper()
	if kind(err) != kind(wantErr) {
		w.fatal(what, err, wantErr)
	}
	if reflect.DeepEqual(got, want) {
		return
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		w.fatal(what, got, fmt.Sprint(want, "\n", diff))
	}
}

// moments are TIDs of interest: some transactions, and what is beside them.
func (w *world) moments(n int) []tid.TID {
	end, done := w.b.end, tid.TID(w.b.done.Load())
	list := []tid.TID{0, 1, done, done + 1, end, end + 1, tid.Max - 1, tid.Max}
	for range n {
		t := w.tids[w.rand.IntN(len(w.tids))]
		list = append(list, t, t-1, t+1)
	}
	return list
}

func (w *world) opt(t tid.TID) proto.Opt[tid.TID] { return proto.Some(t) }

// checkObject compares all that is asked about an object.
func (w *world) checkObject(oid tid.OID, moments []tid.TID) {
	w.Helper()
	ctx := w.Context()
	var keys []backend.ObjectKey
	keys = append(keys, backend.ObjectKey{OID: oid})
	for _, t := range moments {
		keys = append(keys, backend.ObjectKey{OID: oid, At: w.opt(t)}, backend.ObjectKey{OID: oid, Before: w.opt(t)})
	}
	w.rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	got := make([]backend.Object, len(keys))
	errs := make([]error, len(keys))
	n := 0
	w.b.GetObjects(ctx, keys, func(i int, o *backend.Object, err error) bool {
		if errs[i] = err; err == nil {
			got[i] = *o
		}
		n++
		return true
	})
	if n != len(keys) {
		w.fatal("GetObjects", n, len(keys))
	}
	for i, k := range keys {
		want, wantErr := w.full.GetObject(ctx, oid, k.At, k.Before)
		what := fmt.Sprintf("GetObject(%v, at %v before %v)", oid, k.At, k.Before)
		exact := w.linked || k.At.OK
		w.sameObject(what+" among others", exact, got[i], errs[i], want, wantErr)
		o, err := w.b.GetObject(ctx, oid, k.At, k.Before)
		w.sameObject(what, exact, o, err, want, wantErr)
	}
	last, err := w.b.LastObjectTID(ctx, oid)
	if errors.Is(err, backend.ErrNotPrepared) {
		ok(w, w.b.Prepare(ctx, oid))
		last, err = w.b.LastObjectTID(ctx, oid)
	}
	wantLast, wantErr := w.full.LastObjectTID(ctx, oid)
	w.same(fmt.Sprintf("LastObjectTID(%v)", oid), last, err, wantLast, wantErr)
	for _, q := range [][2]int{{0, 1}, {0, 100}, {1, 2}, {3, 5}, {100, 3}} {
		revs, err := w.b.History(ctx, oid, q[0], q[1])
		want, wantErr := w.full.History(ctx, oid, q[0], q[1])
		w.same(fmt.Sprintf("History(%v, %v)", oid, q), revs, err, want, wantErr)
	}
	for _, t := range moments {
		h, err := w.b.UndoHistory(ctx, oid, t)
		want, wantErr := w.full.UndoHistory(ctx, oid, t)
		w.same(fmt.Sprintf("UndoHistory(%v, %v)", oid, t), h, err, want, wantErr)
	}
}

// checkLists compares what is listed.
func (w *world) checkLists(moments []tid.TID) {
	w.Helper()
	ctx := w.Context()
	ids, err := w.b.LastIDs(ctx)
	want, wantErr := w.full.LastIDs(ctx)
	if w.b.oids > 0 {
		want.OID = proto.Some(max(want.OID.V, w.b.oids-1))
	}
	w.same("LastIDs", ids, err, want, wantErr)
	for _, t := range moments {
		m, err := w.b.Transaction(ctx, t)
		want, wantErr := w.full.Transaction(ctx, t)
		w.same(fmt.Sprintf("Transaction(%v)", t), m, err, want, wantErr)
		final, err := w.b.FinalTID(ctx, t)
		wantFinal, wantErr := w.full.FinalTID(ctx, t)
		if t <= w.b.end {
			wantFinal = none
		}
		if !w.b.own.Load() {
			w.same(fmt.Sprintf("FinalTID(%v)", t), final, err, wantFinal, wantErr)
		}
	}
	for _, q := range [][2]int{{0, 1}, {0, 3}, {2, 4}, {0, 100}, {7, 9}, {100, 2}} {
		for _, partitions := range [][]int{{0, 1, 2}, {2}, {1, 0}, nil} {
			list, err := w.b.TIDs(ctx, partitions, q[0], q[1])
			want, wantErr := w.full.TIDs(ctx, partitions, q[0], q[1])
			w.same(fmt.Sprintf("TIDs(%v, %v)", partitions, q), list, err, want, wantErr)
		}
	}
	for p := range np {
		for _, n := range []int{0, 1, 3, 100} {
			for i := 1; i < len(moments); i++ {
				lo, hi := moments[i-1], moments[i]
				list, err := w.b.TIDsFrom(ctx, p, lo, hi, n)
				want, wantErr := w.full.TIDsFrom(ctx, p, lo, hi, n)
				w.same(fmt.Sprintf("TIDsFrom(%d, %v, %v, %d)", p, lo, hi, n), list, err, want, wantErr)
			}
		}
		for _, at := range moments {
			for _, n := range []int{1, 2, 100} {
				var list, want []tid.OID
				for _, x := range []struct {
					b    backend.Reading
					list *[]tid.OID
				}{{w.b, &list}, {w.full, &want}} {
					for from := tid.OID(0); ; {
						next, part, err := x.b.OIDsFrom(ctx, p, n, from, at)
						ok(w, err)
						if len(part) > n {
							w.fatal("OIDsFrom", len(part), n)
						}
						*x.list = append(*x.list, part...)
						if !next.OK {
							break
						}
						from = next.V
					}
				}
				w.same(fmt.Sprintf("OIDsFrom(%d, %d, %v)", p, n, at), list, nil, want, nil)
			}
		}
		own := w.b.own.Load()
		trans, obj, err := w.b.LastTIDs(ctx, p)
		if own != w.b.own.Load() {
			continue // the copy has come to its end meanwhile: either answer is right
		}
		wantTrans, wantObj, wantErr := w.full.LastTIDs(ctx, p)
		if !own {
			wantTrans, wantObj = max(wantTrans, w.b.end), max(wantObj, w.b.end)
		}
		w.same("LastTIDs", []tid.TID{trans, obj}, err, []tid.TID{wantTrans, wantObj}, wantErr)
	}
}

// checkTables compares what is for replication, of ranges for which it need not wait
// unless wait is set.
func (w *world) checkTables(moments []tid.TID, wait bool) {
	w.Helper()
	ctx := w.Context()
	there := func(lo, hi tid.TID) bool {
		return wait || lo > w.b.end || hi <= tid.TID(w.b.done.Load()) || lo > hi
	}
	for _, t := range moments {
		if !there(t, t) {
			continue
		}
		m, _, err := w.b.FetchTransaction(ctx, t)
		want, _, wantErr := w.full.FetchTransaction(ctx, t)
		w.same(fmt.Sprintf("FetchTransaction(%v)", t), m, err, want, wantErr)
		for oid := range tid.OID(w.objects + 4) {
			o, err := w.b.FetchObject(ctx, oid, t)
			want, wantErr := w.full.FetchObject(ctx, oid, t)
			want.Next, o.Next = 0, 0
			w.sameObject(fmt.Sprintf("FetchObject(%v, %v)", oid, t), true, o, err, want, wantErr)
			if wait || t <= tid.TID(w.b.done.Load()) {
				last, deleted, err := w.b.RecordBefore(ctx, oid, t+1)
				wantLast, wantDeleted, wantErr := w.full.RecordBefore(ctx, oid, t+1)
				w.same("RecordBefore", fmt.Sprint(last, deleted), err, fmt.Sprint(wantLast, wantDeleted), wantErr)
			}
		}
	}
	for p := range np {
		for i := 1; i < len(moments); i++ {
			lo, hi := moments[i-1], moments[i]
			for _, n := range []int{0, 1, 2, 100} {
				keys, wantErr := w.full.RecordsFrom(ctx, p, lo, hi, 2, n)
				ok(w, wantErr)
				enough := n > 0 && len(keys) == n && keys[n-1].TID <= tid.TID(w.b.done.Load())
				if there(lo, hi) || enough {
					got, err := w.b.RecordsFrom(ctx, p, lo, hi, 2, n)
					w.same("RecordsFrom", got, err, keys, nil)
					a, err := w.b.CheckSerials(ctx, p, n, lo, hi, 2)
					want, wantErr := w.full.CheckSerials(ctx, p, n, lo, hi, 2)
					w.same("CheckSerials", a, err, want, wantErr)
				}
				if there(lo, hi) {
					a, err := w.b.CheckTIDs(ctx, p, n, lo, hi)
					want, wantErr := w.full.CheckTIDs(ctx, p, n, lo, hi)
					w.same("CheckTIDs", a, err, want, wantErr)
				}
			}
		}
	}
}

func memoryNative(tb testing.TB) Native {
	b, err := backendtest.NewMemory().Open()
	ok(tb, err)
	return b.(Native)
}

func sqliteNative(tb testing.TB) Native {
	db, err := sqlitedb.Open(context.Background(), tb.TempDir()+"/db", sqlitedb.Options{})
	ok(tb, err)
	tb.Cleanup(func() { db.Close() })
	return db
}

// eachSeed runs f for many seeds, on all processors.
func eachSeed(t *testing.T, n int, f func(t *testing.T, seed uint64)) {
	var next atomic.Uint64
	next.Store(*seedFlag)
	for range runtime.GOMAXPROCS(0) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			for !t.Failed() {
				seed := next.Add(1) - 1
				if seed >= *seedFlag+uint64(n) {
					return
				}
				f(t, seed)
			}
		})
	}
}

// Whatever is copied: each answer is that of a database that has everything.
func TestReadingMatchesModel(t *testing.T) {
	for _, tt := range []struct {
		name   string
		seeds  int
		native func(tb testing.TB) Native
	}{{"Memory", *seeds, memoryNative}, {"SQLite", *seeds / 10, sqliteNative}} {
		t.Run(tt.name, func(t *testing.T) {
			eachSeed(t, tt.seeds, func(t *testing.T, seed uint64) {
				w := newWorld(t, seed, tt.native(t))
				w.copyTo(w.rand.IntN(len(w.history) + 1))
				w.commit(w.rand.IntN(6))
				if w.rand.IntN(2) == 0 {
					ok(t, w.b.Commit())
				}
				moments := w.moments(4)
				for oid := range tid.OID(w.objects + 6) {
					w.checkObject(oid, moments)
				}
				w.checkLists(moments)
				w.b.setCopying(true)
				w.checkTables(moments, false)
			})
		})
	}
}

// All answers stay the same while the copy goes on and comes to its end.
func TestReadingWhileCopying(t *testing.T) {
	eachSeed(t, *seeds/4, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, memoryNative(t))
		from := w.rand.IntN(len(w.history) + 1)
		w.copyTo(from)
		w.commit(w.rand.IntN(6))
		w.b.setCopying(true)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			for i, x := range w.history[from:] {
				if err := copyOne(w.native, x); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
				w.b.advance(x.TID)
				for range i % 3 {
					runtime.Gosched()
				}
			}
			w.b.finish()
			w.source.closed.Store(true)
		})
		if seed%2 == 0 {
			wg.Go(func() {
				x := *w
				x.rand = rand.New(rand.NewPCG(seed, 9))
				x.checkTables(x.moments(3), true)
			})
		}
		for range 3 {
			moments := w.moments(2)
			for oid := range tid.OID(w.objects + 5) {
				w.checkObject(oid, moments)
			}
			w.checkLists(moments)
		}
	})
}

// What clients commit while a list is put together of sources, copy and commits neither hides
// anything nor shows it twice.
func TestListsWhileClientsCommit(t *testing.T) {
	w := newWorld(t, 5, memoryNative(t))
	w.copyTo(len(w.history) / 2)
	ctx, end := t.Context(), w.b.end
	var objects []tid.OID
	for p := range np {
		_, oids, err := w.full.OIDsFrom(ctx, p, 100, 0, tid.Max)
		ok(t, err)
		objects = append(objects, oids...)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for at := end + 1; at < end+2000; at++ {
			select {
			case <-stop:
				return
			default:
			}
			oid := objects[int(at)%len(objects)]
			err := write(w.native, &txn.Record{OID: oid, TID: at, Data: []byte("changed")})
			if err == nil {
				err = writeMeta(w.native, &txn.Transaction{TID: at}, []tid.OID{oid})
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	for range 200 {
		var got []tid.OID
		for p := range np {
			_, oids, err := w.b.OIDsFrom(ctx, p, 100, 0, tid.Max)
			ok(t, err)
			got = append(got, oids...)
		}
		if !slices.Equal(got, objects) {
			t.Fatalf("objects %v, want %v", got, objects)
		}
		tids, err := w.b.TIDs(ctx, []int{0, 1, 2}, 0, 5000)
		ok(t, err)
		for i := 1; i < len(tids); i++ {
			if tids[i] >= tids[i-1] {
				t.Fatalf("transactions %v", tids)
			}
		}
		if n := len(below(tids, end, 0)); n != len(w.history) {
			t.Fatalf("%d transactions of the sources, want %d", n, len(w.history))
		}
		for _, oid := range objects {
			revs, err := w.b.History(ctx, oid, 0, 5000)
			ok(t, err)
			want, err := w.full.History(ctx, oid, 0, 5000)
			ok(t, err)
			for i := 1; i < len(revs); i++ {
				if revs[i].TID >= revs[i-1].TID {
					t.Fatalf("history of %v: %v", oid, revs)
				}
			}
			if i := slices.IndexFunc(revs, func(r proto.Revision) bool { return r.TID <= end }); i < 0 || len(revs)-i != len(want) {
				t.Fatalf("history of %v: %v, want at last %v", oid, revs, want)
			}
			o, err := w.b.GetObject(ctx, oid, none, proto.Some(end+1))
			if ok(t, err); o.Next != 0 && o.Next <= end || o.Serial != want[0].TID {
				t.Fatalf("object %v: %v until %v", oid, o.Serial, o.Next)
			}
		}
	}
}
