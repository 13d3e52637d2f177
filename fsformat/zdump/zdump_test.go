package zdump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

func sampleNames(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob("../../testdata/fs/*.zdump")
	if err != nil || len(names) < 11 {
		t.Fatalf("samples %v, %v", names, err)
	}
	for i, n := range names {
		names[i] = strings.TrimSuffix(n, ".zdump")
	}
	return names
}

func dump(t testing.TB, path string, hashOnly bool) []byte {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	w := NewWriter(&out, hashOnly)
	for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(tr); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestDumpIsThatOfZodbtools(t *testing.T) {
	for _, name := range sampleNames(t) {
		want, err := os.ReadFile(name + ".zdump")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fmt.Sprintf("%q", bytes.SplitAfter(want, []byte("\n"))), fmt.Sprintf("%q", bytes.SplitAfter(dump(t, name+".fs", false), []byte("\n")))); diff != "" {
			t.Errorf("%s (-zodbtools +got):\n%s", name, diff)
		}
	}
}

func TestRestoreGivesTheSameDump(t *testing.T) {
	for _, name := range sampleNames(t) {
		want := dump(t, name+".fs", false)
		path := filepath.Join(t.TempDir(), "Data.fs")
		w, err := fsformat.Create(path, fsformat.WriterOptions{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		for tr, err := range Read(bytes.NewReader(want), w.LoadSerial) {
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Append(tr); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := dump(t, path, false); !bytes.Equal(got, want) {
			t.Errorf("%s: dump of the restored file differs:\n%s", name, cmp.Diff(string(want), string(got)))
		}
	}
}

func TestHashOnly(t *testing.T) {
	b := dump(t, "../../testdata/fs/01-basic.fs", true)
	if !bytes.Contains(b, []byte("obj 0000000000000000 64 sha1:d4b0bf30c5132b1ec57da7fe61b080970eea3418 -\n")) {
		t.Errorf("dump:\n%s", b)
	}
	for tr, err := range Read(bytes.NewReader(b), nil) {
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range tr.Records {
			if !errors.Is(err, ErrHashOnly) {
				t.Errorf("error %v, want ErrHashOnly", err)
			}
		}
		break
	}
}

func TestBrokenDumps(t *testing.T) {
	const head = "txn 0000000000000002 \" \"\nuser \"\"\ndescription \"\"\nextension \"\"\n"
	for _, tt := range []struct{ name, in, want string }{
		{"no transaction", "hello\n", `dump: line 1: "hello" is no head of a transaction`},
		{"no end", head, "dump: line 4: unexpected EOF"},
		{"cut line", "txn 00", "dump: line 1: unexpected EOF"},
		{"bad tid", "txn xyz \" \"\n", `dump: line 1: transaction id "xyz": want 16 hexadecimal digits`},
		{"bad status", "txn 0000000000000002 \"ab\"\n", `dump: line 1: "\"ab\"" is no status`},
		{"no user", "txn 0000000000000002 \" \"\nname \"\"\n", `dump: line 2: "name \"\"" instead of the user`},
		{"bad escape", "txn 0000000000000002 \" \"\nuser \"\\q\"\n", `dump: line 2: "\"\\q\"" has an unknown escape \q`},
		{"bad object", head + "obj 1 delete\n", `dump: line 5: object id "1": want 16 hexadecimal digits`},
		{"cut data", head + "obj 0000000000000001 9 null:00\nabc", "dump: line 5: object 0000000000000001: unexpected EOF"},
		{"a size far beyond", head + "obj 0000000000000001 99999999999999 null:00\nabc", "dump: line 5: object 0000000000000001: unexpected EOF"},
		{"damaged data", head + "obj 0000000000000001 3 crc32:00000000\nabc\n\n", "dump: line 6: object 0000000000000001: its crc32 is 352441c2, not 00000000: the data are damaged"},
		{"unknown digest", head + "obj 0000000000000001 3 md9:00\nabc\n\n", `dump: line 5: object 0000000000000001: unknown digest "md9"`},
		{"from later", head + "obj 0000000000000001 from 0000000000000002\n", "dump: line 5: object 0000000000000001: its data are those of 0000000000000002, which is not earlier"},
		{"from zero", head + "obj 0000000000000001 from 0000000000000000\n", "dump: line 5: object 0000000000000001: its data are those of transaction 0000000000000000, which cannot be"},
		{"from nothing", head + "obj 0000000000000001 from 0000000000000001\n", "dump: line 5: object 0000000000000001: finding the data of transaction 0000000000000001: not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := readAll(tt.in, func(tid.OID, tid.TID) ([]byte, error) { return nil, txn.ErrNotFound })
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

// A record can be a copy of one without data, as after the undo of a deletion's undo.
// zodbtools writes "delete" there; backups keep what it is a copy of.
func TestCopyOfADeletion(t *testing.T) {
	const in = "txn 0000000000000002 \" \"\nuser \"\"\ndescription \"\"\nextension \"\"\nobj 0000000000000001 from 0000000000000001\n\n"
	for tr, err := range Read(strings.NewReader(in), func(tid.OID, tid.TID) ([]byte, error) { return nil, nil }) {
		if err != nil {
			t.Fatal(err)
		}
		for rec, err := range tr.Records {
			if err != nil || rec.Data != nil || rec.DataTID != 1 {
				t.Errorf("record %+v, %v", rec, err)
			}
		}
	}
}

// A record of no bytes is no deletion.
func TestEmptyData(t *testing.T) {
	const in = "txn 0000000000000002 \" \"\nuser \"\"\ndescription \"\"\nextension \"\"\nobj 0000000000000001 0 null:00\n\n\n"
	for tr, err := range Read(strings.NewReader(in), nil) {
		if err != nil {
			t.Fatal(err)
		}
		for rec, err := range tr.Records {
			if err != nil || rec.Data == nil || len(rec.Data) > 0 {
				t.Errorf("record %+v, %v", rec, err)
			}
		}
	}
}

func TestObjectsOutOfOrderAreSorted(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out, true)
	tr := &txn.Transaction{TID: 1, Status: ' ', Records: txn.Slice([]txn.Record{
		{OID: 3}, {OID: 1, DataTID: 5, Data: []byte("x")}, {OID: 2}, {OID: 1},
	})}
	if err := w.Write(tr); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	want := `txn 0000000000000001 " "
user ""
description ""
extension ""
obj 0000000000000001 from 0000000000000005
obj 0000000000000001 delete
obj 0000000000000002 delete
obj 0000000000000003 delete

`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("dump (-want +got):\n%s", diff)
	}
}

func FuzzRead(f *testing.F) {
	for _, name := range sampleNames(f) {
		b, err := os.ReadFile(name + ".zdump")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	load := func(tid.OID, tid.TID) ([]byte, error) { return []byte("data"), nil }
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		w := NewWriter(&out, false)
		for tr, err := range Read(bytes.NewReader(b), load) {
			if err != nil {
				return // refused
			}
			var recs []txn.Record
			for rec, err := range tr.Records {
				if err != nil {
					return // refused
				}
				c := *rec
				c.Data = bytes.Clone(c.Data)
				recs = append(recs, c)
			}
			tr.Records = txn.Slice(recs)
			if err := w.Write(tr); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := readAll(out.String(), load); err != nil {
			t.Errorf("%q is written as %q, which is refused: %v", b, out.String(), err)
		}
	})
}

func readAll(in string, load LoadFunc) error {
	for tr, err := range Read(strings.NewReader(in), load) {
		if err != nil {
			return err
		}
		for _, err := range tr.Records {
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// A scanner can begin at the line of any object, which is where it says it was.
func TestScannerPositions(t *testing.T) {
	for _, name := range sampleNames(t) {
		b, err := os.ReadFile(name + ".zdump")
		if err != nil {
			t.Fatal(err)
		}
		s := NewScanner(bytes.NewReader(b))
		for {
			tr, err := s.Transaction()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(b[s.Pos():], []byte("txn "+tr.TID.String())) {
				t.Fatalf("%s: transaction %v is not at %d", name, tr.TID, s.Pos())
			}
			for {
				rec, err := s.Record()
				if err != nil {
					t.Fatal(err)
				}
				if rec == nil {
					break
				}
				again := NewScanner(bytes.NewReader(b[s.Pos():]))
				again.Resume(tr.TID)
				if got, err := again.Record(); err != nil || !cmp.Equal(got, rec) {
					t.Fatalf("%s: record %+v, %v at %d, want %+v", name, got, err, s.Pos(), rec)
				}
			}
		}
		if s.Offset() != int64(len(b)) || s.Open() {
			t.Errorf("%s: read %d of %d bytes, open %v", name, s.Offset(), len(b), s.Open())
		}
	}
}
