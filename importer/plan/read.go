package plan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
	"github.com/neozodb/neo/importer/source"
)

// maxProblems is how many problems of a source are told in full.
const maxProblems = 20

// maxNames is how many names of other databases are told apart.
const maxNames = 1000

// otherNames counts the others, in [Source.Foreign].
const otherNames = "(other names)"

// file is a Data.fs that is read.
type file struct {
	r       *fsformat.Reader
	indexed bool // single objects can be loaded
	ordered bool // its ids increase, as far as it was read
	damaged bool // the iteration ends before the file does

	candidates map[tid.OID]*Mount // mount points, by their current records
	places     []int64            // where transactions begin, evenly over the file
	end        int64              // of the transactions that can be read
	free       []tid.OID          // numbers that no object has and no reference leads to
	took       time.Duration      // the reading of all records, what was looked for included
}

// read looks at each source by itself.
func (m *maker) read(ctx context.Context) error {
	for _, g := range m.cfg.Sources {
		s := &Source{Name: g.Name, Where: g.Storage.String(), Foreign: map[string]int64{}, given: g}
		m.plan.Sources = append(m.plan.Sources, s)
		if f := g.Storage.File; f == nil {
			if err := m.reach(ctx, s); err != nil {
				return err
			}
		} else if err := m.readFile(ctx, s, f.Path); err != nil {
			return err
		}
	}
	return nil
}

// reach connects to a source on a server, of which single objects are looked up: a server
// that people work with would feel more.
func (m *maker) reach(ctx context.Context, s *Source) error {
	with := "if it has a Data.fs that you can read here, plan with that: NAME=PATH. It may be in use"
	limited, cancel := context.WithTimeout(ctx, m.cfg.Patience)
	defer cancel()
	src, err := source.Open(limited, s.Name, s.given.Storage, source.Options{Patience: m.cfg.Patience})
	if err == nil {
		s.remote, s.lookup = src, src
		var e source.Extent
		if e, err = src.Extent(limited); err == nil {
			s.Next, s.Last = e.Next, e.Last
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, source.ErrEmpty):
		m.plan.must(s.Name, "is it the right storage?", "%s has no transaction: there is nothing to import", s.Where)
	case err != nil:
		m.plan.must(s.Name, "start the server, or correct the address. Otherwise, "+with, "%s was not looked at: %v", s.Where, err)
	default:
		m.plan.note(s.Name, with, "%s was only asked for single objects: its records were neither verified nor counted, and mount points and references in it were not sought", s.Where)
	}
	return nil
}

func (m *maker) readFile(ctx context.Context, s *Source, path string) error {
	r, err := fsformat.Open(path, fsformat.Options{})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return err
	}
	if err != nil {
		m.plan.must(s.Name, "give the Data.fs of the database", "%v", err)
		return nil
	}
	s.file = &file{r: r, ordered: true, candidates: map[tid.OID]*Mount{}}
	s.Read, s.Magic, s.Bytes = true, string(r.Magic()), r.Size()
	if !m.cfg.Fast {
		if err := m.check(ctx, s); err != nil {
			return err
		}
	}
	set, done := m.cfg.Progress("reading the index of "+path, s.Bytes)
	_, err = r.UseIndex(ctx, "", set)
	done()
	if errors.Is(err, fsformat.ErrOrder) {
		// The objects are there all the same, in the file that is renumbered.
		if err := m.reopen(s, path); err != nil {
			return err
		}
		r = s.file.r
		set, done := m.cfg.Progress("reading the index of "+path, s.Bytes)
		_, err = r.UseIndex(ctx, "", set)
		done()
	}
	if err := m.corrupt(s, err, "no object of it can be looked up"); err != nil {
		return err
	}
	if s.file.indexed = err == nil; s.file.indexed {
		s.lookup = r
		s.Objects = int64(r.Index().Len())
		if greatest, ok := r.Index().MaxOID(); ok {
			s.Next = greatest + 1
			if greatest > tid.MaxOID {
				m.plan.must(s.Name, "an id like this comes from a program, or from damage. Remove what refers to the object, and pack the database",
					"object %v: a cluster holds ids up to %v", greatest, tid.MaxOID)
				s.Next = 0
			}
		}
		s.file.free = gaps(r.Index(), s.Next)
	}
	if m.cfg.Fast {
		err = m.glance(ctx, s)
	} else {
		err = m.scan(ctx, s)
		if errors.Is(err, fsformat.ErrOrder) {
			if err := m.reopen(s, path); err != nil {
				return err
			}
			err = m.scan(ctx, s)
		}
	}
	if err := m.corrupt(s, err, "an import stops there, and what is behind it is not imported"); err != nil {
		return err
	}
	return m.about(ctx, s)
}

