package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// Segment is a line that refers to a stored segment.
type Segment struct {
	Key     string   `json:"seg"` // of a segment, or of the tail that it is behind
	After   tid.TID  `json:"after"`
	Upto    tid.TID  `json:"upto"`
	Clip    tid.TID  `json:"clip,omitempty"` // if not zero, it is used only up to here
	At      position `json:"at,omitempty"`   // where it begins in the object of a tail
	Bytes   int64    `json:"bytes"`          // as stored, without the note of a tail
	SHA256  Hash     `json:"sha256"`         // of those
	Raw     Hash     `json:"raw"`            // of the text
	Text    int64    `json:"text"`           // bytes of text
	Txns    int64    `json:"txns"`
	Records int64    `json:"records"`
	MaxOID  tid.OID  `json:"max_oid"`
	Meta    int64    `json:"meta"`          // bytes from the directory to the end of the plaintext; 0: not known, only behind a tail
	KID     KID      `json:"kid,omitempty"` // epoch; 0: not encrypted
	Header  []byte   `json:"hdr,omitempty"` // of the age file, with the nonce
}

// End returns the end of the range for which the segment is used.
func (s *Segment) End() tid.TID {
	if s.Clip != 0 {
		return s.Clip
	}
	return s.Upto
}

// SetTail makes the line refer to the segment behind the note of a tail, which has
// that length.
func (s *Segment) SetTail(key string, at int64) { s.Key, s.At = key, position(at) }

// Offset returns where the segment begins in its object.
func (s *Segment) Offset() int64 { return int64(s.At) }

func (s *Segment) totals() totals { return totals{s.Text, s.Txns, s.Records, s.Bytes, s.MaxOID} }

// check makes sure that a line can be right by itself, and follows what ends with at.
func (s *Segment) check(at tid.TID) error {
	k, err := ParseKey(s.Key)
	switch {
	case err != nil:
		return err
	case s.After != at:
		return fmt.Errorf("%s begins after %v, but what is before it ends with %v", s.Key, s.After, at)
	case s.Upto < s.After || s.Upto > tid.Max:
		return fmt.Errorf("%s: %v to %v is no range", s.Key, s.After, s.Upto)
	case s.Clip != 0 && (s.Clip <= s.After || s.Clip >= s.Upto):
		return fmt.Errorf("%s: clip %v is not within %v to %v", s.Key, s.Clip, s.After, s.Upto)
	case s.Bytes <= 0 || s.Meta < 0 || s.Meta > s.Bytes || s.Meta == 0 && k.Kind != KindTail:
		return fmt.Errorf("%s: %d bytes, of them %d of directory, cannot be", s.Key, s.Bytes, s.Meta)
	case s.SHA256 == Hash{} || s.Raw == Hash{}:
		return fmt.Errorf("%s: a hash is missing", s.Key)
	case (s.KID == 0) != (len(s.Header) == 0):
		return fmt.Errorf("%s: kid and hdr do not fit", s.Key)
	case k.Kind == KindTail && s.At == 0:
		return fmt.Errorf("%s: where it begins in the tail is missing", s.Key)
	case k.Kind == KindTail:
		return nil
	case k.Kind != KindSegment || s.At != 0:
		return fmt.Errorf("%s is no segment", s.Key)
	case k.After != s.After || k.Upto != s.Upto || k.Sum != s.SHA256.Short():
		return fmt.Errorf("%s: the key has another range or hash than the line", s.Key)
	}
	return nil
}

// Page is a line that refers to a catalog page: the lines of sealed segments.
type Page struct {
	Key     string  `json:"page"`
	N       int64   `json:"n"` // segments
	After   tid.TID `json:"after"`
	Upto    tid.TID `json:"upto"`
	SHA256  Hash    `json:"sha256"` // of the page
	Stored  int64   `json:"stored"` // sum of the bytes of its segments, as are those that follow
	Text    int64   `json:"text"`
	Txns    int64   `json:"txns"`
	Records int64   `json:"records"`
	MaxOID  tid.OID `json:"max_oid"`
}

