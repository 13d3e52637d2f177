package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
)

const (
	wbPartitions = 5
	wbEnd        = tid.TID(0x03e0_0000_0000_0000)
)

// wbRig is a node with write-back, that can be killed and started again.
type wbRig struct {
	t    *testing.T
	path string // of the source
	disk *backendtest.Memory
	db   func() (backend.Backend, error) // opens the native backend
	log  testlog.Buffer

	history []txn.Transaction // of the source, and what was committed since
	clock   tid.TID
	serials map[tid.OID][]txn.Record // of what is unlocked
	pending map[tid.TID][]txn.Record // of what is locked, by TID

	native Native // as it is used
	file   *fileSink
	sink   Sink
	w      *writeBack
	packer deflate.Packer

	stop func()
}

func wbOK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newWBRig makes a source with some transactions, which are copied into a database in memory.
func newWBRig(t *testing.T) *wbRig {
	disk := backendtest.NewMemory()
	r := newWBRigOf(t, disk.Open)
	r.disk = disk
	return r
}

func newWBRigOf(t *testing.T, db func() (backend.Backend, error)) *wbRig {
	r := &wbRig{db: db, t: t, path: filepath.Join(t.TempDir(), "Data.fs"), clock: wbEnd, serials: map[tid.OID][]txn.Record{}, pending: map[tid.TID][]txn.Record{}}
	w, err := fsformat.Create(r.path, fsformat.WriterOptions{NoSync: true})
	wbOK(t, err)
	for i := range 3 {
		at := wbEnd - 2 + tid.TID(i)
		r.remember(txn.Transaction{TID: at, Status: ' ', User: []byte("source")}, []txn.Record{{OID: tid.OID(i), TID: at, Data: []byte("of the source")}, {OID: 9, TID: at, Data: fmt.Appendf(nil, "%d", i)}})
		wbOK(t, w.Append(&r.history[i]))
	}
	wbOK(t, w.Close())
	native, err := r.db()
	wbOK(t, err)
	var cells []proto.CellChange
	for p := range wbPartitions {
		cells = append(cells, proto.CellChange{Partition: p, ID: 1, State: proto.UpToDate})
	}
	wbOK(t, errors.Join(native.SetID(1), native.ChangePartitionTable(1, 0, cells, true, 0)))
	// All is copied, so that an undo has what it refers to.
	for i := range r.history {
		meta := backend.Meta{User: r.history[i].User, TTID: r.history[i].TID}
		for rec := range r.history[i].Records {
			wbOK(t, native.AddObject(rec.OID, rec.TID, r.packer.Pack(rec.Data), proto.Opt[tid.TID]{}))
			meta.OIDs = append(meta.OIDs, rec.OID)
		}
		wbOK(t, native.AddTransaction(r.history[i].TID, meta, nil))
	}
	wbOK(t, native.Close())
	r.settle()
	return r
}

// settle notes that everything is unlocked.
func (r *wbRig) settle() {
	for t := range r.pending {
		r.settled(t)
	}
}

func (r *wbRig) settled(t tid.TID) {
	for _, rec := range r.pending[t] {
		r.serials[rec.OID] = append(r.serials[rec.OID], rec)
	}
	delete(r.pending, t)
}

// taken reports whether a transaction that is locked has an object.
func (r *wbRig) taken(oid tid.OID) bool {
	for _, records := range r.pending {
		if slices.ContainsFunc(records, func(rec txn.Record) bool { return rec.OID == oid }) {
			return true
		}
	}
	return false
}

func (r *wbRig) remember(t txn.Transaction, records []txn.Record) {
	r.pending[t.TID] = records
	t.Records = txn.Slice(records)
	r.history = append(r.history, t)
}

// start is the start of a process. around is put around the sink.
func (r *wbRig) start(around func(s *fileSink) Sink) {
	r.t.Helper()
	native, err := r.db()
	wbOK(r.t, err)
	log := slog.New(slog.NewTextHandler(&r.log, nil))
	r.file = newFileSink(r.path, log)
	r.sink = r.file
	if around != nil {
		r.sink = around(r.file)
	}
	r.w = newWriteBack(native.(Native), r.sink, wbEnd, log, nil)
	r.native = r.w.wrap()
	if err := r.w.open(r.t.Context()); err != nil && !errors.Is(err, errWB) {
		r.t.Fatal(err)
	}
	// The verification.
	unfinished, err := r.native.Unfinished()
	wbOK(r.t, err)
	for ttid, final := range unfinished {
		if final.OK {
			wbOK(r.t, r.native.Validate(ttid, final.V))
		}
	}
	wbOK(r.t, r.native.DropUnfinished())
	r.settle()
	r.run()
}

func (r *wbRig) run() {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.w.run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("run: %v", err)
		}
	}
}

// finish ends the process as it should be.
func (r *wbRig) finish() error {
	r.stop()
	err := r.w.drain(r.t.Context())
	wbOK(r.t, r.native.Close())
	return err
}

