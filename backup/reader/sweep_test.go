package reader

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"log/slog"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// A database that is open for months deletes what it kept of segments in whose place others are, once
// it is old.
func TestSuperfluousFilesAreDeleted(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), true)
	next := tid.TID(0x1000)
	commit := func() *txn.Transaction {
		next++
		return backuptest.Txn(next, txn.Record{OID: tid.OID(next), TID: next, Data: []byte("data")})
	}
	segment := func() { // which is not in memory with its note
		r.Listed([]*txn.Transaction{commit()})
	}
	segment()
	segment()
	r.Manifest(false, false)
	d, err := Open(t.Context(), r.Repository, r.Keys, r.Now(), Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	refresh := func() {
		t.Helper()
		if err := d.Refresh(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := d.Filled(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ends := func() (list []string) {
		t.Helper()
		paths, err := filepath.Glob(filepath.Join(d.files.dir, "end-*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			list = append(list, filepath.Base(p))
		}
		return list
	}
	refresh()
	before := ends()
	if len(before) != 2 {
		t.Fatalf("%d ends of segments are kept", len(before))
	}
	segment()
	r.Manifest(true, false) // of the third one: the others stay
	old := time.Now().Add(-2 * oldFile)
	for _, e := range before {
		if err := os.Chtimes(filepath.Join(d.files.dir, e), old, old); err != nil {
			t.Fatal(err)
		}
	}
	stray := "end-" + strings.Repeat("00", 32)
	for name, at := range map[string]time.Time{stray: old, "end-" + strings.Repeat("01", 32): time.Now(), "tmp-1": old} {
		path := filepath.Join(d.files.dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	d.swept = time.Now().Add(-2 * sweepEvery)
	refresh()
	d.wg.Wait()
	after := fmt.Sprint(ends())
	for _, e := range before {
		if !strings.Contains(after, e) {
			t.Errorf("%s of a segment that is in use was deleted: %v", e, after)
		}
	}
	if strings.Contains(after, stray) || !strings.Contains(after, "end-0101") {
		t.Errorf("there are %v", after)
	}
	if _, err := os.Stat(filepath.Join(d.files.dir, "tmp-1")); err == nil {
		t.Error("a temporary file of a crash is still there")
	}
}

// That the newest transactions are not shown is told, once for each end of the repository.
func TestHeadInHoleIsTold(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), false)
	at := func(i int) tid.TID { return tid.TID(0x1000 + i) }
	txnAt := func(i int) *txn.Transaction {
		return backuptest.Txn(at(i), txn.Record{OID: 1, TID: at(i), Data: []byte{byte(i)}})
	}
	r.Tail(txnAt(0))
	r.TailExact(at(9), txnAt(1))
	var log strings.Builder
	told := func() int { return strings.Count(log.String(), "are not shown") }
	d, err := Open(t.Context(), r.Repository, r.Keys, r.Now(), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if d.At() != at(0) || told() != 1 || !strings.Contains(log.String(), at(1).String()) {
		t.Errorf("at %v, %s", d.At(), log.String())
	}
	for i, want := range []int{2, 2, 2} {
		switch i {
		case 0:
			r.Tail(txnAt(2))
		case 2:
			r.Tail(txnAt(10))
		}
		if err := d.Refresh(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if told() != want {
			t.Errorf("after %d refreshes: %s", i+1, log.String())
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d.At() != at(10) {
		t.Errorf("at %v", d.At())
	}
}
