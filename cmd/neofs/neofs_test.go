package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

const samples = "../../testdata/fs/"

// run runs neofs and returns what it prints and its exit code.
func run(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	env := &cli.Env{Args: args, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, Getenv: os.Getenv}
	code = cli.Run(t.Context(), env, newCommand)
	return out.String(), errs.String(), code
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
}

const (
	outOfOrder = "error: damaged/tsreduction.fs: offset 415: transaction 03a0000000000032: its id is not above that of the previous transaction, 03a0000000000064; neoexport --renumber makes a file of it whose ids increase\n"
	oidFlip    = "warning: damaged/oidflip.fs: offset 229: transaction 03a0000000000002: object 0000000000000003: its previous record is said to be at 133, which is one of object 0000000000000002: an object id is damaged\n"
)

func TestCommands(t *testing.T) {
	for _, tt := range []struct {
		args      string
		out, errs string
		code      int
	}{
		{"info 08-truncated-tail.fs", `name     08-truncated-tail.fs
magic    FS30 (Python 3)
size     1563
first    03f5945817777777  2024-01-02 03:04:05.499999
last     03f594581aaaaaaa  2024-01-02 03:04:06.249999
greatest 03f594581aaaaaaa  2024-01-02 03:04:06.249999
end      at 1135: transaction 03f594581bbbbbbb is incomplete; the 428 bytes that follow are ignored
index    none: the file is read whole when it is opened
`, "", 0},
		{"info damaged/tsreduction.fs", `name     damaged/tsreduction.fs
magic    FS30 (Python 3)
size     689
first    03a0000000000001  2013-07-13 07:28:00.000000
last     03a000000000003c  2013-07-13 07:28:00.000000
greatest 03a0000000000064  2013-07-13 07:28:00.000001
order    1 of 5 ids are not above the one before; the first at offset 415, 03a0000000000032: its id is not above that of the previous transaction, 03a0000000000064 (neoexport --renumber copies the file)
end      complete
index    none: the file is read whole when it is opened
`, "", 0},
		{"dump --hashonly damaged/tsreduction.fs", "", outOfOrder, 1},
		{"dump damaged/tsreduction.fs ..03a0000000000064", "", outOfOrder, 1},
		{"log damaged/tsreduction.fs 03a000000000003b..", "", outOfOrder, 1},
		{"cmp damaged/tsreduction.fs damaged/tsreduction.fs ..03a0000000000003", "", outOfOrder, 1},
		{"analyze damaged/tsreduction.fs ..03a0000000000003", "", outOfOrder, 1},
		{"index damaged/tsreduction.fs", "", outOfOrder, 1},
		{"index damaged/oidflip.fs", "", oidFlip + `warning: damaged/oidflip.fs: 1 record has a wrong pointer to the previous record of the object: an object id or the pointer is damaged (see neofs check), which the index does not show
error: open damaged/oidflip.fs.index: no such file or directory (--write makes a new one)
`, 1},
		{"dump --strict damaged/oidflip.fs", "", oidFlip + "error: damaged/oidflip.fs: refused by --strict: 1 record has a wrong pointer to the previous record of the object: an object id or the pointer is damaged (see neofs check)\n", 1},
		{"dump --hashonly damaged/oidflip.fs 03a0000000000002..", `txn 03a0000000000002 " "
user ""
description ""
extension ""
obj 0000000000000003 23 sha1:6284e0eb610a6dae8618f70ba93ffafa41fe7637 -

`, oidFlip + "warning: damaged/oidflip.fs: 1 record has a wrong pointer to the previous record of the object: an object id or the pointer is damaged (see neofs check), which the dump does not show\n", 0},
		{"info README.md", "", `error: README.md: not a Data.fs: it begins with "# Da", want "FS30" or "FS21"` + "\n", 1},
		{"info no.fs", "", "error: open no.fs: no such file or directory\n", 1},
		{"check 01-basic.fs", `5 transactions, 9 records of 4 objects, 1093 bytes of data; last transaction 03f594581bbbbbbb
no problems found
`, "", 0},
		{"check damaged/badpickle.fs", `error: offset 133: transaction 03a0000000000001: object 0000000000000001: Python cannot load its data: pickle: offset 15: a text that is no UTF-8
error: offset 203: transaction 03a0000000000001: object 0000000000000002: Python cannot load its data: pickle: offset 24: a key without a value: 3 items for SETITEMS
error: offset 271: transaction 03a0000000000001: object 0000000000000003: Python cannot load its data: pickle: offset 16: a string that is not quoted: "'abc"
1 transactions, 4 records of 4 objects, 148 bytes of data; last transaction 03a0000000000001
3 errors, 0 warnings
`, "", 1},
		{"check /dev/null", "", "error: /dev/null: not a regular file\n", 1},
		{"check 09-voted-tail.fs", `error: offset 293: transaction 03fb2e0004444444 was voted but not finished: 289 bytes ignored
2 transactions, 2 records of 2 objects, 139 bytes of data; last transaction 03fb2e0003333333
1 errors, 0 warnings
`, "", 1},
		{"index 01-basic.fs", "the index is right: 4 objects\n", "", 0},
		{"index 08-truncated-tail.fs", "", `warning: 08-truncated-tail.fs: offset 1135: transaction 03f594581bbbbbbb is incomplete: 428 bytes ignored
error: open 08-truncated-tail.fs.index: no such file or directory (--write makes a new one)
`, 1},
		{"log -n 1 -r 02-undo.fs", `03f6420008888888 2024-02-02 00:00:01.999999 user "u" description "T7 undo T6 (three hops for 1)" size 153 offset 1128
  0000000000000002 persistent.mapping.PersistentMapping from 03f6420002222222
  0000000000000001 persistent.mapping.PersistentMapping from 03f6420006666666
`, "", 0},
		{"log -F 02-undo.fs ..2024-02-02T00:00:00.8Z", `03f6420002222222 2024-02-02 00:00:00.499999 user "u" description "T1 create 0,1,2" size 379 offset 4
03f6420003333333 2024-02-02 00:00:00.749999 user "u" description "T2 modify 1" size 152 offset 391
`, "", 0},
		{"cat 02-undo.fs 1@03f6420003333333", `object 0000000000000001 of transaction 03f6420003333333, 2024-02-02 00:00:00.749999
class <persistent.mapping.PersistentMapping>
state {'data': {'v': 11}}
`, "", 0},
		{"cat 03-creation-undone.fs 5", "", "error: 03-creation-undone.fs: object 0000000000000005, deleted or its creation undone by transaction 03f6f60006666666: not found\n", 1},
		{"cat --history 03-creation-undone.fs 5", `03f6f60006666666 2024-03-03 00:00:01.499999 from 03f6f60004444444
03f6f60005555555 2024-03-03 00:00:01.249999 from 03f6f60003333333
03f6f60004444444 2024-03-03 00:00:00.999999 gone
03f6f60003333333 2024-03-03 00:00:00.749999 75 bytes
`, "", 0},
		{"refs 10-legacy-fs21.fs 4", `weak-legacy 0000000000000001 legacy.mod.Doc
strong      0000000000000002 legacy.mod.WithArgs
multi       0000000000000009 in database "otherdb"
multi-oid   0000000000000008 in database "otherdb"
weak        0000000000000007 in database "otherdb"
`, "", -1},
		{"refs --to 01-basic.fs 1", "strong      0000000000000000 persistent.mapping.PersistentMapping\n", "", 0},
		{"analyze --csv 01-basic.fs", `class,records,bytes,current records,current bytes,past records,past bytes
persistent.list.PersistentList,2,471,1,389,1,82
persistent.mapping.PersistentMapping,4,451,2,279,2,172
samplepkg.Doc,3,171,1,68,2,103
total,9,1093,4,736,5,357
`, "", 0},
		{"analyze --csv 02-undo.fs", `class,records,bytes,current records,current bytes,past records,past bytes
persistent.mapping.PersistentMapping,11,439,3,214,8,225
total,11,439,3,214,8,225
`, "", 0},
		{"cmp 01-basic.fs 01-basic.fs", "equal: 5 transactions\n", "", 0},
		{"cmp 01-basic.fs 08-truncated-tail.fs", "transaction 03f594581bbbbbbb: only in the first\n",
			"warning: 08-truncated-tail.fs: offset 1135: transaction 03f594581bbbbbbb is incomplete: 428 bytes ignored\n", 1},
		{"cat 01-basic.fs xyz", "", `usage: neofs cat FILE OID[@TID] [flags]
neofs cat: error: "xyz" is no object id: up to 16 hexadecimal digits
See neofs cat --help.
`, 2},
		{"log 01-basic.fs 2024", "", `usage: neofs log FILE [RANGE] [flags]
neofs log: error: "2024" is no range: FROM..TO
See neofs log --help.
`, 2},
		{"check", "", "usage: neofs check FILE [flags]\nneofs check: error: accepts 1 arg(s), received 0\nSee neofs check --help.\n", 2},
	} {
		t.Run(tt.args, func(t *testing.T) {
			t.Chdir(samples)
			out, errs, code := run(t, "", strings.Fields(tt.args)...)
			if tt.code < 0 { // only the beginning
				if !strings.Contains(out, tt.out) || code != 0 {
					t.Errorf("exit code %d, output:\n%s\nwant:\n%s", code, out, tt.out)
				}
				return
			}
			if diff := cmp.Diff(tt.out, out); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.errs, errs); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
		})
	}
}

