package zeoclient_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeoclient"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/fsformat"
)

// serve starts a server of ours over a database.
func serve(t *testing.T, db txn.Database, msgpack bool) (addr string, stop func()) {
	t.Helper()
	server, err := zeo.New(t.Context(), zeo.Config{
		Storages: map[string]zeo.Storage{"1": zeo.NewReader(db, zeo.ReaderConfig{Name: "memory"})},
		Msgpack:  msgpack,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	stop = sync.OnceFunc(func() {
		server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func dial(t *testing.T, addr string) *zeoclient.Client {
	t.Helper()
	c, err := zeoclient.Dial(t.Context(), zeoclient.Config{Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func memory(t *testing.T, history txn.History) *txntest.Memory {
	t.Helper()
	m := new(txntest.Memory)
	for tr, err := range history.Transactions(t.Context(), 0, tid.Max) {
		if err == nil {
			err = m.Append(tr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func bothEncodings(t *testing.T, test func(t *testing.T, msgpack bool)) {
	t.Run("Pickle", func(t *testing.T) { test(t, false) })
	t.Run("Msgpack", func(t *testing.T) { test(t, true) })
}

func TestDatabase(t *testing.T) {
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		txntest.Run(t, func(t *testing.T, history txn.History) txn.Database {
			addr, _ := serve(t, memory(t, history), msgpack)
			return dial(t, addr)
		})
	})
}

const pythonServer = `
import sys
from ZEO.StorageServer import StorageServer
from ZODB.FileStorage import FileStorage
s = StorageServer(('127.0.0.1', 0), {'1': FileStorage(sys.argv[1])}, msgpack=sys.argv[2] == 'true')
print('%s:%s' % tuple(s.addr[:2]) if isinstance(s.addr, tuple) and s.addr[1] else '%s:%s' % tuple(s.acceptor.addr[:2]), flush=True)
s.loop()
`

// servePython starts Python's server over a Data.fs.
func servePython(t *testing.T, interpreter, path string, msgpack bool) string {
	t.Helper()
	cmd := exec.Command(interpreter, "-c", pythonServer, path, fmt.Sprint(msgpack))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// It ends with a signal, which is an error to Wait.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestDatabaseOfPython(t *testing.T) {
	interpreter := zeotest.Python(t)
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		txntest.Run(t, func(t *testing.T, history txn.History) txn.Database {
			path := filepath.Join(t.TempDir(), "Data.fs")
			write(t, path, history)
			return dial(t, servePython(t, interpreter, path, msgpack))
		})
	})
}

// Extensions come with the very bytes where the encoding has them.
func TestExtension(t *testing.T) {
	extension := []byte("\x80\x03}(X\x01\x00\x00\x00kX\x01\x00\x00\x00vX\x01\x00\x00\x00bC\x01\xffu.")
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		m := new(txntest.Memory)
		if err := m.Append(&txn.Transaction{TID: 1 << 40, Status: txn.Packed, Extension: extension}); err != nil {
			t.Fatal(err)
		}
		addr, _ := serve(t, m, msgpack)
		n := 0
		for tr, err := range dial(t, addr).Transactions(t.Context(), 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			if string(tr.Extension) != string(extension) || tr.Status != txn.Packed {
				t.Errorf("extension %q, status %q", tr.Extension, tr.Status)
			}
			n++
		}
		if n != 1 {
			t.Errorf("%d transactions", n)
		}
	})
}

// Backwards gives packed transactions as well, of bursts and across years of silence.
func TestBackwards(t *testing.T) {
	m := new(txntest.Memory)
	var want []txn.Info
	at := tid.TID(0x03d2_1d9c_0000_0000)
	for i := range 5000 {
		switch {
		case i%2400 == 0:
			at += 3 << 50 // years
		case i%7 == 0:
			at += 1 << 20
		default:
			at++
		}
		info := txn.Info{TID: at, Status: txn.Committed, User: fmt.Append(nil, i)}
		if i < 3000 {
			info.Status = txn.Packed
		}
		records := []txn.Record{{OID: tid.OID(i), TID: at, Data: []byte("data")}}
		if err := m.Append(&txn.Transaction{TID: at, Status: info.Status, User: info.User, Records: txn.Slice(records)}); err != nil {
			t.Fatal(err)
		}
		want = append(want, info)
	}
	check := func(t *testing.T, c *zeoclient.Client) {
		i := len(want)
		for info, err := range c.Backwards(t.Context()) {
			if i--; err != nil || i < 0 {
				t.Fatalf("%v, with %d to come", err, i)
			}
			if w := want[i]; info.TID != w.TID || info.Status != w.Status || string(info.User) != string(w.User) {
				t.Fatalf("transaction %v %q %q, want %v %q %q", info.TID, info.Status, info.User, w.TID, w.Status, w.User)
			}
		}
		if i != 0 {
			t.Errorf("%d transactions are missing", i)
		}
	}
	t.Run("Ours", func(t *testing.T) {
		addr, _ := serve(t, m, false)
		check(t, dial(t, addr))
	})
	t.Run("Python", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "Data.fs")
		write(t, path, m)
		check(t, dial(t, servePython(t, zeotest.Python(t), path, false)))
	})
}

// certificate makes one for a name that signs itself.
func certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestTLS(t *testing.T) {
	server, client := certificate(t, "server"), certificate(t, "client")
	servers, clients := x509.NewCertPool(), x509.NewCertPool()
	servers.AddCert(server.Leaf)
	clients.AddCert(client.Leaf)
	s, err := zeo.New(t.Context(), zeo.Config{
		Storages: map[string]zeo.Storage{"1": zeo.NewReader(txntest.Small(), zeo.ReaderConfig{Name: "memory"})},
		TLS:      &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	dial := func(cfg *tls.Config) (*zeoclient.Client, error) {
		return zeoclient.Dial(t.Context(), zeoclient.Config{Addr: l.Addr().String(), TLS: cfg})
	}
	c, err := dial(&tls.Config{RootCAs: servers, ServerName: "server", Certificates: []tls.Certificate{client}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := c.LoadBefore(t.Context(), 0, tid.Max); string(r.Data) != "root again" || err != nil {
		t.Errorf("load = %q, %v", r.Data, err)
	}
	for name, cfg := range map[string]*tls.Config{
		"server of another name": {RootCAs: servers, ServerName: "other", Certificates: []tls.Certificate{client}},
		"unknown server":         {RootCAs: clients, ServerName: "server", Certificates: []tls.Certificate{client}},
		"no certificate":         {RootCAs: servers, ServerName: "server"},
	} {
		if c, err := dial(cfg); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// blocked is a database whose loads wait for the end of their context.
type blocked struct {
	*txntest.Memory
	waits chan struct{}
}

func (b *blocked) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	if oid != 1 {
		return b.Memory.LoadBefore(ctx, oid, before)
	}
	b.waits <- struct{}{}
	<-ctx.Done()
	return txn.Revision{}, ctx.Err()
}

// Calls do not wait for each other, end with their context, and when the connection
// is lost say so and what they were about.
func TestLostConnection(t *testing.T) {
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		b := &blocked{txntest.Small(), make(chan struct{}, 2)}
		addr, stop := serve(t, b, msgpack)
		c := dial(t, addr)
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 2)
		go func() { _, err := c.LoadBefore(ctx, 1, tid.Max); errs <- err }()
		go func() { _, err := c.LoadBefore(t.Context(), 1, tid.Max); errs <- err }()
		<-b.waits
		<-b.waits
		if r, err := c.LoadBefore(t.Context(), 0, tid.Max); string(r.Data) != "root again" || err != nil {
			t.Errorf("load beside others: %q, %v", r.Data, err)
		}
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled load: %v", err)
		}
		stop()
		err := <-errs
		if !errors.Is(err, txn.ErrUnavailable) || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "loadBefore of object") {
			t.Errorf("lost load: %v", err)
		}
		select {
		case <-c.Done():
		case <-time.After(time.Minute):
			t.Fatal("the loss of the connection is not told")
		}
		if _, err := c.LastTID(t.Context()); !errors.Is(err, txn.ErrUnavailable) || c.Err() == nil {
			t.Errorf("call after the loss: %v, connection: %v", err, c.Err())
		}
	})
}

func TestRefused(t *testing.T) {
	addr, _ := serve(t, txntest.Small(), false)
	_, err := zeoclient.Dial(t.Context(), zeoclient.Config{Addr: addr, Storage: "other"})
	if err == nil || !strings.Contains(err.Error(), "unknown storage: other") || !strings.Contains(err.Error(), addr) {
		t.Errorf("unknown storage: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := zeoclient.Dial(ctx, zeoclient.Config{Addr: l.Addr().String()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that is silent: %v", err)
	}
}

// write makes a Data.fs.
func write(t *testing.T, path string, history txn.History) {
	t.Helper()
	w, err := fsformat.Create(path, fsformat.WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for tr, err := range history.Transactions(t.Context(), tid.Zero, tid.Max) {
		if err == nil {
			err = w.Append(tr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// The greatest object is found whatever the ids are, and a server that is read-only
// gives none out.
func TestGreatestOID(t *testing.T) {
	for _, oids := range [][]tid.OID{nil, {0}, {0, 1}, {0, 1, 2, 3, 4, 5, 6, 7, 8}, {5}, {0, 1 << 20, 1<<20 + 1}, {0, 1 << 62}, {1<<63 - 2, 1<<63 - 1}, {0, 3, 1 << 61, 1<<62 + 12345}} {
		m := new(txntest.Memory)
		var records []txn.Record
		for _, oid := range oids {
			records = append(records, txn.Record{OID: oid, TID: 1 << 40, Data: []byte("data")})
		}
		if len(oids) > 0 {
			if err := m.Append(&txn.Transaction{TID: 1 << 40, Status: txn.Committed, Records: txn.Slice(records)}); err != nil {
				t.Fatal(err)
			}
		}
		addr, _ := serve(t, m, false)
		got, ok, err := dial(t, addr).GreatestOID(t.Context())
		if err != nil || ok != (len(oids) > 0) || ok && got != oids[len(oids)-1] {
			t.Errorf("greatest of %v: %v, %v, %v", oids, got, ok, err)
		}
		if _, err := dial(t, addr).NewOID(t.Context()); !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("a new object id for a client that only reads: %v", err)
		}
		if c, err := zeoclient.Dial(t.Context(), zeoclient.Config{Addr: addr, Writable: true}); !errors.Is(err, txn.ErrReadOnly) {
			if err == nil {
				c.Close()
			}
			t.Errorf("a client that may write, at a read-only server: %v", err)
		}
	}
}
