package verify

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

var histories = flag.Int("verify.histories", 6, "random histories to back up and verify")

// Nothing is found in what the writer of backups stores, whatever a cluster does meanwhile, and
// nothing differs from the source but what packs have removed.
func TestWritten(t *testing.T) {
	for seed := range *histories {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 9))
			m := feedtest.New("source")
			mem := memstore.New(memstore.Options{})
			repo := backuptest.New(t, mem, r.IntN(2) == 0)
			dir, stateDir := t.TempDir(), t.TempDir()
			against := func() {
				t.Helper()
				var found []Finding
				sum, err := Against(t.Context(), AgainstOptions{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), Source: FromFeed(m), Packed: m.Packed, Report: func(f Finding) { found = append(found, f) }})
				if err != nil || len(found) > 0 {
					t.Fatalf("%+v %v %v", sum, found, err)
				}
			}
			take := func() {
				w, err := writer.Open(t.Context(), writer.Options{Repo: repo.Repository, Signer: repo.Signer, Feed: m, StateDir: dir})
				if err == nil {
					err = errors.Join(w.Snapshot(t.Context(), 0, ""), w.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
				if found, err := look(t, mem, repo, stateDir); err != nil || len(found) > 0 {
					t.Fatal(found, err)
				}
				against()
			}
			var tids []tid.TID
			for range 60 {
				oid := tid.OID(r.IntN(12))
				switch k := r.IntN(10); {
				case k < 6:
					tids = append(tids, m.Put(oid, fmt.Sprint(r.Uint64())))
				case k < 7:
					tids = append(tids, m.Delete(oid))
				case k < 8 && len(tids) > 0:
					m.Put(oid, "before an undo")
					tids = append(tids, m.Undo(tids[len(tids)-1]))
				case k < 9 && len(tids) > 0:
					m.Pack(tids[r.IntN(len(tids))])
				default:
					against() // the source is ahead, and may have been packed ahead
					take()
				}
			}
			take()
		})
	}
}

// A Data.fs that was packed, and maybe went on, differs from the repository only by what the pack has
// removed, before the repository has it: also where the pack reached beyond the end of the repository, or dropped
// the last transactions.
func TestAgainstPackedFile(t *testing.T) {
	at := func(i int) tid.TID { return tid.TID(0x03f0000000000000 + i) }
	change := func(i int, status byte, oids ...int) *txn.Transaction {
		var records []txn.Record
		for _, oid := range oids {
			records = append(records, txn.Record{OID: tid.OID(oid), TID: at(i), Data: fmt.Appendf(nil, "%d in %d", oid, i)})
		}
		tr := backuptest.Txn(at(i), records...)
		tr.Status = status
		return tr
	}
	const p, no byte = txn.Packed, txn.Committed
	whole := []*txn.Transaction{change(1, no, 0, 1), change(2, no, 1, 2), change(3, no, 0), change(4, no, 2), change(5, no, 1)}
	for name, tt := range map[string]struct {
		file     []*txn.Transaction
		warnings int64 // of objects that the pack may have taken for garbage
		damage   int64
	}{
		"all":                       {[]*txn.Transaction{change(3, p, 0), change(4, p, 2), change(5, p, 1)}, 0, 0},
		"went on":                   {[]*txn.Transaction{change(3, p, 0), change(4, p, 2), change(5, p, 1), change(6, no, 1)}, 0, 0},
		"packed ahead":              {[]*txn.Transaction{change(3, p, 0), change(4, p, 2), change(7, p, 1), change(8, no, 2)}, 0, 0},
		"packed ahead, all of it":   {[]*txn.Transaction{change(3, p, 0), change(7, p, 1, 2)}, 0, 0},
		"the end was dropped":       {[]*txn.Transaction{change(3, p, 0), change(4, p, 2)}, 1, 0},
		"dropped, then it went on":  {[]*txn.Transaction{change(3, p, 0), change(4, p, 2), change(7, no, 2)}, 1, 0},
		"garbage":                   {[]*txn.Transaction{change(3, p, 0), change(5, p, 1)}, 1, 0},
		"a record after the pack":   {[]*txn.Transaction{change(1, p, 0, 1), change(2, p, 1, 2), change(3, no, 0), change(5, no, 1)}, 0, 1},
		"not packed, and truncated": {[]*txn.Transaction{change(1, no, 0, 1), change(2, no, 1, 2), change(3, no, 0)}, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			repo := backuptest.New(t, memstore.New(memstore.Options{}), false)
			repo.Listed(whole[:3])
			repo.Tail(whole[3:]...)
			path := filepath.Join(t.TempDir(), "Data.fs")
			w, err := fsformat.Create(path, fsformat.WriterOptions{NoSync: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, tr := range tt.file {
				if err := w.Append(tr); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			f, err := feed.OpenFile(t.Context(), path, feed.FileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			o := AgainstOptions{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), Source: FromFeed(f), Packed: f.Packed, Collected: true}
			if o.Horizon, err = Horizon(t.Context(), o.Source, f.Packed); err != nil {
				t.Fatal(err)
			}
			var found []Finding
			o.Report = func(f Finding) { found = append(found, f) }
			sum, err := Against(t.Context(), o)
			if err != nil || sum.Warnings != tt.warnings || sum.Damage != tt.damage {
				t.Errorf("horizon %v, %+v, %v, want %d warnings, %d faults; found %v", o.Horizon, sum, err, tt.warnings, tt.damage, found)
			}
		})
	}
}
