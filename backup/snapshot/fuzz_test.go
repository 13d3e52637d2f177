package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/neozodb/neo/cluster/tid"
)

// texts adds the texts of all golden notes as seeds.
func texts(f *testing.F) {
	names, err := filepath.Glob("testdata/*.note")
	if err != nil || len(names) < 15 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if text, err := Text(b); err == nil {
			b = text
		}
		f.Add(b)
	}
}

// A text is refused as damaged or newer, or what is read of it is written as a text of
// which the same is read.
func FuzzNoteText(f *testing.F) {
	texts(f)
	s := signer(f, Writer)
	keys := map[Role]*Signer{Writer: s, Keeper: signer(f, Keeper), Driver: signer(f, Driver)}
	refused := func(t *testing.T, err error) {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("error %v is of no kind", err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, n := range []Note{&Marker{}, &Epoch{}, &Lineage{}, &Policy{}, &Void{}, &Proof{}} {
			kind, role := n.kind()
			l := &lines{name: "k", rest: b}
			if err := l.first(kind, n); err != nil {
				refused(t, err)
				continue
			}
			if err := n.check(); err != nil {
				continue
			}
			out, err := Sign(n, keys[role])
			if err != nil {
				t.Fatalf("%+v is not written: %v", n, err)
			}
			again := reflect.New(reflect.TypeOf(n).Elem()).Interface().(Note)
			_, key := n.place()
			if kind == "proof" {
				key += "20261120T201003Z-0000000000000050"
			}
			if err := OpenUnsigned(out, key, placeOf(n), again); err != nil || !reflect.DeepEqual(n, again) {
				t.Errorf("%+v is read again as %+v, %v", n, again, err)
			}
		}
		if m, err := parseManifest(b, "k"); err != nil {
			refused(t, err)
		} else {
			out, err := m.Sign(s)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := Text(out)
			if again, err := parseManifest(text, "k"); err != nil || !reflect.DeepEqual(m, again) {
				t.Errorf("%+v is read again as %+v, %v", m, again, err)
			}
		}
		if m, err := parseTail(b, "k"); err != nil {
			refused(t, err)
		} else {
			out, err := m.Sign(s)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := Text(out)
			again, err := parseTail(text, "k")
			if err == nil {
				again.hash = m.hash
			}
			if err != nil || !reflect.DeepEqual(m, again) {
				t.Errorf("%+v is read again as %+v, %v", m, again, err)
			}
		}
		if d, err := parseDoom(b, "k"); err != nil {
			refused(t, err)
		} else if out, err := d.Sign(keys[Keeper]); err != nil {
			t.Fatal(err)
		} else {
			text, _ := Text(out)
			if again, err := parseDoom(text, "k"); err != nil || !reflect.DeepEqual(d, again) {
				t.Errorf("%+v is read again as %+v, %v", d, again, err)
			}
		}
		if list, err := ParsePage(b, "k"); err != nil {
			refused(t, err)
		} else if len(list) > 0 && list[0].After == 0 && list[len(list)-1].Upto > 0 {
			if out, _, err := NewPage(testLineage, list); err != nil {
				t.Errorf("page %+v: %v", list, err)
			} else if again, err := ParsePage(out, "k"); err != nil || !reflect.DeepEqual(list, again) {
				t.Errorf("%+v is read again as %+v, %v", list, again, err)
			}
		}
		p := Page{Key: PageKey(testLineage, Sum(b)), N: 2, After: 0, Upto: 0x20, SHA256: Sum(b), Stored: 3000, Text: 12000, Txns: 6, Records: 15, MaxOID: 2}
		if list, err := parsePage(b, &p); err == nil {
			if _, again, err := NewPage(testLineage, list); err != nil || again.N != p.N {
				t.Errorf("page %+v: %v", list, err)
			}
		}
	})
}

func placeOf(n Note) ID { repo, _ := n.place(); return repo }

// The bytes of a note, before its signature is known to be right.
func FuzzSignedNote(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.note")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	v := trusted(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, err := range []error{
			Open(b, MarkerKey, testRepo, &Marker{}, v),
			func() error { _, err := OpenTail(b, TailKey(testLineage, 1), testRepo, v); return err }(),
			func() error { _, err := OpenManifest(b, ManifestKey(testLineage, 2), testRepo, v); return err }(),
			func() error { _, err := OpenDoom(b, "d/20261120T201003Z", testRepo, v); return err }(),
		} {
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUntrusted) && !errors.Is(err, ErrVersion) {
				t.Errorf("error %v is of no kind", err)
			}
		}
	})
}

