package conf

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What Python 3.11's ConfigParser makes of the same texts; "error" where it
// refuses them.
func TestINIAsPython(t *testing.T) {
	const refused = "error"
	for _, tt := range []struct {
		name, text, want string
	}{
		{"both separators, first one counts", "[s]\na = x=1\nb: y:2\nx y : = 4\n", `a="x=1" b="y:2" x y="= 4"`},
		{"inline comments are part of the value", "[s]\na=1 # x\nb=v ; w\n", `a="1 # x" b="v ; w"`},
		{"keys in lower case", "[s]\nKey-X = V\n", `key-x="V"`},
		{"continuation, with an empty line kept and a comment dropped", "[s]\nm = one\n  two\n  # comment\n  three\n\n  four\n", `m="one\ntwo\nthree\n\nfour"`},
		{"empty lines at the end", "[s]\na = 1\n# c\n b\n\n\n", `a="1\nb"`},
		{"empty first line", "[s]\na=\n  b\n", `a="\nb"`},
		{"indented key", "[s]\n  a = 1\n   b = 2\n", `a="1\nb = 2"`},
		{"same indentation", "[s]\n a=1\n b=2\n  c=3\n", `a="1" b="2\nc=3"`},
		{"indented header continues", "[s]\na = 1\n  [t]\n", `a="1\n[t]"`},
		{"text after the header", "[s] tail\na=1\n", `a="1"`},
		{"comments and blank lines anywhere", "# x\n\n[s]\n; c\na=1\n", `a="1"`},
		{"percent", "[s]\na=50%%\n", `a="50%"`},
		{"references", "[DEFAULT]\nc=9\n[s]\nA=%(b)s\nb=%(C)s!\n", `a="9!" b="9!" c="9"`},
		{"defaults", "[DEFAULT]\nx=1\ny=2\n[s]\ny=3\n", `x="1" y="3"`},
		{"DEFAULT twice", "[DEFAULT]\nx=1\n[s]\n[DEFAULT]\ny=2\n", `x="1" y="2"`},
		{"CRLF", "[s]\r\na=1\r\nb=2\r\n", `a="1" b="2"`},
		{"not a key", "[s]\nx\n", refused},
		{"key twice", "[s]\na=1\na=2\n", refused},
		{"section twice", "[s]\n[s]\n", refused},
		{"no header", "a=1\n", refused},
		{"header not closed", "[s\na=1\n", refused},
		{"empty key", "[s]\n= 3\n", refused},
		{"unknown reference", "[s]\na=%(zz)s\n", refused},
		{"lone percent", "[s]\na=%x\n", refused},
		{"reference to itself", "[s]\na=%(a)s\n", refused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dump(tt.text)
			if err != nil {
				got = refused
			}
			if got != tt.want {
				t.Errorf("got %s (%v), want %s", got, err, tt.want)
			}
		})
	}
}

// dump returns section s as key="value" …
func dump(text string) (string, error) {
	f, err := Parse(strings.NewReader(text), "test.conf")
	if err != nil {
		return "", err
	}
	s, err := f.Section("s")
	if err != nil {
		return "", err
	}
	var parts []string
	for _, k := range s.Keys() {
		v, _, err := s.Get(k)
		if err != nil {
			return "", err
		}
		parts = append(parts, fmt.Sprintf("%s=%q", k, v))
	}
	return strings.Join(parts, " "), nil
}

func TestSyntaxErrorTellsTheLine(t *testing.T) {
	_, err := Parse(strings.NewReader("[s]\na = 1\nnonsense\n"), "neo.conf")
	var se *SyntaxError
	if !errors.As(err, &se) || se.Line != 3 || !strings.HasPrefix(err.Error(), "neo.conf:3: ") {
		t.Errorf("got %v", err)
	}
}

