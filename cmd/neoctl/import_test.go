package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/testlog"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// importDB is a database that imports as a test says.
type importDB struct {
	backend.Backend
	mu     sync.Mutex
	report importing.Report
	orders []importing.Order
}

func (b *importDB) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func (b *importDB) Progress() importing.Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.report
}

func (b *importDB) set(change func(*importing.Report)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.report)
}

func (b *importDB) Order(o importing.Order) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.orders = append(b.orders, o)
	switch o.Kind {
	case importing.Pause:
		b.report.State = importing.Paused
	case importing.Resume:
		b.report.State = importing.Copying
	case importing.Limit:
		b.report.Limit = o.Rate
	case importing.Compare:
		return errors.New("the copy is not complete yet: wait for it")
	}
	return nil
}

// startImporting runs a cluster whose storage has this database, and returns the
// address of its admin.
func startImporting(t *testing.T, db backend.Backend) string {
	t.Helper()
	loopback := proto.Address{Host: "127.0.0.1"}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	m, err := master.New(master.Config{Cluster: "test", Bind: loopback, Partitions: 3, Autostart: 1, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s, err := storage.New(storage.Config{Cluster: "test", Bind: loopback, Masters: bootstrap.NewMasters(m.Addr()), Backend: db, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	a, err := admin.New(admin.Config{Cluster: "test", Bind: loopback, Masters: bootstrap.NewMasters(m.Addr()), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{m.Run, s.Run, a.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return a.Addr().String()
}

// until runs neoctl until its output has a text.
func until(t *testing.T, text string, args ...string) (stdout string, code int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		stdout, stderr, code := runCtl(t, args...)
		if strings.Contains(stdout, text) {
			return stdout, code
		}
		if time.Now().After(deadline) {
			t.Fatalf("neoctl %v never said %q, but %q, %q, exit %d", args, text, stdout, stderr, code)
		}
	}
}

// An operator sees the import of a real storage, and orders reach it.
func TestImport(t *testing.T) {
	mem, err := backendtest.NewMemory().Open()
	if err != nil {
		t.Fatal(err)
	}
	db := &importDB{Backend: mem, report: importing.Report{State: importing.Copying, Last: 0x40d265a1099e841, End: 0x40d265b8671e27b,
		Transactions: 12345, Records: 67890, Bytes: 1e9, Position: 1234e6, Size: 2730e6, Rate: 34e6, Left: 41 * time.Second, Slow: "database"}}
	at := startImporting(t, db)
	neoctl := func(stdout, stderr string, code int, args string) {
		t.Helper()
		gotOut, gotErr, gotCode := runCtl(t, append([]string{"-a", at}, strings.Fields(args)...)...)
		if gotOut != stdout || gotErr != stderr || gotCode != code {
			t.Errorf("neoctl %s:\n got %q, %q, exit %d\nwant %q, %q, exit %d", args, gotOut, gotErr, gotCode, stdout, stderr, code)
		}
	}
	until(t, "\nimport: storage S1: copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left\n", "-a", at, "print", "summary")
	neoctl(`# {"S1":{"state":"copying","last_tid":"040d265a1099e841","end_tid":"040d265b8671e27b","transactions":12345,"records":67890,"bytes":1000000000,`+
		`"position":1234000000,"size":2730000000,"rate":34000000,"left":41,"slow":"database","limit":null,"skipped":0,"twice":0,"blobs":0,"compared_tid":null,"compared_at":null,"differences":null,`+
		`"write_back_tid":null,"behind":null,"note":""}}
S1: copying
  copied up to:   040d265a1099e841 (2026-11-20 20:10:03)
  sources end at: 040d265b8671e27b (2026-11-20 20:11:31)
  copied:         45.2 % (1.2 of 2.7 GB)
  transactions:   12,345, with 67,890 records of 1.0 GB
  rate:           34 MB/s
  time left:      41 s
  waits for:      the database it writes to
`, "", 0, "print import")
	neoctl("S1: paused: 45.2 % (1.2 of 2.7 GB)\n", "", 0, "import pause")
	neoctl("S1: copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left\n", "", 0, "import resume")
	neoctl("", "the copy is not complete yet: wait for it\n", 1, "import compare")
	neoctl("S1: copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left\n", "", 0, "import limit 20MB")
	until(t, "\n  limit:          20 MiB/s\n", "-a", at, "print", "import")
	neoctl("S1: copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left\n", "", 0, "import limit none")
	neoctl("S1: copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left\n", "", 0, "import skip 040d265a1099e841")
	neoctl("S1: copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left\n", "", 0, "import skip tid:0x40d265a1099e841:17")
	want := []importing.Order{{Kind: importing.Pause}, {Kind: importing.Resume}, {Kind: importing.Compare}, {Kind: importing.Limit, Rate: 20 << 20}, {Kind: importing.Limit},
		{Kind: importing.Skip, TID: 0x40d265a1099e841}, {Kind: importing.Skip, TID: 0x40d265a1099e841, OID: proto.Some(tid.OID(17))}}
	if diff := cmp.Diff(want, db.orders); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}

	// The end is waited for.
	var out, errOut testlog.Buffer
	followed := make(chan int, 1)
	go func() {
		env := &cli.Env{Args: []string{"-a", at, "print", "import", "--follow"}, Stdout: &out, Stderr: &errOut}
		followed <- cli.Run(t.Context(), env, newCommand)
	}()
	select {
	case code := <-followed:
		t.Fatalf("an import that goes on is not followed: exit %d, %s, %s", code, out.String(), errOut.String())
	case <-time.After(2 * time.Second):
	}
	for deadline := time.Now().Add(time.Minute); !strings.HasPrefix(errOut.String(), "S1: copying: 45.2 %"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("what is followed is not shown: %q, %q", out.String(), errOut.String())
		}
	}
	db.set(func(r *importing.Report) {
		r.State, r.Note = importing.Failed, "root: transaction 040d265a1099e841 is damaged:\nneoctl import skip 040d265a1099e841"
	})
	if code := <-followed; code != exitImportBad || !strings.HasPrefix(errOut.String(), "S1: copying: 45.2 %") || !strings.HasSuffix(out.String(),
		"\n  note:           root: transaction 040d265a1099e841 is damaged:\n                  neoctl import skip 040d265a1099e841\n") {
		t.Errorf("exit %d, %s, %s", code, out.String(), errOut.String())
	}
	stdout, _ := until(t, "FAILED", "-a", at, "print", "summary")
	if !strings.HasPrefix(stdout, "# {\"warning\": [null]}\n") {
		t.Errorf("the summary does not warn: %s", stdout)
	}
	db.set(func(r *importing.Report) { r.State, r.Note = importing.Done, "" })
	if stdout, code := until(t, "S1: done", "-a", at, "print", "import"); code != 0 || !strings.Contains(stdout, "  note:           "+importing.DoneNote) {
		t.Errorf("exit %d, %s", code, stdout)
	}
}

// Without import, and with nodes that cannot pass reports on, operators are told so.
func TestNoImport(t *testing.T) {
	none := capital(ctl.ErrNoImport)
	at := startCluster(t, simple.Config{})
	silent, err := link.Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, link.Config{Deliver: func(ev link.Event) {
		switch ev.Packet.(type) {
		case nil:
		case *proto.AskMonitorInformation:
			ev.Conn.Answer(ev.ID, &proto.AnswerMonitorInformation{Summary: "RUNNING; UP_TO_DATE=12"})
		default:
			t.Errorf("an admin of the Python implementation gets %T", ev.Packet)
		}
	}}, func(*link.Conn) {})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, at := range []string{at, silent.Addr().String()} {
		for _, args := range []string{"print import", "print import --follow"} {
			if stdout, stderr, code := runCtl(t, append([]string{"-a", at}, strings.Fields(args)...)...); stdout != none+".\n" || stderr != "" || code != exitNoImport {
				t.Errorf("neoctl %s: %q, %q, exit %d", args, stdout, stderr, code)
			}
		}
		if stdout, stderr, code := runCtl(t, "-a", at, "import", "pause"); stdout != "" || stderr != none+"\n" || code != 1 {
			t.Errorf("neoctl import pause: %q, %q, exit %d", stdout, stderr, code)
		}
	}
}

func TestImportText(t *testing.T) {
	at := time.Date(2026, 11, 29, 1, 2, 3, 4, time.UTC)
	for _, tt := range []struct {
		report importing.Report
		text   string
		code   int
	}{
		{importing.Report{}, "S1: waiting\n  copied up to:   nothing yet\n  transactions:   0, with 0 records of 0 B\n", 0},
		{importing.Report{State: importing.Different, Last: 0x40d265a1099e841, Compared: 0x40d265a1099e841, ComparedAt: at, Differences: 1234, WriteBack: 0x40d265a1099e841, Behind: 1, Note: "see the log"},
			"S1: DIFFERENT\n  copied up to:   040d265a1099e841 (2026-11-20 20:10:03)\n  transactions:   0, with 0 records of 0 B\n" +
				"  compared:       1,234 DIFFERENT at 2026-11-29 01:02:03, up to 040d265a1099e841 (2026-11-20 20:10:03)\n" +
				"  written back:   up to 040d265a1099e841 (2026-11-20 20:10:03), at least 1 transaction to go\n  note:           see the log\n", 1},
		{importing.Report{State: importing.Comparing, Compared: 0x40d265a1099e841, WriteBack: 0x40d265a1099e841, Slow: "moon"},
			"S1: comparing\n  copied up to:   nothing yet\n  transactions:   0, with 0 records of 0 B\n  waits for:      moon\n" +
				"  compared:       no difference, up to 040d265a1099e841 (2026-11-20 20:10:03)\n" +
				"  written back:   up to 040d265a1099e841 (2026-11-20 20:10:03), nothing is left\n", 0},
	} {
		got, err := importsText([]ctl.Import{{Node: 1, Report: tt.report}}, nil, false)
		_, text, _ := strings.Cut(got, "\n")
		exit, _ := errors.AsType[*cli.Exit](err)
		if code := 0; text != tt.text || exit != nil && exit.Code != tt.code || exit == nil && code != tt.code {
			t.Errorf("got %v (-want +got):\n%s", err, cmp.Diff(tt.text, text))
		}
	}
}

func TestImportUsage(t *testing.T) {
	for _, args := range []string{
		"print import now", "print import --follow S1", "import", "import stop", "import pause S1", "import limit", "import limit fast", "import limit -1", "import limit 1 2",
		"import skip", "import skip 1700000000", "import skip tid:0", "import skip tid:x", "import skip tid:0x8000000000000000", "import skip tid:1:x", "import skip tid:1:0x8000000000000000",
		"import skip 040d265a1099e841:", "import skip 040d265a1099e84",
	} {
		stdout, stderr, code := runCtl(t, append([]string{"-a", "127.0.0.1:1"}, strings.Fields(args)...)...)
		if code != 2 || stdout != "" || !strings.HasPrefix(stderr, "usage: neoctl") {
			t.Errorf("neoctl %s: %q, %q, exit %d", args, stdout, stderr, code)
		}
	}
	for s, want := range map[string]string{
		"040d265a1099e841": "040d265a1099e841", "TID:0x10": "0000000000000010", "tid:16:0": "0000000000000010:0000000000000000",
		"040d265a1099e841:0000000000000010": "040d265a1099e841:0000000000000010", "040d265a1099e841:0x1f": "040d265a1099e841:000000000000001f",
	} {
		t1, oid, err := parseSkipped(s)
		o := importing.Order{Kind: importing.Skip, TID: t1, OID: oid}
		if got := strings.TrimPrefix(fmt.Sprint(&o), "skip "); got != want || err != nil {
			t.Errorf("%s: got %s, %v, want %s", s, got, err, want)
		}
	}
}