// PageSegments is the greatest number of segments of a page, and the usual one.
const PageSegments = 64

func (p *Page) totals() totals { return totals{p.Text, p.Txns, p.Records, p.Stored, p.MaxOID} }

func (p *Page) check(at tid.TID) error {
	k, err := ParseKey(p.Key)
	switch {
	case err != nil:
		return err
	case k.Kind != KindPage || k.Sum != p.SHA256.Short():
		return fmt.Errorf("%s is no page with the hash %v", p.Key, p.SHA256)
	case p.N < 1 || p.N > PageSegments:
		return fmt.Errorf("%s: %d segments, want 1 to %d", p.Key, p.N, PageSegments)
	case p.After != at:
		return fmt.Errorf("%s begins after %v, but what is before it ends with %v", p.Key, p.After, at)
	case p.Upto <= p.After || p.Upto > tid.Max:
		return fmt.Errorf("%s: %v to %v is no range", p.Key, p.After, p.Upto)
	}
	return nil
}

// NewPage encodes the lines of segments as a page of a lineage, and returns it with
// the line that refers to it.
func NewPage(lineage ID, segments []Segment) ([]byte, Page, error) {
	var b []byte
	var err error
	for i := range segments {
		if b, err = appendLine(b, &segments[i]); err != nil {
			return nil, Page{}, fmt.Errorf("catalog page: %w", err)
		}
	}
	p := Page{N: int64(len(segments)), SHA256: Sum(b)}
	p.Key = PageKey(lineage, p.SHA256)
	var sum totals
	if len(segments) > 0 {
		p.After = segments[0].After
		p.Upto = segments[len(segments)-1].Upto
	}
	for i := range segments {
		sum.add(segments[i].totals())
	}
	p.Stored, p.Text, p.Txns, p.Records, p.MaxOID = sum.stored, sum.text, sum.txns, sum.records, sum.maxOID
	if _, err := OpenPage(b, &p); err != nil {
		return nil, Page{}, err
	}
	return b, p, nil
}

// OpenPage decodes the page that a line refers to.
func OpenPage(b []byte, p *Page) ([]Segment, error) {
	if len(b) > MaxPage {
		return nil, corrupt(p.Key, -1, "a page of %d bytes, more than %d", len(b), MaxPage)
	}
	if h := Sum(b); h != p.SHA256 {
		return nil, corrupt(p.Key, -1, "its hash is %v, the manifest says %v", h, p.SHA256)
	}
	return parsePage(b, p)
}

func parsePage(b []byte, p *Page) ([]Segment, error) {
	l := &lines{name: p.Key, rest: b}
	var list []Segment
	var sum totals
	at := p.After
	for {
		line, ok, err := l.line()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		var s Segment
		if err := parseLine(line, &s); err != nil {
			return nil, corrupt(p.Key, l.off, "%w", err)
		}
		if k, err := ParseKey(s.Key); err != nil || k.Kind != KindSegment || s.Clip != 0 {
			return nil, corrupt(p.Key, l.off, "%.130q is no whole sealed segment", s.Key)
		}
		if err := s.check(at); err != nil {
			return nil, corrupt(p.Key, l.off, "%w", err)
		}
		at = s.Upto
		sum.add(s.totals())
		list = append(list, s)
	}
	if int64(len(list)) != p.N || at != p.Upto || sum != p.totals() {
		return nil, corrupt(p.Key, -1, "%d segments up to %v with the sums %+v, the manifest says %d, %v, %+v", len(list), at, sum, p.N, p.Upto, p.totals())
	}
	return list, p.check(p.After)
}

// Gap is a line in place of segments that are lost, as an operator accepted it.
type Gap struct {
	Gap   bool    `json:"gap"` // true
	After tid.TID `json:"after"`
	Upto  tid.TID `json:"upto"`
	Note  string  `json:"note"` // why, and what the operator said
}

// Item is a line of a manifest that stands for a range: one of the three is not nil.
type Item struct {
	Page    *Page
	Segment *Segment
	Gap     *Gap
}