func TestDumpAndRestore(t *testing.T) {
	names, err := filepath.Glob(samples + "*.zdump")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		source := strings.TrimSuffix(name, ".zdump") + ".fs"
		want := read(t, name)
		got, _, code := run(t, "", "dump", source)
		if got != want || code != 0 {
			t.Errorf("%s: exit code %d, dump (-want +got):\n%s", source, code, cmp.Diff(want, got))
		}
		path := filepath.Join(t.TempDir(), "Data.fs")
		if _, errs, code := run(t, got, "restore", path); code != 0 {
			t.Errorf("%s: restore: exit code %d: %s", source, code, errs)
			continue
		}
		if again, _, _ := run(t, "", "dump", path); again != want {
			t.Errorf("%s: dump of what was restored (-want +got):\n%s", source, cmp.Diff(want, again))
		}
		if _, errs, code := run(t, got, "restore", path); code != 1 || !strings.HasSuffix(errs, "Data.fs: file already exists\n") {
			t.Errorf("%s: restoring over a file: exit code %d: %s", source, code, errs)
		}
		if _, errs, code := run(t, got, "restore", "--append", path); code != 1 || !strings.Contains(errs, "its id is not above that of the last one") {
			t.Errorf("%s: restoring twice: exit code %d: %s", source, code, errs)
		}
	}
}