// reopen opens a file whose ids are out of order, with other ones.
func (m *maker) reopen(s *Source, path string) error {
	r, err := fsformat.Open(path, fsformat.Options{Renumber: true})
	if err != nil {
		return err
	}
	if s.file.indexed {
		r.SetIndex(s.file.r.Index())
	}
	if err := s.file.r.Close(); err != nil {
		return errors.Join(err, r.Close())
	}
	s.file.r, s.file.ordered = r, false
	if s.file.indexed {
		s.lookup = r
	}
	return nil
}

// corrupt makes findings of an error that is about the contents of a file, and returns
// any other.
func (m *maker) corrupt(s *Source, err error, means string) error {
	e, ok := errors.AsType[*fsformat.CorruptError](err)
	if !ok {
		return err
	}
	if s.file.damaged {
		return nil // the same again
	}
	s.file.damaged = true
	m.plan.must(s.Name, fmt.Sprintf("neofs salvage %s NEW keeps all that is intact and says what is lost; then import NEW. Keep the old file. If only the status of transactions is unknown, neoexport --any-status %[1]s NEW", s.file.r.Name()),
		"damaged: %v: %s", e, means)
	return nil
}

// check runs the check of neofs.
func (m *maker) check(ctx context.Context, s *Source) error {
	set, done := m.cfg.Progress("checking "+s.file.r.Name(), s.Bytes)
	defer done()
	sum, err := fsformat.Check(ctx, s.file.r, fsformat.CheckOptions{Now: m.cfg.Now, Progress: set}, func(p fsformat.Problem) {
		if len(s.Problems) < maxProblems {
			s.Problems = append(s.Problems, p.String())
		}
	})
	set(s.Bytes)
	s.Errors, s.Warnings = sum.Errors, sum.Warnings
	s.Objects, s.Packed = int64(sum.Objects), sum.Packed
	return err
}

// gaps returns some numbers below next that no object has.
func gaps(x *fsformat.Index, next tid.OID) (free []tid.OID) {
	want := tid.OID(1)
	for oid := range x.All() {
		for ; want < oid && want < next && len(free) < 64; want++ {
			free = append(free, want)
		}
		if len(free) == 64 {
			break
		}
		want = oid + 1
	}
	return free
}

// places is how many parts of a file a sample has.
const places = 48

