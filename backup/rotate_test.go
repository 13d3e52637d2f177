package backup_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
)

func newIdentity(t *testing.T) (age.Identity, snapshot.Recipient) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id, id.Recipient()
}

// A rotation adds one object for each epoch, whatever call was the last of one before; what is stored
// opens with old and new identities, and foreign wraps mislead neither.
func TestRotate(t *testing.T) {
	m := memstore.New(memstore.Options{})
	r := backuptest.New(t, m, true)
	r.Tail(backuptest.Txn(0x10))
	r.Listed(backuptest.History{backuptest.Txn(0x20)})
	before := map[string][]byte{}
	for info, err := range m.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		before[info.Key], _, err = store.ReadAll(t.Context(), m, info.Key, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
	}
	carol, carolTo := newIdentity(t)
	dave, daveTo := newIdentity(t)
	rotate := func(s store.Store, by age.Identity, o backup.Rotation) (string, error) {
		repo, err := backup.Open(t.Context(), backup.Config{Store: s, Trusted: r.Trusted})
		if err != nil {
			return "", err
		}
		return repo.Unlock(by).Rotate(t.Context(), 1, o)
	}
	o := backup.Rotation{Recipients: []snapshot.Recipient{carolTo, daveTo}, Test: []age.Identity{carol}}
	if _, err := rotate(m, dave, o); !errors.Is(err, backup.ErrKeys) {
		t.Errorf("without the old identity: %v", err)
	}
	if _, err := rotate(m, r.Identity, backup.Rotation{Recipients: []snapshot.Recipient{carolTo}, Test: []age.Identity{dave}}); !errors.Is(err, backup.ErrTest) {
		t.Errorf("a test identity of another: %v", err)
	}
	if u, err := r.EpochUses(t.Context()); err != nil || len(u) != 1 || !slices.Equal(u[0].Wraps, []int64{1}) || u[0].Segments != 2 || u[0].Stored == 0 {
		t.Fatalf("%+v, %v: something was stored, or is not counted", u, err)
	}
	for _, after := range []bool{false, true} {
		for n, done := 1, false; !done; n++ {
			// Each time from the beginning.
			c := memstore.New(memstore.Options{})
			for key, b := range before {
				storetest.Put(t, c, key, b)
			}
			_, err := rotate(storetest.DieAt(c, n, after), r.Identity, o)
			if done = err == nil; done {
				break
			}
			if !errors.Is(err, storetest.ErrFault) {
				t.Fatalf("call %d: %v", n, err)
			}
			if _, err := rotate(c, r.Identity, o); err != nil {
				t.Fatalf("after call %d: %v", n, err)
			}
			if _, err := rotate(c, dave, o); err != nil {
				t.Fatalf("after call %d, by a new identity: %v", n, err)
			}
		}
	}
	if key, err := rotate(m, r.Identity, o); err != nil || key != "keys/0001.0002" {
		t.Fatalf("%q, %v", key, err)
	}
	// Once it is there, it is not made again.
	uses, err := r.EpochUses(t.Context())
	if err != nil || len(uses[0].Wraps) > 3 {
		t.Fatalf("%+v, %v", uses[0], err)
	}
	if key, err := rotate(m, carol, o); err != nil || key != "" {
		t.Errorf("again: %q, %v", key, err)
	}
	// A foreign wrap with the greatest number changes nothing, nor does one that is no wrap.
	stranger, strangerTo := newIdentity(t)
	b, err := snapshot.Wrap(stranger.(*age.X25519Identity), []snapshot.Recipient{carolTo, daveTo})
	if err != nil {
		t.Fatal(err)
	}
	r.Put("keys/0001.0007", b)
	r.Put("keys/0001.0008", []byte("x"))
	_ = strangerTo
	for _, id := range []age.Identity{r.Identity, carol, dave} {
		if _, err := r.Unlock(id).Epoch(t.Context(), 1); err != nil {
			t.Error(err)
		}
	}
	if key, err := rotate(m, dave, o); err != nil || key != "keys/0001.0009" {
		t.Errorf("behind foreign wraps: %q, %v", key, err)
	}
	for key, want := range before {
		got, _, err := store.ReadAll(t.Context(), m, key, 1<<20)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is another one: %v", key, err)
		}
	}
	_, err = r.Unlock(stranger).Epoch(t.Context(), 1)
	if !errors.Is(err, backup.ErrKeys) && !strings.Contains(err.Error(), "keys/") {
		t.Errorf("a stranger: %v", err)
	}
}
