package state

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

type mapping = map[tid.OID]tid.OID

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What the pickler of Python 2 writes with protocol 0: a new-style class by way of
// copy_reg, a class of the old style as an instance. Ints beyond 32 bits are long on some machines.
var python2 = map[string]string{
	"new style": "(dp0\nS'root'\np1\nccopy_reg\n_reconstructor\np2\n(cneo.storage.database.importer\nZODB\np3\nc__builtin__\nobject\np4\nNtp5\nRp6\n" +
		"(dp7\nS'oid'\np8\nI0\nsS'ltid'\np9\nL291882452486043136L\nsS'mapping'\np10\n(dp11\nI2\nI7\nsI4\nI11\nssS'shift_oid'\np12\nI0\nsS'next_oid'\np13\nI6\nsbs" +
		"S'foo'\np14\ng2\n(g3\ng4\nNtp15\nRp16\n(dp17\ng8\nI1\nsg9\nI291882452486371584\nsg10\n(dp18\nsg12\nI6\nsg13\nI4\nsbs" +
		"S'bar'\np19\ng2\n(g3\ng4\nNtp20\nRp21\n(dp22\ng8\nI1\nsg9\nI291882452486531208\nsg10\n(dp23\nsg12\nI10\nsg13\nI2\nsbs.",
	"old style, unicode names, long numbers": "(dp0\nVroot\np1\n(ineo.storage.database.importer\nZODB\np2\n" +
		"(dp3\nS'next_oid'\np4\nL6L\nsS'oid'\np5\nL0L\nsS'shift_oid'\np6\nI0\nsS'mapping'\np7\n(dp8\nL2L\nL7L\nsI4\nI11\nssS'ltid'\np9\nL291882452486043136L\nsbs" +
		"Vfoo\np10\n(ineo.storage.database.importer\nZODB\np11\n(dp12\ng4\nI4\nsg5\nI1\nsg6\nI6\nsg7\n(dp13\nsg9\nL291882452486371584L\nsbs" +
		"Vbar\np14\n(ineo.storage.database.importer\nZODB\np15\n(dp16\ng4\nI2\nsg5\nI1\nsg6\nI10\nsg7\n(dp17\nsg9\nL291882452486531208L\nsbs.",
}

