package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/importer/state"
)

type mapping = map[tid.OID]tid.OID

// mounts is a source of a Layout.
func mounts(section string, oid tid.OID, m ...Mount) Source {
	return Source{Section: section, DatabaseName: section, OID: oid, Mounts: m, Storage: Storage{File: &File{Path: "/" + section + ".fs"}}}
}

func TestLayout(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sources []Source
		extents map[string]Extent
		want    state.State
	}{
		{"one", []Source{mounts("root", 0)}, map[string]Extent{"root": {1, 5}},
			state.State{"root": {LTID: 5, Mapping: mapping{}, Next: 1}}},
		{"depth-first, in the order of the mount points",
			[]Source{mounts("baz", 2000), mounts("root", 0, Mount{"foo", 421}, Mount{"bar", 666}), mounts("bar", 4567), mounts("foo", 123, Mount{"baz", 1000})},
			map[string]Extent{"root": {10000, 1}, "foo": {5000, 2}, "bar": {7000, 3}, "baz": {3000, 4}},
			state.State{
				"root": {LTID: 1, Mapping: mapping{421: 10123, 666: 22567}, Next: 10000},
				"foo":  {OID: 123, LTID: 2, Mapping: mapping{1000: 17000}, Shift: 10000, Next: 5000},
				"baz":  {OID: 2000, LTID: 4, Mapping: mapping{}, Shift: 15000, Next: 3000},
				"bar":  {OID: 4567, LTID: 3, Mapping: mapping{}, Shift: 18000, Next: 7000},
			}},
		{"mounted twice, and the root into what it mounts",
			[]Source{mounts("root", 0, Mount{"a", 1}, Mount{"b", 2}), mounts("a", 3, Mount{"b", 4}, Mount{"root", 5}), mounts("b", 6, Mount{"a", 7})},
			map[string]Extent{"root": {10, 1}, "a": {10, 1}, "b": {10, 1}},
			state.State{
				"root": {LTID: 1, Mapping: mapping{1: 13, 2: 26}, Next: 10},
				"a":    {OID: 3, LTID: 1, Mapping: mapping{4: 26, 5: 0}, Shift: 10, Next: 10},
				"b":    {OID: 6, LTID: 1, Mapping: mapping{7: 13}, Shift: 20, Next: 10},
			}},
		{"all object ids", []Source{mounts("root", 0, Mount{"a", 1}), mounts("a", 1)}, map[string]Extent{"root": {1 << 62, 1}, "a": {1 << 62, tid.Max}},
			state.State{
				"root": {LTID: 1, Mapping: mapping{1: 1<<62 + 1}, Next: 1 << 62},
				"a":    {OID: 1, LTID: tid.Max, Mapping: mapping{}, Shift: 1 << 62, Next: 1 << 62},
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			imp := Import{Sources: tt.sources}
			got, err := Layout(imp, tt.extents)
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Fatalf("%v (-want +got):\n%s", err, diff)
			}
			again, err := state.Parse(got.String())
			if diff := cmp.Diff(got, again); err != nil || diff != "" {
				t.Errorf("as a row: %v (-want +got):\n%s", err, diff)
			}
			if warnings, err := Check(imp, got); len(warnings) > 0 || err != nil {
				t.Errorf("checked: %q, %v", warnings, err)
			}
		})
	}
}

// The row that the Python implementation has written for the same file and the same
// three Data.fs: see ../state/testdata.
func TestLayoutAsPython(t *testing.T) {
	imp, err := parse("[neo]\nadapter: SQLite\ndatabase: d\n" + source("root", "a.fs", "foo: 2", "bar: 4") + source("foo", "b.fs", "oid: 1") + source("bar", "c.fs", "oid: 1"))
	if err != nil {
		t.Fatal(err)
	}
	row := readFile(t, "../state/testdata/three.zodb")
	want, err := state.Parse(row)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Layout(imp, map[string]Extent{"root": {6, want["root"].LTID}, "foo": {4, want["foo"].LTID}, "bar": {2, want["bar"].LTID}})
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestLayoutRefuses(t *testing.T) {
	two := []Source{mounts("root", 0, Mount{"a", 1}), mounts("a", 1)}
	for _, tt := range []struct {
		sources   []Source
		root, a   Extent
		want      string
		wantEmpty bool
	}{
		{two, Extent{0, 0}, Extent{2, 1}, "importer.conf: [root]: can not import empty storage: Data.fs /root.fs", true},
		{two, Extent{2, 1}, Extent{2, 0}, "[a]: can not import empty storage: Data.fs /a.fs", true},
		{two, Extent{2, 1}, Extent{2, tid.Max + 1}, "last transaction", false},
		{two, Extent{1 << 63, 1}, Extent{2, 1}, "[a]: its object ids, 2 from 9223372036854775808 on, would be beyond", false},
		{two, Extent{1<<63 + 1, 1}, Extent{2, 1}, "[root]: its object ids", false},
		{two, Extent{1 << 62, 1}, Extent{1<<62 + 1, 1}, "[a]: its object ids", false},
		{two, Extent{2, 1}, Extent{1<<64 - 1, 1}, "[a]: its object ids", false},
		{two, Extent{1, 1}, Extent{2, 1}, "[root]: mount point 1 of [a] is no object: the greatest is 0", false},
		{two, Extent{2, 1}, Extent{1, 1}, "[a]: oid 1, which its mount point leads to, is no object: the greatest is 0", false},
		{two, Extent{2, 1}, Extent{0, 1}, "[a]: oid 1, which its mount point leads to, is no object: there is none", false},
		{[]Source{mounts("root", 0, Mount{"b", 1})}, Extent{2, 1}, Extent{}, "which is no source", false},
		{[]Source{mounts("root", 0), mounts("a", 1)}, Extent{2, 1}, Extent{2, 1}, "can not be reached", false},
		{[]Source{mounts("a", 1)}, Extent{2, 1}, Extent{2, 1}, "no source is the root", false},
		{[]Source{mounts("root", 0, Mount{"c", 1}), mounts("c", 1)}, Extent{2, 1}, Extent{}, "[c]: its size is not known", false},
	} {
		s, err := Layout(Import{Path: "importer.conf", Sources: tt.sources}, map[string]Extent{"root": tt.root, "a": tt.a})
		if err == nil || s != nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrEmpty) != tt.wantEmpty {
			t.Errorf("root %v, a %v: %v, %v; want %q", tt.root, tt.a, s, err, tt.want)
		}
	}
}

