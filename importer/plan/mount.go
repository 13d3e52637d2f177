package plan

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/neozodb/neo/cluster/tid"
)

// MountOption says what a mount point leads to: what mount-point of zope.conf says.
type MountOption struct {
	Path   string  // of the mount point
	Source string  // name of what is mounted
	Root   string  // in the root of that; "": Application
	Real   string  // path from there; "": Path
	OID    tid.OID // of the object, if the path is not to be followed; otherwise 0
}

// ParseMount reads PATH=NAME, or PATH=NAME:REAL as in zope.conf, where REAL is the path in the
// database, or ~ROOT/REAL; or PATH=NAME:OID, in decimal.
func ParseMount(s string) (MountOption, error) {
	path, rest, ok := strings.Cut(s, "=")
	name, real, _ := strings.Cut(rest, ":")
	if !ok || !strings.HasPrefix(path, "/") || name == "" {
		return MountOption{}, fmt.Errorf("%q is no mount point: want /PATH=NAME or /PATH=NAME:/PATH/IN/IT", s)
	}
	o := MountOption{Path: clean(path), Source: name}
	if n, err := strconv.ParseUint(real, 10, 63); err == nil && n > 0 {
		o.OID = tid.OID(n)
		return o, nil
	}
	if real != "" && real[0] != '/' && real[0] != '~' {
		return MountOption{}, fmt.Errorf("%q is neither a path, /REAL or ~ROOT/REAL, nor the number of an object", real)
	}
	o.Real = real
	if root, ok := strings.CutPrefix(real, "~"); ok {
		o.Root, o.Real, _ = strings.Cut(root, "/")
		o.Real = "/" + o.Real
	}
	return o, nil
}

// clean makes equal paths equal texts.
func clean(path string) string {
	return "/" + strings.Join(strings.FieldsFunc(path, func(r rune) bool { return r == '/' }), "/")
}

// mounts finds what is mounted where.
func (m *maker) mounts(ctx context.Context) error {
	p := m.plan
	for _, s := range p.Sources {
		if s.file == nil {
			continue
		}
		for _, oid := range slices.Sorted(maps.Keys(s.file.candidates)) {
			mt := s.file.candidates[oid]
			p.Mounts = append(p.Mounts, mt)
			if s.lookup != nil && mt.Path != "" {
				w := walker{ctx: ctx, db: s.lookup}
				at, err := w.walk(applicationRoot, mt.Path)
				mt.reached = err == nil && at == oid
			}
		}
	}
	for _, mt := range p.Mounts {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.target(ctx, mt)
	}
	for _, s := range p.Sources {
		m.verifyConfigured(s)
	}
	for _, o := range m.cfg.Mounts {
		if !slices.ContainsFunc(p.Mounts, func(mt *Mount) bool { return clean(mt.Path) == o.Path }) {
			p.must("", "mount points are where the class of an object is "+strings.Join(mountClasses[:1], ", "), "no mount point has the path %s, which --mount names", o.Path)
		}
	}
	return nil
}

// target finds what a mount point leads to.
func (m *maker) target(ctx context.Context, mt *Mount) {
	s := m.source(mt.Source)
	if twin := m.twin(mt); twin != nil && !mt.reached {
		mt.Kept, mt.Why = true, fmt.Sprintf("object %d is the mount point of this path", uint64(twin.OID))
		return
	}
	if mt.ram {
		mt.Kept, mt.Why = true, "what it shows is in memory, in no file"
		return
	}
	if m.kept(clean(mt.Path)) || m.kept(mt.Path) {
		mt.Kept, mt.Why = true, "--keep"
		return
	}
	if g := s.given.Section; g != nil {
		for _, c := range g.Mounts {
			if c.OID == mt.OID {
				for _, other := range m.plan.Sources {
					if o := other.given.Section; o != nil && o.Section == c.Section {
						mt.Target, mt.TargetOID, mt.Why = other.Name, o.OID, "so in the configuration"
						m.verify(ctx, mt, other)
						return
					}
				}
			}
		}
	}
	if i := slices.IndexFunc(m.cfg.Mounts, func(o MountOption) bool { return o.Path == clean(mt.Path) }); i >= 0 {
		m.asTold(ctx, mt, m.cfg.Mounts[i])
		return
	}
	if clean(mt.Path) == "/" {
		mt.Why = "its record has no path"
		m.plan.must(mt.Source, "--mount /=NAME:REAL with what zope.conf says of it, or --keep /", "object %d is a mount point: %s", uint64(mt.OID), mt.Why)
		return
	}
	var found []*Mount
	var reasons []string
	for _, other := range m.plan.Sources {
		if other == s {
			continue
		}
		if other.lookup == nil {
			reasons = append(reasons, fmt.Sprintf("%s could not be looked into", other.Name))
			continue
		}
		oid, err := m.follow(ctx, other, applicationRoot, mt.Path)
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("in %s, %v", other.Name, err))
			continue
		}
		found = append(found, &Mount{Target: other.Name, TargetOID: oid})
	}
	last := mt.Path[strings.LastIndex(mt.Path, "/")+1:]
	if i := slices.IndexFunc(found, func(f *Mount) bool { return strings.EqualFold(f.Target, last) }); i >= 0 {
		mt.Target, mt.TargetOID, mt.Why = found[i].Target, found[i].TargetOID, "the database has this name and this path"
		return
	}
	do := fmt.Sprintf("zope.conf says which database it is, in the <zodb_db NAME> whose mount-point is %s: give its Data.fs as NAME=PATH, and --mount %[1]s=NAME if it has another path there. --keep %[1]s if that database stays one of its own", mt.Path)
	switch len(found) {
	case 1:
		mt.Target, mt.TargetOID, mt.Why = found[0].Target, found[0].TargetOID, "the only source that has this path"
		return
	case 0:
		mt.Why = "no source has this path: " + strings.Join(reasons, "; ")
		if len(reasons) == 0 {
			mt.Why = "its database is no source"
		}
		m.plan.must(mt.Source, do, "object %d at %s is a mount point: %s", uint64(mt.OID), mt.Path, mt.Why)
	default:
		names := make([]string, len(found))
		for i, f := range found {
			names[i] = f.Target
		}
		mt.Why = "more than one source has this path: " + strings.Join(names, ", ")
		m.plan.must(mt.Source, fmt.Sprintf("--mount %s=NAME", mt.Path), "object %d at %s is a mount point: %s", uint64(mt.OID), mt.Path, mt.Why)
	}
}

