// Package nodelog keeps the log of a node in an SQLite database, which the
// Python implementation's neolog can read too.
//
// Records are written within a second. Packets, of which there are thousands for
// each record, are kept in memory, and written only when they may matter: with a
// record of level WARNING or more, when asked to (signal, FlushLog packet), or when
// the process fails. So there is a full history around each incident, for almost no
// I/O in between.
//
// # Invariant
//
// The log never matters to the node: what is logged is bounded in memory and on
// disk, is written by a goroutine of its own, and a log that cannot be opened or
// written is told on stderr, put aside if it is damaged, and begun again. A process
// that is killed leaves a whole file with the records of up to a second before.
package nodelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultBacklog is the size in bytes of the packets that are kept in memory.
const DefaultBacklog = 16 << 20

// DefaultMaxSize is the size in bytes at which a log is renamed and a new one begun.
const DefaultMaxSize = 64 << 20

const (
	// writeDelay is how long a record waits for others to be written with it.
	writeDelay = 500 * time.Millisecond
	// retryDelay is how long a log that cannot be written is left alone.
	retryDelay = 10 * time.Second
)

// oldSuffix is added to the name of a log that has reached its greatest size.
const oldSuffix = ".old"

// entryOverhead is added in bytes to the length of the message or body of an entry.
const entryOverhead = 1160

// Config configures a [Log]. A zero field takes the documented default.
type Config struct {
	Path string // of the database; required
	// Backlog is how many bytes of packets are kept in memory. Default:
	// DefaultBacklog. Negative: write each entry at once.
	Backlog int
	// MaxBody is the size in bytes above which the body of a packet is left out.
	// Default: none is.
	MaxBody int
	// MaxSize is the size in bytes at which the file is renamed to Path.old, in
	// place of the one before, and a new one begun. Default: DefaultMaxSize.
	// Negative: it grows without limit.
	MaxSize int64
	// Trouble is told what is wrong with the log itself. Default: discard.
	Trouble *slog.Logger
	Now     func() time.Time // default: time.Now
}

// Log is the log database of a process. It may be used by several goroutines.
// All methods of a nil Log do nothing, for nodes that run without.
type Log struct {
	cfg     Config
	backlog backlog
	urgent  atomic.Bool   // packets are to be written too
	due     atomic.Bool   // a write is planned
	wake    chan struct{} // tells the writer that it is time
	quit    chan struct{}
	written chan struct{} // closed when the writer has ended

	mu      sync.Mutex // of what follows: held while writing
	db      *database  // nil if it cannot be used, or closed
	closed  bool
	trouble string    // why it cannot be used, as it was told
	retry   time.Time // when it is tried again
}

// Open opens a log database, creating it if needed. It fails only if the file is
// the database of something else: any other trouble is told and tried again later.
func Open(cfg Config) (*Log, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Trouble == nil {
		cfg.Trouble = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = DefaultMaxSize
	}
	l := &Log{cfg: cfg, wake: make(chan struct{}, 1), quit: make(chan struct{}), written: make(chan struct{})}
	l.backlog.init(cfg.Backlog)
	if err := refuseOther(cfg.Path); err != nil {
		return nil, err
	}
	if err := l.openLocked(); errors.Is(err, errForeign) {
		return nil, err
	} else if err != nil {
		l.failedLocked(err)
	}
	if cfg.Backlog < 0 {
		close(l.written)
	} else {
		go l.writer()
	}
	return l, nil
}

