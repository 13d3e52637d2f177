package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"encoding/json"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	_ "modernc.org/sqlite"

	"github.com/neozodb/neo/cluster/msgpack"
	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

func neolog(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Run(t.Context(), &cli.Env{Args: args, Stdout: &out, Stderr: &errs, Getenv: os.Getenv}, newCommand)
	return out.String(), errs.String(), code
}

const (
	python = "testdata/python.sqlite"
	master = "testdata/python-master.sqlite"
)

// What the Python implementation's neolog prints of its own logs, we print.
func TestSameAsPython(t *testing.T) {
	for _, tt := range []struct {
		golden string
		args   []string
	}{
		{"default", []string{python, master}},
		{"cluster", []string{"-C", "-d", "%H:%M", python}},
		{"color", []string{"-Nc", python}},
		{"node", []string{"-n", "-", "-n", "S1", "--from", "1795977431", python, master}},
	} {
		want, err := os.ReadFile(filepath.Join("testdata", tt.golden+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		got, stderr, code := neolog(t, tt.args...)
		if diff := cmp.Diff(string(want), got); diff != "" || code != 0 || stderr != "" {
			t.Errorf("neolog %q: exit status %d, %s(-want +got):\n%s", tt.args, code, stderr, diff)
		}
	}
}

func TestFilters(t *testing.T) {
	const ttid, final, oid = "040d589d876627ee", "040d589d8769d8ce", "0"
	for _, tt := range []struct {
		name string
		args []string
		want int // lines
		has  []string
	}{
		{"packets alone", []string{"--packet", "asklock*"}, 4, []string{"AskLockInformation", "AskLockedTransactions"}},
		{"records alone", []string{"--level", "warning"}, 1, []string{"a cell became non-readable"}},
		{"both", []string{"--level", "WARNING", "--packet", "FlushLog"}, 2, []string{"a cell became", "FlushLog"}},
		{"by temporary id", []string{"--tid", ttid}, 10, []string{"Register TXN", "AskStoreObject", "AskStoreTransaction", "AskLockInformation", "Unlock TXN"}},
		{"by final id", []string{"--tid", "0x40d589d8769d8ce"}, 5, []string{"Lock TXN " + final, "AskLockInformation", "AnswerObjectHistory"}},
		{"by both kinds", []string{"--oid", oid, "--tid", final}, 2, []string{"AnswerObjectHistory"}},
		{"an object that is not there", []string{"--oid", "77"}, 0, nil},
		{"until", []string{"--until", "2026-11-29T18:37:03.2655Z"}, 2, []string{"IP address"}},
		{"from and until", []string{"--from", "2026-11-29 18:37:32", "--until", "2026-11-29 18:37:33", "--packet", "*"}, 3, []string{"NotifyPartitionChanges"}},
		{"from a TID", []string{"--from", final, "--tid", final, "--packet", "AskLockInformation"}, 1, []string{"AskLockInformation"}},
		{"no node of that name", []string{"-n", "S9"}, 0, nil},
	} {
		out, stderr, code := neolog(t, append(tt.args, python)...)
		if code != 0 || stderr != "" || strings.Count(out, "\n") != tt.want {
			t.Errorf("%s: exit status %d, %s%d lines, want %d:\n%s", tt.name, code, stderr, strings.Count(out, "\n"), tt.want, out)
		}
		for _, s := range tt.has {
			if !strings.Contains(out, s) {
				t.Errorf("%s: no %q in:\n%s", tt.name, s, out)
			}
		}
	}
}

func TestArguments(t *testing.T) {
	out, _, _ := neolog(t, "-a", "--packet", "AskLockInformation", "--tid", "040d589d8769d8ce", python)
	if want := "#0x000e AskLockInformation             < M1 (127.0.0.1:46100) \t| TTID=040d589d876627ee TID=040d589d8769d8ce PackApproved=false\n"; !strings.HasSuffix(out, want) {
		t.Errorf("-a: %q, want …%q", out, want)
	}
	out, _, _ = neolog(t, "-A", "--packet", "AskStoreObject", python)
	if want := `\t| OID=0000000000000000 Serial=0000000000000000 Data=(64, "\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\x80\x03}q\x01X\x04\x00\x00\x00dataq\x02}q\x03s.") DataSerial=None TTID=040d589d875aa444`; !strings.Contains(strings.ReplaceAll(out, "\t", `\t`), want) {
		t.Errorf("-A: %s, want …%s…", out, want)
	}
}

func TestJSON(t *testing.T) {
	out, _, code := neolog(t, "--json", "-a", python)
	n := 0
	for line := range strings.Lines(out) {
		var e jsonEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if _, err := time.Parse(time.RFC3339Nano, e.Date); err != nil || (e.Msg == "") == (e.Packet == "") {
			t.Errorf("%s", line)
		}
		n++
	}
	if n != 131 || code != 0 {
		t.Errorf("%d entries, exit status %d", n, code)
	}
	out, _, _ = neolog(t, "--json", "-A", "--packet", "AskStoreObject", "--until", "2026-11-29T18:37:31.73Z", python)
	want := `{"date":"2026-11-29T18:37:31.725747Z","node":"S1","cluster":"bench","packet":"AskStoreObject","code":28,"msg_id":1,"sent":false,"peer":"C1 (127.0.0.1:57352)","args":{"data":"gANjcGVyc2lzdGVudC5tYXBwaW5nClBlcnNpc3RlbnRNYXBwaW5nCnEALoADfXEBWAQAAABkYXRhcQJ9cQNzLg==","data_serial":null,"oid":"0000000000000000","serial":"0000000000000000","ttid":"040d589d875aa444"}}` + "\n"
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "requires at least 1 arg"},
		{[]string{"-s", "0", python}, "--sleep-interval must be more than 0"},
		{[]string{"-F", "1", python}, "--flush is of no use without --follow"},
		{[]string{"-C", "-N", python}, "[cluster no-nid]"},
		{[]string{"--packet", "AskObjekt", python}, `no packet is called "AskObjekt"; did you mean "AskObject"?`},
		{[]string{"--level", "LOUD", python}, `"LOUD" is none of DEBUG`},
		{[]string{"--from", "sometime", python}, `"sometime": want a time such as`},
		{[]string{"--until", "yesterday noon", python}, `"yesterday noon": "noon" is not a time of the day, such as 18:00`},
		{[]string{"--oid", "xyz", python}, `"xyz" is not an id`},
	} {
		_, stderr, code := neolog(t, tt.args...)
		if code != 2 || !strings.Contains(stderr, tt.want) {
			t.Errorf("neolog %q: exit status %d, %s", tt.args, code, stderr)
		}
	}
}

