package snapshot

import (
	"bytes"
	"encoding/hex"
	"os"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
)

func golden(t *testing.T, path string, got func() []byte) []byte {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes of all that a segment has beside zstd frames, which another version of the
// compressor may make in another way.
func TestGoldenContainer(t *testing.T) {
	var b []byte
	b = (&Header{Repo: testRepo, Lineage: testLineage, After: 0x11, Upto: 0x22, ExactFrom: 0x33, Continued: true}).append(b)
	entries := []Entry{{0, 0x30, 0, NoData}, {0, 0x22, 300, HasData}, {0x1234, 0x22, 1 << 40, Copied}}
	for i, e := range entries {
		prev := Entry{}
		if i > 0 {
			prev = entries[i-1]
		}
		b = appendEntry(b, e, prev.OID)
	}
	b = appendBlock(b, &block{first: entries[0], at: 80, len: 300, sum: [16]byte{1, 2, 3}})
	b = appendFrame(b, &frame{text: 4 << 20, len: 129, tid: 0x22, sum: [16]byte{4, 5, 6}})
	b = (&Footer{0x101, 0x202, 0x303, 0x404, 0x505, 0x606, 0x707, 0x808, 0x909, 0xa0a, 0xb0b, hashOf("raw"), hashOf("meta")}).append(b)
	want := golden(t, "testdata/container.hex", func() []byte { return []byte(hex.Dump(b)) })
	if diff := cmp.Diff(string(want), hex.Dump(b)); diff != "" {
		t.Errorf("container (-golden +got):\n%s", diff)
	}
}

// Segments that were once written are read for all time.
func TestGoldenSegments(t *testing.T) {
	plaintext, _ := write(t, Header{Repo: testRepo, Lineage: testLineage, ExactFrom: 0x20}, 0x58, sample())
	stored := golden(t, "testdata/segment.zst", func() []byte { return plaintext })
	want := walk(t, openSegment(t, plaintext))
	check := func(b []byte) {
		t.Helper()
		r := openSegment(t, b)
		if err := r.Check(nil); err != nil {
			t.Fatal(err)
		}
		h, err := r.Header()
		if err != nil || h != (Header{testRepo, testLineage, 0, 0x58, 0x20, false, false}) {
			t.Errorf("header %+v, %v", h, err)
		}
		got := walk(t, r)
		if diff := cmp.Diff(records(want), records(got)); diff != "" || len(got) != len(want) {
			t.Errorf("segment (-golden +got):\n%s", diff)
		}
		for i := range want {
			if Tip(&want[i].txn) != Tip(&got[i].txn) {
				t.Errorf("transaction %+v, want %+v", got[i].txn, want[i].txn)
			}
		}
	}
	check(stored)

	sealed := golden(t, "testdata/segment.age", func() []byte {
		to, err := ParseRecipient(testRecipient)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := Seal(&b, bytes.NewReader(stored), to, 1); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	})
	id, err := age.ParseX25519Identity(testIdentity)
	if err != nil {
		t.Fatal(err)
	}
	header, err := HeaderOf(bytes.NewReader(sealed), "s")
	if err != nil {
		t.Fatal(err)
	}
	key, err := FileKey(header, "s", id)
	if err != nil {
		t.Fatal(err)
	}
	p, size, err := (&Sealed{Key: "s", Size: int64(len(sealed)), Header: header, FileKey: key}).Open(bytes.NewReader(sealed))
	if err != nil || size != int64(len(stored)) {
		t.Fatalf("%d bytes, %v", size, err)
	}
	b := make([]byte, size)
	if _, err := p.ReadAt(b, 0); err != nil || !bytes.Equal(b, stored) {
		t.Fatalf("%v, or another plaintext", err)
	}
	check(b)
	const tip = "603669e1ccd5a2287aebc86149d90fc2006ed82e39fc6935f336333486f9b2be"
	if got := Tip(&want[1].txn).String(); got != tip {
		t.Errorf("tip %s, want %s", got, tip)
	}
}
