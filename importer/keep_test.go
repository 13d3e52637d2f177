package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// small is an import of txntest.Small, of which n transactions are copied.
func small(tb testing.TB, n int, log *slog.Logger) (*Backend, *watched, []*txn.Transaction) {
	tb.Helper()
	source := &watched{Database: txntest.Small()}
	var history []*txn.Transaction
	for t, err := range source.Transactions(tb.Context(), 0, tid.Max) {
		ok(tb, err)
		history = append(history, t)
	}
	b := newBackend(memoryNative(tb), source, history[len(history)-1].TID, 5, log)
	ok(tb, b.learnFirst(tb.Context()))
	table(tb, b)
	for _, t := range history[:n] {
		ok(tb, copyOne(b.native, t))
		b.advance(t.TID)
	}
	return b, source, history
}

func refused(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v, want an error with %q", what, err, w)
		}
	}
}

// An import refuses what it cannot bear before anything is stored, and nothing of it
// when it has ended.
func TestKeeping(t *testing.T) {
	b, _, history := small(t, 4, nil)
	change := func(id proto.NodeID, p int, state proto.CellState) error {
		return b.ChangePartitionTable(2, 0, []proto.CellChange{{Partition: p, ID: id, State: state}}, false, 0)
	}
	const other = proto.NodeID(9)
	ok(t, change(other, 1, proto.OutOfDate)) // it will get its data
	ok(t, change(me, 1, proto.Feeding))
	before, err := b.Cells()
	ok(t, err)
	refusals := func() map[string]error {
		_, pack := b.PackedIDs(true)
		_, _, packNow := b.Pack(0, tid.Max, nil, tid.Max, proto.Opt[tid.OID]{}, 10)
		_, _, drop := b.DropDeletions(0, proto.Opt[tid.OID]{}, 10)
		_, prune := b.PruneData(nil)
		var orphans error
		for _, err := range b.Orphans(t.Context()) {
			orphans = err
		}
		return map[string]error{"PackedIDs": pack, "Pack": packNow, "DropDeletions": drop, "PruneData": prune, "Orphans": orphans}
	}
	refused(t, "a readable cell elsewhere", change(other, 0, proto.UpToDate), "readable cell of another storage, S9, for partition 0", "alone")
	refused(t, "an outdated cell here", change(me, 2, proto.OutOfDate), "no readable cell of this node for partition 2")
	refused(t, "no cell here", change(me, 2, proto.Discarded), "no readable cell of this node for partition 2")
	refused(t, "a table without this node", b.ChangePartitionTable(3, 0, []proto.CellChange{{Partition: 0, ID: other, State: proto.UpToDate}}, true, 0), "partition 0")
	refused(t, "another id", b.SetID(7), "node id cannot be changed from S1 to S7")
	ok(t, b.SetID(me))
	for what, err := range refusals() {
		if !errors.Is(err, backend.ErrNotImplemented) {
			t.Errorf("%s: %v", what, err)
		}
	}
	packed, err := b.PackedIDs(false)
	if ok(t, err); len(packed) != np || packed[0] != 0 {
		t.Errorf("executed pack orders: %v", packed)
	}
	refused(t, "truncation", b.SetTruncateTID(proto.Some(b.end-1)), "go up to "+b.end.String())
	ok(t, b.native.SetTruncateTID(proto.Some(history[1].TID))) // as another program has left it
	refused(t, "recorded truncation", b.Truncate(), "go up to "+b.end.String())
	ok(t, b.SetTruncateTID(none))
	after, err := b.Cells()
	ok(t, err)
	if !slices.Equal(before, after) {
		t.Errorf("cells %v, want %v", after, before)
	}
	if _, err := b.FetchObject(t.Context(), 0, history[0].TID); err != nil {
		t.Errorf("data: %v", err)
	}

	for _, x := range history[4:] {
		ok(t, copyOne(b.native, x))
		b.advance(x.TID)
	}
	refused(t, "a readable cell elsewhere, before the switch", change(other, 0, proto.UpToDate), "S9")
	b.finish()
	for what, err := range refusals() {
		if err != nil {
			t.Errorf("%s after the import: %v", what, err)
		}
	}
	ok(t, change(other, 0, proto.UpToDate))
	ok(t, change(me, 0, proto.Discarded))
	refused(t, "truncation after the import", b.SetTruncateTID(proto.Some(b.end-1)), "go up to "+b.end.String())
	ok(t, b.SetTruncateTID(proto.Some(b.end)))
	ok(t, b.Truncate())
	ok(t, b.SetID(7))
}