func TestParse(t *testing.T) {
	one := State{"root": {LTID: 0x040d5462cd72b800, Mapping: mapping{}, Next: 6}}
	three := State{
		"root": {LTID: 0x040d5462cd72b800, Mapping: mapping{2: 7, 4: 11}, Next: 6},
		"foo":  {OID: 1, LTID: 0x040d5462cd77f500, Mapping: mapping{}, Shift: 6, Next: 4},
		"bar":  {OID: 1, LTID: 0x040d5462cd7a2888, Mapping: mapping{}, Shift: 10, Next: 2},
	}
	python2Three := State{}
	for name, s := range three {
		s.LTID = map[string]tid.TID{"root": 291882452486043136, "foo": 291882452486371584, "bar": 291882452486531208}[name]
		python2Three[name] = s
	}
	for _, tt := range []struct {
		name, row string
		want      State
		end       tid.TID
	}{
		{"one source, neoppod", readFile(t, "one.zodb"), one, 0x040d5462cd72b800},
		{"three sources, neoppod", readFile(t, "three.zodb"), three, 0x040d5462cd7a2888},
		{"Python 2, new style", python2["new style"], python2Three, 291882452486531208},
		{"Python 2, old style", python2["old style, unicode names, long numbers"], python2Three, 291882452486531208},
		{"ours", three.String(), three, 0x040d5462cd7a2888},
		{"a nil mapping", State{"root": {LTID: 1, Next: 1}}.String(), State{"root": {LTID: 1, Mapping: mapping{}, Next: 1}}, 1},
		{"all of the numbers", State{"ü<": {OID: tid.MaxOID, LTID: tid.Max, Mapping: mapping{tid.MaxOID: tid.MaxOID}, Next: tid.MaxOID + 1}}.String(),
			State{"ü<": {OID: tid.MaxOID, LTID: tid.Max, Mapping: mapping{tid.MaxOID: tid.MaxOID}, Next: tid.MaxOID + 1}}, tid.Max},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.row)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got.End() != tt.end {
				t.Errorf("end %v, want %v", got.End(), tt.end)
			}
			again, err := Parse(got.String())
			if diff := cmp.Diff(got, again); err != nil || diff != "" {
				t.Errorf("written and read again: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestString(t *testing.T) {
	s := State{"root": {LTID: 5, Mapping: mapping{7: 8, 10: 9}, Next: 6}, "a<b": {OID: 2, LTID: 4, Shift: 6, Next: 3}}
	want := `{"a<b":{"oid":2,"ltid":4,"mapping":{},"shift_oid":6,"next_oid":3},` +
		`"root":{"oid":0,"ltid":5,"mapping":{"10":9,"7":8},"shift_oid":0,"next_oid":6}}`
	if got := s.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s["a<b"].Mapping != nil {
		t.Error("String has changed the state")
	}
}

// With a state that is read wrongly, references would lead to wrong objects.
func TestParseRefuses(t *testing.T) {
	one := readFile(t, "one.zodb")
	with := func(old, replacement string) string {
		if strings.Count(one, old) != 1 {
			t.Fatalf("%q is not once in the row", old)
		}
		return strings.Replace(one, old, replacement, 1)
	}
	const a, b = `"a":{"oid":0,"ltid":1,"mapping":{},"shift_oid":0,"next_oid":6}`, `"b":{"oid":1,"ltid":1,"mapping":{},"shift_oid":5,"next_oid":6}`
	for _, tt := range []struct{ row, want string }{
		{"", "pickle"},
		{"{", "EOF"},
		{"{}", "no source"},
		{"}q\x00.", "no source"},
		{"I1\n.", "instead of a dict"},
		{`b'`, "bytes literal"},
		{`b'\x8'`, "bytes literal"},
		{`b'\y'`, "bytes literal"},
		{`b'\x80\x03}q\x00."`, "bytes literal"},
		{`b'\x80\x03}q\x00.'`, "no source"},
		{with(`ubs.'`, `ubs.x'`), "more follows"},
		{with(`X\x08\x00\x00\x00next_oidq\nK\x06`, ``), "no next_oid"},
		{with(`X\x07\x00\x00\x00mappingq\x07}q\x08`, ``), "mapping"},
		{with(`X\x03\x00\x00\x00oidq\x05K\x00`, `X\x03\x00\x00\x00oidq\x05N`), "its oid is"},
		{with(`K\x06`, `J\xff\xff\xff\xff`), "its next_oid is -1"},
		{with(`\x8a\x08\x00\xb8r\xcdbT\r\x04`, `K\x00`), "can not be its last transaction"},
		{`{` + a + `} x`, "more follows"},
		{`{` + a + `,` + b + `}`, `"a" and "b" overlap`},
		{strings.Replace(`{`+a+`}`, `"oid"`, `"oids"`, 1), "unknown field"},
		{strings.Replace(`{`+a+`}`, `"mapping":{},`, ``, 1), "not all of"},
		{strings.Replace(`{`+a+`}`, `"mapping":{}`, `"mapping":null`, 1), "not all of"},
		{strings.Replace(`{`+a+`}`, `"ltid":1`, `"ltid":0`, 1), "can not be its last transaction"},
		{strings.Replace(`{`+a+`}`, `"ltid":1`, `"ltid":-1`, 1), "ltid"},
		{strings.Replace(`{`+a+`}`, `"next_oid":6`, `"next_oid":9223372036854775809`, 1), "beyond"},
		{strings.Replace(`{`+b+`}`, `"next_oid":6`, `"next_oid":9223372036854775808`, 1), "beyond"},
		{strings.Replace(`{`+a+`}`, `"mapping":{}`, `"mapping":{"1":9223372036854775808}`, 1), "beyond"},
	} {
		if s, err := Parse(tt.row); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, %v; want %q", tt.row, s, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"one.zodb", "three.zodb"} {
		f.Add(readFile(f, name))
	}
	for _, row := range python2 {
		f.Add(row)
	}
	f.Add(`{"root":{"oid":0,"ltid":5,"mapping":{"10":9,"7":8},"shift_oid":0,"next_oid":6}}`)
	f.Fuzz(func(t *testing.T, row string) {
		s, err := Parse(row)
		if err != nil {
			if s != nil {
				t.Errorf("state %v with error %v", s, err)
			}
			return
		}
		again, err := Parse(s.String())
		if diff := cmp.Diff(s, again); err != nil || diff != "" {
			t.Errorf("written and read again: %v (-want +got):\n%s", err, diff)
		}
		if s.End() == tid.Zero {
			t.Error("no end")
		}
	})
}
