package snapshot

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

var update = flag.Bool("update", false, "write golden files: read the difference, a released one must not change")

// Keys of the tests alone.
var testKeys = map[Role][2]string{
	Writer: {"PRIVATE+KEY+test/writer+56d25bc6+AVZDsEOCjjiYlttN+FLeZ5AcMJKJ+Sw2EC/IsKkoljUx", "test/writer+56d25bc6+AZHfUoaJG8IkFXrEK/xSaM3pDIRZ+S5e0SKii19y5OYO"},
	Keeper: {"PRIVATE+KEY+test/keeper+d95ebe6e+AeBRDal55UgBjeL2y0mSAEitAtl52pJtwSsBtYxINOA3", "test/keeper+d95ebe6e+AXo6AUYJr/LShxV3XcDKbmpHO0Al/ZkL3eAxjh9uBuJL"},
	Driver: {"PRIVATE+KEY+test/drill+fb87ef2c+ARDAuIF2nhO0RHbeNZi/ROkMNPMckBMHK53Ik8IohNo4", "test/drill+fb87ef2c+AdjUM7K1JLLVyhe2PXf8JT+YcJspJHa+I6rAB1emoKpW"},
}

const (
	testIdentity  = "AGE-SECRET-KEY-1KP66DL4A4S8GEVH92HQJZEZLUAD3Q5X2K0HUZ4AHX3L35LEA2ANQ88DUKG"
	testRecipient = "age1jnnypyt2n3wv3yp5p6j4k9vrtzftzzx6lnph6gnv8letjkxrey6sw2909g"
	testOperator  = "age12grcargyayr997zvchyjqwd9nwrjezwswdy840zzzwd6l4qxpclqcrwzfa"
)