// An erased database begins its import anew.
func TestErase(t *testing.T) {
	b, _, _ := small(t, 4, nil)
	ok(t, b.native.SetImportState(proto.Some("{}")))
	ok(t, b.Erase())
	if state, err := b.native.ImportState(); state.OK || err != nil {
		t.Errorf("state %v, %v", state, err)
	}
	if b.done.Load() != 0 {
		t.Errorf("copied up to %v", tid.TID(b.done.Load()))
	}
	table(t, b)
	o, err := b.GetObject(t.Context(), 1, none, none)
	if ok(t, err); string(o.Data) != "one" {
		t.Errorf("object 1 is %q", o.Data)
	}
	closed := 0
	b.closeSource = func() error { closed++; return nil }
	ok(t, b.Close())
	ok(t, b.Close())
	if closed != 1 {
		t.Errorf("the sources were closed %d times", closed)
	}
}

// What is for replicas waits until the copy has reached it.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, history := small(t, 2, nil)
		at, last := history[4].TID, history[9].TID
		ctx, cancel := context.WithCancel(t.Context())
		calls := map[string]func(ctx context.Context) error{
			"FetchTransaction": func(ctx context.Context) error { _, _, err := b.FetchTransaction(ctx, at); return err },
			"FetchObject":      func(ctx context.Context) error { _, err := b.FetchObject(ctx, 1, at); return err },
			"RecordsFrom":      func(ctx context.Context) error { _, err := b.RecordsFrom(ctx, 1, 0, at, 0, 0); return err },
			"RecordBefore":     func(ctx context.Context) error { _, _, err := b.RecordBefore(ctx, 1, at+1); return err },
			"CheckTIDs":        func(ctx context.Context) error { _, err := b.CheckTIDs(ctx, 0, 0, 0, at); return err },
			"CheckSerials":     func(ctx context.Context) error { _, err := b.CheckSerials(ctx, 0, 0, 0, at, 0); return err },
		}
		for _, name := range []string{"CheckTIDs", "CheckSerials"} {
			if err := calls[name](ctx); !errors.Is(err, backend.ErrNonReadable) {
				t.Errorf("%s before anything is being copied: %v", name, err)
			}
		}
		b.setCopying(true)
		done := make(chan string, 100)
		var ended []string
		arrived := func() []string {
			synctest.Wait()
			for {
				select {
				case s := <-done:
					ended = append(ended, s)
				default:
					slices.Sort(ended)
					return ended
				}
			}
		}
		start := func(ctx context.Context) {
			ended = nil
			for name, f := range calls {
				go func() { done <- fmt.Sprint(name, " ", f(ctx)) }()
			}
		}
		start(ctx)
		if got := arrived(); got != nil {
			t.Errorf("not awaited: %v", got)
		}
		cancel()
		if got := arrived(); len(got) != len(calls) || got[0] != "CheckSerials context canceled" {
			t.Errorf("cancelled: %q", got)
		}
		start(t.Context())
		copyTo := func(i int) {
			ok(t, copyOne(b.native, history[i]))
			b.advance(history[i].TID)
		}
		copyTo(2)
		copyTo(3)
		if got := arrived(); got != nil {
			t.Errorf("not awaited: %v", got)
		}
		copyTo(4)
		if got := arrived(); len(got) != len(calls) || got[0] != "CheckSerials <nil>" || got[3] != "FetchTransaction <nil>" {
			t.Errorf("copied: %q", got)
		}
		// What is listed of the copy does not wait for more than is asked for.
		if keys, err := b.RecordsFrom(t.Context(), 1, 0, tid.Max, 0, 2); err != nil || len(keys) != 2 {
			t.Errorf("RecordsFrom: %v, %v", keys, err)
		}
		// When nothing is copied any more, a digest is refused, and all else waits on.
		at = last
		start(t.Context())
		b.setCopying(false)
		if got := arrived(); len(got) != 3 || !strings.HasPrefix(got[0], "CheckSerials up to") || !strings.HasPrefix(got[1], "CheckTIDs up to") ||
			got[2] != "RecordBefore <nil>" { // object 1 is copied as a whole
			t.Errorf("the copy has stopped: %q", got)
		}
		for i := 5; i < len(history); i++ {
			ok(t, copyOne(b.native, history[i]))
		}
		b.finish()
		if got := arrived(); len(got) != len(calls) {
			t.Errorf("finished: %q", got)
		}
	})
}

