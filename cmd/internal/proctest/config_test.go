package proctest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cmd/internal/cli"
)

// The keys of configuration files are the options of the programs: none is missing in the
// table by which all programs know them, and none is left there of an option that is gone.
func TestKeysAreOptions(t *testing.T) {
	t.Parallel()
	never := []string{"help", "version", "section", "config"}
	option := regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z][a-z-]*)`)
	for program, listed := range cli.Keys() {
		help, _, _ := Run(t, program, "--help")
		var has []string
		for _, m := range option.FindAllStringSubmatch(help, -1) {
			if !slices.Contains(never, m[1]) && !(m[1] == "file" && program != "neozeo") {
				has = append(has, strings.ReplaceAll(m[1], "-", "_"))
			}
		}
		for _, key := range has {
			if !slices.Contains(listed, key) {
				t.Errorf("%s has the option of key %q, which programKeys in cmd/internal/cli/keys.go does not list", program, key)
			}
		}
		for _, key := range listed {
			if !slices.Contains(has, key) {
				t.Errorf("%s has no option of key %q, which programKeys in cmd/internal/cli/keys.go lists", program, key)
			}
		}
		if len(has) < 10 {
			t.Errorf("%s: only %d options found in its help", program, len(has))
		}
	}
}

// example writes an example file into a directory, with its paths and ports replaced, and
// returns where it is.
func example(t *testing.T, dir, name string, replace ...string) string {
	t.Helper()
	text := strings.NewReplacer(append(replace, "/var/lib/neo", dir, "/var/lib/zope", dir)...).Replace(string(read(t, "../../../"+name+".example")))
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A cluster starts from neo.conf.example as it is, and one that imports from
// importer.conf.example.
func TestExampleFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var replace []string
	port := map[string]string{}
	for _, p := range []string{"127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:8100"} {
		port[p] = fmt.Sprintf("127.0.0.1:%d", FreePort(t))
		replace = append(replace, p, port[p])
	}
	file := example(t, dir, "neo.conf", replace...)
	if err := os.WriteFile(filepath.Join(dir, "Data.fs"), read(t, samples+"/site.fs"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Name: "test", Admin: port["127.0.0.1:9999"]}
	run := func(storages ...[]string) {
		nodes := []*Process{Start(t, "neomaster", "-f", file)}
		for _, more := range storages {
			nodes = append(nodes, Start(t, "neostorage", append([]string{"-f", file}, more...)...))
		}
		nodes = append(nodes, Start(t, "neoadmin", "-f", file))
		c.WaitState(t, "RECOVERING", patience)
		for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			if out, _, _ := c.Ctl(t, "print", "node", "storage"); strings.Count(out, "PENDING") == len(storages) {
				must(t, "neoctl", "-a", c.Admin, "start")
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the cluster does not start")
			}
		}
		c.WaitState(t, "RUNNING", patience)
		zeo := Start(t, "neozeo", "-f", file)
		waitForOutput(t, zeo, "ready")
		if err := zeo.Stop(t); err != nil {
			t.Errorf("neozeo ended with %v", err)
		}
		c.Ctl(t, "set", "cluster", "STOPPING")
		for _, p := range append(nodes, zeo) {
			if err := p.Wait(t, patience); err != nil {
				t.Errorf("%s ended with %v", p.Name, err)
			}
			out := p.Output()
			if strings.Contains(out, "WARNING") || strings.Contains(out, "ERROR") || strings.Count(out, "\n") > 24 {
				t.Errorf("%s has a quiet life, but wrote:\n%s", p.Name, out)
			}
			says(t, p.Name, out, "INFO     listening on addr=127", "INFO     ready ", "INFO     stopped\n$")
		}
	}
	run([]string{"-s", "storage1"}, []string{"-s", "storage2"})
	if t.Failed() {
		return
	}
	importer := example(t, dir, "importer.conf")
	// The example has one cluster; this is another one, of one storage.
	run([]string{"-s", "storage1", "-a", "Importer", "-d", importer})
}

// waitForOutput waits until a program has printed a text.
func waitForOutput(t testing.TB, p *Process, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(p.Output(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not print %q", p.Name, text)
		}
	}
}
