package sqlitedb

import (
	"bufio"
	"context"
	"crypto/sha1"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

// small is a dialect whose file cannot grow beyond some pages.
type small struct {
	*dialect
	pages int
}

func (s *small) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	dc, err := s.dialect.Connect(ctx, role)
	if err == nil {
		_, err = pragma(dc, "max_page_count = "+strconv.Itoa(s.pages))
	}
	return dc, err
}

// A full disk stops the node, which loses nothing that was committed.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := mustOpenSample(t, path, Options{})
	mustClose(t, db)
	d, err := newDialect(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	db, err = sqldb.Open(context.Background(), &small{d, 60}, sqldb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var committed tid.TID
	data := []byte(strings.Repeat("x", 20000))
	for ttid := tid.TID(8); ; ttid += 4 {
		d := proto.ObjectData{Checksum: sha(string(data)), Data: data}
		err = db.AddObject(3, ttid, d, nothing)
		if err == nil {
			err = db.Commit()
		}
		if err != nil {
			break
		}
		if committed = ttid; ttid > 4000 {
			t.Fatal("the disk never fills")
		}
	}
	if resultCode(err)&0xff != 13 || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v (code %d), want SQLITE_FULL and the file", err, resultCode(err))
	}
	if again := db.Commit(); resultCode(again)&0xff != 13 {
		t.Errorf("commit after the disk was full: %v", again)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	db = mustOpen(t, path, Options{})
	if last, err := db.LastObjectTID(t.Context(), 3); err != nil || last.V != committed || committed == 0 {
		t.Errorf("last revision %v, %v, want %v", last, err, committed)
	}
	if err := backendtest.CheckSample(db, 8, false); err != nil {
		t.Error(err)
	}
}

func TestCorruptData(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := mustOpenSample(t, path, Options{})
	mustClose(t, db)
	script(t, path, "UPDATE data SET value = X'00' WHERE id >> 48 = 1; DELETE FROM data WHERE id >> 48 = 2")
	db = mustOpen(t, path, Options{})
	for oid, detail := range map[tid.OID]string{1: "differs from its checksum", 2: "is missing"} {
		o, gerr := db.GetObject(t.Context(), oid, nothing, nothing)
		_, ferr := db.FetchObject(t.Context(), oid, 4)
		if oid == 1 { // for the client to notice
			if gerr != nil || string(o.Data) != "\x00" || o.Checksum == proto.ZeroHash || o.Checksum == sha1.Sum(o.Data) {
				t.Errorf("object %d: %q with checksum %x, %v", oid, o.Data, o.Checksum, gerr)
			}
			gerr = ferr
		}
		for _, err := range []error{gerr, ferr} {
			c, ok := errors.AsType[*backend.CorruptError](err)
			if !ok || c.OID != oid || c.TID != 4 || c.Partition != int(oid) || !strings.Contains(c.Detail, detail) {
				t.Errorf("object %d: %v", oid, err)
			}
		}
	}
	if _, err := db.LoadData(backend.DataID{ID: 1 << 48, OK: true}); err == nil || errors.Is(err, backend.ErrNotFound) {
		t.Errorf("LoadData: %v", err)
	}
	mustClose(t, db)
	script(t, path, "UPDATE data SET value = X'', hash = zeroblob(20) WHERE id >> 48 = 1")
	db = mustOpen(t, path, Options{})
	if _, err := db.GetObject(t.Context(), 1, nothing, nothing); err == nil || !strings.Contains(err.Error(), "has no checksum") {
		t.Errorf("GetObject, which must not say that the object was deleted: %v", err)
	}
	mustClose(t, db)
	script(t, path, "UPDATE trans SET oids = X'0102'; UPDATE obj SET value_tid = 'text'")
	db = mustOpen(t, path, Options{})
	if _, err := db.Transaction(t.Context(), 4); err == nil || !strings.Contains(err.Error(), "not a multiple of 8") {
		t.Errorf("Transaction: %v", err)
	}
	if _, err := db.GetObject(t.Context(), 1, nothing, nothing); err == nil || !strings.Contains(err.Error(), "instead of an integer") || !strings.Contains(err.Error(), path) {
		t.Errorf("GetObject: %v", err)
	}
}

// Equal data are kept once in a database with deduplication: what arrives anew takes
// the place of what was damaged, for all that refer to it.
func TestDamagedDataIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := mustOpenSample(t, path, Options{Dedup: true})
	d := proto.ObjectData{Checksum: sha1.Sum([]byte("shared")), Data: []byte("shared")}
	add := func(oid tid.OID) {
		t.Helper()
		if err := errors.Join(db.AddObject(oid, 3, d, proto.Opt[tid.TID]{}), db.Commit()); err != nil {
			t.Fatal(err)
		}
	}
	add(1)
	add(2)
	mustClose(t, db)
	script(t, path, "UPDATE data SET value = X'00' WHERE value = X'736861726564'")
	db = mustOpen(t, path, Options{Dedup: true})
	for _, oid := range []tid.OID{1, 2} {
		if _, err := db.FetchObject(t.Context(), oid, 3); err == nil {
			t.Fatalf("object %v is not damaged", oid)
		}
	}
	if err := db.DeleteObject(1, 3); err != nil {
		t.Fatal(err)
	}
	add(1)
	for _, oid := range []tid.OID{1, 2} {
		if o, err := db.FetchObject(t.Context(), oid, 3); err != nil || string(o.Data) != "shared" {
			t.Errorf("object %v: %q, %v", oid, o.Data, err)
		}
	}
}

