package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

// snapshotOf takes a snapshot of a source.
func snapshotOf(t testing.TB, repo *backuptest.Repo, f feed.Feed, dir string, at tid.TID) {
	t.Helper()
	w, err := writer.Open(t.Context(), writer.Options{Repo: repo.Repository, Signer: repo.Signer, Feed: f, StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Snapshot(t.Context(), at, ""), w.Close()); err != nil {
		t.Fatal(err)
	}
}

// What the writer of backups stores of a Data.fs is restored, at each of its transactions, with the
// bytes that an export writes.
func TestSamples(t *testing.T) {
	files, err := filepath.Glob("../../testdata/fs/0*.fs")
	if err != nil || len(files) < 9 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			src, err := fsformat.Open(path, fsformat.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			repo := backuptest.New(t, memstore.New(memstore.Options{}), true)
			f, err := feed.OpenFile(t.Context(), path, feed.FileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			dir := t.TempDir()
			list := backuptest.ReadFile(t, path)
			for i, tr := range list {
				if i%3 == 1 {
					snapshotOf(t, repo, f, dir, tr.TID)
				}
			}
			snapshotOf(t, repo, f, dir, 0)
			for _, tr := range list {
				out, want := filepath.Join(t.TempDir(), "out.fs"), filepath.Join(t.TempDir(), "want.fs")
				_, err := source(repo, tr.TID).ToFile(t.Context(), out, FileOptions{})
				if errors.Is(err, backup.ErrNotExact) && tr.TID < lastPacked(list) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := exporter.ToFile(t.Context(), src, want, exporter.FileOptions{UpTo: tr.TID}); err != nil {
					t.Fatal(err)
				}
				if got, want := read(t, out), read(t, want); !bytes.Equal(got, want) {
					t.Fatalf("at %v: %d bytes, want %d", tr.TID, len(got), len(want))
				}
			}
		})
	}
}

// lastPacked returns the last transaction that a pack has left. How far it went is not in a file.
func lastPacked(list []*txn.Transaction) (last tid.TID) {
	for i, t := range list {
		if t.Status == txn.Packed && i+1 < len(list) {
			last = list[i+1].TID
		} else if t.Status == txn.Packed {
			last = t.TID
		}
	}
	return last
}

// Whatever a cluster does, commits, undos, deletions and packs, each exact TID gives each
// object as it was then: none is lost, none rises from the dead.
func TestPacks(t *testing.T) {
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(seed), 9))
			m := feedtest.New("source")
			repo := backuptest.New(t, memstore.New(memstore.Options{}), r.IntN(2) == 0)
			dir := t.TempDir()
			const objects = 12
			var tids []tid.TID
			for range 60 {
				oid := tid.OID(r.IntN(objects))
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
					snapshotOf(t, repo, m, dir, 0)
				}
			}
			snapshotOf(t, repo, m, dir, 0)
			full := m.Full()
			exact := 0
			for i, at := range tids {
				if i%4 != seed%4 && i < len(tids)-1 {
					continue
				}
				path := filepath.Join(t.TempDir(), "out.fs")
				_, err := source(repo, at).ToFile(t.Context(), path, FileOptions{})
				if errors.Is(err, backup.ErrNotExact) {
					continue
				}
				if err != nil {
					t.Fatalf("at %v: %v", at, err)
				}
				exact++
				f, err := fsformat.Open(path, fsformat.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.UseIndex(t.Context(), path+".index", nil); err != nil {
					t.Fatal(err)
				}
				for oid := range tid.OID(objects) {
					want, got := objectAt(t, full, oid, at), objectAt(t, f, oid, at)
					if want != got {
						t.Fatalf("at %v: object %v is %s, want %s", at, oid, got, want)
					}
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if exact == 0 {
				t.Error("nothing is exact")
			}
		})
	}
}

// objectAt is what an object is at a TID.
func objectAt(t testing.TB, db interface {
	LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error)
}, oid tid.OID, at tid.TID) string {
	t.Helper()
	rev, err := db.LoadBefore(t.Context(), oid, at+1)
	if data, err := absent(rev.Data, err); err != nil {
		t.Fatal(err)
	} else if data == nil {
		return "absent"
	}
	return strings.TrimSpace(fmt.Sprintf("%q of %v", rev.Data, rev.Serial))
}