// scan reads all records.
func (m *maker) scan(ctx context.Context, s *Source) error {
	f := s.file
	clear(f.candidates)
	clear(s.Foreign)
	s.Transactions, s.Records, s.DataBytes, s.LargestData, s.Blobs, s.Packed, s.Shared, s.Twice = 0, 0, 0, 0, 0, 0, 0, 0
	f.places, s.Last = f.places[:0], 0
	set, done := m.cfg.Progress("reading "+f.r.Name(), s.Bytes)
	defer done()
	start := time.Now()
	e := examiner{s: s, rewrite: len(m.cfg.Sources) > 1, bad: m.badRecord}
	e.scanner.Python = f.r.Magic() == fsformat.FS21
	var oids []tid.OID
	next := int64(0)
	var wrong int64
	var first *fsformat.CorruptError
	checked := f.r.Checked(func(e *fsformat.CorruptError) error {
		if wrong++; first == nil {
			copied := *e
			first = &copied
		}
		return nil
	})
	for t, err := range checked.Scan(ctx, tid.Zero, tid.Max) {
		if err != nil {
			return err
		}
		if t.Head.Pos >= next {
			set(t.Head.Pos)
			f.places = append(f.places, t.Head.Pos)
			next = t.Head.Pos + max(1, s.Bytes/places)
		}
		s.Transactions++
		if t.Status == 'p' {
			s.Packed++
		}
		oids = oids[:0]
		for r, err := range t.Records {
			if err != nil {
				return err
			}
			s.Records++
			if r.OID <= tid.MaxOID && !f.indexed {
				s.Next = max(s.Next, r.OID+1)
			}
			oids = append(oids, r.OID)
			if r.DataTID != tid.Zero {
				s.Shared++
			} else {
				s.DataBytes += int64(len(r.Data))
				s.LargestData = max(s.LargestData, int64(len(r.Data)))
			}
			e.record(r.OID, t.TID, r.Data, r.DataTID == tid.Zero)
		}
		s.Twice += twice(oids)
		s.Last, f.end = max(s.Last, t.TID), t.Head.End()
	}
	set(s.Bytes)
	s.Whole = true
	f.took = time.Since(start)
	if wrong > 0 {
		m.plan.note(s.Name, "make sure that these objects are what they should be: the import makes the pointers anew, and nothing shows it afterwards",
			"%d records have a wrong pointer to the previous record of their object, so that an object id may be damaged. The first: %v", wrong, first)
	}
	if e.byteStrings > 0 {
		m.plan.note(s.Name, "", "%d records have text of Python 2 that is not ASCII, which Python 3 does not load", e.byteStrings)
	}
	if e.wrapped > 0 {
		m.plan.note(s.Name, "keep the wrapper around the NEO storage in the configuration of the applications, or copy the database without it first",
			"%d records are wrapped (zlibstorage, or hexadecimal): the cluster stores them so", e.wrapped)
	}
	if e.nBad > int64(len(e.told)) {
		m.plan.must(s.Name, "", "%d more records like these", e.nBad-int64(len(e.told)))
	}
	return nil
}

func twice(oids []tid.OID) (n int64) {
	slices.Sort(oids)
	for i := 1; i < len(oids); i++ {
		if oids[i] == oids[i-1] {
			n++
		}
	}
	return n
}

func (m *maker) badRecord(s *Source, oid tid.OID, t tid.TID, err error) {
	m.plan.must(s.Name, "the import stops at it and says so; neoctl import skip leaves it out. Or mend it before: neofs replace",
		"object %v, transaction %v: its references cannot be rewritten: %v", oid, t, err)
}

// examiner looks into the records of a source.
type examiner struct {
	s           *Source
	scanner     pickle.Scanner
	rewriter    pickle.Rewriter
	rewrite     bool // the import will rewrite the references
	bad         func(*Source, tid.OID, tid.TID, error)
	told        []tid.OID
	nBad        int64
	wrapped     int64
	byteStrings int64
}

// record looks into a record. own: its data are not those of an earlier one.
func (e *examiner) record(oid tid.OID, t tid.TID, data []byte, own bool) {
	f := e.s.file
	if len(f.candidates) > 0 {
		delete(f.candidates, oid)
	}
	if len(data) == 0 {
		return
	}
	plain, wrapped, err := pickle.Unwrap(data)
	if err != nil {
		return // the check has told, and a copy keeps it as it is
	}
	if class := mountClass(plain); class != "" {
		f.candidates[oid] = e.mount(oid, class, plain)
	}
	if !own {
		return
	}
	if wrapped {
		e.wrapped++
	}
	if pickle.IsBlob(plain) {
		e.s.Blobs++
	}
	refs, err := e.scanner.References(plain)
	if err == nil {
		if e.scanner.Python && e.scanner.ByteStrings() {
			e.byteStrings++
		}
		for _, ref := range refs {
			if len(ref.Database) > 0 {
				e.foreign(string(ref.Database))
			} else if i, found := slices.BinarySearch(f.free, tid.OID(ref.OID)); found {
				f.free = slices.Delete(f.free, i, i+1)
			}
		}
	}
	if !e.rewrite {
		return
	}
	if _, err := e.rewriter.Rewrite(data, same{}); err != nil {
		if e.nBad++; len(e.told) < 5 {
			e.told = append(e.told, oid)
			e.bad(e.s, oid, t, err)
		}
	}
}

