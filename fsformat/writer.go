package fsformat

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// WriterOptions configures a [Writer]. A zero field takes the documented default.
type WriterOptions struct {
	// Magic of a new file, also one that is resumed. Default: FS30. An existing file
	// keeps its own.
	Magic Magic

	// Group is how many bytes of transactions are made durable at once: until then
	// no reader sees any of them. 0: for [Create] 64 MiB, for [OpenAppend] every
	// transaction by itself. Negative: every transaction.
	Group int64

	// PackedUpTo gives the file the look of one packed by FileStorage: the
	// transactions up to it get status 'p', and their records no previous record.
	// History before it is then hidden from loads, and only iteration shows it.
	// Transactions that the file has already must have it. Default: the status of
	// the source, and previous records wherever there are.
	PackedUpTo tid.TID

	// Resume continues what an interrupted [Create] left. Default: start anew.
	Resume bool

	// Replace lets [Create] replace a Data.fs of this name when the new one is
	// complete; until then the old one stays as it is. Default: fs.ErrExist.
	Replace bool

	// Progress is told how far the scan of an existing file is.
	Progress Progress

	// NoSync leaves it to the operating system when bytes reach the disk. Only for
	// files that will not be missed.
	NoSync bool
}

const defaultGroup = 64 << 20

// Writer appends transactions to a Data.fs that FileStorage accepts. It holds
// NAME.lock, so that no other writer, in Python or Go, appends too. Its memory is
// that of an [Index]. It has one owner.
//
// # Durability
//
// Transactions are written in groups. The first of a group has a length that passes
// the end of the file, and the last one is not repeated behind its own, until all
// other bytes of the group are on disk. To all readers that is an incomplete end: a
// restart cuts off the whole group, as Python does.
type Writer struct {
	path   string // of the finished file
	tmp    string // where a new file is until it is complete, or ""
	f      *os.File
	lock   *lock
	opt    WriterOptions
	index  *Index
	cut    Tail // what was cut off when the file was opened
	failed error
	done   bool
	dirty  bool // the index on disk is older than the file

	off int64  // position of buf[0] in the file
	buf []byte // what is not written yet
	end int64  // of the last transaction

	group    int64 // position of the first transaction of the group, or 0
	groupLen int64 // its length
	lastTID  tid.TID
	durable  tid.TID

	records []written // of the transaction being appended
	hidden  map[tid.OID][]int64
	scratch []byte

	onWritten func() // for tests: something was written that is to be durable
}

type written struct {
	oid tid.OID
	pos int64
}

// Create starts a new file. It is written under the name path.part; [Writer.Close]
// gives it its own. The error is fs.ErrExist if there is a file of this name
// that is not to be replaced, a [*LockedError] if another process writes it.
func Create(path string, opt WriterOptions) (*Writer, error) {
	if opt.Magic != "" && opt.Magic != FS30 && opt.Magic != FS21 {
		return nil, fmt.Errorf("creating %s: unknown magic %q", path, opt.Magic)
	}
	if opt.Group == 0 {
		opt.Group = defaultGroup
	}
	l, err := acquireLock(path)
	if err != nil {
		return nil, err
	}
	w := &Writer{path: path, tmp: path + ".part", lock: l, opt: opt, dirty: true}
	if err := w.create(); err != nil {
		w.release()
		return nil, err
	}
	return w, nil
}

func (w *Writer) create() error {
	switch _, err := os.Lstat(w.path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !w.opt.Replace:
		return &fs.PathError{Op: "create", Path: w.path, Err: fs.ErrExist}
	default:
		old, err := Open(w.path, Options{}) // nothing else is replaced
		if err != nil {
			return err
		}
		if err := old.Close(); err != nil {
			return err
		}
	}
	flags := os.O_RDWR | os.O_CREATE
	if !w.opt.Resume {
		flags |= os.O_TRUNC
	}
	var err error
	if w.f, err = os.OpenFile(w.tmp, flags, 0o666); err != nil {
		return err
	}
	return w.open(context.Background(), false)
}