// kill is the death of the process. content is what the file has then, nil: what it has now.
func (r *wbRig) kill(content []byte) {
	var err error
	if content == nil {
		content, err = os.ReadFile(r.path)
		wbOK(r.t, err)
	}
	r.stop()
	r.file.abort() // it has the lock
	wbOK(r.t, os.WriteFile(r.path+".killed", content, 0o666))
	wbOK(r.t, os.Rename(r.path+".killed", r.path))
	wbOK(r.t, r.disk.Crash())
}

// voted is a transaction that is locked.
type voted struct{ ttid, final tid.TID }

// vote votes and locks a random transaction.
func (r *wbRig) vote(rnd *rand.Rand) voted {
	r.clock += tid.TID(1 + rnd.IntN(4))
	v := voted{ttid: r.clock}
	t := txn.Transaction{Status: ' ', User: fmt.Appendf(nil, "user %d", rnd.IntN(3)), Description: fmt.Appendf(nil, "ttid %d", v.ttid)}
	if rnd.IntN(3) == 0 {
		t.Extension = []byte("no pickle\x00")
	}
	r.clock += tid.TID(1 + rnd.IntN(4))
	v.final = r.clock
	t.TID = v.final
	meta := backend.Meta{User: t.User, Description: t.Description, Extension: t.Extension, TTID: v.ttid}
	var records []txn.Record
	var stores []backend.Store
	for _, i := range rnd.Perm(12)[:rnd.IntN(5)] {
		oid := tid.OID(i)
		if r.taken(oid) {
			continue
		}
		meta.OIDs = append(meta.OIDs, oid)
		rec := txn.Record{OID: oid, TID: v.final}
		var from proto.Opt[tid.TID]
		old := r.serials[oid]
		switch k := rnd.IntN(10); {
		case k == 0:
			continue // only checked
		case k == 1: // deleted
		case k < 5 && len(old) > 0: // an undo
			o := old[rnd.IntN(len(old))]
			rec.Data, rec.DataTID = o.Data, o.TID
			from = proto.Some(o.TID)
		default:
			rec.Data = bytes.Repeat([]byte{byte('a' + rnd.IntN(26))}, 1+rnd.IntN(300))
		}
		records = append(records, rec)
		id, err := r.native.HoldData(oid, r.packer.Pack(rec.Data), from)
		wbOK(r.t, err)
		s := backend.Store{OID: oid, Data: id}
		if from.OK {
			s.DataSerial = from.V
		}
		stores = append(stores, s)
	}
	wbOK(r.t, r.native.Vote(v.ttid, stores, &meta, nil))
	wbOK(r.t, r.native.CommitVotes())
	wbOK(r.t, r.native.Lock(v.ttid, v.final, false))
	wbOK(r.t, r.native.CommitVotes())
	r.remember(t, records)
	return v
}

func (r *wbRig) unlock(v voted) {
	wbOK(r.t, r.native.Unlock(v.ttid, v.final, true, true, false))
	r.settled(v.final)
}

func (r *wbRig) commit(rnd *rand.Rand, n int) {
	for range n {
		r.unlock(r.vote(rnd))
	}
}

func (r *wbRig) memory() *txntest.Memory {
	r.t.Helper()
	m := new(txntest.Memory)
	for i := range r.history {
		wbOK(r.t, m.Append(&r.history[i]))
	}
	return m
}

// same fails if the file is not what an export of the whole history is.
func (r *wbRig) same() {
	r.t.Helper()
	want := filepath.Join(r.t.TempDir(), "want.fs")
	_, err := exporter.ToFile(r.t.Context(), r.memory(), want, exporter.FileOptions{})
	wbOK(r.t, err)
	for _, ext := range []string{"", ".index"} {
		a, err := os.ReadFile(want + ext)
		wbOK(r.t, err)
		b, err := os.ReadFile(r.path + ext)
		wbOK(r.t, err)
		if !bytes.Equal(a, b) {
			x, err := fsformat.Open(r.path, fsformat.Options{})
			wbOK(r.t, err)
			defer x.Close()
			for d, err := range exporter.Compare(r.t.Context(), r.memory(), x, 0, tid.Max, exporter.CompareOptions{}, nil) {
				r.t.Errorf("difference of the source: %v, %v", d, err)
			}
			r.t.Fatalf("the source%s has %d bytes that differ from the %d of an export", ext, len(b), len(a))
		}
	}
}

var errWB = errors.New("injected")

// wbSink fails now and then, and may be killed at one of its calls.
type wbSink struct {
	*fileSink
	rnd    *rand.Rand
	faults int // of 100 calls

	mu     sync.Mutex
	killAt int // calls until it is killed, 0: never
	killed []byte
}

func (s *wbSink) step(do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.killed != nil {
		return errWB
	}
	if s.rnd.IntN(100) < s.faults {
		return errWB
	}
	if s.killAt--; s.killAt != 0 {
		return do()
	}
	before, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	s.killed = before
	if do() != nil {
		return errWB
	}
	after, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	if len(after) > len(before) { // somewhere between
		s.killed = after[:len(before)+s.rnd.IntN(len(after)-len(before)+1)]
	}
	return errWB
}