func (e *examiner) foreign(name string) {
	if _, ok := e.s.Foreign[name]; !ok && len(e.s.Foreign) >= maxNames {
		name = otherNames
	}
	e.s.Foreign[name]++
}

// same is a mapping that changes nothing.
type same struct{}

func (same) Local(oid uint64) (uint64, bool)              { return oid, false }
func (same) Foreign(string, uint64) (_ uint64, _, _ bool) { return 0, false, false }

// firstTransaction is where the first transaction begins, if there is one.
const firstTransaction = 4

// Limits of a glance.
const (
	glanceObjects = 20000
	glanceTime    = 2 * time.Second
)

// glance looks at the objects near the root, and at nothing else.
func (m *maker) glance(ctx context.Context, s *Source) error {
	f := s.file
	tail, err := f.r.Tail(ctx)
	if err != nil {
		return err
	}
	s.Last, f.end = tail.LastTID, tail.End
	if !f.indexed {
		return nil
	}
	// Transactions of objects that are evenly spread over the numbers are so over the file, near
	// enough.
	f.places = append(f.places, firstTransaction)
	n, step := 0, max(1, f.r.Index().Len()/places)
	for oid := range f.r.Index().All() {
		if n++; n%step != 0 {
			continue
		}
		for rec, err := range f.r.Chain(ctx, oid) {
			if err != nil {
				return err
			}
			f.places = append(f.places, rec.TxnPos)
			break
		}
	}
	slices.Sort(f.places)
	f.places = slices.Compact(f.places)
	e := examiner{s: s, rewrite: len(m.cfg.Sources) > 1, bad: m.badRecord}
	seen := map[tid.OID]bool{0: true}
	start := time.Now()
	var sc pickle.Scanner
	for queue := []tid.OID{0}; len(queue) > 0 && time.Since(start) < glanceTime; queue = queue[1:] {
		rev, err := f.r.LoadBefore(ctx, queue[0], tid.Max)
		if err != nil {
			if errors.Is(err, txn.ErrNoSuchObject) || errors.Is(err, txn.ErrNotFound) {
				continue // a reference to nothing
			}
			return err
		}
		e.record(queue[0], rev.Serial, rev.Data, true)
		plain, _, err := pickle.Unwrap(rev.Data)
		if err != nil {
			continue
		}
		refs, err := sc.References(plain)
		if err != nil {
			continue
		}
		for _, ref := range refs {
			if oid := tid.OID(ref.OID); len(ref.Database) == 0 && !seen[oid] && len(seen) < glanceObjects {
				seen[oid] = true
				queue = append(queue, oid)
			}
		}
	}
	f.free = nil // which numbers references lead to is not known
	m.plan.note(s.Name, "plan without --fast", "only %d objects near the root, and a sample of transactions, were read: damage, wrong ids, and mount points elsewhere were not looked for", len(seen))
	return nil
}

