package pickle_test

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
)

// The Python program loads each record as ZODB does, with classes that take
// anything, and answers with "ok" or with what is wrong.
const pythonLoader = `
import io, resource, sys, warnings
import _codecs
from ZODB._compat import PersistentUnpickler
warnings.simplefilter('ignore')
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

class Any:
    def __new__(cls, *args, **kw): return object.__new__(cls)
    def __init__(self, *args, **kw): pass
    def __setstate__(self, state): pass
    def __setitem__(self, key, value): pass
    def __call__(self, *args, **kw): return Any()
    def append(self, item): pass
    def extend(self, items): pass

def find(module, name):
    return _codecs.encode if (module, name) == ('_codecs', 'encode') else Any

def is_oid(o): return isinstance(o, (bytes, str)) and len(o) == 8
def is_name(o): return isinstance(o, (bytes, str))

def persistent(ref):
    if is_oid(ref): return Any()
    if isinstance(ref, tuple):
        oid, cls = ref
        if is_oid(oid): return Any()
    elif isinstance(ref, list):
        if len(ref) == 1 and is_oid(ref[0]): return Any()
        kind, args = ref
        if not isinstance(args, tuple): raise TypeError(ref)
        if kind in ('w', b'w'):
            if len(args) in (1, 2) and is_oid(args[0]) and is_name(args[-1]): return Any()
        elif kind in ('n', b'n'):
            db, oid = args
            if is_oid(oid) and is_name(db): return Any()
        elif kind in ('m', b'm'):
            db, oid, cls = args
            if is_oid(oid) and is_name(db): return Any()
    raise TypeError(ref)

for line in sys.stdin:
    u = PersistentUnpickler(find, persistent, io.BytesIO(bytes.fromhex(line)))
    try:
        u.load()
        u.load()
    except BaseException as e:
        print(type(e).__name__, ascii(str(e))[:200], flush=True)
    else:
        print('ok', flush=True)
`

type loader struct {
	in  *bufio.Writer
	out *bufio.Scanner
}

func startLoader(t *testing.T) *loader {
	t.Helper()
	in, out := zeotest.Program(t, pythonLoader)
	return &loader{bufio.NewWriter(in), out}
}

// load returns "ok", or what Python has against a record.
func (l *loader) load(t *testing.T, record []byte) string {
	t.Helper()
	if _, err := fmt.Fprintln(l.in, hex.EncodeToString(record)); err != nil {
		t.Fatal(err)
	}
	if err := l.in.Flush(); err != nil {
		t.Fatal(err)
	}
	if !l.out.Scan() {
		t.Fatalf("python ended at %q: %v", record, l.out.Err())
	}
	return l.out.Text()
}

// sampleRecords returns records as applications store them, in all protocols.
func sampleRecords(t *testing.T) [][]byte {
	t.Helper()
	b, err := os.ReadFile("../../testdata/fs/rewrite-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct{ In string }
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, v := range vectors {
		rec, err := hex.DecodeString(strings.ReplaceAll(v.In, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rec)
	}
	names, err := filepath.Glob("../../testdata/fs/*.fs")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		r, err := fsformat.Open(name, fsformat.Options{})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			for rec, err := range tr.Records {
				if err != nil {
					t.Fatal(err)
				}
				if n++; len(rec.Data) > 0 && len(rec.Data) < 2000 && (n < 40 || n%20 == 0) {
					out = append(out, slices.Clone(rec.Data))
				}
			}
		}
		r.Close()
	}
	for _, state := range pickle.States {
		out = append(out, []byte(class+state))
	}
	return out
}

const class = "cm\nC\nq\x01."

// What the scanner says of a record is what Python says of it.
func TestPythonLoadsWhatIsCalledGood(t *testing.T) {
	l := startLoader(t)
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, 0))
	s := pickle.Scanner{Python: true}
	records := sampleRecords(t)
	n := 3000
	if testing.Short() {
		n = 300
	}
	good, bad, missed := 0, 0, 0
	try := func(rec []byte) {
		python := l.load(t, rec)
		_, err := s.References(rec)
		switch {
		case strings.HasPrefix(python, "MemoryError"): // a slot of the memo of four billion
		case python == "ok" && err != nil:
			t.Errorf("seed %d: Python loads %q: %v", seed, rec, err)
		case python == "ok":
			good++
		case err != nil || s.Protocol() > 0 || s.ByteStrings() || s.Untold():
			bad++
		default:
			missed++
			t.Logf("seed %d: only Python refuses %q: %s", seed, rec, python)
		}
	}
	for _, rec := range records {
		try(rec)
	}
	for range n {
		try(mutate(rng, records))
	}
	if good < n/10 || bad < n/10 {
		t.Errorf("seed %d: %d loaded, %d refused: the mutations are no good", seed, good, bad)
	}
	// What depends on the classes, functions and codecs of the application.
	if missed > bad/100 {
		t.Errorf("seed %d: %d records that Python refuses are called good, and %d not", seed, missed, bad)
	}
}

// What no writer leaves is refused by Python and found by the scanner.
func TestPythonRefusesWhatIsFound(t *testing.T) {
	l := startLoader(t)
	s := pickle.Scanner{Python: true}
	for _, tt := range pickle.Refused {
		rec := []byte(class + tt.State)
		python := l.load(t, rec)
		_, err := s.References(rec)
		if python == "ok" || err == nil || err.Error() != "pickle: "+tt.Want {
			t.Errorf("%q: Python says %s, the scanner %v, want %s", tt.State, python, err, tt.Want)
		}
	}
	for _, tt := range []struct {
		State string
		found func() bool
	}{
		{"U\x01\xff.", s.ByteStrings},
		{"S'\\xff'\n.", s.ByteStrings},
		{"\x80\x04N.", func() bool { return s.Protocol() == 4 }},
		{"\x8c\x01a.", func() bool { return s.Protocol() == 4 }},
	} {
		rec := []byte(class + tt.State)
		python := l.load(t, rec)
		if _, err := s.References(rec); err != nil || !tt.found() || python == "ok" {
			t.Errorf("%q: %v, Python says %s", tt.State, err, python)
		}
	}
}

// mutate damages a record in one to three places.
func mutate(rng *rand.Rand, records [][]byte) []byte {
	rec := slices.Clone(records[rng.IntN(len(records))])
	for range 1 + rng.IntN(3) {
		i := rng.IntN(len(rec))
		switch rng.IntN(6) {
		case 0:
			rec[i] ^= 1 << rng.IntN(8)
		case 1:
			rec[i] = byte(rng.Uint32())
		case 2: // an instruction more
			const ops = "(.012NRbaesudlto}])Q\x81\x85\x86\x87\x88\x89"
			rec = slices.Insert(rec, i, ops[rng.IntN(len(ops))])
		case 3:
			rec = slices.Delete(rec, i, i+1)
		case 4: // a part of another one
			other := records[rng.IntN(len(records))]
			j := rng.IntN(len(other))
			rec = slices.Insert(rec, i, other[j:min(j+1+rng.IntN(8), len(other))]...)
		case 5:
			const text = "0123456789_.+-eExXL\\u'\" \r\n"
			rec[i] = text[rng.IntN(len(text))]
		}
		if len(rec) == 0 {
			return []byte(".")
		}
	}
	return rec
}
