package plan

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/merge"
)

// reserved are names that are no mount points: keys of a section.
var reserved = []string{"default", "storage", "oid", "database-name", "adapter", "database", "engine", "wait", "compress", "writeback"}

// propose makes the configuration.
func (m *maker) propose() {
	p := m.plan
	dest := m.cfg.Destination
	if dest.Adapter == "" {
		dest.Adapter = "SQLite"
	}
	if dest.Section == "" {
		dest.Section = "neo"
	}
	if dest.Compress == 0 {
		dest.Compress = -1
	}
	if dest.Database == "" {
		dest.Database = "imported.sqlite"
		if f := m.cfg.Sources[0].Storage.File; f != nil {
			dest.Database = filepath.Join(filepath.Dir(f.Path), dest.Database)
		}
		if dest.Adapter != "SQLite" {
			p.must("", "--destination with its connection string", "the adapter %s needs to know its database", dest.Adapter)
			return
		}
	}
	m.cfg.Destination = dest
	m.sections(dest.Section)
	for i, s := range p.Sources {
		s.src = config.Source{Section: s.Section, DatabaseName: s.Name, Storage: s.given.Storage}
		if g := s.given.Section; g != nil {
			s.src.OID, s.src.Mounts = g.OID, slices.Clone(g.Mounts)
		}
		if i == 0 && s.src.OID != 0 {
			p.must(s.Name, "give the root first", "the first source is the root, but its section has oid %d", uint64(s.src.OID))
		}
	}
	m.place()
	m.foreign()
	imp := config.Import{Destination: dest}
	reached := m.reached()
	for _, s := range p.Sources {
		if !reached[s.Section] {
			m.unreachable(s, reached)
			continue
		}
		src := s.src
		src.Mounts = slices.DeleteFunc(slices.Clone(src.Mounts), func(c config.Mount) bool { return !reached[c.Section] })
		imp.Sources = append(imp.Sources, src)
	}
	var text strings.Builder
	if err := config.Write(&text, imp); err != nil {
		p.must("", "", "%v", err)
		return
	}
	p.Import, p.Text = &imp, text.String()
	extents := map[string]config.Extent{}
	for _, s := range p.Sources {
		if s.Read || s.Next > 0 {
			extents[s.Section] = config.Extent{Next: s.Next, Last: s.Last}
		} else {
			extents[s.Section] = config.Extent{Next: 1 << 32, Last: 1} // not known: it has room
		}
	}
	if _, err := config.Layout(imp, extents); err != nil && !m.damaged() {
		p.must("", "correct it before the import", "the proposed configuration does not fit together: %v", err)
	}
}

