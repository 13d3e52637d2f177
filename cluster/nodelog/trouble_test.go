package nodelog

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/testlog"
)

// written makes a log file with many records.
func written(t *testing.T, path string) {
	t.Helper()
	l, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	n := l.Node("")
	n.Identify("c", 1)
	for i := range 1000 {
		slog.New(n.Handler()).Info(fmt.Sprintf("record %d", i))
		n.Packet(Packet{Peer: "S1", Body: make([]byte, 50)})
	}
	l.FlushSoon()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// asides returns the files that were put aside.
func asides(t *testing.T, path string) []string {
	t.Helper()
	list, err := filepath.Glob(path + ".damaged-*")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

var damages = []struct {
	name   string
	damage func(b []byte) []byte
}{
	{"header", func(b []byte) []byte { copy(b, "no database at all"); return b }},
	{"zeros", func(b []byte) []byte { clear(b[:4096]); return b }},
	{"text", func([]byte) []byte { return []byte(strings.Repeat("no database\n", 1000)) }},
	{"short", func(b []byte) []byte { return b[:50] }},
	{"pages", func(b []byte) []byte {
		for i := 4096; i < len(b); i++ {
			b[i] = byte(i * 7)
		}
		return b
	}},
}

// A damaged log keeps no node from starting, and is not lost.
func TestDamagedLogIsPutAside(t *testing.T) {
	for _, x := range damages {
		t.Run(x.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "node.log")
			written(t, path)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b = x.damage(b)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			var out testlog.Buffer
			l := open(t, Config{Path: path, Trouble: out.Logger()})
			slog.New(l.Node("").Handler()).Info("the node runs")
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
			if got := texts(t, path); !slices.Equal(got, []string{"the node runs"}) {
				t.Errorf("the new log has %q", got)
			}
			list := asides(t, path)
			if len(list) != 1 {
				t.Fatalf("put aside: %q", list)
			}
			if aside, err := os.ReadFile(list[0]); err != nil || !bytes.Equal(aside, b) {
				t.Errorf("what was put aside has changed, %v", err)
			}
			if !strings.Contains(out.String(), list[0]) || strings.Count(out.String(), "level=WARN") != 1 {
				t.Errorf("told %q", out.String())
			}
		})
	}
}

// Only a file is ever put aside.
func TestLogIsAFile(t *testing.T) {
	for _, path := range []string{os.DevNull, t.TempDir()} {
		var out testlog.Buffer
		l, err := Open(Config{Path: path, Trouble: out.Logger()})
		if err != nil {
			t.Fatal(err)
		}
		slog.New(l.Node("").Handler()).Error("nowhere")
		if err := l.Close(); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
		if !strings.Contains(out.String(), "not a regular file") || len(asides(t, path)) != 0 {
			t.Errorf("%s: told %q, put aside %q", path, out.String(), asides(t, path))
		}
	}
}