// broken is a source that does not answer.
type broken struct {
	txn.Database
	err  atomic.Pointer[error]
	hang bool
}

func (s *broken) fail(err error) { s.err.Store(&err) }

func (s *broken) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	if s.hang {
		<-ctx.Done()
		return txn.Revision{}, ctx.Err()
	}
	if err := s.err.Load(); err != nil {
		return txn.Revision{}, *err
	}
	return s.Database.LoadBefore(ctx, oid, before)
}

// A read waits for a source that does not answer, but not without end; damage is no reason
// to wait; no error of a source is one of the database.
func TestSourceErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b, source, _ := small(t, 0, slog.New(slog.NewTextHandler(&log, nil)))
		s := &broken{Database: source.Database}
		s.fail(fmt.Errorf("connection lost: %w", txn.ErrUnavailable))
		b.from.db = s
		load := func(ctx context.Context) (time.Duration, error) {
			begin := time.Now()
			_, err := b.GetObject(ctx, 1, none, none)
			return time.Since(begin), err
		}
		for range 2 {
			if took, err := load(t.Context()); !errors.Is(err, backend.ErrNonReadable) || took != patience {
				t.Errorf("unreachable: %v after %v", err, took)
			}
		}
		if n := strings.Count(log.String(), "does not answer"); n != 1 || !strings.Contains(log.String(), "see that its server runs") {
			t.Errorf("log: %s", &log)
		}
		s.hang = true
		if took, err := load(t.Context()); !errors.Is(err, backend.ErrNonReadable) || took != patience {
			t.Errorf("silent: %v after %v", err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if took, err := load(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, backend.ErrNonReadable) || took != time.Second {
			t.Errorf("cancelled: %v after %v", err, took)
		}
		s.hang = false
		time.AfterFunc(5*time.Second, func() { s.err.Store(nil) })
		if took, err := load(t.Context()); err != nil || took < 5*time.Second || took > 6*time.Second {
			t.Errorf("it comes back: %v after %v", err, took)
		}
		s.fail(errors.New("checksum differs"))
		took, err := load(t.Context())
		if corrupt, ok := errors.AsType[*backend.CorruptError](err); !ok || took != 0 || corrupt.OID != 1 || !strings.Contains(err.Error(), "checksum differs") {
			t.Errorf("damaged: %v after %v", err, took)
		}
		// Others are not concerned, nor what is not in the sources.
		ok(t, write(b, &txn.Record{OID: 1, TID: b.end + 1, Data: []byte("new")}))
		if o, err := b.GetObject(t.Context(), 1, none, none); err != nil || string(o.Data) != "new" {
			t.Errorf("changed since: %q, %v", o.Data, err)
		}
	})
}

