package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// Tail is one step of the log of a lineage, and the only point at which anything is
// committed: the transactions in (After, Upto]. They are in the segment behind the
// note (Bytes > 0), or in Segments that were stored before. With Upto = After it is a
// heartbeat.
type Tail struct {
	At        position  `json:"at"`
	Repo      ID        `json:"repo"`
	Lineage   ID        `json:"lineage"`
	N         int64     `json:"n"`      // from 1
	Prev      Hash      `json:"prev"`   // of the note of tail N−1; zero for 1
	Writer    string    `json:"writer"` // host/pid/nonce
	After     tid.TID   `json:"after"`
	Upto      tid.TID   `json:"upto"`
	Asof      time.Time `json:"asof"`                 // the source had nothing beyond Upto then
	Tip       Hash      `json:"tip,omitempty"`        // of transaction Upto, see Tip; zero if Upto is, or in a heartbeat after a gap
	ExactFrom tid.TID   `json:"exact_from,omitempty"` // if not zero, (After, ExactFrom) is a hole; above Upto where more follows
	MaxOID    tid.OID   `json:"max_oid"`
	Bytes     int64     `json:"bytes"`            // of the segment object behind the note
	SHA256    Hash      `json:"sha256,omitempty"` // of that
	Raw       Hash      `json:"raw,omitempty"`    // of its text
	Text      int64     `json:"text"`             // bytes of text, in Segments as well
	Txns      int64     `json:"txns"`
	Records   int64     `json:"records"`
	KID       KID       `json:"kid,omitempty"` // epoch of the segment behind the note

	Segments []Segment
	Reserved []Reserved

	hash Hash
}

// Hash returns the hash of the signed note, which the next tail refers to. It is known
// once the tail was signed or opened.
func (t *Tail) Hash() Hash { return t.hash }

// NoteSize returns the length of the signed note: where the segment begins. It is
// known once the tail was signed or opened.
func (t *Tail) NoteSize() int64 { return int64(t.At) }

// SetSegment makes the segment that follows the note that of the tail: its range and
// all that the note says of it.
func (t *Tail) SetSegment(w *Written, st Stored) {
	h, f := &w.Header, &w.Footer
	t.After, t.Upto, t.MaxOID = h.After, h.Upto, f.MaxOID
	t.Bytes, t.SHA256, t.KID = st.Bytes, st.SHA256, st.KID
	t.Raw, t.Text, t.Txns, t.Records = f.Raw, f.Text, f.Txns, f.Records
	if t.ExactFrom = 0; h.ExactFrom > h.After {
		t.ExactFrom = h.ExactFrom
	}
}

// SetSegments makes stored segments those of the tail, with their range and sums.
func (t *Tail) SetSegments(list []Segment) {
	var sum totals
	for i := range list {
		sum.add(list[i].totals())
	}
	t.Segments = list
	t.Text, t.Txns, t.Records, t.MaxOID = sum.text, sum.txns, sum.records, sum.maxOID
	if len(list) > 0 {
		t.After, t.Upto = list[0].After, list[len(list)-1].End()
	}
}

// Heartbeat reports whether the tail says only that the source had nothing new.
func (t *Tail) Heartbeat() bool { return t.Upto == t.After }

// Chain is a place between two tails.
type Chain struct {
	N    int64   // of the last tail, 0: none
	Hash Hash    // of its note
	Head tid.TID // its Upto
}

// Chain returns the place after the tail.
func (t *Tail) Chain() Chain { return Chain{t.N, t.hash, t.Upto} }

// Follows returns an error unless the tail is the next one after a place.
func (t *Tail) Follows(c Chain) error {
	key := TailKey(t.Lineage, t.N)
	switch {
	case t.N != c.N+1:
		return corrupt(key, 0, "tail %d after tail %d", t.N, c.N)
	case t.Prev != c.Hash:
		return corrupt(key, 0, "prev is %v, the note of tail %d has %v: the chain of tails is broken, or another writer went on from elsewhere", t.Prev, c.N, c.Hash)
	case t.After != c.Head:
		return corrupt(key, 0, "it begins after %v, tail %d ends with %v", t.After, c.N, c.Head)
	}
	return nil
}

func (t *Tail) check() error {
	switch {
	case t.N < 1 || t.N > MaxSeq:
		return fmt.Errorf("number %d is out of range", t.N)
	case (t.N == 1) != (t.Prev == Hash{}):
		return errors.New("only the first tail has no prev")
	case t.Upto < t.After || t.Upto > tid.Max:
		return fmt.Errorf("%v to %v is no range", t.After, t.Upto)
	case t.Upto == 0 && t.Tip != Hash{}, !t.Heartbeat() && t.Tip == Hash{}:
		return errors.New("tip and upto do not fit")
	case t.ExactFrom != 0 && (t.Heartbeat() || t.ExactFrom <= t.After || t.ExactFrom > tid.Max):
		return fmt.Errorf("exact_from %v of what comes after %v", t.ExactFrom, t.After)
	case t.Bytes > 0 && len(t.Segments) > 0:
		return errors.New("a segment behind the note, and others listed")
	case (t.Bytes > 0) != (t.SHA256 != Hash{}) || (t.Bytes > 0) != (t.Raw != Hash{}):
		return errors.New("bytes, sha256 and raw do not fit")
	case t.Bytes == 0 && t.KID != 0:
		return errors.New("an epoch without a segment")
	}
	if t.Bytes > 0 {
		if t.Heartbeat() {
			return errors.New("a segment without a range")
		}
		return nil
	}
	if t.Heartbeat() != (len(t.Segments) == 0) {
		return errors.New("range and segments do not fit")
	}
	var sum totals
	at := t.After
	for i := range t.Segments {
		s := &t.Segments[i]
		if k, err := ParseKey(s.Key); err != nil || k.Kind != KindSegment || k.Lineage != t.Lineage || s.Clip != 0 {
			return fmt.Errorf("%.130q is no whole segment of the lineage", s.Key)
		}
		if err := s.check(at); err != nil {
			return err
		}
		at = s.End()
		sum.add(s.totals())
	}
	if at != t.Upto {
		return fmt.Errorf("its segments end with %v, the tail with %v", at, t.Upto)
	}
	if got := (totals{t.Text, t.Txns, t.Records, 0, 0}); got != (totals{sum.text, sum.txns, sum.records, 0, 0}) {
		return errors.New("the counts are not the sums of those of its segments")
	}
	if t.MaxOID < sum.maxOID {
		return fmt.Errorf("max_oid %v is less than %v of a segment", t.MaxOID, sum.maxOID)
	}
	return nil
}

