// The tests of the module as a whole: which package may import which, as
// docs/architecture.md explains it, that each package says what it is, and that the links of the
// documentation lead somewhere.
package neo_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/neozodb/neo"

// layers says which packages of ours each package may import, beside those that
// these may import in turn. Arrows never point up: a package is listed after all
// that it names. A package that is not listed may not exist; internal packages
// and commands take the rule of the directory they are in.
var layers = []struct{ name, may string }{
	{"cluster/testlog", ""},
	{"cluster/tid", ""},
	{"cluster/txn", "cluster/tid"},
	{"cluster/msgpack", ""},
	{"fsformat/pickle", ""},
	{"cluster/proto", "cluster/tid cluster/msgpack"},
	{"cluster/check", "cluster/proto"},
	{"cluster/importing", "cluster/proto"},
	{"cluster/following", "cluster/proto"},
	{"cluster/parting", "cluster/proto"},
	{"cluster/vitals", "cluster/proto"},
	{"cluster/deflate", "cluster/proto"},
	{"cluster/conf", ""},
	{"cluster/moment", "cluster/conf cluster/tid"},
	{"cluster/pace", ""},
	{"cluster/latency", ""},
	{"cluster/nodelog", ""},
	{"cluster/internal", "cluster/proto"},
	{"cluster/socket", ""},
	{"cluster/monitor", ""},
	{"cluster/systemd", ""},
	{"cluster/nodetab", "cluster/proto"},
	{"cluster/parttab", "cluster/proto"},
	{"cluster/link", "cluster/proto cluster/socket"},
	{"cluster/bootstrap", "cluster/link cluster/nodetab"},
	{"cluster/master", "cluster/latency cluster/bootstrap cluster/parttab cluster/check cluster/importing cluster/following cluster/vitals cluster/parting"},
	{"cluster/storage/backend", "cluster/txn cluster/importing"},
	{"cluster/storage/backendtest", "cluster/storage/backend"},
	{"cluster/storage/pending", "cluster/storage/backend"},
	{"cluster/storage/replica", "cluster/storage/backend cluster/nodetab cluster/parttab cluster/check"},
	{"importer/state", "cluster/tid fsformat/pickle"},
	{"importer/config", "cluster/moment importer/state"},
	{"cluster/storage/sqldb", "cluster/storage/backend importer/state cluster/conf"},
	{"cluster/storage/sqldbtest", "cluster/storage/sqldb cluster/storage/backendtest"},
	{"cluster/storage/sqlitedb", "cluster/storage/sqldb"},
	{"cluster/storage/mysqldb", "cluster/storage/sqldb"},
	{"cluster/storage", "cluster/latency cluster/bootstrap cluster/parttab cluster/check cluster/importing cluster/following cluster/vitals cluster/parting cluster/pace cluster/storage/backend cluster/storage/pending cluster/storage/replica"},
	{"cluster/client", "cluster/bootstrap cluster/parttab cluster/txn cluster/deflate"},
	{"cluster/admin", "cluster/bootstrap cluster/parttab cluster/check cluster/importing cluster/following cluster/vitals"},
	{"cluster/ctl", "cluster/link cluster/check cluster/importing cluster/following cluster/vitals"},
	{"cluster/status", "cluster/ctl"},
	{"cluster/monitor/page", "cluster/status"},
	{"fsformat", "cluster/txn fsformat/pickle"},
	{"fsformat/zdump", "cluster/txn"},
	{"cluster/zeo/wire", "cluster/tid"},
	{"cluster/zeo/zeoclient", "cluster/zeo/wire cluster/txn"},
	{"cluster/zeo", "cluster/zeo/wire cluster/socket cluster/txn cluster/msgpack fsformat/pickle"},
	{"cluster/zeo/neodoor", "cluster/zeo cluster/client"},
	{"importer/merge", "cluster/txn fsformat/pickle"},
	{"cluster/monitor/metrics", "cluster/monitor cluster/master cluster/storage cluster/admin cluster/client cluster/zeo"},
	{"backup/store", ""},
	{"backup/snapshot", "cluster/txn fsformat/zdump"},
	{"backup", "backup/snapshot backup/store"},
	{"backup/backuptest", "backup fsformat"},
	{"backup/reader", "backup"},
	{"backup/serve", "backup/reader cluster/zeo"},
	{"importer/source", "importer/config fsformat cluster/zeo/zeoclient cluster/client backup/reader"},
	{"exporter", "fsformat"},
	{"importer", "exporter cluster/storage/backend cluster/pace cluster/deflate importer/state importer/config importer/merge importer/source fsformat"},
	{"cluster/storage/adapter", "cluster/storage/sqlitedb cluster/storage/mysqldb importer"},
	{"cluster/simple", "cluster/master cluster/storage cluster/admin cluster/storage/adapter cluster/ctl"},
	{"cluster/clustertest", "cluster/simple cluster/client cluster/storage/backendtest cluster/internal"},
	{"importer/plan", "importer/source importer/merge cluster/storage/adapter"},
	{"backup/feed", "backup/snapshot fsformat cluster/client"},
	{"backup/writer", "backup backup/feed"},
	{"backup/copier", "backup/writer"},
	{"backup/restore", "backup exporter cluster/storage/adapter"},
	{"backup/verify", "backup exporter"},
	{"backup/repair", "backup backup/feed"},
	{"backup/keeper", "backup"},
	{"backup/drill", "backup/feed backup/restore backup/verify backup/serve cluster/simple cluster/zeo/zeoclient cluster/client"},
	{"backup/config", "cluster/moment cluster/following backup"},
	{"backup/daemon", "backup/config backup/writer cluster/systemd"},
	{"cmd/internal/cli", "cluster/conf cluster/nodelog cluster/link cluster/systemd cluster/importing"},
	{"cmd", "*"},
}

