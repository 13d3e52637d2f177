package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

const samples = "../../testdata/fs/"

// world is a directory with a source, a repository and what init has made.
type world struct {
	t    *testing.T
	dir  string
	env  map[string]string
	conf string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, conf: filepath.Join(dir, "neobackup.conf")}
	w.env = map[string]string{"NEOBACKUP_CONFIG": w.conf, "XDG_STATE_HOME": filepath.Join(dir, "state")}
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

func (w *world) write(name, content string, mode os.FileMode) string {
	w.t.Helper()
	path := w.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// run runs neobackup and returns what it prints and its exit code.
func (w *world) run(args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	var out, errs bytes.Buffer
	env := &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return w.env[k] }}
	code = cli.Run(w.t.Context(), env, newCommand)
	return out.String(), errs.String(), code
}

// want runs neobackup, which has to end with an exit code, and returns what it prints.
func (w *world) want(code int, args ...string) (stdout, stderr string) {
	w.t.Helper()
	stdout, stderr, got := w.run(args...)
	if got != code {
		w.t.Fatalf("neobackup %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, stdout, stderr)
	}
	return stdout, stderr
}

func (w *world) says(text string, parts ...string) {
	w.t.Helper()
	for _, p := range parts {
		if !regexp.MustCompile(p).MatchString(text) {
			w.t.Errorf("%s\nhas no %q", text, p)
		}
	}
}

// prepare makes two identities, and a repository of a copy of a sample.
func (w *world) prepare(sample string, more ...string) {
	w.t.Helper()
	b, err := os.ReadFile(samples + sample)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("Data.fs", string(b), 0o600)
	if err := os.Mkdir(w.path("repo"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	args := []string{"init", "file://" + w.path("repo"), "-f", w.conf, "--name", "prod", "--source", "file://" + w.path("Data.fs")}
	for _, name := range []string{"op1.txt", "op2.txt"} {
		out, _ := w.want(0, "key", "generate", w.path(name))
		args = append(args, "--recipient", strings.TrimSpace(out))
	}
	w.want(0, append(args, more...)...)
}

// keys returns the names of the stored objects whose names match.
func (w *world) keys(pattern string) []string {
	w.t.Helper()
	var list []string
	err := filepath.WalkDir(w.path("repo"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if key, _ := filepath.Rel(w.path("repo"), path); regexp.MustCompile(pattern).MatchString(key) {
				list = append(list, key)
			}
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// What init makes is all that snapshot and restore need.
func TestFirstBackup(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	for name, mode := range map[string]os.FileMode{"op1.txt": 0o600, "prod-writer.key": 0o600, "neobackup.conf": 0o644} {
		if st, err := os.Stat(w.path(name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	out, _ := w.want(0, "info")
	w.says(out, `status +nothing was backed up yet`, `repository +prod, encrypted, file://`)
	out, _ = w.want(0, "snapshot", "--label", "first")
	w.says(out, `prod has everything up to 040660ee3597d844 .*: 334 transactions more`)
	out, _ = w.want(0, "snapshot")
	w.says(out, `: 0 transactions more`)
	out, _ = w.want(0, "info")
	w.says(out, `status +ok`, `head +040660ee3597d844  2026-01-22`, `restorable +everything up to 040660ee3597d844`, `contents +334 transactions, 2142 records`, `store tried`)
	out, _ = w.want(0, "list")
	w.says(out, `^prod  ok  2026-01-22 16:14:12`)
	out, _ = w.want(0, "list", "--lineages")
	w.says(out, `^1 [0-9a-f]{32} init  ok`)
	out, _ = w.want(0, "key", "check", "-i", w.path("op1.txt"))
	w.says(out, `epoch 0001 of .*: opened; 2 recipients`)
	out, _ = w.want(0, "check")
	w.says(out, `found +0 faults, 0 warnings`)
	out, _ = w.want(0, "verify", "-i", w.path("op2.txt"))
	w.says(out, `334 transactions, 2142 records`, `found: 0 faults`)
	out, _ = w.want(0, "verify", "--against", "-i", w.path("op2.txt"))
	w.says(out, `334 transactions compared`, `found: 0 faults`)
	out, _ = w.want(0, "cost")
	w.says(out, `requests +\d+ PUT a day`)
	out, _ = w.want(0, "restore", "--plan", "-i", w.path("op2.txt"), w.path("x.fs"))
	w.says(out, `exact +yes`, `epoch 0001 .*opened by the identity`)
	w.env["NEOBACKUP_IDENTITY"] = w.path("op2.txt")
	out, _ = w.want(0, "restore", w.path("x.fs"))
	w.says(out, `read again and equal`)
	if w.read("x.fs") != w.read("Data.fs") {
		t.Error("the restored file differs")
	}
	// The beginning of it at an earlier moment.
	w.want(0, "restore", "--at", "040660a461511a11", w.path("y.fs"))
	if y := w.read("y.fs"); !strings.HasPrefix(w.read("Data.fs"), y) || len(y) == 0 {
		t.Error("what was restored of an earlier time is not the beginning")
	}
	w.want(0, "restore", "--append", w.path("y.fs"))
	if w.read("y.fs") != w.read("Data.fs") {
		t.Error("the appended file differs")
	}
}

// Everything can be said on the command line.
func TestWithoutFile(t *testing.T) {
	w := newWorld(t)
	w.env["NEOBACKUP_CONFIG"] = ""
	w.write("Data.fs", string(must(os.ReadFile(samples+"site.fs"))), 0o600)
	if err := os.Mkdir(w.path("repo"), 0o700); err != nil {
		t.Fatal(err)
	}
	url := "file://" + w.path("repo")
	out, _ := w.want(0, "init", url, "--no-encryption", "--sign-key", w.path("w.key"))
	w.says(out, `Not encrypted: `, `Next: neobackup snapshot -r 'file://.*' --set sign_key=`)
	verifier := regexp.MustCompile(`repo/writer\+\S+`).FindString(out)
	w.want(0, "snapshot", "-r", url, "--set", "sign_key="+w.path("w.key"), "--source", w.path("Data.fs"))
	w.want(0, "restore", "-r", url, "--verify-key", verifier, w.path("x.fs"))
	if w.read("x.fs") != w.read("Data.fs") {
		t.Error("the restored file differs")
	}
	if _, err := os.Stat(filepath.Join(w.path("state"), "neobackup")); err != nil {
		t.Errorf("state directory: %v", err)
	}
}

// An init that ended after the repository was there, and before it had said so, can be run again: the
// configuration is written. That of others, or one that is in use, stays what it is.
func TestInitAgain(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	conf := w.read("neobackup.conf")
	recipients := regexp.MustCompile(`age1\w+`).FindAllString(conf, -1)
	again := func(code int, more ...string) (stdout, stderr string) {
		t.Helper()
		if err := os.Remove(w.conf); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		args := append([]string{"init", "file://" + w.path("repo"), "-f", w.conf, "--source", "file://" + w.path("Data.fs")}, more...)
		return w.want(code, args...)
	}
	same := []string{"--name", "prod", "--recipient", recipients[0], "--recipient", recipients[1]}
	objects := w.keys("")
	out, _ := again(0, same...)
	w.says(out, `Repository prod is ready`, `The configuration is in `)
	if w.read("neobackup.conf") != conf {
		t.Errorf("the configuration is\n%s\nwant\n%s", w.read("neobackup.conf"), conf)
	}
	if now := w.keys(""); !slices.Equal(now, objects) {
		t.Errorf("the repository has %v, had %v", now, objects)
	}
	other := strings.TrimSpace(first(w.want(0, "key", "generate", w.path("op3.txt"))))
	for _, args := range [][]string{
		{"--name", "prod", "--recipient", recipients[0], "--recipient", other},
		{"--name", "prod", "--no-encryption"},
		{"--name", "prod", "--recipient", recipients[0], "--recipient", recipients[1], "--sign-key", w.path("other.key")},
		{"--name", "other", "--recipient", recipients[0], "--recipient", recipients[1], "--sign-key", w.path("prod-writer.key")},
	} {
		_, stderr := again(2, args...)
		w.says(stderr, `a backup repository is there already`)
		if _, err := os.Stat(w.path("other.key")); err == nil {
			t.Error("a key was made for a repository that is there")
		}
	}
	w.write("neobackup.conf", conf, 0o600)
	w.want(0, "snapshot")
	_, stderr := again(2, same...)
	w.says(stderr, `a backup repository is there already`)
}

// A section that is there already is used, and what init has made is to be written into it.
func TestInitBySection(t *testing.T) {
	w := newWorld(t)
	w.write("Data.fs", string(must(os.ReadFile(samples+"site.fs"))), 0o600)
	if err := os.Mkdir(w.path("repo"), 0o700); err != nil {
		t.Fatal(err)
	}
	section := "[repository site]\nurl: file://" + w.path("repo") + "\nsource: file://" + w.path("Data.fs") + "\n"
	w.write("neobackup.conf", section, 0o600)
	out, _ := w.want(0, "init", "site", "--no-encryption", "-f", w.conf)
	w.says(out, `Write into \[repository site\]:\n\nsign_key: .*/site-writer.key\nverify_keys: site/writer\+`, `Next: neobackup snapshot -f .* -r site`)
	more := regexp.MustCompile(`(?m)^(sign_key|verify_keys): .*\n`).FindAllString(out, -1)
	w.write("neobackup.conf", section+strings.Join(more, ""), 0o600)
	_, stderr := w.want(0, "snapshot")
	w.says(stderr, `(?m)^storing: 334 transactions, 1\.1 MB in `)
	_, stderr = w.want(2, "init", "site", "--no-encryption")
	w.says(stderr, `a backup repository is there already`)
}

// Each command says what it does, gives an example, and ends with the exit codes.
func TestHelp(t *testing.T) {
	w := newWorld(t)
	var names func(prefix []string)
	names = func(prefix []string) {
		out, _ := w.want(0, append(prefix, "--help")...)
		w.says(out, `Exit status: 0 done; 1 failed`)
		if !strings.Contains(out, "Available Commands:") {
			w.says(out, `\[options\]|FILE`, `(?m)^  neobackup `+strings.Join(prefix, " "), `Examples:`)
			return
		}
		for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+) {2,}[A-Z]`).FindAllStringSubmatch(out, -1) {
			if m[1] != "help" && m[1] != "completion" {
				names(append(slices.Clone(prefix), m[1]))
			}
		}
	}
	names(nil)
}

// Progress is in lines of JSON with --json.
func TestProgress(t *testing.T) {
	var out, errs bytes.Buffer
	env := &cli.Env{Stdout: &out, Stderr: &errs}
	p := (&common{json: true}).progress(env, "storing", "transactions", 0)
	p.shown = p.shown.Add(time.Hour)
	p.set(1, 2, 3)
	p.shown = time.Now().Add(-progressEvery)
	p.set(4, 5, 6)
	p.done()
	if want := `{"bytes":5,"items":4,"progress":"storing","total_bytes":6}` + "\n"; errs.String() != want || out.Len() > 0 {
		t.Errorf("got %s%s, want %s", out.String(), errs.String(), want)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// log and dump print what neofs prints of the source.
func TestHistoryAsNeofs(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "snapshot")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	out, _ := w.want(0, "log", "-n", "2")
	if want := "040660ee3597d844 2026-01-22 16:14:12.560893 user \"/ eve\" description \"undo: start a draft\" size 147\n" +
		"040660a461511a11 2026-01-22 15:00:22.808625 user \"/ eve\" description \"start a draft\" size 457\n"; out != want {
		t.Errorf("log: %s", out)
	}
	all, _ := w.want(0, "log", "--records")
	forward, _ := w.want(0, "log", "--records", "-F")
	if !strings.HasPrefix(all, "040660ee3597d844 ") || !strings.HasPrefix(forward, "0405ff6000000000 ") || len(all) != len(forward) {
		t.Errorf("%d bytes of log, %d forward", len(all), len(forward))
	}
	some, _ := w.want(0, "log", "2026-01-20..2026-01-21")
	if n := strings.Count(some, "\n"); n == 0 || n != strings.Count(some, " 2026-01-20 ") {
		t.Errorf("log of a day: %s", some)
	}
	dump, _ := w.want(0, "dump", "2026-01-20..")
	if !strings.HasPrefix(dump, "txn 0406") || !strings.Contains(dump, " from ") {
		t.Errorf("dump: %.200s", dump)
	}
}

// Each wrong use and each kind of fault has its exit code, names what is wrong, and says what to do.
func TestExitCodes(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "snapshot")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	config := w.read("neobackup.conf")
	empty := w.path("empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	w.write("foreign/a", "x", 0o600)
	w.write("foreign/b", "x", 0o600)
	w.write("foreign/c", "x", 0o600)
	w.write("foreign/d", "x", 0o600)
	other := strings.TrimSpace(first(w.want(0, "key", "generate", w.path("other.txt"))))
	open := w.write("open.txt", w.read("other.txt"), 0o644)
	bad := func(name, old, new string) string { return w.write(name, strings.Replace(config, old, new, 1), 0o644) }
	_, otherKey, err := snapshot.GenerateKey("prod", snapshot.Writer)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		code int
		args string
		want string
	}{
		{"no command", 2, "snapsho", `unknown command`},
		{"no repository given", 2, "info -f ''", `value is empty`},
		{"unknown key", 2, "info -f " + bad("c1", "source:", "sourc:"), `c1:\d+: unknown key "sourc" in \[repository prod\]; did you mean "source"\?`},
		{"recipient", 2, "info -f " + bad("c2", "age1", "age2"), `c2:4: recipients: `},
		{"unknown name", 2, "info -r prd", `there is no \[repository prd\]; did you mean "prod"\?`},
		{"open identity", 2, "verify -i " + open, `open.txt is not a file of secrets: others than its owner have access`},
		{"no identity in it", 2, "verify -i " + w.conf, `not a file of secrets`},
		{"no directory", 2, "info -r file://" + w.path("none") + " --verify-key " + otherKey, `(?s)no such file.*hint: a directory is not made`},
		{"no repository", 2, "info -r file://" + empty + " --verify-key " + otherKey, `(?s)not a backup repository.*hint: .*neobackup init`},
		{"foreign objects", 2, "init file://" + w.path("foreign") + " --no-encryption --sign-key " + w.path("n.key"), `not empty: it has a, b, c\n`},
		{"a repository", 2, "init file://" + w.path("repo") + " --no-encryption --sign-key " + w.path("n.key"), `a backup repository is there already`},
		{"existing file", 2, "init file://" + empty + " --no-encryption -f " + w.conf, `neobackup.conf exists: write a \[repository NAME\]`},
		{"for whom", 2, "init file://" + empty, `Give --recipient for each operator`},
		{"one recipient", 2, "init file://" + empty + " --recipient " + other, `--single-recipient`},
		{"both", 2, "init file://" + empty + " --no-encryption --recipient " + other, `either recipients or`},
		{"name", 2, "init file://" + empty + " --no-encryption --name A", `cannot be the name`},
		{"moment", 2, "restore --at tomorrow " + w.path("x"), `want latest, a TID`},
		{"nothing to fail for", 2, "info --fail", `max_rpo or proof_max_age`},
		{"no source", 2, "verify --against --read-data=1/2", `either`},
		{"share", 2, "verify --read-data=3/2", `--read-data: `},
		{"range", 2, "log 2026", `is no range`},
		{"tables", 2, "restore sqlite:" + w.path("t"), `tables need --cluster`},
		{"no tables", 2, "restore --nodes 3 " + w.path("x"), `--nodes and --node are for tables`},
		{"nodes", 2, "restore --cluster c --partitions 2 --nodes 0 sqlite:" + w.path("t"), `at least one node`},
		{"replicas", 2, "restore --cluster c --partitions 2 --nodes 2 --replicas 2 sqlite:" + w.path("t"), `at least one node`},
		{"negative replicas", 2, "restore --cluster c --partitions 2 --nodes 2 --replicas -1 sqlite:" + w.path("t"), `at least one node`},
		{"no such node", 2, "restore --cluster c --partitions 2 --nodes 2 --node 3 sqlite:" + w.path("t"), `want 1 to 2`},
		{"magic", 2, "restore --magic FS99 " + w.path("x"), `want FS30 or FS21`},
		{"magic of tables", 2, "restore --magic FS30 --cluster c --partitions 2 sqlite:" + w.path("t"), `--magic is for`},
		{"TLS with a file", 2, "restore --ca ca.crt " + w.path("x"), `are for a cluster`},
		{"refresh", 2, "serve -b 0 --refresh 5s", `--refresh is for --follow`},
		{"count", 2, "log -n -3", `at least 1`},
		{"no count", 2, "log -n 0", `at least 1`},
		{"commits", 2, "cost --commits-per-day -5", `more than 0`},
		{"no number of commits", 2, "cost --commits-per-day nan", `more than 0`},
		{"infinite commits", 2, "cost --commits-per-day inf", `more than 0`},
		{"raw history", 2, "cat --raw --history 0", `without --history`},
		{"target", 2, "restore zeo://h", `a target is`},
		{"where", 2, "serve", `Give -b`},
		{"set", 2, "info --set intervall=1s", `did you mean "interval"`},
		{"wrong identity", 4, "verify --against -i " + w.path("other.txt"), `(?s)epoch 0001: no identity opens it.*encrypted to age1.*hint: give the identity`},
		{"wrong identity restores nothing", 4, "restore -i " + w.path("other.txt") + " " + w.path("x"), `no identity opens it`},
		{"untrusted", 4, "info -f " + bad("c3", "verify_keys: ", "#") + " --verify-key " + otherKey + " --set sign_key=" + w.path("none"), `(?s)no trusted signature.*hint: trust a key only`},
		{"not exact", 8, "restore --at 2030-01-01 " + w.path("x"), `(?s)not restorable.*hint: the nearest moment that is: 040660ee3597d844`},
		{"before the first", 8, "restore --at 1926-01-20 " + w.path("x"), `nothing was committed until .*; the first transaction of the repository is 0405ff6000000000`},
		{"too old a moment", 2, "restore --at tid:0 " + w.path("x"), `nothing is that old`},
		{"existing target", 1, "restore " + w.path("Data.fs"), `not empty`},
		{"late", 9, "info --fail --set max_rpo=1s --set heartbeat=1s --set state_dir=" + w.path("s2"), `too old`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := *w
			w.t = t
			args := strings.Fields(tt.args)
			for i := range args {
				args[i] = strings.Trim(args[i], "'")
			}
			if tt.name == "late" {
				time.Sleep(3100 * time.Millisecond) // times in notes are whole seconds
			}
			_, stderr := w.want(tt.code, args...)
			w.says(stderr, tt.want)
			if tt.code == 2 && tt.name == "no command" {
				return
			}
			// The same as a document.
			stdout, _, code := w.run(append(args, "--json")...)
			if code != tt.code {
				t.Errorf("with --json: exit code %d", code)
			}
			if tt.name == "no repository given" || tt.name == "late" {
				return // cobra's own; info has its document
			}
			var doc struct {
				V     int
				Error failure
			}
			if err := json.Unmarshal([]byte(stdout), &doc); err != nil || doc.V != 1 || doc.Error.Exit != tt.code || doc.Error.Code == "" || doc.Error.Message == "" {
				t.Errorf("document %s: %v", stdout, err)
			}
		})
	}
	for _, name := range []string{"x", "x.part", "n.key"} {
		if _, err := os.Stat(w.path(name)); err == nil {
			t.Errorf("%s was made by a command that was refused", name)
		}
	}
}

func first(a, _ string) string { return a }

// An encryption that is not as configured is refused.
func TestEncryptionMismatch(t *testing.T) {
	w := newWorld(t)
	w.env["NEOBACKUP_CONFIG"] = ""
	if err := os.Mkdir(w.path("repo"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.want(0, "init", "file://"+w.path("repo"), "--no-encryption", "-f", w.conf)
	to := strings.TrimSpace(first(w.want(0, "key", "generate", w.path("op.txt"))))
	_, stderr := w.want(4, "snapshot", "-f", w.conf, "--set", "recipients="+to, "--source", w.path("Data.fs"))
	w.says(stderr, `encryption is not as configured`)
}

// Damage is found, named, and exit code 3; what is before it can be restored.
func TestDamage(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	w.want(0, "snapshot", "--at", "2026-01-15")
	out, _ := w.want(0, "restore", w.path("early.fs"))
	early := regexp.MustCompile("up to ([0-9a-f]{16})").FindStringSubmatch(out)[1]
	w.want(0, "snapshot")
	segments := w.keys(`/s/`)
	last := segments[len(segments)-1]
	path := filepath.Join(w.path("repo"), last)
	whole := string(must(os.ReadFile(path)))
	spoil := func(content string) {
		t.Helper()
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flipped := []byte(whole)
	flipped[len(flipped)/2] ^= 1
	spoil(string(flipped))
	out, stderr := w.want(3, "verify")
	w.says(out+stderr, regexp.QuoteMeta(last), `(?m)^damaged: `, `error: damage was found`)
	out, _ = w.want(3, "verify", "--json")
	var doc struct {
		V        int
		Findings []struct{ Kind, Key string }
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.V != 1 || len(doc.Findings) == 0 || doc.Findings[0].Key != last {
		t.Errorf("%s: %v", out, err)
	}
	_, stderr = w.want(3, "restore", w.path("x.fs"))
	w.says(stderr, regexp.QuoteMeta(last))
	spoil(whole[:len(whole)-1])
	out, _ = w.want(3, "check")
	w.says(out, regexp.QuoteMeta(last))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	out, _ = w.want(3, "check")
	w.says(out, regexp.QuoteMeta(last), "missing")
	w.want(3, "restore", w.path("x.fs"), "--restart")
	if _, err := os.Stat(w.path("x.fs")); err == nil {
		t.Error("a restore of damaged data has a name")
	}
	// The time before is untouched.
	w.want(0, "restore", "--at", early, w.path("y.fs"))
	if w.read("y.fs") != w.read("early.fs") {
		t.Error("the time before differs")
	}
}

// Notes that are of a newer version, changed, or removed are each told as what they are.
func TestNotes(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	w.want(0, "snapshot", "--at", "2026-01-15")
	w.want(0, "snapshot")
	change := func(key string, change func(b []byte) []byte) (restore func()) {
		t.Helper()
		path := filepath.Join(w.path("repo"), key)
		b := must(os.ReadFile(path))
		if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, change(slices.Clone(b)), 0o600)); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	manifest := w.keys(`/m/`)[0] // the newest
	for _, tt := range []struct {
		name, key string
		change    func(b []byte) []byte
		code      int
		want      string
	}{
		{"newer version", snapshot.MarkerKey, func(b []byte) []byte {
			signer := must(note.NewSigner(lastLine(w.read("prod-writer.key"))))
			text, _, _ := bytes.Cut(b, []byte("\n\n"))
			return must(note.Sign(&note.Note{Text: strings.Replace(string(text), `"v":1`, `"v":2`, 1) + "\n"}, signer))
		}, 2, `version 2.* 1`},
		{"changed manifest", manifest, func(b []byte) []byte { return bytes.Replace(b, []byte(`"txns":`), []byte(`"txns":1`), 1) }, 3, regexp.QuoteMeta(manifest)},
		{"truncated manifest", manifest, func(b []byte) []byte { return b[:len(b)/2] }, 3, regexp.QuoteMeta(manifest)},
		{"marker of another", snapshot.MarkerKey, func(b []byte) []byte { return []byte("hello") }, 3, snapshot.MarkerKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			back := change(tt.key, tt.change)
			defer back()
			for _, args := range [][]string{{"info"}, {"snapshot"}, {"restore", w.path("x.fs")}, {"check"}} {
				out, stderr := w.want(tt.code, args...)
				w.says(out+stderr, tt.want)
			}
		})
	}
	w.want(0, "check")
	if err := os.Remove(filepath.Join(w.path("repo"), "keys/0001.0001")); err != nil {
		t.Fatal(err)
	}
	out, _ := w.want(3, "check")
	w.says(out, `missing: keys/0001.0001`)
	w.want(3, "restore", w.path("x.fs"))
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// A source that is not the one that was backed up ends the writer with 7; a state directory in
// use with 6.
func TestWrongSource(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "snapshot")
	b := w.read("Data.fs")
	w.write("Other.fs", string(must(os.ReadFile(samples+"01-basic.fs"))), 0o600)
	_, stderr := w.want(7, "snapshot", "--source", w.path("Other.fs"))
	w.says(stderr, `differ`, `hint: `)
	w.write("Data.fs", b[:len(b)/2], 0o600)
	_, stderr = w.want(7, "snapshot")
	w.says(stderr, `hint: `)
}

// The probe is repeated by a writer when the last one is a week old, and by check --store.
func TestProbe(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "snapshot")
	files := must(filepath.Glob(filepath.Join(w.path("state"), "neobackup", "*", probeFile)))
	if len(files) != 1 {
		t.Fatalf("%d results of a probe", len(files))
	}
	before := must(os.ReadFile(files[0]))
	w.want(0, "snapshot")
	if !bytes.Equal(must(os.ReadFile(files[0])), before) {
		t.Error("tried again at once")
	}
	var p probed
	if err := json.Unmarshal(before, &p); err != nil {
		t.Fatal(err)
	}
	p.Report.Time = p.Report.Time.Add(-8 * 24 * time.Hour)
	old := must(json.Marshal(p))
	if err := os.WriteFile(files[0], old, 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(0, "info")
	if !bytes.Equal(must(os.ReadFile(files[0])), old) {
		t.Error("a reader tries the store")
	}
	w.want(0, "snapshot")
	if bytes.Equal(must(os.ReadFile(files[0])), old) {
		t.Error("not tried again after eight days")
	}
	if keys := w.keys("^probe/"); len(keys) > 0 {
		t.Errorf("the probe left %q", keys)
	}
	out, _ := w.want(0, "check", "--store")
	w.says(out, `(?m)^ok +create-once`)
}

// Moments are found from what is stored.
func TestAt(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	_, stderr := w.want(8, "restore", w.path("x.fs"))
	w.says(stderr, `no transaction yet`)
	w.want(0, "snapshot")
	now := time.Now().UTC()
	for at, want := range map[string]tid.TID{
		"latest":           0x040660ee3597d844,
		"040660a461511a11": 0x040660a461511a11,
		fmt.Sprintf("tid:%d", 0x040660a461511a11): 0x040660a461511a11,
		// There was nothing between the last transaction and the snapshot.
		now.Add(-time.Minute).Format(time.RFC3339): 0x040660ee3597d844,
		"yesterday": 0x040660ee3597d844,
	} {
		out, _ := w.want(0, "restore", "--plan", "--json", "--at", at, w.path("x.fs"))
		var doc struct {
			V     int
			At    string
			Exact bool
		}
		if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.At != want.String() || !doc.Exact || doc.V != 1 {
			t.Errorf("--at %s: %s, %v", at, out, err)
		}
	}
	w.want(8, "restore", "--plan", "--at", now.AddDate(0, 0, 1).Format(time.RFC3339), w.path("x.fs"))
}

// A document has its ids as text and its keys in order.
func TestJSON(t *testing.T) {
	type inner struct {
		T tid.TID `json:"t"`
	}
	var b strings.Builder
	o := &common{}
	doc := struct {
		V int `json:"v"`
		*inner
		ID   snapshot.ID `json:"id"`
		None *inner      `json:"none,omitempty"`
		List []inner     `json:"list"`
		Any  any         `json:"any"`
		When time.Time   `json:"when"`
		skip int
	}{V: 1, inner: &inner{255}, List: []inner{{1}}, Any: map[string]any{"z": nil, "v": tid.OID(2), "a": []byte("x")}, When: time.Unix(0, 0).UTC()}
	if err := o.line(&b, doc); err != nil {
		t.Fatal(err)
	}
	want := `{"v":1,"t":"00000000000000ff","id":"00000000000000000000000000000000","list":[{"t":"0000000000000001"}],"any":{"v":"0000000000000002","a":"eA==","z":null},"when":"1970-01-01T00:00:00Z"}` + "\n"
	if b.String() != want {
		t.Errorf("got %swant %s", b.String(), want)
	}
}

// The forecast has the numbers of the specification's simulation, about.
func TestEstimate(t *testing.T) {
	p, err := readPrices("")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		interval  string
		perDay    float64
		puts      float64
		manifests float64
	}{
		{"1s", 5 * 86400, 88564, 1341},
		{"1s", 3 * 1440, 4301, 65},
		{"10s", 5 * 86400, 8910, 135},
		{"10s", 3 * 1440, 4027, 61}, // as simulated: see DESIGN.md of backup/writer
		{"60s", 3 * 1440, 1417, 21},
		{"1s", 0, 292, 4},
	} {
		set := config.New()
		if err := set.Set("interval", tt.interval); err != nil {
			t.Fatal(err)
		}
		f := estimate(load{Txns: tt.perDay, Stored: tt.perDay * 2000}, set, 1<<30, 100, p)
		if f.PutsPerDay < tt.puts*0.9 || f.PutsPerDay > tt.puts*1.1 || f.ManifestsPerDay < tt.manifests*0.8 || f.ManifestsPerDay > tt.manifests*1.3 {
			t.Errorf("%s, %.0f commits a day: %.0f PUT, %.0f manifests, want %.0f and %.0f", tt.interval, tt.perDay, f.PutsPerDay, f.ManifestsPerDay, tt.puts, tt.manifests)
		}
	}
}

// A backup that was never begun is too old for --fail.
func TestInfoFailEmpty(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "info")
	out, stderr := w.want(9, "info", "--fail", "--set", "max_rpo=1h")
	w.says(out+stderr, `status +nothing was backed up yet`, `error: prod: too old: nothing was backed up yet`)
	w.want(9, "info", "--fail", "--json", "--set", "max_rpo=1h")
	w.want(0, "snapshot")
	w.want(0, "info", "--fail", "--set", "max_rpo=1h")
}

// A Data.fs that is packed while it is followed goes on in a new lineage, unless that is not wanted.
func TestFollowPacked(t *testing.T) {
	for _, stop := range []bool{false, true} {
		w := newWorld(t)
		w.prepare("05-before-pack.fs")
		args := []string{"follow", "--set", "interval=100ms"}
		if stop {
			args = append(args, "--set", "on_pack=stop")
		}
		ctx, cancel := context.WithCancel(t.Context())
		var out, errs bytes.Buffer
		env := &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return w.env[k] }}
		done := make(chan int, 1)
		go func() { done <- cli.Run(ctx, env, newCommand) }()
		ended := -1
		until := func(ok func() bool) {
			for !ok() && ended < 0 {
				select {
				case ended = <-done:
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
		until(func() bool { // it is stored, and what it was is noted
			return len(w.keys(`/t/`)) > 0 && len(must(filepath.Glob(w.path("state/neobackup/*/source")))) > 0
		})
		w.write("packed.fs", string(must(os.ReadFile(samples+"05-packed.fs"))), 0o600)
		if err := os.Rename(w.path("packed.fs"), w.path("Data.fs")); err != nil {
			t.Fatal(err)
		}
		until(func() bool { return len(w.keys(`^l/`)) > 1 })
		cancel()
		if ended < 0 {
			ended = <-done
		}
		want := 1 // of a context that ends by itself
		if stop {
			want = 7
		}
		if ended != want {
			t.Fatalf("on_pack=stop: %v: exit code %d, want %d\n%s%s", stop, ended, want, &out, &errs)
		}
		if stop {
			continue
		}
		w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
		w.want(0, "restore", w.path("x.fs"))
		w.want(0, "restore", "--lineage", "1", w.path("y.fs"))
		if w.read("y.fs") != string(must(os.ReadFile(samples+"05-before-pack.fs"))) {
			t.Error("the old lineage differs")
		}
		w.want(0, "verify", "--against")
	}
}

// A writer that follows notes what it has stored while it does: after a crash, the next start knows that it has to be there.
func TestFollowNotesWhatItStores(t *testing.T) {
	defer func(d time.Duration) { seenEvery = d }(seenEvery)
	seenEvery = 20 * time.Millisecond
	w := newWorld(t)
	w.prepare("site.fs")
	ctx, cancel := context.WithCancel(t.Context())
	var out, errs bytes.Buffer
	env := &cli.Env{Args: []string{"follow"}, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return w.env[k] }}
	done := make(chan int, 1)
	go func() { done <- cli.Run(ctx, env, newCommand) }()
	defer func() {
		cancel()
		<-done
	}()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		tails := int64(len(w.keys(`/t/`)))
		for _, path := range must(filepath.Glob(filepath.Join(w.path("state"), "neobackup", "*", "seen.json"))) {
			var seen verify.Seen
			if err := json.Unmarshal(must(os.ReadFile(path)), &seen); err != nil {
				t.Fatal(err)
			}
			for _, m := range seen.Lineages {
				if tails > 0 && m.Tail == tails && m.Head > 0 {
					return
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d tails are stored, and not noted", tails)
		}
	}
}

// A packed file that is not known to be the same database gets another hint than one that is.
func TestHintOfPack(t *testing.T) {
	for common, want := range map[tid.TID]string{2: "rebase --confirm", 0: "--assume-same-history"} {
		f := classify(t.Context(), &writer.DivergedError{Head: 2, Common: common, Err: feed.ErrPacked})
		if f.Exit != 7 || !strings.Contains(f.Hint, want) {
			t.Errorf("common %v: %+v", common, f)
		}
	}
}

// What a command prints is printed, or the command has failed.
func TestStdoutFull(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "snapshot")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	if err := os.Mkdir(w.path("copy"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"copy --plan prod file://" + w.path("copy"), "copy prod file://" + w.path("copy"), "info", "list", "list --lineages", "check", "check --store", "verify", "verify --against", "key check", "key list", "cat 0", "cat --history 0", "log", "diff 2026-01-15..latest", "dump", "cost", "rebase", "snapshot"} {
		var errs bytes.Buffer
		env := &cli.Env{Args: strings.Fields(args), Stdin: strings.NewReader(""), Stdout: full{}, Stderr: &errs, Getenv: func(k string) string { return w.env[k] }}
		if code := cli.Run(t.Context(), env, newCommand); code != 1 || !strings.Contains(errs.String(), "the output is full") {
			t.Errorf("%s: exit code %d\n%s", args, code, &errs)
		}
	}
}

// full is an output that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("the output is full") }

// An init that cannot have a state directory makes no repository.
func TestInitStateDirectory(t *testing.T) {
	w := newWorld(t)
	w.write("file", "", 0o600)
	w.env["XDG_STATE_HOME"] = w.path("file")
	if err := os.Mkdir(w.path("repo"), 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"init", "file://" + w.path("repo"), "-f", w.conf, "--name", "prod", "--no-encryption"}
	_, stderr := w.want(1, args...)
	w.says(stderr, "state directory: ")
	delete(w.env, "XDG_STATE_HOME")
	w.env["STATE_DIRECTORY"] = w.path("state")
	w.want(0, args...)
}