func (s *wbSink) Open(ctx context.Context) (last tid.TID, err error) {
	err = s.step(func() error { last, err = s.fileSink.Open(ctx); return err })
	return last, err
}

func (s *wbSink) Append(t *txn.Transaction) error {
	return s.step(func() error { return s.fileSink.Append(t) })
}

func (s *wbSink) Flush() error { return s.step(s.fileSink.Flush) }

// Whatever fails or is killed, in whatever order transactions are unlocked, in the end the
// source is what an export of the whole history is.
func TestWriteBackRandom(t *testing.T) {
	n := *seeds / 5
	if testing.Short() {
		n = 10
	}
	for seed := range n {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(uint64(seed), 1))
				r := newWBRig(t)
				lives := 1 + rnd.IntN(6)
				for life := range lives {
					s := &wbSink{rnd: rand.New(rand.NewPCG(uint64(seed), uint64(life)+2))}
					if rnd.IntN(2) == 0 {
						s.faults = rnd.IntN(30)
					}
					if rnd.IntN(2) == 0 {
						s.killAt = 1 + rnd.IntN(20)
					}
					r.start(func(f *fileSink) Sink { s.fileSink = f; return s })
					var locked []voted
					for range rnd.IntN(60) {
						switch k := rnd.IntN(10); {
						case k < 4 && len(locked) < 5:
							locked = append(locked, r.vote(rnd))
						case k < 8 && len(locked) > 0:
							i := rnd.IntN(len(locked))
							r.unlock(locked[i])
							locked = slices.Delete(locked, i, i+1)
						case k == 8:
							time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
						case k == 9 && rnd.IntN(4) == 0:
							r.stop() // the operation is interrupted
							if rnd.IntN(2) == 0 {
								time.Sleep(time.Second)
							}
							r.run()
						case k == 9:
							wbOK(t, r.native.Commit())
						}
						// Nothing is told to be written back before it is.
						if f, err := fsformat.Open(r.path, fsformat.Options{}); err == nil {
							last, _, _ := r.w.progress()
							if is, err := f.LastTID(t.Context()); err != nil || is < last {
								t.Fatalf("the file ends with %v (%v), told was %v", is, err, last)
							}
							wbOK(t, f.Close())
						}
					}
					s.mu.Lock()
					if life == lives-1 {
						s.faults, s.killAt = 0, 0
					}
					killed := s.killed
					s.mu.Unlock()
					switch {
					case life == lives-1:
						for _, v := range locked {
							r.unlock(v)
						}
						if killed != nil {
							r.kill(killed)
							r.start(nil)
						}
						synctest.Wait() // it is operational, and had no time for more
						if err := r.finish(); err != nil {
							t.Fatal(err)
						}
					case killed != nil:
						r.kill(killed)
					case rnd.IntN(3) == 0:
						for _, v := range locked {
							r.unlock(v)
						}
						r.stop()
						if err := r.w.drain(t.Context()); err != nil && !errors.Is(err, errWB) {
							t.Fatal(err)
						}
						wbOK(t, r.native.Close())
						r.file.abort()
					default:
						r.kill(nil)
					}
				}
				r.same()
				if n := r.log.Count("not ours"); n > 0 {
					t.Error("it took its own transactions for those of another program")
				}
			})
		})
	}
}

// slowSink takes time, all of it in Append.
type slowSink struct{ *fileSink }

func (s slowSink) Append(t *txn.Transaction) error {
	time.Sleep(10 * time.Millisecond)
	return s.fileSink.Append(t)
}

// A backlog of several pages in partitions of very different length is written in order.
func TestWriteBackPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t)
		rnd := rand.New(rand.NewPCG(1, 1))
		native, err := r.disk.Open()
		wbOK(t, err)
		r.native = native.(Native)
		for i := range 900 {
			// Most of them are in one partition.
			r.clock = r.clock/wbPartitions*wbPartitions + wbPartitions
			if i%7 == 0 {
				r.clock++
			}
			v := r.vote(rnd)
			r.unlock(v)
		}
		wbOK(t, r.native.Close())
		r.start(func(f *fileSink) Sink { return slowSink{f} })
		told := 0
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			last, behind, note := r.w.progress()
			left := 0
			for _, x := range r.history {
				if x.TID > last {
					left++
				}
			}
			if behind != int64(left) || note != "" {
				t.Fatalf("up to %v: %d are behind, not %d: %q", last, behind, left, note)
			}
			if left > 0 && left < 900 {
				told++
			}
		}
		if told == 0 {
			t.Error("nothing is told before the end")
		}
		if last, behind, note := r.w.progress(); last != r.clock || behind != 0 || note != "" {
			t.Errorf("progress %v, %d, %q; want %v", last, behind, note, r.clock)
		}
		wbOK(t, r.finish())
		r.same()
	})
}

// slowReading lets something happen between the reading of two partitions.
type slowReading struct {
	Native
	between func(partition int)
}

func (s slowReading) TIDsFrom(ctx context.Context, partition int, min, max tid.TID, n int) ([]tid.TID, error) {
	list, err := s.Native.TIDsFrom(ctx, partition, min, max, n)
	s.between(partition)
	return list, err
}

