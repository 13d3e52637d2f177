package sqldb

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// The driver of SQLite makes strings of the names and of the declared types of the
	// columns of each query: names of one letter cost nothing, and an expression has no
	// declared type.
	selectObject = "SELECT +o.tid AS t, +o.data_id AS i, +o.value_tid AS f, +d.compression AS c, +d.hash AS h, +d.value AS v"
	fromObject   = " FROM obj AS o {pk:obj} LEFT JOIN data AS d ON d.id = o.data_id WHERE o.`partition` = ? AND o.oid = ?"
	selectNext   = ", (SELECT MIN(n.tid) FROM obj AS n {pk:obj} WHERE n.`partition` = ? AND n.oid = ? AND n.tid >= ?) AS n"

	lastObject   = selectObject + ", NULL AS n" + fromObject + " ORDER BY o.tid DESC LIMIT 1"
	objectBefore = selectObject + selectNext + fromObject + " AND o.tid < ? ORDER BY o.tid DESC LIMIT 1"
	objectAt     = selectObject + selectNext + fromObject + " AND o.tid = ?"
	exactObject  = selectObject + ", NULL AS n" + fromObject + " AND o.tid = ?"
	anyObject    = "SELECT 1 FROM obj {pk:obj} WHERE `partition` = ? AND oid = ? LIMIT 1"
)

// stored is a record as a query returns it.
type stored struct {
	backend.Object
	id   backend.DataID
	full bool // the row of data is there
}

func (o *stored) scan(r *Row) error {
	o.Serial = tid.TID(r.Int(0))
	o.id = backend.DataID{ID: r.Int(1), OK: !r.Null(1)}
	o.DataSerial = tid.TID(r.Int(2))
	if o.full = !r.Null(4); o.full {
		o.Compression = uint8(r.Int(3))
		copy(o.Checksum[:], r.Bytes(4))
		o.Data = r.Bytes(5)
	}
	o.Next = tid.TID(r.Int(6))
	return nil
}

// complete checks that a record has data if it refers to some, so that it can be told
// from one without.
func (o *stored) complete(p int, oid tid.OID) error {
	switch {
	case !o.id.OK:
		return nil
	case !o.full:
		return o.corrupt(p, oid, "data %d is missing", o.id.ID)
	case o.Checksum == proto.ZeroHash:
		return o.corrupt(p, oid, "data %d has no checksum", o.id.ID)
	}
	return nil
}

// verify is complete, and compares the data with the checksum.
func (o *stored) verify(p int, oid tid.OID) error {
	if err := o.complete(p, oid); err != nil {
		return err
	}
	if o.id.OK && sum(o.Data) != o.Checksum {
		return o.corrupt(p, oid, "data %d differs from its checksum %x", o.id.ID, o.Checksum)
	}
	return nil
}

func (o *stored) corrupt(p int, oid tid.OID, format string, args ...any) error {
	return &backend.CorruptError{Partition: p, OID: oid, TID: o.Serial, Detail: fmt.Sprintf(format, args...)}
}

// when tells which revision is wanted.
type when struct {
	at, before proto.Opt[tid.TID]
}

func (w when) match(t tid.TID) bool {
	return (!w.at.OK || t == w.at.V) && (!w.before.OK || t < w.before.V)
}

// find looks for a record in what a connection sees.
func (w when) find(c *Conn, p int, oid tid.OID) (o stored, found bool, err error) {
	pv, ov := int64(p), int64(oid)
	switch {
	case w.at.OK:
		found, err = c.One(objectAt, o.scan, pv, ov, clampTID(w.at.V)+1, pv, ov, clampTID(w.at.V))
	case w.before.OK:
		b := clampTID(w.before.V)
		// Nearly always the current revision is wanted, which nothing follows.
		if found, err = c.One(lastObject, o.scan, pv, ov); err == nil && found && int64(o.Serial) >= b {
			o = stored{}
			found, err = c.One(objectBefore, o.scan, pv, ov, b, pv, ov, b)
		}
	default:
		found, err = c.One(lastObject, o.scan, pv, ov)
	}
	if err == nil {
		err = c.complete(&o.ObjectData)
	}
	return o, found, err
}