// OpenAppend opens an existing file, or an empty one, for appending. An incomplete
// end is first copied to path.trN, N the first free number, then cut off, as
// FileStorage does. The error is a [*CorruptError] if the file is damaged, a
// [*LockedError] if another process writes it.
func OpenAppend(ctx context.Context, path string, opt WriterOptions) (*Writer, error) {
	l, err := acquireLock(path)
	if err != nil {
		return nil, err
	}
	w := &Writer{path: path, lock: l, opt: opt}
	if w.f, err = os.OpenFile(path, os.O_RDWR, 0); err == nil {
		err = w.open(ctx, true)
	}
	if err != nil {
		w.release()
		return nil, err
	}
	return w, nil
}

// open reads what the file has and cuts off an incomplete end.
func (w *Writer) open(ctx context.Context, keepTail bool) error {
	fi, err := w.f.Stat()
	if err != nil {
		return err
	}
	size := fi.Size()
	if size < magicLen && !keepTail {
		size = 0
	}
	r, err := NewReader(w.f, size, w.f.Name(), Options{})
	if err != nil {
		return err
	}
	if size == 0 {
		if w.opt.Magic == "" {
			w.opt.Magic = FS30
		}
		if err := w.f.Truncate(0); err != nil {
			return err
		}
		w.index = NewIndex()
		w.buf = append(w.buf, w.opt.Magic...)
		w.end = magicLen
		return nil
	}
	if m := w.opt.Magic; !keepTail && m != "" && m != r.Magic() {
		if _, err := w.f.WriteAt([]byte(m), 0); err != nil {
			return err
		}
	} else {
		w.opt.Magic = r.Magic()
	}
	if keepTail {
		unusable, err := r.UseIndex(ctx, "", w.opt.Progress)
		if err != nil {
			return err
		}
		w.index, w.dirty = r.Index(), unusable != nil
	} else {
		// What an interrupted Create left: from the first thing that is not right,
		// nothing was promised to anybody, and the source still has it.
		w.index, err = r.BuildIndex(ctx, w.opt.Progress)
		if errors.As(err, new(*CorruptError)) {
			if r, err = NewReader(w.f, w.index.End, w.f.Name(), Options{}); err != nil {
				return err
			}
			w.index, err = r.BuildIndex(ctx, w.opt.Progress)
		}
		if err != nil {
			return err
		}
	}
	w.lastTID, w.durable, w.end = w.index.LastTID, w.index.LastTID, w.index.End
	w.off = w.end
	if w.end < size {
		w.cut = Tail{End: w.end, LastTID: w.lastTID, Ignored: size - w.end}
		if keepTail {
			if w.cut.Reason, err = w.saveTail(size); err != nil {
				return err
			}
		}
		if err := w.f.Truncate(w.end); err != nil {
			return err
		}
		if err := w.sync(); err != nil {
			return err
		}
	}
	if w.opt.PackedUpTo != 0 {
		return w.findHidden(ctx)
	}
	return nil
}

// saveTail copies what will be cut off to the first free NAME.trN and returns its
// name.
func (w *Writer) saveTail(size int64) (string, error) {
	for n := 0; ; n++ {
		name := fmt.Sprintf("%s.tr%d", w.path, n)
		out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		_, err = io.Copy(out, io.NewSectionReader(w.f, w.end, size-w.end))
		if err == nil && !w.opt.NoSync {
			err = out.Sync()
		}
		if err = errors.Join(err, out.Close()); err != nil {
			return "", fmt.Errorf("saving the incomplete end of %s: %w", w.path, err)
		}
		return name, nil
	}
}

// findHidden finds again the packed records that nothing leads to. The error says
// that what the file has was not written with PackedUpTo.
func (w *Writer) findHidden(ctx context.Context) error {
	r, err := NewReader(w.f, w.end, w.f.Name(), Options{})
	if err != nil {
		return err
	}
	for t, err := range r.Scan(ctx, 0, w.opt.PackedUpTo) {
		if err != nil {
			return err
		}
		if t.Status != txn.Packed {
			return notPacked(w.f.Name(), t.TID)
		}
		for rec, err := range t.Places {
			if err != nil {
				return err
			}
			if rec.Prev != 0 {
				return notPacked(w.f.Name(), t.TID)
			}
			if pos, _ := w.index.Get(rec.OID); pos != rec.Pos {
				w.hide(rec.OID, rec.Pos)
			}
		}
	}
	return nil
}