// Range returns the range (after, upto] that the line stands for.
func (i Item) Range() (after, upto tid.TID) {
	switch {
	case i.Page != nil:
		return i.Page.After, i.Page.Upto
	case i.Segment != nil:
		return i.Segment.After, i.Segment.End()
	default:
		return i.Gap.After, i.Gap.Upto
	}
}

func (i Item) check(at tid.TID) error {
	switch {
	case i.Page != nil:
		return i.Page.check(at)
	case i.Segment != nil:
		return i.Segment.check(at)
	case !i.Gap.Gap || i.Gap.After != at || i.Gap.Upto <= i.Gap.After || i.Gap.Upto > tid.Max:
		return fmt.Errorf("a gap from %v to %v after what ends with %v", i.Gap.After, i.Gap.Upto, at)
	}
	return nil
}

func (i Item) totals() totals {
	switch {
	case i.Page != nil:
		return i.Page.totals()
	case i.Segment != nil:
		return i.Segment.totals()
	}
	return totals{}
}

// Reserved is a line of a kind whose content this version does not know. A writer
// keeps it in the manifests that it writes. What it refers to is needed as long as the
// manifest is.
type Reserved struct {
	Kind string // "run" or "blob"
	Key  string // of the object that it refers to
	Line string // the whole line, without its LF
}

// Runs and blobs.
const (
	ReservedRun  = "run"  // an index run: carries no truth, may be ignored
	ReservedBlob = "blob" // blobs: a restore that ignores it is not complete
)

// parseReserved returns the line as a Reserved, or false if it is of another kind.
func parseReserved(line []byte) (Reserved, bool, error) {
	for _, r := range []struct {
		kind string
		key  Kind
	}{{ReservedRun, KindRun}, {ReservedBlob, KindBlob}} {
		rest, ok := bytes.CutPrefix(line, []byte(`{"`+r.kind+`":`))
		if !ok {
			continue
		}
		d := json.NewDecoder(bytes.NewReader(rest))
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil || !json.Valid(line) {
			return Reserved{}, true, fmt.Errorf("%.60q is no JSON object", line)
		}
		key, err := parseString(raw)
		if err != nil {
			return Reserved{}, true, err
		}
		if k, err := ParseKey(key); err != nil || k.Kind != r.key {
			return Reserved{}, true, fmt.Errorf("%.130q is no key of a line of kind %q", key, r.kind)
		}
		return Reserved{Kind: r.kind, Key: key, Line: string(line)}, true, nil
	}
	return Reserved{}, false, nil
}

func appendReserved(b []byte, list []Reserved) ([]byte, error) {
	for _, r := range list {
		again, ok, err := parseReserved([]byte(r.Line))
		if err != nil || !ok || again != r || strings.Contains(r.Line, "\n") {
			return b, fmt.Errorf("%.60q is no line of kind %q", r.Line, r.Kind)
		}
		b = append(append(b, r.Line...), '\n')
	}
	return b, nil
}

// HasBlobs reports whether blobs are referred to, which this version cannot restore.
// A restore must refuse then, unless the operator does without them.
func HasBlobs(list []Reserved) bool {
	return slices.ContainsFunc(list, func(r Reserved) bool { return r.Kind == ReservedBlob })
}

// Source says what a writer reads.
type Source struct {
	Kind string `json:"kind"` // cluster, backup, file or copy
	Name string `json:"name"`
	NP   int64  `json:"np,omitempty"` // partitions of a cluster
}

