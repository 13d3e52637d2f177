package importer

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Verdicts of the comparison of all that was imported.
const (
	equal     = "equal"     // the sources are no longer needed
	different = "different" // the sources are still served
)

// progress is the value of [backend.Importing.ImportProgress]. Orders are in it so
// that they hold after a restart.
type progress struct {
	TID          hexTID `json:"tid"`             // everything of the sources up to it is in the native backend
	First        hexTID `json:"first,omitempty"` // the first transaction of the sources, until something is copied
	Transactions int64  `json:"transactions"`
	Records      int64  `json:"records"`
	Bytes        int64  `json:"bytes"`           // of data in the sources
	Twice        int64  `json:"twice,omitempty"` // records before another one of the same object in the same transaction
	Blobs        int64  `json:"blobs,omitempty"` // records whose data are in files that are not imported
	Paused       bool   `json:"paused,omitempty"`
	Limit        int64  `json:"limit,omitempty"` // bytes per second
	// Skip are the records that may be left out, Skipped how many were.
	Skip    []skip `json:"skip,omitempty"`
	Skipped int64  `json:"skipped,omitempty"`
	// What the last comparison that came to its end has found.
	Compared    hexTID    `json:"compared"` // up to which; 0: there was none
	ComparedAt  time.Time `json:"compared_at,omitzero"`
	Differences int64     `json:"differences,omitempty"`
	Verdict     string    `json:"verdict,omitempty"` // on the whole; "": not compared yet
}

// finished reports whether everything was imported and compared equal: the sources are not
// needed any more.
func finished(p progress) bool { return p.Verdict == equal }

// parseProgress reads what [progress.String] made. Absent: nothing is copied.
func parseProgress(s proto.Opt[string]) (progress, error) {
	var p progress
	if !s.OK {
		return p, nil
	}
	if err := json.Unmarshal([]byte(s.V), &p); err != nil {
		return p, fmt.Errorf("the stored progress of the import cannot be read: %w", err)
	}
	if p.Verdict != "" && p.Verdict != equal && p.Verdict != different {
		return p, fmt.Errorf("the stored progress of the import cannot be read: its verdict is %q", p.Verdict)
	}
	return p, nil
}

func (p progress) String() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // ours: all of it can be
	}
	return string(b)
}

// hexTID is a TID that is written as 16 hexadecimal digits.
type hexTID tid.TID

