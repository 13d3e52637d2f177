package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/importer/config"
)

func planCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	env := &cli.Env{Args: append([]string{"plan"}, args...), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err, Getenv: os.Getenv}
	code = cli.Run(t.Context(), env, newCommand)
	return code, out.String(), err.String()
}

// The proposal is on stdout, and is read again as it is; the report is on stderr.
func TestPlan(t *testing.T) {
	dir := t.TempDir()
	dest := filepath.Join(dir, "neo.sqlite")
	code, out, report := planCommand(t, sample("site.fs"), "-d", dest)
	if code != 0 || !strings.Contains(report, "Nothing keeps the import from beginning") || !strings.Contains(report, "From a sample: ") {
		t.Fatalf("exit %d\n%s", code, report)
	}
	imp, err := config.Parse(strings.NewReader(out), "importer.conf")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want, _ := filepath.Abs(sample("site.fs")); imp.Destination.Database != dest || imp.Sources[0].Storage.File.Path != want || imp.Sources[0].Section != "site" {
		t.Errorf("%+v", imp)
	}

	// A file that exists stays as it is.
	conf := filepath.Join(dir, "importer.conf")
	if code, out, stderr := planCommand(t, "main="+sample("site.fs"), "-d", dest, "-o", conf, "--fast"); code != 0 || !strings.Contains(out, conf+" is written") {
		t.Fatalf("exit %d\n%s%s", code, out, stderr)
	}
	first := read(t, conf)
	if code, _, stderr := planCommand(t, sample("01-basic.fs"), "-d", dest, "-o", conf); code != 1 || !strings.Contains(stderr, "--force") || !bytes.Equal(read(t, conf), first) {
		t.Errorf("exit %d, %s", code, stderr)
	}
	// It is a source itself, and --force replaces it.
	if code, _, stderr := planCommand(t, conf, "-o", conf, "--force"); code != 0 || !bytes.Equal(read(t, conf), first) {
		t.Errorf("exit %d, %s\n%s", code, stderr, read(t, conf))
	}
	if code, _, stderr := planCommand(t, conf, "-a", "MySQL"); code != 2 || !strings.Contains(stderr, "need --destination") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("%v, %v: want importer.conf alone", list, err)
	}
}

func TestPlanDecisions(t *testing.T) {
	dest := filepath.Join(t.TempDir(), "neo.sqlite")
	args := []string{"main=" + sample("07-btrees-refs.fs"), "-d", dest}
	code, out, report := planCommand(t, args...)
	if code != 1 || !strings.Contains(report, "To be decided or repaired before the import") || !strings.Contains(out, "# TO DO: main: 6 references to database other") {
		t.Errorf("exit %d\n%s\n%s", code, out, report)
	}
	if code, out, stderr := planCommand(t, append(args, "--keep", "other", "--without-blobs")...); code != 0 || strings.Contains(out, "TO DO") {
		t.Errorf("exit %d\n%s\n%s", code, out, stderr)
	}
	code, out, stderr := planCommand(t, append(args, "--json", "zeo://127.0.0.1:1/x", "--wait", "0.1")...)
	var p struct {
		Findings []struct{ Level, Text, Do string }
		Config   string
		Estimate struct {
			Destination struct{ Likely float64 } `json:"destination_bytes"`
		}
	}
	if err := json.Unmarshal([]byte(out), &p); err != nil || strings.Count(out, "\n") != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	if code != 1 || len(p.Findings) == 0 || p.Findings[0].Level != "must" || p.Config == "" || p.Estimate.Destination.Likely == 0 || stderr != "" {
		t.Errorf("exit %d, %+v, %s", code, p, stderr)
	}
}

func TestPlanUsage(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "requires at least 1 arg"},
		{"--help", 0, "Exit status"},
		{sample("01-basic.fs") + " --force", 2, "--force is for --output"},
		{sample("01-basic.fs") + " " + sample("01-basic.fs"), 2, "two sources have the name 01-basic"},
		{sample("01-basic.fs") + " --mount x=y", 2, "no mount point"},
		{sample("01-basic.fs") + " --wait 0", 2, "more than 0"},
		{sample("01-basic.fs") + " --adapter DB2", 2, "unknown adapter"},
		{sample("01-basic.fs") + " --adapter MySQL --engine TokuDB", 2, "unsupported engine TokuDB"},
		{sample("01-basic.fs") + " --destination file:x?y=1", 2, "unknown parameter y"},
		{sample("01-basic.fs") + " --engine InnoDB", 2, "SQLite has none"},
		{"zeo://", 2, "want zeo://HOST:PORT"},
		{"neo://x", 2, "NAME@MASTERS"},
		{"not-there.fs", 1, "not-there.fs: no such file"},
		{"a=not-there.fs", 1, "not-there.fs: no such file"},
	} {
		if code, out, stderr := planCommand(t, strings.Fields(tt.args)...); code != tt.code || !strings.Contains(out+stderr, tt.want) {
			t.Errorf("%q: exit %d, %s%s", tt.args, code, out, stderr)
		}
	}
}
