package backup_test

import (
	"bytes"
	"errors"
	"testing"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/txn"
)

// The wrap of a key that was overwritten or deleted in a bucket that keeps versions opens still: the version
// that has the identity of the epoch is used.
func TestWrapVersions(t *testing.T) {
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, err := snapshot.GenerateEpoch([]snapshot.Recipient{other.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(r *backuptest.Repo, s store.Store) error{
		"overwritten": func(r *backuptest.Repo, s store.Store) error {
			return s.Put(t.Context(), "keys/0001.0001", bytes.NewReader([]byte("destroyed")), 9, store.PutOptions{})
		},
		"overwritten with another key for the same operators": func(r *backuptest.Repo, s store.Store) error {
			b, err := snapshot.Wrap(foreign, []snapshot.Recipient{r.Identity.(*age.X25519Identity).Recipient()})
			if err != nil {
				return err
			}
			return s.Put(t.Context(), "keys/0001.0001", bytes.NewReader(b), int64(len(b)), store.PutOptions{})
		},
		"deleted": func(r *backuptest.Repo, s store.Store) error {
			return s.Delete(t.Context(), []string{"keys/0001.0001"})
		},
	} {
		s := memstore.New(memstore.Options{Versioned: true})
		r := backuptest.New(t, s, true)
		if err := spoil(r, s); err != nil {
			t.Fatal(err)
		}
		again, err := backup.Open(t.Context(), backup.Config{Store: s, Trusted: r.Trusted})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Unlock(r.Identity).Epoch(t.Context(), 1); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(again.Tampered()); n != 1 {
			t.Errorf("%s: %d objects were tampered with", name, n)
		}
		if _, err := again.Unlock(other).Epoch(t.Context(), 1); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: opened by a stranger: %v", name, err)
		}
	}
}

// Of two that read the same damaged segment at once, both get the version that is right.
func TestRescueAtOnce(t *testing.T) {
	mem := memstore.New(memstore.Options{Versioned: true})
	r := backuptest.New(t, mem, false)
	key := r.Listed([]*txn.Transaction{backuptest.Txn(100, txn.Record{OID: 0, Data: []byte("x")})})[0]
	r.Manifest(false, false)
	if err := mem.Put(t.Context(), key, bytes.NewReader([]byte("y")), 1, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	repo, err := backup.Open(t.Context(), backup.Config{Store: mem, Trusted: r.Trusted})
	if err != nil {
		t.Fatal(err)
	}
	line := r.Now().Manifest.Items[0].Segment
	for n := range 2 {
		if again, err := repo.Rescue(t.Context(), line, snapshot.ErrCorrupt); err != nil || !again {
			t.Errorf("reader %d: %v %v, want another try", n, again, err)
		}
	}
	if list := repo.Tampered(); len(list) != 1 {
		t.Errorf("tampered with: %v", list)
	}
}