// What is committed while the partitions are read one after the other waits for the next time.
func TestWriteBackWhileReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t)
		r.start(nil)
		synctest.Wait()
		rnd := rand.New(rand.NewPCG(3, 1))
		native := r.w.native
		r.stop()
		var left atomic.Int64
		left.Store(300)
		r.w.native = slowReading{native, func(int) {
			if left.Load() > 0 {
				r.commit(rnd, 1)
				left.Add(-1)
			}
		}}
		r.commit(rnd, 1)
		r.run()
		for left.Load() > 0 {
			time.Sleep(time.Second)
		}
		wbOK(t, r.finish())
		r.same()
	})
}

// A partition that is not readable stops the write-back, until the table changes again.
func TestWriteBackWaitsForPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t)
		rnd := rand.New(rand.NewPCG(2, 1))
		r.start(nil)
		r.commit(rnd, 10)
		time.Sleep(time.Second)
		last, _, _ := r.w.progress()
		if last != r.clock {
			t.Fatalf("%v is written back, not %v", last, r.clock)
		}
		set := func(s proto.CellState) {
			wbOK(t, r.native.ChangePartitionTable(2, 0, []proto.CellChange{{Partition: 3, ID: 1, State: s}}, false, 0))
		}
		set(proto.OutOfDate)
		r.commit(rnd, 10)
		time.Sleep(time.Hour)
		now, behind, note := r.w.progress()
		if now != last || behind != 10 || !strings.Contains(note, "partition 3 is not readable") {
			t.Fatalf("with an outdated partition: %v, %d, %q", now, behind, note)
		}
		if n := r.log.Count("write-back to the source waits"); n != 1 {
			t.Errorf("that it waits is logged %d times", n)
		}
		set(proto.UpToDate)
		time.Sleep(time.Second)
		if now, behind, note := r.w.progress(); now != r.clock || behind != 0 || note != "" {
			t.Errorf("afterwards: %v, %d, %q", now, behind, note)
		}
		wbOK(t, r.finish())
		r.same()
	})
}

// changingTable is a source of which the table changes while a transaction is read.
type changingTable struct {
	Native
	at func()
}

func (c changingTable) FetchObject(context.Context, tid.OID, tid.TID) (backend.Object, error) {
	c.at()
	return backend.Object{}, backend.ErrNotFound
}

// A transaction is not written back without the records of a partition that goes away
// while it is read.
func TestWriteBackTableChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t)
		r.start(nil)
		synctest.Wait()
		r.stop()
		native := r.w.native
		changed := 0
		r.w.native = changingTable{native, func() {
			changed++
			r.w.native = native
			wbOK(t, r.native.ChangePartitionTable(3, 0, []proto.CellChange{{Partition: 1, ID: 1, State: proto.OutOfDate}}, false, 0))
		}}
		rnd := rand.New(rand.NewPCG(7, 1))
		for len(r.history) < 4 || changed == 0 {
			r.commit(rnd, 1)
			r.run()
			time.Sleep(time.Second)
			r.stop()
		}
		at := r.history[len(r.history)-1].TID
		if last, _, _ := r.w.progress(); last >= at {
			t.Fatalf("transaction %v is written back without its records", at)
		}
		wbOK(t, r.native.ChangePartitionTable(4, 0, []proto.CellChange{{Partition: 1, ID: 1, State: proto.UpToDate}}, false, 0))
		r.run()
		wbOK(t, r.finish())
		r.same()
	})
}

// A sink that fails is tried again, ever more rarely; it is logged once, and told.
func TestWriteBackSinkFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t)
		s := &wbSink{rnd: rand.New(rand.NewPCG(1, 1))}
		r.start(func(f *fileSink) Sink { s.fileSink = f; return s })
		rnd := rand.New(rand.NewPCG(4, 1))
		r.commit(rnd, 3)
		time.Sleep(time.Second)
		written := r.clock
		s.mu.Lock()
		s.faults = 100
		s.mu.Unlock()
		r.commit(rnd, 7)
		time.Sleep(time.Hour)
		last, behind, note := r.w.progress()
		if last != written || behind != 7 || !strings.Contains(note, "injected") || !strings.Contains(note, "Clients are served as before") {
			t.Errorf("while it fails: %v, %d, %q", last, behind, note)
		}
		if n := r.log.Count("level=ERROR"); n > 2 { // first that of the flush, then that of the opening
			t.Errorf("%d errors are logged in an hour", n)
		}
		if _, err := fsformat.Lock(r.path); !errors.As(err, new(*fsformat.LockedError)) {
			t.Errorf("while it waits for the next attempt the file is not locked: %v", err)
		}
		s.mu.Lock()
		s.faults = 0
		s.mu.Unlock()
		time.Sleep(lastRetry + time.Second)
		if last, behind, note := r.w.progress(); last != r.clock || behind != 0 || note != "" {
			t.Errorf("afterwards: %v, %d, %q", last, behind, note)
		}
		wbOK(t, r.finish())
		r.same()
	})
}

