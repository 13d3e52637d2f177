package sqldb

import (
	"context"
	"database/sql/driver"
	"strings"

	"github.com/neozodb/neo/cluster/storage/backend"
)

// Numbers of revisions in one query: each makes a statement that stays prepared.
const (
	fewObjects  = 8
	manyObjects = 64
)

// absent is the partition of what fills a query up.
const absent = -1

// batch is a revision that the committed state has, if it exists.
type batch struct {
	i         int // in the list of the caller
	partition int
}

// GetObjects implements [backend.Reading]. What is committed is read by queries
// for many exact revisions; anything else by GetObject.
func (db *DB) GetObjects(ctx context.Context, keys []backend.ObjectKey, f func(i int, o *backend.Object, err error) bool) {
	var left []batch
	var alone []int
	l := db.layout.Load()
	for i, k := range keys {
		p, err := l.object(k.OID)
		var added []objRow
		aside := false
		if err == nil {
			added, aside, err = db.changes(k.OID)
		}
		if db.d.Batches() && k.At.OK && aside && len(added) == 0 && err == nil {
			left = append(left, batch{i, p})
		} else {
			alone = append(alone, i)
		}
	}
	for len(left) > 1 {
		part := left[:min(len(left), manyObjects)]
		left = left[len(part):]
		more, missed := db.getObjects(ctx, keys, part, f)
		if !more {
			return
		}
		alone = append(alone, missed...)
	}
	for _, b := range left {
		alone = append(alone, b.i)
	}
	for _, i := range alone {
		k := &keys[i]
		o, err := db.GetObject(ctx, k.OID, k.At, k.Before)
		if !f(i, &o, err) {
			return
		}
	}
}

// getObjects is one query. missed are those that it did not find, or without their
// data: GetObject knows why.
func (db *DB) getObjects(ctx context.Context, keys []backend.ObjectKey, part []batch, f func(i int, o *backend.Object, err error) bool) (more bool, missed []int) {
	n := manyObjects
	if len(part) <= fewObjects {
		n = fewObjects
	}
	args := make([]driver.Value, 0, 4*n)
	for j, b := range part {
		k := &keys[b.i]
		args = append(args, int64(j), int64(b.partition), int64(k.OID), clampTID(k.At.V))
	}
	for range n - len(part) {
		args = append(args, int64(0), int64(absent), int64(0), int64(0))
	}
	var done [manyObjects]bool
	more = true
	err := db.pool.use(ctx, func(c *Conn) error {
		return c.Each(c.objects(n), func(r *Row) error {
			j := int(r.Int(7))
			if done[j] {
				return nil // told before the connection was lost
			}
			b := part[j]
			var o stored
			if err := o.scan(r); err != nil || r.err != nil {
				return cmpErr(r.err, err)
			}
			if o.id.OK && !o.full || c.isBig(int64(o.Compression)) {
				return nil // left to GetObject
			}
			done[j] = true
			if err := o.complete(b.partition, keys[b.i].OID); err != nil {
				more = f(b.i, nil, err)
			} else {
				more = f(b.i, &o.Object, nil)
			}
			if !more {
				return errStop
			}
			return nil
		}, args...)
	})
	for j, b := range part {
		switch {
		case done[j] || !more:
		case err != nil:
			more = f(b.i, nil, err)
		default:
			missed = append(missed, b.i)
		}
	}
	return more, missed
}

// objects returns the query for n exact revisions, with the columns that
// stored.scan wants, and their number among the arguments.
func (c *Conn) objects(n int) string {
	k := rowsKey{objectsAt, n}
	q, ok := c.texts[k]
	if !ok {
		q = "WITH q(n, p, oid, tid) AS (VALUES (?,?,?,?)" + strings.Repeat(",(?,?,?,?)", n-1) + ") " + objectsAt
		c.texts[k] = q
	}
	return q
}

const objectsAt = selectObject + ", (SELECT MIN(n.tid) FROM obj AS n {pk:obj} WHERE n.`partition` = q.p AND n.oid = q.oid AND n.tid > q.tid), q.n" +
	" FROM q CROSS JOIN obj AS o {pk:obj} ON o.`partition` = q.p AND o.oid = q.oid AND o.tid = q.tid" +
	" LEFT JOIN data AS d ON d.id = o.data_id"
