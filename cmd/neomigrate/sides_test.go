package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

// command runs neomigrate without -c.
func command(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	env := &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err, Getenv: os.Getenv}
	code = cli.Run(ctx, env, newCommand)
	return code, out.String(), err.String()
}

// A cluster may be named by a URI or by a configuration file, on either side.
func TestSides(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 2})
	dir := t.TempDir()
	conf := filepath.Join(dir, "neo.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "[DEFAULT]\ncluster: test\nmasters: %s\n[storage]\ndatabase: x\n", c.Master()), 0o666); err != nil {
		t.Fatal(err)
	}
	typo := filepath.Join(dir, "typo.conf")
	if err := os.WriteFile(typo, fmt.Appendf(nil, "[DEFAULT]\nclustre: test\nmasters: %s\n", c.Master()), 0o666); err != nil {
		t.Fatal(err)
	}
	uri, file := "neo://test@"+c.Master().String(), sample("02-undo.fs")
	for i, args := range [][]string{
		{file, uri},
		{"-f", conf, file, "neo://"},
		{"-f", conf, file, c.Master().String()},
		{"-f", conf, "neo://", filepath.Join(dir, "1.fs")},
		{uri, filepath.Join(dir, "2.fs")},
		{"-c", "test", uri, filepath.Join(dir, "2.fs")},
	} {
		if code, stdout, stderr := command(t.Context(), args...); code != 0 || !strings.Contains(stdout, "Migration done in ") || !strings.HasSuffix(stdout, " s\n") {
			t.Errorf("%d: %q: exit code %d\n%s%s", i, args, code, stdout, stderr)
		}
	}
	for _, name := range []string{"1.fs", "2.fs"} {
		if !bytes.Equal(read(t, filepath.Join(dir, name)), read(t, file)) {
			t.Errorf("%s is not what was copied", name)
		}
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{file, "neo://"}, 2, "-f"},
		{[]string{file, "neo://x"}, 2, "NAME@MASTERS"},
		{[]string{uri, uri}, 2, "both clusters"},
		{[]string{file, file}, 2, "both"},
		{[]string{"-c", "other", file, uri}, 2, "-c says other"},
		{[]string{file, uri + "?wait=1"}, 2, "option wait"},
		{[]string{file, uri + "?read-only=1"}, 2, "option read-only"},
		{[]string{file, "127.0.0.1:1"}, 2, "-c"},
		{[]string{"-f", filepath.Join(dir, "none"), file, "neo://"}, 2, "none"},
		{[]string{"-f", typo, file, "neo://"}, 2, `typo.conf:2: unknown key "clustre"; did you mean "cluster"?`},
		{[]string{"-", uri}, 2, "neither stdin nor stdout"},
		{[]string{uri, "-"}, 2, "neither stdin nor stdout"},
		{[]string{"--blob-dir", dir, uri, filepath.Join(dir, "3.fs")}, 2, "--blob-dir"},
		{[]string{"--blob-dir", filepath.Join(dir, "none"), file, uri}, 1, "none"},
		{[]string{"--window", "0", file, uri}, 2, "--window"},
		{[]string{"-c", "test", file, "host:port"}, 2, "host:port"},
		{[]string{"-c", "test", file, ""}, 2, "empty"},
		{[]string{file, "neo://test@host:port"}, 2, "host:port"},
	} {
		if code, _, stderr := command(t.Context(), tt.args...); code != tt.code || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: exit code %d, want %d and %s\n%s", tt.args, code, tt.code, tt.want, stderr)
		}
	}
}

