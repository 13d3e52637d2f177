package zeotest

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/zeo"
)

// Python returns an interpreter that has ZODB and ZEO: that of the environment
// variable NEO_TEST_PYTHON, or else the one in .peers at the root of the project.
func Python(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("NEO_TEST_PYTHON"); p != "" {
		return p
	}
	out, err := exec.Command("go", "env", "GOMOD").Output()
	p := filepath.Join(filepath.Dir(strings.TrimSpace(string(out))), ".peers", "bin", "python")
	if err == nil {
		_, err = os.Stat(p)
	}
	if err != nil {
		Missing(t, "no Python with ZODB and ZEO (make install-test-deps, or set NEO_TEST_PYTHON): %v", err)
	}
	return p
}

// Missing ends a test for which the machine lacks something. Where all tests must
// run, with CI or NEO_TEST_PEERS=required in the environment, the test has failed;
// elsewhere it is left out, and `go test -v` says why.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" || os.Getenv("NEO_TEST_PEERS") == "required" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Python5 returns an interpreter that has ZEO 5: zeo5/bin/python in the environment
// of [Python].
func Python5(t testing.TB) string {
	t.Helper()
	p := filepath.Join(filepath.Dir(filepath.Dir(Python(t))), "zeo5", "bin", "python")
	if _, err := os.Stat(p); err != nil {
		Missing(t, "no Python with ZEO 5 (make install-test-deps): %v", err)
	}
	return p
}

// Program runs a Python program until the test ends. It must end when its input does.
func Program(t testing.TB, text string) (in io.Writer, out *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(Python(t), "-c", text)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("python: %v", err)
		}
	})
	return stdin, bufio.NewScanner(stdout)
}

//go:embed testdata/suite.py
var suite []byte

// Order is what the Python program asks for: to start or to stop a server.
type Order struct {
	Op   string `json:"op"`
	ID   int    `json:"id"`
	Keep bool   `json:"keep"`

	Address         string  `json:"address"`
	Path            string  `json:"path"`
	Create          bool    `json:"create"`
	Mapping         bool    `json:"mapping"`
	StorageReadOnly bool    `json:"storage_read_only"`
	ReadOnly        bool    `json:"read_only"`
	QueueSize       int     `json:"invalidation_queue_size"`
	Age             float64 `json:"invalidation_age"`
	Timeout         float64 `json:"transaction_timeout"`
	Msgpack         bool    `json:"msgpack"`
	Certificate     string  `json:"certificate"`
	Key             string  `json:"key"`
	Authenticate    string  `json:"authenticate"`
	Log             string  `json:"log"`
}

// Database is where a server that was asked for keeps its data.
type Database interface {
	// Open returns a storage and what to call at its end.
	Open(ctx context.Context, o *Order) (zeo.Storage, func(), error)
	Remove()
}

// forker starts servers on behalf of a Python program.
type forker struct {
	t      testing.TB
	create func(o *Order) (Database, error)

	databases map[string]Database
	servers   map[int]*forked
	nextID    int
}

type forked struct {
	path   string
	server *zeo.Server
	stop   func()
}

func newForker(t testing.TB, create func(o *Order) (Database, error)) *forker {
	return &forker{t: t, create: create, databases: map[string]Database{}, servers: map[int]*forked{}}
}

// serve answers one program until it ends.
func (f *forker) serve(nc net.Conn) {
	defer nc.Close()
	in := bufio.NewScanner(nc)
	in.Buffer(nil, 1<<20)
	out := json.NewEncoder(nc)
	for in.Scan() {
		var o Order
		answer := map[string]any{}
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			switch o.Op {
			case "start":
				err = f.start(&o, answer)
			case "stop":
				f.stop(o.ID, o.Keep)
			default:
				err = fmt.Errorf("unknown order %q", o.Op)
			}
		}
		if err != nil {
			answer["error"] = err.Error()
		}
		if out.Encode(answer) != nil {
			break
		}
	}
	for id := range f.servers {
		f.stop(id, false)
	}
	for _, db := range f.databases {
		db.Remove()
	}
}