func FuzzKey(f *testing.F) {
	for _, k := range []string{"neobackup", "keys/0001.pub", "keys/0001.0001", "l/0001", "policy/0001", "d/20261120T201003Z.void", "probe/00",
		ManifestKey(testLineage, 1), TailKey(testLineage, 1), PageKey(testLineage, Hash{}), SegmentKey(testLineage, 1, 2, Hash{}),
		testLineage.dir() + "x/0", testLineage.dir() + "b/0", testLineage.dir() + "p/20261120T201003Z-0000000000000050"} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if err != nil {
			return // refused
		}
		if again, err := ParseKey(k.String()); err != nil || again != k || k.String() != s {
			t.Errorf("%q is %+v, which is %q, %+v, %v", s, k, k, again, err)
		}
	})
}

// The parts of a segment, without the hashes that guard them.
func FuzzContainer(f *testing.F) {
	b, err := os.ReadFile("testdata/segment.zst")
	if err != nil {
		f.Fatal(err)
	}
	foot, err := parseFooter(b[len(b)-footerFrame:], "s", int64(len(b)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:textStart])
	f.Add(b[len(b)-footerFrame:])
	f.Add(b[foot.DirectoryAt+frameHead : foot.TableAt])
	f.Add(b[foot.TableAt+frameHead : len(b)-footerFrame])
	f.Add(b[textStart:foot.IndexAt])
	f.Add(b[foot.IndexAt+frameHead : foot.DirectoryAt])
	block, err := decompress(nil, b[foot.IndexAt+frameHead:foot.DirectoryAt], maxBlock)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(block)
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseHeader(b, "s"); err == nil && !bytes.Equal(h.append(nil), b) {
			t.Errorf("header %x is %+v", b, h)
		}
		if f, err := parseFooter(b, "s", int64(len(b))+foot.TableAt+foot.TableLength); err == nil && !bytes.Equal(f.append(nil), b) {
			t.Errorf("footer %x is %+v", b, f)
		}
		wide := foot
		wide.MaxOID, wide.Last, wide.Text, wide.IndexAt = tid.InvalidOID, tid.Max, 1<<60, 1<<60
		if list, err := parseBlock(b, &wide); err == nil {
			var out []byte
			prev := tid.OID(0)
			for _, e := range list {
				out = appendEntry(out, e, prev)
				prev = e.OID
			}
			if !bytes.Equal(out, b) {
				t.Errorf("block %x is %+v, which is %x", b, list, out)
			}
		}
		wide = foot
		wide.DirectoryAt = 1 << 60
		for _, at := range []int64{foot.DirectoryAt, 1 << 60} {
			wide.DirectoryAt = at
			if list, err := parseDirectory(b, &wide); err == nil {
				var out []byte
				for _, d := range list {
					out = appendBlock(out, &d)
				}
				if !bytes.Equal(out, b) {
					t.Errorf("directory %x is %+v", b, list)
				}
			}
		}
		if list, err := parseTable(b, &foot); err == nil {
			var out []byte
			for _, d := range list {
				out = appendFrame(out, &d)
			}
			if !bytes.Equal(out, b) {
				t.Errorf("frame table %x is %+v", b, list)
			}
		}
		if out, err := decompress(nil, b, maxBlock); err == nil && (len(out) == 0 || len(out) > maxBlock) {
			t.Errorf("%d bytes of content", len(out))
		}
	})
}

