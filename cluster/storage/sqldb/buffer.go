package sqldb

import (
	"crypto/sha1"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// dataRow is a record that is not in SQL yet.
type dataRow struct {
	id   int64
	at   int64 // the id under which it is written
	data proto.ObjectData
	// shared: something else than its counter may refer to it.
	shared bool
	// late: no vote needs it, only rows of direct.
	late bool
	// taken: it is being written.
	taken bool
	// dead: released before it was written.
	dead bool
}

type dataKey struct {
	hash        proto.Hash
	compression uint8
}

// buffer holds records that wait to be written.
type buffer struct {
	rows  map[int64]*dataRow // also those being written
	order []*dataRow         // those to write
	bytes int
	same  map[dataKey]int64 // with a unique index only
}

func newBuffer() buffer {
	return buffer{rows: map[int64]*dataRow{}, same: map[dataKey]int64{}}
}

func (b *buffer) add(id int64, d proto.ObjectData, unique bool) {
	r := &dataRow{id: id, data: d}
	b.rows[id] = r
	b.order = append(b.order, r)
	b.bytes += len(d.Data) + 64
	if unique {
		b.same[dataKey{d.Checksum, d.Compression}] = id
	}
}

func (b *buffer) full(o *Options) bool { return b.bytes >= o.MaxBytes || len(b.order) >= o.MaxRows }

// drop forgets a record that nothing refers to, if it never left memory.
func (b *buffer) drop(id int64) bool {
	r := b.rows[id]
	if r == nil || r.shared || r.taken {
		return false
	}
	r.dead = true
	b.bytes -= len(r.data.Data) + 64
	delete(b.rows, id)
	if k := (dataKey{r.data.Checksum, r.data.Compression}); b.same[k] == id {
		delete(b.same, k)
	}
	r.data.Data = nil
	return true
}

// take returns what is to be written, in the order of ids. What waits stays.
func (b *buffer) take(waits func(r *dataRow) bool) []*dataRow {
	var rows, left []*dataRow
	b.bytes, rows = 0, make([]*dataRow, 0, len(b.order))
	for _, r := range b.order {
		switch {
		case r.dead:
		case waits(r):
			left = append(left, r)
			b.bytes += len(r.data.Data) + 64
		default:
			r.taken, r.at = true, r.id
			rows = append(rows, r)
		}
	}
	b.order = left
	slices.SortFunc(rows, func(x, y *dataRow) int { return cmpInt(x.id, y.id) })
	return rows
}

// written forgets what take returned.
func (b *buffer) written(rows []*dataRow) {
	for _, r := range rows {
		delete(b.rows, r.id)
		if k := (dataKey{r.data.Checksum, r.data.Compression}); len(b.same) > 0 && b.same[k] == r.id {
			delete(b.same, k)
		}
	}
}

func cmpInt(x, y int64) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// objRow is a record of an object in the final tables.
type objRow struct {
	oid  tid.OID
	tid  tid.TID
	data backend.DataID
	from tid.TID // DataSerial
}

// transRow is the metadata of a transaction in the final tables.
type transRow struct {
	tid  tid.TID
	meta *backend.Meta
}

// packRow is a row of table pack.
type packRow struct {
	id tid.TID
	proto.PackState
}

// direct holds rows of the final tables which wait to be written and come from
// no transaction of a client.
type direct struct {
	objs  []objRow
	trans []transRow
	packs []packRow
}

// overlay is what changed since a commit.
type overlay struct {
	objs map[tid.OID][]objRow
	n    int
	// from is the least TID of which something changed that reads must see; Invalid: nothing did.
	from tid.TID
	// deleted: something was deleted, so objs is not all that changed.
	deleted bool
	// written: statements of others changed the tables, so that what is in objs
	// may have been packed.
	written bool
}

func newOverlay() overlay { return overlay{objs: map[tid.OID][]objRow{}, from: tid.Invalid} }

// add adds a record. From is not about one up to committedUpTo.
func (o *overlay) add(r objRow, committedUpTo tid.TID) {
	o.objs[r.oid] = append(o.objs[r.oid], r)
	o.n++
	if r.tid > committedUpTo {
		o.from = min(o.from, r.tid)
	}
}

// last returns the last record of an object.
func last(rows []objRow) (objRow, bool) {
	if len(rows) == 0 {
		return objRow{}, false
	}
	return slices.MaxFunc(rows, func(x, y objRow) int { return cmpInt(int64(x.tid), int64(y.tid)) }), true
}

// sum is the checksum of stored bytes.
func sum(b []byte) proto.Hash { return proto.Hash(sha1.Sum(b)) }
