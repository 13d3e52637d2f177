package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/keeper"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// age makes everything in the repository older.
func (w *world) age(d time.Duration) {
	w.t.Helper()
	err := filepath.WalkDir(w.path("repo"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		at := info.ModTime().Add(-d)
		return os.Chtimes(path, at, at)
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// addKeys makes the keys of a keeper and of a drill, and the sections that name them.
func (w *world) addKeys() {
	w.t.Helper()
	conf := w.read("neobackup.conf")
	for _, role := range []string{"keeper", "drill"} {
		key := map[string]string{"keeper": "keeper_key: "}[role]
		file := w.path(role + ".key")
		out, _ := w.want(0, "key", "sign", role, file)
		i := strings.Index(conf, "verify_keys:")
		end := i + strings.IndexByte(conf[i:], '\n') + 1
		if key != "" {
			key += file + "\n"
		}
		conf = conf[:end] + "  " + out + key + conf[end:]
	}
	if err := os.Mkdir(w.path("scratch"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	conf += "[drill prod]\nidentity: " + w.path("op1.txt") + "\nsign_key: " + w.path("drill.key") + "\nscratch: " + w.path("scratch") + "\nmode: read\n"
	w.write("neobackup.conf", conf, 0o600)
}

// An old lineage is announced, warned of, kept when that is cancelled, and deleted.
func TestPrune(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "snapshot")
	out, _ := w.want(0, "prune")
	w.says(out, "policy +none", "refused +no policy is in force: .*policy --publish")
	_, errs := w.want(2, "prune", "--confirm")
	w.says(errs, "no key of a keeper", "hint: neobackup key sign keeper FILE")
	w.addKeys()
	out, errs = w.want(1, "prune", "--confirm")
	w.says(out, "no policy is in force")
	w.says(errs, "nothing was deleted or announced")
	out, _ = w.want(0, "policy")
	w.says(out, "none is in force", "keep_lineages_days: 35")
	out, _ = w.want(0, "policy", "--publish")
	w.says(out, "policy +1, of", "old lineages +35 days", "grace +24 hours", "changed +keep_lineages_days: none → 35")
	out, _ = w.want(0, "policy", "--publish")
	w.says(out, "Nothing differs")
	w.age(40 * 24 * time.Hour)
	w.want(0, "rebase", "--confirm")
	w.want(0, "drill")
	_, errs = w.want(1, "forget", "2", "--confirm")
	w.says(errs, "refused: lineage 2 stays: current")
	w.age(36 * 24 * time.Hour)
	out, _ = w.want(0, "prune")
	w.says(out, "lineage 1 +stays: the last drill that proved a later lineage was", "Nothing was done: --confirm does it")
	w.want(0, "drill")
	w.age(25 * time.Hour)
	before := w.keys(".")
	out, _ = w.want(0, "prune", "--json")
	var doc struct {
		V         int
		Confirmed bool
		New       struct{ Objects, Bytes int64 }
		Refused   []string
		Lineages  []struct {
			K    int64
			Kept bool
			Why  string
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.V != 1 || doc.New.Objects == 0 || len(doc.Lineages) != 2 || doc.Lineages[0].Kept || !doc.Lineages[1].Kept {
		t.Fatalf("%s: %+v, %v", out, doc, err)
	}
	if after := w.keys("."); len(after) != len(before) {
		t.Errorf("a plan changes something: %v, was %v", after, before)
	}
	announce := func() {
		t.Helper()
		out, _ := w.want(0, "prune", "--confirm")
		w.says(out, "lineage 1 +goes: a later lineage was proved", "announced now +[0-9]+ objects, .*: d/")
	}
	announce()
	out, _ = w.want(0, "info", "--lineage", "1")
	w.says(out, "lineage 1 will be deleted: d/.* announces it")
	_, errs = w.want(0, "restore", "--lineage", "1", "-i", w.path("op1.txt"), w.path("out.fs"))
	w.says(errs, "warning: lineage 1 will be deleted: d/.*--undo")
	if got, want := w.read("out.fs"), w.read("Data.fs"); got != want {
		t.Error("the old lineage restores to something else")
	}
	out, _ = w.want(0, "prune", "--undo")
	w.says(out, "Cancelled: d/")
	out, _ = w.want(0, "info", "--lineage", "1")
	if strings.Contains(out, "will be deleted") {
		t.Errorf("it is cancelled:\n%s", out)
	}
	w.age(25 * time.Hour)
	announce()
	w.age(25 * time.Hour)
	out, _ = w.want(0, "prune", "--confirm")
	w.says(out, "deleted +[0-9]+ objects")
	out, _ = w.want(0, "list", "--lineages")
	if n := strings.Count(out, "rebase"); n != 1 || strings.Contains(out, "init") {
		t.Errorf("lineages:\n%s", out)
	}
	w.want(0, "check")
	w.want(0, "verify", "-i", w.path("op1.txt"))
	w.want(0, "restore", "-i", w.path("op1.txt"), w.path("again.fs"))
	if got, want := w.read("again.fs"), w.read("Data.fs"); got != want {
		t.Error("what is left restores to something else")
	}
	_, errs = w.want(5, "extend-locks")
	w.says(errs, "no lock is configured")
	// What is needed is missing.
	for _, key := range w.keys("/s/") {
		if err := os.Remove(w.path("repo/" + key)); err != nil {
			t.Fatal(err)
		}
	}
	out, errs = w.want(3, "prune", "--confirm")
	w.says(out, "refused +.*/s/.* is needed and missing")
	w.says(errs, "nothing was deleted or announced")
	out, _ = w.want(3, "prune", "--confirm", "--json")
	w.says(out, `"damaged":true`, `"refused":\["`)
}

// A lineage that was forgotten goes without the wait.
func TestForget(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.addKeys()
	w.want(0, "snapshot")
	w.want(0, "policy", "--publish")
	w.want(0, "rebase", "--confirm")
	w.want(0, "drill")
	w.age(25 * time.Hour)
	out, _ := w.want(0, "forget", "1")
	w.says(out, "Lineage 1 has [0-9]+ objects", "would go ", "Nothing was done")
	out, _ = w.want(0, "forget", "1", "--confirm", "--why", "personal data")
	w.says(out, "Announced by d/", "prune --undo cancels")
	_, errs := w.want(1, "forget", "1", "--confirm")
	w.says(errs, "forgotten already")
	out, _ = w.want(0, "prune", "--confirm")
	w.says(out, "lineage 1 +goes: forgotten", "waiting ")
	w.age(25 * time.Hour)
	w.want(0, "prune", "--confirm")
	if _, errs, code := w.run("info", "--lineage", "1"); code != 2 {
		t.Errorf("lineage 1: %d\n%s", code, errs)
	}
	w.want(2, "forget", "7")
}

// What the commands of a keeper print is printed, or they have failed.
func TestKeeperStdoutFull(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.addKeys()
	w.want(0, "snapshot")
	w.want(0, "rebase", "--confirm")
	w.want(0, "drill")
	w.want(0, "policy", "--publish")
	w.age(25 * time.Hour)
	for _, args := range []string{"prune", "prune --confirm", "prune --undo", "forget 1", "policy", "policy --publish", "policy --iam writer -r s3://backups/site?region=eu-1", "policy --bucket -r s3://backups/site?region=eu-1", "key sign keeper " + w.path("another.key")} {
		var errs bytes.Buffer
		env := &cli.Env{Args: strings.Fields(args), Stdin: strings.NewReader(""), Stdout: full{}, Stderr: &errs, Getenv: func(k string) string { return w.env[k] }}
		if code := cli.Run(t.Context(), env, newCommand); code != 1 || !strings.Contains(errs.String(), "the output is full") {
			t.Errorf("%s: exit code %d\n%s", args, code, &errs)
		}
	}
}

// Holds come from the configuration and act by the policy.
func TestHold(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.addKeys()
	w.want(0, "snapshot")
	out, _ := w.want(0, "info", "--json")
	var doc struct {
		Head struct{ TID string }
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatal(err)
	}
	out, _ = w.want(0, "policy", "--publish", "--set", "hold="+doc.Head.TID+" release 5")
	w.says(out, "hold +"+doc.Head.TID+" .*release 5: lineage [0-9a-f]{32}")
	out, _ = w.want(0, "policy", "--json")
	w.says(out, `"setting":"hold","in_force":"`+doc.Head.TID+` release 5","configured":""`)
	out, _ = w.want(0, "policy")
	w.says(out, "warning +hold .* is in force, and not configured")
	_, errs := w.want(8, "policy", "--publish", "--set", "hold=2099-01-01T00:00:00Z too late")
	w.says(errs, "too late", "not restorable")
	// Options that make no sense.
	for _, args := range [][]string{{"prune", "--undo", "--confirm"}, {"prune", "--force-share", "half"}, {"policy", "--iam", "writer"}, {"policy", "--iam", "root", "-r", "s3://backups/x"}, {"policy", "--publish", "--bucket", "-r", "s3://backups/x"}, {"key", "sign", "king", w.path("x")}} {
		w.want(2, args...)
	}
	_, errs = w.want(1, "key", "sign", "keeper", w.path("keeper.key"))
	w.says(errs, "never overwritten")
	out, _ = w.want(0, "policy", "--iam", "writer", "-r", "s3://backups/site?endpoint=s3.example.org:9000")
	w.says(out, `"s3:PutObject"`, `arn:aws:s3:::backups/site/\*`)
	if strings.Contains(out, "Delete") || strings.Contains(out, "if-none-match") {
		t.Errorf("permissions of a writer:\n%s", out)
	}
	out, _ = w.want(0, "policy", "--iam", "writer", "-r", "s3://backups/site?region=eu-1")
	w.says(out, `"s3:if-none-match"`)
	out, _ = w.want(0, "policy", "--bucket", "-r", "s3://backups/site?region=eu-1")
	w.says(out, `"NoncurrentDays": 35`, `"Prefix": "site/"`)
}

// An error of prune says what was deleted and announced before it, and means the same.
func TestStoppedPrune(t *testing.T) {
	err := stoppedPrune(keeper.ErrCancelled, &keeper.PruneReport{Deleted: keeper.Count{Objects: 1000, Bytes: 5 << 20}, Written: []string{"d/1"}})
	if !errors.Is(err, keeper.ErrCancelled) || !strings.Contains(err.Error(), "1000 objects") || !strings.Contains(err.Error(), "d/1") {
		t.Error(err)
	}
	for _, rep := range []*keeper.PruneReport{nil, {}} {
		if err := stoppedPrune(keeper.ErrCancelled, rep); err != keeper.ErrCancelled {
			t.Error(err)
		}
	}
}

// Damage that extend-locks meets is told when all else is locked, by the exit code too; a daemon learns both.
func TestDamagedLocks(t *testing.T) {
	for _, tt := range []struct {
		name string
		args common
		rep  keeper.LockReport
		code int
		says string
	}{
		{"well", common{}, keeper.LockReport{}, 0, "are needed"},
		{"no policy", common{}, keeper.LockReport{Damage: []string{"no policy"}}, 0, "warning: no policy"},
		{"missing", common{}, keeper.LockReport{Damage: []string{"x/s/1 is needed and missing"}, Damaged: true}, 3, "warning: x/s/1 is needed and missing"},
		{"quiet", common{quiet: true}, keeper.LockReport{Damage: []string{"x/s/1 is needed and missing"}, Damaged: true}, 3, "^warning: x/s/1 is needed and missing\n$"},
		{"json", common{json: true}, keeper.LockReport{Damage: []string{"x/s/1 is needed and missing"}, Damaged: true}, 3, `"damage":\["x/s/1 is needed and missing"\],"damaged":true`},
	} {
		var out, errs bytes.Buffer
		env := &cli.Env{Stdout: &out, Stderr: &errs}
		tt.rep.Least = 20 * 24 * time.Hour
		code := 0
		if exit, ok := errors.AsType[*cli.Exit](tt.args.report(t.Context(), env, tt.args.tellLocks(env, "prod", &tt.rep))); ok {
			code = exit.Code
		}
		if code != tt.code || !regexp.MustCompile(tt.says).MatchString(out.String()) {
			t.Errorf("%s: exit code %d, want %d\n%s%s", tt.name, code, tt.code, &out, &errs)
		}
		if tt.args.json {
			o := outcome("extend-locks", code, out.Bytes(), &lines{})
			if o.Code != "damage" || o.Message != tt.rep.Damage[0] || o.LockLeft == nil || *o.LockLeft != tt.rep.Least {
				t.Errorf("%+v", o)
			}
		}
	}
}