// refuseOther refuses a Data.fs, which would be put aside as a damaged log. It runs
// before SQLite opens the file, whose locks end when it is closed here.
func refuseOther(path string) error {
	if file, err := os.Stat(path); err != nil || !file.Mode().IsRegular() {
		return nil // told by what opens the log
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close() // only read
	magic := make([]byte, 4)
	if _, err := f.Read(magic); err == nil && slices.Contains([]string{"FS20", "FS21", "FS30"}, string(magic)) {
		return fmt.Errorf("node log %s: %w but a Data.fs; choose another file for the log", path, errForeign)
	}
	return nil
}

// openLocked opens the file, or a new one if it is damaged.
func (l *Log) openLocked() error {
	unbuffered := l.cfg.Backlog < 0
	db, err := openDatabase(l.cfg.Path, unbuffered, l.cfg.Now())
	if err != nil && isDamage(err) {
		if err = l.putAsideLocked(err); err == nil {
			db, err = openDatabase(l.cfg.Path, unbuffered, l.cfg.Now())
		}
	}
	if err != nil {
		return err
	}
	l.db = db
	return nil
}

func (l *Log) putAsideLocked(cause error) error {
	name, err := putAside(l.cfg.Path, l.cfg.Now())
	if err != nil {
		return errors.Join(cause, fmt.Errorf("node log: %w", err))
	}
	l.cfg.Trouble.Warn("the node log is damaged: it is put aside, and a new one begun", "path", l.cfg.Path, "renamed", name, "err", cause)
	return nil
}

// failedLocked tells why the log cannot be used, and puts it off.
func (l *Log) failedLocked(err error) {
	l.retry = l.cfg.Now().Add(retryDelay)
	if text := err.Error(); text != l.trouble {
		l.trouble = text
		l.cfg.Trouble.Error("the node log cannot be written: the node goes on without, and tries again", "path", l.cfg.Path, "every", retryDelay, "err", err)
	}
}

// writer writes what is due.
func (l *Log) writer() {
	defer close(l.written)
	for {
		select {
		case <-l.wake:
		case <-l.quit:
			return
		}
		l.due.Store(false)
		l.mu.Lock()
		if !l.closed && (l.db != nil || !l.cfg.Now().Before(l.retry)) {
			_ = l.writeLocked(l.urgent.Swap(false)) // told where it fails
		}
		again := l.db == nil && !l.closed
		l.mu.Unlock()
		if again {
			l.plan(retryDelay)
		}
	}
}

// plan wakes the writer after a while, unless that is planned already.
func (l *Log) plan(after time.Duration) {
	if l.due.CompareAndSwap(false, true) {
		time.AfterFunc(after, l.signal)
	}
}

func (l *Log) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// FlushSoon has everything written, without waiting for it.
func (l *Log) FlushSoon() {
	if l != nil {
		l.urgent.Store(true)
		l.signal()
	}
}

// Flush writes everything that is in memory.
func (l *Log) Flush() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("node log is closed")
	}
	return l.writeLocked(true)
}

// writeLocked writes the records, and packets too if asked to. What cannot be
// written is kept for the next time.
func (l *Log) writeLocked(packets bool) error {
	entries := l.backlog.take(packets)
	err := l.tryLocked(entries)
	if err != nil {
		l.backlog.putBack(entries)
		if packets {
			l.urgent.Store(true)
		}
	} else {
		if l.trouble != "" {
			l.trouble = ""
			l.cfg.Trouble.Warn("the node log is written again", "path", l.cfg.Path, "lost", l.backlog.lost())
		}
		err = l.rotateLocked()
	}
	if err != nil {
		l.failedLocked(err)
	}
	return err
}

// tryLocked writes entries, to another file if the present one is damaged or was
// moved away.
func (l *Log) tryLocked(entries []entry) error {
	if l.db == nil {
		if err := l.openLocked(); err != nil {
			return err
		}
	}
	err := l.db.write(entries)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("node log %s: %w", l.cfg.Path, err)
	damaged, moved := isDamage(err), resultCode(err) == codeMoved
	closeErr := l.db.close()
	l.db = nil
	switch {
	case moved: // and written no more
		err = nil
	case damaged:
		err = l.putAsideLocked(err)
	}
	if err == nil {
		err = l.openLocked()
	}
	if err == nil {
		return l.db.write(entries)
	}
	return errors.Join(err, closeErr)
}

