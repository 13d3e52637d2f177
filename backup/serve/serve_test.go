package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/serve"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// start serves a repository and returns the address.
func start(t *testing.T, r *backuptest.Repo, o reader.Options, s serve.Options) string {
	t.Helper()
	d, err := reader.Open(t.Context(), r.Repository, r.Keys, r.Now(), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve.Serve(ctx, d, []net.Listener{l}, s) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-served, d.Close()); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) *zeotest.Client {
	t.Helper()
	c, err := zeotest.Dial(addr, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if _, err := c.Call("register", "1", true); err != nil {
		t.Fatal(err)
	}
	return c
}

func object(oid tid.OID, data string) txn.Record { return txn.Record{OID: oid, Data: []byte(data)} }

// A client sees what comes into the repository, after it was told; a server at a fixed time
// does not change.
func TestFollow(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), true)
	r.Tail(backuptest.Txn(0x10, object(0, "root"), object(1, "one")))
	follow := dial(t, start(t, r, reader.Options{}, serve.Options{Follow: 10 * time.Millisecond}))
	fixed := dial(t, start(t, r, reader.Options{At: 0x10}, serve.Options{}))
	for i := range 20 {
		at := tid.TID(0x20 + i)
		r.Tail(backuptest.Txn(at, object(1, fmt.Sprint("one, ", i))))
		if i%7 == 6 {
			r.Manifest(true, false)
		}
		for len(follow.Notices) == 0 {
			m, err := follow.Read()
			if err != nil {
				t.Fatal(err)
			}
			follow.Notices = append(follow.Notices, m)
		}
		follow.Notices = nil
		data, serial, next, err := follow.LoadBefore(1, tid.Max)
		if err != nil || serial != at || next != 0 || string(data) != fmt.Sprint("one, ", i) {
			t.Fatalf("%q at %v until %v, %v, want that of %v", data, serial, next, err, at)
		}
	}
	if data, serial, next, err := fixed.LoadBefore(1, tid.Max); string(data) != "one" || serial != 0x10 || next != 0 || err != nil {
		t.Errorf("%q at %v until %v, %v", data, serial, next, err)
	}
	if _, err := follow.Commit(zeotest.Store{OID: 1, Base: 0x33, Data: []byte("written")}); err == nil {
		t.Error("a commit to a backup")
	}
}

// failing is a store of which some objects cannot be read.
type failing struct {
	store.Wrapped
	key atomic.Value // string
}

func (f *failing) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	if key == f.key.Load() {
		return nil, store.Info{}, &store.TemporaryError{Err: errors.New("503 Slow Down")}
	}
	return f.Wrapped.Get(ctx, key, off, n)
}

// What cannot be read is an error of one load. The client stays connected, and others do not
// notice.
func TestStoreThatFails(t *testing.T) {
	f := &failing{Wrapped: store.Wrapped{Store: memstore.New(memstore.Options{})}}
	f.key.Store("")
	r := backuptest.New(t, store.Retry(f, store.RetryOptions{Base: time.Millisecond, Max: 10 * time.Millisecond, Attempts: 5}), false)
	keys := r.Listed([]*txn.Transaction{backuptest.Txn(0x10, object(0, "root"), object(1, "one"))}, []*txn.Transaction{backuptest.Txn(0x20, object(2, "two"))})
	r.Manifest(false, false)
	f.key.Store(keys[0])
	addr := start(t, r, reader.Options{}, serve.Options{})
	c, other := dial(t, addr), dial(t, addr)
	for range 3 {
		if _, _, _, err := c.LoadBefore(1, tid.Max); err == nil || !strings.Contains(err.Error(), "StorageError") || !strings.Contains(err.Error(), keys[0]) {
			t.Fatalf("%v", err)
		}
		if data, _, _, err := other.LoadBefore(2, tid.Max); string(data) != "two" || err != nil {
			t.Fatalf("%q, %v", data, err)
		}
	}
	f.key.Store("")
	if data, _, _, err := c.LoadBefore(1, tid.Max); string(data) != "one" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
}

const makeFile = `
import sys, transaction, ZODB, ZODB.FileStorage
from persistent.mapping import PersistentMapping
db = ZODB.DB(ZODB.FileStorage.FileStorage(sys.stdin.readline().strip()))
with db.transaction() as c:
    c.root()['tree'] = PersistentMapping()
for i in range(30):
    with db.transaction() as c:
        c.root()['tree'][str(i)] = PersistentMapping({'number': i, 'text': 'x' * i * 100})
        c.root()['last'] = i
db.close()
print('done')
`

const browse = `
import sys, time, ZEO, ZODB
from ZODB.POSException import ReadOnlyError
host, port = sys.stdin.readline().strip().split(':')
db = ZODB.DB(ZEO.client((host, int(port)), read_only=True, wait_timeout=300))
c = db.open()
print(c.root()['last'], len(c.root()['tree']), sum(len(v['text']) for v in c.root()['tree'].values()), flush=True)
try:
    c.root()['last'] = 'written'
    c.transaction_manager.commit()
    print('written', flush=True)
except ReadOnlyError:
    print('read-only', flush=True)
c.transaction_manager.abort()
sys.stdin.readline()
for _ in range(6000):
    c.sync()
    if c.root()['last'] == 29:
        break
    time.sleep(0.05)
print(c.root()['last'], len(c.root()['tree']), c.root()['tree']['29']['number'], flush=True)
h = db.history(c.root()._p_oid, 100)
print(len(h), flush=True)
c.close()
db.close()
`

// A ZEO client of Python browses, and sees what is added.
func TestPython(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	in, out := zeotest.Program(t, makeFile)
	fmt.Fprintln(in, path)
	if !out.Scan() || out.Text() != "done" {
		t.Fatalf("%q, %v", out.Text(), out.Err())
	}
	list := backuptest.ReadFile(t, path)
	half := len(list) - 15
	r := backuptest.New(t, memstore.New(memstore.Options{}), true)
	r.Listed(list[:5], list[5:9])
	r.Tail(list[9:half]...)
	r.Manifest(true, false)
	addr := start(t, r, reader.Options{CacheDir: t.TempDir()}, serve.Options{Follow: 20 * time.Millisecond})
	in, out = zeotest.Program(t, browse)
	say := func(want string) {
		t.Helper()
		if !out.Scan() || out.Text() != want {
			t.Fatalf("%q, want %q, %v", out.Text(), want, out.Err())
		}
	}
	fmt.Fprintln(in, addr)
	say("14 15 10500")
	say("read-only")
	for _, tr := range list[half:] {
		r.Tail(tr)
	}
	fmt.Fprintln(in)
	say("29 30 29")
	say("32")
}
