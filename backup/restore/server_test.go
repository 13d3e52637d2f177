package restore

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/s3store"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
)

// onServer checks, verifies and restores a repository in a bucket. In one that keeps versions
// it finds what was overwritten, and the right version of it.
func onServer(t *testing.T, server *storetest.Server, versions bool) {
	c, err := s3store.Parse(server.URL(server.Bucket(t, versions), "some/prefix"))
	if err != nil {
		t.Fatal(err)
	}
	c.Credentials.AccessKey, c.Credentials.SecretKey = server.AccessKey, server.SecretKey
	once, err := s3store.New(c)
	if err != nil {
		t.Fatal(err)
	}
	s3 := store.Retry(once, store.RetryOptions{})
	r := rand.New(rand.NewPCG(1, 12))
	s := newSample(t, r, 60, true)
	repo := backuptest.New(t, s3, true)
	repo.Listed(s.list[:20], s.list[20:30])
	repo.Manifest(true, true)
	repo.Tail(s.list[30:40]...)
	repo.Listed(s.list[40:50])
	repo.Tail(s.list[50:]...)
	var found []verify.Finding
	look := func() {
		t.Helper()
		found = nil
		report := func(f verify.Finding) { found = append(found, f) }
		if _, err := verify.Check(t.Context(), repo.Config, verify.CheckOptions{Report: report}); err != nil {
			t.Fatal(err)
		}
		if _, err := verify.Read(t.Context(), verify.ReadOptions{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), Report: report}); err != nil {
			t.Fatal(err)
		}
	}
	if look(); len(found) > 0 {
		t.Fatal(found)
	}
	for _, at := range []tid.TID{s.list[15].TID, 0} {
		path := filepath.Join(t.TempDir(), "out.fs")
		if _, err := source(repo, at).ToFile(t.Context(), path, FileOptions{}); err != nil {
			t.Fatal(err)
		}
		if at == 0 {
			at = tid.Max
		}
		if !bytes.Equal(read(t, path), s.export(t, at)) {
			t.Errorf("at %v: not what was backed up", at)
		}
	}
	var key string
	for p, err := range repo.Parts(t.Context(), repo.Now(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		if p.Segment.Offset() == 0 {
			key = p.Segment.Key
		}
	}
	b := storetest.Get(t, s3, key)
	b[len(b)/2] ^= 1
	if err := s3.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	look()
	if !slices.ContainsFunc(found, func(f verify.Finding) bool {
		return f.Kind == verify.Damaged && f.Key == key && strings.Contains(f.Text, "has the right bytes") == versions
	}) {
		t.Errorf("overwritten: %v", found)
	}
	if versions && !slices.ContainsFunc(found, func(f verify.Finding) bool { return f.Kind == verify.Overwritten && f.Key == key }) {
		t.Errorf("overwritten: %v", found)
	}
}

func TestGoFakeS3(t *testing.T)  { onServer(t, storetest.GoFakeS3(t), false) }
func TestMinIO(t *testing.T)     { onServer(t, storetest.MinIO(t), true) }
func TestVersityGW(t *testing.T) { onServer(t, storetest.VersityGW(t), true) }
func TestMoto(t *testing.T)      { onServer(t, storetest.Moto(t), true) }