// about says what the counts of a source mean.
func (m *maker) about(ctx context.Context, s *Source) error {
	f, p, name := s.file, m.plan, s.file.r.Name()
	ignored := int64(0) // errors of the check that are about the end
	if !f.damaged {
		switch tail, err := f.r.Tail(ctx); {
		case err != nil:
			if err := m.corrupt(s, err, "an import stops there"); err != nil {
				return err
			}
		case tail.Ignored > 0:
			ignored = 1
			p.note(s.Name, "stop the server that writes it; if none does, a crash has left it, and no client was told that it was committed",
				"%s ends with %d bytes after its last transaction (%s): they are not imported", name, tail.Ignored, tail.Reason)
		}
	}
	if s.Last == tid.Zero && !f.damaged {
		p.must(s.Name, "is it the right file?", "%s has no transaction: there is nothing to import", name)
	}
	if !f.ordered {
		o, err := f.r.Renumbered(ctx)
		if err != nil {
			return m.corrupt(s, err, "an import stops there")
		}
		p.must(s.Name, fmt.Sprintf("make a copy in which they do, and import that: neoexport --renumber %s NEW. The transactions keep their order", name),
			"the ids of its transactions do not increase, as after the clock of a server was set back: %d would get other ones, and the import refuses the file", len(o))
	}
	if limit := tid.FromTime(m.cfg.Now.Add(time.Minute)); s.Last > limit {
		p.note(s.Name, "", "its last transaction, %v, is in the future (%s): what is committed to the cluster gets ids above that, and dates behind it, until that time",
			s.Last, s.Last.Time().Format("2006-01-02 15:04:05"))
	}
	if n := s.Errors - ignored; n > 0 && !f.damaged && f.ordered {
		p.note(s.Name, fmt.Sprintf("neofs check %s shows them all. What Python could not load before it cannot load afterwards", name),
			"the check has found %d errors that do not stop an import: the data are copied as they are", n)
	}
	if f.r.Magic() == fsformat.FS21 {
		p.note(s.Name, "convert it with zodbupdate before or after the import, if the applications move to Python 3",
			"it was written by Python 2 (FS21). The import keeps the records as they are: applications that run on Python 3 cannot read all of them")
	}
	dir := ""
	if b := s.given.Storage.File.BlobDir; b != "" {
		dir = b
	} else {
		for _, sub := range []string{"blobstorage", "blobs"} {
			if st, err := os.Stat(filepath.Join(filepath.Dir(name), sub)); err == nil && st.IsDir() {
				dir = st.Name()
			}
		}
	}
	if s.Blobs > 0 || s.given.Storage.File.BlobDir != "" {
		where := ""
		if dir != "" {
			where = " (in " + dir + ")"
		}
		level := Must
		if m.cfg.WithoutBlobs {
			level = Note
		}
		p.find(level, s.Name, "move the contents of the blobs into objects first, or keep the database as it is; --without-blobs if their files are not needed",
			"it has %d revisions of blobs. NEO has no blobs: the records are imported, the files%s are not, and applications that open one fail", s.Blobs, where)
	}
	return nil
}

// mountClasses are the classes of objects that show another database in their place.
var mountClasses = []string{
	"Products.ZODBMountPoint.MountedObject.MountedObject",
	"Products.DBTab.MountedObject.MountedObject",
	"Products.ExternalMount.ExternalMount.ExternalMount",
	ramMount,
}

// ramMount is the class of those that show a database that is in memory only.
const ramMount = "Products.TemporaryFolder.TemporaryFolder.MountedTemporaryFolder"

// mountClass returns the class of a record if it is a mount point.
func mountClass(plain []byte) string {
	if !bytes.Contains(plain[:min(len(plain), 256)], []byte("Mount")) {
		return "" // most records
	}
	var s pickle.Scanner
	module, name, err := s.Class(plain)
	if err != nil {
		return ""
	}
	if class := string(module) + "." + string(name); slices.Contains(mountClasses, class) {
		return class
	}
	return ""
}

// mount returns what a record says of a mount point.
func (e *examiner) mount(oid tid.OID, class string, plain []byte) *Mount {
	m := &Mount{Source: e.s.Name, OID: oid, Class: class, ram: class == ramMount}
	if _, state, err := pickle.DecodeRecord(plain); err == nil {
		if d := attributes(state); d != nil {
			v, _ := d.Get("_path")
			m.Path, _ = pickle.Text(v)
			if m.ram {
				v, _ := d.Get("id")
				id, _ := pickle.Text(v)
				m.Path = "/" + strings.TrimPrefix(id, "/")
			}
		}
	}
	return m
}
