package sqldb

import (
	"bytes"
	"database/sql/driver"
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

func nullID(id backend.DataID) driver.Value {
	if !id.OK {
		return nil
	}
	return id.ID
}

func nullTID(t tid.TID) driver.Value {
	if t == tid.Zero {
		return nil
	}
	return int64(t)
}

func nullBool(b proto.Opt[bool]) driver.Value {
	if !b.OK {
		return nil
	}
	return boolInt(b.V)
}

func boolInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// joinOIDs returns oids in the form of columns trans.oids and pack.oids.
func joinOIDs(oids []tid.OID) []byte {
	b := make([]byte, 0, 8*len(oids))
	for _, o := range oids {
		b = o.Append(b)
	}
	return b
}

func splitOIDs(b []byte) ([]tid.OID, error) {
	if len(b)%8 != 0 {
		return nil, fmt.Errorf("list of object ids has %d bytes, which is not a multiple of 8", len(b))
	}
	oids := make([]tid.OID, 0, len(b)/8)
	for ; len(b) > 0; b = b[8:] {
		oids = append(oids, tid.OIDFromBytes(b))
	}
	return oids, nil
}

// metaRow returns the size and the values of a row of trans or ttrans. any is a
// TID of the partition.
func metaRow(np int, final driver.Value, any tid.TID, m *backend.Meta) (size int, p, t, packed, oids, user, desc, ext, ttid driver.Value) {
	o := joinOIDs(m.OIDs)
	size = len(o) + len(m.User) + len(m.Description) + len(m.Extension)
	return size, int64(any.Partition(np)), final, boolInt(m.Packed), o,
		notNil(m.User), notNil(m.Description), notNil(m.Extension), int64(m.TTID)
}

func equalMeta(x, y *backend.Meta) bool {
	return bytes.Equal(x.User, y.User) && bytes.Equal(x.Description, y.Description) && bytes.Equal(x.Extension, y.Extension) &&
		x.Packed == y.Packed && x.TTID == y.TTID && slices.Equal(x.OIDs, y.OIDs)
}

func packValues(p packRow) []driver.Value {
	var oids driver.Value
	if p.Partial {
		oids = joinOIDs(p.OIDs)
	}
	return []driver.Value{int64(p.id), nullBool(p.Approved), boolInt(p.Partial), oids, int64(p.Time)}
}

func notVoted(ttid tid.TID) error {
	return fmt.Errorf("transaction %v was not voted here", ttid)
}