// forge returns a segment with a text and a block of entries, in which all hashes are
// right.
func forge(h Header, dump, entries []byte, f Footer) []byte {
	enc, err := encoder(Fastest)
	if err != nil {
		panic(err)
	}
	b := h.append(nil)
	var table, directory []byte
	if len(dump) > 0 {
		stored := enc.EncodeAll(dump, nil)
		table = appendFrame(nil, &frame{text: int64(len(dump)), len: int64(len(stored)), tid: f.First, sum: shortSum(stored)})
		b = append(b, stored...)
	}
	f.Text, f.Raw, f.IndexAt = int64(len(dump)), Sum(dump), int64(len(b))
	if len(entries) > 0 {
		stored := enc.EncodeAll(entries, nil)
		stored = append(appendFrameHead(nil, frameBlock, len(stored)), stored...)
		var first Entry
		if list, err := parseBlock(entries, &f); err == nil {
			first = list[0]
		}
		directory = appendBlock(nil, &block{first: first, at: f.IndexAt, len: int64(len(stored)), sum: shortSum(stored)})
		b = append(b, stored...)
	}
	f.DirectoryAt, f.DirectoryLength = int64(len(b)), int64(frameHead+len(directory))
	f.TableAt, f.TableLength = f.DirectoryAt+f.DirectoryLength, int64(frameHead+len(table))
	meta := sha256.New()
	meta.Write(directory)
	meta.Write(table)
	f.Meta = Hash(meta.Sum(nil))
	b = append(appendFrameHead(b, frameDirectory, len(directory)), directory...)
	b = append(appendFrameHead(b, frameTable, len(table)), table...)
	return f.append(b)
}

// forged are the parts of a segment that forge takes.
func forged(tb testing.TB, b []byte) (h Header, dump, entries []byte, f Footer) {
	r := openSegment(tb, b)
	h, err := r.Header()
	if err != nil {
		tb.Fatal(err)
	}
	prev := tid.OID(0)
	for e, err := range r.Entries() {
		if err != nil {
			tb.Fatal(err)
		}
		entries = appendEntry(entries, e, prev)
		prev = e.OID
	}
	return h, unzstd(tb, b), entries, r.Footer()
}

// Whatever a segment with right hashes says: Check refuses it, or every entry of its
// index is found and loaded.
func FuzzSegment(f *testing.F) {
	b, err := os.ReadFile("testdata/segment.zst")
	if err != nil {
		f.Fatal(err)
	}
	h, dump, entries, foot := forged(f, b)
	flags := func(h Header) []byte { return h.append(nil)[frameHead+40:] }
	f.Add(flags(h), dump, entries, int64(foot.Txns), int64(foot.Records), uint64(foot.MaxOID), uint64(foot.First), uint64(foot.Last))
	h.After, h.Upto, h.Continues = 0x50, 0x50, true
	f.Add(flags(h), []byte("obj 0000000000000001 delete\n\n"), []byte("\x01\x00\x00\x00\x00\x00\x00\x00\x50\x01"), int64(0), int64(1), uint64(1), uint64(0x50), uint64(0x50))
	h = Header{Upto: 0x10, Continued: true}
	f.Add(flags(h), dump[:bytes.Index(dump, []byte("obj 0000000000000005"))], []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x10\x80\x02"), int64(1), int64(1), uint64(0), uint64(0x10), uint64(0x10))
	f.Fuzz(func(t *testing.T, head, dump, entries []byte, txns, recs int64, maxOID, first, last uint64) {
		if len(head) != 32 || len(dump) > maxFrameText {
			return
		}
		h := Header{Repo: testRepo, Lineage: testLineage, After: tid.FromBytes(head), Upto: tid.TID(binary.BigEndian.Uint64(head[8:])),
			Continues: head[24]&1 != 0, Continued: head[24]&2 != 0}
		b := forge(h, dump, entries, Footer{Txns: txns, Records: recs, MaxOID: tid.OID(maxOID), First: tid.TID(first), Last: tid.TID(last)})
		r, err := NewReader(bytes.NewReader(b), int64(len(b)), "s")
		if err == nil {
			err = r.Check(nil)
		}
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Errorf("error %v is of no kind", err)
			}
			return
		}
		for e, err := range r.Entries() {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Load(e); err != nil {
				t.Errorf("entry %+v: %v", e, err)
			}
			if found, err := r.Find(e.OID, e.TID+1); err != nil || found != e {
				t.Errorf("entry %+v: found %+v, %v", e, found, err)
			}
		}
	})
}

func FuzzAge(f *testing.F) {
	b, err := os.ReadFile("testdata/segment.age")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:184])
	id, err := age.ParseX25519Identity(testIdentity)
	if err != nil {
		f.Fatal(err)
	}
	epoch, to, _ := GenerateEpoch(nil)
	wrap, err := Wrap(epoch, []Recipient{id.Recipient()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wrap)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := Unwrap(b, "k", to.String(), id); err == nil && got.String() != epoch.String() {
			t.Errorf("unwrapped %v", got)
		}
		header, err := HeaderOf(bytes.NewReader(b), "k")
		if err != nil {
			return
		}
		key, err := FileKey(header, "k", id)
		if err != nil {
			return
		}
		p, size, err := (&Sealed{Key: "k", Size: int64(len(b)), Header: header, FileKey: key}).Open(bytes.NewReader(b))
		if err != nil {
			return
		}
		plaintext := make([]byte, size)
		if _, err := p.ReadAt(plaintext, 0); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("error %v is of no kind", err)
		}
	})
}

