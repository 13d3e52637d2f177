package plan_test

import (
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/merge"
	"github.com/neozodb/neo/importer/plan"
)

func sample(name string) string { return filepath.Join("..", "..", "testdata", "fs", name) }

// given returns sources of files: NAME=PATH or PATH.
func given(files ...string) (list []plan.Given) {
	for _, f := range files {
		name, path, ok := strings.Cut(f, "=")
		if !ok {
			name, path = strings.TrimSuffix(filepath.Base(f), ".fs"), f
		}
		list = append(list, plan.Given{Name: name, Storage: config.Storage{File: &config.File{Path: path}}})
	}
	return list
}

func makePlan(t *testing.T, cfg plan.Config) *plan.Plan {
	t.Helper()
	if cfg.Destination.Database == "" {
		cfg.Destination.Database = filepath.Join(t.TempDir(), "neo.sqlite")
	}
	if cfg.Sample == 0 {
		cfg.Sample = 20 * time.Millisecond
	}
	p, err := plan.Make(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if p.Text != "" {
		if _, err := config.Parse(strings.NewReader(p.Text), "importer.conf"); err != nil {
			t.Errorf("the proposal: %v\n%s", err, p.Text)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(cfg.Destination.Database), ".neomigrate*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%q stays, %v", left, err)
	}
	return p
}

// find returns the first finding of a level with a text, or fails.
func find(t *testing.T, p *plan.Plan, l plan.Level, text string) plan.Finding {
	t.Helper()
	for _, f := range p.Findings {
		if f.Level == l && strings.Contains(f.Text, text) {
			return f
		}
	}
	t.Errorf("no finding of level %s with %q in %+v", l, text, p.Findings)
	return plan.Finding{}
}

// What the samples have is counted, and what is wrong with them is said with a way out.
func TestFiles(t *testing.T) {
	for _, tt := range []struct {
		name  string
		musts int
		level plan.Level
		text  string
		do    string
	}{
		{"01-basic.fs", 0, "", "", ""},
		{"02-undo.fs", 0, plan.Note, "have the data of an earlier one", ""},
		{"05-packed.fs", 0, plan.Note, "transactions are packed", "--packed-up-to"},
		{"06-metadata.fs", 1, plan.Must, "object ffffffffffff0001", "pack the database"},
		{"06-metadata.fs", 1, plan.Note, "a later one in the same transaction", ""},
		{"07-btrees-refs.fs", 2, plan.Must, "revisions of blobs", "--without-blobs"},
		{"07-btrees-refs.fs", 2, plan.Must, "6 references to database other", "other=PATH"},
		{"08-truncated-tail.fs", 0, plan.Note, "428 bytes after its last transaction", "stop the server"},
		{"10-legacy-fs21.fs", 1, plan.Note, "written by Python 2 (FS21)", "zodbupdate"},
		{"damaged/tsreduction.fs", 1, plan.Must, "do not increase", "neoexport --renumber"},
		{"damaged/oidflip.fs", 0, plan.Note, "1 records have a wrong pointer", ""},
		{"damaged/badpickle.fs", 0, plan.Note, "3 errors that do not stop an import", "neofs check"},
		{"damaged/future.fs", 0, plan.Note, "in the future (2056", ""},
	} {
		t.Run(tt.name+" "+tt.text, func(t *testing.T) {
			p := makePlan(t, plan.Config{Sources: given(sample(tt.name))})
			if p.Musts() != tt.musts {
				t.Errorf("%d to be decided, want %d: %+v", p.Musts(), tt.musts, p.Findings)
			}
			if tt.text != "" {
				if f := find(t, p, tt.level, tt.text); !strings.Contains(f.Do, tt.do) {
					t.Errorf("%+v: want the way out %q", f, tt.do)
				}
			}
			if p.Import == nil {
				t.Fatal("no proposal")
			}
			if e := p.Estimate; e == nil || e.SampleBytes == 0 || e.Destination.Low > e.Destination.Likely || e.Destination.Likely > e.Destination.High || e.Duration.Low > e.Duration.Likely || e.Duration.Likely > e.Duration.High {
				t.Errorf("estimate %+v", e)
			}
			if (p.Musts() > 0) != strings.Contains(p.Text, "# TO DO: ") {
				t.Errorf("the proposal does not begin with what is to be done:\n%s", p.Text)
			}
		})
	}
}

func TestCounts(t *testing.T) {
	p := makePlan(t, plan.Config{Sources: given(sample("site.fs"))})
	s := p.Sources[0]
	r := open(t, sample("site.fs"))
	sum, err := fsformat.Check(t.Context(), r, fsformat.CheckOptions{}, func(fsformat.Problem) {})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Whole || s.Transactions != sum.Transactions || s.Records != sum.Records || s.DataBytes != sum.DataBytes || s.Objects != int64(sum.Objects) || s.Last != sum.LastTID {
		t.Errorf("%+v, want %+v", s, sum)
	}
	fast := makePlan(t, plan.Config{Sources: given(sample("site.fs")), Fast: true})
	if f := fast.Sources[0]; f.Whole || f.Objects != s.Objects || f.Next != s.Next || f.Last != s.Last || fast.Estimate.SampleBytes == 0 {
		t.Errorf("fast: %+v, %+v", f, fast.Estimate)
	}
	find(t, fast, plan.Note, "objects near the root")
}

// Damage in the middle is where an import ends. What is behind it is not proposed away: the
// plan says what to do first, and is made all the same.
func TestDamage(t *testing.T) {
	b, err := os.ReadFile(sample("site.fs"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "Data.fs")
	clear(b[len(b)/2 : len(b)/2+20000])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	p := makePlan(t, plan.Config{Sources: given(path)})
	if f := find(t, p, plan.Must, "damaged: "); !strings.Contains(f.Do, "neofs salvage "+path) {
		t.Errorf("%+v", f)
	}
	if s := p.Sources[0]; s.Whole || s.Errors == 0 || len(s.Problems) == 0 || s.Transactions == 0 {
		t.Errorf("%+v", s)
	}
	for name, b := range map[string][]byte{"empty": {}, "other": []byte("GIF89a"), "new": []byte("FS30")} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if p := makePlan(t, plan.Config{Sources: given(path)}); p.Musts() == 0 || p.Estimate != nil {
			t.Errorf("%s: %+v", name, p.Findings)
		}
	}
	if _, err := plan.Make(t.Context(), plan.Config{Sources: given(path + "x")}); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func open(t *testing.T, path string) *fsformat.Reader {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
		t.Fatal(err)
	}
	return r
}

//go:embed testdata/site.py
var site string

// made are the mount points of a site, and what they lead to.
type made struct{ Mounts, Targets map[string]tid.OID }

func makeSite(t *testing.T, dir string, args ...string) (m made) {
	t.Helper()
	python := zeotest.Python(t)
	if zope := os.Getenv("NEO_TEST_ZOPE"); len(args) > 0 && args[0] == "zope" {
		if python = zope; python == "" {
			t.Skip("NEO_TEST_ZOPE is no Python with Zope")
		}
	}
	cmd := exec.Command(python, append([]string{"-c", site, dir}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMountPoints(t *testing.T)       { testMountPoints(t) }
func TestMountPointsOfZope(t *testing.T) { testMountPoints(t, "zope") }

// A site with mount points becomes one database, in which the references to mount points
// lead to what they show. What only the configuration of Zope tells is asked for.
func testMountPoints(t *testing.T, args ...string) {
	dir := t.TempDir()
	m := makeSite(t, dir, args...)
	path := func(name string) string { return name + "=" + filepath.Join(dir, name+".fs") }
	sources := given(path("main"), path("catalog"), path("archive"), path("shelf"))

	p := makePlan(t, plan.Config{Sources: sources})
	if f := find(t, p, plan.Must, "at /missing is a mount point"); !strings.Contains(f.Do, "zope.conf") {
		t.Errorf("%+v", f)
	}
	find(t, p, plan.Must, "at /shelf is a mount point")
	find(t, p, plan.Must, "to database gone")
	find(t, p, plan.Must, "no source leads to Data.fs "+filepath.Join(dir, "shelf.fs"))
	if p.Musts() != 4 {
		t.Errorf("%d to be decided: %+v", p.Musts(), p.Findings)
	}

	shelf, err := plan.ParseMount("/shelf=shelf:~other/top")
	if err != nil {
		t.Fatal(err)
	}
	cfg := plan.Config{Sources: sources, Mounts: []plan.MountOption{shelf}, Keep: []string{"/missing", "gone"}}
	for _, fast := range []bool{false, true} {
		cfg.Fast = fast
		p := makePlan(t, cfg)
		if p.Musts() != 0 {
			t.Fatalf("fast %v: to be decided: %+v", fast, p.Findings)
		}
		stays := 0
		for _, mt := range p.Mounts {
			if mt.Kept {
				stays++
			} else if mt.OID != m.Mounts[mt.Target] || mt.TargetOID != m.Targets[mt.Target] {
				t.Errorf("%+v, want %v to %v", mt, m.Mounts[mt.Target], m.Targets[mt.Target])
			}
		}
		// The one that is garbage is near no root.
		if want := map[bool]int{false: 6, true: 5}[fast]; len(p.Mounts) != want || stays != want-3 {
			t.Errorf("fast %v: %d mount points, %d stay: %+v", fast, len(p.Mounts), stays, p.Mounts)
		}
		checkMerged(t, p)
	}

	// What a configuration cannot say, and what is wrong on the command line.
	for option, want := range map[string]string{
		"/missing=catalog:/":           "mount points lead to two objects of catalog",
		"/missing=catalog:/catalog":    "main mounts catalog twice",
		"/missing=main:/":              "which can not be mounted",
		"/missing=catalog:~nothing/at": `has nothing called "nothing"`,
		"/missing=catalog:/nothing":    `has nothing called "nothing"`,
		"/missing=nothing":             "which is no source",
		"/missing=catalog:100000":      "is to lead to object 100000",
		"/nowhere=catalog":             "no mount point has the path /nowhere",
	} {
		o, err := plan.ParseMount(option)
		if err != nil {
			t.Fatal(err)
		}
		p := makePlan(t, plan.Config{Sources: sources, Mounts: []plan.MountOption{shelf, o}, Keep: []string{"gone"}, Sample: -1})
		find(t, p, plan.Must, want)
	}

	// The proposal is what an importer takes, and a source of a plan itself. Wrong numbers are
	// noticed.
	conf := filepath.Join(dir, "importer.conf")
	cfg.Fast = false
	p = makePlan(t, cfg)
	if err := os.WriteFile(conf, []byte(p.Text), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := adapter.Open(t.Context(), adapter.Config{Adapter: adapter.Importer, Database: conf})
	if err != nil {
		t.Fatalf("%v\n%s", err, p.Text)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	again := plan.Config{Keep: cfg.Keep}
	for i := range p.Import.Sources {
		src := p.Import.Sources[i]
		if src.Section == "catalog" {
			src.OID++
		}
		again.Sources = append(again.Sources, plan.Given{Name: src.DatabaseName, Storage: src.Storage, Section: &src})
	}
	p = makePlan(t, again)
	find(t, p, plan.Note, "the configuration says that the mount point /catalog leads to")
}

// Mount points into a database on a ZEO server are found, too.
func TestMountPointsOfServer(t *testing.T) {
	dir := t.TempDir()
	m := makeSite(t, dir)
	server, err := zeo.New(context.Background(), zeo.Config{Storages: map[string]zeo.Storage{
		"1": zeo.NewReader(open(t, filepath.Join(dir, "archive.fs")), zeo.ReaderConfig{Name: "archive"}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	sources := append(given(filepath.Join(dir, "main.fs")), plan.Given{Name: "archive", Storage: config.Storage{ZEO: &config.ZEO{
		Servers: []string{l.Addr().String()}, Storage: "1", Wait: true, WaitTimeout: 30 * time.Second,
	}}})
	p := makePlan(t, plan.Config{Sources: sources, Keep: []string{"/catalog", "/shelf", "/missing", "gone", "catalog"}, Patience: time.Minute})
	if p.Musts() != 0 {
		t.Fatalf("%+v", p.Findings)
	}
	if s := p.Import.Sources; len(s) != 2 || s[1].OID != m.Targets["archive"] || s[0].Mounts[0].OID != m.Mounts["archive"] {
		t.Errorf("%+v, want %+v", s, m)
	}
	find(t, p, plan.Note, "was only asked for single objects")
	var b strings.Builder
	if err := p.Report(&b); err != nil || !strings.Contains(b.String(), "it was not read") {
		t.Errorf("%v, %s", err, &b)
	}
}

// checkMerged merges what a plan proposes, and goes through the mount points.
func checkMerged(t *testing.T, p *plan.Plan) {
	t.Helper()
	imp, err := config.Parse(strings.NewReader(p.Text), "importer.conf")
	if err != nil {
		t.Fatal(err)
	}
	extents := map[string]config.Extent{}
	for _, s := range p.Sources {
		extents[s.Section] = config.Extent{Next: s.Next, Last: s.Last}
	}
	state, err := config.Layout(imp, extents)
	if err != nil {
		t.Fatal(err)
	}
	var sources []merge.Source
	for _, src := range imp.Sources {
		s := state[src.Section]
		sources = append(sources, merge.Source{Name: src.Section, DatabaseName: src.DatabaseName, Database: open(t, src.Storage.File.Path),
			Last: s.LTID, Shift: s.Shift, Next: s.Next, Mapping: s.Mapping, Python3: true})
	}
	d, err := merge.New(sources)
	if err != nil {
		t.Fatal(err)
	}
	for _, mt := range p.Mounts {
		if mt.Kept {
			continue
		}
		at := state[mt.Target].Shift + mt.TargetOID
		if class := classOf(t, d, at); !strings.HasSuffix(class, ".Folder") {
			t.Errorf("%s leads to %d of class %s", mt.Path, at, class)
		}
		if state[mt.Source].Mapping[mt.OID] != at {
			t.Errorf("mapping of %s: %v", mt.Source, state[mt.Source].Mapping)
		}
	}
}

func classOf(t *testing.T, d txn.Database, oid tid.OID) string {
	t.Helper()
	rev, err := d.LoadBefore(t.Context(), oid, tid.Max)
	if err != nil {
		t.Fatal(err)
	}
	var s pickle.Scanner
	module, name, err := s.Class(rev.Data)
	if err != nil {
		t.Fatal(err)
	}
	return string(module) + "." + string(name)
}

// A database that is referred to by its name alone has a place, too.
func TestNamesAlone(t *testing.T) {
	dir := t.TempDir()
	makeSite(t, dir)
	path := func(name string) string { return name + "=" + filepath.Join(dir, name+".fs") }
	p := makePlan(t, plan.Config{Sources: given(path("catalog"), path("main"), path("gone")), Keep: []string{"/shelf", "/site/old/archive", "/missing", "/catalog"}})
	if p.Musts() != 0 { // the catalog refers to main, and main to the third
		t.Errorf("to be decided: %+v", p.Findings)
	}
	checkMerged(t, p)
	if len(p.Import.Sources) != 3 {
		t.Errorf("%+v", p.Import)
	}

	dir = t.TempDir()
	makeSite(t, dir, "dense")
	p = makePlan(t, plan.Config{Sources: given(path("catalog"), path("main")), Keep: []string{"/shelf", "/site/old/archive", "/missing", "/catalog", "gone"}})
	if f := find(t, p, plan.Must, "catalog has no number"); p.Musts() != 1 || !strings.Contains(f.Do, "new_oid") {
		t.Errorf("%+v", p.Findings)
	}
}

// writeFile makes a Data.fs of a transaction with the given states, by object.
func writeFile(t *testing.T, path string, states map[tid.OID]pickle.Value) {
	t.Helper()
	var records []txn.Record
	for _, oid := range slices.Sorted(maps.Keys(states)) {
		data, err := pickle.Append(nil, 3, pickle.Global{Module: "persistent.mapping", Name: "PersistentMapping"})
		if err == nil {
			data, err = pickle.Append(data, 3, states[oid])
		}
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, txn.Record{OID: oid, TID: 1 << 32, Data: data})
	}
	w, err := fsformat.Create(path, fsformat.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Append(&txn.Transaction{TID: 1 << 32, Status: txn.Committed, Records: txn.Slice(records)}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func id(oid tid.OID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(oid)) }

// The number that stands for a mount point is none to which something refers, though
// there is no object.
func TestFreeNumber(t *testing.T) {
	dir := t.TempDir()
	main, other := filepath.Join(dir, "main.fs"), filepath.Join(dir, "other.fs")
	refs := func(list ...pickle.Value) pickle.Value {
		d := &pickle.Dict{}
		for i, r := range list {
			d.Items = append(d.Items, pickle.Item{Key: int64(i), Value: pickle.PersID{ID: r}})
		}
		return d
	}
	far := &pickle.List{Items: []pickle.Value{"n", pickle.Tuple{"other", id(1)}}}
	weak := &pickle.List{Items: []pickle.Value{"w", pickle.Tuple{id(3)}}}
	writeFile(t, main, map[tid.OID]pickle.Value{0: refs(id(1), id(2), far), 1: refs(weak), 5: refs()})
	writeFile(t, other, map[tid.OID]pickle.Value{0: refs(), 1: refs()})
	p := makePlan(t, plan.Config{Sources: given(main, other)})
	if p.Musts() != 0 {
		t.Fatalf("%+v", p.Findings)
	}
	if m := p.Import.Sources[0].Mounts; len(m) != 1 || m[0].OID != 4 {
		t.Errorf("mount points %+v, want 4", m)
	}
	find(t, p, plan.Note, "1 transactions have the id of one of another source")
}

// The report says what was not looked at.
func TestReport(t *testing.T) {
	cfg := plan.Config{Sources: given(sample("07-btrees-refs.fs")), WithoutBlobs: true, Patience: 100 * time.Millisecond}
	cfg.Sources = append(cfg.Sources, plan.Given{Name: "other", Storage: config.Storage{ZEO: &config.ZEO{Servers: []string{"127.0.0.1:1"}, Storage: "1", Wait: true, WaitTimeout: 30 * time.Second}}})
	p := makePlan(t, cfg)
	if f := find(t, p, plan.Must, "127.0.0.1:1 was not looked at"); !strings.Contains(f.Do, "NAME=PATH") {
		t.Errorf("%+v", f)
	}
	var b strings.Builder
	if err := p.Report(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"was not looked at", "From a sample: ", "storage 1 of the ZEO server 127.0.0.1:1 is not in the estimate"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	if err := p.Report(failing{}); err == nil {
		t.Error("a report that cannot be written is no error")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestParseMount(t *testing.T) {
	for text, want := range map[string]plan.MountOption{
		"/a=x:17":        {Path: "/a", Source: "x", OID: 17},
		"/a=x":           {Path: "/a", Source: "x"},
		"/a/b/=x":        {Path: "/a/b", Source: "x"},
		"/a=x:/real":     {Path: "/a", Source: "x", Real: "/real"},
		"/a=x:~root/b/c": {Path: "/a", Source: "x", Root: "root", Real: "/b/c"},
		"/a=x:~root":     {Path: "/a", Source: "x", Root: "root", Real: "/"},
	} {
		if got, err := plan.ParseMount(text); got != want || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/a=x:0", "/a=x:b", "a=x", "/a", "/a=", "/a=:/b"} {
		if got, err := plan.ParseMount(text); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
