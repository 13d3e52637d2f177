package proctest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// zodbTools are the programs that people have for ZODB: tools/bin in the environment of
// [zeotest.Python].
type zodbTools struct {
	t   *testing.T
	bin string
	dir string
}

func openZODBTools(t *testing.T) *zodbTools {
	t.Helper()
	bin := filepath.Join(filepath.Dir(filepath.Dir(zeotest.Python(t))), "tools", "bin")
	if _, err := os.Stat(filepath.Join(bin, "zodbconvert")); err != nil {
		zeotest.Missing(t, "no tools for ZODB (make install-test-deps): %v", err)
	}
	return &zodbTools{t, bin, t.TempDir()}
}

// run runs a tool, and returns what it printed and its exit code.
func (z *zodbTools) run(tool string, args ...string) (out string, code int) {
	z.t.Helper()
	ctx, cancel := context.WithTimeout(z.t.Context(), runLimit)
	defer cancel()
	cmd := zeotest.Command(ctx, z.t, filepath.Join(z.bin, tool), args...)
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		z.t.Errorf("%s: %v", tool, err)
		return "", -1
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// zodb runs testdata/zodbtools.py, which must succeed, and returns what it writes to stdout.
func (z *zodbTools) zodb(args ...string) string {
	z.t.Helper()
	script, err := filepath.Abs("testdata/zodbtools.py")
	if err != nil {
		z.t.Error(err)
	}
	ctx, cancel := context.WithTimeout(z.t.Context(), runLimit)
	defer cancel()
	cmd := zeotest.Command(ctx, z.t, filepath.Join(z.bin, "python"), append([]string{script}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		z.t.Errorf("%s: %v\n%s", args, err, &stderr)
	}
	return string(out)
}

// file writes a configuration and returns its path.
func (z *zodbTools) file(name, text string, args ...any) string {
	z.t.Helper()
	path := filepath.Join(z.dir, name)
	if err := os.WriteFile(path, fmt.Appendf(nil, text, args...), 0o666); err != nil {
		z.t.Fatal(err)
	}
	return path
}

// zeoServer is ZEO, or neozeo.
type zeoServer struct{ name, addr string }

// python starts ZEO with an empty Data.fs.
func (z *zodbTools) python() *zeoServer {
	z.t.Helper()
	dir := z.t.TempDir()
	addr := fmt.Sprintf("127.0.0.1:%d", FreePort(z.t))
	conf := filepath.Join(dir, "zeo.conf")
	// Without garbage collection, like a cluster.
	text := fmt.Sprintf("<zeo>\n  address %s\n  pid-filename %s/zeo.pid\n</zeo>\n<filestorage 1>\n  path %s/Data.fs\n  pack-gc false\n</filestorage>\n", addr, dir, dir)
	if err := os.WriteFile(conf, []byte(text), 0o666); err != nil {
		z.t.Fatal(err)
	}
	start(z.t, "runzeo", filepath.Join(z.bin, "runzeo"), []string{"-C", conf})
	waitForPort(z.t, addr)
	return &zeoServer{"ZEO", addr}
}

// ours starts neozeo with an empty cluster.
func (z *zodbTools) ours() *zeoServer {
	z.t.Helper()
	masters, addr := fmt.Sprintf("127.0.0.1:%d", FreePort(z.t)), fmt.Sprintf("127.0.0.1:%d", FreePort(z.t))
	Start(z.t, "neosimple", "-q", "--name", "tools", "--storages", "2", "-p", "6", "--dir", z.t.TempDir(), "-m", masters, "--zeo", "none")
	Start(z.t, "neozeo", "-c", "tools", "-m", masters, "-b", addr)
	waitForPort(z.t, addr)
	return &zeoServer{"neozeo", addr}
}

// The tools that people have for ZODB do with neozeo and a cluster what they do with ZEO
// and the same Data.fs: RelStorage's zodbconvert, which is ZODB's copyTransactionsFrom,
// zodb-convert, zeopack, zeo-nagios, multi-zodb-gc, zodbverify and zodbupdate.
func TestZODBTools(t *testing.T) {
	t.Parallel()
	z := openZODBTools(t)
	source := filepath.Join(z.dir, "source.fs")
	z.zodb("make", source)
	history := z.zodb("history", source)
	if !strings.Contains(history, "undone") {
		t.Fatalf("no history:\n%s", history)
	}
	same := func(what, got, want string) {
		t.Helper()
		if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	// Each does the same to both.
	type pair [2]*zeoServer
	both := func(what string, p pair, do func(s *zeoServer) string) (did string) {
		t.Helper()
		var out [2]string
		var wg sync.WaitGroup
		for i, s := range p {
			wg.Go(func() { out[i] = do(s) })
		}
		wg.Wait()
		same(what, out[1], out[0])
		return out[0]
	}
	client := func(s *zeoServer) string { return "<zeoclient%s>\n  server " + s.addr + "\n</zeoclient>\n" }
	convert := func(tool, from, to string) int {
		conf := filepath.Join(t.TempDir(), "convert.conf")
		if err := os.WriteFile(conf, []byte(from+to), 0o666); err != nil {
			t.Error(err)
		}
		words := append(strings.Fields(tool), conf)
		out, code := z.run(words[0], words[1:]...)
		if code != 0 && code != 1 {
			t.Errorf("%s: exit code %d\n%s", tool, code, out)
		}
		return code
	}
	file := func(role, path string) string {
		return fmt.Sprintf("<filestorage %s>\n  path %s\n</filestorage>\n", role, path)
	}
	// One of its own for each: FileStorage locks it.
	sourceOf := func(s *zeoServer) string {
		path := filepath.Join(z.dir, s.name+".fs")
		if err := os.WriteFile(path, read(t, source), 0o666); err != nil {
			t.Error(err)
		}
		return file("source", path)
	}
	server := func(role string, s *zeoServer) string { return fmt.Sprintf(client(s), " "+role) }

	// Into an empty server, into one that has all, and back.
	p := pair{z.python(), z.ours()}
	did := both("zodbconvert", p, func(s *zeoServer) string {
		back := filepath.Join(t.TempDir(), "back.fs")
		codes := fmt.Sprintln(
			convert("zodbconvert", sourceOf(s), server("destination", s)),
			convert("zodbconvert", sourceOf(s), server("destination", s)), // refused: it has data
			convert("zodbconvert --incremental", sourceOf(s), server("destination", s)),
			convert("zodbconvert", server("source", s), file("destination", back)))
		same("zodbconvert into "+s.name, z.zodb("history", s.addr), history)
		same("zodbconvert from "+s.name, z.zodb("history", back), history)
		return codes
	})
	if did != "0 1 0 0\n" {
		t.Errorf("exit codes of zodbconvert: %s", did)
	}
	did = both("zodb-convert", pair{z.python(), z.ours()}, func(s *zeoServer) string {
		back := filepath.Join(t.TempDir(), "back.fs")
		codes := fmt.Sprintln(
			convert("zodb-convert", sourceOf(s), server("destination", s)),
			convert("zodb-convert --incremental", sourceOf(s), server("destination", s)),
			convert("zodb-convert", server("source", s), file("destination", back)))
		same("zodb-convert into "+s.name, z.zodb("history", s.addr), history)
		same("zodb-convert from "+s.name, z.zodb("history", back), history)
		return codes
	})
	if did != "0 0 0\n" {
		t.Errorf("exit codes of zodb-convert: %s", did)
	}

	did = both("zeo-nagios", p, func(s *zeoServer) string {
		out, code := z.run("zeo-nagios", s.addr)
		return fmt.Sprintln(code, out)
	})
	if !strings.HasPrefix(did, "0 OK") {
		t.Errorf("zeo-nagios: %s", did)
	}
	did = both("zodbverify", p, func(s *zeoServer) string { return z.zodb("verify", s.addr) })
	if !strings.Contains(did, "Found 0 records that could not be loaded") || !strings.Contains(did, "47 objects True") {
		t.Errorf("zodbverify: %s", did)
	}
	database := func(s *zeoServer) string {
		return z.file(s.name+".conf", "<zodb main>\n%s</zodb>\n", fmt.Sprintf(client(s), ""))
	}
	did = both("zodbupdate -n", p, func(s *zeoServer) string {
		conf := filepath.Join(t.TempDir(), "storage.conf")
		if err := os.WriteFile(conf, []byte(fmt.Sprintf(client(s), "")), 0o666); err != nil {
			t.Error(err)
		}
		out, code := z.run("zodbupdate", "-n", "-c", conf)
		return fmt.Sprintln(code, regexp.MustCompile(`\d+`).ReplaceAllString(out, "N")) // ports, process ids
	})
	if !strings.HasPrefix(did, "0 ") {
		t.Errorf("zodbupdate: %s", did)
	}
	did = both("zeopack", p, func(s *zeoServer) string {
		out, code := z.run("zeopack", "-d", "0", s.addr)
		return fmt.Sprintln(code, out, z.zodb("current", s.addr))
	})
	if packed := regexp.MustCompile(`(?m)^2 \S+ \S+ (\d+)$`).FindStringSubmatch(did); !strings.HasPrefix(did, "0 ") || packed == nil || packed[1] != "1" {
		t.Errorf("zeopack has left revisions of object 2: %s", did)
	}
	// What old revisions refer to is no garbage: the pack comes first.
	did = both("multi-zodb-gc", p, func(s *zeoServer) string {
		out, code := z.run("multi-zodb-gc", "-d", "0", database(s))
		return fmt.Sprintln(code, out, z.zodb("current", s.addr))
	})
	if !strings.HasPrefix(did, "0 ") || strings.Contains(did, "\n45 ") || !strings.Contains(did, "\n44 ") {
		t.Errorf("multi-zodb-gc has not removed objects 45 and 46, or others: %s", did)
	}
}