// twin returns another mount point with the same path, which the path leads to.
func (m *maker) twin(mt *Mount) *Mount {
	for _, other := range m.plan.Mounts {
		if other != mt && other.Source == mt.Source && other.Path == mt.Path && other.reached {
			return other
		}
	}
	return nil
}

// follow returns what a path leads to in a source.
func (m *maker) follow(ctx context.Context, s *Source, root, path string) (tid.OID, error) {
	w := walker{ctx: ctx, db: s.lookup}
	return w.walk(root, path)
}

// asTold takes what the command line says of a mount point.
func (m *maker) asTold(ctx context.Context, mt *Mount, o MountOption) {
	to := m.source(o.Source)
	switch {
	case to == nil:
		mt.Why = fmt.Sprintf("--mount names %s, which is no source", o.Source)
		m.plan.must(mt.Source, fmt.Sprintf("give it as %s=PATH", o.Source), "object %d at %s is a mount point: %s", uint64(mt.OID), mt.Path, mt.Why)
		return
	case o.OID != 0:
		mt.Target, mt.TargetOID, mt.Why = to.Name, o.OID, "--mount"
		m.exists(ctx, mt, to)
		return
	case to.lookup == nil:
		mt.Why = fmt.Sprintf("%s could not be looked into", to.Name)
		m.plan.must(mt.Source, fmt.Sprintf("--mount %s=%s:OID. In the application, OID is int.from_bytes(app.unrestrictedTraverse(%[1]q).aq_base._p_oid, \"big\")", mt.Path, to.Name),
			"object %d at %s is a mount point of %s: which object it leads to is not known, since %s", uint64(mt.OID), mt.Path, to.Name, mt.Why)
		return
	}
	root, real := o.Root, o.Real
	if root == "" {
		root = applicationRoot
	}
	if real == "" {
		real = mt.Path
	}
	oid, err := m.follow(ctx, to, root, real)
	if err != nil {
		mt.Why = fmt.Sprintf("in %s, %v", to.Name, err)
		m.plan.must(mt.Source, fmt.Sprintf("--mount %s=%s:~ROOT/PATH with what zope.conf says; neofs refs and neofs cat show what a Data.fs has there", mt.Path, to.Name),
			"object %d at %s is a mount point: %s", uint64(mt.OID), mt.Path, mt.Why)
		return
	}
	mt.Target, mt.TargetOID, mt.Why = to.Name, oid, "--mount"
}

// verify compares what a configuration says with what the path leads to.
func (m *maker) verify(ctx context.Context, mt *Mount, to *Source) {
	if to.lookup == nil {
		return
	}
	oid, err := m.follow(ctx, to, applicationRoot, mt.Path)
	if err == nil && oid != mt.TargetOID {
		m.plan.note(to.Name, "make sure which one is meant", "the configuration says that the mount point %s leads to object %d; by its path it is %d", mt.Path, uint64(mt.TargetOID), uint64(oid))
	}
	m.exists(ctx, mt, to)
}

// exists verifies that what a mount point is said to lead to is there.
func (m *maker) exists(ctx context.Context, mt *Mount, to *Source) {
	if to.lookup == nil {
		return
	}
	if _, err := to.lookup.LoadBefore(ctx, mt.TargetOID, tid.Max); err != nil {
		m.plan.must(to.Name, "correct the number", "the mount point %s is to lead to object %d: %v", mt.Path, uint64(mt.TargetOID), err)
	}
}

// verifyConfigured looks at mount points of a configuration that are none in the database.
func (m *maker) verifyConfigured(s *Source) {
	if s.given.Section == nil || !s.Whole {
		return
	}
	for _, c := range s.given.Section.Mounts {
		if s.file.candidates[c.OID] == nil {
			m.plan.note(s.Name, "make sure that it is what applications go through",
				"object %d, which the configuration has as the mount point of [%s], is of no class that is known to be one", uint64(c.OID), c.Section)
		}
	}
}
