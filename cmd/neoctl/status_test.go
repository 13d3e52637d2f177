package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// answering runs neoctl with a person who types something.
func answering(t *testing.T, typed string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	env := &cli.Env{Args: args, Stdin: io.Reader(strings.NewReader(typed)), Stdout: &out, Stderr: &errOut}
	code = cli.Run(t.Context(), env, newCommand)
	return out.String(), errOut.String(), code
}

var (
	aDate    = regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?( UTC|Z)?`)
	anID     = regexp.MustCompile(`[0-9a-f]{16}`)
	anAge    = regexp.MustCompile(`\d+ (s|min) ago`)
	aPort    = regexp.MustCompile(`127\.0\.0\.1:\d+`)
	aRate    = regexp.MustCompile(`(_per_second":)[\d.e+-]+|\d+\.\d (commits|loads)/s`)
	aDir     = regexp.MustCompile(`/[^ ",:)]*/storage\d\.sqlite`)
	aVersion = regexp.MustCompile(`"version":"[^"]*"`)
	spaces   = regexp.MustCompile(` {2,}`)
)

// timeless leaves out what differs between two runs.
func timeless(s string) string {
	host, _ := os.Hostname()
	s = strings.ReplaceAll(s, `"host":"`+host+`"`, `"host":"HOST"`)
	s = strings.ReplaceAll(s, " "+host+" ", " HOST ")
	s = strings.ReplaceAll(s, "("+host+",", "(HOST,")
	s = aVersion.ReplaceAllString(s, `"version":"VERSION"`)
	s = aDate.ReplaceAllString(s, "DATE")
	s = anAge.ReplaceAllString(s, "AGO")
	s = aPort.ReplaceAllString(s, "ADDRESS")
	s = aRate.ReplaceAllString(s, "${1}RATE")
	s = aDir.ReplaceAllString(s, "DB")
	s = anID.ReplaceAllString(s, "TID")
	return spaces.ReplaceAllString(s, "  ")
}

// commitOne commits a transaction.
func commitOne(t *testing.T, master string) {
	t.Helper()
	i := strings.LastIndexByte(master, ':')
	var port uint16
	if _, err := fmt.Sscan(master[i+1:], &port); err != nil {
		t.Fatal(err)
	}
	cl, err := client.Open(t.Context(), client.Config{Cluster: "neo", Masters: []proto.Address{{Host: master[:i], Port: port}}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	tx, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Store(t.Context(), 1, 0, []byte("data")); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Finish(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// A whole day with a real cluster: it is well, it is packed, it loses a storage, and it is lost.
func TestStatus(t *testing.T) {
	admin := startCluster(t, simple.Config{Storages: 2, Replicas: 1, Partitions: 3})
	run := func(args string) (stdout, stderr string, code int) {
		t.Helper()
		return runCtl(t, append([]string{"-a", admin}, strings.Fields(args)...)...)
	}
	say := func(args, wantOut, wantErr string, wantCode int) {
		t.Helper()
		stdout, stderr, code := run(args)
		if diff := cmp.Diff(wantOut, timeless(stdout)); diff != "" {
			t.Errorf("neoctl %s (-want +got):\n%s", args, diff)
		}
		if diff := cmp.Diff(wantErr, timeless(stderr)); diff != "" {
			t.Errorf("neoctl %s, on stderr (-want +got):\n%s", args, diff)
		}
		if code != wantCode {
			t.Errorf("neoctl %s: exit %d, want %d", args, code, wantCode)
		}
	}
	await := func(args, text string) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			stdout, stderr, _ := run(args)
			if strings.Contains(stdout, text) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("neoctl %s does not say %q:\n%s%s", args, text, stdout, stderr)
			}
		}
	}
	say("pack", "", "the database is empty: there is nothing to pack\n", 1)
	var nodes []status.Node
	stdout, _, _ := run("print node master --json")
	if err := json.Unmarshal([]byte(stdout), &nodes); err != nil || len(nodes) != 1 {
		t.Fatalf("%v: %s", err, stdout)
	}
	commitOne(t, nodes[0].Address)
	await("print node --json", "storage1.sqlite")
	await("print node --json", "storage2.sqlite")
	await("print node client", "Empty list!")
	say("status", `cluster  neo, RUNNING, primary M1
health  OK
partitions  3, 1 replica, 6 UP_TO_DATE
last commit TID (DATE), AGO
load  RATE, RATE

NODE  STATE  SINCE  HOST  ADDRESS  SERVES
M1  RUNNING  -  HOST  ADDRESS  primary master
S1  RUNNING  DATE  HOST  ADDRESS  SQLite DB: 3 UP_TO_DATE
S2  RUNNING  DATE  HOST  ADDRESS  SQLite DB: 3 UP_TO_DATE
A1  RUNNING  DATE  HOST  ADDRESS  admin
`, "", 0)
	say("health", "ok\n", "", 0)
	say("health --json", `{"cluster":"neo","time":"DATE","level":"ok","reasons":[]}`+"\n", "", 0)
	say("print cluster --json", `{"state":"RUNNING"}`+"\n", "", 0)
	say("--json print primary", `{"primary":"M1"}`+"\n", "", 0)
	say("print ids --json", `{"last_oid":"TID","last":{"tid":"TID","time":"DATE"},"backup":null,"ptid":1}`+"\n", "", 0)
	say("print pt 1 2 --json", `{"first":1,"id":1,"replicas":1,"rows":[[{"node":"S1","state":"UP_TO_DATE"},{"node":"S2","state":"UP_TO_DATE"}]]}`+"\n", "", 0)
	say("print summary --json", `{"warnings":[],"problems":[],"summary":"RUNNING; UP_TO_DATE=6; ltid=TID (DATE)","backups":[]}`+"\n", "", 0)
	say("print import --json", "[]\n", "", 3)
	say("print backup --json", "[]\n", "", 3)
	say("print node admin --json", `[{"id":"A1","type":"ADMIN","state":"RUNNING","address":"ADDRESS","since":"DATE","host":"HOST","adapter":"","database":"","version":"VERSION","started":"DATE",`+
		`"pack_disabled":false,"commits":null,"commits_per_second":null,"loads":null,"loads_per_second":null,"cells":null}]`+"\n", "", 0)

	say("pack --dry-run", `Would delete what was replaced or deleted up to TID (DATE), in 3 partitions.
would pack: S1 (HOST, DB)
would pack: S2 (HOST, DB)
Nothing was done.
`, "", 0)
	var stderr string
	var code int
	for args, again := range map[string]string{
		"pack":                                "pack",
		"pack --at latest --wait":             "pack --wait",
		"pack --at 4000-01-01":                "pack", // a wrong year
		"pack --at 0x7fffffffffffffff --wait": "pack --wait",
	} {
		_, stderr, code = run(args)
		if code != 1 || !strings.Contains(stderr, "All history is deleted") || !strings.Contains(stderr, "Nothing was done. To go on: neoctl "+again+" --yes\n") {
			t.Errorf("%s: exit %d: %s", args, code, stderr)
		}
	}
	await("status --json", `"pack":null`) // nothing was done
	say("pack --at tomorrow", "", "usage: neoctl [options] [command [arguments]]\nneoctl: error: "+`pack [--at TIME] [--wait] [--dry-run]: --at: "tomorrow": want latest, a TID (16 hexadecimal digits, 0x and hexadecimal digits, or tid:<integer>), `+
		`or a time such as DATE, 2026-11-20, "yesterday 18:00" (UTC) or a UNIX timestamp`+"\nSee neoctl --help.\n", 2)
	say("pack --yes --wait", "Pack up to TID (DATE) ordered by transaction TID.\nDone.\n", "", 0)
	await("status --json", `"done":true`)
	await("status", ": done\n")
	say("pack --at 1700000000 --wait", "Pack up to TID (DATE) ordered by transaction TID.\nDone.\n", "", 0)
	await("check", "of 3 partitions compared: no difference found")
	await("status", ": no difference in 3 partitions\n")

	stdout, stderr, code = answering(t, "yes\n", "-a", admin, "prune_orphan", "0", "all")
	if stdout != "\n" || code != 0 || !strings.Contains(stderr, `type "yes"`) {
		t.Errorf("answered yes: %q, %q, exit %d", stdout, stderr, code)
	}
	stdout, stderr, code = answering(t, "y\n", "-a", admin, "prune_orphan", "0", "all")
	if stdout != "" || code != 1 || !strings.HasSuffix(stderr, "Nothing was done.\n") {
		t.Errorf("answered y: %q, %q, exit %d", stdout, stderr, code)
	}
	stdout, stderr, code = run("truncate tid:1")
	if stdout != "" || code != 1 || !strings.Contains(stderr, "All transactions after 0000000000000001 (1900-01-01 00:00:00 UTC) are deleted in all storages: the last one is ") ||
		!strings.HasSuffix(stderr, "Nothing was done. To go on: neoctl truncate tid:1 --yes\n") {
		t.Errorf("truncate: %q, %q, exit %d", stdout, stderr, code)
	}

	run("kill S2")
	await("health", "degraded\npartitions 0-2 have one readable copy of 2: S2 (")
	if stdout, _, code := run("health"); code != 1 || !strings.Contains(stdout, ".sqlite) is DOWN since ") {
		t.Errorf("health: exit %d: %s", code, stdout)
	}
	var doc statusDocument
	stdout, _, code = run("status --json")
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil || code != 0 || len(doc.Nodes) != 4 || doc.Node("S2").Database == "" || len(doc.Replication) != 3 || doc.Check == nil || !doc.Check.Complete {
		t.Errorf("%v, exit %d: %s", err, code, stdout)
	}
	run("set cluster stopping")
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		stdout, _, code := run("health --json")
		if code == 2 && strings.Contains(stdout, "cannot be asked: connection refused") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("exit %d: %s", code, stdout)
		}
	}
	say("status", "health  DOWN\n  the admin at ADDRESS cannot be asked: connection refused\n", "", 1)
}

