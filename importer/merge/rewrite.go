package merge

import (
	"bytes"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat/pickle"
)

// A rewriter gives records the merged numbers. It is used by one goroutine, and is the
// [pickle.Mapping] of the record that is rewritten.
type rewriter struct {
	pickle pickle.Rewriter
	d      *Database
	s      *Source // of the record
	notes  *Notes  // or nil
}

func (d *Database) rewriter(notes *Notes) *rewriter {
	r := d.pool.Get().(*rewriter)
	r.notes = notes
	return r
}

func (d *Database) release(r *rewriter) {
	r.s, r.notes = nil, nil
	d.pool.Put(r)
}

// rewrite returns the record itself, or what is valid until the next call. A record
// of no bytes, or none at all, has no references.
func (r *rewriter) rewrite(s *Source, own tid.OID, t tid.TID, data []byte) ([]byte, error) {
	if len(data) == 0 {
		return data, nil
	}
	r.s, r.pickle.Python3 = s, s.Python3
	out, err := r.pickle.Rewrite(data, r)
	if err != nil {
		return nil, &RecordError{Source: s.Name, OID: own, Merged: own + s.Shift, TID: t, Err: err}
	}
	return out, nil
}

// rewritten is rewrite for a record that the caller keeps.
func (d *Database) rewritten(s *Source, own tid.OID, t tid.TID, data []byte) ([]byte, error) {
	if d.plain || len(data) == 0 {
		return data, nil
	}
	r := d.rewriter(nil)
	defer d.release(r)
	out, err := r.rewrite(s, own, t, data)
	if err != nil || &out[0] == &data[0] {
		return out, err
	}
	return bytes.Clone(out), nil
}

// Local implements [pickle.Mapping].
func (r *rewriter) Local(oid uint64) (n uint64, mount bool) { return r.reference(r.s, tid.OID(oid)) }

// Foreign implements [pickle.Mapping].
func (r *rewriter) Foreign(database string, oid uint64) (n uint64, mount, ok bool) {
	i, ok := r.d.named[database]
	if !ok {
		r.notes.foreign(database)
		return 0, false, false
	}
	n, mount = r.reference(&r.d.sources[i], tid.OID(oid))
	return n, mount, true
}

// reference returns what a reference to an object of a source becomes.
func (r *rewriter) reference(s *Source, own tid.OID) (n uint64, mount bool) {
	if to, ok := s.Mapping[own]; ok {
		return uint64(to), true
	}
	if own >= s.Next {
		if r.notes != nil {
			r.notes.Dangling++
		}
		return uint64(danglingBase + (own+s.Shift)%(tid.MaxOID-danglingBase)), false
	}
	return uint64(own + s.Shift), false
}