// A mistake in a value is found by the line that it is on.
func TestLines(t *testing.T) {
	f, err := Parse(strings.NewReader("[DEFAULT]\na: 1\n# x\nb: 2\n\n[s]\nB: 3\n\nm:\n  one\n# y\n  two\n\n  three\n\n\nc: %(zz)s\n"), "test.conf")
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.Section("s")
	if err != nil {
		t.Fatal(err)
	}
	if s.Line() != 6 {
		t.Errorf("section on line %d", s.Line())
	}
	for key, want := range map[string]int{"a": 2, "b": 7, "B": 7, "m": 9, "c": 17, "none": 0} {
		if got := s.KeyLine(key); got != want {
			t.Errorf("key %q on line %d, want %d", key, got, want)
		}
	}
	if diff := cmp.Diff([]int{9, 10, 12, 13, 14}, s.ValueLines("m")); diff != "" {
		t.Errorf("lines of the value (-want +got):\n%s", diff)
	}
	if _, _, err := s.Get("c"); err == nil || !strings.HasPrefix(err.Error(), "test.conf:17: ") {
		t.Errorf("got %v", err)
	}
}

// References that double themselves must not fill the memory.
func TestInterpolationIsBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("[s]\nk9 = " + strings.Repeat("x", 1000) + "\n")
	for i := range 9 {
		fmt.Fprintf(&b, "k%d = %s\n", i, strings.Repeat(fmt.Sprintf("%%(k%d)s", i+1), 100))
	}
	if _, err := dump(b.String()); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("[DEFAULT]\na: 1\n[s]\nb = %(a)s\n c\n#x\n")
	f.Add("[s]\na=%%\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Parse(strings.NewReader(text), "fuzz")
		if err != nil {
			return
		}
		for _, name := range append(file.Sections(), "DEFAULT") {
			s, err := file.Section(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range s.Keys() {
				v, ok, err := s.Get(k)
				if s.KeyLine(k) < 1 || s.KeyLine(k) > strings.Count(text, "\n")+1 {
					t.Errorf("key %q is on line %d", k, s.KeyLine(k))
				}
				if !ok || err == nil && len(v) > maxLine {
					t.Errorf("key %q: %v, %d bytes", k, ok, len(v))
				}
			}
		}
	})
}

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct {
		in, want string // "" refused
	}{
		{"localhost", "localhost:7"},
		{"127.0.0.1:10000", "127.0.0.1:10000"},
		{"[::1]:10", "[::1]:10"},
		{"[::1]", "[::1]:7"},
		{"::1", "[::1]:7"}, // more than one colon can be no port
		{"fe80::1%eth0", "[fe80::1%eth0]:7"},
		{"h:0", "h:0"},
		{"", ""}, {":10", ""}, {"h:", ""}, {"h:65536", ""}, {"h:x", ""}, {"h:-1", ""},
		{"[::1", ""}, {"[::1]10", ""}, {"[::1]:", ""}, {"[h]:1", ""}, {"a:b:c", ""}, {"a b:1", ""}, {"http://h:1", ""},
	} {
		a, err := ParseAddress(tt.in, 7)
		got := a.String()
		if err != nil {
			got = ""
		}
		if got != tt.want {
			t.Errorf("ParseAddress(%q) = %q (%v), want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestParseMasters(t *testing.T) {
	got, err := ParseMasters(" a:1  [::1]:2\nb a:1 ")
	want := []Address{{"a", 1}, {"::1", 2}, {"b", 10000}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if list, err := ParseMasters(""); len(list) != 0 || err != nil {
		t.Errorf("empty list: %v, %v", list, err)
	}
	for _, bad := range []string{"a:0", "a,b:1"} {
		if _, err := ParseMasters(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestResolve(t *testing.T) {
	list, err := ResolveAll(t.Context(), []Address{{"127.0.0.1", 1}, {"localhost", 2}})
	if err != nil {
		t.Fatal(err)
	}
	if list[0].Host != "127.0.0.1" || list[1].Host == "localhost" || list[1].Port != 2 {
		t.Errorf("got %v", list)
	}
	if _, err := (Address{"no such host.invalid", 1}).Resolve(t.Context()); err == nil {
		t.Error("resolved a name that cannot exist")
	}
}

func TestParseTID(t *testing.T) {
	at := func(sec, nsec int64) TID { return TID{IsTime: true, Time: time.Unix(sec, nsec).UTC()} }
	for _, tt := range []struct {
		in   string
		want TID
		ok   bool
	}{
		{"tid:0x3937af2eeeeeeee", TID{ID: 0x3937af2eeeeeeee}, true},
		{"TID:10", TID{ID: 10}, true},
		{"tid:0b11", TID{ID: 3}, true},
		{"12", at(12, 0), true}, // a bare integer is a moment
		{"1700000000.123456", at(1700000000, 123456000), true},
		{"-1.5", at(-2, 500000000), true},
		{"1e3", at(1000, 0), true},
		{"tid:", TID{}, false}, {"tid:-1", TID{}, false}, {"tid:1.5", TID{}, false}, {"tid:0x10000000000000000", TID{}, false},
		{"x", TID{}, false}, {"", TID{}, false}, {"nan", TID{}, false}, {"inf", TID{}, false}, {"1e300", TID{}, false},
		{"1e-400000000", at(0, 0), true}, // without a number of 400 million digits
	} {
		got, err := ParseTID(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("ParseTID(%q) = %v, %v, want %v", tt.in, got, err, tt.want)
		}
		if err != nil && !errors.Is(err, ErrNotTID) {
			t.Errorf("ParseTID(%q): %v is not ErrNotTID", tt.in, err)
		}
	}
}

func TestParseNodeID(t *testing.T) {
	for in, want := range map[string]int32{"S1": 1, "M1": -0x0fffffff, "C3": -0x1ffffffd, "A2": -0x2ffffffe, "S16777215": 1<<24 - 1} {
		if got, err := ParseNodeID(in); got != want || err != nil {
			t.Errorf("ParseNodeID(%q) = %#x, %v, want %#x", in, got, err, want)
		}
	}
	for _, in := range []string{"", "S", "S0", "s1", "X1", "S-1", "S+1", "S16777216", "1", "S1 "} {
		if got, err := ParseNodeID(in); err == nil {
			t.Errorf("ParseNodeID(%q) = %d", in, got)
		}
	}
}

func TestExpandUser(t *testing.T) {
	t.Setenv("HOME", "/home/x")
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{"~": "/home/x", "~/a": "/home/x/a", "a/~": "a/~", "/a": "/a", "~" + u.Username + "/b": strings.TrimRight(u.HomeDir, "/") + "/b"} {
		if got, err := ExpandUser(in); got != want || err != nil {
			t.Errorf("ExpandUser(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	if _, err := ExpandUser("~no such user/x"); err == nil {
		t.Error("home of a user who does not exist")
	}
}

func TestParseBool(t *testing.T) {
	for s, want := range map[string]bool{"yes": true, "On": true, "TRUE": true, "1": true, "no": false, "off": false, "false": false, "0": false} {
		if got, err := ParseBool(s); got != want || err != nil {
			t.Errorf("ParseBool(%q) = %v, %v", s, got, err)
		}
	}
	if _, err := ParseBool(""); err == nil {
		t.Error("empty flag accepted")
	}
}

func TestMasterList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "masters.json")
	l, list, err := OpenMasterList(path)
	if err != nil || list != nil {
		t.Fatalf("new list: %v, %v", list, err)
	}
	want := []Address{{"10.0.0.1", 10000}, {"::1", 10001}}
	if err := l.Save(want); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), `[["10.0.0.1",10000],["::1",10001]]`+"\n"; got != want {
		t.Errorf("file has %s, want %s", got, want)
	}
	l, got, err := OpenMasterList(path)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	// The same list again is not written again.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := l.Save(want); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("written although nothing changed: %v", err)
	}
	if err := l.Save(nil); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files, %v: a temporary one was left", len(entries), err)
	}
}

func TestMasterListErrors(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := OpenMasterList(filepath.Join(dir, "none", "m.json")); err == nil {
		t.Error("created in a directory that does not exist")
	}
	for _, bad := range []string{"", "{}", `[["h"]]`, `[["h", 70000]]`, `[[1, 2]]`, `[["", 1]]`, `[["h", 0]]`} {
		path := filepath.Join(dir, "m.json")
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, list, err := OpenMasterList(path); err == nil {
			t.Errorf("%s read as %v", bad, list)
		}
	}
}
