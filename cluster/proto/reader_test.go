package proto

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/neozodb/neo/cluster/msgpack"
)

// A stream is read alike in whatever pieces it arrives.
func TestReader(t *testing.T) {
	f := filler{rand: rand.New(rand.NewPCG(3, 4))}
	stream := Handshake[:]
	var list []Packet
	for range 20 {
		for _, p := range packets() {
			f.packet(p)
			list = append(list, p)
			stream = Append(stream, uint32(len(list)), p)
		}
		big := &AddObject{ObjectData: ObjectData{Data: bytes.Repeat([]byte{byte(len(list))}, 300_000)}}
		list = append(list, big)
		stream = Append(stream, uint32(len(list)), big)
	}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole":         func(r io.Reader) io.Reader { return r },
		"half":          iotest.HalfReader,
		"one byte":      iotest.OneByteReader,
		"EOF with data": iotest.DataErrReader,
		"packets":       func(r io.Reader) io.Reader { return &ragged{r, rand.New(rand.NewPCG(5, 6))} },
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(wrap(bytes.NewReader(stream)))
			if err := r.Handshake(); err != nil {
				t.Fatal(err)
			}
			got := make([]Packet, 0, len(list))
			for i := range list {
				id, p, err := r.Next()
				if err != nil || id != uint32(i+1) {
					t.Fatalf("packet %d: id %d, %v", i+1, id, err)
				}
				got = append(got, p)
				if a, ok := p.(*AddObject); ok && len(a.Data) >= MaxChunk && len(r.buf)+len(r.free) > minChunk {
					t.Fatalf("packet %d, which is big, shares its buffer with %d bytes", i+1, len(r.buf)+len(r.free))
				}
			}
			// Compared at the end: no buffer was written twice.
			for i := range list {
				if !reflect.DeepEqual(list[i], got[i]) {
					t.Fatalf("packet %d: %s, want %s", i+1, Args(got[i]), Args(list[i]))
				}
			}
			if _, _, err := r.Next(); err != io.EOF {
				t.Errorf("at the end: %v, want EOF", err)
			}
		})
	}
}

// ragged returns pieces of random sizes.
type ragged struct {
	r    io.Reader
	rand *rand.Rand
}

func (r *ragged) Read(b []byte) (int, error) {
	return r.r.Read(b[:min(len(b), 1+r.rand.IntN(3000))])
}

