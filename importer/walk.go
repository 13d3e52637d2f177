package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/pickle"
)

const (
	// maxAhead bounds what is read and not yet used, in bytes of the sources. A longer
	// record is alone.
	maxAhead = 32 << 20
	// A chunk ends after so many bytes, or records.
	chunkBytes = 64 << 10
	chunkItems = 512
	// maxWhole is how many bytes of one transaction are kept until its end, where it is
	// known which records of an object twice in it counts. A longer one is read twice.
	maxWhole = 8 << 20
	// maxSpent bounds what a chunk counts beside the time of the last stage.
	maxSpent = 10 * time.Millisecond
	// itemBytes is what an item without data counts.
	itemBytes = 256
)

// item is a record of the history, or the end of a transaction.
type item struct {
	oid     tid.OID
	tid     tid.TID
	data    []byte  // nil: the object does not exist
	dataTID tid.TID // Zero: none
	blob    bool
	skipped bool // it cannot be read, and is left out by order
	twice   bool // a later record of the object in the same transaction counts instead
	meta    *backend.Meta

	packed proto.ObjectData // of the copy
	what   string           // of the comparison: how the native backend differs; "": it is equal
	err    error            // of the comparison: the native backend cannot be read
}

// chunk is a part of the history, which one goroutine works at. It is used again
// when it was consumed.
type chunk struct {
	items []item
	arena []byte        // the data of items
	bytes int           // of data
	size  int64         // what it takes of the budget
	spent time.Duration // by the goroutines before the last one
	done  chan struct{} // closed after the work
}

// SourceError reports that the sources could not be read to the end.
type SourceError struct {
	Last tid.TID // the transaction read before, whole
	TID  tid.TID // in which it happened; Zero: behind Last
	Err  error
}

func (e *SourceError) Error() string {
	if e.TID != tid.Zero {
		return fmt.Sprintf("transaction %v: %v", e.TID, e.Err)
	}
	return fmt.Sprintf("after transaction %v: %v", e.Last, e.Err)
}

// Unwrap returns what the source says.
func (e *SourceError) Unwrap() error { return e.Err }

var spareChunks sync.Pool // of *chunk

// newChunk returns an empty chunk.
func newChunk() *chunk {
	c, _ := spareChunks.Get().(*chunk)
	if c == nil {
		c = &chunk{items: make([]item, 0, 64), arena: make([]byte, 0, chunkBytes)}
	}
	c.done = make(chan struct{})
	return c
}

// free gives a chunk back: nothing may refer to its data.
func (c *chunk) free() {
	if cap(c.arena) != chunkBytes {
		return
	}
	clear(c.items)
	*c = chunk{items: c.items[:0], arena: c.arena[:0]}
	spareChunks.Put(c)
}

// worked is what a chunk counts for the share of the time: what the last stage has taken, and
// the others, which have processors beside those of the clients. They may have waited for one
// themselves, so that not all of it is believed.
func (c *chunk) worked(last time.Duration) time.Duration {
	return last + min(c.spent/time.Duration(runtime.GOMAXPROCS(0)), maxSpent)
}

// walker reads the sources and makes chunks. It has one goroutine.
type walker struct {
	b    *Backend
	send func(context.Context, *chunk) error
	last tid.TID // the transaction that was read last, whole

	chunks []*chunk // of this transaction and before; the last one is being filled
	// Where this transaction begins: a position in the first of chunks.
	first, firstByte int
	held             int // bytes of this transaction
	oids             []tid.OID
	sorted           []tid.OID
	begin            time.Time // of the work at the last chunk
	again            bool      // the iteration has to begin again behind this transaction
}

// walk sends the history in (w.last, upTo].
func (w *walker) walk(ctx context.Context, upTo tid.TID) error {
	w.begin = time.Now()
	w.add()
	for {
		w.again = false
		err := w.pass(ctx, upTo)
		if err == nil && w.again {
			continue
		}
		if err == nil && w.last < upTo && !w.b.skipsIn(upTo) {
			err = w.failed(ctx, tid.Zero, fmt.Errorf("the sources end here, before transaction %v: are they those that the import began with?", upTo))
		}
		if err == nil {
			return w.flush(ctx)
		}
		e, ok := errors.AsType[*SourceError](err)
		if !ok || ctx.Err() != nil {
			return err
		}
		// What was read whole is used.
		if err := w.flush(ctx); err != nil {
			return err
		}
		if t, ok := w.b.skipsAfter(w.last); ok && e.TID == tid.Zero && !errors.Is(e.Err, txn.ErrUnavailable) {
			w.b.log.Warn("the sources are read on behind a transaction that is left out by order", "tid", t, "err", err)
			w.last = t
			continue
		}
		return err
	}
}