func notPacked(name string, t tid.TID) error {
	return fmt.Errorf("%s: it has transaction %v already, and not with the look of a packed one", name, t)
}

func (w *Writer) hide(oid tid.OID, pos int64) {
	if w.hidden == nil {
		w.hidden = make(map[tid.OID][]int64)
	}
	w.hidden[oid] = append(w.hidden[oid], pos)
}

// LastTID returns the transaction appended last, 0 if the file has none.
func (w *Writer) LastTID() tid.TID { return w.lastTID }

// Has reports whether the file has a record of an object.
func (w *Writer) Has(oid tid.OID) bool {
	_, ok := w.index.Get(oid)
	return ok
}

// Durable returns the last transaction that a crash cannot take away any more.
func (w *Writer) Durable() tid.TID { return w.durable }

// Size returns the length of the file with all that was appended.
func (w *Writer) Size() int64 { return w.end }

// Magic returns the magic of the file.
func (w *Writer) Magic() Magic { return w.opt.Magic }

// Cut returns what opening the file has cut off: Reason is the name of the file
// to which it was copied, "" if it was the rest of an interrupted [Create].
func (w *Writer) Cut() Tail { return w.cut }

// Last reads the last transaction of the file for a comparison with the source
// before appending what follows. nil if there is none. It is valid until the next
// call of a method of w.
func (w *Writer) Last(ctx context.Context) (*txn.Transaction, error) {
	if err := w.Flush(); err != nil {
		return nil, err
	}
	r, err := NewReader(w.f, w.end, w.f.Name(), Options{})
	if err != nil {
		return nil, err
	}
	for t, err := range r.ScanBackwards(ctx) {
		if err != nil {
			return nil, err
		}
		return &t.Transaction, nil
	}
	return nil, nil
}

// Append writes a transaction, whose tid must be above all others. A record whose
// DataTID names a transaction that gave the object the same data becomes a
// back-pointer to it; any other is written in full. After an error that comes from
// t, nothing of t is in the file and others may follow; after one of writing, all
// methods return it.
func (w *Writer) Append(t *txn.Transaction) error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := w.acceptable(t); err != nil {
		return err
	}
	start := w.end
	if err := w.append(t); err != nil {
		if back := w.rollBack(start); back != nil {
			w.failed = back
		}
		return fmt.Errorf("%s: appending transaction %v: %w", w.f.Name(), t.TID, err)
	}
	for _, rec := range w.records {
		old := w.index.swap(rec.oid, rec.pos)
		if old != 0 && t.TID <= w.opt.PackedUpTo {
			w.hide(rec.oid, old)
		}
	}
	w.lastTID = t.TID
	if w.end-w.group >= w.opt.Group {
		return w.Flush()
	}
	return nil
}

func (w *Writer) usable() error {
	switch {
	case w.failed != nil:
		return w.failed
	case w.done:
		return fmt.Errorf("%s: %w", w.path, os.ErrClosed)
	}
	return nil
}

// acceptable verifies what FileStorage demands of a transaction.
func (w *Writer) acceptable(t *txn.Transaction) error {
	if t.TID <= w.lastTID {
		return fmt.Errorf("%s: appending transaction %v: its id is not above that of the last one, %v", w.f.Name(), t.TID, w.lastTID)
	}
	if t.Status != txn.Committed && t.Status != txn.Packed && t.Status != 0 {
		return fmt.Errorf("%s: appending transaction %v: invalid status %q", w.f.Name(), t.TID, t.Status)
	}
	for _, m := range []struct {
		what string
		b    []byte
	}{{"user", t.User}, {"description", t.Description}, {"extension", t.Extension}} {
		if len(m.b) > maxMetaLen {
			return fmt.Errorf("%s: appending transaction %v: %s of %d bytes, more than %d", w.f.Name(), t.TID, m.what, len(m.b), maxMetaLen)
		}
	}
	return nil
}

func (w *Writer) status(t *txn.Transaction) byte {
	if t.Status == 0 {
		return txn.Committed
	}
	if t.TID <= w.opt.PackedUpTo {
		return txn.Packed
	}
	return t.Status
}

// endless is the length of a transaction that is not to be seen: longer than any file.
const endless = 1 << 62

