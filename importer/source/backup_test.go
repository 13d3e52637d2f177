package source_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/store/storeurl"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

// proxy lets connections to a server through, or not.
type proxy struct {
	t    *testing.T
	to   string
	addr string

	mu    sync.Mutex
	l     net.Listener
	conns []net.Conn
	wg    sync.WaitGroup
}

func (p *proxy) start() {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.t.Error(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.l, p.addr = l, l.Addr().String()
	p.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", p.to)
			if err != nil {
				p.t.Error(err)
				in.Close()
				return
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			if p.l != l {
				in.Close()
				out.Close()
			}
			p.mu.Unlock()
			for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
				p.wg.Go(func() {
					_, _ = io.Copy(c[0], c[1]) // it ends with the connection
					in.Close()
					out.Close()
				})
			}
		}
	})
}

func (p *proxy) stop() {
	p.mu.Lock()
	if p.l != nil {
		p.l.Close()
		p.l = nil
	}
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.wg.Wait()
}

// transactions returns a history, to be used at any time.
func transactions(t *testing.T, history txn.History) (list []*txn.Transaction) {
	t.Helper()
	each(t, memory(t, history), func(tr *txn.Transaction) error {
		c := *tr
		list = append(list, &c)
		return nil
	})
	return list
}

// stored writes a history into a repository.
func stored(r *backuptest.Repo, list []*txn.Transaction) {
	for i := 0; len(list) > 0; i++ {
		n := min(20, len(list))
		if i%3 == 0 && n > 1 {
			r.Listed(list[:n/2], list[n/2:n])
		} else {
			r.Tail(list[:n]...)
		}
		if list = list[n:]; i%4 == 3 {
			r.Manifest(true, false)
		}
	}
}

// repository makes an encrypted repository at a URL, and what reads it.
func repository(t *testing.T, url string) (*backuptest.Repo, *config.Backup) {
	t.Helper()
	s, err := storeurl.Open(url, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	r := backuptest.New(t, s, true)
	c := &config.Backup{URL: url, VerifyKeys: r.Marker.Sign, IdentityFile: filepath.Join(t.TempDir(), "identity"), StateDir: t.TempDir()}
	if err := os.WriteFile(c.IdentityFile, []byte("# of the tests\n"+r.Identity.(snapshot.Identity).String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return r, c
}

// backupOrigin is a repository in a directory, or in a bucket of a server of S3.
func backupOrigin(t *testing.T, history txn.History, dir string) *origin {
	t.Helper()
	if dir != "" {
		r, c := repository(t, "file://"+dir)
		stored(r, transactions(t, history))
		return &origin{storage: config.Storage{Backup: c}}
	}
	server := storetest.GoFakeS3(t)
	for _, v := range server.Env() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	bucket := server.Bucket(t, false)
	p := &proxy{t: t, to: server.Endpoint, addr: "127.0.0.1:0"}
	p.start()
	t.Cleanup(p.stop)
	server.Endpoint = p.addr
	r, c := repository(t, server.URL(bucket, "site"))
	for c := range slices.Chunk(transactions(t, history), 20) { // which are not read with a tail
		r.Listed(c)
	}
	c.StateDir, c.CacheSize = "", 1 // what is read is read from the server
	return &origin{storage: config.Storage{Backup: c}, stop: p.stop, start: p.start}
}

// What is not right is refused at the start, and says what to do.
func TestBackupRefused(t *testing.T) {
	list := transactions(t, txntest.Random(1, 40, 10))
	r, good := repository(t, "file://"+t.TempDir())
	stored(r, list)
	_, other := repository(t, "file://"+t.TempDir())
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte("AGE-SECRET-KEY-1"), 0o644); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("AGE-SECRET-KEY-1WRONG"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*config.Backup)
		is     error
		text   string
	}{
		"no repository":          {func(c *config.Backup) { c.URL = "file://" + t.TempDir() }, backup.ErrNoRepository, "neobackup"},
		"no such scheme":         {func(c *config.Backup) { c.URL = "ftp://x/y" }, nil, "s3://"},
		"other keys":             {func(c *config.Backup) { c.VerifyKeys = other.VerifyKeys }, snapshot.ErrUntrusted, ""},
		"no key":                 {func(c *config.Backup) { c.VerifyKeys = []string{"x"} }, nil, "verify-keys"},
		"no identity":            {func(c *config.Backup) { c.IdentityFile = "" }, backup.ErrKeys, "identity-file"},
		"another identity":       {func(c *config.Backup) { c.IdentityFile = other.IdentityFile }, backup.ErrKeys, "age1"},
		"identity for all":       {func(c *config.Backup) { c.IdentityFile = open }, nil, "chmod 600"},
		"identity is none":       {func(c *config.Backup) { c.IdentityFile = text }, nil, "AGE-SECRET-KEY"},
		"no such file":           {func(c *config.Backup) { c.IdentityFile += "x" }, os.ErrNotExist, "identity-file"},
		"another lineage":        {func(c *config.Backup) { c.Lineage = strings.Repeat("00", 16) }, backup.ErrIncomplete, "lineage"},
		"beyond the end":         {func(c *config.Backup) { c.At = tid.Max }, backup.ErrNotExact, ""},
		"before the first":       {func(c *config.Backup) { c.At = list[0].TID - 1 }, source.ErrEmpty, ""},
		"state-dir is no folder": {func(c *config.Backup) { c.StateDir = text }, nil, "text"},
	} {
		t.Run(name, func(t *testing.T) {
			c := *good
			tt.change(&c)
			s, err := source.Open(t.Context(), "main", config.Storage{Backup: &c}, source.Options{})
			if err == nil {
				_, err = s.Extent(t.Context())
				if err == nil {
					_, err = s.LoadBefore(t.Context(), 0, tid.Max)
				}
				if e := s.Close(); e != nil {
					t.Error(e)
				}
			}
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want %v, %q", err, tt.is, tt.text)
			}
			if err != nil && strings.Contains(err.Error(), "WRONG") {
				t.Errorf("the key is shown: %v", err)
			}
		})
	}
}

