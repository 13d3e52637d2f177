package verify

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

// ReadOptions say what [Read] reads. Repo and State are required, other zero fields take the
// default.
type ReadOptions struct {
	Repo     *backup.Repository
	Keys     *backup.Keys // default: only the SHA-256 of encrypted segments is verified
	State    *backup.State
	Share    Share  // default: all
	Scratch  string // directory of temporary files; default: os.TempDir
	Parallel int    // segments read at once; default: as many as there are processors, at least 2
	Report   func(Finding)
	// Progress is told how many bytes were read of all that will be. It is called from one
	// goroutine at a time. Default: none.
	Progress func(done, total int64)
}

// ReadSummary says what [Read] has read.
type ReadSummary struct {
	Segments int64 `json:"segments"` // of the state
	Read     int64 `json:"segments_read"`
	Bytes    int64 `json:"bytes_read"`
	Txns     int64 `json:"txns"`
	Records  int64 `json:"records"`
	Copies   int64 `json:"copies"` // whose earlier revision was looked for, and found if nothing else is reported
	// Unopened are segments of which only the SHA-256 was verified, since no identity opens
	// them.
	Unopened int64  `json:"segments_not_opened,omitempty"`
	Why      string `json:"not_opened_because,omitempty"`
	Damage   int64  `json:"damage"`
	Warnings int64  `json:"warnings"`
}

// Read reads segments and verifies their SHA-256, decryption and decompression, the syntax of
// the text, its digest, index and text against each other, the order of transactions, and that
// the earlier revision that a record copies is there. The error is about what prevented
// that; all damage is reported.
func Read(ctx context.Context, o ReadOptions) (*ReadSummary, error) {
	r := &reading{o: o, reporter: reporter{report: o.Report}}
	if r.o.Keys == nil {
		r.o.Keys = o.Repo.Unlock()
	}
	if r.o.Parallel == 0 {
		r.o.Parallel = max(runtime.GOMAXPROCS(0), 2)
	}
	err := r.run(ctx)
	for _, t := range o.Repo.Tampered() {
		r.add(Finding{Kind: Damaged, Key: t.Key, Text: fmt.Sprintf("%v; version %s of the object has the right bytes: it was overwritten or deleted", t.Err, t.Version), Err: t.Err})
	}
	r.sum.Damage, r.sum.Warnings = r.damage, r.warnings
	return &r.sum, err
}

type reading struct {
	reporter
	told int64 // bytes, as progress
	o    ReadOptions
	sum  ReadSummary // under m
	m    sync.Mutex

	parts []*backup.Part
	bad   map[int]bool // parts that are reported, under m
	// links are copies of revisions in other segments, under m.
	links []link
	look  *lookup
}

// link is a record that copies an earlier revision.
type link struct {
	oid     tid.OID
	tid, to tid.TID
	absent  bool // it says that that has no data
	// anyKind: a later record of the object in the same transaction counts, or may be. The index
	// says whether a copy has data, and has only that one.
	anyKind    bool
	part       int // that it is in
	from, upTo int // parts in which the revision can be
}

// maxLinks is how many links wait.
const maxLinks = 100_000

