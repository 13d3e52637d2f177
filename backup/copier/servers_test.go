package copier

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/store/storeurl"
)

// The main way on real servers; with a lock where they have it, under which what was copied cannot be
// deleted.
func TestCopyServers(t *testing.T) {
	for name, server := range map[string]struct {
		start func(testing.TB) *storetest.Server
		lock  bool
	}{
		"MinIO": {storetest.MinIO, true}, "versitygw": {storetest.VersityGW, true}, "moto": {storetest.Moto, true}, "gofakes3": {storetest.GoFakeS3, false},
	} {
		t.Run(name, func(t *testing.T) {
			srv := server.start(t)
			env := map[string]string{}
			for _, s := range srv.Env() {
				k, v, _ := strings.Cut(s, "=")
				env[k] = v
			}
			s, err := storeurl.Open(srv.URL(srv.Bucket(t, server.lock), "some/prefix"), func(k string) string { return env[k] })
			if err != nil {
				t.Fatal(err)
			}
			s = store.Retry(s, store.RetryOptions{})
			w := newWorld(t, 2)
			for range 3 {
				w.repo.Tail(w.more(2)...)
				w.repo.Listed(w.more(2), w.more(1))
				w.repo.Manifest(true, false)
				w.repo.Tail(w.more(2)...)
				o := w.options()
				o.To, o.Verify = s, true
				if server.lock {
					o.Lock, o.LockDays = store.Governance, 1
				}
				sum, err := Copy(t.Context(), o)
				if err != nil || sum.Copied.Objects == 0 || sum.State.Head() != w.list[len(w.list)-1].TID {
					t.Fatalf("%+v, %v", sum, err)
				}
				if sum, err = Copy(t.Context(), o); err != nil || sum.Copied.Objects != 0 {
					t.Fatalf("again: %+v, %v", sum, err)
				}
			}
			for key, info := range must(list(t, s)) {
				if got, want := storetest.Get(t, s, key), storetest.Get(t, w.from, key); string(got) != string(want) || info.Size != int64(len(want)) {
					t.Errorf("%s is another one", key)
				}
			}
			if !server.lock {
				return
			}
			v := ""
			for x, err := range store.Versions(t.Context(), s, snapshot.MarkerKey) {
				if err != nil {
					t.Fatal(err)
				}
				v = x.Version
			}
			err = store.DeleteVersions(t.Context(), s, []store.Version{{Info: store.Info{Key: snapshot.MarkerKey, Version: v, Modified: time.Now()}}})
			if _, locked := errors.AsType[*store.LockedError](err); !locked {
				t.Errorf("the marker is deleted while it is locked: %v", err)
			}
		})
	}
}

func list(t *testing.T, s store.Store) (map[string]store.Info, error) {
	c := &copier{}
	return c.list(t.Context(), s)
}