// Manifest sums up tails 1 to Tail of a lineage.
type Manifest struct {
	Repo    ID        `json:"repo"`
	Lineage ID        `json:"lineage"`
	Seq     int64     `json:"seq"`   // from 1
	Prev    Hash      `json:"prev"`  // of the object of manifest Seq−1; zero for 1
	Tail    int64     `json:"tail"`  // 0: none
	Chain   Hash      `json:"chain"` // of the note of that tail; zero for 0
	Created time.Time `json:"created"`
	Writer  string    `json:"writer"` // host/pid/nonce
	Source  Source    `json:"source"`
	Head    tid.TID   `json:"head"`
	Asof    time.Time `json:"asof,omitempty"` // the source had nothing beyond Head then
	Tip     Hash      `json:"tip,omitempty"`  // of transaction Head, see Tip; zero if there is none, or a gap has it
	Holes   []Hole    `json:"holes,omitempty"`
	MaxOID  tid.OID   `json:"max_oid"`
	Txns    int64     `json:"txns"`
	Records int64     `json:"records"`
	Text    int64     `json:"text"`   // bytes of text
	Stored  int64     `json:"stored"` // bytes of segments
	Label   string    `json:"label,omitempty"`

	Items    []Item // from 0 to Head
	Reserved []Reserved
}

// ChainEnd returns the place after the last tail that the manifest sums up.
func (m *Manifest) ChainEnd() Chain { return Chain{m.Tail, m.Chain, m.Head} }

// SumUp sets Head and all sums to what the items say.
func (m *Manifest) SumUp() {
	var sum totals
	m.Head = 0
	for _, i := range m.Items {
		_, m.Head = i.Range()
		sum.add(i.totals())
	}
	m.Text, m.Txns, m.Records, m.Stored, m.MaxOID = sum.text, sum.txns, sum.records, sum.stored, sum.maxOID
}

// endsInGap reports whether the last transaction is lost, so that its tip is unknown.
func (m *Manifest) endsInGap() bool {
	return len(m.Items) > 0 && m.Items[len(m.Items)-1].Gap != nil
}

func (m *Manifest) check() error {
	switch {
	case m.Seq < 1 || m.Seq > MaxSeq || m.Tail > MaxSeq:
		return fmt.Errorf("number %d or tail %d is out of range", m.Seq, m.Tail)
	case (m.Seq == 1) != (m.Prev == Hash{}):
		return errors.New("only the first manifest has no prev")
	case (m.Tail == 0) != (m.Chain == Hash{}):
		return errors.New("tail and chain do not fit")
	case m.Head == 0 && m.Tip != Hash{}, m.Head != 0 && m.Tip == Hash{} && !m.endsInGap():
		return errors.New("head and tip do not fit")
	case !slices.Contains([]string{"cluster", "backup", "file", "copy"}, m.Source.Kind):
		return fmt.Errorf("source of kind %.20q: want cluster, backup, file or copy", m.Source.Kind)
	}
	var at tid.TID
	var sum totals
	for _, i := range m.Items {
		if err := i.check(at); err != nil {
			return err
		}
		_, at = i.Range()
		sum.add(i.totals())
	}
	if at != m.Head {
		return fmt.Errorf("its segments end with %v, but head is %v", at, m.Head)
	}
	if got := (totals{m.Text, m.Txns, m.Records, m.Stored, sum.maxOID}); got != sum {
		return fmt.Errorf("the sums of its lines are %+v, it says %+v", sum, got)
	}
	if m.MaxOID < sum.maxOID {
		return fmt.Errorf("max_oid %v is less than %v of a segment", m.MaxOID, sum.maxOID)
	}
	at = 0
	for _, h := range m.Holes {
		if h.From < at || h.To <= h.From {
			return fmt.Errorf("hole from %v to %v is out of order", h.From, h.To)
		}
		at = h.To
	}
	return nil
}

// Sign encodes and signs the manifest, as a writer.
func (m *Manifest) Sign(s *Signer) ([]byte, error) {
	err := m.check()
	var b []byte
	if err == nil {
		b, err = appendFirst(nil, "manifest", valueOf(m))
	}
	for _, i := range m.Items {
		if err != nil {
			break
		}
		switch {
		case i.Page != nil:
			b, err = appendLine(b, i.Page)
		case i.Segment != nil:
			b, err = appendLine(b, i.Segment)
		default:
			b, err = appendLine(b, i.Gap)
		}
	}
	if err == nil {
		b, err = appendReserved(b, m.Reserved)
	}
	if err == nil {
		b, err = sign(b, Writer, s)
	}
	if err == nil && len(b) > maxNote {
		err = fmt.Errorf("%d bytes, more than %d", len(b), maxNote)
	}
	if err != nil {
		return nil, fmt.Errorf("manifest %d: %w", m.Seq, err)
	}
	return b, nil
}