func (w *walker) pass(ctx context.Context, upTo tid.TID) error {
	for t, err := range w.b.source.Transactions(ctx, w.last, upTo) {
		if err != nil {
			return w.failed(ctx, tid.Zero, err)
		}
		if t.TID <= w.last {
			return w.failed(ctx, tid.Zero, fmt.Errorf("the ids of transactions do not increase: %v comes after %v", t.TID, w.last))
		}
		if err := w.transaction(ctx, t); err != nil {
			return err
		}
		w.last = t.TID
		if w.again {
			return nil
		}
	}
	return ctx.Err()
}

// failed is the error of a source, or of ctx.
func (w *walker) failed(ctx context.Context, t tid.TID, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &SourceError{Last: w.last, TID: t, Err: err}
}

// add begins a chunk.
func (w *walker) add() {
	w.chunks = append(w.chunks, newChunk())
}

// put appends an item to the last chunk.
func (w *walker) put(it item, data []byte) {
	c := w.chunks[len(w.chunks)-1]
	if len(c.items) >= chunkItems || len(c.arena) > 0 && len(c.arena)+len(data) > chunkBytes {
		w.add()
		c = w.chunks[len(w.chunks)-1]
	}
	if data != nil {
		if cap(c.arena) < len(data) { // so it is empty
			c.arena = make([]byte, 0, len(data))
		}
		n := len(c.arena)
		c.arena = append(c.arena, data...)
		it.data = c.arena[n:len(c.arena):len(c.arena)]
		c.bytes += len(data)
		w.held += len(data)
	}
	w.held += itemBytes
	c.items = append(c.items, it)
}

// restart forgets what was kept of this transaction.
func (w *walker) restart() {
	clear(w.chunks[1:])
	w.chunks = w.chunks[:1]
	c := w.chunks[0]
	for _, it := range c.items[w.first:] {
		c.bytes -= len(it.data)
	}
	c.items, c.arena = c.items[:w.first], c.arena[:w.firstByte]
	w.oids, w.held = w.oids[:0], 0
}

// flush sends all chunks.
func (w *walker) flush(ctx context.Context) error {
	for _, c := range w.chunks {
		if err := w.sendOne(ctx, c); err != nil {
			return err
		}
	}
	clear(w.chunks)
	w.chunks = w.chunks[:0]
	w.add()
	return nil
}

// flushFull sends all chunks but the last one.
func (w *walker) flushFull(ctx context.Context) error {
	n := len(w.chunks) - 1
	for _, c := range w.chunks[:n] {
		if err := w.sendOne(ctx, c); err != nil {
			return err
		}
	}
	w.chunks[0] = w.chunks[n]
	clear(w.chunks[1:])
	w.chunks = w.chunks[:1]
	return nil
}

func (w *walker) sendOne(ctx context.Context, c *chunk) error {
	if len(c.items) == 0 {
		return nil
	}
	c.size = int64(cap(c.arena) + len(c.items)*itemBytes)
	c.spent = time.Since(w.begin)
	err := w.send(ctx, c)
	w.begin = time.Now()
	return err
}

// errLong is the end of a transaction that is too long to be kept.
var errLong = errors.New("long transaction")

// transaction adds the records of a transaction, and its end.
func (w *walker) transaction(ctx context.Context, t *txn.Transaction) error {
	c := w.chunks[0]
	w.first, w.firstByte, w.held, w.oids = len(c.items), len(c.arena), 0, w.oids[:0]
	err := w.whole(ctx, t)
	if err == errLong {
		w.restart()
		err = w.long(ctx, t)
	}
	if err != nil {
		w.restart()
		return w.failed(ctx, t.TID, err)
	}
	m := &backend.Meta{Packed: t.Status == txn.Packed, TTID: t.TID, OIDs: slices.Clone(w.oids)}
	text := make([]byte, 0, len(t.User)+len(t.Description)+len(t.Extension))
	for _, f := range []struct {
		to   *[]byte
		from []byte
	}{{&m.User, t.User}, {&m.Description, t.Description}, {&m.Extension, t.Extension}} {
		n := len(text)
		text = append(text, f.from...)
		*f.to = text[n:len(text):len(text)]
	}
	w.put(item{tid: t.TID, meta: m}, nil)
	if c := w.chunks[len(w.chunks)-1]; len(c.arena) >= chunkBytes*3/4 || len(c.items) >= chunkItems*3/4 {
		return w.flush(ctx)
	}
	return w.flushFull(ctx)
}