// testOnly packages are imported by tests alone.
var testOnly = []string{
	"cluster/testlog",
	"cluster/txn/txntest",
	"cluster/clustertest",
	"cluster/storage/backendtest",
	"cluster/storage/sqldbtest",
	"cluster/storage/mysqldb/mysqltest",
	"cluster/internal",
	"backup/store/storetest",
	"backup/feed/feedtest",
	"backup/backuptest",
	"cluster/zeo/zeotest",
	"cmd/internal/proctest",
}

// goPackage is what `go list -json` says of a package.
type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var list []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// rule returns the line of layers for a package: its own or that of the directory
// above it.
func rule(name string) (int, bool) {
	for name != "." {
		for i, l := range layers {
			if l.name == name {
				return i, true
			}
		}
		name = filepath.Dir(name)
	}
	return 0, false
}

// allowed returns the lines whose packages a line may import, itself included.
func allowed(t *testing.T, i int) map[int]bool {
	set := map[int]bool{i: true}
	for _, name := range strings.Fields(layers[i].may) {
		if name == "*" {
			for j := range i {
				set[j] = true
			}
			continue
		}
		j, ok := rule(name)
		if !ok || j >= i || layers[j].name != name {
			t.Fatalf("layers: %s names %s, which must be listed before it", layers[i].name, name)
		}
		for k := range allowed(t, j) {
			set[k] = true
		}
	}
	return set
}

func TestLayers(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.ImportPath == module { // this file is in it
			if len(p.GoFiles) > 0 {
				t.Errorf("the root of the module has %q, want only tests", p.GoFiles)
			}
			continue
		}
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		i, ok := rule(name)
		if !ok {
			t.Errorf("%s is in no layer", name)
			continue
		}
		may := allowed(t, i)
		for _, imported := range p.Imports {
			imported, ours := strings.CutPrefix(imported, module+"/")
			if !ours {
				continue
			}
			if j, ok := rule(imported); !ok || !may[j] {
				t.Errorf("%s must not import %s", name, imported)
			}
			if inAny(imported, testOnly) && !inAny(name, testOnly) {
				t.Errorf("%s is no test, but imports %s", name, imported)
			}
		}
	}
}

func inAny(name string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return name == d || strings.HasPrefix(name, d+"/") })
}

// Each package has one comment, in one of its files.
func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		var found []string
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				found = append(found, name)
			}
		}
		if len(found) != 1 && len(p.GoFiles) > 0 {
			t.Errorf("%s has %d package comments %q, want 1", p.ImportPath, len(found), found)
		}
	}
}

// docs/architecture.md names every package, and nothing that neither exists nor is
// listed in layers.
func TestArchitecture(t *testing.T) {
	text, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, l := range layers {
		known[l.name] = true
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`((?:backup|cluster|cmd|exporter|fsformat|importer)[a-z0-9/]*)`").FindAllSubmatch(text, -1) {
		name := strings.TrimSuffix(string(m[1]), "/")
		named[name] = true
		if _, err := os.Stat(name); err != nil && !known[name] {
			t.Errorf("docs/architecture.md names %s: %v", name, err)
		}
	}
	for _, p := range listPackages(t) {
		if name, ours := strings.CutPrefix(p.ImportPath, module+"/"); ours && !named[name] {
			t.Errorf("docs/architecture.md does not name %s", name)
		}
	}
	// Source files are named in the form directory/file.go, without what is above.
	for _, m := range regexp.MustCompile("`([a-z]+(?:/[a-z]+)*/[a-z_]+\\.go)`").FindAllSubmatch(text, -1) {
		found := false
		for _, above := range []string{"", "cluster", "cluster/storage"} {
			_, err := os.Stat(filepath.Join(above, string(m[1])))
			found = found || err == nil
		}
		if !found {
			t.Errorf("docs/architecture.md names %s, which is not there", m[1])
		}
	}
}