// OpenManifest decodes the manifest with that key, and makes sure of all that can be
// known without reading anything else.
func OpenManifest(b []byte, key string, repo ID, trusted Verifiers) (*Manifest, error) {
	text, err := open(b, key, Writer, trusted)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(text, key)
	if err != nil {
		return nil, err
	}
	return m, checkPlace(key, repo, m.Repo, ManifestKey(m.Lineage, m.Seq))
}

func parseManifest(text []byte, key string) (*Manifest, error) {
	m := &Manifest{}
	l := &lines{name: key, rest: text}
	if err := l.first("manifest", m); err != nil {
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
		var i Item
		switch r, reserved, err := parseReserved(line); {
		case err != nil:
			return nil, corrupt(key, l.off, "%w", err)
		case reserved:
			m.Reserved = append(m.Reserved, r)
			continue
		case bytes.HasPrefix(line, []byte(`{"page":`)):
			i.Page = &Page{}
			if err := parseLine(line, i.Page); err != nil {
				return nil, corrupt(key, l.off, "%w", err)
			}
		case bytes.HasPrefix(line, []byte(`{"seg":`)):
			i.Segment = &Segment{}
			if err := parseLine(line, i.Segment); err != nil {
				return nil, corrupt(key, l.off, "%w", err)
			}
		case bytes.HasPrefix(line, []byte(`{"gap":`)):
			i.Gap = &Gap{}
			if err := parseLine(line, i.Gap); err != nil {
				return nil, corrupt(key, l.off, "%w", err)
			}
		default:
			return nil, corrupt(key, l.off, "%.60q is no line of a manifest", line)
		}
		m.Items = append(m.Items, i)
	}
	if err := m.check(); err != nil {
		return nil, corrupt(key, 0, "manifest: %w", err)
	}
	return m, nil
}

// AddHole returns holes with one more, united where they overlap. holes is
// in order and is not changed.
func AddHole(holes []Hole, h Hole) []Hole {
	if h.To <= h.From {
		return holes
	}
	var list []Hole
	for _, o := range holes {
		if o.To <= h.From || o.From >= h.To { // where they touch is exact
			list = append(list, o)
			continue
		}
		h = Hole{min(o.From, h.From), max(o.To, h.To)}
	}
	i, _ := slices.BinarySearchFunc(list, h, func(a, b Hole) int {
		switch {
		case a.From < b.From:
			return -1
		case a.From > b.From:
			return 1
		}
		return 0
	})
	return slices.Insert(list, i, h)
}

// InHole returns the hole in which a restore at T would be, or false. The nearest
// exact TIDs are then its ends.
func InHole(holes []Hole, t tid.TID) (Hole, bool) {
	for _, h := range holes {
		if h.From < t && t < h.To {
			return h, true
		}
	}
	return Hole{}, false
}

// ParsePage decodes a page to which no line refers: that it is whole, its name must tell. The
// ranges of its segments follow each other.
func ParsePage(b []byte, key string) ([]Segment, error) {
	l := &lines{name: key, rest: b}
	var list []Segment
	for {
		line, ok, err := l.line()
		if err != nil {
			return nil, err
		}
		if !ok {
			return list, nil
		}
		var s Segment
		if err := parseLine(line, &s); err != nil {
			return nil, corrupt(key, l.off, "%w", err)
		}
		at := s.After
		if n := len(list); n > 0 {
			at = list[n-1].Upto
		}
		if k, err := ParseKey(s.Key); err != nil || k.Kind != KindSegment || s.Clip != 0 {
			return nil, corrupt(key, l.off, "%.130q is no whole sealed segment", s.Key)
		}
		if err := s.check(at); err != nil {
			return nil, corrupt(key, l.off, "%w", err)
		}
		if list = append(list, s); len(list) > PageSegments {
			return nil, corrupt(key, l.off, "more than %d segments", PageSegments)
		}
	}
}