// whole keeps the records of a transaction, unless it is long.
func (w *walker) whole(ctx context.Context, t *txn.Transaction) error {
	for r, err := range w.records(ctx, t) {
		if err != nil {
			return err
		}
		if err := w.record(t.TID, r); err != nil {
			return err
		}
		w.oids = append(w.oids, r.OID)
		if w.held > maxWhole {
			return errLong
		}
	}
	last := w.lasts()
	if last == nil {
		return nil
	}
	// Which of them count is known at the end.
	for i := len(w.chunks) - 1; i >= 0; i-- {
		items := w.chunks[i].items
		if i == 0 {
			items = items[w.first:]
		}
		for j := len(items) - 1; j >= 0; j-- {
			if n, several := last[items[j].oid]; several {
				items[j].twice = n == 0
				last[items[j].oid] = 0
			}
		}
	}
	w.oids = w.oids[:0]
	for i, c := range w.chunks {
		items := c.items
		if i == 0 {
			items = items[w.first:]
		}
		for _, it := range items {
			if !it.twice {
				w.oids = append(w.oids, it.oid)
			}
		}
	}
	return nil
}

// long reads the records of a transaction twice: their objects first.
func (w *walker) long(ctx context.Context, t *txn.Transaction) error {
	for r, err := range w.records(ctx, t) {
		if err != nil {
			return err
		}
		w.oids = append(w.oids, r.OID)
	}
	left := w.lasts()
	w.oids = w.oids[:0]
	for r, err := range w.records(ctx, t) {
		if err != nil {
			return err
		}
		if n, several := left[r.OID]; several && n > 1 {
			left[r.OID]--
			w.put(item{oid: r.OID, tid: t.TID, twice: true}, nil)
		} else {
			if err := w.record(t.TID, r); err != nil {
				return err
			}
			w.oids = append(w.oids, r.OID)
		}
		if err := w.flushFull(ctx); err != nil {
			return err
		}
		w.first, w.firstByte = 0, 0 // there is no way back
	}
	return nil
}

// lasts returns how often w.oids has those that it has more than once, nil if there are none.
func (w *walker) lasts() map[tid.OID]int {
	w.sorted = append(w.sorted[:0], w.oids...)
	slices.Sort(w.sorted)
	var m map[tid.OID]int
	for i := 1; i < len(w.sorted); i++ {
		if oid := w.sorted[i]; oid == w.sorted[i-1] {
			if m == nil {
				m = map[tid.OID]int{}
			}
			m[oid] = max(m[oid], 1) + 1
		}
	}
	if cap(w.sorted) > 1<<20 {
		w.sorted = nil
	}
	return m
}

// read is a record as the walker found it.
type read struct {
	txn.Record
	skipped bool
}

// record adds a record.
func (w *walker) record(t tid.TID, r *read) error {
	if r.OID >= 1<<63 {
		return fmt.Errorf("object %v: a cluster cannot have object ids above %v", r.OID, tid.OID(1<<63-1))
	}
	it := item{oid: r.OID, tid: t, dataTID: r.DataTID, skipped: r.skipped}
	it.blob = bytes.Contains(r.Data[:min(len(r.Data), 64)], []byte("ZODB.blob")) && pickle.IsBlob(r.Data)
	w.put(it, r.Data)
	return nil
}

// records yields the records of a transaction. Behind one that cannot be read the others
// are found in another way, if the operator wants that.
func (w *walker) records(ctx context.Context, t *txn.Transaction) iter.Seq2[*read, error] {
	return func(yield func(*read, error) bool) {
		if t.Records == nil {
			return
		}
		var r read
		var seen []tid.OID
		skipping := w.b.skipsIn(t.TID)
		for rec, err := range t.Records {
			if err != nil {
				if skipping && ctx.Err() == nil && !errors.Is(err, txn.ErrUnavailable) {
					w.again = true
					w.others(ctx, t.TID, seen, err, yield)
				} else {
					yield(nil, err)
				}
				return
			}
			if skipping {
				seen = append(seen, rec.OID)
			}
			if r.Record = *rec; !yield(&r, nil) {
				return
			}
		}
	}
}

