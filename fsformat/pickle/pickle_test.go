package pickle

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type vector struct {
	Python   string
	Protocol int
	In, Out  string
	Edits    [3]int
}

func readVectors(t testing.TB) []vector {
	t.Helper()
	b, err := os.ReadFile("../../testdata/fs/rewrite-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []vector
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vectorMapping is that of the vectors: 3 is a mount point, the rest is shifted.
type vectorMapping struct{}

func (vectorMapping) Local(oid uint64) (uint64, bool) {
	if oid == 3 {
		return 424242, true
	}
	return oid + 0x90000000, false
}

func (vectorMapping) Foreign(db string, oid uint64) (n uint64, mount, ok bool) {
	return oid + 777000, oid == 4, db == "one" || db == "two" || db == "other"
}

// identity leaves all references as they are.
type identity struct{}

func (identity) Local(oid uint64) (uint64, bool)                   { return oid, false }
func (identity) Foreign(_ string, oid uint64) (uint64, bool, bool) { return oid, false, false }

func TestRewriteVectors(t *testing.T) {
	var rw Rewriter
	for i, v := range readVectors(t) {
		in, want := unhex(t, v.In), unhex(t, v.Out)
		got, err := rw.Rewrite(in, vectorMapping{})
		if err != nil {
			t.Errorf("vector %d (Python %s, protocol %d): %v", i, v.Python, v.Protocol, err)
			continue
		}
		if diff := cmp.Diff(hex.Dump(want), hex.Dump(got)); diff != "" {
			t.Errorf("vector %d (Python %s, protocol %d) of %x (-want +got):\n%s", i, v.Python, v.Protocol, in, diff)
		}
		if edits := [3]int{rw.inPlace, rw.inserted, rw.reshaped}; edits != v.Edits {
			t.Errorf("vector %d: edits %v, want %v", i, edits, v.Edits)
		}
		same, err := rw.Rewrite(in, identity{})
		if err != nil || !bytes.Equal(same, in) {
			t.Errorf("vector %d: the identity changes it to %x, %v", i, same, err)
		}
	}
}

func TestRewriteKeepsTheWrapping(t *testing.T) {
	in := unhex(t, readVectors(t)[0].In)
	want := unhex(t, readVectors(t)[0].Out)
	for _, like := range []string{".z", ".h"} {
		wrapped, err := wrap(in, []byte(like))
		if err != nil {
			t.Fatal(err)
		}
		got, err := new(Rewriter).Rewrite(wrapped, vectorMapping{})
		if err != nil || !strings.HasPrefix(string(got), like) {
			t.Fatalf("%s: %q, %v", like, got, err)
		}
		plain, _, err := Unwrap(got)
		if err != nil || !bytes.Equal(plain, want) {
			t.Errorf("%s: %x, %v, want %x", like, plain, err, want)
		}
		same, err := new(Rewriter).Rewrite(wrapped, identity{})
		if err != nil || !bytes.Equal(same, wrapped) {
			t.Errorf("%s: the identity gives %q, %v", like, same, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	const class = "8003 63610a620a 7100 2e" // a.b, memoised
	for _, tt := range []struct {
		name, in, want string
	}{
		{"empty", "", "pickle: offset 0: the data ends before STOP"},
		{"one pickle", class, "pickle: offset 10: the data ends before STOP"},
		{"text reference", class + "503132333435363738 0a 2e", "pickle: offset 10: a persistent reference as text, which ZODB never writes"},
		{"reference to an integer", class + "4b01 51 2e", "pickle: offset 12: a persistent reference of unknown form"},
		{"short oid", class + "4307 00000000000000 51 2e", "pickle: offset 19: a persistent reference of unknown form"},
		{"reference used twice", class + "4308 0000000000000001 6800 86 32 51 30 51 2e", "pickle: offset 24: a persistent reference that is used more than once"},
		{"unknown opcode", class + "ff", "pickle: offset 10: unknown opcode 0xff"},
		{"length of 2 GiB", class + "42 ffffff7f 00", "pickle: offset 10: opcode 0x42 passes the end of the data"},
		{"length of 2^63", class + "8e ffffffffffffff7f", "pickle: offset 10: opcode 0x8e passes the end of the data"},
		{"no mark", class + "74 2e", "pickle: offset 10: opcode 0x74 without a mark"},
		{"no slot", class + "6809 2e", "pickle: offset 10: nothing was put into slot 9 of the memo"},
		{"two values", class + "4e 4e 2e", "pickle: offset 12: STOP with 2 values on the stack"},
		{"no value", class + "2e", "pickle: offset 10: STOP with 0 values on the stack"},
		{"no stack", class + "52", "pickle: offset 10: opcode 0x52 needs 2 values on the stack"},
		{"below the mark", class + "4e 28 30 28 61", "pickle: offset 14: opcode 0x61 needs 2 values on the stack"},
		{"protocol 9", class + "8009", "pickle: offset 10: unknown protocol 9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := new(Rewriter).Rewrite(unhex(t, tt.in), vectorMapping{})
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

// An object id may be pickled by any string opcode, and found through the memo.
func TestFormsOfObjectIDs(t *testing.T) {
	const class = "8003 63610a620a 7100 2e"
	for _, tt := range []struct{ name, state string }{
		{"SHORT_BINBYTES", "4308 3132333435363738"},
		{"BINBYTES", "42 08000000 3132333435363738"},
		{"BINBYTES8", "8e 0800000000000000 3132333435363738"},
		{"SHORT_BINSTRING", "5508 3132333435363738"},
		{"BINSTRING", "54 08000000 3132333435363738"},
		{"BINUNICODE", "58 08000000 3132333435363738"},
		{"SHORT_BINUNICODE", "8c08 3132333435363738"},
		{"STRING", hex.EncodeToString([]byte(`S'12\x3345\06678'` + "\n"))},
		{"UNICODE", hex.EncodeToString([]byte(`V12\u003345678` + "\n"))},
		{"_codecs.encode", hex.EncodeToString([]byte("c_codecs\nencode\n(X\x08\x00\x00\x0012345678X\x06\x00\x00\x00latin1tR"))},
		{"memo", "4308 3132333435363738 71 05 30 68 05"},
		{"far memo", "4308 3132333435363738 72 ffffffff 30 6a ffffffff"},
		{"DUP", "4308 3132333435363738 32 30"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := unhex(t, class+"8003"+tt.state+"6800 86 51 2e")
			want := []Ref{{Kind: Strong, OID: 0x3132333435363738}}
			got, err := new(Scanner).References(rec)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Fatalf("%v, references (-want +got):\n%s", err, diff)
			}
			out, err := new(Rewriter).Rewrite(rec, vectorMapping{})
			if err != nil {
				t.Fatal(err)
			}
			want[0].OID += 0x90000000
			got, err = new(Scanner).References(out)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v, rewritten references (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestClass(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"class", "\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.", "persistent.mapping.PersistentMapping"},
		{"class, args", "\x80\x02cm\nC\nq\x00)\x86.", "m.C"},
		{"(class, None)", "(cm\nC\nNt.", "m.C"},
		{"((module, name), None)", "((U\x01mU\x01CtNt.", "m.C"},
		{"text", "\x80\x02X\x01\x00\x00\x00mX\x01\x00\x00\x00C\x86N\x86.", "m.C"},
		{"STACK_GLOBAL", "\x80\x04\x95\x09\x00\x00\x00\x00\x00\x00\x00\x8c\x01m\x94\x8c\x01C\x94\x93\x94.", "m.C"},
		{"persistent class", "U\x08\x00\x00\x00\x00\x00\x00\x00\x07Q.", "."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			module, name, err := new(Scanner).Class([]byte(tt.in))
			if got := string(module) + "." + string(name); err != nil || got != tt.want {
				t.Errorf("class %q, %v, want %q", got, err, tt.want)
			}
		})
	}
	for _, bad := range []string{"", "N.", "(K\x01K\x02t.", "\x80\x03c"} {
		if m, n, err := new(Scanner).Class([]byte(bad)); err == nil {
			t.Errorf("class of %q is %q.%q", bad, m, n)
		}
	}
}

func TestIsBlob(t *testing.T) {
	if !IsBlob([]byte("\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N.")) || IsBlob([]byte("\x80\x03cm\nC\nq\x00.\x80\x03X\x09\x00\x00\x00ZODB.blob.")) {
		t.Error("blobs are not recognised")
	}
}

func TestScanningAllocatesNothing(t *testing.T) {
	rec := unhex(t, readVectors(t)[2].In)
	var s Scanner
	if _, err := s.References(rec); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.References(rec); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Class(rec); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations per record, want none", n)
	}
}

func BenchmarkReferences(b *testing.B) { // what checking and packing do to every record
	var s Scanner
	vectors := readVectors(b)
	var recs [][]byte
	for _, v := range vectors {
		rec := unhex(b, v.In)
		recs = append(recs, rec)
	}
	total := 0
	for _, rec := range recs {
		total += len(rec)
	}
	b.SetBytes(int64(total))
	b.ReportAllocs()
	for b.Loop() {
		for _, rec := range recs {
			if _, err := s.References(rec); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// Of two backslashes, the second begins no escape.
func TestRawUnicode(t *testing.T) {
	for in, want := range map[string]string{
		`\u0041`: "A", `\\u0041`: `\\u0041`, `\\\u0041`: `\\A`, `\n\`: `\n\`, `\U0001d11e`: "𝄞",
	} {
		if got, ok := rawUnicode(nil, []byte(in)); !ok || string(got) != want {
			t.Errorf("%q is %q, %v, want %q", in, got, ok, want)
		}
	}
}

// Values that refer to each other, and texts that are made bytes again and again,
// are refused before they fill the memory.
func TestSharedPartsAreBounded(t *testing.T) {
	doubled := []byte{0x80, 3, ']', 'q', 0}
	for i := byte(0); i < 60; i++ { // a list of twice the list before
		doubled = append(doubled, '0', ']', 'q', i+1, 'h', i, 'a', 'h', i, 'a')
	}
	text := string(binary.LittleEndian.AppendUint32([]byte{'X'}, 100_000)) + strings.Repeat("a", 100_000) + "q\x00"
	for name, b := range map[string]string{
		"a list of lists":     string(doubled) + ".",
		"a text, many times":  text + "0(" + strings.Repeat("h\x00", 3_000) + "l.",
		"the same list twice": "]q\x00(" + strings.Repeat("N", 1000) + "e0(" + strings.Repeat("h\x00", 2_000) + "l.",
	} {
		v, _, err := Decode([]byte(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for protocol := range 6 {
			if p, err := Append(nil, protocol, v); err == nil || !strings.Contains(err.Error(), "more than 1048576 values") {
				t.Errorf("%s: protocol %d: %d bytes, %v", name, protocol, len(p), err)
			}
		}
	}
	encode := text + "0X\x06\x00\x00\x00latin1q\x010c_codecs\nencode\nq\x020("
	for n, want := range map[int]bool{1: true, 1000: false} {
		if _, _, err := Decode([]byte(encode + strings.Repeat("h\x02h\x00h\x01\x86R", n) + "l.")); (err == nil) != want {
			t.Errorf("%d times bytes of a text: %v", n, err)
		}
	}
}

// Each form of a reference, to an object and to a mount point, of the same database, of
// one that is merged, and of one that is not. Foreign references lose the name of the database,
// and keep the class unless the object found is of another one.
func TestFormsOfReferences(t *testing.T) {
	const (
		class    = "cm\nC\nq\x00."
		plain    = "C\x08\x00\x00\x00\x00\x00\x00\x00\x01"
		local    = "C\x08\x00\x00\x00\x00\x90\x00\x00\x01"
		foreign  = "C\x08\x00\x00\x00\x00\x00\x0b\xdb\x29"
		mount    = "C\x08\x00\x00\x00\x00\x00\x00\x00\x03"
		mounted  = "C\x08\x00\x00\x00\x00\x00\x06\x79\x32"
		mount4   = "C\x08\x00\x00\x00\x00\x00\x00\x00\x04" // a mount point of other databases
		mounted4 = "C\x08\x00\x00\x00\x00\x00\x0b\xdb\x2c"
		one      = "X\x03\x00\x00\x00one"
		else_    = "X\x04\x00\x00\x00else"
		weak     = "(X\x01\x00\x00\x00w("
	)
	for _, tt := range []struct{ name, in, out string }{
		{"oid", plain + "Q.", local + "Q."},
		{"oid of a mount point", mount + "Q.", mounted + "Q."},
		{"oid and class", plain + "h\x00\x86Q.", local + "h\x00\x86Q."},
		{"oid and names", plain + "U\x01mU\x01C\x86\x86Q.", local + "U\x01mU\x01C\x86\x86Q."},
		{"oid and class of a mount point", mount + "h\x00\x86Q.", mount + "h\x00\x860" + mounted + "Q."},
		{"weak", "]U\x01wa" + plain + "\x85aQ.", "]U\x01wa" + local + "\x85aQ."},
		{"weak to a mount point", "(U\x01w(" + mount + "tlQ.", "(U\x01w(" + mounted + "tlQ."},
		{"weak, merged", "(U\x01w(" + plain + one + "tlQ.", "(U\x01w(" + plain + one + "tl0" + weak + foreign + "tlQ."},
		{"weak, merged, to a mount point", "(U\x01w(" + mount4 + one + "tlQ.", "(U\x01w(" + mount4 + one + "tl0" + weak + mounted4 + "tlQ."},
		{"weak, not merged", "(U\x01w(" + plain + else_ + "tlQ.", "(U\x01w(" + plain + else_ + "tlQ."},
		{"legacy weak", "]" + plain + "aQ.", "]" + local + "aQ."},
		{"legacy weak, shared with data", plain + "q\x09](h\x09eQ\x86.", plain + "q\x09](h\x090" + local + "eQ\x86."},
		{"m, merged", "(U\x01m(" + one + plain + "h\x00tlQ.", "(U\x01m(" + one + plain + "h\x00tl0(" + foreign + "h\x00tQ."},
		{"m, merged, class not in the memo", "(U\x01m(" + one + plain + "cn\nD\ntlQ.", "(U\x01m(" + one + plain + "cn\nD\ntl0(" + foreign + "cn\nD\ntQ."},
		{"m, merged, STACK_GLOBAL", "(U\x01m(" + one + plain + "\x8c\x01n\x8c\x01D\x93tlQ.", "(U\x01m(" + one + plain + "\x8c\x01n\x8c\x01D\x93tl0(" + foreign + "\x8c\x01n\x8c\x01D\x93tQ."},
		{"m, merged, STACK_GLOBAL in the memo", "(U\x01m(" + one + plain + "\x8c\x01n\x8c\x01D\x93\x94tlQ.", "(U\x01m(" + one + plain + "\x8c\x01n\x8c\x01D\x93\x94tl0(" + foreign + "h\x01tQ."},
		{"m, merged, names", "(U\x01m(" + one + plain + "U\x01nU\x01D\x86tlQ.", "(U\x01m(" + one + plain + "U\x01nU\x01D\x86tl0" + foreign + "Q."},
		{"m, merged, to a mount point", "(U\x01m(" + one + mount4 + "h\x00tlQ.", "(U\x01m(" + one + mount4 + "h\x00tl0" + mounted4 + "Q."},
		{"m, not merged", "(U\x01m(" + else_ + plain + "h\x00tlQ.", "(U\x01m(" + else_ + plain + "h\x00tlQ."},
		{"n, merged", "(U\x01n(" + one + plain + "tlQ.", "(U\x01n(" + one + plain + "tl0" + foreign + "Q."},
		{"n, merged, to a mount point", "(U\x01n(" + one + mount4 + "tlQ.", "(U\x01n(" + one + mount4 + "tl0" + mounted4 + "Q."},
		{"n, not merged", "(U\x01n(" + else_ + plain + "tlQ.", "(U\x01n(" + else_ + plain + "tlQ."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := new(Rewriter).Rewrite([]byte(class+tt.in), vectorMapping{})
			if err != nil || string(got) != class+tt.out {
				t.Errorf("%q, %v\nwant %q", got, err, class+tt.out)
			}
		})
	}
}

// To Python 3, an id that Python 2 has pickled must be bytes if it is not ASCII; plain data
// that are the same string stay what they are.
func TestRewriteForPython3(t *testing.T) {
	const (
		class = "cm\nC\nq\x00."
		old   = "\x08\x00\x00\x00\x00\x00\x00\x00\x01"
		now   = "\x08\x00\x00\x00\x00\x90\x00\x00\x01"
		low   = "\x08\x00\x00\x00\x00\x00\x06\x79\x32" // of 3, a mount point
		long  = "T\x08\x00\x00\x00"
	)
	for _, tt := range []struct{ name, in, two, three string }{
		{"in place", "U" + old + "Q.", "U" + now + "Q.", "C" + now + "Q."},
		{"all in the memo", "U" + old + "q\x05h\x00\x86Q](h\x05h\x00\x86Qe\x86.", "U" + now + "q\x05h\x00\x86Q](h\x05h\x00\x86Qe\x86.", "C" + now + "q\x05h\x00\x86Q](h\x05h\x00\x86Qe\x86."},
		{"shared with data", "U" + old + "q\x05Qh\x05\x86.", "U" + old + "q\x050U" + now + "Qh\x05\x86.", "U" + old + "q\x050C" + now + "Qh\x05\x86."},
		{"right after an insertion", "U" + old + "q\x05h\x05U" + old + "Q\x86Q\x86.",
			"U" + old + "q\x05h\x050U" + now + "U" + now + "Q\x86Q\x86.", "U" + old + "q\x05h\x050C" + now + "C" + now + "Q\x86Q\x86."},
		{"long", long + old[1:] + "Q.", long + now[1:] + "Q.", long + old[1:] + "0C" + now + "Q."},
		{"ASCII", "U\x08\x00\x00\x00\x00\x00\x00\x00\x03Q.", "U" + low + "Q.", "U" + low + "Q."},
		{"bytes", "C" + old + "Q.", "C" + now + "Q.", "C" + now + "Q."},
		{"text", "X\x08\x00\x00\x00" + old[1:] + "Q.", "X\x08\x00\x00\x00" + old[1:] + "0U" + now + "Q.", "X\x08\x00\x00\x00" + old[1:] + "0C" + now + "Q."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rw := &Rewriter{}
			for _, want := range []string{tt.two, tt.three} {
				got, err := rw.Rewrite([]byte(class+tt.in), vectorMapping{})
				if err != nil || string(got) != class+want {
					t.Errorf("Python3 = %v: %q, %v\nwant %q", rw.Python3, got, err, class+want)
				}
				rw.Python3 = true
			}
		})
	}
}