// A cluster keeps the last of two records of an object in a transaction.
func TestCompareContentOfDuplicates(t *testing.T) {
	const head = "txn 0000000000000002 \" \"\nuser \"\"\ndescription \"\"\nextension \"\"\n"
	dir := t.TempDir()
	file := func(name, records string) string {
		path := filepath.Join(dir, name)
		if _, errs, code := run(t, head+records+"\n", "restore", path); code != 0 {
			t.Fatal(errs)
		}
		return path
	}
	const one, two = "obj 0000000000000001 3 null:00\none\n", "obj 0000000000000001 3 null:00\ntwo\n"
	twice, first, last := file("twice", one+two), file("first", one), file("last", two)
	for _, tt := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{"cmp", twice, last}, 1, "its 3 bytes of data differ"},
		{[]string{"cmp", "--content", twice, last}, 0, "equal: 1"},
		{[]string{"cmp", "--content", last, twice}, 0, "equal: 1"},
		{[]string{"cmp", "--content", twice, first}, 1, "its 3 bytes of data differ"},
		{[]string{"cmp", twice, twice}, 0, "equal: 1"},
	} {
		if out, errs, code := run(t, "", tt.args...); code != tt.code || !strings.Contains(out, tt.out) {
			t.Errorf("%q: exit code %d, want %d: %s%s", tt.args, code, tt.code, out, errs)
		}
	}
}

func TestDumpOfARange(t *testing.T) {
	all := read(t, samples+"02-undo.zdump")
	out, _, code := run(t, "", "dump", samples+"02-undo.fs", "03f6420003333333..03f6420004444444")
	from, to := strings.Index(all, "txn 03f6420003333333"), strings.Index(all, "txn 03f6420005555555")
	if out != all[from:to] || code != 0 {
		t.Errorf("exit code %d, dump (-want +got):\n%s", code, cmp.Diff(all[from:to], out))
	}
}

func TestIndexWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	write(t, path, read(t, samples+"07-btrees-refs.fs"))
	if out, errs, code := run(t, "", "index", "-w", path); code != 0 || !strings.HasSuffix(out, ".index written: 99 objects\n") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	if read(t, path+".index") != read(t, samples+"07-btrees-refs.fs.index") {
		t.Error("the index differs from that of ZODB")
	}
	write(t, path, read(t, samples+"07-btrees-refs.fs")[:20000])
	if _, errs, code := run(t, "", "index", path); code != 1 || !strings.Contains(errs, "unusable index: it is newer than the file") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestSalvage(t *testing.T) {
	dir := t.TempDir()
	broken, saved := filepath.Join(dir, "broken.fs"), filepath.Join(dir, "saved.fs")
	b := []byte(read(t, samples+"02-undo.fs"))
	copy(b[845:], strings.Repeat("damage ", 12))
	write(t, broken, string(b))
	out, errs, code := run(t, "", "salvage", broken, saved)
	if code != 1 || !strings.HasSuffix(out, "6 transactions with 9 records recovered, 0 of them incomplete; 283 bytes lost in 1 places\n") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	if out, _, code := run(t, "", "check", saved); code != 0 {
		t.Errorf("what was saved has problems:\n%s", out)
	}
	out, _, code = run(t, "", "cmp", "--content", "--all", samples+"02-undo.fs", saved)
	if out != "transaction 03f6420007777777: only in the first\n" || code != 1 {
		t.Errorf("exit code %d: %s", code, out)
	}
	if read(t, broken) != string(b) {
		t.Error("the damaged file was changed")
	}
}

func TestSalvageSaysWhatItDid(t *testing.T) {
	for _, tt := range []struct {
		args      []string
		out, errs string
		code      int
	}{
		{[]string{samples + "damaged/tsreduction.fs", "saved.fs"}, `renumbered: offset 278: transaction 03a0000000000064: its id is out of order, it becomes 03a0000000000003
5 transactions with 5 records recovered, 0 of them incomplete; 0 bytes lost in 0 places
0 fields repaired, 1 transactions renumbered, 0 warnings
`, "", 0},
		{[]string{samples + "damaged/future.fs", "saved.fs"}, `warning: offset 141: transaction 0500000000000000: it is in the future
2 transactions with 2 records recovered, 0 of them incomplete; 0 bytes lost in 0 places
0 fields repaired, 0 transactions renumbered, 1 warnings
`, "", 0},
		{[]string{samples + "damaged/oidflip.fs", "saved.fs"}, `warning: offset 229: transaction 03a0000000000002: object 0000000000000003: its previous record is said to be at 133, which is one of object 0000000000000002: an object id is damaged
2 transactions with 3 records recovered, 0 of them incomplete; 0 bytes lost in 0 places
0 fields repaired, 0 transactions renumbered, 1 warnings
`, "", 0},
		{[]string{"--strict", samples + "damaged/oidflip.fs", "saved.fs"}, "", "an object id is damaged\n", 1},
		{[]string{"--offsets", "391..742", samples + "02-undo.fs", "saved.fs"}, "3 transactions with 3 records recovered, 0 of them incomplete; 0 bytes lost in 0 places\n", "", 0},
		{[]string{samples + "02-undo.fs", "saved.fs", "03f6420003333333..03f6420004444444"}, "2 transactions with 2 records recovered, 0 of them incomplete; 0 bytes lost in 0 places\n", "", 0},
		{[]string{"--offsets", "7..x", samples + "02-undo.fs", "saved.fs"}, "", "is no range of offsets: FROM..TO", 2},
	} {
		dir := t.TempDir()
		args := slices.Clone(tt.args)
		for i, a := range args {
			if a == "saved.fs" {
				args[i] = filepath.Join(dir, a)
			}
		}
		out, errs, code := run(t, "", append([]string{"salvage"}, args...)...)
		if diff := cmp.Diff(tt.out, out); diff != "" || code != tt.code || !strings.Contains(errs, tt.errs) {
			t.Errorf("%q: exit code %d: %s, output (-want +got):\n%s", tt.args, code, errs, diff)
		}
		if _, err := os.Stat(filepath.Join(dir, "saved.fs")); (err == nil) != (code == 0) {
			t.Errorf("%q: exit code %d, and the new file: %v", tt.args, code, err)
		}
	}
}