// append writes t, and leaves its records in w.records. The first of a group stays
// endless.
func (w *Writer) append(t *txn.Transaction) error {
	start := w.end
	w.records = w.records[:0]
	b := t.TID.Append(w.buf)
	b = binary.BigEndian.AppendUint64(b, endless)
	b = append(b, w.status(t))
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.User)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Description)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Extension)))
	b = append(b, t.User...)
	b = append(b, t.Description...)
	w.buf = append(b, t.Extension...)
	if t.Records != nil {
		for rec, err := range t.Records {
			if err != nil {
				return err
			}
			if err := w.appendRecord(t, rec, start); err != nil {
				return err
			}
		}
	}
	n := w.off + int64(len(w.buf)) - start
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(n))
	w.end = w.off + int64(len(w.buf))
	if w.group == 0 {
		w.group, w.groupLen = start, n
		return nil
	}
	return w.setLen(start, n)
}

// setLen completes the header of a transaction.
func (w *Writer) setLen(pos, n int64) error {
	return w.patch(pos+8, binary.BigEndian.AppendUint64(nil, uint64(n)))
}

func (w *Writer) appendRecord(t *txn.Transaction, rec *txn.Record, start int64) error {
	if rec.Data != nil && len(rec.Data) == 0 {
		return fmt.Errorf("object %v: its data is empty, which a Data.fs cannot tell from a back-pointer", rec.OID)
	}
	newest, _ := w.index.Get(rec.OID)
	h := RecordHeader{OID: rec.OID, TID: t.TID, TxnPos: start, Prev: newest, DataLen: int64(len(rec.Data))}
	if t.TID <= w.opt.PackedUpTo {
		h.Prev = 0
	}
	if rec.DataTID != 0 && rec.DataTID < t.TID {
		back, err := w.findCopy(rec, newest)
		if err != nil {
			return err
		}
		if back != 0 {
			h.DataLen, h.Back = 0, back
		}
	}
	pos := w.off + int64(len(w.buf))
	if pos+recHeaderLen+h.DataLen >= maxPos {
		return fmt.Errorf("object %v: the file would be longer than an index can address", rec.OID)
	}
	w.records = append(w.records, written{rec.OID, pos})
	w.buf = h.appendTo(w.buf)
	if h.DataLen == 0 {
		return nil
	}
	if len(rec.Data) > flushSize {
		if err := w.writeOut(); err != nil {
			return err
		}
		if _, err := w.f.WriteAt(rec.Data, w.off); err != nil {
			return err
		}
		w.off += int64(len(rec.Data))
		return nil
	}
	w.buf = append(w.buf, rec.Data...)
	if len(w.buf) > flushSize {
		return w.writeOut()
	}
	return nil
}

// findCopy returns the position of the record of transaction rec.DataTID for the
// same object, if it has the same data, otherwise 0.
func (w *Writer) findCopy(rec *txn.Record, newest int64) (int64, error) {
	pos, err := w.find(rec.OID, rec.DataTID, newest)
	if err != nil || pos == 0 {
		return 0, err
	}
	target, err := w.resolve(rec.OID, pos)
	if err != nil || target.DataLen != int64(len(rec.Data)) {
		return 0, err
	}
	same, err := w.equal(target.DataPos(), rec.Data)
	if err != nil || !same {
		return 0, err
	}
	return pos, nil
}

// find returns the position of the record of an object in a transaction, the last
// one if there are several, 0 if there is none. newest is where the search begins.
func (w *Writer) find(oid tid.OID, at tid.TID, newest int64) (int64, error) {
	var h RecordHeader
	for pos := newest; pos != 0; pos = h.Prev {
		if err := w.recordAt(pos, &h); err != nil {
			return 0, err
		}
		if h.TID == at {
			return pos, nil
		}
		if h.TID < at {
			break
		}
		if h.Prev >= pos {
			return 0, fmt.Errorf("object %v: the record at %d has its previous one at %d", oid, pos, h.Prev)
		}
	}
	found := int64(0)
	for _, pos := range w.hidden[oid] {
		if err := w.recordAt(pos, &h); err != nil {
			return 0, err
		}
		if h.TID == at {
			found = pos
		}
	}
	return found, nil
}