// clampTID makes a TID comparable as a signed number, as in SQL.
func clampTID(t tid.TID) int64 { return int64(min(t, math.MaxInt64-1)) }

// GetObject implements [backend.Reading].
func (db *DB) GetObject(ctx context.Context, oid tid.OID, at, before proto.Opt[tid.TID]) (backend.Object, error) {
	p, err := db.layout.Load().object(oid)
	if err != nil {
		return backend.Object{}, err
	}
	w := when{at, before}
	added, aside, err := db.changes(oid)
	if err != nil {
		return backend.Object{}, err
	}
	var o stored
	var found bool
	if aside {
		err = db.pool.use(ctx, func(c *Conn) (err error) {
			o, found, err = w.find(c, p, oid)
			if err != nil || len(added) == 0 {
				return err
			}
			found, err = db.merge(c, w, p, oid, added, &o, found)
			return err
		})
	}
	// What the committed state cannot answer is asked on the writing connection,
	// too: a record may have been packed since changes was called.
	if err == nil && (!aside || found && o.id.OK && !o.full) {
		o = stored{}
		err = db.readMain(func(c *Conn) error {
			o, found, err = w.find(c, p, oid)
			return err
		})
	}
	if err == nil && !found {
		err = fmt.Errorf("object %v: %w", oid, backend.ErrNoSuchObject)
		if at.OK || before.OK {
			err = db.missing(ctx, p, oid, aside && len(added) == 0, len(added) > 0)
		}
		err = db.still(p, err)
	}
	if err == nil {
		err = o.complete(p, oid)
	}
	if err != nil {
		return backend.Object{}, err
	}
	return o.Object, nil
}

// changes returns the records of an object added since the last commit. aside:
// they and what is committed are all there is to know.
func (db *DB) changes(oid tid.OID) (added []objRow, aside bool, err error) {
	db.m.RLock()
	defer db.m.RUnlock()
	aside = db.pool.limit > 0 && !db.recent.deleted && !db.saving.deleted
	recent, saving := db.recent.objs[oid], db.saving.objs[oid]
	if len(recent)+len(saving) > 0 {
		added = append(append(added, saving...), recent...)
		if db.committedUpTo != tid.Zero {
			added = slices.DeleteFunc(added, func(r objRow) bool { return r.tid <= db.committedUpTo })
		}
	}
	return added, aside, db.err
}

// adds reports whether a record was added since the last commit.
func (db *DB) adds(oid tid.OID, t tid.TID) bool {
	db.m.RLock()
	defer db.m.RUnlock()
	is := func(r objRow) bool { return r.tid == t }
	return slices.ContainsFunc(db.recent.objs[oid], is) || slices.ContainsFunc(db.saving.objs[oid], is)
}

// merge completes o, found in the committed state, with what was added since.
func (db *DB) merge(c *Conn, w when, p int, oid tid.OID, added []objRow, o *stored, found bool) (bool, error) {
	best, better := objRow{}, false
	for _, r := range added {
		if w.match(r.tid) && (!found || r.tid >= o.Serial) && (!better || r.tid > best.tid) {
			best, better = r, true
		}
	}
	if better {
		next := o.Next
		if !found || best.tid > o.Serial {
			*o = stored{id: best.data}
			o.Serial, o.DataSerial, o.Next = best.tid, best.from, next
			if !found {
				err := c.Each("SELECT MIN(tid) FROM obj {pk:obj} WHERE `partition` = ? AND oid = ? AND tid > ?", func(r *Row) error {
					o.Next = tid.TID(r.Int(0))
					return nil
				}, int64(p), int64(oid), int64(best.tid))
				if err != nil {
					return false, err
				}
			}
			if err := db.fill(c, o); err != nil {
				return false, err
			}
		}
		found = true
	}
	if found {
		for _, r := range added {
			if r.tid > o.Serial && (o.Next == tid.Zero || r.tid < o.Next) {
				o.Next = r.tid
			}
		}
	}
	return found, nil
}