// What another program did with the file is noticed, and nothing is written then.
func TestWriteBackForeign(t *testing.T) {
	appendForeign := func(t *testing.T, path string, at tid.TID) {
		f, err := fsformat.OpenAppend(t.Context(), path, fsformat.WriterOptions{})
		wbOK(t, err)
		wbOK(t, f.Append(&txn.Transaction{TID: at, Records: txn.Slice([]txn.Record{{OID: 1, TID: at, Data: []byte("theirs")}})}))
		wbOK(t, f.Close())
	}
	for name, tt := range map[string]struct {
		change func(t *testing.T, r *wbRig)
		note   string
	}{
		"appended": {func(t *testing.T, r *wbRig) { appendForeign(t, r.path, r.clock+1) }, "has transactions that are not ours (transaction"},
		"in the place of one that was not written back": {func(t *testing.T, r *wbRig) {
			v := r.vote(rand.New(rand.NewPCG(9, 1)))
			r.history = r.history[:len(r.history)-1]
			r.settle()
			wbOK(t, errors.Join(r.native.Abort(v.ttid), r.native.Commit()))
			appendForeign(t, r.path, v.final)
		}, "has transactions that are not ours (transaction"},
		"truncated into the source": {func(t *testing.T, r *wbRig) { wbOK(t, os.Truncate(r.path, 60)) }, "has not all that is imported"},
		"removed":                   {func(t *testing.T, r *wbRig) { wbOK(t, os.Remove(r.path)) }, "no such file"},
		"another database": {func(t *testing.T, r *wbRig) {
			wbOK(t, errors.Join(os.Remove(r.path), os.Remove(r.path+".index")))
			f, err := fsformat.Create(r.path, fsformat.WriterOptions{})
			wbOK(t, err)
			wbOK(t, f.Close())
		}, "has not all that is imported"},
	} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprint(name, running), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newWBRig(t)
					rnd := rand.New(rand.NewPCG(5, 1))
					r.start(nil)
					r.commit(rnd, 3)
					time.Sleep(time.Second)
					r.stop()
					wbOK(t, r.file.Close())
					good, err := os.ReadFile(r.path)
					wbOK(t, err)
					tt.change(t, r)
					bad, _ := os.ReadFile(r.path)
					if running {
						r.w.opened = false
					} else {
						wbOK(t, r.disk.Crash())
						native, err := r.disk.Open()
						wbOK(t, err)
						log := slog.New(slog.NewTextHandler(&r.log, nil))
						r.file = newFileSink(r.path, log)
						r.w = newWriteBack(native.(Native), r.file, wbEnd, log, nil)
						r.native = r.w.wrap()
						unfinished, err := r.native.Unfinished()
						wbOK(t, err)
						for ttid, final := range unfinished {
							wbOK(t, r.native.Validate(ttid, final.V))
						}
					}
					r.run()
					r.commit(rnd, 3)
					time.Sleep(time.Hour)
					if _, _, note := r.w.progress(); !strings.Contains(note, tt.note) {
						t.Errorf("told is %q", note)
					}
					now, _ := os.ReadFile(r.path)
					cut, _ := os.ReadFile(r.path + ".tr0") // an incomplete end
					if !bytes.Equal(append(now, cut...), bad) {
						t.Error("it was written to")
					}
					os.Remove(r.path + ".index")
					wbOK(t, os.WriteFile(r.path, good, 0o666))
					time.Sleep(lastRetry + time.Second)
					if last, behind, note := r.w.progress(); last != r.clock || behind != 0 || note != "" {
						t.Errorf("when it is what it was: %v, %d, %q", last, behind, note)
					}
					wbOK(t, r.finish())
					r.same()
				})
			})
		}
	}
}

// A source that was packed meanwhile lacks transactions. It goes on from its end.
func TestWriteBackPackedSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t)
		r.start(nil)
		rnd := rand.New(rand.NewPCG(5, 1))
		r.commit(rnd, 9)
		time.Sleep(time.Second)
		r.kill(nil)
		r.history = slices.Delete(r.history, 6, 7)
		wbOK(t, os.Remove(r.path))
		_, err := exporter.ToFile(t.Context(), r.memory(), r.path, exporter.FileOptions{})
		wbOK(t, err)
		r.start(nil)
		r.commit(rnd, 9)
		time.Sleep(time.Second)
		if last, behind, note := r.w.progress(); last != r.clock || behind != 0 || note != "" {
			t.Errorf("%v, %d, %q", last, behind, note)
		}
		wbOK(t, r.finish())
		r.same()
	})
}