func signer(t testing.TB, r Role) *Signer {
	t.Helper()
	s, err := NewSigner(testKeys[r][0])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func trusted(t testing.TB) Verifiers {
	t.Helper()
	v, err := NewVerifiers(testKeys[Writer][1], testKeys[Keeper][1], testKeys[Driver][1])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var testTime = time.Date(2026, 11, 20, 20, 10, 3, 0, time.UTC)

func hashOf(s string) Hash { return Sum([]byte(s)) }

// line returns a line for a segment that was not written.
func line(after, upto tid.TID, n int64) Segment {
	sum := hashOf(fmt.Sprint("object", after, upto))
	return Segment{
		Key: SegmentKey(testLineage, after, upto, sum), After: after, Upto: upto, Bytes: 1000 * n, SHA256: sum, Raw: hashOf("text"),
		Text: 4000 * n, Txns: 2 * n, Records: 5 * n, MaxOID: tid.OID(n), Meta: 300, KID: 1, Header: []byte("age-encryption.org/v1\n…"),
	}
}

// notes are one value of each kind that has a golden file.
func notes(t testing.TB) map[string]func() ([]byte, error) {
	one := func(n Note) func() ([]byte, error) {
		_, role := n.kind()
		return func() ([]byte, error) { return Sign(n, signer(t, role)) }
	}
	const writer = "host/4711/9f8e7d6c"
	tail := Tail{Repo: testRepo, Lineage: testLineage, N: 1, Writer: writer, After: 0x40, Upto: 0x50, Asof: testTime, Tip: hashOf("tip"), MaxOID: 7,
		Bytes: 3333, SHA256: hashOf("segment"), Raw: hashOf("text"), Text: 4444, Txns: 1, Records: 2, KID: 1}
	listed := Tail{Repo: testRepo, Lineage: testLineage, N: 2, Prev: hashOf("tail 1"), Writer: writer, After: 0x50, Upto: 0x70, Asof: testTime, Tip: hashOf("tip"),
		ExactFrom: 0x60, MaxOID: 9, Text: 12000, Txns: 6, Records: 15,
		Segments: []Segment{line(0x50, 0x70, 2), line(0x70, 0x70, 1)}, // a transaction that is cut
		Reserved: []Reserved{{ReservedBlob, testLineage.dir() + "b/0001", `{"blob":"` + testLineage.dir() + `b/0001","whatever":[1,null]}`}}}
	beat := Tail{Repo: testRepo, Lineage: testLineage, N: 3, Prev: hashOf("tail 2"), Writer: writer, After: 0x70, Upto: 0x70, Asof: testTime, Tip: hashOf("tip"), MaxOID: 9}
	page := []Segment{line(0, 0x10, 1), line(0x10, 0x20, 2)}
	_, pageLine, err := NewPage(testLineage, page)
	if err != nil {
		t.Fatal(err)
	}
	clipped, behind := line(0x20, 0x38, 3), line(0x30, 0x40, 1)
	clipped.Clip = 0x30
	behind.SetTail(TailKey(testLineage, 12), 0x333)
	behind.KID, behind.Header = 0, nil
	manifest := Manifest{Repo: testRepo, Lineage: testLineage, Seq: 2, Prev: hashOf("manifest 1"), Tail: 12, Chain: hashOf("tail 12"), Created: testTime,
		Writer: writer, Source: Source{Kind: "cluster", Name: "prod", NP: 12}, Asof: testTime, Tip: hashOf("tip"),
		Holes: []Hole{{0x8, 0x10}, {0x20, 0x28}}, Label: "before <the> \"merge\"\u2028\t",
		Items: []Item{{Page: &pageLine}, {Segment: &clipped}, {Segment: &behind}, {Gap: &Gap{true, 0x40, 0x50, "lost with the disk"}}},
		Reserved: []Reserved{
			{ReservedRun, testLineage.dir() + "x/00-20-ab", `{"run":"` + testLineage.dir() + `x/00-20-ab","oid":"0000000000000000"}`},
			{ReservedBlob, testLineage.dir() + "b/0001", `{"blob":"` + testLineage.dir() + `b/0001"}`}}}
	manifest.SumUp()
	first := Manifest{Repo: testRepo, Lineage: testLineage, Seq: 1, Created: testTime, Writer: writer, Source: Source{Kind: "file", Name: "/var/lib/Data.fs"}}
	return map[string]func() ([]byte, error){
		"marker":  one(&Marker{testRepo, "test", testTime, EncryptionAge, []string{testKeys[Writer][1]}}),
		"epoch":   one(&Epoch{testRepo, 1, testTime, testRecipient, []string{testOperator}, hashOf("wrap")}),
		"lineage": one(&Lineage{Repo: testRepo, K: 1, Lineage: testLineage, Created: testTime, Why: "init"}),
		"fork":    one(&Lineage{testRepo, 2, ID{0xcc}, testLineage, 0x30, testTime, "fork: the source was truncated"}),
		"policy":  one(&Policy{testRepo, 1, testTime, 35, 24, 30, []Hold{{testLineage, 0x30, "release 5"}}}),
		"void":    one(&Void{testRepo, "d/20261120T201003Z", testTime, ""}),
		"proof": one(&Proof{testRepo, testLineage, 2, hashOf("manifest 2"), 13, hashOf("tail 13"), 0x50, testTime, "cluster",
			Compared{4, 10, 30, 5000, "digest"}, 120, 33, 6000, 17, []KID{1, 2}, ResultOK, ""}),
		"proof-failed": one(&Proof{Repo: testRepo, Lineage: testLineage, Seq: 2, Manifest: hashOf("manifest 2"), TID: 0x50, Time: testTime, Mode: "file",
			Compared: Compared{Source: "none"}, Result: ResultFailed, Reason: "the scratch directory is full"}),
		"doom": func() ([]byte, error) {
			d := Doom{testRepo, testTime, 1, []string{"d/20261110T201003Z"}, []Doomed{{TailKey(testLineage, 3), "merged"}, {ManifestKey(testLineage, 1), "superseded"}}}
			return d.Sign(signer(t, Keeper))
		},
		"tail":           func() ([]byte, error) { return tail.Sign(signer(t, Writer)) },
		"tail-listed":    func() ([]byte, error) { return listed.Sign(signer(t, Writer)) },
		"tail-heartbeat": func() ([]byte, error) { return beat.Sign(signer(t, Writer)) },
		"page":           func() ([]byte, error) { b, _, err := NewPage(testLineage, page); return b, err },
		"manifest":       func() ([]byte, error) { return manifest.Sign(signer(t, Writer)) },
		"manifest-first": func() ([]byte, error) { return first.Sign(signer(t, Writer)) },
	}
}

// reopen decodes a note of that name and encodes it again.
func reopen(t testing.TB, name string, b []byte) ([]byte, error) {
	v := trusted(t)
	one := func(key string, n Note) ([]byte, error) {
		if err := Open(b, key, testRepo, n, v); err != nil {
			return nil, err
		}
		_, role := n.kind()
		return Sign(n, signer(t, role))
	}
	kind, _, _ := strings.Cut(name, "-")
	switch kind {
	case "marker":
		return one(MarkerKey, &Marker{})
	case "epoch":
		return one("keys/0001.pub", &Epoch{})
	case "lineage":
		return one("l/0001", &Lineage{})
	case "fork":
		return one("l/0002", &Lineage{})
	case "policy":
		return one("policy/0001", &Policy{})
	case "void":
		return one("d/20261120T201003Z.void", &Void{})
	case "proof":
		return one(Key{Kind: KindProof, Lineage: testLineage, Time: testTime, Upto: 0x50}.String(), &Proof{})
	case "doom":
		d, err := OpenDoom(b, "d/20261120T201003Z", testRepo, v)
		if err != nil {
			return nil, err
		}
		return d.Sign(signer(t, Keeper))
	case "tail":
		n := map[string]int64{"tail": 1, "tail-listed": 2, "tail-heartbeat": 3}[name]
		tl, err := OpenTail(b, TailKey(testLineage, n), testRepo, v)
		if err != nil {
			return nil, err
		}
		return tl.Sign(signer(t, Writer))
	case "manifest":
		n := map[string]int64{"manifest": 2, "manifest-first": 1}[name]
		m, err := OpenManifest(b, ManifestKey(testLineage, n), testRepo, v)
		if err != nil {
			return nil, err
		}
		return m.Sign(signer(t, Writer))
	case "page":
		_, p, err := NewPage(testLineage, []Segment{line(0, 0x10, 1), line(0x10, 0x20, 2)})
		if err != nil {
			return nil, err
		}
		list, err := OpenPage(b, &p)
		if err != nil {
			return nil, err
		}
		b, _, err = NewPage(testLineage, list)
		return b, err
	}
	return nil, fmt.Errorf("no such note %q", name)
}

// The bytes of notes are those of the golden files, and are read from them.
func TestGoldenNotes(t *testing.T) {
	for name, make := range notes(t) {
		b, err := make()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		path := filepath.Join("testdata", name+".note")
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(b)); diff != "" {
			t.Errorf("%s (-golden +got):\n%s", name, diff)
		}
		again, err := reopen(t, name, want)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(string(want), string(again)); diff != "" {
			t.Errorf("%s: read and written again (-golden +got):\n%s", name, diff)
		}
	}
}

// The length of the note of a tail is in its first line.
func TestTailBeginsWithItsLength(t *testing.T) {
	for _, name := range []string{"tail", "tail-listed", "tail-heartbeat"} {
		b, err := os.ReadFile("testdata/" + name + ".note")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := SplitTail(b[:128], "k"); err != nil || n != int64(len(b)) {
			t.Errorf("%s: %d, %v, want %d", name, n, err, len(b))
		}
	}
}

// No byte of a note can change unnoticed.
func TestDamagedNotes(t *testing.T) {
	for name, make := range notes(t) {
		b, err := make()
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			d := bytes.Clone(b)
			d[i] ^= 1
			_, err := reopen(t, name, d)
			if same, textErr := Text(d); err == nil && textErr == nil {
				if want, _ := Text(b); bytes.Equal(same, want) {
					continue // the last bits of base64, which say nothing
				}
			}
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUntrusted) && !errors.Is(err, ErrVersion) {
				t.Errorf("%s: byte %d changed: %v", name, i, err)
			}
		}
		for n := range b {
			if _, err := reopen(t, name, b[:n]); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUntrusted) {
				t.Errorf("%s: cut to %d bytes: %v", name, n, err)
			}
		}
	}
}

