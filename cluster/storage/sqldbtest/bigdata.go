package sqldbtest

import (
	"bytes"
	"crypto/sha1"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

// big opens a database of a dialect that has tables for values of 16 MiB and more.
func big(t *testing.T, p Place, dedup bool) *sqldb.DB {
	t.Helper()
	d, err := p.Dialect()
	must(t, err)
	if !slices.Contains(d.Tables(), "bigdata") {
		must(t, d.Close())
		t.Skip("the dialect has long values where others are")
	}
	db, err := sqldb.Open(t.Context(), d, sqldb.Options{Dedup: dedup})
	must(t, err)
	return db
}

// Values of 16 MiB and more are in pieces, where the dialect has a table for them, and
// go with the rows that refer to them.
func testBigValues(t *testing.T, fresh func(t *testing.T) Place) {
	for _, dedup := range []bool{false, true} {
		p := fresh(t)
		db := big(t, p, dedup)
		must(t, backendtest.PrepareSample(db))
		value := make([]byte, 16777221)
		for i := range value {
			value[i] = byte(i * i >> 7)
		}
		least := value[:16<<20]
		add := func(oid tid.OID, at tid.TID, b []byte) {
			t.Helper()
			must(t, db.AddObject(oid, at, proto.ObjectData{Compression: 1, Checksum: sha1.Sum(b), Data: b}, none))
			must(t, db.Commit())
		}
		add(1, 8, value)
		add(1, 12, least)
		add(1, 16, value[:16<<20-1])
		want := []string{"1", "8388608", "2", "8388608", "3", "5", "4", "8388608", "5", "8388608"}
		sizes := "SELECT id, LENGTH(value) FROM bigdata ORDER BY id"
		if got := strings.Fields(strings.Join(query(t, p, sizes), " ")); !slices.Equal(got, want) {
			t.Errorf("pieces %v, want %v", got, want)
		}
		q := "SELECT HEX(value), compression FROM data WHERE compression >= 128 ORDER BY id"
		if got := query(t, p, q); !slices.Equal(got, []string{"0000000101000005 129", "0000000401000000 129"}) {
			t.Errorf("references %v", got)
		}
		same := func(what string, o backend.Object, err error, b []byte) {
			t.Helper()
			if err != nil || o.Compression != 1 || !bytes.Equal(o.Data, b) {
				t.Errorf("%s: %d bytes, compression %d, %v", what, len(o.Data), o.Compression, err)
			}
		}
		keys := []backend.ObjectKey{{OID: 1, At: proto.Some(tid.TID(8))}, {OID: 1, At: proto.Some(tid.TID(12))}, {OID: 1, Before: proto.Some(tid.TID(12))}}
		db.GetObjects(t.Context(), keys, func(i int, o *backend.Object, err error) bool {
			same("among others", *o, err, [][]byte{value, least, value}[i])
			return true
		})
		o, err := db.FetchObject(t.Context(), 1, 8)
		same("fetched", o, err, value)
		o, err = db.GetObject(t.Context(), 1, none, none)
		same("not so big", o, err, value[:16<<20-1])
		revs, err := db.History(t.Context(), 1, 0, 3)
		if err != nil || revs[0].Size != 16<<20-1 || revs[1].Size != 16<<20 || revs[2].Size != 16777221 {
			t.Errorf("history %v, %v", revs, err)
		}

		// Replicated again, or with another object: none is left beside.
		add(1, 8, value)
		add(2, 12, value)
		if n := count(t, p, "bigdata"); dedup && n != 5 || !dedup && n != 8 {
			t.Errorf("%d pieces after a repetition", n)
		}
		must(t, db.Close())
		must(t, p.Exec("UPDATE bigdata SET value = X'00' WHERE id = 2"))
		db = big(t, p, dedup)
		if _, err := db.FetchObject(t.Context(), 1, 8); err == nil || !strings.Contains(err.Error(), "differs from its checksum") {
			t.Errorf("a damaged piece: %v", err)
		}
		if dedup {
			add(3, 12, value) // takes the place of what was damaged
			o, err := db.FetchObject(t.Context(), 1, 8)
			same("mended", o, err, value)
			must(t, db.DeleteObject(3, 12))
		}
		must(t, db.DeleteObject(2, 12))
		_, _, err = db.Pack(1, 16, nil, 0, proto.Opt[tid.OID]{}, 100)
		must(t, err)
		must(t, db.Commit())
		if n := count(t, p, "bigdata"); n != 0 {
			t.Errorf("%d pieces after a pack", n)
		}
		must(t, db.Close())
	}
}

// What a pack of the Python implementation had noted to be deleted when it was killed
// is deleted at the next start, unless something refers to it.
func testToDelIsDrained(t *testing.T, p Place) {
	db := big(t, p, false)
	must(t, backendtest.PrepareSample(db))
	must(t, db.Close())
	before := count(t, p, "data")
	must(t, p.Exec("INSERT INTO data VALUES (77, X'00', 0, X'00')", "INSERT INTO todel SELECT id FROM data", "INSERT INTO todel VALUES (99999)"))
	must(t, big(t, p, false).Close())
	if n, left := count(t, p, "data"), count(t, p, "todel"); n != before || left != 0 {
		t.Errorf("%d records, %d to be deleted; want %d, 0", n, left, before)
	}
}
