package reader_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// large makes transactions of records that do not compress well, about 5 kB each.
func large(rnd *rand.Rand, from, n int, oid func(i, j int) tid.OID) (list []*txn.Transaction) {
	for i := range n {
		var records []txn.Record
		for j := range 5 {
			b := make([]byte, 1000)
			for k := range b {
				b[k] = byte(rnd.IntN(64))
			}
			records = append(records, txn.Record{OID: oid(from+i, j), Data: b})
		}
		list = append(list, backuptest.Txn(tid.TID(0x1000+from+i), records...))
	}
	return list
}

// spent returns what was asked of a store since before.
func spent(c *store.Counted, before store.Stats) store.Stats {
	now := c.Stats()
	return store.Stats{Gets: now.Gets - before.Gets, Lists: now.Lists - before.Lists, Failed: now.Failed - before.Failed, Received: now.Received - before.Received}
}

func (l *logged) add(what string, s store.Stats) {
	l.text += fmt.Sprintf("\n%-50s %4d GET (%d of them for what is not there), %d LIST, %8d bytes", what, s.Gets, s.Failed, s.Lists, s.Received)
}

type logged struct{ text string }

// How many requests are needed. With the whole index on this machine it is one for each object.
func TestRequests(t *testing.T) {
	const segments, perSegment = 40, 150
	rnd := rand.New(rand.NewPCG(1, 1))
	count := store.Count(memstore.New(memstore.Options{}))
	r := backuptest.New(t, count, true)
	oid := func(i, j int) tid.OID { return tid.OID(i*5 + j) }
	for i := range segments {
		r.Listed(large(rnd, i*perSegment, perSegment, oid))
	}
	r.Manifest(false, true)
	n := segments * perSegment
	for range 5 {
		r.Tail(large(rnd, n, 2, oid)...)
		n += 2
	}
	dir := t.TempDir()
	var l logged
	defer func() { t.Log(l.text) }()
	begin := func(o reader.Options) (*reader.Database, store.Stats) {
		t.Helper()
		before := count.Stats()
		repo, err := backup.Open(t.Context(), r.Config)
		if err != nil {
			t.Fatal(err)
		}
		lineage, err := repo.Current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		state, err := repo.State(t.Context(), lineage.Lineage, nil)
		if err != nil {
			t.Fatal(err)
		}
		d, err := reader.Open(t.Context(), repo, repo.Unlock(r.Identity), state, o)
		if err != nil {
			t.Fatal(err)
		}
		return d, spent(count, before)
	}
	load := func(d *reader.Database, i, j int) store.Stats {
		t.Helper()
		before := count.Stats()
		rev, err := d.LoadBefore(t.Context(), oid(i, j), tid.Max)
		if err != nil || rev.Serial != tid.TID(0x1000+i) || len(rev.Data) != 1000 {
			t.Fatalf("%d bytes at %v, %v", len(rev.Data), rev.Serial, err)
		}
		return spent(count, before)
	}

	before := count.Stats()
	d, opening := begin(reader.Options{CacheDir: dir})
	l.add("cold: open", opening)
	load(d, 0, 0)
	l.add("cold: open and the first object, of the oldest segment", spent(count, before)) // and what was read ahead meanwhile
	if err := d.Filled(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.add(fmt.Sprintf("all with the index of %d segments", segments), spent(count, before))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d, opening = begin(reader.Options{CacheDir: dir})
	defer d.Close()
	l.add("warm: open", opening)
	if err := d.Filled(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The key of the epoch is opened with the first object.
	first := load(d, 0, 0)
	l.add("warm: the first object, of the oldest segment", first)
	for range 30 {
		// In different segments and in different frames.
		s := load(d, rnd.IntN(segments)*perSegment+rnd.IntN(perSegment), 0)
		if s.Gets > 1 || s.Lists > 0 {
			t.Errorf("an object needs %+v, want at most one GET", s)
		}
	}
	if s := load(d, 5*perSegment+100, 0); s.Gets > 1 {
		t.Errorf("%+v", s)
	}
	if s := load(d, 5*perSegment+100, 1); s.Gets != 0 {
		t.Errorf("what lies beside it needs %+v, want nothing", s)
	}
	if s := load(d, n-1, 0); s.Gets != 0 {
		t.Errorf("an object in a small tail needs %+v, want nothing", s)
	}
	before = count.Stats()
	if err := d.Refresh(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s := spent(count, before)
	l.add("nothing new", s)
	if s.Lists != 2 || s.Gets != s.Failed {
		t.Errorf("a refresh without anything new: %+v, want 2 lists", s)
	}
}