// resolve follows back-pointers from the record at pos. The result has DataLen 0
// if the object does not exist there.
func (w *Writer) resolve(oid tid.OID, pos int64) (h RecordHeader, err error) {
	for {
		if err := w.recordAt(pos, &h); err != nil {
			return h, err
		}
		if h.DataLen > 0 || h.Back == 0 {
			return h, nil
		}
		if h.Back >= pos {
			return h, fmt.Errorf("object %v: the record at %d has a back-pointer to %d", oid, pos, h.Back)
		}
		pos = h.Back
	}
}

// LoadSerial returns the data that a transaction gave to an object, nil if the
// object does not exist there. The error wraps [txn.ErrNotFound] if the transaction has
// no record of it. It sees all that was appended.
func (w *Writer) LoadSerial(oid tid.OID, at tid.TID) ([]byte, error) {
	newest, _ := w.index.Get(oid)
	pos, err := w.find(oid, at, newest)
	if err != nil {
		return nil, err
	}
	if pos == 0 {
		return nil, fmt.Errorf("object %v has no record of transaction %v: %w", oid, at, txn.ErrNotFound)
	}
	h, err := w.resolve(oid, pos)
	if err != nil || h.DataLen == 0 {
		return nil, err
	}
	b := make([]byte, 0, h.DataLen)
	for left := h.DataLen; left > 0; {
		part, err := w.read(h.DataPos()+h.DataLen-left, int(min(left, flushSize)))
		if err != nil {
			return nil, err
		}
		b = append(b, part...)
		left -= int64(len(part))
	}
	return b, nil
}

// equal reports whether the file has b at pos.
func (w *Writer) equal(pos int64, b []byte) (bool, error) {
	const step = 64 << 10
	for len(b) > 0 {
		n := min(len(b), step)
		got, err := w.read(pos, n)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(got, b[:n]) {
			return false, nil
		}
		pos, b = pos+int64(n), b[n:]
	}
	return true, nil
}

func (w *Writer) recordAt(pos int64, h *RecordHeader) error {
	b, err := w.read(pos, recHeaderLen)
	if err != nil {
		return fmt.Errorf("reading the record at %d: %w", pos, err)
	}
	*h = parseRecordHeader(b, pos)
	if h.DataLen == 0 {
		if b, err = w.read(pos+recHeaderLen, pointerLen); err != nil {
			return fmt.Errorf("reading the record at %d: %w", pos, err)
		}
		h.Back = int64(binary.BigEndian.Uint64(b))
	}
	return nil
}

// read returns n bytes at pos, written or not. They are valid until the next call.
func (w *Writer) read(pos int64, n int) ([]byte, error) {
	w.scratch = slices.Grow(w.scratch[:0], n)[:n]
	b := w.scratch
	if pos < w.off {
		k := int(min(int64(n), w.off-pos))
		if err := readFull(w.f, b[:k], pos); err != nil {
			return nil, err
		}
		pos, b = pos+int64(k), b[k:]
	}
	if len(b) == 0 {
		return w.scratch, nil
	}
	i := pos - w.off
	if i+int64(len(b)) > int64(len(w.buf)) {
		return nil, io.ErrUnexpectedEOF
	}
	copy(b, w.buf[i:])
	return w.scratch, nil
}

const flushSize = 1 << 20

// writeOut writes the buffer.
func (w *Writer) writeOut() error {
	if len(w.buf) == 0 {
		return nil
	}
	n, err := w.f.WriteAt(w.buf, w.off)
	if err != nil {
		return err
	}
	w.off += int64(n)
	w.buf = w.buf[:0]
	return nil
}

// patch overwrites bytes that were appended before.
func (w *Writer) patch(pos int64, b []byte) error {
	if pos >= w.off {
		copy(w.buf[pos-w.off:], b)
		return nil
	}
	if k := w.off - pos; k < int64(len(b)) {
		copy(w.buf, b[k:])
		b = b[:k]
	}
	_, err := w.f.WriteAt(b, pos)
	return err
}