// Sign encodes and signs the note of a tail, as a writer.
func (t *Tail) Sign(s *Signer) ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("tail %d: %w", t.N, err)
	}
	var b []byte
	for range 2 { // the length is the same whatever At is
		text, err := appendFirst(nil, "tail", valueOf(t))
		for i := 0; i < len(t.Segments) && err == nil; i++ {
			text, err = appendLine(text, &t.Segments[i])
		}
		if err == nil {
			text, err = appendReserved(text, t.Reserved)
		}
		if err == nil {
			b, err = sign(text, Writer, s)
		}
		if err != nil {
			return nil, fmt.Errorf("tail %d: %w", t.N, err)
		}
		if len(b) > MaxTailNote {
			return nil, fmt.Errorf("tail %d: a note of %d bytes, more than %d: list fewer segments", t.N, len(b), MaxTailNote)
		}
		t.At = position(len(b))
	}
	t.hash = Sum(b)
	return b, nil
}

// tailForm is how the note of a tail begins in all versions.
var tailForm = regexp.MustCompile(`^\{"neobackup":"tail","v":[1-9][0-9]{0,8},"at":"([0-9a-f]{8})"`)

// SplitTail returns the length of the note of a tail, from the first bytes of its
// object: 128 are enough.
func SplitTail(b []byte, key string) (int64, error) {
	m := tailForm.FindSubmatch(b)
	if m == nil {
		return 0, corrupt(key, 0, "%.60q is not how a tail begins", b)
	}
	n, err := strconv.ParseUint(string(m[1]), 16, 32)
	if err != nil || n == 0 || n > MaxTailNote {
		return 0, corrupt(key, 0, "a note of %d bytes: want 1 to %d", n, MaxTailNote)
	}
	return int64(n), nil
}

// OpenTail decodes the note of the tail with that key. b may be the whole object.
func OpenTail(b []byte, key string, repo ID, trusted Verifiers) (*Tail, error) {
	b, err := tailNote(b, key)
	if err != nil {
		return nil, err
	}
	text, err := open(b, key, Writer, trusted)
	if err != nil {
		return nil, err
	}
	t, err := parseTail(text, key)
	if err != nil {
		return nil, err
	}
	if int64(t.At) != int64(len(b)) {
		return nil, corrupt(key, 0, "a note of %d bytes, want %d", len(b), t.At)
	}
	t.hash = Sum(b)
	return t, checkPlace(key, repo, t.Repo, TailKey(t.Lineage, t.N))
}

// tailNote returns the note at the beginning of a tail.
func tailNote(b []byte, key string) ([]byte, error) {
	n, err := SplitTail(b, key)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) < n {
		return nil, corrupt(key, int64(len(b)), "it ends within its note of %d bytes", n)
	}
	return b[:n], nil
}

func parseTail(text []byte, key string) (*Tail, error) {
	t := &Tail{}
	l := &lines{name: key, rest: text}
	if err := l.first("tail", t); err != nil {
		return nil, err
	}
	for {
		line, ok, err := l.line()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if r, ok, err := parseReserved(line); err != nil {
			return nil, corrupt(key, l.off, "%w", err)
		} else if ok {
			t.Reserved = append(t.Reserved, r)
			continue
		}
		if !bytes.HasPrefix(line, []byte(`{"seg":`)) {
			return nil, corrupt(key, l.off, "%.60q is no line of a tail", line)
		}
		var s Segment
		if err := parseLine(line, &s); err != nil {
			return nil, corrupt(key, l.off, "%w", err)
		}
		t.Segments = append(t.Segments, s)
	}
	if err := t.check(); err != nil {
		return nil, corrupt(key, 0, "tail: %w", err)
	}
	return t, nil
}

// totals are what manifests and tails sum up.
type totals struct {
	text, txns, records, stored int64
	maxOID                      tid.OID
}

func (t *totals) add(u totals) {
	t.text = saturated(t.text, u.text)
	t.txns = saturated(t.txns, u.txns)
	t.records = saturated(t.records, u.records)
	t.stored = saturated(t.stored, u.stored)
	t.maxOID = max(t.maxOID, u.maxOID)
}

// saturated adds two numbers that are not negative.
func saturated(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