// The sources are asked only for what may be in them alone.
func TestSourcesAreSpared(t *testing.T) {
	b, source, history := small(t, 5, nil)
	ctx := t.Context()
	ok(t, write(b, &txn.Record{OID: 4, TID: b.end + 1, Data: []byte("new")}))
	ok(t, write(b, &txn.Record{OID: 77, TID: b.end + 1, Data: []byte("new")}))
	asked := func(what string, most int64, f func() error) {
		t.Helper()
		before := source.loads.Load()
		if err := f(); err != nil && !errors.Is(err, backend.ErrNoSuchObject) {
			t.Errorf("%s: %v", what, err)
		}
		if n := source.loads.Load() - before; n > most {
			t.Errorf("%s: the source was asked %d times", what, n)
		}
	}
	load := func(oid tid.OID, at, before proto.Opt[tid.TID]) func() error {
		return func() error { _, err := b.GetObject(ctx, oid, at, before); return err }
	}
	asked("an object of clients", 0, load(77, none, none))
	asked("an object that does not exist", 0, load(78, none, none))
	asked("its history", 0, func() error { _, err := b.History(ctx, 77, 0, 10); return err })
	asked("an object changed since", 0, load(4, none, none))
	asked("an object changed since", 0, load(4, none, proto.Some(tid.Max)))
	asked("a change since", 0, load(4, proto.Some(b.end+1), none))
	asked("an old revision that is copied with the next one", 0, load(1, none, proto.Some(history[2].TID)))
	asked("a current object that is not copied", 1, load(2, none, none))
	asked("a revision that is not copied", 1, load(0, proto.Some(history[9].TID), none))
	asked("a copied object, the first time", 1, load(1, none, none))
	asked("a copied object, again", 0, load(1, none, none))
	asked("its history", 0, func() error { _, err := b.History(ctx, 1, 0, 10); return err })
	asked("an undo of it", 0, func() error { _, err := b.UndoHistory(ctx, 1, history[2].TID); return err })
	b.finish()
	source.closed.Store(true)
	asked("anything afterwards", 0, load(1, none, none))
}

// An undo of what is not copied yet finds what it restores.
func TestUndoOfWhatIsNotCopied(t *testing.T) {
	for _, ahead := range []bool{false, true} {
		b, _, history := small(t, 0, nil)
		if ahead {
			b.ahead = func(r *txn.Record) error { return write(b.native, r) }
		}
		h, err := b.UndoHistory(t.Context(), 1, history[2].TID)
		ok(t, err)
		if !h.Found || h.Prev != proto.Some(history[1].TID) || len(h.Later) != 1 || h.Later[0].DataSerial != history[1].TID {
			t.Errorf("UndoHistory: %+v", h)
		}
		for _, restored := range []tid.TID{history[1].TID, history[4].TID} {
			id, err := b.HoldData(1, proto.ObjectData{}, proto.Some(restored))
			if !ahead {
				if !errors.Is(err, backend.ErrUndoPacked) {
					t.Errorf("HoldData: %v", err)
				}
				continue
			}
			ok(t, err)
			if d, err := b.LoadData(id); err != nil || string(d.Data) != "one" {
				t.Errorf("restored %q, %v", d.Data, err)
			}
		}
		for _, x := range history {
			ok(t, copyOne(b.native, x)) // the same once more
			b.advance(x.TID)
		}
	}
}