// A file that is replaced or grows while it is open is not written to.
func TestWriteBackReplacedWhileOpen(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(t *testing.T, path string, content []byte)
		note   string
	}{
		"replaced by a copy": {func(t *testing.T, path string, content []byte) {
			wbOK(t, os.WriteFile(path+"2", content, 0o666))
			wbOK(t, os.Rename(path+"2", path))
		}, "was replaced by another file"},
		"garbage at its end": {func(t *testing.T, path string, content []byte) {
			wbOK(t, os.WriteFile(path, append(bytes.Clone(content), "garbage"...), 0o666))
		}, "was written to or truncated by another program"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newWBRig(t)
				rnd := rand.New(rand.NewPCG(6, 1))
				r.start(nil)
				r.commit(rnd, 3)
				time.Sleep(time.Second)
				content, err := os.ReadFile(r.path)
				wbOK(t, err)
				tt.change(t, r.path, content)
				r.commit(rnd, 3)
				time.Sleep(gather + firstRetry/2)
				if _, behind, note := r.w.progress(); behind != 3 || !strings.Contains(note, tt.note) {
					t.Errorf("%d behind, told is %q", behind, note)
				}
				time.Sleep(time.Minute) // it is good, from its end on
				wbOK(t, r.finish())
				r.same()
			})
		})
	}
}

// Nothing is packed that is not written back, and no truncation is accepted.
func TestWriteBackPackTruncate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t)
		s := &wbSink{rnd: rand.New(rand.NewPCG(1, 1))}
		r.start(func(f *fileSink) Sink { s.fileSink = f; return s })
		rnd := rand.New(rand.NewPCG(8, 1))
		r.commit(rnd, 5)
		time.Sleep(time.Second)
		s.mu.Lock()
		s.faults = 100
		s.mu.Unlock()
		before := r.clock
		r.commit(rnd, 20)
		order := func() tid.TID {
			at := r.clock
			r.clock += 2
			wbOK(t, r.native.Vote(r.clock-1, nil, &backend.Meta{TTID: r.clock - 1}, &proto.PackRequest{Time: at}))
			wbOK(t, errors.Join(r.native.Lock(r.clock-1, r.clock, true), r.native.Commit()))
			wbOK(t, r.native.Unlock(r.clock-1, r.clock, true, true, true))
			r.remember(txn.Transaction{TID: r.clock, Status: ' '}, nil)
			return at
		}
		at := order()
		if got := r.w.packable(); got != before {
			t.Errorf("packable up to %v, not %v", got, before)
		}
		if _, err := r.native.PackedIDs(true); !errors.Is(err, backend.ErrNotImplemented) {
			t.Errorf("PackedIDs with a pack of what is not written back: %v", err)
		}
		if _, _, err := r.native.Pack(0, at, nil, tid.Max, proto.Opt[tid.OID]{}, 1000); err != nil {
			t.Error(err) // it leaves what must stay, as the bytes of the file show
		}
		s.mu.Lock()
		s.faults = 0
		s.mu.Unlock()
		time.Sleep(lastRetry)
		if _, err := r.native.PackedIDs(true); err != nil {
			t.Errorf("PackedIDs when all is written back: %v", err)
		}
		packed := 0
		for p := range wbPartitions {
			_, n, err := r.native.Pack(p, at, nil, tid.Max, proto.Opt[tid.OID]{}, 1000)
			wbOK(t, errors.Join(err, r.native.Commit()))
			packed += n
		}
		clear(r.serials) // an undo needs its revision
		if packed == 0 {
			t.Fatal("nothing is packed")
		}
		if err := r.native.SetTruncateTID(proto.Some(r.clock)); err == nil || !strings.Contains(err.Error(), "written back") {
			t.Errorf("truncation: %v", err)
		}
		// What a pack has removed here and not there is no transaction of another program.
		r.kill(nil)
		r.start(nil)
		r.commit(rnd, 5)
		time.Sleep(time.Second)
		if _, _, note := r.w.progress(); note != "" {
			t.Errorf("after a pack: %q", note)
		}
		wbOK(t, r.finish())
		// Undos after the pack may have lost what they refer to.
		last := r.history[len(r.history)-1].TID
		f, err := fsformat.Open(r.path, fsformat.Options{})
		wbOK(t, err)
		defer f.Close()
		if is, err := f.LastTID(t.Context()); err != nil || is != last {
			t.Errorf("the file ends with %v (%v), not %v", is, err, last)
		}
		for d, err := range exporter.Compare(t.Context(), r.memory(), f, 0, at, exporter.CompareOptions{}, nil) {
			t.Errorf("difference of what was packed: %v, %v", d, err)
		}
	})
}

// The source goes on to be read, up to its old end, while it grows.
func TestWriteBackWhileSourceIsRead(t *testing.T) {
	r := newWBRig(t)
	// An interrupted write is at its end.
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_APPEND, 0)
	wbOK(t, err)
	_, err = f.Write(bytes.Repeat([]byte("x"), 200))
	wbOK(t, errors.Join(err, f.Close()))
	r.start(nil)
	source, err := fsformat.Open(r.path, fsformat.Options{})
	wbOK(t, err)
	defer source.Close()
	_, err = source.UseIndex(t.Context(), "", nil)
	wbOK(t, err)
	rnd := rand.New(rand.NewPCG(5, 1))
	for range 30 {
		r.commit(rnd, 10)
		n := 0
		for _, err := range source.Transactions(t.Context(), 0, wbEnd) {
			wbOK(t, err)
			n++
		}
		for _, err := range source.Backwards(t.Context()) {
			wbOK(t, err)
			n++
		}
		rev, err := source.LoadBefore(t.Context(), 9, wbEnd+1)
		if err != nil || rev.Serial != wbEnd || n != 6 {
			t.Fatalf("object 9: %+v, %v; %d transactions", rev, err, n)
		}
		time.Sleep(10 * time.Millisecond)
	}
	wbOK(t, r.finish())
	r.same()
}

