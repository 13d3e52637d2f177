package nodelog

import (
	"compress/bzip2"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An Entry is what a log database has at one date: a record, or a packet if
// Packet is set.
type Entry struct {
	Date    float64 // UNIX time in seconds
	Name    string  // of the node in its process, "" if none
	Cluster string  // "" if not known yet
	NodeID  int32   // as on the wire, 0 if not known yet

	Level int // of a record, as in Python's logging; see LevelName
	Path  string
	Line  int
	Msg   string

	Packet   *Packet
	Protocol int // version of the protocol of a packet, 0 if the file does not tell
}

// Read yields what the log database at path has from a date on, oldest first; the
// zero time means all. It ends at the first error. The file may be in use, and is
// never created or executed. Old files, whose records are in tables log1 and packet1,
// are read too.
func Read(ctx context.Context, path string, from time.Time) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		r, err := OpenReader(ctx, path)
		if err != nil {
			yield(nil, err)
			return
		}
		defer r.Close() // only read
		r.From(from)
		for e, err := range r.Entries(ctx) {
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Reader reads a log database, which may be in use: it holds the locks of the file
// for no longer than it takes to read a batch, so that the node can go on writing
// whatever becomes of what is read. It reads on, after what it has read, each time
// that it is asked. It is for one goroutine.
type Reader struct {
	path   string
	file   os.FileInfo // to see that another one has taken its path
	db     *sql.DB
	tables []*table
	nodes  map[int64]nodeKey

	since float64 // what is before it is left out

	hasProtocol bool // there is a table protocol
	protocols   []protocol

	told   []string      // tables in damage, also earlier
	damage []*TableError // of tables that tell about entries; they are shown without
}

// protocol is a row of table protocol.
type protocol struct {
	date    float64 // from which it is in force
	text    string  // compressed
	version int     // 0 if not known
}

// table is a table of entries, read in batches.
type table struct {
	name    string
	packets bool
	old     bool    // with the name of the node in each row
	last    float64 // date of the last row that was read
	end     float64 // rows after it are not read
	batch   []*Entry
	dry     bool  // there was nothing more when it was last read
	err     error // why it is not read any more; told once
}

// A batch ends at so many rows, or so many bytes of messages and bodies.
const (
	batchRows  = 1000
	batchBytes = 1 << 20
)

// A TableError reports a table of a log database that cannot be read, at all or from
// some row on. The others can.
type TableError struct {
	Path, Table string
	Err         error
}

func (e *TableError) Error() string {
	return fmt.Sprintf("node log %s: table %q cannot be read any further: %v", e.Path, e.Table, e.Err)
}

func (e *TableError) Unwrap() error { return e.Err }

// OpenReader opens the log database at path to read it. It is never created, and
// written only to undo what a killed process had begun to write.
func OpenReader(ctx context.Context, path string) (*Reader, error) {
	r := &Reader{path: path, since: math.Inf(-1)}
	if err := r.open(ctx); err != nil {
		return nil, fmt.Errorf("node log %s: %w", path, err)
	}
	return r, nil
}

func (r *Reader) open(ctx context.Context) error {
	var err error
	if r.file, err = os.Stat(r.path); err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		return err
	}
	if !r.file.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	return r.retry(ctx, func() error {
		if r.db, err = openForReading(ctx, r.path, "ro"); err != nil {
			return err
		}
		if err := r.findTables(ctx); err != nil {
			return errors.Join(err, r.db.Close())
		}
		return nil
	})
}

func openForReading(ctx context.Context, path, mode string) (*sql.DB, error) {
	db, err := openSQL(path, mode)
	if err != nil {
		return nil, err
	}
	if _, err := db.ExecContext(ctx, `PRAGMA busy_timeout = 10000`); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// findTables looks for tables that are not known yet: a log that was just begun has
// none.
func (r *Reader) findTables(ctx context.Context) error {
	rows, err := r.db.QueryContext(ctx, `SELECT name FROM sqlite_master WHERE type = 'table'`)
	if err != nil {
		return err
	}
	defer rows.Close()
	has := map[string]bool{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		has[name] = true
	}
	r.hasProtocol = has["protocol"]
	for _, t := range r.tables {
		delete(has, t.name)
	}
	for _, t := range []table{
		{name: "log"}, {name: "log1", old: true}, {name: "packet", packets: true}, {name: "packet1", packets: true, old: true},
	} {
		if has[t.name] {
			t.last, t.end = r.since, math.Inf(1)
			r.tables = append(r.tables, &t)
		}
	}
	return rows.Err()
}

// From leaves out what is before a date; the zero time leaves out nothing.
func (r *Reader) From(t time.Time) {
	if t.IsZero() {
		return
	}
	r.since = math.Nextafter(unix(t), math.Inf(-1))
	for _, table := range r.tables {
		table.last = r.since
	}
}

// Moved reports whether the file is no longer at its path, as after a rotation. What
// it has can still be read.
func (r *Reader) Moved() bool {
	now, err := os.Stat(r.path)
	return err != nil || !os.SameFile(now, r.file)
}

// Close closes the file.
func (r *Reader) Close() error { return r.db.Close() }

// Mark makes each reader end, from now on, with what its file has at this moment, the
// same for all: their files are locked together meanwhile.
func Mark(ctx context.Context, readers ...*Reader) error {
	var begun []*sql.Tx
	defer func() {
		for _, tx := range begun {
			_ = tx.Rollback() // only read
		}
	}()
	for _, r := range readers {
		err := r.retry(ctx, func() error {
			if err := r.findTables(ctx); err != nil {
				return err
			}
			tx, err := r.db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `SELECT 1 FROM sqlite_master`); err != nil { // locks it
				return errors.Join(err, tx.Rollback())
			}
			begun = append(begun, tx)
			return nil
		})
		if err != nil {
			return fmt.Errorf("node log %s: %w", r.path, err)
		}
	}
	for i, r := range readers {
		for _, t := range r.tables {
			end := sql.NullFloat64{}
			if err := begun[i].QueryRowContext(ctx, `SELECT max(date) FROM `+t.name).Scan(&end); err != nil {
				t.end = math.Inf(1) // it is told when it is read
			} else if end.Valid {
				t.end = end.Float64
			} else {
				t.end = t.last
			}
			t.dry = false
		}
	}
	return nil
}

// Entries yields what comes after what was read, oldest first, up to the mark if there
// is one. A [TableError] ends its table alone. Of two tables, one may get entries that
// are older than what was read of the other: packets are written later than records.
func (r *Reader) Entries(ctx context.Context) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		for _, t := range r.tables {
			t.dry = false
		}
		for {
			var first *table
			for _, t := range r.tables {
				if len(t.batch) == 0 && !t.dry && t.err == nil {
					if err := r.fill(ctx, t); err != nil {
						t.err = err
						if !yield(nil, &TableError{r.path, t.name, err}) {
							return
						}
					}
				}
				if len(t.batch) > 0 && (first == nil || t.batch[0].Date < first.batch[0].Date) {
					first = t
				}
			}
			for i, damage := range r.damage {
				if r.damage[i] = nil; damage != nil && !yield(nil, damage) {
					return
				}
			}
			if first == nil {
				return
			}
			e := first.batch[0]
			first.batch[0] = nil
			first.batch = first.batch[1:]
			if !yield(e, nil) {
				return
			}
		}
	}
}

