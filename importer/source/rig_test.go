package source_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

// origin is a database that is opened as a source. stop and start are those of its
// server, nil for a file.
type origin struct {
	storage     config.Storage
	stop, start func()
}

// kinds are all kinds of sources.
var kinds = []struct {
	name string
	make func(t *testing.T, history txn.History) *origin
}{
	{"File", fileOrigin},
	{"ZEO", func(t *testing.T, history txn.History) *origin { return zeoOrigin(t, history, false) }},
	{"ReadOnlyZEO", func(t *testing.T, history txn.History) *origin { return zeoOrigin(t, history, true) }},
	{"PythonZEO", pythonOrigin},
	{"NEO", neoOrigin},
	{"BackupFile", func(t *testing.T, history txn.History) *origin { return backupOrigin(t, history, t.TempDir()) }},
	{"BackupS3", func(t *testing.T, history txn.History) *origin { return backupOrigin(t, history, "") }},
}

// onServer reports whether a kind of source is on a server, which can be stopped.
func onServer(kind string) bool { return !strings.HasSuffix(kind, "File") }

func each(t *testing.T, history txn.History, yield func(tr *txn.Transaction) error) {
	t.Helper()
	for tr, err := range history.Transactions(t.Context(), tid.Zero, tid.Max) {
		if err == nil {
			err = yield(tr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func memory(t *testing.T, history txn.History) *txntest.Memory {
	t.Helper()
	m := new(txntest.Memory)
	each(t, history, m.Append)
	return m
}

// write makes a Data.fs with its index.
func write(t *testing.T, history txn.History) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "Data.fs")
	w, err := fsformat.Create(path, fsformat.WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	each(t, history, w.Append)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func fileOrigin(t *testing.T, history txn.History) *origin {
	return &origin{storage: config.Storage{File: &config.File{Path: write(t, history)}}}
}

// allocating gives out object ids above all of its database.
type allocating struct {
	zeo.Storage
	mu   sync.Mutex
	next tid.OID
}

func (a *allocating) Features() zeo.Features {
	f := a.Storage.Features()
	f.ReadOnly = false
	return f
}

func (a *allocating) NewOIDs(_ context.Context, n int) (oids []tid.OID, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range n {
		oids = append(oids, a.next)
		a.next++
	}
	return oids, nil
}

// zeoOrigin is a server of ours over a database in memory.
func zeoOrigin(t *testing.T, history txn.History, readOnly bool) *origin {
	m := memory(t, history)
	st := zeo.Storage(zeo.NewReader(m, zeo.ReaderConfig{Name: "memory"}))
	if readOnly {
		return servedOrigin(t, st)
	}
	a := &allocating{Storage: st}
	each(t, history, func(tr *txn.Transaction) error {
		for r, err := range tr.Records {
			if err != nil {
				return err
			}
			a.next = max(a.next, r.OID+1)
		}
		return nil
	})
	return servedOrigin(t, a)
}

func servedOrigin(t *testing.T, st zeo.Storage) *origin {
	t.Helper()
	o := new(origin)
	addr := "127.0.0.1:0"
	var server *zeo.Server
	var done chan error
	o.start = func() {
		var l net.Listener
		for i := 0; ; i++ { // the port may be in use for a moment
			var err error
			if l, err = net.Listen("tcp", addr); err == nil {
				break
			}
			if i == 1000 {
				t.Error(err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		addr = l.Addr().String()
		var err error
		if server, err = zeo.New(context.Background(), zeo.Config{Storages: map[string]zeo.Storage{"1": st}}); err != nil {
			t.Error(err)
			return
		}
		done = make(chan error, 1)
		serve, ended := server, done
		go func() { ended <- serve.Serve(l) }()
	}
	o.stop = func() {
		if server == nil {
			return
		}
		server.Close()
		server = nil
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	o.start()
	t.Cleanup(func() { o.stop() })
	o.storage = config.Storage{ZEO: &config.ZEO{Servers: []string{addr}, Wait: true}}
	return o
}

const pythonServer = `
import sys
from ZEO.StorageServer import StorageServer
from ZODB.FileStorage import FileStorage
s = StorageServer(('127.0.0.1', int(sys.argv[2])), {'1': FileStorage(sys.argv[1], read_only=sys.argv[3] == 'true')}, read_only=sys.argv[3] == 'true')
print('%s:%s' % tuple(s.addr[:2]) if isinstance(s.addr, tuple) and s.addr[1] else '%s:%s' % tuple(s.acceptor.addr[:2]), flush=True)
s.loop()
`

// pythonOrigin is Python's server over a Data.fs.
func pythonOrigin(t *testing.T, history txn.History) *origin {
	return pythonServed(t, write(t, history), false)
}

func pythonServed(t *testing.T, path string, readOnly bool) *origin {
	t.Helper()
	interpreter := zeotest.Python(t)
	o := new(origin)
	port := "0"
	var cmd *exec.Cmd
	var addr string
	o.start = func() {
		cmd = exec.Command(interpreter, "-c", pythonServer, path, port, fmt.Sprint(readOnly))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Error(err)
			return
		}
		if !readOnly { // of one that is, the end of its objects is looked for, which it calls an error
			cmd.Stderr = os.Stderr
		}
		if err := cmd.Start(); err != nil {
			t.Error(err)
			return
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Error(err)
			return
		}
		addr = strings.TrimSpace(line)
		_, port, _ = net.SplitHostPort(addr)
	}
	o.stop = func() {
		if cmd != nil {
			// It ends with a signal, which is an error to Wait.
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			cmd = nil
		}
	}
	o.start()
	t.Cleanup(func() { o.stop() })
	o.storage = config.Storage{ZEO: &config.ZEO{Servers: []string{addr}, Wait: true}}
	return o
}

// neoOrigin is a cluster in this process, on real sockets.
func neoOrigin(t *testing.T, history txn.History) *origin {
	t.Helper()
	o := new(origin)
	cfg := simple.Config{Dir: t.TempDir(), Name: "origin", Partitions: 3}
	var cancel context.CancelFunc
	var done chan error
	o.start = func() {
		c, err := simple.New(cfg)
		if err != nil {
			t.Error(err)
			return
		}
		cfg.Master = c.Master()
		var ctx context.Context
		ctx, cancel = context.WithCancel(context.Background())
		done = make(chan error, 1)
		ended := done
		go func() { ended <- c.Run(ctx) }()
		if err := c.WaitRunning(ctx); err != nil {
			t.Error(err)
		}
	}
	o.stop = func() {
		if cancel == nil {
			return
		}
		cancel()
		cancel = nil
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	o.start()
	t.Cleanup(func() { o.stop() })
	cl, err := client.Open(t.Context(), client.Config{Cluster: "origin", Masters: []proto.Address{cfg.Master}})
	if err != nil {
		t.Fatal(err)
	}
	a := cl.NewAppender(t.Context(), client.AppenderOptions{})
	each(t, history, a.Append)
	if err := errors.Join(a.Close(), cl.Close()); err != nil {
		t.Fatal(err)
	}
	o.storage = config.Storage{NEO: &config.NEO{Name: "origin", Masters: cfg.Master.String()}}
	return o
}

// open opens an origin as a source.
func open(t *testing.T, o *origin, opt source.Options) source.Source {
	t.Helper()
	s, err := source.Open(t.Context(), "main", o.storage, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// logged is a log that remembers its lines.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

// count returns how many lines have a text.
func (l *logged) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func newLog() (*slog.Logger, *logged) {
	l := new(logged)
	return slog.New(slog.NewTextHandler(l, nil)), l
}