// A moment between two transactions is that of the earlier one.
func TestBackupAtAMoment(t *testing.T) {
	list := transactions(t, txntest.Random(2, 60, 10))
	r, c := repository(t, "file://"+t.TempDir())
	stored(r, list)
	for _, i := range []int{0, 17, 40, 59} {
		c.At = list[i].TID
		if i < 59 {
			c.At++
		}
		s, err := source.Open(t.Context(), "main", config.Storage{Backup: c}, source.Options{})
		if err != nil {
			t.Fatal(err)
		}
		last, err := s.LastTID(t.Context())
		e, err2 := s.Extent(t.Context())
		if last != list[i].TID || e.Last != last || err != nil || err2 != nil {
			t.Errorf("at %v: the last one is %v, extent %+v, %v, %v", c.At, last, e, err, err2)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// fork makes a lineage that has the beginning of the current one, up to a transaction of its first
// segment.
func fork(t *testing.T, r *backuptest.Repo, last *txn.Transaction) {
	t.Helper()
	m := *r.Now().Manifest
	parent := m.Lineage
	segment := *m.Items[0].Segment
	segment.Clip = last.TID
	m.Lineage = snapshot.ID{0xf0, 1}
	m.Seq, m.Prev, m.Tail, m.Chain, m.Tip = 1, snapshot.Hash{}, 0, snapshot.Hash{}, snapshot.Tip(last)
	m.Items = []snapshot.Item{{Segment: &segment}}
	m.SumUp()
	b, err := m.Sign(r.Signer)
	if err != nil {
		t.Fatal(err)
	}
	r.Put(snapshot.ManifestKey(m.Lineage, 1), b)
	l := &snapshot.Lineage{Repo: m.Repo, K: 2, Lineage: m.Lineage, Parent: parent, At: last.TID, Created: m.Created, Why: "test"}
	if err := r.NewLineage(t.Context(), r.Signer, l); err != nil {
		t.Fatal(err)
	}
}

// An import goes on with the lineage with which it began, although another is the current one
// meanwhile; one that begins takes that.
func TestBackupLineageIsRemembered(t *testing.T) {
	list := transactions(t, txntest.Random(2, 60, 10))
	r, c := repository(t, "file://"+t.TempDir())
	r.Listed(list[:30])
	r.Manifest(false, false)
	last := func(again bool) tid.TID {
		t.Helper()
		s, err := source.Open(t.Context(), "main", config.Storage{Backup: c}, source.Options{Lazy: again})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		last, err := s.LastTID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return last
	}
	if got := last(false); got != list[29].TID {
		t.Fatal(got)
	}
	fork(t, r, list[9])
	if got := last(true); got != list[29].TID {
		t.Errorf("the import that has begun goes on up to %v", got)
	}
	if got := last(false); got != list[9].TID {
		t.Errorf("a new import takes all up to %v", got)
	}
}

// An import that has begun does not go on with another repository.
func TestBackupRepositoryIsRemembered(t *testing.T) {
	list := transactions(t, txntest.Random(2, 60, 10))
	r, c := repository(t, "file://"+t.TempDir())
	r.Listed(list[:30])
	r.Manifest(false, false)
	other, c2 := repository(t, "file://"+t.TempDir())
	other.Listed(list[:20])
	other.Manifest(false, false)
	c2.StateDir = c.StateDir
	patience := time.Minute
	last := func(c *config.Backup, again bool) (tid.TID, error) {
		t.Helper()
		s, err := source.Open(t.Context(), "main", config.Storage{Backup: c}, source.Options{Lazy: again, Patience: patience})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.LastTID(t.Context())
	}
	if got, err := last(c, false); got != list[29].TID || err != nil {
		t.Fatal(got, err)
	}
	patience = 3 * time.Second // which are waited
	if got, err := last(c2, true); err == nil || !strings.Contains(err.Error(), "the import began with repository "+r.Marker.ID.String()) {
		t.Errorf("%v, %v", got, err)
	}
	patience = time.Minute
	if got, err := last(c, true); got != list[29].TID || err != nil {
		t.Error(got, err)
	}
	c2.Lineage = other.Lineage.String()
	if got, err := last(c2, true); got != list[19].TID || err != nil {
		t.Error(got, err)
	}
}

// An import of which it is not known with which of several lineages it began does not go on with
// another one.
func TestBackupLineageIsNotGuessed(t *testing.T) {
	list := transactions(t, txntest.Random(2, 60, 10))
	r, c := repository(t, "file://"+t.TempDir())
	r.Listed(list[:30])
	r.Manifest(false, false)
	c.StateDir = ""
	patience := time.Minute
	last := func() (tid.TID, error) {
		t.Helper()
		s, err := source.Open(t.Context(), "main", config.Storage{Backup: c}, source.Options{Lazy: true, Patience: patience})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.LastTID(t.Context())
	}
	if got, err := last(); got != list[29].TID || err != nil {
		t.Fatal(got, err)
	}
	began := r.Lineage.String()
	fork(t, r, list[9])
	patience = 3 * time.Second // which are waited
	if got, err := last(); err == nil || !strings.Contains(err.Error(), "set lineage") {
		t.Errorf("%v, %v", got, err)
	}
	patience = time.Minute
	c.Lineage = began
	if got, err := last(); got != list[29].TID || err != nil {
		t.Error(got, err)
	}
}