// rotateLocked puts the file in place of the old one if it has become too large.
func (l *Log) rotateLocked() error {
	if l.cfg.MaxSize < 0 {
		return nil
	}
	file, err := os.Stat(l.cfg.Path)
	if err != nil || !os.SameFile(file, l.db.file) || file.Size() < l.cfg.MaxSize {
		return nil // also if it was moved away: the next write finds out
	}
	err = l.db.close()
	l.db = nil
	if err == nil {
		err = os.Rename(l.cfg.Path, l.cfg.Path+oldSuffix)
	}
	if err == nil {
		err = l.openLocked()
	}
	if err != nil {
		return fmt.Errorf("node log %s: begin a new file: %w", l.cfg.Path, err)
	}
	return nil
}

// Reopen writes the records and closes the database, then opens the same path
// again: a new file if the old one was renamed, as logrotate does.
func (l *Log) Reopen() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("node log is closed")
	}
	var errs []error
	if l.db != nil {
		if l.db.moved() {
			errs = append(errs, l.db.inMemory())
		}
		entries := l.backlog.take(false)
		err := l.db.write(entries)
		if err != nil {
			l.backlog.putBack(entries)
		}
		errs = append(errs, err, l.db.retire())
		l.db = nil
	}
	err := l.openLocked()
	if err != nil {
		l.failedLocked(err)
	}
	return errors.Join(append(errs, err)...)
}

// Close writes the records, and the packets if something has asked for them, and
// closes the database.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.quit)
	<-l.written
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.writeLocked(l.urgent.Swap(false))
	if l.db != nil {
		err = errors.Join(err, l.db.close())
		l.db = nil
	}
	return err
}

// add keeps an entry, and plans when it is written.
func (l *Log) add(e entry, urgent bool) {
	l.backlog.add(e)
	switch {
	case l.cfg.Backlog < 0:
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.closed && (l.db != nil || !l.cfg.Now().Before(l.retry)) {
			_ = l.writeLocked(true) // told where it fails
		}
	case urgent:
		l.FlushSoon()
	case e.record != nil:
		l.plan(writeDelay)
	}
}

// Node is one node of the process: where its records and packets go in. All
// methods of a nil Node do nothing.
type Node struct {
	log *Log
	id  atomic.Pointer[identity]
}

// identity is a row of table node.
type identity struct {
	name    string // "" is NULL
	cluster string
	nid     int32 // 0 is NULL
	known   bool  // otherwise entries have no node
}

// Node returns a node of the process. The name tells the nodes of a process
// apart; it may be empty.
func (l *Log) Node(name string) *Node {
	if l == nil {
		return nil
	}
	n := &Node{log: l}
	n.id.Store(&identity{name: name, known: name != ""})
	return n
}

// Identify says what following entries are of: the cluster, and the id of the node
// as on the wire, 0 if it has none yet.
func (n *Node) Identify(cluster string, nid int32) {
	if n != nil {
		n.id.Store(&identity{n.id.Load().name, cluster, nid, true})
	}
}

// A Packet as it is recorded.
type Packet struct {
	Sent  bool   // otherwise received
	Peer  string // like "M1 (127.0.0.1:10000)"
	MsgID uint32
	Code  uint16 // with bit 0x8000 for an answer
	Body  []byte // msgpack of the arguments; copied
}

// Packet records a packet.
func (n *Node) Packet(p Packet) {
	if n == nil {
		return
	}
	if n.log.cfg.MaxBody > 0 && len(p.Body) > n.log.cfg.MaxBody {
		p.Body = nil
	}
	// A slice of a receive buffer would keep all of it in memory, uncounted.
	p.Body = bytes.Clone(p.Body)
	n.log.add(entry{date: unix(n.log.cfg.Now()), node: n.id.Load(), packet: &p}, false)
}

// Flush writes the backlog of the process.
func (n *Node) Flush() error {
	if n == nil {
		return nil
	}
	return n.log.Flush()
}

// Handler returns what makes a slog.Logger write to the log of this node. It
// takes records of every level; those from slog.LevelWarn on have the packets
// written too.
func (n *Node) Handler() slog.Handler {
	if n == nil {
		return slog.DiscardHandler
	}
	return &handler{node: n}
}

