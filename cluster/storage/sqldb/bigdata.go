package sqldb

import (
	"database/sql/driver"
	"encoding/binary"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
)

// A dialect with the table bigdata has long values there, in pieces: the value in data
// is the id of the first piece and the length of all, and the pieces follow each other.
const (
	bigValue = 16 << 20 // bytes from which a value is long
	bigPiece = 8 << 20
	bigFlag  = 0x80 // in data.compression
)

// reference is the value of a row of data whose bytes are in bigdata.
type reference struct{ first, length int64 }

func parseReference(value []byte) (reference, bool) {
	if len(value) != 8 {
		return reference{}, false
	}
	return reference{int64(binary.BigEndian.Uint32(value)), int64(binary.BigEndian.Uint32(value[4:]))}, true
}

// end returns the id after the last piece.
func (r reference) end() int64 { return r.first + (r.length+bigPiece-1)/bigPiece }

// isBig reports whether a row of data refers to bigdata.
func (c *Conn) isBig(compression int64) bool { return c.big && compression&bigFlag != 0 }

// dataValue returns what a row of data has of a value, writing what goes elsewhere.
func (c *Conn) dataValue(d *proto.ObjectData) (compression int64, value []byte, err error) {
	if !c.big || len(d.Data) < bigValue {
		return int64(d.Compression), notNil(d.Data), nil
	}
	first := int64(1)
	err = c.Each("SELECT MAX(id) FROM bigdata", func(r *Row) error {
		first = r.Int(0) + 1
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	id := first
	for piece := range slices.Chunk(d.Data, bigPiece) {
		if _, err := c.Exec("INSERT INTO bigdata (id, value) VALUES (?, ?)", id, piece); err != nil {
			return 0, nil, err
		}
		id++
	}
	value = binary.BigEndian.AppendUint32(nil, uint32(first))
	value = binary.BigEndian.AppendUint32(value, uint32(len(d.Data)))
	return int64(d.Compression) | bigFlag, value, nil
}

// complete replaces the value of a row of data by what it refers to. What is missing or
// damaged makes it differ from its checksum.
func (c *Conn) complete(d *proto.ObjectData) error {
	if !c.isBig(int64(d.Compression)) {
		return nil
	}
	d.Compression &^= bigFlag
	ref, ok := parseReference(d.Data)
	if !ok {
		return nil
	}
	d.Data = []byte{}
	return c.Each("SELECT value FROM bigdata WHERE id >= ? AND id < ? ORDER BY id", func(r *Row) error {
		d.Data = append(d.Data, r.Bytes(0)...)
		return nil
	}, ref.first, ref.end())
}

// deleteBig deletes what rows of data that are about to be deleted have in bigdata. where
// follows WHERE.
func (c *Conn) deleteBig(where string, args []driver.Value) error {
	if !c.big {
		return nil
	}
	var refs []reference
	err := c.Each("SELECT value FROM data WHERE compression >= 128 AND "+where, func(r *Row) error {
		if ref, ok := parseReference(r.Bytes(0)); ok {
			refs = append(refs, ref)
		}
		return nil
	}, args...)
	for _, ref := range refs {
		if err == nil {
			_, err = c.Exec("DELETE FROM bigdata WHERE id >= ? AND id < ?", ref.first, ref.end())
		}
	}
	return err
}

// drainToDel deletes the data that a pack of the Python implementation has noted in
// table todel when it was killed, unless something refers to them. The caller holds w.
func (db *DB) drainToDel() error {
	if !slices.Contains(db.d.Tables(), tToDel) {
		return nil
	}
	for total := 0; ; {
		if err := db.begin(); err != nil {
			return err
		}
		var ids []backend.DataID
		err := db.conn.Each("SELECT data_id FROM todel ORDER BY data_id LIMIT ?", func(r *Row) error {
			ids = append(ids, backend.DataID{ID: r.Int(0), OK: true})
			return nil
		}, int64(eachChunk))
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			if total > 0 {
				db.log.Info("data deleted that an interrupted pack had left", "database", db.d.Name(), "records", total)
			}
			return nil
		}
		n, err := db.prune(db.conn, ids)
		if err != nil {
			return err
		}
		total += n
		if _, err := db.conn.Exec("DELETE FROM todel WHERE data_id <= ?", ids[len(ids)-1].ID); err != nil {
			return err
		}
		if err := db.commitSQL(); err != nil {
			return err
		}
	}
}
