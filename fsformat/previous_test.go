package fsformat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

// disagreements reads the records of a file from a position on.
func disagreements(t *testing.T, b []byte, from int64) []*CorruptError {
	t.Helper()
	r := openBytes(t, b)
	var out []*CorruptError
	after := tid.Zero
	if from > magicLen {
		h, _, err := r.lastBefore(from)
		if err != nil {
			t.Fatal(err)
		}
		after = h.TID
	}
	n := 0
	c := r.Checked(func(e *CorruptError) error { out = append(out, e); return nil })
	for tr, err := range c.Transactions(t.Context(), after, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		// Whether the records are read once, not to the end, or several times.
		for range n % 3 {
			left := n % 7
			for _, err := range tr.Records {
				if left--; left == 0 || err != nil {
					break
				}
			}
		}
		n++
	}
	return out
}

func TestLineage(t *testing.T) {
	for _, tt := range []struct {
		name string
		from int64
		want []string
	}{
		{"01-basic", magicLen, nil}, {"02-undo", magicLen, nil}, {"03-creation-undone", magicLen, nil}, {"04-deleted", magicLen, nil},
		{"05-before-pack", magicLen, nil}, {"05-packed", magicLen, nil}, {"06-metadata", magicLen, nil}, {"07-btrees-refs", magicLen, nil},
		{"08-truncated-tail", magicLen, nil}, {"09-voted-tail", magicLen, nil}, {"10-legacy-fs21", magicLen, nil}, {"site", magicLen, nil},
		{"damaged/oidflip", magicLen, []string{"Data.fs: offset 229: transaction 03a0000000000002: object 0000000000000003: its previous record is said to be at 133, which is one of object 0000000000000002: an object id is damaged"}},
		{"damaged/oidflip", 206, []string{"Data.fs: offset 229: transaction 03a0000000000002: object 0000000000000003: its previous record is said to be at 133, which is one of object 0000000000000002: an object id is damaged"}},
	} {
		b := readFile(t, samples+tt.name+".fs")
		var got []string
		for _, e := range disagreements(t, b, tt.from) {
			got = append(got, e.Error())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s from %d (-want +got):\n%s", tt.name, tt.from, diff)
		}
	}
}

// Whatever bit of whatever object id or pointer changes: the records at which it
// shows are those that a check names, which has the whole index. From the middle
// of the file, it is at least seen where the records lead elsewhere.
func TestLineageFindsWhatCheckFinds(t *testing.T) {
	clean := readFile(t, samples+"05-before-pack.fs")
	var fields []int64
	r := openBytes(t, clean)
	for tr, err := range r.Scan(t.Context(), 0, 1<<63-1) {
		if err != nil {
			t.Fatal(err)
		}
		for rec, err := range tr.Places {
			if err != nil {
				t.Fatal(err)
			}
			fields = append(fields, rec.Pos, rec.Pos+16) // object id, pointer
		}
	}
	for _, at := range fields {
		for bit := range 64 {
			b := bytes.Clone(clean)
			b[at+int64(bit/8)] ^= 1 << (bit % 8)
			var want, got []string
			_, err := Check(t.Context(), openBytes(t, b), CheckOptions{Structure: true}, func(p Problem) {
				if strings.Contains(p.Text, "previous record") {
					want = append(want, fmt.Sprint(p.Offset, p.OID))
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range disagreements(t, b, magicLen) {
				got = append(got, fmt.Sprint(e.Offset, e.OID))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("bit %d at %d (-check +lineage):\n%s", bit, at, diff)
			}
		}
	}
}

// A pointer that cannot be read is an error, not an opinion about the file.
func TestLineageReadError(t *testing.T) {
	b := readFile(t, samples+"damaged/oidflip.fs")
	failing := &os.PathError{Op: "read", Path: "Data.fs", Err: errors.New("input/output error")}
	r, err := NewReader(failAt{bytes.NewReader(b), 133, failing}, int64(len(b)), "Data.fs", Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []int64{magicLen, 206} {
		l := r.newLineage(from, nil)
		rec := parseRecordHeader(b[229:], 229)
		if e, err := l.check(&rec, ' '); e != nil || !errors.Is(err, failing) {
			t.Errorf("from %d: %v, %v", from, e, err)
		}
	}
}

type failAt struct {
	*bytes.Reader
	pos int64
	err error
}

func (f failAt) ReadAt(b []byte, off int64) (int, error) {
	if off == f.pos {
		return 0, f.err
	}
	return f.Reader.ReadAt(b, off)
}