const pythonIterate = `
import logging, sys
from ZODB.FileStorage import FileStorage
from ZODB.utils import u64
s = FileStorage(sys.argv[1], read_only=sys.argv[2] == 'ro')
for t in s.iterator():
    print(u64(t.tid), t.user.decode(), t.description.decode(), *sorted(u64(r.oid) for r in t))
    for r in t:
        assert s.loadSerial(r.oid, r.tid) == r.data if r.data is not None else True
s.close()
`

// What was locked and is dropped holds up nothing.
func TestWriteBackDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t)
		rnd := rand.New(rand.NewPCG(5, 1))
		r.start(nil)
		for _, drop := range []func(v voted) error{
			func(voted) error { return r.native.DropUnfinished() },
			func(v voted) error { return r.native.Abort(v.ttid) },
		} {
			v := r.vote(rnd)
			r.history = r.history[:len(r.history)-1]
			clear(r.pending)
			last := v.final - 1
			r.commit(rnd, 1)
			time.Sleep(time.Second)
			if now, _, _ := r.w.progress(); now > last {
				t.Errorf("while %v is locked, %v is written back", v.final, now)
			}
			wbOK(t, drop(v))
			time.Sleep(time.Second)
			if now, behind, note := r.w.progress(); now != r.clock || behind != 0 || note != "" {
				t.Errorf("afterwards: %v, not %v, %d, %q", now, r.clock, behind, note)
			}
		}
		wbOK(t, errors.Join(r.native.SetBackupTID(proto.Some(r.clock))))
		time.Sleep(time.Second)
		if _, _, note := r.w.progress(); !strings.Contains(note, "backup mode") {
			t.Errorf("in backup mode: %q", note)
		}
		wbOK(t, r.native.SetBackupTID(proto.Opt[tid.TID]{}))
		wbOK(t, r.finish())
		r.same()
	})
}

// A real database, committed to and read at the same time.
func TestWriteBackSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	r := newWBRigOf(t, func() (backend.Backend, error) { return sqlitedb.Open(t.Context(), path, sqlitedb.Options{}) })
	rnd := rand.New(rand.NewPCG(20, 1))
	for range 3 {
		r.start(nil)
		var locked []voted
		for range 300 {
			if len(locked) < 4 {
				locked = append(locked, r.vote(rnd))
			}
			if i := rnd.IntN(5); i < len(locked) {
				r.unlock(locked[i])
				locked = slices.Delete(locked, i, i+1)
			}
		}
		for _, v := range locked {
			r.unlock(v)
		}
		r.commit(rnd, 10)
		wbOK(t, r.finish())
		r.same()
	}
}

// Through everything: a node that imports and writes back, that is killed and started again
// during the import and after its end.
func TestWriteBackOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWBRig(t) // only its source
		clear(r.serials) // which is not copied yet
		wbOK(t, os.Remove(r.path+".index"))
		rnd := rand.New(rand.NewPCG(30, 1))
		disk := backendtest.NewMemory()
		logger := slog.New(slog.NewTextHandler(&r.log, nil))
		cfg := Config{Log: logger, Open: func(context.Context, config.Destination) (Native, error) {
			b, err := disk.Open()
			if err != nil {
				return nil, err
			}
			return b.(Native), nil
		}}
		cfg.Import.Destination.WriteBack = true
		cfg.Import.Sources = []config.Source{{Section: "root", Storage: config.Storage{File: &config.File{Path: r.path}}}}
		for life := range 4 {
			b, err := Open(t.Context(), cfg)
			wbOK(t, err)
			if life == 0 {
				var cells []proto.CellChange
				for p := range wbPartitions {
					cells = append(cells, proto.CellChange{Partition: p, ID: 1, State: proto.UpToDate})
				}
				wbOK(t, errors.Join(b.SetID(1), b.ChangePartitionTable(1, 0, cells, true, 0), b.Commit()))
				if _, err := os.Stat(r.path + ".index"); err != nil {
					t.Errorf("the index that was made is not stored: %v", err)
				}
			}
			unfinished, err := b.Unfinished()
			wbOK(t, err)
			for ttid, final := range unfinished {
				wbOK(t, b.Validate(ttid, final.V))
			}
			r.settle()
			r.native = struct { // what the node uses
				backend.Backend
				backend.Importing
			}{b, b.native}
			if life == 0 {
				wbOK(t, b.Order(importing.Order{Kind: importing.Pause}))
			} else if life == 1 {
				wbOK(t, b.Order(importing.Order{Kind: importing.Resume}))
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- b.Run(ctx) }()
			r.commit(rnd, 10)
			time.Sleep(5 * time.Second)
			p := b.Progress()
			if p.WriteBack != r.clock || p.Behind != 0 || p.Note != "" || (p.State == importing.Done) != (life > 0) {
				t.Errorf("life %d: %+v", life, p)
			}
			r.commit(rnd, 10)
			if _, err := fsformat.Lock(r.path); !errors.As(err, new(*fsformat.LockedError)) {
				t.Errorf("life %d: the source is not locked: %v", life, err)
			}
			cancel()
			<-ended
			wbOK(t, b.Close())
			f, err := fsformat.Open(r.path, fsformat.Options{})
			wbOK(t, err)
			if last, err := f.LastTID(t.Context()); err != nil || last != r.clock {
				t.Errorf("life %d: closed, the source ends with %v (%v), not %v", life, last, err, r.clock)
			}
			wbOK(t, f.Close())
		}
		r.same()
		// In use by another program.
		unlock, err := fsformat.Lock(r.path)
		wbOK(t, err)
		b, err := Open(t.Context(), cfg) // nothing but the write-back needs the source any more
		wbOK(t, err)
		if p := b.Progress(); !strings.Contains(p.Note, "stop it first") {
			t.Errorf("a source in use by another program: %+v", p)
		}
		wbOK(t, errors.Join(b.Close(), unlock()))
		wbOK(t, disk.Crash())
		disk = backendtest.NewMemory()
		unlock, err = fsformat.Lock(r.path)
		wbOK(t, err)
		if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "stop it first") {
			t.Errorf("a source in use by another program, at the beginning: %v", err)
		}
		wbOK(t, unlock())
	})
}

