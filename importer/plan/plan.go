// Package plan looks at databases before they are imported: what is wrong with them,
// how long an import takes, where one is mounted into another, and which importer.conf
// that makes.
//
// # Invariant
//
// Nothing is written to a source, not even an index. What could not be looked at, or was only
// looked at in samples, is said. Nothing of what a person has to decide is guessed: it is a
// [Finding] of level [Must], and without one the proposal can be used as it is.
package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

// Config says what is to be imported. A zero field takes the documented default.
type Config struct {
	Sources []Given // required. The first one is the root
	// Mounts say what is mounted where, for what the databases do not tell.
	Mounts []MountOption
	// Keep are names of databases, and paths of mount points, that stay references to
	// other databases: the applications go on opening those.
	Keep []string
	// WithoutBlobs tells that the files of blobs are not needed any more.
	WithoutBlobs bool
	// Destination is the database that will receive the data. Database "": imported.sqlite
	// beside the Data.fs of the root. Adapter "": SQLite. Section "": neo.
	Destination config.Destination
	// Fast reads only samples: nothing is verified, and mount points are sought only
	// near the root of the databases.
	Fast bool
	// Sample is how long a sample is written to a database that is thrown away. Default: a
	// second. Negative: not at all.
	Sample time.Duration
	// Patience is how long a server that a source is on may take to be reached. Default: 10 s.
	Patience time.Duration
	// Progress starts to show how far the reading of size bytes is. Default: it is not
	// shown.
	Progress func(what string, size int64) (set func(pos int64), done func())
	Now      time.Time // default: the time of the call
}

// Given is a source.
type Given struct {
	Name    string // under which other databases refer to it
	Storage config.Storage
	// Section is what an existing importer.conf says of it; nil if there is none.
	Section *config.Source
}

// Level tells what keeps an import from beginning from what is good to know.
type Level string

const (
	Must Level = "must" // to be decided or repaired before the import
	Note Level = "note"
)

// Finding is something about the sources that an administrator has to know.
type Finding struct {
	Level  Level  `json:"level"`
	Source string `json:"source,omitempty"` // name of the source; "": all of them
	Text   string `json:"text"`
	Do     string `json:"do,omitempty"` // what to do about it
}

// Plan is what was found, and what is proposed.
type Plan struct {
	Sources  []*Source      `json:"sources"`
	Mounts   []*Mount       `json:"mounts"`
	Findings []Finding      `json:"findings"`
	Estimate *Estimate      `json:"estimate,omitempty"` // nil: nothing could be measured
	Import   *config.Import `json:"-"`                  // nil: none can be proposed
	Text     string         `json:"config,omitempty"`   // importer.conf
	Fast     bool           `json:"fast"`
}

// Source is what is known of a source.
type Source struct {
	Name    string `json:"name"`
	Section string `json:"section"` // in the proposal
	Where   string `json:"storage"`
	// Read tells that the source was read: it is a Data.fs. On a server, only single objects
	// are looked up.
	Read bool `json:"read"`
	// Whole tells that all of its records were. Otherwise what is counted is a part.
	Whole        bool    `json:"whole"`
	Magic        string  `json:"magic,omitempty"` // FS21, FS30
	Bytes        int64   `json:"bytes"`           // of the Data.fs
	Next         tid.OID `json:"next_oid"`        // the first number above all of its objects
	Last         tid.TID `json:"-"`
	LastTID      string  `json:"last_tid"` // Last in hexadecimal digits
	Objects      int64   `json:"objects"`
	Transactions int64   `json:"transactions"`
	Records      int64   `json:"records"`
	DataBytes    int64   `json:"data_bytes"`
	LargestData  int64   `json:"largest_record"`
	Blobs        int64   `json:"blob_records"`
	Packed       int64   `json:"packed_transactions"`
	Shared       int64   `json:"undo_records"` // records that have the data of an earlier one
	Twice        int64   `json:"twice"`        // records of an object that has a later one in the same transaction
	// Foreign counts references to other databases by their names.
	Foreign map[string]int64 `json:"foreign,omitempty"`
	// Problems are those that the check has found, the first ones in full.
	Errors   int64    `json:"errors"`
	Warnings int64    `json:"warnings"`
	Problems []string `json:"problems,omitempty"`

	given  Given
	file   *file         // nil if Read is false
	lookup txn.Database  // for single objects; nil: they cannot be looked up
	remote source.Source // nil if it is a Data.fs, or cannot be reached
	src    config.Source
}

