package repair

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/s3store"
	"github.com/neozodb/neo/backup/store/storetest"
)

// In a bucket that keeps versions, what was overwritten and what was deleted is read in its right version, and stored again;
// also where the store refuses to create an object over the mark of a deletion.
func onServer(t *testing.T, server *storetest.Server) {
	c, err := s3store.Parse(server.URL(server.Bucket(t, true), "some/prefix"))
	if err != nil {
		t.Fatal(err)
	}
	c.Credentials.AccessKey, c.Credentials.SecretKey = server.AccessKey, server.SecretKey
	once, err := s3store.New(c)
	if err != nil {
		t.Fatal(err)
	}
	s3 := store.Retry(once, store.RetryOptions{})
	list := backuptest.History(history(rand.New(rand.NewPCG(1, 12)), 40))
	repo := backuptest.New(t, s3, true)
	keys := repo.Listed(list[:10], list[10:20])
	repo.Manifest(false, false)
	repo.Manifest(false, true)
	tail := repo.Tail(list[20:30]...)
	repo.Tail(list[30:]...)
	page := repo.Now().Manifest.Items[0].Page.Key
	spoil := func(key string) {
		t.Helper()
		b := []byte(strings.Repeat("pay us ", 20))
		if err := s3.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	spoil(keys[0])
	spoil(page)
	spoil(tail)
	spoil(snapshot.ManifestKey(repo.Lineage, repo.Now().Manifest.Seq))
	if err := s3.Delete(t.Context(), keys[1:]); err != nil {
		t.Fatal(err)
	}
	look := func() (*backup.Repository, int) {
		t.Helper()
		r, err := backup.Open(t.Context(), backup.Config{Store: s3, Trusted: repo.Trusted})
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.State(t.Context(), repo.Lineage, nil)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for tr, err := range r.Transactions(t.Context(), r.Unlock(repo.Identity), s, 0, s.Head(), backup.FetchOptions{Scratch: t.TempDir()}, nil) {
			if err != nil {
				t.Fatal(err)
			}
			if got, want := text(tr), text(list[n]); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
			n++
		}
		return r, n
	}
	r, n := look()
	if n != len(list) || len(r.Tampered()) != 5 {
		t.Errorf("%d transactions, %v", n, r.Tampered())
	}
	p, err := Repair(t.Context(), Options{Repo: r, Signer: repo.Signer, Lineage: repo.Lineage, Keys: r.Unlock(repo.Identity), Scratch: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Apply(t.Context()); err != nil {
		t.Fatal(err, p.Steps)
	}
	if r, n := look(); n != len(list) || len(r.Tampered()) != 0 {
		t.Errorf("after the repair: %d transactions, %v; %v", n, r.Tampered(), p.Steps)
	}
}

func TestMinIO(t *testing.T)     { onServer(t, storetest.MinIO(t)) }
func TestVersityGW(t *testing.T) { onServer(t, storetest.VersityGW(t)) }