// Python can open the file at any time, beside an index that is older.
func TestWriteBackPython(t *testing.T) {
	python := zeotest.Python(t)
	r := newWBRig(t)
	look := func(upTo tid.TID, mode string) {
		t.Helper()
		cmd := exec.Command(python, "-c", pythonIterate, r.path, mode)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr.Bytes())
		}
		var want strings.Builder
		for _, x := range r.history {
			if x.TID > upTo {
				continue
			}
			fmt.Fprintf(&want, "%d %s %s", uint64(x.TID), x.User, x.Description)
			var oids []tid.OID
			for rec := range x.Records {
				oids = append(oids, rec.OID)
			}
			slices.Sort(oids)
			for _, oid := range oids {
				fmt.Fprintf(&want, " %d", uint64(oid))
			}
			want.WriteByte('\n')
		}
		if string(out) != want.String() {
			t.Errorf("Python reads\n%s, want\n%s", out, &want)
		}
	}
	rnd := rand.New(rand.NewPCG(12, 1))
	r.start(nil)
	plain := func(n int) {
		t.Helper()
		for range n {
			r.clock++
			v := voted{r.clock, r.clock + 1}
			r.clock++
			data := []byte("\x80\x03cpersistent\nPersistent\nq\x00.\x80\x03}q\x00.")
			oid := tid.OID(rnd.IntN(12))
			id, err := r.native.HoldData(oid, r.packer.Pack(data), proto.Opt[tid.TID]{})
			wbOK(t, err)
			wbOK(t, r.native.Vote(v.ttid, []backend.Store{{OID: oid, Data: id}}, &backend.Meta{TTID: v.ttid, User: []byte("u"), Description: []byte("d"), OIDs: []tid.OID{oid}}, nil))
			wbOK(t, errors.Join(r.native.Lock(v.ttid, v.final, false), r.native.Commit()))
			r.unlock(v)
			r.remember(txn.Transaction{TID: v.final, Status: ' ', User: []byte("u"), Description: []byte("d")}, []txn.Record{{OID: oid, TID: v.final, Data: data}})
		}
	}
	wait := func() {
		for last, _, note := r.w.progress(); last != r.clock; last, _, note = r.w.progress() {
			if note != "" {
				t.Fatal(note)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	plain(20)
	wait()
	look(r.clock, "ro")
	r.kill(nil)
	look(r.clock, "ro")
	look(r.clock, "rw") // it writes its index
	r.start(nil)
	plain(20)
	wait()
	// Killed in the middle of a transaction.
	content, err := os.ReadFile(r.path)
	wbOK(t, err)
	r.kill(content[:len(content)-30])
	look(r.history[len(r.history)-2].TID, "ro")
	look(r.history[len(r.history)-2].TID, "rw") // it cuts off what is incomplete
	r.start(nil)
	wait()
	look(r.clock, "ro")
	wbOK(t, r.finish())
	look(r.clock, "rw")
}

// What hides the uncommitted copy from reads reaches the database below the write-back.
func TestWriteBackReadsCommitted(t *testing.T) {
	native := &committing{Native: memoryNative(t)}
	wrapped := newWriteBack(native, nil, 0, slog.New(slog.DiscardHandler), nil).wrap()
	r, ok := wrapped.(committedReader)
	if !ok {
		t.Fatalf("%T does not tell what is committed", wrapped)
	}
	if r.ReadCommitted(7); native.upTo != 7 {
		t.Errorf("up to %v, want 7", native.upTo)
	}
}

type committing struct {
	Native
	upTo tid.TID
}

func (n *committing) ReadCommitted(upTo tid.TID) { n.upTo = upTo }
