package sqldb

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat/pickle"
)

// checkImported refuses a database into which an import has not come to its end.
// The last transaction of the sources is looked for where this node has to have it: a
// node gives partitions away only after the import.
func (db *DB) checkImported() error {
	state, err := db.ImportState()
	if err != nil || !state.OK {
		return err
	}
	end, err := importEnd(state.V)
	if err != nil {
		return fmt.Errorf("database %s: %w (%v): %s", db.d.Name(), backend.ErrHalfImported, err, importAdvice)
	}
	l := db.layout.Load()
	if end == tid.Zero || l.np > 0 && !l.readable[end.Partition(l.np)] {
		return nil
	}
	done := false
	if l.np > 0 {
		done, err = db.conn.One("SELECT 1 FROM trans WHERE `partition` = ? AND tid = ?",
			func(*Row) error { return nil }, int64(end.Partition(l.np)), int64(end))
		if err != nil || done {
			return err
		}
	}
	return fmt.Errorf("database %s: %w: transaction %v, the last one of the sources, is not here: %s", db.d.Name(), backend.ErrHalfImported, end, importAdvice)
}

const importAdvice = "start the node with the adapter Importer until it says that all data are imported" +
	" (or, to go without what is missing, delete the row zodb of table config)"

// importEnd returns the greatest of the last transactions of the sources of an
// import, Zero if there is none. The state is a JSON object of ours, or a pickle of the
// Python implementation: as it is from Python 2, or as the text of a bytes literal from Python 3.
func importEnd(state string) (tid.TID, error) {
	if strings.HasPrefix(strings.TrimSpace(state), "{") {
		return importEndJSON(state)
	}
	if strings.HasPrefix(state, "b'") || strings.HasPrefix(state, `b"`) {
		b, err := pythonBytes(state)
		if err != nil {
			return 0, err
		}
		state = b
	}
	v, _, err := pickle.Decode([]byte(state))
	if err != nil {
		return 0, fmt.Errorf("state of the import: %w", err)
	}
	sources, ok := v.(*pickle.Dict)
	if !ok {
		return 0, fmt.Errorf("state of the import is a pickle of %T instead of a dict", v)
	}
	var end tid.TID
	for _, s := range sources.Items {
		name, _ := pickle.Text(s.Key)
		o, _ := s.Value.(*pickle.Object)
		if o == nil {
			return 0, fmt.Errorf("state of the import: source %q is no object", name)
		}
		fields, _ := o.State.(*pickle.Dict)
		if fields == nil {
			return 0, fmt.Errorf("state of the import: source %q has no fields", name)
		}
		v, _ := fields.Get("ltid")
		n, isInt := pickle.Int(v)
		b, isBytes := pickle.RawBytes(v)
		switch {
		case v == nil:
			return 0, fmt.Errorf("state of the import: source %q has no ltid", name)
		case isInt && n >= 0:
			end = max(end, tid.TID(n))
		case isBytes && len(b) == 8:
			end = max(end, tid.FromBytes(b))
		default:
			return 0, fmt.Errorf("state of the import: ltid of source %q is %v", name, v)
		}
	}
	return end, nil
}

// importEndJSON is importEnd for a state of ours.
func importEndJSON(state string) (tid.TID, error) {
	var sources map[string]struct {
		LTID *tid.TID `json:"ltid"`
	}
	if err := json.Unmarshal([]byte(state), &sources); err != nil {
		return 0, fmt.Errorf("state of the import: %w", err)
	}
	var end tid.TID
	for name, s := range sources {
		if s.LTID == nil {
			return 0, fmt.Errorf("state of the import: source %q has no ltid", name)
		}
		end = max(end, *s.LTID)
	}
	return end, nil
}

// pythonBytes returns the bytes of a literal as repr of Python writes it.
func pythonBytes(literal string) (string, error) {
	broken := errors.New("state of the import: the bytes literal is broken")
	if len(literal) < 3 || literal[len(literal)-1] != literal[1] {
		return "", broken
	}
	s := literal[2 : len(literal)-1]
	var b strings.Builder
	for len(s) > 0 {
		c := s[0]
		if s = s[1:]; c != '\\' {
			b.WriteByte(c)
			continue
		}
		if s == "" {
			return "", broken
		}
		c, s = s[0], s[1:]
		switch c {
		case '\\', '\'', '"':
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'x':
			if len(s) < 2 {
				return "", broken
			}
			n, err := strconv.ParseUint(s[:2], 16, 8)
			if err != nil {
				return "", broken
			}
			c, s = byte(n), s[2:]
		default:
			return "", broken
		}
		b.WriteByte(c)
	}
	return b.String(), nil
}

// forgetCutImport removes the state of an import whose end a truncation deletes:
// what is missing then is missing by order.
func forgetCutImport(c *Conn, cut tid.TID) error {
	m, err := readConfig(c)
	if err != nil {
		return err
	}
	state, ok := m[keyImport]
	if !ok {
		return nil
	}
	if end, err := importEnd(state); err != nil || end <= cut {
		return nil // not readable: it was accepted as it is
	}
	return setConfig(c, keyImport, proto.Opt[string]{})
}