func (r *reading) run(ctx context.Context) error {
	r.bad = map[int]bool{}
	state, err := withLater(ctx, r.o.Repo, r.o.State)
	if err != nil {
		return err
	}
	r.parts, err = allParts(ctx, r.o.Repo, state, func(key string, after, upto tid.TID, err error) error {
		kind, ok := kindOf(err)
		if !ok {
			return err
		}
		r.add(Finding{Kind: kind, Key: key, After: after, Upto: upto, Err: err})
		return nil
	})
	if err != nil {
		return err
	}
	r.look = &lookup{repo: r.o.Repo, keys: r.o.Keys, parts: r.parts}
	var chosen []int
	total := int64(0)
	for i, p := range r.parts {
		if p.Gap != nil {
			if p.Gap.Note != unknown {
				r.add(Finding{Kind: Gap, Warning: true, After: p.Gap.After, Upto: p.Gap.Upto, Text: "lost, as was accepted: " + p.Gap.Note})
			}
			continue
		}
		r.sum.Segments++
		if r.o.Share.has(p.Segment) {
			chosen = append(chosen, i)
			total += p.Segment.Bytes
		}
	}
	for len(chosen) > 0 {
		n := min(len(chosen), 4*r.o.Parallel)
		g, within := errgroup.WithContext(ctx)
		g.SetLimit(r.o.Parallel)
		for _, i := range chosen[:n] {
			g.Go(func() error {
				told := int64(0) // of the bytes of the segment
				tell := func(share float64) {
					r.m.Lock()
					defer r.m.Unlock()
					now := int64(share * float64(r.parts[i].Segment.Bytes))
					r.told += now - told
					told = now
					if r.o.Progress != nil {
						r.o.Progress(r.told, total)
					}
				}
				if err := r.part(within, i, tell); err != nil {
					return err
				}
				tell(1)
				r.m.Lock()
				defer r.m.Unlock()
				r.sum.Read++
				r.sum.Bytes += r.parts[i].Segment.Bytes
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if chosen = chosen[n:]; len(r.links) > maxLinks || len(chosen) == 0 {
			if err := r.follow(ctx); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// tellEvery is after how many records it is told how far a segment is.
const tellEvery = 4096

// part reads a segment. What is wrong with it is reported.
func (r *reading) part(ctx context.Context, i int, tell func(share float64)) error {
	p := r.parts[i]
	f, err := r.o.Repo.Fetch(ctx, r.o.Keys, p, r.o.Scratch)
	if errors.Is(err, backup.ErrKeys) {
		// Its bytes have the right hash: that is verified before it is opened.
		r.m.Lock()
		defer r.m.Unlock()
		r.sum.Unopened++
		r.sum.Why = err.Error()
		return nil
	}
	if err != nil {
		return r.damaged(ctx, i, nil, err)
	}
	defer f.Close()
	h, err := f.Header()
	if err != nil {
		return err // of what was just read
	}
	var links []link
	var at tid.TID
	latest := map[tid.OID]int{} // the last one of each object in transaction at
	end := p.Segment.End()
	records, all := int64(0), max(f.Footer().Records, 1)
	err = f.Check(func(rec *snapshot.Record) error {
		if records++; records%tellEvery == 0 {
			tell(min(float64(records)/float64(all), 1))
		}
		if rec.TID > end {
			return nil // it is another history that has it
		}
		if rec.TID != at {
			at = rec.TID
			clear(latest)
		}
		if j, ok := latest[rec.OID]; ok {
			links[j].anyKind = true
		}
		if rec.DataTID == tid.Zero {
			return nil
		}
		latest[rec.OID] = len(links)
		links = append(links, link{oid: rec.OID, tid: rec.TID, to: rec.DataTID, absent: rec.Kind == snapshot.NoData, part: i,
			anyKind: h.Continued && rec.TID == h.Upto})
		return nil
	})
	if err != nil {
		return r.damaged(ctx, i, f.Reader, err)
	}
	others := links[:0]
	copies := int64(len(links))
	for _, l := range links {
		l.from, l.upTo = r.look.at(l.to)
		if l.from > i || i >= l.upTo {
			others = append(others, l)
			continue
		}
		e, err := f.Find(l.oid, l.to+1)
		switch {
		case err == nil && e.TID == l.to:
			r.linked(&l, e.Kind)
		case err != nil && !errors.Is(err, snapshot.ErrNotFound):
			return err // it was just read
		case l.upTo-l.from > 1:
			others = append(others, l) // in another part of the transaction
		default:
			r.dangling(&l)
		}
	}
	r.m.Lock()
	defer r.m.Unlock()
	foot := f.Footer()
	r.sum.Txns += foot.Txns
	r.sum.Records += foot.Records
	r.sum.Copies += copies
	r.links = append(r.links, others...)
	return nil
}

// linked compares a copy with the revision that it names.
func (r *reading) linked(l *link, kind snapshot.EntryKind) {
	if (kind == snapshot.NoData) != l.absent && !l.anyKind {
		p := r.parts[l.part]
		after, upto := p.Range()
		r.add(Finding{Kind: Damaged, Key: p.Segment.Key, After: after, Upto: upto, OIDs: []tid.OID{l.oid}, Objects: 1,
			Text: fmt.Sprintf("object %v in transaction %v copies the revision of %v, and they do not agree whether there are data", l.oid, l.tid, l.to)})
	}
}

// dangling reports a copy of a revision that is not there.
func (r *reading) dangling(l *link) {
	p := r.parts[l.part]
	after, upto := p.Range()
	r.add(Finding{Kind: Damaged, Key: p.Segment.Key, After: after, Upto: upto, OIDs: []tid.OID{l.oid}, Objects: 1,
		Text: fmt.Sprintf("object %v in transaction %v copies the revision of %v, which is not in the backup", l.oid, l.tid, l.to)})
}

// follow looks for the revisions that copies name in other segments. Those in segments that are
// damaged are reported with these.
func (r *reading) follow(ctx context.Context) error {
	slices.SortFunc(r.links, func(a, b link) int {
		if a.from != b.from {
			return a.from - b.from
		}
		if a.oid < b.oid {
			return -1
		}
		return 1
	})
	r.look.ctx = ctx
	for i := range r.links {
		l := &r.links[i]
		skip := false
		for p := l.from; p < l.upTo; p++ {
			skip = skip || r.bad[p] || r.parts[p].Gap != nil
		}
		if skip {
			continue
		}
		_, e, err := r.look.find(l.oid, l.to)
		switch {
		case err == nil:
			r.linked(l, e.Kind)
		case errors.Is(err, snapshot.ErrNotFound):
			r.dangling(l)
			err = nil
		case errors.Is(err, backup.ErrKeys):
			err = nil // nothing can be opened
		default:
			if _, ok := kindOf(err); ok { // not in the share, and damaged
				err = r.damaged(ctx, l.upTo-1, nil, err)
			}
		}
		if err != nil {
			return err
		}
	}
	r.links = r.links[:0]
	return nil
}

// damaged reports what is wrong with a segment, and which objects are touched as far as that
// can be found out. s is the segment, if it could be opened. An error that is no damage is
// returned.
func (r *reading) damaged(ctx context.Context, i int, s *snapshot.Reader, err error) error {
	kind, ok := kindOf(err)
	if !ok {
		return err
	}
	r.m.Lock()
	known := r.bad[i]
	r.bad[i] = true
	r.m.Unlock()
	if known {
		return nil
	}
	p := r.parts[i]
	f := Finding{Kind: kind, Key: p.Segment.Key, Err: err, Text: err.Error()}
	f.After, f.Upto = p.Range()
	if kind == Damaged {
		if s == nil {
			s, _ = r.o.Repo.OpenPart(ctx, r.o.Keys, p) // the damage is reported in any case
		}
		if s != nil {
			d, err := s.Damage(1 << 20)
			if err != nil {
				if _, ok := kindOf(err); !ok {
					return err
				}
			} else {
				f.touched(d)
			}
		}
	}
	r.add(f)
	return nil
}

// touched adds the objects of damaged frames.
func (f *Finding) touched(d *snapshot.Damage) {
	if d.Frames > 0 || d.Blocks > 0 {
		f.Text += fmt.Sprintf("; %d frames of text and %d blocks of the index are damaged", d.Frames, d.Blocks)
	}
	var last tid.OID
	for i, e := range d.Lost {
		if i > 0 && e.OID == last {
			continue
		}
		last = e.OID
		if f.Objects++; f.Objects <= MaxOIDs {
			f.OIDs = append(f.OIDs, e.OID)
		}
	}
}
