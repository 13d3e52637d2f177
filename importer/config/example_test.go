package config

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/conf"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// uncomment returns the text with what is between ; and the end of a line, where on
// says so for the key or the section of the line. A key that is so set twice in a section
// is only left where it was a comment.
func uncomment(text string, on func(line string) bool) string {
	key := func(line string) string {
		key, _, ok := strings.Cut(line, ":")
		if !ok || strings.ContainsAny(line[:1], " #;[") {
			return ""
		}
		return key
	}
	var out []string
	begin, keep := 0, true // of the section; of the lines that continue
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		commented := strings.HasPrefix(line, ";")
		if line = strings.TrimPrefix(line, ";"); line == "" {
			continue
		}
		if line[0] != ' ' && line[0] != '#' {
			keep = !commented || on(line)
		}
		if !keep {
			continue
		}
		if line[0] == '[' {
			begin = len(out)
		}
		if k := key(line); k != "" && commented {
			if i := slices.IndexFunc(out[begin:], func(l string) bool { return l != "" && key(l) == k }); i >= 0 {
				out = slices.Delete(out, begin+i, begin+i+1)
			}
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// The example at the top of the module is a valid file, as it is and with what is
// commented out, and knows every key.
func TestExample(t *testing.T) {
	text := readFile(t, "../../importer.conf.example")
	writeBack := func(line string) bool { return strings.HasPrefix(line, "writeback") }
	for name, tt := range map[string]struct {
		text    string
		sources int
		used    func(Import) bool
	}{
		"as it is":  {text, 1, func(i Import) bool { return i.Destination.Adapter == "SQLite" && i.Sources[0].Storage.File != nil }},
		"writeback": {uncomment(text, writeBack), 1, func(i Import) bool { return i.Destination.WriteBack }},
		"all but that": {uncomment(text, func(l string) bool { return !writeBack(l) }), 4, func(i Import) bool {
			return i.Destination.Engine != "" && i.Sources[1].Storage.ZEO != nil && i.Sources[2].Storage.NEO != nil && i.Sources[3].Storage.Backup != nil
		}},
		"a MySQL server": {uncomment(text, func(l string) bool { return !writeBack(l) && !strings.HasPrefix(l, "engine") }), 4, func(i Import) bool { return i.Destination.Adapter == "MySQL" }},
	} {
		t.Run(name, func(t *testing.T) {
			imp, err := parse(tt.text)
			if err != nil {
				t.Fatalf("%v\n%s", err, numbered(tt.text))
			}
			if len(imp.Sources) != tt.sources || !tt.used(imp) {
				t.Errorf("%+v", imp)
			}
			if len(imp.Warnings) > 0 {
				t.Errorf("warnings %q", imp.Warnings)
			}
		})
	}

	// keys of the first section "", of sources, and of kinds of sections of ZConfig
	found := map[string]map[string]bool{}
	see := func(kind, key string) {
		if kind = strings.Replace(kind, "clientstorage", "zeoclient", 1); found[kind] == nil {
			found[kind] = map[string]bool{}
		}
		found[kind][key] = true
	}
	f, err := conf.Parse(strings.NewReader(uncomment(text, func(string) bool { return true })), "example")
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range f.Sections() {
		s, err := f.Section(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range s.Keys() {
			see([]string{"", "source"}[min(i, 1)], key)
		}
		storage, err := s.List("storage")
		if err != nil {
			t.Fatal(err)
		}
		z := zparser{line: func(i int) int { return i + 1 }}
		sections, err := z.parse(storage)
		if err != nil {
			t.Fatal(err)
		}
		for len(sections) > 0 {
			for _, set := range sections[0].settings {
				see(sections[0].kind, set.key)
			}
			sections = append(sections[1:], sections[0].sections...)
		}
	}
	want := func(kind, key string) {
		if !found[kind][key] {
			t.Errorf("there is no %s in section %q", key, kind)
		}
	}
	for _, key := range destinationKeys {
		want("", key)
	}
	for _, key := range sourceKeys {
		want("source", key)
	}
	for _, kind := range []string{"filestorage", "zeoclient", "ssl", "neostorage"} {
		for key, rule := range kinds[kind] {
			// The others are refused, or only warned of. A Data.fs is only read anyway.
			if rule.unused == "" && !slices.Contains([]string{"create", "blob-dir", "password-function"}, key) && kind+key != "filestorageread-only" {
				want(kind, key)
			}
		}
	}
}
