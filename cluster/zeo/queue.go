package zeo

import (
	"fmt"
	"os"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
)

// opKind says what an operation of a transaction does.
type opKind uint8

const (
	opStore opKind = iota
	opCheck
	opDelete
	opUndo
	opRestore
)

// op is one operation, carried out at vote.
type op struct {
	kind   opKind
	absent bool // a restore without data
	oid    tid.OID
	serial tid.TID // base revision, or of the transaction to undo
	prev   tid.TID // of a restore
	data   []byte  // nil: in the file
	at     int64
	size   int
}

// queue holds the operations of a transaction until they are carried out. Records
// beyond a limit go to a temporary file.
type queue struct {
	ops    []op
	limit  int
	memory int // bytes of data in ops
	file   *os.File
	size   int64
}

// add appends an operation. It copies data unless the queue may keep it.
func (q *queue) add(o op, data []byte, keep bool) error {
	o.size = len(data)
	switch {
	case q.memory+len(data) > q.limit && len(data) > 0:
		if err := q.spill(&o, data); err != nil {
			return err
		}
	case keep:
		o.data = data
	default:
		o.data = append(make([]byte, 0, len(data)), data...)
	}
	if o.data != nil {
		q.memory += len(o.data)
	}
	q.ops = append(q.ops, o)
	return nil
}

func (q *queue) spill(o *op, data []byte) error {
	if q.file == nil {
		f, err := os.CreateTemp("", "neozeo-")
		if err != nil {
			return fmt.Errorf("keeping a big transaction: %w", err)
		}
		q.file = f
		if err := os.Remove(f.Name()); err != nil {
			return fmt.Errorf("keeping a big transaction: %w", err)
		}
	}
	if _, err := q.file.WriteAt(data, q.size); err != nil {
		return fmt.Errorf("keeping a big transaction: %w", err)
	}
	o.at = q.size
	q.size += int64(len(data))
	return nil
}

// load returns the data of an operation.
func (q *queue) load(o *op) ([]byte, error) {
	if o.data != nil || o.absent {
		return o.data, nil
	}
	b := make([]byte, o.size)
	if o.size == 0 {
		return b, nil
	}
	if _, err := q.file.ReadAt(b, o.at); err != nil {
		return nil, fmt.Errorf("reading a big transaction again: %w", err)
	}
	return b, nil
}

// plain reports whether there are but stores, deletions and checks, whose data are
// in memory and few bytes.
func (q *queue) plain(most int) bool {
	return q.file == nil && q.memory <= most &&
		!slices.ContainsFunc(q.ops, func(o op) bool { return o.kind == opUndo || o.kind == opRestore })
}

func (q *queue) close() {
	if q.file != nil {
		q.file.Close() // has no name any more: closing frees its space
	}
	*q = queue{}
}