// Damaged pages make an error that names the file, whatever is read.
func TestDamagedPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := mustOpenSample(t, path, Options{})
	mustClose(t, db)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := pageSize; i < len(b); i++ {
		b[i] ^= 0xa5
	}
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	db, err = Open(context.Background(), path, Options{})
	if err == nil {
		_, err = db.GetObject(t.Context(), 1, nothing, nothing)
		mustClose(t, db)
	}
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names the file", err)
	}
}

// The write-ahead log does not grow with the work.
func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	d, err := newDialect(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.check.limits = limits{copy: 20, restart: 100, max: 300}
	db, err := sqldb.Open(context.Background(), d, sqldb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := backendtest.PrepareSample(db); err != nil {
		t.Fatal(err)
	}
	stop, end := make(chan struct{}), make(chan struct{})
	go func() { // readers keep the log in use
		defer close(end)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := db.GetObject(t.Context(), 1, nothing, nothing); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	data := make([]byte, 5000)
	var largest int64
	for i := range 1500 {
		binary.BigEndian.PutUint32(data, uint32(i))
		if err := db.AddObject(3, tid.TID(8+4*i), proto.ObjectData{Checksum: sha(string(data)), Data: data}, nothing); err != nil {
			t.Fatal(err)
		}
		if err := db.Commit(); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, st.Size()/pageSize)
		data = make([]byte, 5000)
	}
	close(stop)
	<-end
	if largest > 500 {
		t.Errorf("the log grew to %d pages", largest)
	}
	mustClose(t, db)
	if st, err := os.Stat(path + "-wal"); err == nil {
		t.Errorf("closing left a log of %d bytes", st.Size())
	}
}

// Another program that reads for long makes no commit wait, however long the log
// becomes; when it has ended, the log is begun again.
func TestCommitsBesideAnotherReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	d, err := newDialect(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.check.limits = limits{copy: 20, little: 10, restart: 50, max: 100}
	var writer driver.Conn
	db, err := sqldb.Open(context.Background(), &watched{d, &writer}, sqldb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, db)
	if err := backendtest.PrepareSample(db); err != nil {
		t.Fatal(err)
	}
	other, err := openDriver(d.name.dsn())
	if err != nil {
		t.Fatal(err)
	}
	exec := func(text string) {
		t.Helper()
		if _, err := other.(driver.ExecerContext).ExecContext(t.Context(), text, nil); err != nil {
			t.Fatal(err)
		}
	}
	last := tid.TID(4)
	work := func(n int) {
		t.Helper()
		for range n {
			last += 4
			data := []byte(strings.Repeat("x", 5000))
			binary.BigEndian.PutUint64(data, uint64(last))
			if err := db.AddObject(3, last, proto.ObjectData{Checksum: sha(string(data)), Data: data}, nothing); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if err := db.Commit(); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Fatalf("commit %v took %v", last, took)
			}
		}
	}
	exec("BEGIN")
	if _, err := pragma(other, "schema_version"); err != nil { // reads
		t.Fatal(err)
	}
	size := func() int64 {
		t.Helper()
		st, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return st.Size() / pageSize
	}
	work(100)
	long := size()
	if long < 2*d.check.max {
		t.Fatalf("the log has only %d pages: the other program did not keep it in use", long)
	}
	exec("COMMIT")
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	work(100)
	if now := size(); now > long+d.check.max {
		t.Errorf("the log grew from %d to %d pages, although nobody else reads", long, now)
	}
	if ms, err := pragma(writer, "busy_timeout"); err != nil || ms != busyTimeout {
		t.Errorf("busy_timeout is %s ms, %v, want %s", ms, err, busyTimeout)
	}
}