// fill loads the data of a record from memory or from what is committed.
func (db *DB) fill(c *Conn, o *stored) error {
	if !o.id.OK {
		return nil
	}
	db.m.RLock()
	r := db.buf.rows[o.id.ID]
	db.m.RUnlock()
	if r != nil {
		o.ObjectData, o.full = r.data, true
		return nil
	}
	var err error
	if o.ObjectData, o.full, err = readData(c, o.id.ID); err != nil || o.full {
		return err
	}
	db.m.RLock()
	k := db.parked[o.id.ID]
	db.m.RUnlock()
	if k != nil {
		o.ObjectData, o.full, err = readData(c, k.at)
	}
	return err
}

// missing tells an object without records from a revision that is not there.
func (db *DB) missing(ctx context.Context, p int, oid tid.OID, committed, exists bool) error {
	if !exists {
		use := db.readMain
		if committed {
			use = func(f func(c *Conn) error) error { return db.pool.use(ctx, f) }
		}
		err := use(func(c *Conn) (err error) {
			exists, err = c.One(anyObject, func(*Row) error { return nil }, int64(p), int64(oid))
			return err
		})
		if err != nil {
			return err
		}
	}
	if exists {
		return fmt.Errorf("object %v: %w", oid, backend.ErrNotFound)
	}
	return fmt.Errorf("object %v: %w", oid, backend.ErrNoSuchObject)
}

// LastObjectTID implements [backend.Reading].
func (db *DB) LastObjectTID(ctx context.Context, oid tid.OID) (proto.Opt[tid.TID], error) {
	l := db.layout.Load()
	p, err := l.object(oid)
	if err != nil {
		if l.np == 0 || !l.replicated[oid.Partition(l.np)] {
			return proto.Opt[tid.TID]{}, err
		}
		p = oid.Partition(l.np)
	}
	if fresh, err := db.isNew(p, oid); fresh || err != nil {
		return proto.Opt[tid.TID]{}, err
	}
	added, aside, err := db.changes(oid)
	if err != nil {
		return proto.Opt[tid.TID]{}, err
	}
	use := db.readMain
	if aside {
		use = func(f func(c *Conn) error) error { return db.readNear(ctx, f) }
	}
	var found proto.Opt[tid.TID]
	err = use(func(c *Conn) error {
		found = proto.Opt[tid.TID]{}
		return c.Each("SELECT +o.tid AS t FROM obj AS o {pk:obj} WHERE o.`partition` = ? AND o.oid = ? ORDER BY o.tid DESC LIMIT 1", func(r *Row) error {
			found = proto.Some(tid.TID(r.Int(0)))
			return nil
		}, int64(p), int64(oid))
	})
	if r, ok := last(added); aside && ok {
		found = proto.Some(max(found.V, r.tid))
	}
	return found, err
}

// FetchObject implements [backend.Reading].
func (db *DB) FetchObject(ctx context.Context, oid tid.OID, t tid.TID) (backend.Object, error) {
	l := db.layout.Load()
	if l.np == 0 {
		return backend.Object{}, backend.ErrNonReadable
	}
	p := oid.Partition(l.np)
	var o stored
	found := false
	use := func(f func(c *Conn) error) error { return db.read(ctx, t, f) }
	if db.adds(oid, t) {
		use = func(f func(c *Conn) error) error { return db.readMainAfter(backend.WaitsOf(ctx), f) }
	}
	err := use(func(c *Conn) (err error) {
		o = stored{}
		if found, err = c.One(exactObject, o.scan, int64(p), int64(oid), int64(t)); err == nil {
			err = c.complete(&o.ObjectData)
		}
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("object %v at %v: %w", oid, t, backend.ErrNotFound)
	}
	if err == nil {
		err = o.verify(p, oid)
	}
	return o.Object, err
}
