package snapshot

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// MarkerKey is the key of the marker, relative to the prefix of the repository, as
// all keys are.
const MarkerKey = "neobackup"

// MaxSeq is the greatest number of a manifest and of a tail: 10 hexadecimal digits.
const MaxSeq = 1<<40 - 1

// Kind is what an object of a repository is.
type Kind uint8

// The kinds of objects, by their keys.
const (
	KindMarker   Kind = iota + 1 // neobackup
	KindEpoch                    // keys/<kid>.pub
	KindWrap                     // keys/<kid>.<w>
	KindLineage                  // l/<k>
	KindManifest                 // <lin>/m/<0xffffffffff − seq>
	KindTail                     // <lin>/t/<n>
	KindPage                     // <lin>/c/<sha16>
	KindSegment                  // <lin>/s/<after>-<upto>-<sha16>
	KindRun                      // <lin>/x/…: index runs, reserved
	KindBlob                     // <lin>/b/…: blobs, reserved
	KindProof                    // <lin>/p/<time>-<tid>
	KindPolicy                   // policy/<k>
	KindDoom                     // d/<time>
	KindVoid                     // d/<time>.void
	KindProbe                    // probe/<random>
)

var kindNames = [...]string{
	KindMarker: "marker", KindEpoch: "epoch note", KindWrap: "key wrap", KindLineage: "lineage note",
	KindManifest: "manifest", KindTail: "tail", KindPage: "catalog page", KindSegment: "segment",
	KindRun: "index run", KindBlob: "blob", KindProof: "proof", KindPolicy: "policy note",
	KindDoom: "doom list", KindVoid: "void of a doom list", KindProbe: "probe object",
}

// String returns what messages call the kind.
func (k Kind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return "object of kind " + strconv.Itoa(int(k))
	}
	return kindNames[k]
}

// Key is the parsed name of an object. Fields that the kind does not have are zero.
type Key struct {
	Kind    Kind
	Lineage ID        // of what lies under <lin>/
	N       int64     // kid, k, seq or n: from 1
	Wrap    int64     // number of a wrap: from 1
	After   tid.TID   // range of a segment
	Upto    tid.TID   // range of a segment; TID of a proof
	Sum     Short     // of a page or a segment
	Time    time.Time // of a doom list or a proof: a name only
	Rest    string    // what follows <lin>/x/, <lin>/b/ or probe/
}

// String returns the name of the object.
func (k Key) String() string {
	switch k.Kind {
	case KindMarker:
		return MarkerKey
	case KindEpoch:
		return fmt.Sprintf("keys/%04x.pub", k.N)
	case KindWrap:
		return fmt.Sprintf("keys/%04x.%04x", k.N, k.Wrap)
	case KindLineage:
		return fmt.Sprintf("l/%04x", k.N)
	case KindManifest:
		return fmt.Sprintf("%vm/%010x", k.Lineage.dir(), MaxSeq-k.N)
	case KindTail:
		return fmt.Sprintf("%vt/%010x", k.Lineage.dir(), k.N)
	case KindPage:
		return fmt.Sprintf("%vc/%v", k.Lineage.dir(), k.Sum)
	case KindSegment:
		return fmt.Sprintf("%vs/%v-%v-%v", k.Lineage.dir(), k.After, k.Upto, k.Sum)
	case KindRun:
		return k.Lineage.dir() + "x/" + k.Rest
	case KindBlob:
		return k.Lineage.dir() + "b/" + k.Rest
	case KindProof:
		return fmt.Sprintf("%vp/%s-%v", k.Lineage.dir(), k.Time.UTC().Format(nameForm), k.Upto)
	case KindPolicy:
		return fmt.Sprintf("policy/%04x", k.N)
	case KindDoom:
		return "d/" + k.Time.UTC().Format(nameForm)
	case KindVoid:
		return "d/" + k.Time.UTC().Format(nameForm) + ".void"
	case KindProbe:
		return "probe/" + k.Rest
	}
	panic(fmt.Sprintf("snapshot: key of kind %d", k.Kind))
}

func (id ID) dir() string { return id.String() + "/" }

// Keys of objects, and prefixes of keys that are listed.

// ManifestKey returns the key of manifest seq.
func ManifestKey(lineage ID, seq int64) string {
	return Key{Kind: KindManifest, Lineage: lineage, N: seq}.String()
}

// TailKey returns the key of tail n.
func TailKey(lineage ID, n int64) string {
	return Key{Kind: KindTail, Lineage: lineage, N: n}.String()
}

// PageKey returns the key of a catalog page with the hash sum.
func PageKey(lineage ID, sum Hash) string {
	return Key{Kind: KindPage, Lineage: lineage, Sum: sum.Short()}.String()
}

// SegmentKey returns the key of a segment with the hash sum of its object.
func SegmentKey(lineage ID, after, upto tid.TID, sum Hash) string {
	return Key{Kind: KindSegment, Lineage: lineage, After: after, Upto: upto, Sum: sum.Short()}.String()
}