// others yields the records of a transaction that its iteration could not tell of, because
// of damage. Their objects are known from the heads of its records.
func (w *walker) others(ctx context.Context, t tid.TID, seen []tid.OID, damage error, yield func(*read, error) bool) {
	oids, err := w.objects(ctx, t)
	if err != nil {
		yield(nil, fmt.Errorf("%w; and what else the transaction has is not known: %w", damage, err))
		return
	}
	known := map[tid.OID]int{}
	for _, oid := range seen {
		known[oid]++
	}
	left := false
	for _, oid := range oids {
		if known[oid] > 0 {
			known[oid]--
			continue
		}
		r := read{Record: txn.Record{OID: oid, TID: t}}
		rev, err := w.b.source.LoadAt(ctx, oid, t)
		switch {
		case err == nil:
			r.Data = rev.Data
			if r.Data == nil {
				r.Data = []byte{}
			}
		case absent(err): // a deletion, or what leads to it is damaged
		case ctx.Err() == nil && !errors.Is(err, txn.ErrUnavailable) && w.b.skips(t, oid):
			r.skipped, left = true, true
		default:
			yield(nil, err)
			return
		}
		if !yield(&r, nil) {
			return
		}
	}
	if !left {
		w.b.log.Warn("a record was read in another way", "tid", t, "err", damage)
	}
}

// objects returns the objects of a transaction as the heads of its records tell.
func (w *walker) objects(ctx context.Context, t tid.TID) ([]tid.OID, error) {
	for info, err := range w.b.source.Backwards(ctx) {
		switch {
		case err != nil:
			return nil, err
		case info.TID == t:
			return slices.Clone(info.OIDs), nil
		case info.TID < t:
			return nil, fmt.Errorf("transaction %v: %w", t, txn.ErrNotFound)
		}
	}
	return nil, fmt.Errorf("transaction %v: %w", t, txn.ErrNotFound)
}

// turn waits, while clients are served, until no other stage of the work is at work, so
// that it keeps only one processor from them. The function it returns ends the turn.
func (b *Backend) turn() (end func()) {
	if !b.served.Busy() {
		return func() {}
	}
	b.copying.turns <- struct{}{}
	return func() { <-b.copying.turns }
}

// pipeline reads the history in (after, upTo], lets process work at its chunks on several
// goroutines, and gives them to consume, in order. Its error is that of consume, or else
// that of the sources, before which everything was consumed.
func (b *Backend) pipeline(ctx context.Context, after, upTo tid.TID, process func(context.Context, *chunk), consume func(*chunk, time.Duration, time.Duration) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	workers := runtime.GOMAXPROCS(0)
	budget := semaphore.NewWeighted(maxAhead)
	cost := func(c *chunk) int64 { return min(c.size, maxAhead) }
	order, work := make(chan *chunk, 1024), make(chan *chunk, 1024)
	var wg sync.WaitGroup
	var walked error
	wg.Go(func() {
		defer close(order)
		defer close(work)
		w := &walker{b: b, last: after, send: func(ctx context.Context, c *chunk) error {
			if err := budget.Acquire(ctx, cost(c)); err != nil {
				return err
			}
			for _, to := range []chan *chunk{work, order} {
				select {
				case to <- c:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}}
		walked = w.walk(ctx, upTo)
	})
	for range workers {
		wg.Go(func() {
			for c := range work {
				if ctx.Err() == nil {
					end := b.turn()
					begin := time.Now()
					process(ctx, c)
					c.spent += time.Since(begin)
					end()
				}
				close(c.done)
			}
		})
	}
	var err error
	for begin := time.Now(); err == nil; begin = time.Now() {
		var c *chunk
		var ok bool
		select {
		case c, ok = <-order:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if !ok {
			break
		}
		came := time.Now()
		<-c.done
		if err = ctx.Err(); err == nil {
			err = consume(c, came.Sub(begin), time.Since(came))
		}
		budget.Release(cost(c))
		c.free()
	}
	cancel()
	wg.Wait()
	if err != nil {
		return err
	}
	return walked
}