// What an admin of another version does not say is left out.
func TestStatusNotKnown(t *testing.T) {
	at := status.MomentOf(5 << 50)
	text := statusText(&status.Status{
		Check:       &status.Check{Differences: 1, Nodes: []string{"S1"}},
		Pack:        &status.Pack{Order: *at},
		Replication: []status.Replication{{Node: "S1", Active: true, Reached: at}},
	})
	for _, want := range []string{"check       goes on: 1 difference on S1 so far\n", "; S1 copies partition 0\n", "pack        ordered "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// neo.conf tells where the admin is; the command line comes first.
func TestFile(t *testing.T) {
	admin := startCluster(t, simple.Config{Partitions: 1})
	dir := t.TempDir()
	write := func(text string) string {
		t.Helper()
		path := filepath.Join(dir, "neo.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	port := admin[strings.LastIndexByte(admin, ':'):]
	for _, tt := range []struct {
		name, text  string
		args        string
		out, stderr string
		code        int
	}{
		{"bind", "[DEFAULT]\ncluster: neo\n[admin]\nbind: " + admin, "print cluster", "RUNNING\n", "", 0},
		{"bind of all", "[admin]\nbind: 0.0.0.0" + port, "print cluster", "RUNNING\n", "", 0},
		{"other section", "[admin2]\nbind: " + admin, "-s admin2 print cluster", "RUNNING\n", "", 0},
		{"the command line first", "[admin]\nbind: 127.0.0.1:1", "-a " + admin + " print cluster", "RUNNING\n", "", 0},
		{"no section", "[master]\n", "print cluster", "", "admin", 2},
		{"any port", "[admin]\nbind: 127.0.0.1:0", "print cluster", "", "any free port", 2},
		{"not an address", "[admin]\nbind: a:b", "print cluster", "", `key "bind"`, 2},
		{"unknown key", "[admin]\nbnd: " + admin, "print cluster", "", `neo.conf:2: unknown key "bnd"; did you mean "bind"?`, 2},
		{"two certificates", "[admin]\nbind: " + admin + "\nca: ca.pem\ncert: c.pem", "print cluster", "", "3 files must be provided", 2},
	} {
		stdout, stderr, code := runCtl(t, append([]string{"-f", write(tt.text + "\n")}, strings.Fields(tt.args)...)...)
		if stdout != tt.out || !strings.Contains(stderr, tt.stderr) || code != tt.code {
			t.Errorf("%s: %q, %q, exit %d", tt.name, stdout, stderr, code)
		}
	}
	if _, stderr, code := runCtl(t, "-f", filepath.Join(dir, "none"), "print", "cluster"); code != 2 || !strings.Contains(stderr, "none") {
		t.Errorf("no file: %q, exit %d", stderr, code)
	}
	if _, stderr, code := runCtl(t, "-s", "admin", "print", "cluster"); code != 2 || !strings.Contains(stderr, "--section needs --file") {
		t.Errorf("no file given: %q, exit %d", stderr, code)
	}
}

// help tells of a command, and of what begins alike.
func TestHelp(t *testing.T) {
	for _, tt := range []struct {
		args  string
		count int // of commands
	}{{"help", len(commands())}, {"help print", 8}, {"help print pt", 1}, {"help set", 2}, {"help pack", 1}, {"help help", 1}} {
		stdout, stderr, code := runCtl(t, strings.Fields(tt.args)...)
		if n := strings.Count(stdout, "\n        "); n != tt.count || code != 0 || stderr != "" {
			t.Errorf("%s tells of %d commands, exit %d:\n%s%s", tt.args, n, code, stdout, stderr)
		}
	}
	_, stderr, code := runCtl(t, "help", "packs")
	if code != 2 || !strings.Contains(stderr, `there is no command "packs"; did you mean "pack"?`) {
		t.Errorf("help packs: %q, exit %d", stderr, code)
	}
}

// A wrong word is refused with the nearest right one, before anything is asked.
func TestNearest(t *testing.T) {
	for args, want := range map[string]string{
		"print node storge":         `did you mean "STORAGE"?`,
		"set cluster stoping":       `did you mean "STOPPING"?`,
		"import resum":              `did you mean "resume"?`,
		"backup relase":             `did you mean "release"?`,
		"pack --dryrun":             `did you mean "--dry-run"?`,
		"pack --dry-run --wait":     "--dry-run has nothing to --wait for",
		"pack --at":                 "--at needs",
		"status --wach":             `did you mean "--watch"?`,
		"tweak --json":              `"--json" is not a node`,
		"--json tweak":              "tweak prints no JSON",
		"status --watch soon":       "number of seconds",
		"prnt pt":                   `did you mean "print pt"?`,
		"stat":                      `did you mean "status"?`,
		"repl":                      "invalid command: repl\n",
		"trunc":                     `did you mean "truncate"?`,
		"hlth":                      "invalid command",
		"truncate 2026-11-20 10:00": "unexpected",
	} {
		_, stderr, code := runCtl(t, append([]string{"-a", "127.0.0.1:1"}, strings.Fields(args)...)...)
		if code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("neoctl %s: exit %d, %q does not say %q", args, code, stderr, want)
		}
	}
}