// What an interrupted export has left is a source like others.
func TestSourceIsNotOverwritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "Data.fs")
	part := path + ".part"
	for _, tt := range []struct {
		source string // a sample
		args   []string
	}{
		{"01-basic.fs", []string{"salvage", part, path}},
		{"01-basic.zdump", []string{"restore", "-i", part, path}},
	} {
		want := read(t, samples+tt.source)
		write(t, part, want)
		if _, errs, code := run(t, "", tt.args...); code != 2 || !strings.Contains(errs, "same file") {
			t.Errorf("%s: exit code %d: %s", tt.args[0], code, errs)
		}
		if read(t, part) != want {
			t.Errorf("%s: the source was changed", tt.args[0])
		}
	}
}

func TestHelpTeaches(t *testing.T) {
	root := newCommand(&cli.Env{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}})
	for _, c := range root.Commands() {
		if !strings.Contains(c.Long, "Exit status: 0") || c.Example == "" {
			t.Errorf("%s: its help says no exit status or has no example", c.Name())
		}
	}
}

// With --strict, no index is made of a damaged file.
func TestStrictIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	write(t, path, read(t, samples+"damaged/oidflip.fs"))
	if out, errs, code := run(t, "", "index", "--write", "--strict", path); code != 1 || out != "" || !strings.Contains(errs, "refused by --strict: 1 record") {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	if _, err := os.Stat(path + ".index"); !os.IsNotExist(err) {
		t.Errorf("an index was written: %v", err)
	}
	if out, errs, code := run(t, "", "index", "--write", path); code != 0 || !strings.Contains(out, "3 objects") || strings.Count(errs, "warning: ") != 2 {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
}

// What is appended to a file must be above all that it has, not only above the last.
func TestAppendOutOfOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	write(t, path, read(t, samples+"damaged/tsreduction.fs"))
	r, err := fsformat.Open(path, fsformat.Options{Renumber: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x, err := r.BuildIndex(t.Context(), nil) // the one that FileStorage makes
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Save(path + ".index"); err != nil {
		t.Fatal(err)
	}
	dump := "txn 03a000000000003d \" \"\nuser \"\"\ndescription \"\"\nextension \"\"\n\n"
	if out, errs, code := run(t, dump, "restore", "--append", path); code != 1 || out != "" || !strings.Contains(errs, "offset 415") {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	if read(t, path) != read(t, samples+"damaged/tsreduction.fs") {
		t.Error("the file was changed")
	}
}

// One revision is another one in a copy; everything else is as it was.
func TestReplace(t *testing.T) {
	record := func(t *testing.T, path, object string) string {
		out, errs, code := run(t, "", "cat", "--raw", path, object)
		if code != 0 {
			return errs
		}
		return out
	}
	source := samples + "02-undo.fs"
	root := record(t, source, "0")
	for _, tt := range []struct {
		name, object, stdin string
		option              []string
		out, differs        string // records of object 1 and 2, and what cmp finds
	}{
		{"the current state becomes the one before", "2", "", []string{"--previous"},
			"replaced: offset 1181: transaction 03f6420008888888: object 0000000000000002: a record without data of its own, now 75 bytes\n",
			"transaction 03f6420008888888: object 0000000000000002: its 75 bytes of data differ from the 75 of the first\n"},
		{"an old one, and what shares its data", "1@03f6420003333333", root, []string{"--data", "-"},
			`replaced: offset 426: transaction 03f6420003333333: object 0000000000000001: 75 bytes, now 64 bytes
replaced: offset 684: transaction 03f6420005555555: object 0000000000000001: a record without data of its own, now 64 bytes, shared with that
`,
			`transaction 03f6420003333333: object 0000000000000001: its 64 bytes of data differ from the 75 of the first
transaction 03f6420005555555: object 0000000000000001: its 64 bytes of data differ from the 75 of the first
`},
		{"deleted", "1", "", []string{"--delete"},
			"replaced: offset 1231: transaction 03f6420008888888: object 0000000000000001: a record without data of its own, now deleted\n",
			"transaction 03f6420008888888: object 0000000000000001 is absent in one of them only\n"},
		{"the newest at a moment", "1@2024-02-02T00:00:00.8Z", "", []string{"--previous"},
			`replaced: offset 426: transaction 03f6420003333333: object 0000000000000001: 75 bytes, now 75 bytes
replaced: offset 684: transaction 03f6420005555555: object 0000000000000001: a record without data of its own, now 75 bytes, shared with that
`,
			`transaction 03f6420003333333: object 0000000000000001: its 75 bytes of data differ from the 75 of the first
transaction 03f6420005555555: object 0000000000000001: its 75 bytes of data differ from the 75 of the first
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "new.fs")
			before := read(t, source)
			out, errs, code := run(t, tt.stdin, append([]string{"replace", source, path, tt.object}, tt.option...)...)
			if diff := cmp.Diff(tt.out, out); diff != "" || code != 0 || errs != "" {
				t.Errorf("exit code %d: %s, output (-want +got):\n%s", code, errs, diff)
			}
			if out, _, _ := run(t, "", "cmp", "--content", "--all", source, path); out != tt.differs {
				t.Errorf("differences: %s", cmp.Diff(tt.differs, out))
			}
			if out, _, _ := run(t, "", "check", path); strings.Contains(out, "error") && !strings.Contains(out, "no problems") {
				t.Errorf("the new file has problems:\n%s", out)
			}
			if read(t, source) != before {
				t.Error("the source was changed")
			}
		})
	}
	bad := samples + "damaged/badpickle.fs"
	for _, tt := range []struct {
		args []string
		code int
		errs string
	}{
		{[]string{bad, "new.fs", "1", "--previous"}, 1, "object 0000000000000001: there is no revision before that of transaction 03a0000000000001"},
		{[]string{bad, "new.fs", "1", "--data", "-"}, 1, "the new data are empty"},
		{[]string{bad, "new.fs", "9", "--delete"}, 1, "object 0000000000000009: not found"},
		{[]string{bad, "new.fs", "1", "--data", bad}, 1, "the new data of object 0000000000000001: pickle: offset"},
		{[]string{bad, "new.fs", "1"}, 2, "exactly one of --previous, --data and --delete"},
		{[]string{bad, "new.fs", "1", "--delete", "--previous"}, 2, "exactly one of --previous, --data and --delete"},
		{[]string{bad, bad, "1", "--delete"}, 2, "same file"},
	} {
		path := filepath.Join(t.TempDir(), "new.fs")
		args := slices.Clone(tt.args)
		if args[1] == "new.fs" {
			args[1] = path
		}
		_, errs, code := run(t, "", append([]string{"replace"}, args...)...)
		if code != tt.code || !strings.Contains(errs, tt.errs) {
			t.Errorf("%q: exit code %d: %s", tt.args, code, errs)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%q: there is a new file", tt.args)
		}
	}
	lost := filepath.Join(t.TempDir(), "lost.fs") // a back-pointer that leads nowhere
	write(t, lost, read(t, source)[:1231+42]+"\x00\x00\x00\x00\x00\x00\x00\x01"+read(t, source)[1231+50:])
	for _, option := range []string{"--previous", "--delete"} {
		path := filepath.Join(t.TempDir(), "new.fs")
		if _, errs, code := run(t, "", "replace", option, lost, path, "1"); code != 0 {
			t.Error(errs)
		}
		if out, _, code := run(t, "", "check", path); code != 0 {
			t.Errorf("%s: the new file has problems:\n%s", option, out)
		}
	}
	path := filepath.Join(t.TempDir(), "new.fs")
	if _, errs, code := run(t, "", "replace", "--delete", bad, path, "1"); code != 0 {
		t.Fatal(errs)
	}
	out, _, _ := run(t, "", "check", path)
	if strings.Contains(out, "object 0000000000000001: Python") || strings.Count(out, "Python cannot load") != 2 {
		t.Errorf("after the removal of an object:\n%s", out)
	}
}
