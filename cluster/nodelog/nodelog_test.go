package nodelog

import (
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// stopped is a clock that stands still.
func stopped() time.Time { return time.Unix(1700000000, 0) }

func open(t *testing.T, cfg Config) *Log {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "node.log")
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not after two minutes")
		}
	}
}

// texts returns what is in a log file, records by their message and packets by
// their code.
func texts(t *testing.T, path string) []string {
	t.Helper()
	var list []string
	for e, err := range Read(t.Context(), path, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Packet != nil {
			list = append(list, fmt.Sprintf("%v 0x%04x %s", e.Packet.Sent, e.Packet.Code, e.Packet.Peer))
		} else {
			list = append(list, e.Msg)
		}
	}
	return list
}

// No packet is written before a warning; then everything is, in order, although
// all dates are the same.
func TestHistoryAroundAWarning(t *testing.T) {
	l := open(t, Config{Now: stopped})
	n := l.Node("")
	log := slog.New(n.Handler())
	log.Debug("one")
	n.Identify("test", 1)
	n.Packet(Packet{Sent: true, Peer: "M1 (127.0.0.1:10000)", MsgID: 5, Code: 0x8001, Body: []byte{0x90}})
	log.With("partition", 3).WithGroup("g").Info("two", "k", "a b", slog.Group("h", "x", 1))
	eventually(t, func() bool { return len(texts(t, l.cfg.Path)) == 2 })
	if got := texts(t, l.cfg.Path); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "0x8001") }) {
		t.Errorf("written early: %q", got)
	}
	log.Warn("three\nfour")
	eventually(t, func() bool { return len(texts(t, l.cfg.Path)) == 4 })
	want := []string{"one", "true 0x8001 M1 (127.0.0.1:10000)", `two partition=3 g.k="a b" g.h.x=1`, "three\nfour"}
	var got []string
	var entries []*Entry
	for e, err := range Read(t.Context(), l.cfg.Path, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	got = texts(t, l.cfg.Path)
	slices.Sort(got) // records carry the time of slog, the packet that of our clock
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, e := range entries {
		wantCluster, wantName := "test", "S1"
		if e.Msg == "one" {
			wantCluster, wantName = "", ""
		}
		if e.Cluster != wantCluster || e.Name != wantName {
			t.Errorf("%q is of node %q of cluster %q", e.Msg, e.Name, e.Cluster)
		}
		if e.Packet == nil && (e.Path != "cluster/nodelog/nodelog_test.go" || e.Line == 0) {
			t.Errorf("%q comes from %s:%d", e.Msg, e.Path, e.Line)
		}
	}
}

