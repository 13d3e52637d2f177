package fsformat

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

const samples = "../testdata/fs/"

var sampleNames = []string{
	"01-basic", "02-undo", "03-creation-undone", "04-deleted", "05-before-pack", "05-packed", "06-metadata",
	"07-btrees-refs", "08-truncated-tail", "09-voted-tail", "10-legacy-fs21",
}

var _ txn.History = (*Reader)(nil)

// sample is what an independent parser says about a file.
type sample struct {
	Magic        string
	ValidEnd     int64 `json:"valid_end"`
	Tail         *string
	LastTID      string `json:"last_tid"`
	Size         int64
	Objects      int `json:"objects_in_index"`
	Transactions []struct {
		Pos          int64
		TID          string
		Tlen         int64
		Status       string
		User         any
		Description  any
		ExtensionHex string `json:"extension_hex"`
		Records      []sampleRecord
	}
}

type sampleRecord struct {
	Pos        int64
	OID        string
	Prev       int64
	Kind       string
	Size       int
	Sha1       *string
	Back       int64
	DataTID    string `json:"data_tid"`
	Class      string
	References []struct {
		Kind, OID string
		DB        string
	}
}

func readSample(t *testing.T, name string) *sample {
	t.Helper()
	var s sample
	if err := json.Unmarshal(readFile(t, samples+name+".fs.json"), &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openBytes(t testing.TB, b []byte) *Reader {
	t.Helper()
	r, err := NewReader(bytes.NewReader(b), int64(len(b)), "Data.fs", Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func openSample(t testing.TB, name string) *Reader {
	t.Helper()
	r, err := Open(samples+name+".fs", Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func metaBytes(t *testing.T, v any) []byte {
	switch v := v.(type) {
	case string:
		return []byte(v)
	case map[string]any:
		b, err := hex.DecodeString(v["hex"].(string))
		if err == nil {
			return b
		}
	}
	t.Fatalf("unexpected metadata %v", v)
	return nil
}

func TestSamplesAsAnIndependentParserSeesThem(t *testing.T) {
	for _, name := range sampleNames {
		t.Run(name, func(t *testing.T) {
			want, r := readSample(t, name), openSample(t, name)
			tail, err := r.Tail(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if tail.End != want.ValidEnd || tail.Ignored != want.Size-want.ValidEnd || tail.LastTID.String() != want.LastTID {
				t.Errorf("tail = %+v, want the end at %d and %s", tail, want.ValidEnd, want.LastTID)
			}
			if (tail.Reason != "") != (want.Tail != nil) {
				t.Errorf("tail: %q, want %v", tail.Reason, want.Tail)
			}
			if string(r.Magic()) != want.Magic {
				t.Errorf("magic %q, want %q", r.Magic(), want.Magic)
			}
			n := 0
			for tr, err := range r.Scan(t.Context(), 0, tid.Max) {
				if err != nil {
					t.Fatal(err)
				}
				for want.Transactions[n].Status == "u" {
					n++
				}
				w := want.Transactions[n]
				n++
				if tr.Head.Pos != w.Pos || tr.TID.String() != w.TID || tr.Head.Len != w.Tlen || string(tr.Status) != w.Status ||
					!bytes.Equal(tr.User, metaBytes(t, w.User)) || !bytes.Equal(tr.Description, metaBytes(t, w.Description)) ||
					hex.EncodeToString(tr.Extension) != w.ExtensionHex {
					t.Errorf("transaction %+v, want %+v", tr, w)
				}
				compareRecords(t, tr, w.Records)
			}
			for n < len(want.Transactions) && want.Transactions[n].Status == "u" {
				n++
			}
			if n != len(want.Transactions) {
				t.Errorf("%d transactions, want %d", n, len(want.Transactions))
			}
		})
	}
}

func compareRecords(t *testing.T, tr *Transaction, want []sampleRecord) {
	t.Helper()
	n := 0
	for rec, err := range tr.Places {
		if err != nil {
			t.Fatal(err)
		}
		w := want[n]
		n++
		kind := "data"
		if rec.DataLen == 0 {
			kind = "back"
			if rec.Back == 0 {
				kind = "zero"
			}
		}
		if rec.Pos != w.Pos || rec.OID.String() != w.OID || rec.Prev != w.Prev || kind != w.Kind || rec.Back != w.Back {
			t.Errorf("record %+v, want %+v", rec, w)
		}
	}
	if n != len(want) {
		t.Errorf("transaction %v: %d records, want %d", tr.TID, n, len(want))
	}
	n = 0
	for rec, err := range tr.Records {
		if err != nil {
			t.Fatal(err)
		}
		w := want[n]
		n++
		if (rec.Data == nil) != (w.Sha1 == nil) {
			t.Errorf("record of %v: data %q, want sha1 %v", rec.OID, rec.Data, w.Sha1)
		} else if sum := sha1.Sum(rec.Data); rec.Data != nil && hex.EncodeToString(sum[:]) != *w.Sha1 {
			t.Errorf("record of %v: sha1 %x, want %s", rec.OID, sum, *w.Sha1)
		}
		if rec.DataTID == 0 && w.DataTID != "" || rec.DataTID != 0 && rec.DataTID.String() != w.DataTID {
			t.Errorf("record of %v: data of %v, want %q", rec.OID, rec.DataTID, w.DataTID)
		}
	}
}

// copyFile copies a sample through transactions and returns the bytes.
func copyFile(t *testing.T, r *Reader, opt WriterOptions) []byte {
	t.Helper()
	opt.NoSync = true
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
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
	return readFile(t, path)
}

func TestCopyIsExact(t *testing.T) {
	for _, name := range sampleNames {
		t.Run(name, func(t *testing.T) {
			r := openSample(t, name)
			opt := WriterOptions{Magic: r.Magic()}
			want := readFile(t, samples+name+".fs")[:readSample(t, name).ValidEnd]
			switch name {
			case "05-packed":
				// Where FileStorage's pack has forgotten the previous record, the copy
				// knows it, unless asked to forget it too.
				opt.PackedUpTo = 0x03f8420002222222
				for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
					if err != nil {
						t.Fatal(err)
					}
					if tr.Status == txn.Packed {
						opt.PackedUpTo = tr.TID
					}
				}
			case "10-legacy-fs21":
				// The transaction undone in place is left out, so that all after it moves.
				got := copyFile(t, r, opt)
				if diff := cmp.Diff(dumpRecords(t, r), dumpRecords(t, openBytes(t, got))); diff != "" {
					t.Errorf("copy differs (-source +copy):\n%s", diff)
				}
				return
			}
			got := copyFile(t, r, opt)
			if diff := cmp.Diff(hex.Dump(want), hex.Dump(got)); diff != "" {
				t.Errorf("copy differs (-source +copy):\n%s", diff)
			}
		})
	}
}

func TestCopyOfAPackedFileFillsInPreviousRecords(t *testing.T) {
	r := openSample(t, "05-packed")
	want := readFile(t, samples+"05-packed.fs")
	got := copyFile(t, r, WriterOptions{})
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	var differ []int
	for i := range want {
		if got[i] != want[i] {
			differ = append(differ, i)
		}
	}
	if diff := cmp.Diff([]int{742 + 16 + 7}, differ); diff != "" || got[742+16+7] != 33 {
		t.Errorf("differing bytes (-want +got):\n%s", diff)
	}
}

// Records and transactions around and beyond the size of the window.
func TestLargeRecords(t *testing.T) {
	for _, large := range []int{0, 60 << 10, windowMax / 2, windowMax, 3 * windowMax, 2 << 20} {
		file := generate(8<<20, large)
		r := openBytes(t, file)
		if got := copyFile(t, r, WriterOptions{}); !bytes.Equal(got, file) {
			t.Errorf("records of %d bytes: the copy differs", large)
		}
		sum, problems := checkAll(t, file)
		if problems != "" {
			t.Errorf("records of %d bytes: %s", large, problems)
		}
		x, err := r.BuildIndex(t.Context(), nil)
		if err != nil || x.Len() != sum.Objects || x.LastTID != sum.LastTID {
			t.Errorf("records of %d bytes: %d objects up to %v, %v; the check has seen %+v", large, x.Len(), x.LastTID, err, sum)
		}
		n := int64(0)
		for tr, err := range r.ScanBackwards(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			for rec, err := range tr.Records {
				if err != nil {
					t.Fatal(err)
				}
				n += int64(len(rec.Data))
			}
		}
		if n != sum.DataBytes {
			t.Errorf("records of %d bytes: %d bytes of data backwards, %d forwards", large, n, sum.DataBytes)
		}
	}
}

// dumpRecords is all of a file but positions.
func dumpRecords(t *testing.T, r *Reader) []string {
	t.Helper()
	var out []string
	for tr, err := range r.Transactions(context.Background(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%v %c %q %q %q", tr.TID, tr.Status, tr.User, tr.Description, tr.Extension))
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("  %v %v %q", rec.OID, rec.DataTID, rec.Data))
		}
	}
	return out
}

func TestTransactionsBetween(t *testing.T) {
	for _, name := range sampleNames {
		r := openSample(t, name)
		var all []tid.TID
		for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, tr.TID)
		}
		for i, after := range all {
			for _, after := range []tid.TID{after, after - 1, after + 1} {
				var got, want []tid.TID
				upTo := all[min(i+2, len(all)-1)]
				for tr, err := range r.Transactions(t.Context(), after, upTo) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, tr.TID)
				}
				for _, x := range all {
					if x > after && x <= upTo {
						want = append(want, x)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s in (%v, %v] (-want +got):\n%s", name, after, upTo, diff)
				}
			}
		}
		var back []tid.TID
		for tr, err := range r.ScanBackwards(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			back = append([]tid.TID{tr.TID}, back...)
		}
		if diff := cmp.Diff(all, back); diff != "" {
			t.Errorf("%s backwards (-want +got):\n%s", name, diff)
		}
	}
}

func TestOtherFilesAreRefused(t *testing.T) {
	_, err := Open(samples+"README.md", Options{})
	if !errors.As(err, new(*MagicError)) {
		t.Fatalf("error %v, want a MagicError", err)
	}
	want := `../testdata/fs/README.md: not a Data.fs: it begins with "# Da", want "FS30" or "FS21"`
	if err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestOpenOtherThanFiles(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, pipe} {
		if _, err := Open(path, Options{}); err == nil || err.Error() != path+": not a regular file" {
			t.Error(err)
		}
	}
}
