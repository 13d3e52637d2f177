// Package nodelog keeps the log of a node in an SQLite database, which the
// Python implementation's neolog can read too.
//
// Every record of any level, and every packet sent or received, is kept in
// memory, and written only when it may matter: with the first record of level
// WARNING or more, when asked to (signal, FlushLog packet), or at the end of the
// process. So there is a full history around each incident, for almost no I/O in
// between.
//
// # Invariant
//
// The backlog in memory is bounded: the oldest entries are dropped first. Writing
// never stops a node: what cannot be written is reported by Flush and kept, as
// long as it fits, for the next time.
package nodelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultBacklog is the size in bytes of what is kept in memory.
const DefaultBacklog = 16 << 20

// entryOverhead is added in bytes to the length of the message or body of an entry.
const entryOverhead = 1160

// Config configures a [Log]. A zero field takes the documented default.
type Config struct {
	Path string // of the database; required
	// Backlog is how many bytes are kept in memory. Default: DefaultBacklog.
	// Negative: write each entry at once.
	Backlog int
	// MaxBody is the size in bytes above which the body of a packet is left out.
	// Default: none is.
	MaxBody int
	Now     func() time.Time // default: time.Now
}

// Log is the log database of a process. It may be used by several goroutines.
// All methods of a nil Log do nothing, for nodes that run without.
type Log struct {
	cfg     Config
	backlog backlog
	mu      sync.Mutex // of db: held while writing
	db      *database  // nil once closed
}

// Open opens a log database, creating it if needed.
func Open(cfg Config) (*Log, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Log{cfg: cfg}
	switch {
	case cfg.Backlog == 0:
		l.backlog.limit = DefaultBacklog
	default:
		l.backlog.limit = max(cfg.Backlog, 0)
	}
	var err error
	l.db, err = openDatabase(cfg.Path, cfg.Backlog < 0, cfg.Now())
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Flush writes the backlog.
func (l *Log) Flush() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flushLocked()
}

func (l *Log) flushLocked() error {
	if l.db == nil {
		return errors.New("node log is closed")
	}
	entries := l.backlog.take()
	if err := l.db.write(entries); err != nil {
		l.backlog.putBack(entries)
		return fmt.Errorf("node log %s: %w", l.cfg.Path, err)
	}
	return nil
}

// Reopen writes the backlog and closes the database, then opens the same path
// again: a new file if the old one was renamed, as logrotate does.
func (l *Log) Reopen() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	if l.db != nil {
		errs = append(errs, l.flushLocked(), l.db.retire())
	}
	var err error
	l.db, err = openDatabase(l.cfg.Path, l.cfg.Backlog < 0, l.cfg.Now())
	return errors.Join(append(errs, err)...)
}

// Close writes the backlog and closes the database.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.db == nil {
		return nil
	}
	err := errors.Join(l.flushLocked(), l.db.close())
	l.db = nil
	return err
}

// add keeps an entry, and writes everything if it is urgent.
func (l *Log) add(e entry, urgent bool) error {
	l.backlog.add(e)
	if urgent || l.cfg.Backlog < 0 {
		return l.Flush()
	}
	return nil
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
func (n *Node) Packet(p Packet) error {
	if n == nil {
		return nil
	}
	if n.log.cfg.MaxBody > 0 && len(p.Body) > n.log.cfg.MaxBody {
		p.Body = nil
	}
	// A slice of a receive buffer would keep all of it in memory, uncounted.
	p.Body = bytes.Clone(p.Body)
	return n.log.add(entry{date: unix(n.log.cfg.Now()), node: n.id.Load(), packet: &p}, false)
}

// Flush writes the backlog of the process.
func (n *Node) Flush() error {
	if n == nil {
		return nil
	}
	return n.log.Flush()
}

// Handler returns what makes a slog.Logger write to the log of this node. It
// takes records of every level; those from slog.LevelWarn on write the backlog.
func (n *Node) Handler() slog.Handler {
	if n == nil {
		return slog.DiscardHandler
	}
	return &handler{node: n}
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

// backlog holds the entries that are not written yet, oldest first.
type backlog struct {
	mu      sync.Mutex
	limit   int
	size    int
	entries []entry
	first   int     // entries before it were dropped
	last    float64 // date of the newest
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
	b.entries = append(b.entries, e)
	b.size += e.size()
	b.trimLocked()
}

// trimLocked drops the oldest entries, but never the newest one.
func (b *backlog) trimLocked() {
	for b.size > b.limit && len(b.entries)-b.first > 1 {
		b.size -= b.entries[b.first].size()
		b.entries[b.first] = entry{}
		b.first++
	}
	if b.first > 1024 && b.first > len(b.entries)/2 {
		b.entries = append([]entry(nil), b.entries[b.first:]...)
		b.first = 0
	}
}

func (b *backlog) take() []entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.entries[b.first:]
	b.entries, b.first, b.size = nil, 0, 0
	return taken
}

func (b *backlog) putBack(entries []entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entries = append(entries[:len(entries):len(entries)], b.entries[b.first:]...)
	b.first, b.size = 0, 0
	for i := range b.entries {
		b.size += b.entries[i].size()
	}
	b.trimLocked()
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
	return h.node.log.add(e, r.Level >= slog.LevelWarn)
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