func TestEqualDatesKeepTheirOrder(t *testing.T) {
	l := open(t, Config{Now: stopped})
	n := l.Node("a")
	var want []string
	for i := range 100 {
		p := Packet{Peer: "S1", Code: uint16(i)}
		n.Packet(p)
		want = append(want, fmt.Sprintf("false 0x%04x S1", i))
		if i%10 == 0 { // also across flushes
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, texts(t, l.cfg.Path)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The backlog drops its oldest entries, and counts all that an entry costs.
func TestBacklogIsBounded(t *testing.T) {
	const size = entryOverhead + 1000
	l := open(t, Config{Backlog: 10 * size})
	n := l.Node("")
	for i := range 5000 {
		n.Packet(Packet{Peer: "S1", Code: uint16(i), Body: make([]byte, 1000)})
		if l.backlog.packets.size > 10*size {
			t.Fatalf("%d bytes after %d packets", l.backlog.packets.size, i)
		}
		if len(l.backlog.packets.entries) > 3000 {
			t.Fatalf("%d entries are still referenced", len(l.backlog.packets.entries))
		}
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	got := texts(t, l.cfg.Path)
	if len(got) != 10 || got[9] != fmt.Sprintf("false 0x%04x S1", 4999) {
		t.Errorf("kept %q", got)
	}
}

func TestUnbuffered(t *testing.T) {
	l := open(t, Config{Backlog: -1, MaxBody: 3})
	n := l.Node("")
	n.Packet(Packet{Peer: "A1", Body: []byte("long")})
	for e, err := range Read(t.Context(), l.cfg.Path, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Packet == nil || e.Packet.Body != nil {
			t.Errorf("body over the limit was kept: %+v", e)
		}
		return
	}
	t.Error("not written at once")
}

// As logrotate does it: the file is renamed, then the log reopened. A retired
// file without packets needs no protocol.
func TestRotation(t *testing.T) {
	l := open(t, Config{})
	l.due.Store(true) // no write is planned: one after the renaming would put it into the new file
	n := l.Node("")
	log := slog.New(n.Handler())
	log.Info("old")
	old := l.cfg.Path + ".1"
	rename(t, l.cfg.Path, old)
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	n.Identify("c", 2)
	log.Info("new")
	n.Packet(Packet{Peer: "S1"})
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, old); !slices.Equal(got, []string{"old"}) {
		t.Errorf("retired file has %q", got)
	}
	if got := texts(t, l.cfg.Path); !slices.Equal(got, []string{"new", "false 0x0000 S1"}) {
		t.Errorf("new file has %q", got)
	}
	if n := count(t, old, `SELECT count(*) FROM sqlite_master WHERE name = 'protocol'`); n != 0 {
		t.Error("retired file without packets still has its protocol")
	}

	// With packets it is kept, and a reopened file goes on where it was.
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	n.Identify("c", 3)
	log.Error("newer")
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, l.cfg.Path); len(got) != 3 {
		t.Errorf("reopened file has %q", got)
	}
	if n := count(t, l.cfg.Path, `SELECT count(*) FROM protocol`); n != 1 {
		t.Errorf("%d protocols", n)
	}
	if n := count(t, l.cfg.Path, `SELECT count(*) FROM node WHERE id IN (0, 1)`); n != 2 {
		t.Errorf("%d nodes, want 2 with ids from 0", n)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, path, query string) (n int) {
	t.Helper()
	db, err := openSQL(path, "rw")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Tables of the time when records had the name of their node are put aside.
func TestOldTables(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old.log")
	db, err := openSQL(path, "rwc")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		`CREATE TABLE log (date REAL PRIMARY KEY, name TEXT, level INTEGER, pathname TEXT, lineno INTEGER, msg TEXT)`,
		`CREATE TABLE packet (date REAL PRIMARY KEY, name TEXT, msg_id INTEGER, code INTEGER, peer TEXT, body BLOB)`,
		`INSERT INTO log VALUES (1, 'S1', 20, 'x.py', 7, 'ancient')`,
		`INSERT INTO packet VALUES (2, 'S1', 0, 1, '> M1', NULL)`,
	} {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	l := open(t, Config{Path: path})
	slog.New(l.Node("").Handler()).Warn("recent")
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"ancient", "true 0x0001 M1", "recent"}, texts(t, path)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReadCreatesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.log")
	for _, err := range Read(t.Context(), path, time.Time{}) {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("reading a missing log: %v", err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file was created: %v", err)
	}
}

func TestReadRefusesWhatIsNoDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "text.log")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	var got error
	for _, err := range Read(t.Context(), path, time.Time{}) {
		got = err
	}
	if got == nil {
		t.Error("read without error")
	}
}

// A node without log file runs the same code.
func TestNilLog(t *testing.T) {
	var l *Log
	n := l.Node("x")
	n.Identify("c", 1)
	slog.New(n.Handler()).Error("nowhere")
	n.Packet(Packet{})
	l.FlushSoon()
	if err := errors.Join(n.Flush(), l.Flush(), l.Reopen(), l.Close()); err != nil {
		t.Error(err)
	}
}

// What is compressed into each log is the text that is beside it here, and says
// the version of the protocol in the form that readers look for.
func TestProtocolText(t *testing.T) {
	want, err := os.ReadFile("protocol.py")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(bzip2.NewReader(bytes.NewReader(protocolText)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("protocol.py.bz2 is not protocol.py: run bzip2 -k -f protocol.py")
	}
	if !bytes.Contains(want, []byte("\nPROTOCOL_VERSION = 5\n")) {
		t.Error("protocol.py has no line PROTOCOL_VERSION = 5")
	}
}

func TestTextHandler(t *testing.T) {
	var b bytes.Buffer
	h := NewTextHandler(&b, slog.LevelWarn)
	if h.Enabled(context.Background(), slog.LevelInfo) {
		t.Error("INFO goes to stderr")
	}
	r := slog.NewRecord(time.Date(2026, 11, 20, 20, 8, 6, 849600000, time.UTC), slog.LevelError, "a\nb", 0)
	if err := h.Handle(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	start := "2026-11-20 20:08:06.849 ERROR    "
	if want := start + "a\n" + start + "b\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

// BenchmarkPacket watches what recording costs each packet of a busy node.
func BenchmarkPacket(b *testing.B) {
	l, err := Open(Config{Path: filepath.Join(b.TempDir(), "node.log")})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	n := l.Node("")
	body := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		n.Packet(Packet{Peer: "S1 (127.0.0.1:1)", Body: body})
	}
}

// After a rotation the journal at the path of a log is that of the next one. Who still
// reads the first neither takes it for its own, nor undoes what it has.
func TestReadAcrossRotation(t *testing.T) {
	l := open(t, Config{})
	log := slog.New(l.Node("").Handler())
	log.Info("old")
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	path := l.cfg.Path
	r, err := OpenReader(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rename(t, path, path+".1")
	next, err := openSQL(path, "rwc")
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	for _, s := range []string{
		`PRAGMA cache_size = 1`, `CREATE TABLE log (date REAL PRIMARY KEY, msg TEXT)`, `BEGIN`,
		`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 5000) INSERT INTO log SELECT i, hex(zeroblob(50)) FROM n`,
	} {
		if _, err := next.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	committed := make(chan error)
	go func() {
		time.Sleep(50 * time.Millisecond) // its journal is there meanwhile
		_, err := next.Exec(`COMMIT`)
		committed <- err
	}()
	if err := Mark(t.Context(), r); err != nil {
		t.Error(err)
	}
	var got []string
	for e, err := range r.Entries(t.Context()) {
		if err != nil {
			t.Error(err)
			break
		}
		got = append(got, e.Msg)
	}
	if !slices.Equal(got, []string{"old"}) {
		t.Errorf("read %q", got)
	}
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if n := count(t, path, `SELECT count(*) FROM log`); n != 5000 || quickCheck(t, path) != "ok" || quickCheck(t, path+".1") != "ok" {
		t.Errorf("%d rows in the next log", n)
	}
}

// A reader that takes its time holds up no writer.
func TestReaderHoldsNoLock(t *testing.T) {
	l := open(t, Config{})
	n := l.Node("")
	const packets = 3 * batchRows
	for i := range packets {
		n.Packet(Packet{Peer: "S1", MsgID: uint32(i)})
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(t.Context(), l.cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Mark(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, err := range r.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if read++; read%500 == 1 {
			db, err := openSQL(l.cfg.Path, "rw")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(`INSERT INTO packet VALUES (?, NULL, 0, 0, '', NULL)`, 1e12+float64(read)); err != nil {
				t.Errorf("after %d: %v", read, err)
			}
			db.Close()
		}
	}
	if read != packets {
		t.Errorf("read %d packets, %d at the mark", read, packets)
	}
	for _, err := range r.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		read++
	}
	if read != packets {
		t.Errorf("read %d packets without a new mark", read)
	}
	if err := Mark(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for range r.Entries(t.Context()) {
		read++
	}
	if read != packets+packets/500 {
		t.Errorf("read %d packets in the end", read)
	}
}