// head is what begins the proposed file: what keeps it from being used.
func (p *Plan) head() string {
	var b strings.Builder
	b.WriteString("# Proposed by neomigrate plan.\n")
	comment := func(format string, args ...any) {
		b.WriteString("# " + strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ") + "\n")
	}
	for _, f := range p.Findings {
		if f.Level != Must {
			continue
		}
		about := ""
		if f.Source != "" {
			about = f.Source + ": "
		}
		comment("TO DO: %s%s.", about, f.Text)
		if f.Do != "" {
			comment("   -> %s.", f.Do)
		}
	}
	return b.String() + "\n"
}

// damaged reports whether a source is not known as far as it goes, which has been said.
func (m *maker) damaged() bool {
	return slices.ContainsFunc(m.plan.Sources, func(s *Source) bool { return s.Read && (s.file.damaged || s.Next == 0 || s.Last == 0) })
}

// sections gives each source a section whose name can be a key.
func (m *maker) sections(destination string) {
	used := map[string]bool{destination: true}
	for _, s := range m.plan.Sources {
		name := strings.ToLower(s.Name)
		if g := s.given.Section; g != nil {
			name = g.Section
		}
		name = strings.Map(func(r rune) rune {
			if r < ' ' || strings.ContainsRune(" []:=;#%$", r) {
				return '-'
			}
			return r
		}, name)
		if slices.Contains(reserved, name) || name == "" {
			name += "-db"
		}
		for n, base := 2, name; used[name]; n++ {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		used[name], s.Section = true, name
	}
}

// place writes the mount points into the sections.
func (m *maker) place() {
	p := m.plan
	for _, mt := range p.Mounts {
		to := m.source(mt.Target)
		if to == nil {
			continue
		}
		s := m.source(mt.Source)
		if slices.ContainsFunc(s.src.Mounts, func(c config.Mount) bool { return c.OID == mt.OID && c.Section == to.Section }) {
			continue // it was there
		}
		switch {
		case to == p.Sources[0]:
			p.must(s.Name, fmt.Sprintf("--keep %s, and replace the mount point in the application", mt.Path), "the mount point %s leads to the root database, %s, which can not be mounted", mt.Path, to.Name)
		case mt.TargetOID == 0:
			p.must(s.Name, fmt.Sprintf("--mount %s=%s:PATH with what zope.conf says", mt.Path, to.Name), "the mount point %s leads to the root object of %s, which can not be mounted", mt.Path, to.Name)
		case to.src.OID != 0 && to.src.OID != mt.TargetOID:
			p.must(s.Name, fmt.Sprintf("keep one of them with --keep, and replace it by the object itself after the import; or copy %s once more, as a source of its own", to.Name),
				"mount points lead to two objects of %s, %d and %d (%s), but a database has one place", to.Name, uint64(to.src.OID), uint64(mt.TargetOID), mt.Path)
		case slices.ContainsFunc(s.src.Mounts, func(c config.Mount) bool { return c.Section == to.Section }):
			p.must(s.Name, fmt.Sprintf("remove one of them before the import, or --keep %s", mt.Path), "%s mounts %s twice: again at %s", s.Name, to.Name, mt.Path)
		default:
			to.src.OID = mt.TargetOID
			s.src.Mounts = append(s.src.Mounts, config.Mount{Section: to.Section, OID: mt.OID})
		}
	}
}

// foreign looks at references to other databases. A source that only they lead to gets a
// mount point that nothing refers to, since a configuration needs one.
func (m *maker) foreign() {
	p := m.plan
	for _, s := range p.Sources {
		for _, name := range slices.Sorted(maps.Keys(s.Foreign)) {
			n := s.Foreign[name]
			to := m.source(name)
			switch {
			case to != nil:
				p.note(s.Name, "", "%d references to database %s, which is a source: they become ordinary ones", n, name)
			case m.kept(name):
				p.note(s.Name, "", "%d references to database %s, which is no source: they stay as they are", n, name)
			default:
				p.must(s.Name, fmt.Sprintf("give it as %s=PATH if it is to be imported too; --keep %[1]s if applications go on opening it under this name", name),
					"%d references to database %s, which is no source", n, name)
			}
		}
	}
	for changed := true; changed; {
		changed = false
		reached := m.reached()
		for _, s := range p.Sources {
			if !reached[s.Section] {
				continue
			}
			for _, to := range p.Sources {
				if s.Foreign[to.Name] == 0 || reached[to.Section] || to.lookup != nil && to.Next < 2 || s.file == nil || len(s.file.free) == 0 {
					continue // see unreachable
				}
				free := s.file.free[0]
				s.file.free = s.file.free[1:]
				if to.src.OID == 0 {
					to.src.OID = 1
				}
				s.src.Mounts = append(s.src.Mounts, config.Mount{Section: to.Section, OID: free})
				p.note(s.Name, "", "%s is referred to by its name alone, without mount point. The configuration needs one: %d, a number that no object has and no reference leads to", to.Name, uint64(free))
				changed, reached[to.Section] = true, true
			}
		}
	}
}

// unreachable says why a source is not in the proposal.
func (m *maker) unreachable(s *Source, reached map[string]bool) {
	for _, from := range m.plan.Sources {
		if reached[from.Section] && from.Foreign[s.Name] > 0 && from.file != nil && len(from.file.free) == 0 {
			if m.cfg.Fast {
				m.plan.must(s.Name, "plan without --fast", "%s is referred to by its name alone, which needs a number in %s that no reference leads to", s.Where, from.Name)
				return
			}
			m.plan.must(s.Name, fmt.Sprintf("in Python, call storage.new_oid() on %s and commit a new object after it, which leaves such a number; then plan again", from.Name),
				"%s is referred to by its name alone. The configuration needs a mount point for it, and %s has no number without an object or a reference that could be one: it is not in the proposal", s.Where, from.Name)
			return
		}
	}
	m.plan.must(s.Name, fmt.Sprintf("if it belongs to this site, --mount /PATH=%s; otherwise import it into a cluster of its own", s.Name),
		"no source leads to %s: it is not in the proposal", s.Where)
}

// reached returns the sections that the root leads to.
func (m *maker) reached() map[string]bool {
	root := m.plan.Sources[0]
	seen := map[string]bool{root.Section: true}
	for queue := []*Source{root}; len(queue) > 0; queue = queue[1:] {
		for _, c := range queue[0].src.Mounts {
			for _, s := range m.plan.Sources {
				if s.Section == c.Section && !seen[s.Section] {
					seen[s.Section] = true
					queue = append(queue, s)
				}
			}
		}
	}
	return seen
}

// joined counts the transactions with equal ids of several sources.
func (m *maker) joined(ctx context.Context) error {
	var sources []merge.Source
	shift := tid.OID(0)
	for _, s := range m.plan.Sources {
		if !s.Whole || !s.file.ordered || s.Next == 0 || s.Next > tid.MaxOID>>8 || s.Last == 0 {
			continue
		}
		sources = append(sources, merge.Source{Name: s.Section, Database: s.file.r, DatabaseName: s.Name, Last: s.Last, Shift: shift, Next: s.Next})
		shift += s.Next
	}
	if len(sources) < 2 {
		return nil
	}
	d, err := merge.New(sources)
	if err != nil {
		return err
	}
	var notes merge.Notes
	for _, err := range d.Scan(ctx, tid.Zero, tid.Max, merge.ScanOptions{Notes: &notes}) {
		if err != nil {
			return err
		}
	}
	if notes.Joined > 0 {
		m.plan.note("", "", "%d transactions have the id of one of another source, as those of one commit to several databases have: they become one", notes.Joined)
	}
	if notes.Dropped > 0 {
		m.plan.note("", "", "%d of them, first %v, lose a user, a description or an extension that the other one does not have", notes.Dropped, notes.FirstDropped)
	}
	return nil
}

// differences says what will not be as it was, beside what was found before.
func (m *maker) differences() {
	p := m.plan
	var packed, twice, shared int64
	for _, s := range p.Sources {
		packed, twice, shared = packed+s.Packed, twice+s.Twice, shared+s.Shared
	}
	if packed > 0 {
		p.note("", "neoexport --packed-up-to writes such a file", "%d transactions are packed. They stay so, but in a Data.fs that is exported later, records in that part have pointers to previous ones that a pack has hidden", packed)
	}
	if twice > 0 {
		p.note("", "", "%d records are of an object that has a later one in the same transaction. Only the later one is imported, as every reader of the file sees it", twice)
	}
	if shared > 0 {
		p.note("", "", "%d records have the data of an earlier one, as undo leaves them. They stay so; packing the cluster later may lose such a link, never the data", shared)
	}
	for _, s := range p.Sources {
		if s.Magic == "FS21" {
			p.note(s.Name, "neoexport --magic FS21", "an export begins with FS30 unless it is told otherwise")
		}
	}
	if len(p.Sources) > 1 {
		p.note("", "", "all objects but those of %s get new ids; object ids that applications keep as plain data do not follow, references do", p.Sources[0].Name)
		magic := map[string]bool{}
		for _, s := range p.Sources {
			if s.Read {
				magic[s.Magic] = true
			}
		}
		if len(magic) > 1 {
			p.must("", "convert the others with zodbupdate first, so that one Python reads all", "some sources are of Python 2 (FS21), others of Python 3 (FS30), and afterwards they are one database")
		}
	}
}