// Whatever the mount points, each source has its numbers to itself, and a mount point
// leads into the source that it names.
func TestLayoutIsDisjoint(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 0))
		n := 1 + rng.IntN(6)
		imp := Import{Sources: make([]Source, n)}
		extents := map[string]Extent{}
		for i := range imp.Sources {
			name := fmt.Sprint("s", i)
			next := tid.OID(100 + rng.IntN(1000))
			extents[name] = Extent{next, tid.TID(1 + rng.IntN(9))}
			imp.Sources[i] = mounts(name, 0)
			if i > 0 { // reached, by one of those before it
				imp.Sources[i].OID = 1 + tid.OID(rng.IntN(99))
				parent := &imp.Sources[rng.IntN(i)]
				parent.Mounts = append(parent.Mounts, Mount{name, tid.OID(10 * i)})
			}
		}
		for i := range imp.Sources { // and by any other
			if j := rng.IntN(n); j != i {
				imp.Sources[i].Mounts = append(imp.Sources[i].Mounts, Mount{fmt.Sprint("s", j), tid.OID(1 + rng.IntN(8))})
			}
		}
		s, err := Layout(imp, extents)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if again, err := state.Parse(s.String()); err != nil || !cmp.Equal(again, s) { // refuses what overlaps
			t.Fatalf("seed %d: %v\n%v", seed, err, s)
		}
		for _, src := range imp.Sources {
			for _, m := range src.Mounts {
				to, in := s[src.Section].Mapping[m.OID], s[m.Section]
				if to != in.Shift+in.OID {
					t.Errorf("seed %d: mount point %d of %s leads to %d, want %s %+v", seed, m.OID, src.Section, to, m.Section, in)
				}
			}
		}
	}
}

// Once an import has begun its file can only say where the sources are.
func TestCheck(t *testing.T) {
	read := func(sections ...string) Import {
		t.Helper()
		imp, err := parse("[neo]\ndatabase: d\n" + strings.Join(sections, ""))
		if err != nil {
			t.Fatal(err)
		}
		return imp
	}
	s := state.State{
		"root": {LTID: 1, Mapping: mapping{2: 13}, Next: 10},
		"foo":  {OID: 3, LTID: 1, Mapping: mapping{}, Shift: 10, Next: 10},
	}
	for _, tt := range []struct {
		name     string
		imp      Import
		warnings []string
		err      string
	}{
		{"the same in another place", read(source("root", "/new", "foo: 2"), source("foo", "/other", "oid: 3")), nil, ""},
		{"a source less", read(source("root", "/a")), nil, "importer.conf: [foo] was a source when the import began"},
		{"a source more", read(source("root", "/a", "foo: 2", "bar: 4"), source("foo", "/b", "oid: 3"), source("bar", "/c", "oid: 3")), nil, "[bar] was no source when the import began"},
		{"other oid", read(source("root", "/a", "foo: 2"), source("foo", "/b", "oid: 4")), []string{"[foo]: oid is 4, but the import began with 3"}, ""},
		{"other mount point", read(source("root", "/a", "foo: 1"), source("foo", "/b", "oid: 3")), []string{"[root]: its mount points are not those"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			warnings, err := Check(tt.imp, s)
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if len(warnings) != len(tt.warnings) {
				t.Fatalf("warnings %q, want %q", warnings, tt.warnings)
			}
			for i, w := range warnings {
				if !strings.Contains(w, tt.warnings[i]) {
					t.Errorf("warning %q, want %q", w, tt.warnings[i])
				}
			}
		})
	}
}