// watched is a dialect whose writing connection can be looked at.
type watched struct {
	*dialect
	writer *driver.Conn
}

func (w *watched) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	dc, err := w.dialect.Connect(ctx, role)
	if role == sqldb.Writer && *w.writer == nil {
		*w.writer = dc
	}
	return dc, err
}

// TestCommitForEver is the child of TestKill.
func TestCommitForEver(t *testing.T) {
	path := os.Getenv("NEO_TEST_DATABASE")
	if path == "" {
		return // run by TestKill only
	}
	db, err := Open(context.Background(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if cfg, err := db.Config(); err != nil {
		t.Fatal(err)
	} else if !cfg.PTID.OK {
		if err := backendtest.PrepareSample(db); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := db.LastIDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := ids.TID.V/4*4 + 4; ; n += 4 {
		var stores []backend.Store
		var oids []tid.OID
		for oid := range tid.OID(20) {
			text := fmt.Sprintf("%d at %d %s", oid, n, strings.Repeat("x", 900))
			id, err := db.HoldData(100+oid, proto.ObjectData{Checksum: sha(text), Data: []byte(text)}, nothing)
			if err != nil {
				t.Fatal(err)
			}
			stores = append(stores, backend.Store{OID: 100 + oid, Data: id})
			oids = append(oids, 100+oid)
		}
		for i, err := range []error{
			db.Vote(n, stores, &backend.Meta{OIDs: oids}, nil), db.Commit(), db.Lock(n, n, false), db.Commit(),
			db.Unlock(n, n, true, true, false),
		} {
			if err != nil {
				t.Fatal(i, err)
			}
		}
		fmt.Println("committed", uint64(n)) // the lock was durable
	}
}

// Whatever was acknowledged before a process was killed is there afterwards, in
// whole transactions.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 8 {
		cmd := exec.Command(self, "-test.run", "^TestCommitForEver$")
		cmd.Env = append(os.Environ(), "NEO_TEST_DATABASE="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		acked, after := uint64(0), 1+r.IntN(40)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if n, ok := strings.CutPrefix(lines.Text(), "committed "); ok {
				if acked, err = strconv.ParseUint(n, 10, 64); err != nil {
					t.Fatal(err)
				}
			} else {
				t.Errorf("child: %s", lines.Text())
			}
			if after--; after == 0 {
				time.AfterFunc(time.Duration(r.IntN(3000))*time.Microsecond, func() { cmd.Process.Kill() })
			}
		}
		timer.Stop()
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		if acked == 0 {
			t.Fatal("nothing was committed")
		}
		db := mustOpen(t, path, Options{})
		found, err := db.Unfinished()
		if err != nil {
			t.Fatal(err)
		}
		for ttid, final := range found {
			if final.OK {
				if err := db.Validate(ttid, final.V); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := db.DropUnfinished(); err != nil {
			t.Fatal(err)
		}
		ids, err := db.LastIDs(t.Context())
		if err != nil || ids.TID.V < tid.TID(acked) {
			t.Fatalf("round %d: last transaction %d, %v, but %d was acknowledged", round, ids.TID.V, err, acked)
		}
		for n := tid.TID(8); n <= ids.TID.V; n += 4 {
			m, err := db.Transaction(t.Context(), n)
			if err != nil || len(m.OIDs) != 20 {
				t.Fatalf("round %d: transaction %d: %v", round, n, err)
			}
			for _, oid := range m.OIDs {
				o, err := db.GetObject(t.Context(), oid, proto.Some(n), nothing)
				if err != nil || !strings.HasPrefix(string(o.Data), fmt.Sprintf("%d at %d ", oid-100, n)) {
					t.Fatalf("round %d: object %d at %d: %v", round, oid, n, err)
				}
			}
		}
		mustClose(t, db)
		if got := query(t, path, "PRAGMA integrity_check"); got[0] != "ok" {
			t.Fatalf("round %d: %v", round, got)
		}
	}
}