// Mount is a mount point that a source has now.
type Mount struct {
	Source string  `json:"source"` // name of the source that has it
	OID    tid.OID `json:"oid"`    // of the mount point
	Class  string  `json:"class"`
	Path   string  `json:"path"` // from the root of the application
	// Target is the name of the source that is mounted, "" if that is not known, and
	// TargetOID what the mount point leads to.
	Target    string  `json:"target,omitempty"`
	TargetOID tid.OID `json:"target_oid,omitempty"`
	Why       string  `json:"why"`            // how Target was found, or why not
	Kept      bool    `json:"kept,omitempty"` // it stays a mount point

	reached bool // the path leads to it
	ram     bool // it mounts a database in memory
}

func (p *Plan) must(source, do, format string, args ...any) {
	p.find(Must, source, do, format, args...)
}

func (p *Plan) note(source, do, format string, args ...any) {
	p.find(Note, source, do, format, args...)
}

func (p *Plan) find(l Level, source, do, format string, args ...any) {
	p.Findings = append(p.Findings, Finding{l, source, fmt.Sprintf(format, args...), do})
}

// Musts returns how many findings keep an import from beginning.
func (p *Plan) Musts() (n int) {
	for _, f := range p.Findings {
		if f.Level == Must {
			n++
		}
	}
	return n
}

// Make looks at the sources. The error is about reading them at all: what is wrong with
// their contents is a [Finding].
func Make(ctx context.Context, cfg Config) (plan *Plan, err error) {
	if len(cfg.Sources) == 0 {
		return nil, errors.New("no source")
	}
	if cfg.Now.IsZero() {
		cfg.Now = time.Now()
	}
	cfg.Patience = cmp.Or(cfg.Patience, 10*time.Second)
	cfg.Sample = cmp.Or(cfg.Sample, time.Second)
	if cfg.Progress == nil {
		cfg.Progress = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
	m := maker{cfg: cfg, plan: &Plan{Fast: cfg.Fast, Mounts: []*Mount{}, Findings: []Finding{}}}
	defer func() {
		for _, s := range m.plan.Sources {
			if s.file != nil {
				err = errors.Join(err, s.file.r.Close())
			}
			if s.remote != nil {
				err = errors.Join(err, s.remote.Close())
			}
		}
	}()
	if err := m.read(ctx); err != nil {
		return nil, err
	}
	if err := m.mounts(ctx); err != nil {
		return nil, err
	}
	m.propose()
	if err := m.joined(ctx); err != nil {
		return nil, err
	}
	if cfg.Sample > 0 {
		if err := m.measure(ctx); err != nil {
			return nil, err
		}
	}
	m.differences()
	slices.SortStableFunc(m.plan.Findings, func(a, b Finding) int { return cmp.Compare(a.Level, b.Level) }) // must, note
	for _, s := range m.plan.Sources {
		s.LastTID = s.Last.String()
	}
	if m.plan.Text != "" {
		m.plan.Text = m.plan.head() + m.plan.Text
	}
	return m.plan, nil
}

// maker makes a plan.
type maker struct {
	cfg  Config
	plan *Plan
}

// source returns the source of a name, nil if there is none.
func (m *maker) source(name string) *Source {
	for _, s := range m.plan.Sources {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (m *maker) kept(name string) bool { return slices.Contains(m.cfg.Keep, name) }