// nodeName returns a node id as the Python implementation writes it, "S1".
func nodeName(nid int32) string {
	kind := 0
	if nid < 0 {
		kind = int((-int64(nid)-1)>>28) + 1
	}
	return "SMCA"[kind:kind+1] + strconv.Itoa(int(nid&0xffffff))
}

// unix returns a time as the database has it: seconds since 1970.
func unix(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// entry is a record or a packet.
type entry struct {
	date   float64
	node   *identity
	record *record
	packet *Packet
}

func (e *entry) size() int {
	if e.packet != nil {
		return entryOverhead + len(e.packet.Body)
	}
	return entryOverhead + len(e.record.msg)
}

// backlog holds the entries that are not written yet.
type backlog struct {
	mu      sync.Mutex
	records queue
	packets queue
	last    float64 // date of the newest
}

// queue holds entries, oldest first.
type queue struct {
	limit   int
	size    int
	entries []entry
	first   int // entries before it were dropped
	dropped int // since it was asked for
}

// init sets how many bytes of packets are kept. Of records, which are only kept
// while the file cannot be written, there may be a quarter.
func (b *backlog) init(limit int) {
	if limit == 0 {
		limit = DefaultBacklog
	}
	b.packets.limit = max(limit, 0)
	b.records.limit = b.packets.limit / 4
}

func (b *backlog) add(e entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// Entries are sorted by date in the database, so each has its own. A clock
	// that steps back by more than a second is shown as it is.
	if e.date <= b.last && b.last-e.date < 1 {
		e.date = math.Nextafter(b.last, math.Inf(1))
	}
	b.last = e.date
	q := &b.records
	if e.packet != nil {
		q = &b.packets
	}
	q.entries = append(q.entries, e)
	q.size += e.size()
	q.trim()
}

// trim drops the oldest entries, but never the newest one.
func (q *queue) trim() {
	for q.size > q.limit && len(q.entries)-q.first > 1 {
		q.size -= q.entries[q.first].size()
		q.entries[q.first] = entry{}
		q.first++
		q.dropped++
	}
	if q.first > 1024 && q.first > len(q.entries)/2 {
		q.entries = append([]entry(nil), q.entries[q.first:]...)
		q.first = 0
	}
}

func (q *queue) take() []entry {
	taken := q.entries[q.first:]
	q.entries, q.first, q.size = nil, 0, 0
	return taken
}

func (q *queue) putBack(entries []entry) {
	q.entries = append(entries[:len(entries):len(entries)], q.entries[q.first:]...)
	q.first, q.size = 0, 0
	for i := range q.entries {
		q.size += q.entries[i].size()
	}
	q.trim()
}

// take returns the records, followed by the packets if asked for.
func (b *backlog) take(packets bool) []entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.records.take()
	if packets {
		taken = append(taken, b.packets.take()...)
	}
	return taken
}

func (b *backlog) putBack(entries []entry) {
	i := slices.IndexFunc(entries, func(e entry) bool { return e.packet != nil })
	if i < 0 {
		i = len(entries)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records.putBack(entries[:i])
	b.packets.putBack(entries[i:])
}

// lost returns how many records were dropped since it was last asked. Packets are
// dropped all the time.
func (b *backlog) lost() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.records.dropped
	b.records.dropped = 0
	return n
}

// handler is a slog.Handler.
type handler struct {
	node  *Node
	attrs string // formatted
	group string // prefix of keys
}

func (h *handler) Enabled(context.Context, slog.Level) bool { return true }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	t := r.Time
	if t.IsZero() {
		t = h.node.log.cfg.Now()
	}
	e := entry{date: unix(t), node: h.node.id.Load(), record: newRecord(r, h.group, h.attrs)}
	h.node.log.add(e, r.Level >= slog.LevelWarn)
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	for _, a := range attrs {
		c.attrs = string(appendAttr([]byte(c.attrs), c.group, a))
	}
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}