// What is the database of something else is left as it is.
func TestLogIsNoOtherDatabase(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "storage.sqlite")
	db, err := openSQL(other, "rwc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE trans (tid INTEGER)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	fs := filepath.Join(dir, "Data.fs")
	if err := os.WriteFile(fs, []byte("FS21 and so on"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{other, fs} {
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := Open(Config{Path: path}); err == nil {
			t.Errorf("%s was opened as a log", path)
			l.Close()
		} else if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "choose another file") {
			t.Errorf("%v", err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s has changed, %v", path, err)
		}
	}
}

// A log that fails while the node runs is told at once, and another one begun.
func TestLogFailsLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.log")
	var out testlog.Buffer
	l := open(t, Config{Path: path, Trouble: out.Logger()})
	log := slog.New(l.Node("").Handler())
	log.Info("before")
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("garbage"), 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	log.Info("after")
	eventually(t, func() bool { return out.String() != "" })
	if err := l.Flush(); err != nil { // waits for the new file
		t.Fatal(err)
	}
	if got := texts(t, path); !slices.Equal(got, []string{"after"}) {
		t.Errorf("the new file has %q", got)
	}
	if len(asides(t, path)) != 1 || !strings.Contains(out.String(), "put aside") {
		t.Errorf("put aside %q, told %q", asides(t, path), out.String())
	}

	// A file that goes away is no trouble.
	for _, away := range []func(){
		func() { rename(t, path, path+".1") },
		func() {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		out.Reset()
		away()
		log.Info("in the next file")
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := texts(t, path); !slices.Equal(got, []string{"in the next file"}) || out.String() != "" {
			t.Errorf("the next file has %q, told %q", got, out.String())
		}
	}
	if got := texts(t, path+".1"); !slices.Equal(got, []string{"after"}) {
		t.Errorf("the renamed file has %q", got)
	}
}

// Without room, or without a place, the node goes on: it is told once, and what is
// kept is written when it can be.
func TestLogWithoutRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "node.log")
	var out testlog.Buffer
	l := open(t, Config{Path: path, Trouble: out.Logger()})
	log := slog.New(l.Node("").Handler())
	if !strings.Contains(out.String(), "cannot be written") || !strings.Contains(out.String(), path) {
		t.Errorf("told %q", out.String())
	}
	log.Error("without a place")
	if err := l.Flush(); err == nil {
		t.Error("written nowhere")
	}
	if n := strings.Count(out.String(), "level=ERROR"); n != 1 {
		t.Errorf("told %d times: %s", n, out.String())
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, path); !slices.Equal(got, []string{"without a place"}) {
		t.Errorf("file has %q", got)
	}
	if !strings.Contains(out.String(), "written again") {
		t.Errorf("told %q", out.String())
	}

	l.mu.Lock()
	_, err := l.db.db.Exec(`PRAGMA max_page_count = 10`)
	var want []string
	for i := range 300 {
		text := fmt.Sprintf("%d %s", i, strings.Repeat("x", 300))
		log.Info(text)
		want = append(want, text)
	}
	full := l.writeLocked(true)
	l.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := full; err == nil || !strings.Contains(out.String(), "full") {
		t.Errorf("flush: %v, told %q", err, out.String())
	}
	if err := l.Flush(); err != nil { // opened anew: there is room
		t.Fatal(err)
	}
	if got := texts(t, path); !slices.Equal(got[1:], want) {
		t.Errorf("file has %d records, want %d", len(got)-1, len(want))
	}
}

// The space that a log takes is bounded.
func TestLogIsBoundedOnDisk(t *testing.T) {
	const limit = 200 << 10
	path := filepath.Join(t.TempDir(), "node.log")
	l := open(t, Config{Path: path, MaxSize: limit})
	log := slog.New(l.Node("").Handler())
	last := ""
	for i := range 100 {
		for j := range 100 {
			last = fmt.Sprintf("%d %d %s", i, j, strings.Repeat("x", 100))
			log.Info(last)
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{path, path + ".old"} {
			if file, err := os.Stat(p); err == nil && file.Size() > 2*limit {
				t.Fatalf("%s has %d bytes", p, file.Size())
			}
		}
	}
	all := append(texts(t, path+".old"), texts(t, path)...)
	if all[len(all)-1] != last {
		t.Errorf("the last record is %q", all[len(all)-1])
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 2 {
		t.Errorf("%d files, %v", len(files), err)
	}
}

// A log is for the one who runs the node.
func TestLogIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.log")
	written(t, path)
	file, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if file.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", file.Mode())
	}
}

// killedEnv names the log of a process that is to be killed.
const killedEnv = "NODELOG_TEST_KILLED"

func TestMain(m *testing.M) {
	if path := os.Getenv(killedEnv); path != "" {
		logUntilKilled(path)
	}
	os.Exit(m.Run())
}

func logUntilKilled(path string) {
	l, err := Open(Config{Path: path, MaxSize: -1, Trouble: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		panic(err)
	}
	n := l.Node("")
	n.Identify("c", 1)
	log := slog.New(n.Handler())
	for i := 0; ; i++ {
		for range 50 {
			n.Packet(Packet{Peer: "S1", Body: make([]byte, 500)})
		}
		log.Info(fmt.Sprintf("record %d", i))
		if i%10 == 0 {
			log.Warn("incident")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A process that is killed leaves a whole log, with what it had logged.
func TestKilledProcessLeavesItsLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.log")
	before := 0
	for range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killedEnv+"="+path)
		var stderr testlog.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() }) // if the test fails before
		eventually(t, func() bool {
			if _, err := os.Stat(path); err != nil {
				return false
			}
			return len(texts(t, path)) > before
		})
		time.Sleep(rand.N(200 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		after := len(texts(t, path))
		if after <= before {
			t.Errorf("%d entries, there were %d", after, before)
		}
		before = after
		if stderr.String() != "" {
			t.Errorf("told %q", stderr.String())
		}
		check := quickCheck(t, path)
		if check != "ok" {
			t.Fatalf("the log is malformed: %s", check)
		}
	}
}

func quickCheck(t *testing.T, path string) (result string) {
	t.Helper()
	db, err := openSQL(path, "rw")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(`PRAGMA quick_check`).Scan(&result); err != nil {
		t.Fatal(err)
	}
	return result
}