func TestTimes(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct{ in, want string }{
		{"2026-02-27", "2026-02-27T00:00:00Z"},
		{"2026-02-27 18:00", "2026-02-27T18:00:00Z"},
		{"2026-02-27T18:00:00+01:00", "2026-02-27T17:00:00Z"},
		{"yesterday", "2026-02-28T00:00:00Z"},
		{"yesterday 18:00", "2026-02-28T18:00:00Z"},
		{"today 18:00:30", "2026-03-01T18:00:30Z"},
		{"-90", "2026-03-01T11:58:30Z"},
		{"1795977423.5", "2026-11-29T18:37:03.5Z"},
		{"0", "1970-01-01T00:00:00Z"},
		{"0406d7ec80000000", "2026-02-12T19:56:30Z"},
		{"0x406d7ec80000000", "2026-02-12T19:56:30Z"},
	} {
		got, err := parseTime(tt.in, now)
		if err != nil || got.UTC().Format(time.RFC3339Nano) != tt.want {
			t.Errorf("parseTime(%q) = %v, %v, want %s", tt.in, got.UTC(), err, tt.want)
		}
	}
}

// edit runs statements on a copy of a log.
func edit(t *testing.T, from, name string, statements ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if from != "" {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// Logs of the time when each row had the name of its node.
func TestOldTables(t *testing.T) {
	path := edit(t, "", "old.log",
		`CREATE TABLE log1 (date REAL PRIMARY KEY, name TEXT, level INTEGER, pathname TEXT, lineno INTEGER, msg TEXT)`,
		`CREATE TABLE packet1 (date REAL PRIMARY KEY, name TEXT, msg_id INTEGER, code INTEGER, peer TEXT, body BLOB)`,
		`INSERT INTO log1 VALUES (1.5, 'S1', 20, 'x.py', 7, 'ancient'), (3, NULL, 25, 'x.py', 7, 'a
b')`,
		`INSERT INTO packet1 VALUES (2, 'S1', 5, 32, '> M1', NULL)`)
	out, stderr, code := neolog(t, path)
	want := `1970-01-01 00:00:01.5000 INFO      S1         ancient
1970-01-01 00:00:02.0000 PACKET    S1         #0x0005 AskObject                      > M1
1970-01-01 00:00:03.0000 Level 25  old        a
1970-01-01 00:00:03.0000 Level 25  old        b
`
	if diff := cmp.Diff(want, out); diff != "" || code != 0 || stderr != "" {
		t.Errorf("exit status %d, %s(-want +got):\n%s", code, stderr, diff)
	}
}

// Whatever a file has, it is shown, and nothing that a terminal obeys.
func TestStrangeRows(t *testing.T) {
	path := edit(t, "", "odd.log",
		`CREATE TABLE log (date REAL PRIMARY KEY, node INTEGER, level INTEGER NOT NULL, pathname TEXT, lineno INTEGER, msg TEXT) WITHOUT ROWID`,
		`CREATE TABLE packet (date REAL PRIMARY KEY, node INTEGER, msg_id INTEGER NOT NULL, code INTEGER NOT NULL, peer TEXT NOT NULL, body BLOB) WITHOUT ROWID`,
		`INSERT INTO log VALUES (1, 7, 40, NULL, NULL, 'red' || char(27) || '[31m'), (2, NULL, 20, NULL, NULL, ''), (3, NULL, 20, NULL, NULL, x'c328ff')`,
		`INSERT INTO packet VALUES (4, 9, 1, 12345, '> M1', NULL), (5, NULL, 1, 1, '< ' || char(10) || 'x', x'c1'), (6, NULL, 1, 0x8000, '<', x'9201c403626164')`)
	out, stderr, code := neolog(t, path)
	want := `1970-01-01 00:00:01.0000 ERROR     odd        red\x1b[31m
1970-01-01 00:00:03.0000 INFO      odd        ` + "\ufffd(\ufffd" + `
1970-01-01 00:00:04.0000 PACKET    odd        #0x0001 UnknownPacket[12345]           > M1
1970-01-01 00:00:05.0000 PACKET    odd        #0x0001 RequestIdentification          < \x0ax
1970-01-01 00:00:06.0000 PACKET    odd        #0x0001 Error                          < ` + `<
1970-01-01 00:00:06.0000 PACKET    odd        DENIED (bad)
`
	// A node that table "node" should name is told.
	if diff := cmp.Diff(want, out); diff != "" || code != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, `table "node"`) {
		t.Errorf("exit status %d, %q(-want +got):\n%s", code, stderr, diff)
	}
	out, _, _ = neolog(t, "-a", path)
	if !strings.Contains(out, "Can't decode packet RequestIdentification: ") {
		t.Errorf("-a: %s", out)
	}
	if out, _, _ := neolog(t, "--json", "-a", path); !strings.Contains(out, `"err":"RequestIdentification: `) {
		t.Errorf("--json: %s", out)
	}
}

// protocol4 is the bzip2 of "import os\nPROTOCOL_VERSION = 4\n".
const protocol4 = "425a6839314159265359c6101d8300000bdf800010400004020a25dd008022dc00200022200068f48682800c469a68d15f0afa4571a710b9831a7cd125b5cf54bdf177245385090c6101d830"

// A log whose protocol is another one names no packets, rather than wrong ones.
func TestOtherProtocol(t *testing.T) {
	path := edit(t, python, "four.log", `UPDATE protocol SET text = x'`+protocol4+`'`)
	out, stderr, code := neolog(t, "-a", path)
	if strings.Contains(out, "AskObject") || !strings.Contains(out, "UnknownPacket[28]") || code != 0 {
		t.Errorf("exit status %d:\n%s", code, out)
	}
	if want := "four: packets of version 4 of the protocol are shown without names and arguments: this neolog knows version 5\n"; stderr != want {
		t.Errorf("told %q, want %q", stderr, want)
	}
}

// What is damaged or not there is told in a line; the rest is shown, and nothing created.
func TestDamage(t *testing.T) {
	page := edit(t, python, "page.log")
	root, size := 0, 0
	db, err := sql.Open("sqlite", page)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(`SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE name = 'packet'`).Scan(&root, &size); err != nil {
		t.Fatal(err)
	}
	db.Close()
	f, err := os.OpenFile(page, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, size), int64(root-1)*int64(size)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	text := filepath.Join(t.TempDir(), "text.log")
	if err := os.WriteFile(text, []byte(strings.Repeat("no database\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "missing.log")
	whole, _, _ := neolog(t, master)
	for _, tt := range []struct {
		file, told string
		lines      int
	}{
		{page, `table "packet" cannot be read any further: `, 94},
		{text, "file is not a database", 0},
		{missing, missing + ": no such file or directory", 0},
		{missing + ".gz", missing + ".gz: no such file or directory", 0},
		{t.TempDir(), "not a regular file", 0},
	} {
		out, stderr, code := neolog(t, tt.file, master)
		if lines := strings.Count(out, "\n") - strings.Count(whole, "\n"); code != 1 || lines != tt.lines {
			t.Errorf("%s: exit status %d, %d lines, want %d", tt.file, code, lines, tt.lines)
		}
		if strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.told) {
			t.Errorf("%s: told %q, want %q", tt.file, stderr, tt.told)
		}
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("a missing log was created")
	}
}

func TestCompressed(t *testing.T) {
	want, _, _ := neolog(t, "-n", "python", "-n", "S1", python)
	b, err := os.ReadFile(python)
	if err != nil {
		t.Fatal(err)
	}
	for ext, open := range map[string]func(io.Writer) (io.WriteCloser, error){
		".gz":  func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		".xz":  func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
		".zst": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	} {
		t.Setenv("TMPDIR", t.TempDir())
		file := filepath.Join(t.TempDir(), "python.sqlite"+ext)
		var buf bytes.Buffer
		w, err := open(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, buf.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, stderr, code := neolog(t, "-n", "python", "-n", "S1", file); got != want || code != 0 {
			t.Errorf("%s: exit status %d, %s: %d bytes, want %d", ext, code, stderr, len(got), len(want))
		}
		if err := os.WriteFile(file, buf.Bytes()[:buf.Len()/2], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, stderr, code := neolog(t, file); got != "" || code != 1 || !strings.Contains(stderr, file+": decompress") {
			t.Errorf("half of %s: exit status %d, %q", ext, code, stderr)
		}
		if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", ext, left, err)
		}
	}
	if got, stderr, code := neolog(t, "-n", "python", "-n", "S1", "testdata/python.sqlite.bz2"); got != want || code != 0 {
		t.Errorf("bz2: exit status %d, %s: %d bytes, want %d", code, stderr, len(got), len(want))
	}
}

// brokenPipe fails after some bytes, as a pipe to head does.
type brokenPipe struct{ left int }

func (p *brokenPipe) Write(b []byte) (int, error) {
	if p.left -= len(b); p.left < 0 {
		return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
	}
	return len(b), nil
}

func TestBrokenPipe(t *testing.T) {
	dir := t.TempDir()
	log := ours(t, dir)
	for i := range 5000 {
		log.Node("").Packet(nodelog.Packet{Peer: "S1", MsgID: uint32(i), Code: 2})
	}
	if err := log.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, left := range []int{0, 100_000} {
		var stderr bytes.Buffer
		pipe := &brokenPipe{left}
		code := cli.Run(t.Context(), &cli.Env{Args: []string{filepath.Join(dir, "node.log")}, Stdout: pipe, Stderr: &stderr, Getenv: os.Getenv}, newCommand)
		if code != 1 || stderr.String() != "" || pipe.left < -200_000 {
			t.Errorf("exit status %d, %q, wrote %d more", code, &stderr, -pipe.left)
		}
	}
}

func ours(t *testing.T, dir string) *nodelog.Log {
	t.Helper()
	log, err := nodelog.Open(nodelog.Config{Path: filepath.Join(dir, "node.log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

// output collects what is printed, for a test that waits for it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) waitFor(t *testing.T, texts ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		got := o.String()
		if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(got, s) }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not all of %q in:\n%s", texts, got)
		}
	}
}

// Our logs are followed, with the packets that come after records that are newer, and
// across a rotation.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	log := ours(t, dir)
	node := log.Node("")
	node.Identify("c", int32(proto.Storage.ID(1)))
	logger := slog.New(node.Handler())
	logger.Info("first", "oid", tid.OID(0x1f))
	if err := log.Flush(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "node.log")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, stderr output
	code := make(chan int, 1)
	go func() {
		defer func() {
			if t.Failed() || ctx.Err() == nil {
				t.Errorf("neolog ended: %s", &stderr)
			}
		}()
		code <- cli.Run(ctx, &cli.Env{Args: []string{"-fa", "-s", "0.01", "-C", path}, Stdout: &out, Stderr: &stderr, Getenv: os.Getenv}, newCommand)
	}()
	out.waitFor(t, "c/S1       first oid=000000000000001f\n")
	body := msgpack.AppendArray(nil, 0)
	node.Packet(nodelog.Packet{Sent: true, Peer: "M1", MsgID: 1, Code: (*proto.Ping)(nil).Code(), Body: body})
	logger.Info("second")
	out.waitFor(t, "second\n") // written without the packet
	logger.Warn("third")
	out.waitFor(t, "third\n", "#0x0001 Ping ")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := log.Reopen(); err != nil {
		t.Fatal(err)
	}
	logger.Error("fourth")
	out.waitFor(t, "fourth\n")
	cancel()
	<-code
	for _, s := range []string{"first", "second", "third", "fourth", "Ping"} {
		if n := strings.Count(out.String(), s); n != 1 {
			t.Errorf("%q is shown %d times:\n%s", s, n, &out)
		}
	}
	if stderr.String() != "" && !strings.Contains(stderr.String(), "cancel") {
		t.Errorf("told %q", &stderr)
	}
	// The text that our logs have for the Python implementation names our version.
	if got, stderr, _ := neolog(t, "--packet", "ping", path+".1"); !strings.Contains(got, "Ping") || stderr != "" {
		t.Errorf("%s%s", got, stderr)
	}
}

// Whatever a packet in a log is, it is shown in a line, in each form.
func FuzzPacket(f *testing.F) {
	for e, err := range nodelog.Read(f.Context(), master, time.Time{}) {
		if err != nil {
			f.Fatal(err)
		}
		if p := e.Packet; p != nil && p.Body != nil {
			f.Add(p.Code, p.Body)
		}
	}
	f.Fuzz(func(t *testing.T, code uint16, body []byte) {
		for _, o := range []options{{}, {all: true}, {decompress: true}, {json: true, all: true}, {json: true, decompress: true}} {
			var b bytes.Buffer
			p := &printer{options: &o, w: bufio.NewWriter(&b), notes: io.Discard, noted: map[int]bool{}}
			all := &filter{until: math.Inf(1)}
			e := &nodelog.Entry{Date: 1, Packet: &nodelog.Packet{Peer: "M1", Code: code, Body: body}}
			if err := p.entry(all, "x", e); err != nil {
				t.Fatal(err)
			}
			if err := p.w.Flush(); err != nil {
				t.Fatal(err)
			}
			if b.Len() == 0 || b.Bytes()[b.Len()-1] != '\n' || o.json && !json.Valid(b.Bytes()) {
				t.Errorf("%+v: %q", o, &b)
			}
			found := &filter{until: math.Inf(1), oids: []id{{value: 1}}, tids: []id{{value: 1}}}
			if err := p.entry(found, "x", e); err != nil {
				t.Fatal(err)
			}
		}
	})
}
