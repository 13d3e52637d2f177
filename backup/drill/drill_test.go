package drill

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

const sampleFile = "../../testdata/fs/site.fs"

// world is a repository of a Data.fs in all forms that one has.
type world struct {
	t    testing.TB
	mem  *memstore.Store
	repo *backuptest.Repo
	list backuptest.History
	o    Options
	// keys of what is stored: a segment in a catalog page, one in the manifest, tails.
	paged, listed, tails []string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, mem: memstore.New(memstore.Options{}), list: backuptest.ReadFile(t, sampleFile)}
	w.repo = backuptest.New(t, w.mem, true)
	l := w.list
	w.paged = w.repo.Listed(l[:90], l[90:160])
	w.repo.Manifest(true, false)
	w.repo.Manifest(false, true)
	w.listed = w.repo.Listed(l[160:220], l[220:260])
	w.repo.Manifest(false, false)
	w.tails = append(w.tails, w.repo.Tail(l[260:300]...), w.repo.Tail(l[300:320]...), w.repo.Heartbeat(), w.repo.Tail(l[320:]...))
	w.o = Options{
		Store: w.mem, Trusted: w.repo.Trusted, Identities: []age.Identity{w.repo.Identity}, Signer: w.repo.Driver,
		Scratch: t.TempDir(), Rand: rand.New(rand.NewPCG(1, 2)),
		Source: func(ctx context.Context) (feed.Feed, error) {
			return feed.OpenFile(ctx, sampleFile, feed.FileOptions{})
		},
	}
	return w
}

func (w *world) head() tid.TID { return w.list[len(w.list)-1].TID }

// run runs a drill, and makes sure that nothing is left of it but the proof it tells of.
func (w *world) run(ctx context.Context, o Options) (*Result, error) {
	w.t.Helper()
	before := len(w.proofs())
	res, err := Run(ctx, o)
	entries, readErr := os.ReadDir(o.Scratch)
	if readErr != nil {
		w.t.Fatal(readErr)
	}
	for _, e := range entries {
		if res == nil || res.Kept != filepath.Join(o.Scratch, e.Name()) {
			w.t.Errorf("%s is left in scratch", e.Name())
		}
	}
	now := w.proofs()
	if res != nil && res.Key != "" {
		before++
		if now[0].Key != res.Key || now[0].Result != res.Proof.Result {
			w.t.Errorf("the newest proof is %s %s, not %s", now[0].Key, now[0].Result, res.Key)
		}
	}
	if len(now) != before {
		w.t.Errorf("%d proofs, want %d", len(now), before)
	}
	if err == nil && (res.Key == "" || res.Proof.Result != snapshot.ResultOK) || err != nil && res != nil && res.Key != "" && res.Proof.Result != snapshot.ResultFailed {
		w.t.Errorf("result %+v, error %v", res.Proof, err)
	}
	return res, err
}

func (w *world) proofs() []*storedProof {
	w.t.Helper()
	list, err := w.repo.Proofs(context.WithoutCancel(w.t.Context()), w.repo.Lineage)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// A drill of each mode passes on a repository that is as it was written, and says so.
func TestPasses(t *testing.T) {
	for _, mode := range []Mode{File, Cluster, Read} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t)
			o := w.o
			o.Mode = mode
			res, err := w.run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			p, state := res.Proof, w.repo.Now()
			if p.TID != w.head() || !res.Head || p.Seq != state.Manifest.Seq || p.Manifest != state.Hash || p.Tail != state.Chain().N || p.Chain != state.Chain().Hash || p.Mode != string(mode) {
				t.Errorf("proof %+v", p)
			}
			if c := p.Compared; c.Segments < 5 || c.Txns != int64(len(w.list)) || c.Records != 2142 || c.Bytes < 100e3 || c.Source != digest {
				t.Errorf("compared %+v; %s", c, res.Source)
			}
			if p.Gets == 0 || p.BytesRead < 100e3 || len(p.Epochs) != 1 {
				t.Errorf("figures %+v", p)
			}
			if res.Objects == 0 || res.Existing == 0 || res.References == 0 || res.Dangling != 0 || len(res.Warnings) > 0 {
				t.Errorf("result %+v", res)
			}
			proven, err := w.repo.Proven(t.Context(), w.repo.Lineage)
			if err != nil || proven == nil || proven.Key != res.Key {
				t.Errorf("proven: %+v, %v", proven, err)
			}
		})
	}
}

type storedProof = backup.StoredProof

var _ = errors.Is
var _ store.Store
var _ txn.Database