// --verify compares all records, names what differs, and writes nothing.
func TestVerify(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 3, Storages: 2})
	uri, file := "neo://test@"+c.Master().String(), sample("site.fs")
	if code, _, stderr := command(t.Context(), "-q", file, uri); code != 0 {
		t.Fatal(stderr)
	}
	for _, args := range [][]string{{"--verify", file, uri}, {"--verify", uri, file}} {
		if code, stdout, stderr := command(t.Context(), args...); code != 0 || !regexp.MustCompile(`No difference in \d{2,} transactions with \d{3,} records`).MatchString(stdout) {
			t.Errorf("%q: exit code %d\n%s%s", args, code, stdout, stderr)
		}
	}
	dir := t.TempDir()
	content := read(t, file)
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	changed := write("changed.fs", bytes.Replace(content, []byte("persistent.mapping"), []byte("persistent.Mapping"), 1))
	if bytes.Equal(read(t, changed), content) {
		t.Fatal("nothing is changed")
	}
	other := sample("01-basic.fs")
	for path, want := range map[string]string{
		changed: `transaction [0-9a-f]{16}: object [0-9a-f]{16}: other data of \d+ bytes\n`,
		other:   `transaction [0-9a-f]{16}: missing in the cluster\n`,
	} {
		code, _, stderr := command(t.Context(), "--verify", "-q", path, uri)
		if code != 1 || !regexp.MustCompile(want).MatchString(stderr) || !strings.Contains(stderr, "differences up to transaction") {
			t.Errorf("%s: exit code %d, want %s\n%s", path, code, want, stderr)
		}
	}
	// The cluster goes on: that is said, and no difference.
	begin := write("begin.fs", content[:place(t, file, 20)])
	if code, stdout, stderr := command(t.Context(), "--verify", begin, uri); code != 0 || !strings.Contains(stdout, "The cluster has more, up to ") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("something was written: %v, %v", entries, err)
	}
}

// It is said how many blobs a Data.fs has, and that their files stay behind.
func TestBlobs(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 2})
	dir := t.TempDir()
	file := filepath.Join(dir, "Data.fs")
	if err := os.WriteFile(file, read(t, sample("07-btrees-refs.fs")), 0o666); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"blobs/0x01/0x02.blob": 1_500_000, "blobs/.layout": 6, "elsewhere/1.blob": 3} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	uri := "neo://test@" + c.Master().String()
	_, _, stderr := command(t.Context(), file, uri)
	want := regexp.MustCompile(`Data\.fs: (\d+ records of blobs|1 record of a blob) copied, but not the files with their data, .*blobs has 1 file, 1\.5 MB; keep them`)
	if !want.MatchString(stderr) || strings.Contains(stderr, ": 0 records") {
		t.Errorf("%s", stderr)
	}
	_, _, stderr = command(t.Context(), "--blob-dir", filepath.Join(dir, "elsewhere"), file, uri)
	if !strings.Contains(stderr, "0 records of blobs copied") || !strings.Contains(stderr, "elsewhere has 1 file, 0.0 MB") {
		t.Errorf("again, with another directory: %s", stderr)
	}
	if _, _, stderr = command(t.Context(), sample("01-basic.fs"), "neo://test@"+startCluster(t, simple.Config{Partitions: 1}).Master().String()); strings.Contains(stderr, "blob") {
		t.Errorf("a file without blobs: %s", stderr)
	}
}

// A transaction may be missing among the last ones after the loss of a storage: it is said how the copy goes on then.
func TestGap(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 2})
	file, masters := sample("site.fs"), c.Master().String()
	r, err := fsformat.Open(file, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := openClient(t, c).NewAppender(t.Context(), client.AppenderOptions{})
	var gap tid.TID
	n := 0
	for x, err := range r.Transactions(t.Context(), 0, tid.Max) {
		if n++; n == 20 {
			gap = x.TID
			continue
		}
		if err == nil {
			err = a.Append(x)
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 25 {
			break
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("neoctl truncate 0x%v takes away what follows the gap", gap-1)
	if code, _, stderr := neomigrate(t.Context(), file, masters); code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d, want %s:\n%s", code, want, stderr)
	}
}

// place returns where the nth transaction of a file begins.
func place(t *testing.T, file string, n int) int64 {
	t.Helper()
	r, err := fsformat.Open(file, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for x, err := range r.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		if n--; n < 0 {
			return x.Head.Pos
		}
	}
	t.Fatalf("%s is too short", file)
	return 0
}