// The goroutine that serves all peers does not wait for a source: it is told what must be
// learned elsewhere.
func TestLastRevisionIsLearned(t *testing.T) {
	b, source, history := small(t, 3, nil)
	ok(t, write(b, &txn.Record{OID: 4, TID: b.end + 1, Data: []byte("new")}))
	for _, tt := range []struct {
		oid  tid.OID
		want proto.Opt[tid.TID]
	}{
		{1, proto.Some(history[4].TID)}, // also an older one is copied
		{2, proto.Some(history[6].TID)},
		{3, proto.Some(history[8].TID)}, // deleted
		{4, proto.Some(b.end + 1)},      // changed since
		{5, none},
	} {
		asked := source.loads.Load()
		got, err := b.LastObjectTID(t.Context(), tt.oid)
		if local := tt.oid > 3; local != (err == nil) || !local && !errors.Is(err, backend.ErrNotPrepared) {
			t.Errorf("object %v, not prepared: %v, %v", tt.oid, got, err)
		}
		if source.loads.Load() != asked {
			t.Errorf("object %v: the source was asked", tt.oid)
		}
		ok(t, b.Prepare(t.Context(), tt.oid))
		if got, err := b.LastObjectTID(t.Context(), tt.oid); err != nil || got != tt.want {
			t.Errorf("object %v: %v, %v, want %v", tt.oid, got, err, tt.want)
		}
	}
	// There is room for so many at least, and for twice as many at most.
	for i := range tid.OID(5 * maxRevisions) {
		b.from.learn(100+i, 7)
		if _, ok := b.from.known(100 + max(i, maxRevisions-1) - (maxRevisions - 1)); !ok {
			t.Fatalf("after %d objects a recent one is forgotten", i)
		}
	}
	if n := len(b.from.last) + len(b.from.was); n > 2*maxRevisions {
		t.Errorf("%d objects are kept", n)
	}
	source.closed.Store(true)
	if err := b.Prepare(t.Context(), 1); err == nil {
		t.Error("a source that cannot be read is not noticed")
	}
	b.finish()
	ok(t, b.Prepare(t.Context(), 1))
	if got, err := b.LastObjectTID(t.Context(), 1); err != nil || got != proto.Some(history[2].TID) {
		t.Errorf("without the sources: %v, %v", got, err)
	}
}

// A record of no bytes is not a deletion.
func TestEmptyRecord(t *testing.T) {
	m := &txntest.Memory{}
	ok(t, m.Append(&txn.Transaction{TID: 8, Status: txn.Packed, Records: txn.Slice([]txn.Record{{OID: 1, TID: 8, Data: []byte{}}})}))
	b := newBackend(memoryNative(t), m, 8, 2, nil)
	table(t, b)
	for _, copied := range []bool{false, true} {
		if copied {
			for x := range m.Transactions(t.Context(), 0, 8) {
				ok(t, write(b, &txn.Record{OID: 1, TID: 8, Data: []byte{}}))
				ok(t, writeMeta(b, x, []tid.OID{1}))
			}
			b.finish()
		}
		o, err := b.GetObject(t.Context(), 1, none, none)
		if ok(t, err); o.Data == nil || len(o.Data) != 0 || o.Checksum == proto.ZeroHash {
			t.Errorf("copied %v: %q with checksum %x", copied, o.Data, o.Checksum)
		}
		if m, err := b.Transaction(t.Context(), 8); err != nil || !m.Packed || m.TTID != 8 || !slices.Equal(m.OIDs, []tid.OID{1}) {
			t.Errorf("copied %v: transaction %+v, %v", copied, m, err)
		}
	}
}

// Several objects are asked for at the same time, and an early end leaves the rest alone.
func TestLoadsTogether(t *testing.T) {
	b, source, _ := small(t, 0, nil)
	var keys []backend.ObjectKey
	for range 10 * maxAsking {
		keys = append(keys, backend.ObjectKey{OID: 1})
	}
	answered := 0
	b.GetObjects(t.Context(), keys, func(i int, o *backend.Object, err error) bool {
		answered++
		return answered < 3
	})
	if answered != 3 {
		t.Errorf("%d answers, though the third was to be the last", answered)
	}
	if n := source.loads.Load(); n > maxAsking {
		t.Errorf("the source was asked %d times for three answers", n)
	}
}