// What the seeds of FuzzSegment are is accepted.
func TestForge(t *testing.T) {
	b, _ := write(t, testHeader, 0x58, sample())
	if err := checkAll(forge(forged(t, b))); err != nil {
		t.Error(err)
	}
	h := Header{Repo: testRepo, Lineage: testLineage, After: 0x50, Upto: 0x50, Continues: true}
	one := Footer{Records: 1, MaxOID: 1, First: 0x50, Last: 0x50}
	if err := checkAll(forge(h, []byte("obj 0000000000000001 delete\n\n"), []byte("\x01\x00\x00\x00\x00\x00\x00\x00\x50\x01"), one)); err != nil {
		t.Error(err)
	}
}

// What only a writer with a fault, or an attacker with the key, can make of a segment
// is found.
func TestForgedSegments(t *testing.T) {
	b, _ := write(t, testHeader, 0x58, sample())
	for _, tt := range []struct {
		name   string
		change func(h *Header, dump, entries *[]byte, f *Footer)
		want   string
	}{
		{"a transaction beyond the range", func(h *Header, _, _ *[]byte, _ *Footer) { h.Upto = 0x4f }, "in a segment from"},
		{"a transaction before the range", func(h *Header, _, _ *[]byte, _ *Footer) { h.After = 0x10 }, "in a segment from"},
		{"a transaction less", func(_ *Header, _, _ *[]byte, f *Footer) { f.Txns-- }, "the footer says"},
		{"a record more", func(_ *Header, _, _ *[]byte, f *Footer) { f.Records++ }, "the footer says"},
		{"a greater object", func(_ *Header, _, _ *[]byte, f *Footer) { f.MaxOID++ }, "the footer says"},
		{"a later end", func(_ *Header, _, _ *[]byte, f *Footer) { f.Last++ }, "the footer says"},
		{"an index without an entry", func(_ *Header, _, e *[]byte, _ *Footer) { *e = (*e)[:len(*e)-11] }, "is in the text, but not in the index"},
		{"no index", func(_ *Header, _, e *[]byte, _ *Footer) { *e = nil }, "is in the text, but not in the index"},
		{"an entry of nothing", func(_ *Header, _, e *[]byte, f *Footer) {
			*e = appendEntry(*e, Entry{7, 0x20, 3, HasData}, 7)
		}, "the text has not"},
		{"an index into the middle", func(_ *Header, _, e *[]byte, _ *Footer) { (*e)[10] += 4 }, "the text has not"},
		{"data that the index denies", func(_ *Header, _, e *[]byte, _ *Footer) { (*e)[9]++ }, "the index says that it has none"},
		{"a kind that is none", func(_ *Header, _, e *[]byte, _ *Footer) { (*e)[9] |= 3 }, "is not within the segment"},
		{"an end that is said to be none", func(h *Header, _, _ *[]byte, _ *Footer) { h.Continued = true; h.Upto = 0x50 }, "continued"},
		{"no end", func(_ *Header, d, _ *[]byte, _ *Footer) { *d = (*d)[:len(*d)-1] }, "unexpected EOF"},
		{"a line that is not known", func(_ *Header, d, _ *[]byte, _ *Footer) {
			*d = append((*d)[:len(*d)-1], "blob 0000000000000001\n\n"...)
		}, `"blob 0000000000000001" is no object`},
	} {
		h, dump, entries, f := forged(t, b)
		tt.change(&h, &dump, &entries, &f)
		err := checkAll(forge(h, dump, entries, f))
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	bomb := make([]byte, 1<<20)
	bombed, err := encoder(Fastest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decompress(nil, bombed.EncodeAll(bomb, nil), maxBlock); err == nil || !strings.Contains(err.Error(), "1048576 bytes of content, want 1 to 65536") {
		t.Errorf("1 MiB of zeros: %v", err)
	}
}
