package restore

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store/filestore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// benchRepository is an encrypted repository in a directory with about so many bytes of text,
// in segments of 64 MiB.
func benchRepository(b *testing.B, size int) *backuptest.Repo {
	b.Helper()
	s, err := filestore.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	repo := backuptest.New(b, s, true)
	r := rand.New(rand.NewPCG(1, 1))
	at := tid.TID(1000)
	for size > 0 {
		var list []*txn.Transaction
		for n := min(64<<20, size); n > 0; {
			var records []txn.Record
			for range 8 {
				data := make([]byte, 0, 1600)
				for len(data) < 1500 {
					data = fmt.Appendf(data, "word%d ", r.IntN(3000))
				}
				records = append(records, txn.Record{OID: tid.OID(r.IntN(1 << 16)), Data: data})
				n -= len(data) + 40
				size -= len(data) + 40
			}
			at += 1000
			list = append(list, backuptest.Txn(at, records...))
		}
		repo.Listed(list)
	}
	return repo
}

func BenchmarkFile(b *testing.B) {
	repo := benchRepository(b, 256<<20)
	for _, verify := range []bool{false, true} {
		b.Run(fmt.Sprintf("verify=%v", verify), func(b *testing.B) {
			for range b.N {
				path := filepath.Join(b.TempDir(), "out.fs")
				res, err := source(repo, 0).ToFile(b.Context(), path, FileOptions{NoVerify: !verify})
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(res.Bytes)
				if err := os.Remove(path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTables(b *testing.B) {
	repo := benchRepository(b, 64<<20)
	for _, verify := range []bool{false, true} {
		b.Run(fmt.Sprintf("verify=%v", verify), func(b *testing.B) {
			for range b.N {
				res, err := source(repo, 0).ToTables(b.Context(), TablesOptions{Cluster: "c", Partitions: 6, Nodes: 2, Dir: b.TempDir(), NoVerify: !verify})
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(res.Bytes)
			}
		})
	}
}