// A transaction is read once for all that is asked about its records, however many they are, and
// only so many are kept.
func TestTransactionsAreKept(t *testing.T) {
	m := &txntest.Memory{}
	const n = 3 * maxTransactions
	for at := tid.TID(1); at <= n; at++ {
		records := []txn.Record{{OID: 1, TID: at, Data: []byte("x")}}
		if at == n {
			records = slices.Grow(records, maxObjects+1)
			for oid := tid.OID(2); oid < maxObjects+2; oid++ {
				records = append(records, txn.Record{OID: oid, TID: at, Data: records[0].Data, DataTID: tid.TID(oid)})
			}
		}
		ok(t, m.Append(&txn.Transaction{TID: at, Records: txn.Slice(records)}))
	}
	source := &watched{Database: m}
	s := newSources(source, n, slog.New(slog.DiscardHandler))
	for at := tid.TID(1); at <= n; at++ {
		for oid := tid.OID(1); oid < 4; oid++ {
			from, err := s.dataTID(t.Context(), oid, at)
			ok(t, err)
			if want := tid.TID(oid); at == n && oid > 1 && from != want {
				t.Errorf("data of %v come from %v, want %v", oid, from, want)
			}
		}
		if len(s.txns) != len(s.order) || len(s.order) > maxTransactions {
			t.Fatalf("%d transactions are kept, in order %d", len(s.txns), len(s.order))
		}
	}
	if walks := source.walks.Load(); walks != n {
		t.Errorf("%d transactions were read %d times", n, walks)
	}
	if len(s.txns) != 1 || s.size != maxObjects+1 {
		t.Errorf("%d transactions with %d objects are kept", len(s.txns), s.size)
	}
	if _, err := s.transaction(t.Context(), 1); err != nil || len(s.txns) != 1 || s.size != 1 {
		t.Errorf("%d transactions with %d objects are kept, %v", len(s.txns), s.size, err)
	}
}

// A reader that waits for another reader of the same transaction goes on when that one gives up.
func TestTransactionReadByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, source, history := small(t, 0, nil)
		slow := &slowWalks{Database: source}
		s := newSources(slow, history[9].TID, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		answers := make(chan error, 2)
		go func() { _, err := s.transaction(ctx, history[4].TID); answers <- err }()
		synctest.Wait()
		go func() { _, err := s.transaction(t.Context(), history[4].TID); answers <- err }()
		synctest.Wait()
		cancel()
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		ok(t, <-answers)
		if n := slow.walks.Load(); n != 2 {
			t.Errorf("the transaction was read %d times", n)
		}
	})
}

// slowWalks is a source that takes a second to find a transaction.
type slowWalks struct {
	txn.Database
	walks atomic.Int64
}

func (s *slowWalks) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	s.walks.Add(1)
	return func(yield func(*txn.Transaction, error) bool) {
		select {
		case <-time.After(time.Second):
			s.Database.Transactions(ctx, after, upTo)(yield)
		case <-ctx.Done():
			yield(nil, ctx.Err())
		}
	}
}

// An object may be twice in a transaction of a Data.fs. The last record counts. What is linked to
// it is not copied ahead, since only the copy finds out whether its data are the same.
func TestObjectTwiceInATransaction(t *testing.T) {
	m := &txntest.Memory{}
	for at, records := range [][]txn.Record{
		1: {{OID: 1, Data: []byte("a")}, {OID: 2, Data: []byte("b")}, {OID: 1, Data: []byte("c")}},
		2: {{OID: 1, Data: []byte("a"), DataTID: 1}},
		3: {{OID: 1, Data: []byte("d")}},
	} {
		if at > 0 {
			for i := range records {
				records[i].TID = tid.TID(at)
			}
			ok(t, m.Append(&txn.Transaction{TID: tid.TID(at), Records: txn.Slice(records)}))
		}
	}
	b := newBackend(memoryNative(t), m, 3, 3, nil)
	table(t, b)
	b.ahead = func(r *txn.Record) error {
		t.Errorf("%v at %v was copied ahead", r.OID, r.TID)
		return nil
	}
	x, err := b.Transaction(t.Context(), 1)
	if ok(t, err); !slices.Equal(x.OIDs, []tid.OID{2, 1}) {
		t.Errorf("objects %v", x.OIDs)
	}
	h, err := b.UndoHistory(t.Context(), 1, 3)
	if ok(t, err); h.Prev != proto.Some(tid.TID(2)) {
		t.Errorf("UndoHistory: %+v", h)
	}
}

