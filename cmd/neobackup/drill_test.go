package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup/snapshot"
)

// prepareDrill makes a repository with a snapshot, and what drills need: their key, an identity
// of an operator, a scratch directory.
func (w *world) prepareDrill() {
	w.t.Helper()
	w.prepare("site.fs")
	w.want(0, "snapshot")
	verifier, _ := w.want(0, "key", "sign", "drill", w.path("drill.key"))
	if err := os.Mkdir(w.path("scratch"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	conf := w.read("neobackup.conf")
	conf = strings.Replace(conf, "verify_keys:", "verify_keys:\n  "+strings.TrimSpace(verifier)+"\n ", 1)
	w.write("neobackup.conf", conf+"[drill prod]\nidentity: "+w.path("op1.txt")+"\nsign_key: "+w.path("drill.key")+"\nscratch: "+w.path("scratch")+"\nmode: file\n", 0o644)
}

// A drill proves the backup, and info and list say until when.
func TestDrill(t *testing.T) {
	w := newWorld(t)
	w.prepareDrill()
	out, _ := w.want(0, "info")
	w.says(out, `proven +by no drill yet`, `status +ok`)
	w.want(9, "info", "--fail", "--set", "proof_max_age=8d")
	out, stderr := w.want(0, "drill")
	w.says(out, `^proven +prod until 040660ee3597d844  2026-01-22 16:14:12, the head\n`, `mode +file`, `compared +\d+ segments, 334 transactions, 2142 records, \d+ kB of text|MB of text`,
		`source +equal in 334 transactions up to 040660ee3597d844`, `objects +\d+ of \d+ byte by byte; of \d+ references, 0 lead to no object`, `first read +\d`, `epochs +0001 opened`, `proof +[0-9a-f]{32}/p/\d{8}T\d{6}Z-040660ee3597d844`)
	if strings.Contains(stderr, "warning") {
		t.Error(stderr)
	}
	out, _ = w.want(0, "info", "--fail", "--set", "proof_max_age=8d")
	w.says(out, `proven +until 040660ee3597d844  2026-01-22 16:14:12, by the drill of 20\d\d-.* \d+s ago \(file\)`)
	out, _ = w.want(0, "list")
	w.says(out, `^prod  ok  2026-01-22 16:14:12  \d+s ago  2026-01-22 16:14:12  `)

	out, _ = w.want(0, "drill", "--json", "--mode", "cluster")
	var doc struct {
		V, K                                  int
		Repository, Mode, Result, Key, Source string
		TID                                   string
		Head                                  bool
		Compared                              snapshot.Compared
		Objects                               int `json:"objects_compared"`
		Dangling, Gets                        *int
		FirstRead                             *int `json:"first_read_ms"`
		Epochs                                []string
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.V != 1 || doc.K != 1 || doc.Repository != "prod" || doc.Mode != "cluster" || doc.Result != "ok" || doc.Head || doc.TID == "040660ee3597d844" ||
		doc.Compared.Segments == 0 || doc.Compared.Source != "digest" || doc.Objects == 0 || doc.Dangling == nil || doc.FirstRead == nil || doc.Gets == nil || len(doc.Epochs) != 1 || doc.Key == "" {
		t.Errorf("document %s: %v", out, err)
	}
	out, _ = w.want(0, "info")
	w.says(out, `proven +until 040660ee3597d844  .*\(file\)\n +and at `+doc.TID+`  .*\(cluster\)`)
	out, _ = w.want(0, "list")
	w.says(out, `^prod  ok  2026-01-22 16:14:12  \d+s ago  2026-01-22 16:14:12  `)
	out, _ = w.want(0, "drill", "--mode", "read", "--at", "2026-01-15", "--no-source", "--keep")
	w.says(out, `a moment`, `mode +read`, `source +not compared`, `kept +`+w.path("scratch")+`/neobackup-kept-`)
	if out, _ := w.want(0, "drill", "-q", "--at", "latest"); out != "" {
		t.Errorf("quiet: %s", out)
	}
	entries, err := os.ReadDir(w.path("scratch"))
	if err != nil || len(entries) != 1 {
		t.Errorf("scratch: %v, %v", entries, err)
	}
}

// A drill that fails says so in the repository: info names it until one goes well again.
func TestDrillFails(t *testing.T) {
	w := newWorld(t)
	w.prepareDrill()
	w.want(0, "drill")
	source := w.read("Data.fs")
	w.write("Data.fs", source[:len(source)/2], 0o600)
	out, stderr := w.want(3, "drill", "--at", "latest")
	w.says(out+stderr, `FAILED +prod until 040660ee3597d844`, `error: the restored data differ from the repository: the source ends with`, `proof +`)
	out, _ = w.want(0, "info")
	w.says(out, `status +the drill of .* failed: the restored data differ`, `proven +until 040660ee3597d844`, `drill failed +.*the source ends with`)
	w.want(9, "info", "--fail", "--set", "proof_max_age=8d")
	out, _ = w.want(0, "list")
	w.says(out, `^prod  unproven  `)
	var doc struct {
		V      int
		Result string
		Key    string
		Error  failure
	}
	out, _ = w.want(3, "drill", "--at", "latest", "--json")
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.V != 1 || doc.Result != "failed" || doc.Key == "" || doc.Error.Exit != 3 || doc.Error.Code != "damage" {
		t.Errorf("document %s: %v", out, err)
	}
	w.write("Data.fs", source, 0o600)
	w.want(0, "drill")
	out, _ = w.want(0, "info")
	w.says(out, `status +ok`)
	if strings.Contains(out, "drill failed") {
		t.Error(out)
	}
	// Without the source, it says so.
	if err := os.Remove(w.path("Data.fs")); err != nil {
		t.Fatal(err)
	}
	out, stderr = w.want(0, "drill", "--at", "latest")
	w.says(out+stderr, `source +not compared: .*no such file`, `warning: the source was not compared`)
}

// What a drill lacks is named with the line of the configuration, and what makes it.
func TestDrillNeeds(t *testing.T) {
	w := newWorld(t)
	w.prepareDrill()
	conf := w.read("neobackup.conf")
	w.want(0, "key", "generate", w.path("other.txt"))
	w.want(0, "key", "sign", "drill", w.path("other.key"), "--name", "prod")
	without := func(name, key string) string {
		var lines []string
		for _, l := range strings.Split(conf, "\n") {
			if !strings.HasPrefix(l, key+": ") || key == "sign_key" && strings.Contains(l, "writer") {
				lines = append(lines, l)
			}
		}
		return w.write(name, strings.Join(lines, "\n"), 0o644)
	}
	bad := func(name, old, new string) string { return w.write(name, strings.Replace(conf, old, new, 1), 0o644) }
	for _, tt := range []struct {
		name string
		code int
		args string
		want string
	}{
		{"no scratch", 2, "-f " + without("c1", "scratch"), `(?s)error: \[drill prod\]: there is no scratch directory.*\nhint: give --scratch`},
		{"no identity", 2, "-f " + without("c2", "identity"), `(?s)error: \[drill prod\]: .*encrypted, and there is no identity\nhint: write identity: FILE into \[drill prod\].*neobackup key generate FILE`},
		{"no sign key", 2, "-f " + without("c3", "sign_key"), `(?s)error: \[drill prod\]: there is no sign_key.*\nhint: "neobackup key sign drill FILE" makes a key: write sign_key: FILE into \[drill prod\].*verify_keys`},
		{"missing key", 2, "-f " + bad("c4", "drill.key", "none.key"), `c4:\d+: sign_key: .*none.key: no such file`},
		{"key of the writer", 2, "-f " + bad("c5", "drill.key", "prod-writer.key"), `c5:\d+: sign_key: .*has the key prod/writer, want one of the role drill`},
		{"key not trusted", 2, "--sign-key " + w.path("other.key"), `the key prod/drill is not trusted here.*verify_keys`},
		{"missing identity", 2, "-f " + bad("c6", "op1.txt", "none.txt"), `c6:\d+: identity: .*none.txt: no such file`},
		{"scratch is not there", 2, "--scratch " + w.path("none"), `scratch directory: .*none: no such file`},
		{"mode", 2, "--mode tape", `want file, cluster or read`},
		{"moment", 2, "--at tomorrow", `--at: `},
		{"not exact", 8, "--at 2030-01-01", `(?s)not restorable.*hint: the nearest`},
		{"wrong identity", 4, "-i " + w.path("other.txt"), `(?s)epoch 0001: no identity opens it.*hint: give the identity`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := *w
			w.t = t
			_, stderr := w.want(tt.code, append([]string{"drill"}, strings.Fields(tt.args)...)...)
			w.says(stderr, tt.want)
		})
	}
	entries, err := filepath.Glob(w.path("scratch/*"))
	if err != nil || len(entries) > 0 {
		t.Errorf("scratch: %v, %v", entries, err)
	}
	if list := w.keys(`/p/`); len(list) != 1 { // the wrong identity
		t.Errorf("proofs: %v", list)
	}
}