// rollBack takes away all that was appended from pos on.
func (w *Writer) rollBack(pos int64) error {
	w.end = pos
	if pos >= w.off {
		w.buf = w.buf[:pos-w.off]
		return nil
	}
	w.buf = w.buf[:0]
	if w.group != 0 { // the length of the last transaction is to be withheld again
		pos -= trailerLen
		b, err := w.read(pos, trailerLen)
		if err != nil {
			return fmt.Errorf("reading the end of the last transaction: %w", err)
		}
		w.buf = append(w.buf, b...)
	}
	w.off = pos
	if err := w.f.Truncate(pos); err != nil {
		return fmt.Errorf("cutting off an incomplete transaction: %w", err)
	}
	return nil
}

// Flush makes all transactions appended so far durable.
func (w *Writer) Flush() error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		w.failed = fmt.Errorf("%s: making transactions up to %v durable: %w", w.f.Name(), w.lastTID, err)
		return w.failed
	}
	return nil
}

func (w *Writer) flush() error {
	if w.group == 0 {
		return w.writeOut()
	}
	// Behind a transaction that cannot be read, one that is intact looks like damage:
	// its last bytes come last. The first of all may be complete before.
	var last []byte
	if w.end > w.group+w.groupLen+trailerLen {
		n := len(w.buf) - trailerLen
		last = slices.Clone(w.buf[n:])
		w.buf = w.buf[:n]
	}
	if err := w.durably(w.writeOut); err != nil {
		return err
	}
	if err := w.durably(func() error { return w.setLen(w.group, w.groupLen) }); err != nil {
		return err
	}
	if last != nil {
		w.buf = append(w.buf, last...)
		if err := w.durably(w.writeOut); err != nil {
			return err
		}
	}
	w.group = 0
	w.durable = w.lastTID
	w.dirty = true
	return nil
}

// durably does something that is to be on disk before what follows it.
func (w *Writer) durably(write func() error) error {
	if err := write(); err != nil {
		return err
	}
	if w.onWritten != nil {
		w.onWritten()
	}
	return w.sync()
}

func (w *Writer) sync() error {
	if w.opt.NoSync {
		return nil
	}
	return w.f.Sync()
}

// SaveIndex makes all transactions appended so far durable and writes NAME.index, so that
// the next open need not scan them. [Writer.Close] does it as well. It is for an existing file.
func (w *Writer) SaveIndex() error {
	if err := w.Flush(); err != nil {
		return err
	}
	if w.tmp != "" || !w.dirty {
		return nil
	}
	if err := w.saveIndex(); err != nil {
		return err
	}
	w.dirty = false
	return nil
}

func (w *Writer) saveIndex() error {
	w.index.End, w.index.LastTID = w.end, w.lastTID
	return w.index.save(w.path+".index", !w.opt.NoSync)
}

// Close makes everything durable, writes NAME.index, gives a new file its name,
// and releases the lock. After an error of an earlier call it is [Writer.Abort]
// and returns that error.
func (w *Writer) Close() error {
	if w.done {
		return nil
	}
	err := w.Flush()
	if err == nil {
		err = w.finish()
	}
	return errors.Join(err, w.Abort())
}

func (w *Writer) finish() error {
	if err := w.sync(); err != nil { // the magic of a file without transactions
		return err
	}
	if w.tmp != "" {
		// An index of an older file of this name would be worse than none.
		if err := os.Remove(w.path + ".index"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		switch old, err := os.Lstat(w.path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil || !w.opt.Replace:
			return fmt.Errorf("giving %s its name: %w", w.tmp, cmp.Or(err, fs.ErrExist))
		case old.Mode().IsRegular():
			if err := os.Chmod(w.tmp, old.Mode().Perm()); err != nil {
				return err
			}
		}
		if err := os.Rename(w.tmp, w.path); err != nil {
			return err
		}
		if !w.opt.NoSync {
			if err := syncDir(w.path); err != nil {
				return err
			}
		}
		w.tmp = ""
	}
	if !w.dirty {
		return nil
	}
	return w.saveIndex()
}

// Abort releases the file as it is: what is durable stays, the rest is cut off
// now or when the file is opened again. An interrupted [Create] leaves NAME.part,
// which can be resumed. It does nothing after [Writer.Close].
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	var err error
	if w.group != 0 {
		err = w.f.Truncate(w.group)
	}
	return errors.Join(err, w.release())
}

func (w *Writer) release() error {
	var err error
	if w.f != nil {
		err = w.f.Close()
	}
	return errors.Join(err, w.lock.release())
}

// syncDir makes the name of a file durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
