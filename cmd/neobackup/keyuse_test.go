package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// objects returns what is stored, but for wraps that were added.
func (w *world) objects() map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for _, key := range w.keys("") {
		b, err := os.ReadFile(filepath.Join(w.path("repo"), key))
		if err != nil {
			w.t.Fatal(err)
		}
		all[key] = string(b)
	}
	return all
}

// One of two operators has lost the identity: the other one lets a third one read everything, old and new,
// and no data are written again.
func TestKeyRotate(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	list := w.tids("Data.fs")
	w.want(0, "snapshot", "--at", list[100])
	w.want(0, "snapshot", "--at", list[200])
	if err := os.Remove(w.path("op2.txt")); err != nil {
		t.Fatal(err)
	}
	alice := regexp.MustCompile(`age1\S+`).FindString(w.read("op1.txt"))
	carol := strings.TrimSpace(first(w.want(0, "key", "generate", w.path("carol.txt"))))
	out, _ := w.want(0, "key", "list")
	w.says(out, `epoch 0001 of .*: 2 segments, .*; 1 wraps of its key; in use`, `(?m)^  `+alice)

	args := []string{"key", "rotate", "-i", w.path("op1.txt"), "--recipient", alice, "--recipient", carol}
	before := w.objects()
	out, _ = w.want(0, append(args, "--test", w.path("carol.txt"))...)
	w.says(out, `epoch 0001 .*its key would be encrypted to 2 recipients`, `Nothing was done: --confirm`)
	_, stderr := w.want(2, "key", "rotate", "-i", w.path("op1.txt"), "--recipient", carol)
	w.says(stderr, `one recipient`)
	w.want(0, "key", "generate", w.path("dave.txt"))
	_, stderr = w.want(2, append(args, "--test", w.path("dave.txt"))...)
	w.says(stderr, `is none of the recipients`)
	_, stderr = w.want(4, "key", "rotate", "-i", w.path("dave.txt"), "--recipient", alice, "--recipient", carol, "--untested", "--confirm")
	w.says(stderr, `epoch 0001: no identity opens it`)
	if len(w.objects()) != len(before) {
		t.Fatal("something was written")
	}
	out, _ = w.want(0, append(args, "--test", w.path("carol.txt"), "--confirm")...)
	w.says(out, `encrypted to 2 recipients in keys/0001.0002, and was opened by 2 of their identities`, `No data were written again`, `(?m)^recipients:\n  `+alice+`\n  `+carol)
	after := w.objects()
	if len(after) != len(before)+1 {
		t.Errorf("%d objects more, want a wrap", len(after)-len(before))
	}
	for key, b := range before {
		if after[key] != b {
			t.Errorf("%s was written again", key)
		}
	}
	out, _ = w.want(0, append(args, "--test", w.path("carol.txt"), "--confirm", "--json")...)
	w.says(out, `"already":true`, `"confirmed":true`, `"writer_to_be_changed":true`)

	// The writer is told, and a new epoch begins.
	conf := regexp.MustCompile(`(?m)^recipients:\n(  age1\S+\n)+`).ReplaceAllString(w.read("neobackup.conf"), "recipients:\n  "+alice+"\n  "+carol+"\n")
	w.write("neobackup.conf", conf, 0o644)
	w.want(0, "snapshot")
	out, _ = w.want(0, "key", "list", "--json")
	w.says(out, `"kid":"0001".*"wraps":2.*"kid":"0002".*"newest":true`)
	for _, id := range []string{"op1.txt", "carol.txt"} {
		out, _ = w.want(0, "key", "check", "-i", w.path(id))
		w.says(out, `epoch 0001 .*: opened; 2 recipients`, `epoch 0002 .*: opened; 2 recipients`)
		w.want(0, "restore", "-i", w.path(id), w.path(id+".fs"))
		if w.read(id+".fs") != w.read("Data.fs") {
			t.Errorf("%s: the restored file differs", id)
		}
	}
	out, _ = w.want(0, "key", "rotate", "-i", w.path("carol.txt"), "--confirm")
	w.says(out, `epoch 0001 .*its key is for these recipients already`, `epoch 0002 .*its key is for these recipients already`)
	if strings.Contains(out, "recipients:\n") {
		t.Errorf("the writer has them already: %s", out)
	}

	// One who came later opens what is stored from then on, and the rest is named.
	dave := regexp.MustCompile(`age1\S+`).FindString(w.read("dave.txt"))
	w.write("neobackup.conf", strings.Replace(conf, alice, dave, 1), 0o644)
	w.commit("Data.fs", 0x0500000000000000, "new")
	w.want(0, "snapshot")
	out, stderr = w.want(4, "key", "check", "-i", w.path("dave.txt"))
	w.says(out, `epoch 0001 .*: NOT opened`, `epoch 0003 .*: opened`)
	w.says(stderr, `epoch 0001: no identity opens it of those given; it is encrypted to .* at first, and 1 times to others since`, `epoch 0002: `)
	out, _ = w.want(4, "key", "check", "-i", w.path("dave.txt"), "--json")
	w.says(out, `"kid":"0001".*"opens":false.*"kid":"0003".*"opens":true`)
	out, stderr = w.want(4, "key", "rotate", "-i", w.path("dave.txt"), "--recipient", dave, "--recipient", carol, "--confirm")
	w.says(out, `epoch 0001 .*NOT opened`, `epoch 0003 .*already`)
	w.says(stderr, `epoch 0001: `)
	out, _ = w.want(0, "check")
	w.says(out, `(?m)^found +0 faults, 0 warnings`)
}