func (f *forker) start(o *Order, answer map[string]any) error {
	f.nextID++
	if o.Path == "" {
		o.Path = fmt.Sprint("mapping", f.nextID)
	}
	db := f.databases[o.Path]
	if db != nil && o.Create {
		db.Remove()
		db = nil
	}
	if db == nil {
		var err error
		if db, err = f.create(o); err != nil {
			return err
		}
		f.databases[o.Path] = db
	}
	st, closeStorage, err := db.Open(context.Background(), o)
	if err != nil {
		return err
	}
	cfg := zeo.Config{
		Storages:              map[string]zeo.Storage{"1": st},
		ReadOnly:              o.ReadOnly,
		Msgpack:               o.Msgpack,
		InvalidationQueueSize: o.QueueSize,
		InvalidationAge:       time.Duration(o.Age * float64(time.Second)),
		TransactionTimeout:    time.Duration(o.Timeout * float64(time.Second)),
		Log:                   slog.New(slog.NewTextHandler(logWriter{f.t}, nil)),
	}
	if o.Log != "" {
		cfg.Log = slog.New(serverLog{path: o.Log})
	}
	if o.Certificate != "" {
		if cfg.TLS, err = zeo.LoadTLS(o.Authenticate, o.Certificate, o.Key); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return err
	}
	server, err := zeo.New(context.Background(), cfg)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(l); err != nil {
			f.t.Error(err)
		}
	})
	f.servers[f.nextID] = &forked{o.Path, server, func() {
		server.Close()
		wg.Wait()
		closeStorage()
	}}
	answer["id"], answer["address"] = f.nextID, l.Addr().String()
	return nil
}

func (f *forker) stop(id int, keep bool) {
	s := f.servers[id]
	if s == nil {
		return
	}
	delete(f.servers, id)
	s.stop()
	if db := f.databases[s.path]; db != nil && !keep {
		db.Remove()
		delete(f.databases, s.path)
	}
}

// logWriter sends a log to the test.
type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	if testing.Verbose() && os.Getenv("ZEO_TEST_LOG") != "" {
		w.t.Log(strings.TrimSuffix(string(p), "\n"))
	}
	return len(p), nil
}

// serverLog writes what the Python tests look for, as the Python server words it.
type serverLog struct{ path string }

func (l serverLog) Enabled(context.Context, slog.Level) bool { return true }
func (l serverLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l serverLog) WithGroup(string) slog.Handler            { return l }

func (l serverLog) Handle(_ context.Context, r slog.Record) error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	defer f.Close()
	name, text := "INFO", r.Message
	if r.Level >= slog.LevelError && strings.HasPrefix(text, "transaction timeout") {
		name, text = "CRITICAL", "Transaction timeout after 1 seconds"
	}
	_, err = fmt.Fprintf(f, "%s %s ZEO.StorageServer %s\n", r.Time.Format(time.DateTime), name, text)
	return err
}

// Command is a run of Python in a directory of its own. When ctx ends before it does,
// it is made to print what its threads wait for.
func Command(ctx context.Context, t testing.TB, interpreter string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, interpreter, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONFAULTHANDLER=1")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGABRT) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// ProcessorTime returns what processes have used, exact to 10 ms each.
func ProcessorTime(t testing.TB, pids ...int) time.Duration {
	t.Helper()
	ticks := 0
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')'):]))
		for _, f := range fields[12:14] { // user, system
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// suiteLimit is how long a run of test classes may take before it counts as stuck.
const suiteLimit = 15 * time.Minute

// RunPython runs test classes of ZEO and ZODB against servers over what create
// makes, one for each test; args are those of testdata/suite.py after the first.
func RunPython(t *testing.T, interpreter string, create func(o *Order) (Database, error), args ...string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		newForker(t, create).serve(nc)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), suiteLimit)
	defer cancel()
	cmd := Command(ctx, t, interpreter)
	script := filepath.Join(cmd.Dir, "suite.py")
	if err := os.WriteFile(script, suite, 0o666); err != nil {
		t.Fatal(err)
	}
	cmd.Args = append(cmd.Args, append([]string{script, l.Addr().String()}, args...)...)
	cmd.Env = append(cmd.Env, "TMPDIR="+cmd.Dir)
	out, err := cmd.CombinedOutput()
	l.Close()
	<-served
	text := strings.TrimSpace(string(out))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	t.Log(text)
}

type memoryDatabase struct{ m *Memory }

// CreateMemory makes a [Memory] for [RunPython].
func CreateMemory(*Order) (Database, error) { return memoryDatabase{NewMemory()}, nil }

func (m memoryDatabase) Open(_ context.Context, o *Order) (zeo.Storage, func(), error) {
	d := m.m.Door()
	d.F.ReadOnly = o.StorageReadOnly
	d.F.Name = o.Path
	if o.Mapping {
		d.F.Undo, d.F.Restore, d.F.Objects, d.F.GC = false, false, false, false
	}
	return d, d.Forget, nil
}

func (m memoryDatabase) Remove() {}

// UndoMerges are the arguments of [RunPython] that name the tests which no server
// without the classes of the application can pass: merging what was undone.
var UndoMerges = expectFailures("testUndoConflictResolution",
	"testUndoMultipleConflictResolution", "testUndoMultipleConflictResolutionReversed")

// UndoMerges5 is UndoMerges for ZEO 5.
var UndoMerges5 = expectFailures("checkUndoConflictResolution",
	"checkUndoMultipleConflictResolution", "checkUndoMultipleConflictResolutionReversed")

func expectFailures(names ...string) (args []string) {
	for _, n := range names {
		args = append(args, "--expect-failure", n)
	}
	return args
}