// fill reads the next batch of a table: what it could read is there also if it fails.
func (r *Reader) fill(ctx context.Context, t *table) error {
	return r.retry(ctx, func() error { return r.readBatch(ctx, t) })
}

// retry reads again where there is the journal of what was not written to the end: SQLite
// takes for one also that of a process which is just beginning to write, so it waits once.
// If a process was killed while it wrote, that is undone. Once the file has lost its path,
// the journal is that of the file which has taken it: to undo it would spoil both, so
// reading waits for its end. The same goes for a file that is opened to write: it must
// not stay open.
func (r *Reader) retry(ctx context.Context, read func() error) error {
	const pause, most = 10 * time.Millisecond, 1000
	for n := 0; ; n++ {
		err := read()
		if resultCode(err) != codeRollback || n == most {
			return err
		}
		if n > 0 && !r.Moved() {
			if err := r.undo(ctx); err != nil {
				return fmt.Errorf("a process was killed while it wrote to it, which cannot be undone: %w", err)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// undo applies the journal of a process that was killed, which reading alone does.
func (r *Reader) undo(ctx context.Context) error {
	db, err := openForReading(ctx, r.path, "rw")
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, `SELECT 1 FROM sqlite_master`)
	return errors.Join(err, db.Close())
}

func (r *Reader) readBatch(ctx context.Context, t *table) error {
	columns := "level, pathname, lineno, msg"
	if t.packets {
		columns = "msg_id, code, peer, body"
	}
	node := "node"
	if t.old {
		node = "name"
	}
	rows, err := r.db.QueryContext(ctx, `SELECT date, `+node+`, `+columns+` FROM `+t.name+` WHERE date > ? AND date <= ? ORDER BY date`, t.last, t.end)
	if err != nil {
		return err
	}
	var ids []sql.NullInt64 // of the nodes of the batch
	size := 0
	t.batch = nil
	full := false
	for rows.Next() {
		var e *Entry
		var id sql.NullInt64
		if e, id, err = t.scan(rows); err != nil {
			break
		}
		// Rows of old tables may have equal dates.
		if full = len(t.batch) >= batchRows || size >= batchBytes; full && e.Date != t.last {
			break
		}
		t.last = e.Date
		t.batch = append(t.batch, e)
		ids = append(ids, id)
		size += len(e.Msg)
		if e.Packet != nil {
			size += len(e.Packet.Body)
		}
	}
	err = errors.Join(err, rows.Err(), rows.Close())
	t.dry = err == nil && !full
	r.nameNodes(ctx, t.batch, ids)
	if t.packets && !t.old && r.hasProtocol {
		r.readProtocols(ctx)
		for _, e := range t.batch {
			for _, p := range r.protocols {
				if p.date <= e.Date {
					e.Protocol = p.version
				}
			}
		}
	}
	return err
}

// damaged notes that a table which tells about entries cannot be read, once.
func (r *Reader) damaged(table string, err error) {
	if slices.Contains(r.told, table) {
		return
	}
	r.told = append(r.told, table)
	r.damage = append(r.damage, &TableError{r.path, table, err})
}

// versionLine is all that is looked for in the text of a protocol, which is source
// that the Python implementation executes.
var versionLine = regexp.MustCompile(`(?m)^PROTOCOL_VERSION = ([0-9]{1,4})\s*$`)

// maxProtocol is the size in bytes of the text of a protocol that is looked into.
const maxProtocol = 1 << 20

// readProtocols reads which protocols packets are of.
func (r *Reader) readProtocols(ctx context.Context) {
	var list []protocol
	err := r.retry(ctx, func() (err error) {
		list, err = r.loadProtocols(ctx)
		return err
	})
	if err != nil {
		r.damaged("protocol", err)
		return
	}
	r.protocols = list
}

func (r *Reader) loadProtocols(ctx context.Context) (list []protocol, err error) {
	rows, err := r.db.QueryContext(ctx, `SELECT date, text FROM protocol ORDER BY date`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var p protocol
		if err := rows.Scan(&p.date, &p.text); err != nil {
			return nil, err
		}
		known := slices.IndexFunc(r.protocols, func(q protocol) bool { return q.text == p.text })
		if known >= 0 {
			p.version = r.protocols[known].version
		} else {
			text, _ := io.ReadAll(io.LimitReader(bzip2.NewReader(strings.NewReader(p.text)), maxProtocol)) // the version is not known then
			if m := versionLine.FindSubmatch(text); m != nil {
				p.version, _ = strconv.Atoi(string(m[1])) // digits
			}
		}
		list = append(list, p)
	}
	return list, rows.Err()
}

func (t *table) scan(rows *sql.Rows) (*Entry, sql.NullInt64, error) {
	var (
		e          Entry
		id         sql.NullInt64
		name, text sql.NullString
		a, b       sql.NullInt64
	)
	node := any(&id)
	if t.old {
		node = &name
	}
	if !t.packets {
		var path sql.NullString
		err := rows.Scan(&e.Date, node, &a, &path, &b, &text)
		e.Name, e.Level, e.Path, e.Line, e.Msg = name.String, int(a.Int64), path.String, int(b.Int64), text.String
		return &e, id, err
	}
	p := &Packet{}
	err := rows.Scan(&e.Date, node, &a, &b, &text, &p.Body)
	direction, peer, ok := strings.Cut(text.String, " ")
	if !ok {
		peer = text.String
	}
	p.Sent, p.Peer, p.MsgID, p.Code = direction == ">", peer, uint32(a.Int64), uint16(b.Int64)
	e.Name, e.Packet = name.String, p
	return &e, id, err
}

// nameNodes says of which nodes entries are. They are shown as well if table node
// does not tell.
func (r *Reader) nameNodes(ctx context.Context, entries []*Entry, ids []sql.NullInt64) {
	for i, id := range ids {
		if !id.Valid {
			continue
		}
		key, ok := r.nodes[id.Int64]
		if !ok {
			r.readNodes(ctx)
			key = r.nodes[id.Int64]
			r.nodes[id.Int64] = key // its row is there before the entry, or never
		}
		e := entries[i]
		e.Name, e.Cluster, e.NodeID = key.name.String, key.cluster.String, key.nid.Int32
	}
}

func (r *Reader) readNodes(ctx context.Context) {
	if r.nodes == nil {
		r.nodes = map[int64]nodeKey{}
	}
	d := database{db: r.db, nodes: map[nodeKey]int64{}}
	if err := r.retry(ctx, d.loadNodes); err != nil {
		r.damaged("node", err)
	}
	for key, id := range d.nodes {
		r.nodes[id] = key
	}
}