// resign returns a note with a text that another version, or an attacker with the key,
// could have signed.
func resign(t *testing.T, name string, role Role, change func(string) string) []byte {
	t.Helper()
	b, err := notes(t)[name]()
	if err != nil {
		t.Fatal(err)
	}
	text, err := Text(b)
	if err != nil {
		t.Fatal(err)
	}
	changed := change(string(text))
	if changed == string(text) {
		t.Fatalf("%s: nothing changed", name)
	}
	out, err := sign([]byte(changed), role, signer(t, role))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func replace(old, new string) func(string) string {
	return func(s string) string { return strings.Replace(s, old, new, 1) }
}

func TestNotesAreStrict(t *testing.T) {
	key := ManifestKey(testLineage, 2)
	for _, tt := range []struct {
		name, note string
		role       Role
		change     func(string) string
		want       string // "": read
	}{
		{"a key of an extension", "marker", Writer, replace(`,"name"`, `,"x-color":{"a":[null]},"name"`), ""},
		{"a key that is not known", "marker", Writer, replace(`,"name"`, `,"color":1,"name"`), `unknown key "color"`},
		{"a key twice", "marker", Writer, replace(`,"name"`, `,"id":"00","name"`), `key "id" occurs twice`},
		{"an extension twice", "marker", Writer, replace(`,"name"`, `,"x-a":1,"x-a":1,"name"`), `key "x-a" occurs twice`},
		{"a missing key", "marker", Writer, replace(`,"name":"test"`, ``), `key "name" is missing`},
		{"null", "marker", Writer, replace(`"name":"test"`, `"name":null`), `"null" is no string`},
		{"a newer version", "marker", Writer, replace(`"v":1`, `"v":2`), "neobackup: version 2 of the format (repository), this program knows version 1"},
		{"another kind", "marker", Writer, replace(`"repository"`, `"lineage"`), `a note of kind "lineage", want "repository"`},
		{"a second line", "marker", Writer, func(s string) string { return s + s }, "follows the only line"},
		{"no note of ours", "marker", Writer, func(string) string { return "hello\n" }, "is not the first line of a note of a backup repository"},
		{"another role", "marker", Keeper, replace(`,"name"`, `,"x-a":1,"name"`), "no trusted signature of the writer (signed by test/keeper+d95ebe6e)"},
		{"unknown encryption", "marker", Writer, replace(`"age"`, `"rot13"`), `encryption "rot13"`},
		{"a grace of 23 hours", "policy", Keeper, replace(`"prune_grace_hours":24`, `"prune_grace_hours":23`), "less than 24"},
		{"a number too great", "policy", Keeper, replace(`"lock_days":30`, `"lock_days":9007199254740992`), "is no integer in"},
		{"a fraction", "policy", Keeper, replace(`"lock_days":30`, `"lock_days":3e1`), "is no integer in"},
		{"a negative number", "policy", Keeper, replace(`"lock_days":30`, `"lock_days":-1`), "is no integer in"},
		{"another place", "policy", Keeper, replace(`"k":1`, `"k":2`), "the note says that it is policy/0002"},
		{"another repository", "policy", Keeper, replace(`"repo":"aa`, `"repo":"ab`), "a note of repository"},
		{"a time that is none", "void", Keeper, replace(`2026-11-20`, `2026-11-31`), "want the form"},
		{"a doomed file", "doom", Keeper, replace(`/t/0000000003`, `/t/0000000003x`), "is no key of a backup repository"},
		{"a line in a doom list", "doom", Keeper, replace(`{"key"`, `{"kex"`), "is no line of a doom list"},
		{"an ok with a reason", "proof", Driver, replace(`"result":"ok"`, `"result":"ok","reason":"x"`), "a reason belongs"},
		{"a run with anything in it", "manifest", Writer, replace(`{"run":`, `{"run":"`+testLineage.dir()+`x/0","z":{"a":null}}`+"\n"+`{"run":`), ""},
		{"a line that is not known", "manifest", Writer, replace(`{"run":`, `{"ruin":`), "is no line of a manifest"},
		{"a run elsewhere", "manifest", Writer, replace(`x/00-20-ab`, `s/00-20-ab`), `is no key of a line of kind "run"`},
		{"no range of a page", "manifest", Writer, replace(`"n":2`, `"n":65`), "65 segments, want 1 to 64"},
		{"a gap in the ranges", "manifest", Writer, replace(`"gap":true,"after":"0000000000000040"`, `"gap":true,"after":"0000000000000041"`), "a gap from"},
		{"no gap", "manifest", Writer, replace(`"gap":true`, `"gap":false`), "a gap from"},
		{"a head beyond the segments", "manifest", Writer, replace(`"head":"0000000000000050"`, `"head":"0000000000000051"`), "but head is"},
		{"no tip after a gap", "manifest", Writer, replace(`"tip":"`+hashOf("tip").String()+`",`, ``), ""},
		{"no tip", "tail", Writer, replace(`"tip":"`+hashOf("tip").String()+`",`, ``), "tip and upto do not fit"},
		{"other sums", "manifest", Writer, replace(`"txns":`, `"txns":1`), "the sums of its lines"},
		{"holes out of order", "manifest", Writer, replace(`["0000000000000020","0000000000000028"]`, `["0000000000000004","0000000000000028"]`), "out of order"},
		{"a clip beyond its segment", "manifest", Writer, replace(`"clip":"0000000000000030"`, `"clip":"0000000000000038"`), "clip"},
		{"no hash", "manifest", Writer, replace(`"raw":"`+hashOf("text").String()+`"`, `"raw":""`), "a hash is missing"},
		{"capital digits", "manifest", Writer, replace(`"tip":"`+hashOf("tip").String(), `"tip":"`+strings.ToUpper(hashOf("tip").String())), "lowercase hexadecimal"},
		{"another length of the note", "tail", Writer, replace(`"at":"0000`, `"at":"0001`), "it ends within its note"},
		{"two kinds of segments", "tail-listed", Writer, replace(`"bytes":0`, `"bytes":1`), "and others listed"},
		{"a sum of tails", "tail-listed", Writer, replace(`"text":12000`, `"text":12001`), "not the sums"},
		{"an epoch without segment", "tail-heartbeat", Writer, replace(`"records":0`, `"records":0,"kid":"0001"`), "an epoch without a segment"},
	} {
		b := resign(t, tt.note, tt.role, tt.change)
		if strings.HasPrefix(tt.note, "tail") && !strings.Contains(tt.change(`"at":"0000`), "1") {
			n := len(b) // which the note says
			b = resign(t, tt.note, tt.role, func(s string) string {
				s = tt.change(s)
				i := strings.Index(s, `"at":"`) + 6
				return s[:i] + fmt.Sprintf("%08x", n) + s[i+8:]
			})
		}
		_, err := reopen(t, tt.note, b)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	b, err := notes(t)["manifest"]()
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenManifest(b, key, testRepo, trusted(t))
	if err != nil || !HasBlobs(m.Reserved) || len(m.Reserved) != 2 {
		t.Errorf("reserved lines %+v, %v", m, err)
	}
	if _, err := OpenManifest(b, ManifestKey(testLineage, 3), testRepo, trusted(t)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a manifest at the place of another: %v", err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	b, err := notes(t)["marker"]()
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifiers(testKeys[Keeper][1])
	if err != nil {
		t.Fatal(err)
	}
	want := "neobackup: no trusted signature of the writer (signed by test/writer+56d25bc6): compare the verify_keys of the configuration with the keys that \"init\" printed; the note may be forged"
	if err := Open(b, MarkerKey, ID{}, &Marker{}, v); err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if err := OpenUnsigned(b, MarkerKey, ID{}, &Marker{}); err != nil {
		t.Error(err)
	}
	want = "k: at byte 3: x (the object is damaged or was replaced: \"neobackup verify\" lists all damage, \"neobackup repair\" mends it)"
	if err := corrupt("k", 3, "x"); err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestChain(t *testing.T) {
	a := Tail{Repo: testRepo, Lineage: testLineage, N: 1, Writer: "w", Upto: 5, Asof: testTime, Tip: hashOf("tip"), Bytes: 1, SHA256: hashOf("s"), Raw: hashOf("r")}
	if _, err := a.Sign(signer(t, Writer)); err != nil {
		t.Fatal(err)
	}
	b := Tail{N: 2, Prev: a.Hash(), After: 5, Upto: 5}
	if err := a.Follows(Chain{}); err != nil {
		t.Error(err)
	}
	if err := b.Follows(a.Chain()); err != nil {
		t.Error(err)
	}
	for _, c := range []Tail{{N: 3, Prev: a.Hash(), After: 5}, {N: 2, Prev: hashOf("x"), After: 5}, {N: 2, Prev: a.Hash(), After: 4}} {
		if err := c.Follows(a.Chain()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v follows: %v", c, err)
		}
	}
	m := Manifest{Tail: 1, Chain: a.Hash(), Head: 5}
	if m.ChainEnd() != a.Chain() {
		t.Error("the chain of a manifest is not that of its last tail")
	}
}

func TestHoles(t *testing.T) {
	var list []Hole
	for _, h := range []Hole{{10, 20}, {30, 40}, {20, 25}, {5, 5}, {1, 3}, {35, 50}, {60, 70}, {39, 61}} {
		list = AddHole(list, h)
	}
	if diff := cmp.Diff([]Hole{{1, 3}, {10, 20}, {20, 25}, {30, 70}}, list); diff != "" {
		t.Errorf("holes (-want +got):\n%s", diff)
	}
	for at, want := range map[tid.TID]bool{1: false, 2: true, 3: false, 10: false, 11: true, 20: false, 21: true, 69: true, 70: false} {
		if _, in := InHole(list, at); in != want {
			t.Errorf("%d in a hole: %v", at, in)
		}
	}
}

func TestKeys(t *testing.T) {
	lin := testLineage.String()
	for s, want := range map[string]Key{
		"neobackup":           {Kind: KindMarker},
		"keys/0001.pub":       {Kind: KindEpoch, N: 1},
		"keys/00ff.0002":      {Kind: KindWrap, N: 255, Wrap: 2},
		"l/0001":              {Kind: KindLineage, N: 1},
		lin + "/m/fffffffffe": {Kind: KindManifest, Lineage: testLineage, N: 1},
		lin + "/t/0000000010": {Kind: KindTail, Lineage: testLineage, N: 16},
		lin + "/c/" + hashOf("").Short().String():                                   {Kind: KindPage, Lineage: testLineage, Sum: hashOf("").Short()},
		lin + "/s/0000000000000001-0000000000000002-" + hashOf("").Short().String(): {Kind: KindSegment, Lineage: testLineage, After: 1, Upto: 2, Sum: hashOf("").Short()},
		lin + "/x/abc":       {Kind: KindRun, Lineage: testLineage, Rest: "abc"},
		lin + "/b/abc/1-2.3": {Kind: KindBlob, Lineage: testLineage, Rest: "abc/1-2.3"},
		lin + "/p/20261120T201003Z-0000000000000050": {Kind: KindProof, Lineage: testLineage, Upto: 0x50, Time: testTime},
		"policy/0001":             {Kind: KindPolicy, N: 1},
		"d/20261120T201003Z":      {Kind: KindDoom, Time: testTime},
		"d/20261120T201003Z.void": {Kind: KindVoid, Time: testTime},
		"probe/0a1b":              {Kind: KindProbe, Rest: "0a1b"},
	} {
		k, err := ParseKey(s)
		if err != nil || k != want || k.String() != s || !strings.HasPrefix(s, Prefix(k.Kind, k.Lineage)) {
			t.Errorf("%s: %+v, %v, %s", s, k, err, want)
		}
	}
	for _, s := range []string{"", "x", "keys/0000.pub", "keys/00FF.0002", "keys/1.pub", "l/0000", "l/00001", lin + "/m/ffffffffff", lin + "/t/0000000000",
		lin + "/s/0000000000000003-0000000000000002-" + hashOf("").Short().String(), lin + "/z/1", lin + "/x/", lin + "/x/A", "d/20261131T201003Z", "probe/", "probe/a b",
		strings.ToUpper(lin) + "/t/0000000001", lin, lin + "/t", "neobackup/"} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("%q is %+v", s, k)
		}
	}
	if a, b := ManifestKey(testLineage, 2), ManifestKey(testLineage, 1); a >= b {
		t.Errorf("manifest 2 (%s) does not sort before manifest 1 (%s)", a, b)
	}
	if _, err := ParseKey(NewProbeKey()); err != nil {
		t.Error(err)
	}
}

// Numbers that cannot be written are refused, not cut.
func TestNotesThatCannotBeWritten(t *testing.T) {
	w := signer(t, Writer)
	ok := Marker{testRepo, "test", testTime, EncryptionNone, nil}
	for name, n := range map[string]Note{
		"a name":          &Marker{testRepo, "Test", testTime, EncryptionNone, nil},
		"no valid UTF-8":  &Lineage{Repo: testRepo, K: 1, Lineage: testLineage, Created: testTime, Why: "\xff"},
		"lineage 0":       &Lineage{Repo: testRepo, Lineage: testLineage, Created: testTime},
		"no recipient":    &Epoch{testRepo, 1, testTime, testRecipient, nil, hashOf("wrap")},
		"a bad recipient": &Epoch{testRepo, 1, testTime, testRecipient, []string{"age1x"}, hashOf("wrap")},
	} {
		if _, err := Sign(n, w); err == nil {
			t.Errorf("%s is signed", name)
		}
	}
	if _, err := Sign(&ok, signer(t, Keeper)); err == nil {
		t.Error("a keeper signs a marker")
	}
	if _, err := Sign(&ok, w); err != nil {
		t.Error(err)
	}
	if _, err := Sign(&Policy{Repo: testRepo, K: 1, PruneGraceHours: 1 << 60}, signer(t, Keeper)); err == nil {
		t.Error("a number of 61 bits is signed")
	}
	if _, _, err := GenerateKey("Prod", Writer); err == nil {
		t.Error("a key for the name Prod")
	}
	if _, err := NewVerifiers("test/boss+56d25bc6+AZHfUoaJG8IkFXrEK/xSaM3pDIRZ+S5e0SKii19y5OYO"); err == nil {
		t.Error("a key of an unknown role")
	}
	if _, err := NewSigner("AGE-SECRET"); err == nil || strings.Contains(err.Error(), "AGE-SECRET") {
		t.Errorf("a wrong key to sign with: %v", err)
	}
}

// A tail and a manifest of what a writer wrote say what it says.
func TestLinesOfSegments(t *testing.T) {
	h := Header{Repo: testRepo, Lineage: testLineage, ExactFrom: 0x20}
	b, w := write(t, h, 0x50, sample())
	st, err := Seal(&bytes.Buffer{}, bytes.NewReader(b), nil, 0)
	if err != nil || st.Bytes != int64(len(b)) || st.SHA256 != Sum(b) {
		t.Fatalf("%+v, %v", st, err)
	}
	l := w.Line(st)
	if err := openSegment(t, b).Matches(&l); err != nil {
		t.Error(err)
	}
	for i, change := range []func(*Segment){func(l *Segment) { l.Raw[0]++ }, func(l *Segment) { l.Records++ }, func(l *Segment) { l.Meta-- }} {
		c := l
		change(&c)
		if err := openSegment(t, b).Matches(&c); !errors.Is(err, ErrCorrupt) {
			t.Errorf("change %d: %v", i, err)
		}
	}
	tail := Tail{Repo: testRepo, Lineage: testLineage, N: 1, Writer: "w", Asof: testTime, Tip: Tip(&sample()[4].txn)}
	tail.SetSegment(w, st)
	if _, err := tail.Sign(signer(t, Writer)); err != nil || tail.ExactFrom != 0x20 || tail.Upto != 0x50 {
		t.Errorf("%+v, %v", tail, err)
	}
	tail = Tail{Repo: testRepo, Lineage: testLineage, N: 1, Writer: "w", Asof: testTime, Tip: tail.Tip}
	tail.SetSegments([]Segment{l})
	if _, err := tail.Sign(signer(t, Writer)); err != nil || tail.Text != w.Footer.Text {
		t.Errorf("%+v, %v", tail, err)
	}
	// An intermediate tail of a backlog may end before anything is exact.
	tail.ExactFrom = 0x60
	if b, err := tail.Sign(signer(t, Writer)); err != nil {
		t.Error(err)
	} else if got, err := OpenTail(b, TailKey(testLineage, 1), testRepo, trusted(t)); err != nil || got.ExactFrom != 0x60 {
		t.Errorf("%+v, %v", got, err)
	}
	tail.ExactFrom = 0
	if _, err := tail.Sign(signer(t, Writer)); err != nil {
		t.Error(err)
	}
	// How long the directory is need not be known of what is behind a tail.
	unknown := l
	unknown.Meta = 0
	if err := openSegment(t, b).Matches(&unknown); err != nil {
		t.Error(err)
	}
	if err := unknown.check(unknown.After); err == nil {
		t.Error("a segment of its own without the length of its directory")
	}
	unknown.SetTail(TailKey(testLineage, 1), 1000)
	if err := unknown.check(unknown.After); err != nil {
		t.Error(err)
	}
	m := Manifest{Repo: testRepo, Lineage: testLineage, Seq: 1, Tail: 1, Chain: tail.Hash(), Created: testTime, Writer: "w", Source: Source{Kind: "file"},
		Tip: tail.Tip, Items: []Item{{Segment: &l}}}
	m.SumUp()
	if _, err := m.Sign(signer(t, Writer)); err != nil || m.Head != 0x50 || m.ChainEnd() != tail.Chain() {
		t.Errorf("%+v, %v", m, err)
	}
	_, to, _ := GenerateEpoch(nil)
	if _, err := Seal(&bytes.Buffer{}, bytes.NewReader(b), nil, 1); err == nil {
		t.Error("an epoch without a recipient")
	}
	if _, err := Seal(&bytes.Buffer{}, bytes.NewReader(b), to, 0); err == nil {
		t.Error("a recipient without an epoch")
	}
}
