package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// verifier returns the key that verifies what the writer signs.
func (w *world) verifier() string {
	w.t.Helper()
	return regexp.MustCompile(`prod/writer\+\S+`).FindString(w.read("neobackup.conf"))
}

// A copy restores what the repository does, is brought up to date, and takes its place; what is no copy is refused.
func TestCopyCommand(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	list := w.tids("Data.fs")
	w.want(0, "snapshot", "--at", list[100])
	if err := os.Mkdir(w.path("copy"), 0o700); err != nil {
		t.Fatal(err)
	}
	to := "file://" + w.path("copy")
	out, _ := w.want(0, "copy", "--plan", "prod", to)
	w.says(out, `\d+ objects, .* would be copied; 0, 0 B, are there already`, `would have everything up to `+list[100], `Nothing was copied`)
	if entries, err := os.ReadDir(w.path("copy")); err != nil || len(entries) > 0 {
		t.Errorf("a plan has written: %v, %v", entries, err)
	}
	out, _ = w.want(0, "copy", "prod", to, "--verify")
	w.says(out, `\d+ objects, .* were copied, and read again; 0, 0 B, were there already`, `the copy has everything up to `+list[100])
	w.want(0, "snapshot")
	out, _ = w.want(0, "copy", "prod", to, "--json")
	w.says(out, `"first":false`, `"copied":\{"objects":[1-9]`, `"head":\{"tid":"`+siteLast, `"left_out":\{"`, `"v":1`)
	out, _ = w.want(0, "copy", "prod", to)
	w.says(out, `0 objects, 0 B, were copied; `)
	// As after the loss of everything else.
	args := []string{"-r", to, "--verify-key", w.verifier()}
	env := w.env["NEOBACKUP_CONFIG"]
	w.env["NEOBACKUP_CONFIG"] = ""
	w.want(0, append([]string{"restore", "-i", w.path("op1.txt"), w.path("x.fs")}, args...)...)
	if w.read("x.fs") != w.read("Data.fs") {
		t.Error("the restored file differs")
	}
	out, _ = w.want(0, append([]string{"check"}, args...)...)
	w.says(out, `(?m)^found +0 faults`)
	w.env["NEOBACKUP_CONFIG"] = env

	// Another provider: the writer goes on with the copy, and the old place is not copied over it any more.
	old := w.read("neobackup.conf")
	w.write("neobackup.conf", strings.Replace(old, "url: file://"+w.path("repo"), "url: "+to, 1), 0o644)
	w.commit("Data.fs", 0x0500000000000000, "with the new provider")
	out, _ = w.want(0, "snapshot")
	w.says(out, `everything up to 0500000000000000 .*: 1 transactions more`)
	w.write("neobackup.conf", old, 0o644)
	w.env["XDG_STATE_HOME"] = w.path("another-host")
	w.write("neobackup.conf", regexp.MustCompile(`(?m)^state_dir:.*\n`).ReplaceAllString(old, ""), 0o644)
	_, stderr := w.want(7, "copy", "prod", to)
	w.says(stderr, `not an earlier state`, `hint: a writer has added to TO`)
	// But the other way round.
	w.write("neobackup.conf", regexp.MustCompile(`(?m)^state_dir:.*\n`).ReplaceAllString(old, "")+"\n[repository new]\nurl: "+to+"\nverify_keys: "+w.verifier()+"\n", 0o644)
	out, _ = w.want(0, "copy", "new", "prod")
	w.says(out, `the copy has everything up to 0500000000000000`)

	// A repository with a gap is copied up to it, which is damage all the same.
	w.commit("Data.fs", 0x0500000000000001, "one")
	w.want(0, "snapshot", "-r", "prod")
	if err := os.Mkdir(w.path("part"), 0o700); err != nil {
		t.Fatal(err)
	}
	tails := w.keys(`/t/`)
	last := must(os.ReadFile(w.path("repo/" + tails[len(tails)-1])))
	next := regexp.MustCompile(`.{10}$`).ReplaceAllString(tails[len(tails)-1], "0000000fff")
	w.write("repo/"+next, string(last), 0o600)
	out, stderr = w.want(3, "copy", "prod", "file://"+w.path("part"))
	w.says(out+stderr, `the copy has everything up to 0500000000000001`, `the chain of tails is broken`)
	out, _ = w.want(3, "copy", "prod", "file://"+w.path("part"), "--json")
	w.says(out, `^\{"v":1.*"broken":"[^"]*the chain of tails is broken.*\}\n$`)
	if err := os.Remove(w.path("repo/" + next)); err != nil {
		t.Fatal(err)
	}

	// What is no place for a copy.
	w.write("foreign/a", "x", 0o600)
	_, stderr = w.want(2, "copy", "prod", "file://"+w.path("foreign"))
	w.says(stderr, `not empty: it has a`)
	w.want(2, "copy", "prod", "prod")
	w.want(2, "copy", "prod")
	w.want(2, "copy", "-r", "prod", "prod", to)
	w.want(2, "copy", "prod", "file://"+w.path("none"))
}

// A copy with other keys: what the old identities and the old key of the writer were worth ends there.
func TestReencryptCommand(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	list := w.tids("Data.fs")
	w.want(0, "snapshot", "--at", list[100])
	if err := os.Mkdir(w.path("new"), 0o700); err != nil {
		t.Fatal(err)
	}
	carol := strings.TrimSpace(first(w.want(0, "key", "generate", w.path("carol.txt"))))
	dave := strings.TrimSpace(first(w.want(0, "key", "generate", w.path("dave.txt"))))
	w.want(0, "init", "file://"+w.path("new"), "-f", w.path("new.conf"), "--name", "new", "--recipient", carol, "--recipient", dave)
	w.write("neobackup.conf", w.read("neobackup.conf")+"\n"+w.read("new.conf"), 0o644)
	_, stderr := w.want(4, "copy", "--reencrypt", "prod", "new")
	w.says(stderr, `no identity was given`)
	id := w.path("op1.txt")
	out, _ := w.want(0, "copy", "--reencrypt", "-i", id, "prod", "new")
	w.says(out, `new has everything up to `+list[100]+` .*: 101 transactions more`)
	w.want(0, "snapshot", "-r", "prod")
	out, _ = w.want(0, "copy", "--reencrypt", "-i", id, "prod", "new", "--json")
	w.says(out, `"repository":"new"`, `"transactions":233`)
	w.want(4, "restore", "-r", "new", "-i", id, w.path("x.fs"))
	w.want(0, "restore", "-r", "new", "-i", w.path("carol.txt"), w.path("x.fs"))
	if w.read("x.fs") != w.read("Data.fs") {
		t.Error("the restored file differs")
	}
	out, _ = w.want(0, "info", "-r", "new")
	w.says(out, `prod/[0-9a-f]{32}`)
	for _, args := range [][]string{{"check"}, {"verify", "-i", w.path("dave.txt")}} {
		out, _ = w.want(0, append(args, "-r", "new")...)
		w.says(out, `(?m)^found:? +0 faults, 0 warnings`)
	}
	_, stderr = w.want(2, "copy", "--reencrypt", "-i", id, "prod", "file://"+w.path("new"))
	w.says(stderr, `names its sign_key`)
	// The new one cannot become a copy of something else.
	w.want(2, "copy", "new", "file://"+w.path("repo"))
	// The writer of the database goes on with it.
	w.commit("Data.fs", 0x0500000000000000, "new")
	out, _ = w.want(0, "snapshot", "-r", "new", "--source", w.path("Data.fs"))
	w.says(out, `everything up to 0500000000000000 .*: 1 transactions more`)
}
