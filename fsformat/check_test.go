package fsformat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat/pickle"
)

// checkAll returns the problems of a file, one a line.
func checkAll(t testing.TB, file []byte) (Summary, string) {
	t.Helper()
	var out []string
	sum, err := Check(t.Context(), openBytes(t, file), CheckOptions{Now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}, func(p Problem) {
		out = append(out, p.String())
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum, strings.Join(out, "\n")
}

func TestGoodFilesHaveNoProblems(t *testing.T) {
	for _, name := range append(sampleNames, "site") {
		file := readFile(t, samples+name+".fs")
		if tail := (Tail{}); strings.HasPrefix(name, "08") || strings.HasPrefix(name, "09") {
			var err error
			if tail, err = openBytes(t, file).Tail(t.Context()); err != nil {
				t.Fatal(err)
			}
			file = file[:tail.End]
		}
		if _, problems := checkAll(t, file); problems != "" {
			t.Errorf("%s:\n%s", name, problems)
		}
	}
}

func TestSampleSite(t *testing.T) {
	sum, _ := checkAll(t, readFile(t, samples+"site.fs"))
	if sum.Transactions < 300 || sum.Objects < 500 || sum.BackPointers == 0 || sum.Absent == 0 {
		t.Errorf("%+v is no realistic sample", sum)
	}
}

func put64(file []byte, at int, n uint64) []byte {
	b := bytes.Clone(file)
	binary.BigEndian.PutUint64(b[at:], n)
	return b
}

func put(file []byte, at int, s string) []byte {
	b := bytes.Clone(file)
	copy(b[at:], s)
	return b
}

// Transactions of 02-undo: 4, 391, 551, 643, 742, 845, 1128. Records of T1: 43,
// 149, 266; T2: 426 (prev 149); T3: 585 (back 149); T6: 886, 1003.
func TestDamageIsFound(t *testing.T) {
	undo := readFile(t, samples+"02-undo.fs")
	for _, tt := range []struct {
		name string
		file []byte
		want string
	}{
		{"incomplete", undo[:1200], "error: offset 1128: transaction 03f6420008888888 is incomplete: 72 bytes ignored"},
		{"a few bytes", undo[:1130], "error: offset 1128: 2 bytes are too few for a transaction: 2 bytes ignored"},
		{"zeros", append(bytes.Clone(undo), make([]byte, 100)...), "error: offset 1289: the last 100 bytes are no transaction: 100 bytes ignored"},
		{"voted", put(undo, 1128+16, "c"), "error: offset 1128: transaction 03f6420008888888 was voted but not finished: 161 bytes ignored"},
		{"voted in the middle", put(undo, 391+16, "c"), "error: offset 391: transaction 03f6420003333333: it was voted but not finished, and 738 bytes follow it"},
		{"status", put(undo, 391+16, "x"), "error: offset 391: transaction 03f6420003333333: invalid status 'x'"},
		{"tid too great", put64(undo, 391, 0x03f6420009999999), `error: offset 426: transaction 03f6420009999999: object 0000000000000001: the record says that its transaction is 03f6420003333333
error: offset 551: transaction 03f6420004444444: its id is not above that of the previous transaction, 03f6420009999999
error: offset 585: transaction 03f6420004444444: object 0000000000000001: its previous record is said to be at 426, but is at 149`},
		{"length", put64(undo, 391+8, 153), `error: offset 391: transaction 03f6420003333333: its length is 153 at its beginning and 38915 at its end
error: offset 391: 160 bytes are damaged: the next intact transaction, 03f6420004444444, is at 551
error: offset 585: transaction 03f6420004444444: object 0000000000000001: its previous record is said to be at 426, but is at 149`},
		{"length far too great", put64(undo, 391+8, 1<<40), `error: offset 391: transaction 03f6420003333333: its length 1099511627776 passes the end of the file, which ends with an intact transaction
error: offset 391: 160 bytes are damaged: the next intact transaction, 03f6420004444444, is at 551
error: offset 585: transaction 03f6420004444444: object 0000000000000001: its previous record is said to be at 426, but is at 149`},
		{"length 0", put64(undo, 391+8, 0), `error: offset 391: transaction 03f6420003333333: its length 0 is less than that of its header, 35
error: offset 391: 160 bytes are damaged: the next intact transaction, 03f6420004444444, is at 551
error: offset 585: transaction 03f6420004444444: object 0000000000000001: its previous record is said to be at 426, but is at 149`},
		{"repeated length", put64(undo, 391+152, 7), `error: offset 391: transaction 03f6420003333333: its length is 152 at its beginning and 7 at its end`},
		{"object", put64(undo, 1003, 5), `error: offset 1003: transaction 03f6420007777777: object 0000000000000005: its previous record is said to be at 787, but is at 0
error: offset 1231: transaction 03f6420008888888: object 0000000000000001: its previous record is said to be at 1003, but is at 787`},
		{"tid of a record", put64(undo, 1003+8, 5), `error: offset 1003: transaction 03f6420007777777: object 0000000000000001: the record says that its transaction is 0000000000000005
error: offset 1231: transaction 03f6420008888888: object 0000000000000001: its previous record is said to be at 1003, but is at 787`},
		{"previous record", put64(undo, 1003+16, 684), `error: offset 1003: transaction 03f6420007777777: object 0000000000000001: its previous record is said to be at 684, but is at 787`},
		{"transaction of a record", put64(undo, 1003+24, 846), `error: offset 1003: transaction 03f6420007777777: object 0000000000000001: the record says that its transaction is at 846, not 845
error: offset 1231: transaction 03f6420008888888: object 0000000000000001: its previous record is said to be at 1003, but is at 787`},
		{"version", put(undo, 1003+32, "\x00\x07"), `error: offset 1003: transaction 03f6420007777777: object 0000000000000001: the record has a version name of 7 bytes: versions are not supported
error: offset 1231: transaction 03f6420008888888: object 0000000000000001: its previous record is said to be at 1003, but is at 787`},
		{"data too long", put64(undo, 1003+34, 76), `error: offset 1003: transaction 03f6420007777777: object 0000000000000001: the record of 76 bytes of data passes the end of its transaction at 1120
error: offset 1231: transaction 03f6420008888888: object 0000000000000001: its previous record is said to be at 1003, but is at 787`},
		{"data longer than anything", put64(undo, 1003+34, 1<<63), `error: offset 1003: transaction 03f6420007777777: object 0000000000000001: the record of 9223372036854775808 bytes of data passes the end of its transaction at 1120
error: offset 1231: transaction 03f6420008888888: object 0000000000000001: its previous record is said to be at 1003, but is at 787`},
		{"data too short", put64(undo, 1003+34, 74), `error: offset 1003: transaction 03f6420007777777: object 0000000000000001: Python cannot load its data: pickle: offset 74: the data ends before STOP
error: offset 1119: transaction 03f6420007777777: 1 bytes are left in the transaction, too few for a data record`},
		{"back-pointer to another object", put64(undo, 585+42, 43), `error: offset 585: transaction 03f6420004444444: object 0000000000000001: its back-pointer leads to 43, a record of object 0000000000000000`},
		{"back-pointer forwards", put64(undo, 585+42, 1003), `error: offset 585: transaction 03f6420004444444: object 0000000000000001: its back-pointer leads to 1003, where no earlier record can be`},
		{"back-pointer into the magic", put64(undo, 585+42, 1), `error: offset 585: transaction 03f6420004444444: object 0000000000000001: its back-pointer leads to 1, where no earlier record can be`},
		{"pickle", put(undo, 1003+42, "\xff"), `error: offset 1003: transaction 03f6420007777777: object 0000000000000001: Python cannot load its data: pickle: offset 0: unknown opcode 0xff`},
		{"unknown wrapping", put(undo, 1003+42, ".q"), `warning: offset 1003: transaction 03f6420007777777: object 0000000000000001: it is wrapped in an unknown way (".q"): contents like these are not checked, and not reported again`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sum, got := checkAll(t, tt.file)
			if diff := cmp.Diff(strings.Split(tt.want, "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if (sum.Errors > 0) != strings.Contains(got, "error: ") {
				t.Errorf("%d errors counted", sum.Errors)
			}
		})
	}
}

// A byte that is changed anywhere but in user, description, strings or numbers of
// the application is found.
func TestMostDamageIsFound(t *testing.T) {
	undo := readFile(t, samples+"02-undo.fs")
	missed := 0
	for i := magicLen; i < len(undo); i++ {
		b := bytes.Clone(undo)
		b[i] ^= 0x55
		if _, problems := checkAll(t, b); problems == "" {
			missed++
		}
	}
	// About 410 of 1289: descriptions and users, and in the pickles the names of
	// classes and keys, and contents of strings. Nothing in a Data.fs protects them.
	if missed > 420 {
		t.Errorf("%d of %d damaged bytes are not found", missed, len(undo))
	}
}

func TestDanglingReferencesAreWarnings(t *testing.T) {
	var file bytes.Buffer
	file.WriteString("FS30")
	add := func(at tid.TID, recs ...RecordHeader) {
		start := int64(file.Len())
		b := at.Append(nil)
		b = append(b, make([]byte, 8)...)
		b = append(b, " \x00\x00\x00\x00\x00\x00"...)
		for _, r := range recs {
			r.TID, r.TxnPos = at, start
			data := ""
			if r.DataLen > 0 { // the object it refers to, plus one
				data = "\x80\x03cm\nC\nq\x00.\x80\x03C\x08" + string(tid.OID(r.DataLen-1).Append(nil)) + "h\x00\x86Q."
				r.DataLen = int64(len(data))
			}
			b = append(r.appendTo(b), data...)
		}
		binary.BigEndian.PutUint64(b[8:], uint64(len(b)))
		b = binary.BigEndian.AppendUint64(b, uint64(len(b)))
		file.Write(b)
	}
	add(0x0406000000000000, RecordHeader{OID: 0, DataLen: 1 + 1}, RecordHeader{OID: 1, DataLen: 1 + 2}, RecordHeader{OID: 2, DataLen: 1})
	add(0x0406000100000000, RecordHeader{OID: 3, DataLen: 1 + 7})
	_, got := checkAll(t, file.Bytes())
	want := "warning: offset 265: transaction 0406000100000000: object 0000000000000003: it refers to object 0000000000000007, which is not there"
	if got != want {
		t.Errorf("problems:\n%s\nwant:\n%s", got, want)
	}
	prev, err := openBytes(t, file.Bytes()).BuildIndex(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	pos, _ := prev.Get(2)
	add(0x0406000200000000, RecordHeader{OID: 2, Prev: pos})
	_, got = checkAll(t, file.Bytes())
	want = "warning: offset 96: transaction 0406000000000000: object 0000000000000001: it refers to object 0000000000000002, which was deleted or its creation undone\n" + want
	if got != want {
		t.Errorf("problems:\n%s\nwant:\n%s", got, want)
	}
	add(tid.FromTime(time.Date(2033, 1, 1, 0, 0, 0, 0, time.UTC)))
	if _, got = checkAll(t, file.Bytes()); !strings.HasPrefix(got, "warning: offset 423: transaction 043f1e8000000000: it is in the future\n") {
		t.Errorf("problems:\n%s", got)
	}
}

// The reader refuses what the checker reports, with the same words.
func TestReaderStopsAtDamage(t *testing.T) {
	undo := readFile(t, samples+"02-undo.fs")
	for name, file := range map[string][]byte{
		"header":       put64(undo, 391+8, 1<<40),
		"record":       put64(undo, 1003+24, 846),
		"back-pointer": put64(undo, 585+42, 43),
	} {
		_, problems := checkAll(t, file)
		first, _, _ := strings.Cut(problems, "\n")
		var err error
		for tr, e := range openBytes(t, file).Transactions(t.Context(), 0, tid.Max) {
			if err = e; err != nil {
				break
			}
			for _, e := range tr.Records {
				if err = e; err != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		if !errors.As(err, new(*CorruptError)) || "error: "+strings.TrimPrefix(err.Error(), "Data.fs: ") != first {
			t.Errorf("%s: %v, want %s", name, err, first)
		}
	}
}

func TestSampleReferencesAndClasses(t *testing.T) {
	var s pickle.Scanner
	for _, name := range sampleNames {
		want, r := readSample(t, name), openSample(t, name)
		records := map[int64]sampleRecord{}
		for _, tr := range want.Transactions {
			for _, rec := range tr.Records {
				records[rec.Pos] = rec
			}
		}
		for tr, err := range r.Scan(t.Context(), 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			for p, err := range tr.Places {
				if err != nil {
					t.Fatal(err)
				}
				if p.DataLen == 0 {
					continue
				}
				data := make([]byte, p.DataLen)
				if err := readFull(r.r, data, p.DataPos()); err != nil {
					t.Fatal(err)
				}
				w := records[p.Pos]
				module, class, err := s.Class(data)
				if got := string(module) + "." + string(class); err != nil || got != w.Class {
					t.Errorf("%s: class at %d: %s, %v, want %s", name, p.Pos, got, err, w.Class)
				}
				refs, err := s.References(data)
				if err != nil {
					t.Errorf("%s: references at %d: %v", name, p.Pos, err)
				}
				var got, wantRefs []string
				for _, ref := range refs {
					got = append(got, ref.Kind.String()+" "+string(ref.Database)+" "+tid.OID(ref.OID).String())
				}
				for _, ref := range w.References {
					wantRefs = append(wantRefs, ref.Kind+" "+ref.DB+" "+ref.OID)
				}
				if diff := cmp.Diff(wantRefs, got); diff != "" {
					t.Errorf("%s: references at %d (-want +got):\n%s", name, p.Pos, diff)
				}
			}
		}
	}
}

// What Python refuses is an error by object and reason, whatever its references.
func TestPicklesThatPythonCannotLoad(t *testing.T) {
	sum, got := checkAll(t, readFile(t, samples+"damaged/badpickle.fs"))
	want := `error: offset 133: transaction 03a0000000000001: object 0000000000000001: Python cannot load its data: pickle: offset 15: a text that is no UTF-8
error: offset 203: transaction 03a0000000000001: object 0000000000000002: Python cannot load its data: pickle: offset 24: a key without a value: 3 items for SETITEMS
error: offset 271: transaction 03a0000000000001: object 0000000000000003: Python cannot load its data: pickle: offset 16: a string that is not quoted: "'abc"`
	if diff := cmp.Diff(want, got); diff != "" || sum.Errors != 3 {
		t.Errorf("%d errors (-want +got):\n%s", sum.Errors, diff)
	}
}

func TestEmptyFilesAreNoDatabases(t *testing.T) {
	for _, tt := range []struct {
		file             string
		errors, warnings int64
		want             string
	}{
		{"", 1, 0, "error: offset 0: the file is empty"},
		{"FS30", 0, 1, "warning: offset 0: the file has no transaction"},
	} {
		sum, got := checkAll(t, []byte(tt.file))
		if !strings.HasPrefix(got, tt.want) || sum.Errors != tt.errors || sum.Warnings != tt.warnings {
			t.Errorf("%q: %d errors, %d warnings: %s", tt.file, sum.Errors, sum.Warnings, got)
		}
	}
}

// What only some Python loads is a warning.
func TestPicklesThatNotAllLoad(t *testing.T) {
	legacy := readFile(t, samples+"10-legacy-fs21.fs")
	undo := readFile(t, samples+"02-undo.fs")
	strings21 := put(undo, 0, "FS21")
	for _, file := range [][]byte{undo, strings21} {
		copy(file[bytes.Index(file, []byte("X\x01\x00\x00\x00v")):], "U\x04\xff\xff\xff\xff")
	}
	if _, got := checkAll(t, legacy); got != "" {
		t.Errorf("problems:\n%s", got)
	}
	if _, got := checkAll(t, strings21); strings.Contains(got, "Python 2") {
		t.Errorf("problems of what Python 2 loads:\n%s", got)
	}
	if _, got := checkAll(t, undo); !strings.Contains(got, "its data have a str of Python 2 that is not ASCII") {
		t.Errorf("problems:\n%s", got)
	}
}