func TestReaderEndsInsideAPacket(t *testing.T) {
	b := Append(nil, 1, &AskNewOIDs{Count: 1})
	r := NewReader(bytes.NewReader(append(b, b[:len(b)-1]...)))
	if _, _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Next(); err != io.ErrUnexpectedEOF {
		t.Errorf("Next = %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

// Complete packets come before the error that followed them.
func TestReaderReturnsPacketsBeforeErrors(t *testing.T) {
	broken := errors.New("broken")
	b := Append(Append(nil, 1, &Ping{}), 2, &Ping{})
	r := NewReader(io.MultiReader(bytes.NewReader(b), iotest.ErrReader(broken)))
	for range 2 {
		if _, _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, _, err := r.Next(); err != broken {
			t.Errorf("Next = %v, want %v", err, broken)
		}
	}
}

// endless sends a start and then elements of 1 MiB for ever.
type endless struct {
	start   []byte
	element []byte
	n       int
}

func (e *endless) Read(b []byte) (int, error) {
	if len(e.start) > 0 {
		n := copy(b, e.start)
		e.start = e.start[n:]
		return n, nil
	}
	if e.n > 1<<30 {
		return 0, io.EOF
	}
	n := copy(b, e.element[e.n%len(e.element):])
	e.n += n
	return n, nil
}

// A few bytes that announce much do not allocate it.
func TestBombs(t *testing.T) {
	for name, start := range map[string]string{
		"array":             "dd7fffffff",
		"arguments":         "930002dd7fffffff",
		"list":              "93002791dd0fffffff",
		"map":               "93003693df0fffffff",
		"bytes":             "9300cd80009200c603ffffff",
		"extra":             "93000196d40402c0c0c400c0df0fffffff",
		"nested extra":      "93000196d40402c0c0c400c081c40161" + strings.Repeat("dd00ffffff", 40),
		"rows":              "93000a93070 1dd0fffffff" + strings.Repeat("dd00ffffff", 1),
		"more than allowed": "930002ddffffffff",
	} {
		t.Run(name, func(t *testing.T) {
			b := unhex(t, start)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := NewReader(bytes.NewReader(b)).Next()
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Error("accepted")
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 256<<10 {
				t.Errorf("%d bytes allocated for %d", n, len(b))
			}
		})
	}
	t.Run("endless packet", func(t *testing.T) {
		src := &endless{start: unhex(t, "930027dd0effffff"), element: msgpack.AppendBin(nil, make([]byte, 1<<20))}
		if _, _, err := NewReader(src).Next(); err == nil || src.n > 300<<20 {
			t.Errorf("%v after %d MiB", err, src.n>>20)
		}
	})
}

// Loads and stores are nearly all of the traffic.
var hot = []Packet{
	&AskObject{OID: 1, Before: Some(aTID)},
	&AnswerObject{OID: 1, Serial: aTID, NextSerial: Some(aTID), ObjectData: ObjectData{Data: make([]byte, 2048)}},
	&AskStoreObject{OID: 1, Serial: aTID, ObjectData: ObjectData{Data: make([]byte, 2048)}, TTID: ttid},
	&AddObject{OID: 1, Serial: aTID, ObjectData: ObjectData{Data: make([]byte, 2048)}},
}

func TestHotPacketsHardlyAllocate(t *testing.T) {
	for _, p := range hot {
		b := make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(100, func() { b = Append(b[:0], 70000, p) }); n > 0 {
			t.Errorf("Append(%T) allocates %v times", p, n)
		}
		if n := testing.AllocsPerRun(100, func() {
			if _, _, _, err := Decode(b); err != nil {
				t.Error(err)
			}
		}); n > 1 {
			t.Errorf("Decode(%T) allocates %v times", p, n)
		}
	}
	_, p, _, _ := Decode(Append(nil, 0, hot[1]))
	if d := p.(*AnswerObject).Data; len(d) != 2048 || cap(d) != 2048 {
		t.Errorf("data of length %d and capacity %d", len(d), cap(d))
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.b)
	}
	f.Add(unhex(f, "93000196d40402c0c0c400c0df0fffffff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, p, n, err := Decode(b)
		if err != nil {
			// The reader refuses it as well, or waits for more.
			if _, _, rerr := NewReader(bytes.NewReader(b)).Next(); rerr == nil {
				t.Errorf("%x: Decode: %v, but Reader accepts it", b, err)
			}
			return
		}
		if n > len(b) {
			t.Fatalf("%x: %d bytes used", b, n)
		}
		Args(p)
		// Compared as bytes, since NaN differs from itself.
		once := Append(nil, id, p)
		id2, p2, n2, err := Decode(once)
		if err != nil || id2 != id || n2 != len(once) {
			t.Fatalf("%x: %+v re-decodes as %d, %+v, %d bytes, %v", b, p, id2, p2, n2, err)
		}
		if twice := Append(nil, id, p2); !bytes.Equal(once, twice) {
			t.Errorf("%x: %+v becomes %+v", b, p, p2)
		}
	})
}

func BenchmarkAppendAnswerObject(b *testing.B) { // for every load
	buf := make([]byte, 0, 8<<10)
	for b.Loop() {
		buf = Append(buf[:0], 1000, hot[1])
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkDecodeAnswerObject(b *testing.B) {
	b.ReportAllocs()
	buf := Append(nil, 1000, hot[1])
	for b.Loop() {
		if _, _, _, err := Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkReader(b *testing.B) { // a replication, seen by the receiver
	var buf []byte
	for range 100 {
		buf = Append(buf, 1000, hot[3])
	}
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		r := NewReader(bytes.NewReader(buf))
		for range 100 {
			if _, _, err := r.Next(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
