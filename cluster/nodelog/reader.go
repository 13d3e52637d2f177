package nodelog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
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

	Packet *Packet
}

// Read yields what the log database at path has from a date on, oldest first; the
// zero time means all. The file may be in use, and is never created or executed.
// Old files, whose records are in tables log1 and packet1, are read too.
func Read(ctx context.Context, path string, from time.Time) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		err := read(ctx, path, from, func(e *Entry) bool { return yield(e, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(nil, fmt.Errorf("node log %s: %w", path, err))
		}
	}
}

// errStop ends a reading that its caller has left.
var errStop = errors.New("stop")

func read(ctx context.Context, path string, from time.Time, yield func(*Entry) bool) error {
	if _, err := os.Stat(path); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return err
	}
	db, query, err := openRead(ctx, path, "ro")
	if resultCode(err) == codeRollback {
		// A process was killed while it wrote: what it had begun is undone first.
		db, query, err = openRead(ctx, path, "rw")
	}
	if err != nil {
		return err
	}
	defer db.Close() // only read
	if query == "" {
		return nil
	}
	since := 0.0
	if !from.IsZero() {
		since = unix(from)
	}
	rows, err := db.QueryContext(ctx, query, since)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		e, err := scanEntry(rows)
		if err != nil {
			return err
		}
		if !yield(e) {
			return errStop
		}
	}
	return rows.Err()
}

// openRead opens a log and returns a statement over all its tables.
func openRead(ctx context.Context, path, mode string) (*sql.DB, string, error) {
	db, err := openSQL(path, mode)
	if err != nil {
		return nil, "", err
	}
	query := ""
	if _, err = db.ExecContext(ctx, `PRAGMA busy_timeout = 10000`); err == nil {
		query, err = selectEntries(ctx, db)
	}
	if err != nil {
		return nil, "", errors.Join(err, db.Close())
	}
	return db, query, nil
}

// selectEntries returns a statement over all the tables that the file has.
func selectEntries(ctx context.Context, db *sql.DB) (string, error) {
	rows, err := db.QueryContext(ctx, `SELECT name FROM sqlite_master WHERE type = 'table'`)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	has := map[string]bool{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return "", err
		}
		has[name] = true
	}
	if err := rows.Err(); err != nil {
		return "", err
	}
	node := `NULL, NULL, NULL`
	join := ``
	if has["node"] {
		node, join = `node.name, node.cluster, node.nid`, ` LEFT JOIN node ON node.id = t.node`
	}
	var parts []string
	for _, t := range []struct{ table, columns, join string }{
		{"log", node + `, level, pathname, lineno, msg, NULL, NULL, NULL, NULL`, join},
		{"log1", `t.name, NULL, NULL, level, pathname, lineno, msg, NULL, NULL, NULL, NULL`, ``},
		{"packet", node + `, NULL, NULL, NULL, NULL, msg_id, code, peer, body`, join},
		{"packet1", `t.name, NULL, NULL, NULL, NULL, NULL, NULL, msg_id, code, peer, body`, ``},
	} {
		if has[t.table] {
			parts = append(parts, `SELECT t.date AS date, `+t.columns+` FROM `+t.table+` AS t`+t.join+` WHERE t.date >= ?1`)
		}
	}
	if parts == nil {
		return "", nil
	}
	return strings.Join(parts, " UNION ALL ") + " ORDER BY 1", nil
}

func scanEntry(rows *sql.Rows) (*Entry, error) {
	var (
		e                         Entry
		name, cluster, path, peer sql.NullString
		msg                       sql.NullString
		nid, level, line          sql.NullInt64
		msgID, code               sql.NullInt64
		body                      []byte
	)
	if err := rows.Scan(&e.Date, &name, &cluster, &nid, &level, &path, &line, &msg, &msgID, &code, &peer, &body); err != nil {
		return nil, err
	}
	e.Name, e.Cluster, e.NodeID = name.String, cluster.String, int32(nid.Int64)
	e.Level, e.Path, e.Line, e.Msg = int(level.Int64), path.String, int(line.Int64), msg.String
	if code.Valid {
		direction, rest, ok := strings.Cut(peer.String, " ")
		if !ok {
			rest = peer.String
		}
		e.Packet = &Packet{Sent: direction == ">", Peer: rest, MsgID: uint32(msgID.Int64), Code: uint16(code.Int64), Body: body}
	}
	return &e, nil
}