// Prefix returns what the keys of the objects of a kind begin with; the lineage is
// ignored for those that are in none.
func Prefix(kind Kind, lineage ID) string {
	switch kind {
	case KindMarker:
		return MarkerKey
	case KindEpoch, KindWrap:
		return "keys/"
	case KindLineage:
		return "l/"
	case KindManifest:
		return lineage.dir() + "m/"
	case KindTail:
		return lineage.dir() + "t/"
	case KindPage:
		return lineage.dir() + "c/"
	case KindSegment:
		return lineage.dir() + "s/"
	case KindRun:
		return lineage.dir() + "x/"
	case KindBlob:
		return lineage.dir() + "b/"
	case KindProof:
		return lineage.dir() + "p/"
	case KindPolicy:
		return "policy/"
	case KindDoom, KindVoid:
		return "d/"
	case KindProbe:
		return "probe/"
	}
	panic(fmt.Sprintf("snapshot: prefix of kind %d", kind))
}

// ParseKey reads the name of an object, relative to the prefix of the repository. An
// error means that the object is none of this format.
func ParseKey(s string) (Key, error) {
	k, ok := parseKey(s)
	if !ok || k.String() != s {
		return Key{}, fmt.Errorf("%.130q is no key of a backup repository", s)
	}
	return k, nil
}

func parseKey(s string) (k Key, ok bool) {
	if s == MarkerKey {
		return Key{Kind: KindMarker}, true
	}
	dir, rest, ok := strings.Cut(s, "/")
	if !ok || len(s) > 120 {
		return k, false
	}
	switch dir {
	case "keys":
		kid, end, _ := strings.Cut(rest, ".")
		if k.N, ok = parseNumber(kid, 4); !ok {
			return k, false
		}
		if k.Kind = KindEpoch; end == "pub" {
			return k, true
		}
		k.Kind = KindWrap
		k.Wrap, ok = parseNumber(end, 4)
		return k, ok
	case "l":
		k.Kind = KindLineage
		k.N, ok = parseNumber(rest, 4)
		return k, ok
	case "policy":
		k.Kind = KindPolicy
		k.N, ok = parseNumber(rest, 4)
		return k, ok
	case "d":
		if k.Kind = KindDoom; strings.HasSuffix(rest, ".void") {
			k.Kind, rest = KindVoid, strings.TrimSuffix(rest, ".void")
		}
		var err error
		k.Time, err = parseTime(nameForm, rest)
		return k, err == nil
	case "probe":
		k.Kind, k.Rest = KindProbe, rest
		return k, plainName(rest)
	}
	var err error
	if k.Lineage, err = ParseID(dir); err != nil {
		return k, false
	}
	dir, rest, ok = strings.Cut(rest, "/")
	if !ok {
		return k, false
	}
	switch dir {
	case "m":
		k.Kind = KindManifest
		if len(rest) != 10 || !isHex(rest) {
			return k, false
		}
		n, err := strconv.ParseInt(rest, 16, 64)
		k.N = MaxSeq - n
		return k, err == nil && k.N > 0
	case "t":
		k.Kind = KindTail
		k.N, ok = parseNumber(rest, 10)
		return k, ok
	case "c":
		k.Kind = KindPage
		return k, parseHex(k.Sum[:], rest) == nil
	case "s":
		k.Kind = KindSegment
		f := strings.Split(rest, "-")
		if len(f) != 3 {
			return k, false
		}
		var e1, e2 error
		k.After, e1 = parseTID(f[0])
		k.Upto, e2 = parseTID(f[1])
		return k, e1 == nil && e2 == nil && k.After <= k.Upto && parseHex(k.Sum[:], f[2]) == nil
	case "x":
		k.Kind, k.Rest = KindRun, rest
		return k, plainName(rest)
	case "b":
		k.Kind, k.Rest = KindBlob, rest
		return k, plainName(rest)
	case "p":
		k.Kind = KindProof
		at, t, ok := strings.Cut(rest, "-")
		if !ok {
			return k, false
		}
		var e1, e2 error
		k.Time, e1 = parseTime(nameForm, at)
		k.Upto, e2 = parseTID(t)
		return k, e1 == nil && e2 == nil
	}
	return k, false
}

// parseNumber reads a number from 1 of so many hexadecimal digits.
func parseNumber(s string, digits int) (int64, bool) {
	if len(s) != digits || !isHex(s) {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 16, 64)
	return n, err == nil && n > 0
}

// plainName reports whether a name that is not read any further has only characters that
// keys may have.
func plainName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '.' && c != '/' && c != '-' && c != 'T' && c != 'Z' {
			return false
		}
	}
	return s != ""
}

func parseTID(s string) (tid.TID, error) {
	var b [8]byte
	if err := parseHex(b[:], s); err != nil {
		return 0, fmt.Errorf("transaction id %.30q: %w", s, err)
	}
	return tid.TID(binary.BigEndian.Uint64(b[:])), nil
}

func parseOID(s string) (tid.OID, error) {
	var b [8]byte
	if err := parseHex(b[:], s); err != nil {
		return 0, fmt.Errorf("object id %.30q: %w", s, err)
	}
	return tid.OID(binary.BigEndian.Uint64(b[:])), nil
}

// NewProbeKey returns the key of a probe object.
func NewProbeKey() string {
	id := NewID()
	return "probe/" + hex.EncodeToString(id[:8])
}