// damagedLists is a source that cannot list anything.
type damagedLists struct{ txn.Database }

var errHeader = errors.New("a header is damaged")

func (d damagedLists) Transactions(context.Context, tid.TID, tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) { yield(nil, errHeader) }
}

func (d damagedLists) Backwards(context.Context) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) { yield(nil, errHeader) }
}

func (d damagedLists) OIDs(context.Context, tid.TID, tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) { yield(0, errHeader) }
}

func (d damagedLists) Revisions(context.Context, tid.OID, int) ([]txn.Info, error) {
	return nil, errHeader
}

// Damage that a list meets ends neither the node nor what can be read beside it.
func TestDamagedLists(t *testing.T) {
	var log bytes.Buffer
	b, source, history := small(t, 2, slog.New(slog.NewTextHandler(&log, nil)))
	b.from.db = damagedLists{source.Database}
	ctx := t.Context()
	for name, f := range map[string]func() error{
		"Transaction": func() error { _, err := b.Transaction(ctx, history[4].TID); return err },
		"TIDs":        func() error { _, err := b.TIDs(ctx, []int{0}, 0, 100); return err },
		"TIDsFrom":    func() error { _, err := b.TIDsFrom(ctx, 0, 0, tid.Max, 0); return err },
		"OIDsFrom":    func() error { _, _, err := b.OIDsFrom(ctx, 0, 10, 0, tid.Max); return err },
	} {
		log.Reset()
		if err := f(); !errors.Is(err, backend.ErrNonReadable) || !errors.Is(err, errHeader) || !strings.Contains(log.String(), "a source of the import is damaged") {
			t.Errorf("%s: %v\n%s", name, err, &log)
		}
	}
	for name, f := range map[string]func() error{
		"History":     func() error { _, err := b.History(ctx, 1, 0, 10); return err },
		"UndoHistory": func() error { _, err := b.UndoHistory(ctx, 1, history[2].TID); return err },
		"Prepare":     func() error { return b.Prepare(ctx, 1) },
	} {
		if corrupt, ok := errors.AsType[*backend.CorruptError](f()); !ok || corrupt.OID != 1 {
			t.Errorf("%s: %v", name, f())
		}
	}
	if _, err := b.GetObject(ctx, 1, none, none); err != nil {
		t.Errorf("an object: %v", err)
	}
	if _, err := b.TIDsFrom(ctx, 0, 0, history[1].TID, 0); err != nil {
		t.Errorf("what is copied: %v", err)
	}
}

// A record beside one that cannot be read is whole.
func TestRecordBesideDamage(t *testing.T) {
	source, plain := damagedSource(t)
	last, err := plain.LastTID(t.Context())
	ok(t, err)
	b := newBackend(opened(t, backendtest.NewMemory()), source, last, 10, slog.New(slog.DiscardHandler))
	for oid, want := range map[tid.OID]string{1: "a2", 4: "d2"} {
		if o, err := b.GetObject(t.Context(), oid, some(tidAt(2)), none); err != nil || string(o.Data) != want {
			t.Errorf("object %v: %q, %v, want %q", oid, o.Data, err, want)
		}
	}
	// Whether it has a record of this one cannot be known.
	_, err = b.GetObject(t.Context(), 5, some(tidAt(2)), none)
	if _, corrupt := errors.AsType[*backend.CorruptError](err); !corrupt {
		t.Errorf("an object that may be in it: %v", err)
	}
}