// MarshalText implements [encoding.TextMarshaler].
func (t hexTID) MarshalText() ([]byte, error) { return []byte(tid.TID(t).String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (t *hexTID) UnmarshalText(b []byte) error {
	v, err := tid.Parse(string(b))
	*t = hexTID(v)
	return err
}

// skip is a record that may be left out; without OID, all records of a transaction that
// cannot be read. It is written as "TID" or "TID OID".
type skip struct {
	tid tid.TID
	oid proto.Opt[tid.OID]
}

// MarshalText implements [encoding.TextMarshaler].
func (s skip) MarshalText() ([]byte, error) {
	text := s.tid.String()
	if s.oid.OK {
		text += " " + s.oid.V.String()
	}
	return []byte(text), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *skip) UnmarshalText(b []byte) (err error) {
	if len(b) < 16 {
		return fmt.Errorf("%q is not the id of a transaction", b)
	}
	if s.tid, err = tid.Parse(string(b[:16])); err != nil || len(b) == 16 {
		return err
	}
	if b[16] != ' ' {
		return fmt.Errorf("%q is not the id of a transaction and that of an object", b)
	}
	s.oid.OK = true
	s.oid.V, err = tid.ParseOID(string(b[17:]))
	return err
}

// skips reports whether a record may be left out.
func (p *progress) skips(t tid.TID, oid tid.OID) bool {
	return slices.ContainsFunc(p.Skip, func(s skip) bool { return s.tid == t && (!s.oid.OK || s.oid.V == oid) })
}

// skipsIn reports whether records of a transaction may be left out.
func (p *progress) skipsIn(t tid.TID) bool {
	return slices.ContainsFunc(p.Skip, func(s skip) bool { return s.tid == t })
}

// skipsAfter returns the first transaction after t that may be left out.
func (p *progress) skipsAfter(t tid.TID) (first tid.TID, ok bool) {
	for _, s := range p.Skip {
		if !s.oid.OK && s.tid > t && (!ok || s.tid < first) {
			first, ok = s.tid, true
		}
	}
	return first, ok
}

// maxNamed is how many of the records that may be left out are named in a report.
const maxNamed = 20

// leftOut names what may be left out, in a sentence.
func (p *progress) leftOut() string {
	var names []string
	for _, s := range p.Skip[:min(len(p.Skip), maxNamed)] {
		name := s.tid.String()
		if s.oid.OK {
			name += ":" + s.oid.V.String()
		}
		names = append(names, name)
	}
	if more := len(p.Skip) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return "By order, what could not be read of these was left out (TID[:OID]): " + strings.Join(names, ", ")
}

// Of what the copy may wait for, the greatest share is told to the operator.
const (
	slowSource = iota
	slowProcessor
	slowDatabase
	slowClients
	slowLimit
)

var slowNames = [...]string{"source", "processor", "database", "clients", "limit"}

// waits is how long the last stage of the work was busy with, or waited for, what
// slowNames says, lately.
type waits [len(slowNames)]time.Duration

func (w *waits) String() string {
	most := 0
	for i := range w {
		if w[i] > w[most] {
			most = i
		}
	}
	if w[most] == 0 {
		return ""
	}
	return slowNames[most]
}

// fade makes what is newer count more.
func (w *waits) fade() {
	for i := range w {
		w[i] /= 2
	}
}

// speed is a rate over the last seconds.
type speed struct{ samples []sample }

type sample struct {
	at         time.Time
	bytes, pos int64
}

// speedWindow is the time over which a rate is taken.
const speedWindow = 15 * time.Second

func (s *speed) add(at time.Time, bytes, pos int64) {
	s.samples = append(s.samples, sample{at, bytes, pos})
	for len(s.samples) > 2 && at.Sub(s.samples[1].at) >= speedWindow {
		s.samples = s.samples[1:]
	}
}

// rate returns bytes per second, and of the position.
func (s *speed) rate() (bytes, pos float64) {
	if len(s.samples) < 2 {
		return 0, 0
	}
	first, last := s.samples[0], s.samples[len(s.samples)-1]
	d := last.at.Sub(first.at).Seconds()
	if d <= 0 {
		return 0, 0
	}
	return float64(last.bytes-first.bytes) / d, float64(last.pos-first.pos) / d
}

// positioned is implemented by sources that know how far a transaction is in them.
type positioned interface {
	// Position returns where a transaction ends, and how much there is, in bytes of
	// all sources. It costs little.
	Position(t tid.TID) (pos, size int64, ok bool)
}

// position asks the sources.
func (b *Backend) position(t tid.TID) (pos, size int64) {
	if s, ok := b.source.(positioned); ok && !b.own.Load() {
		if pos, size, ok := s.Position(t); ok {
			return pos, size
		}
	}
	return 0, 0
}

// Progress implements [backend.Runner].
func (b *Backend) Progress() importing.Report {
	c := &b.copying
	c.mu.Lock()
	r := importing.Report{
		State: c.state, Last: tid.TID(c.p.TID), End: b.end,
		Transactions: c.p.Transactions, Records: c.p.Records, Bytes: c.p.Bytes,
		Limit: c.p.Limit, Compared: tid.TID(c.p.Compared), ComparedAt: c.p.ComparedAt, Differences: c.p.Differences,
		Twice: c.p.Twice, Blobs: c.p.Blobs, Skipped: c.p.Skipped,
		Note: c.note,
	}
	leftOut, skips := c.p.leftOut(), len(c.p.Skip) > 0
	at := tid.TID(c.p.TID)
	if r.State == importing.Comparing {
		at = c.compared
	}
	var pos float64
	if r.State == importing.Copying || r.State == importing.Comparing {
		r.Rate, pos = c.speed.rate()
		r.Slow = c.waits.String()
	}
	c.mu.Unlock()
	if b.back != nil {
		var note string
		if r.WriteBack, r.Behind, note = b.back.progress(); note != "" {
			r.Note = strings.TrimSpace(r.Note + " " + note)
		}
	}
	if b.own.Load() {
		r.State = importing.Done
		if skips {
			if r.Note == "" {
				r.Note = importing.DoneNote
			}
			r.Note = strings.TrimSuffix(r.Note, ".") + ". " + leftOut
		}
		return r
	}
	if skips {
		r.Note = strings.TrimPrefix(r.Note+". "+leftOut, ". ")
	}
	if r.Position, r.Size = b.position(at); pos > 0 {
		r.Left = time.Duration(float64(r.Size-r.Position) / pos * float64(time.Second))
	}
	return r
}
