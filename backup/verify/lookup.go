package verify

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

// lookup finds revisions in the segments of a state. It is not for concurrent use.
type lookup struct {
	ctx   context.Context
	repo  *backup.Repository
	keys  *backup.Keys
	parts []*backup.Part

	open map[int]*snapshot.Reader
	used []int // of open, the last one used at the end
}

// maxOpen is how many segments are open at the same time.
const maxOpen = 16

// at returns the parts in which a transaction can be: several if it is cut.
func (l *lookup) at(t tid.TID) (from, to int) {
	from = sort.Search(len(l.parts), func(i int) bool { _, end := l.parts[i].Range(); return end >= t })
	for to = from; to < len(l.parts); to++ {
		if after, _ := l.parts[to].Range(); after >= t && (to == from || after != t) {
			break
		}
	}
	return from, to
}

// reader opens a part for random access.
func (l *lookup) reader(i int) (*snapshot.Reader, error) {
	if l.open == nil {
		l.open = map[int]*snapshot.Reader{}
	}
	r := l.open[i]
	if r == nil {
		p := l.parts[i]
		if p.Gap != nil {
			return nil, fmt.Errorf("%v to %v: %w", p.Gap.After, p.Gap.Upto, backup.ErrIncomplete)
		}
		var err error
		if r, err = l.repo.OpenPart(l.ctx, l.keys, p); err != nil {
			return nil, err
		}
		if len(l.used) == maxOpen {
			delete(l.open, l.used[0])
			l.used = l.used[1:]
		}
		l.open[i] = r
	} else {
		for j, u := range l.used {
			if u == i {
				l.used = append(l.used[:j], l.used[j+1:]...)
				break
			}
		}
	}
	l.used = append(l.used, i)
	return r, nil
}

// find returns the revision that a transaction made of an object. The error is a
// [snapshot.ErrNotFound] if there is none.
func (l *lookup) find(oid tid.OID, t tid.TID) (*snapshot.Reader, snapshot.Entry, error) {
	from, to := l.at(t)
	for i := to - 1; i >= from; i-- {
		r, err := l.reader(i)
		if err != nil {
			return nil, snapshot.Entry{}, err
		}
		e, err := r.Find(oid, t+1)
		if err == nil && e.TID == t {
			return r, e, nil
		}
		if err != nil && !errors.Is(err, snapshot.ErrNotFound) {
			return nil, e, err
		}
	}
	return nil, snapshot.Entry{}, fmt.Errorf("object %v in transaction %v: %w", oid, t, snapshot.ErrNotFound)
}

// last returns the last revision of an object up to a TID, Zero if there is none, and whether it
// has data.
func (l *lookup) last(oid tid.OID, at tid.TID) (t tid.TID, exists bool, err error) {
	_, to := l.at(at)
	for i := min(to, len(l.parts)) - 1; i >= 0; i-- {
		r, err := l.reader(i)
		if err != nil {
			return 0, false, err
		}
		e, err := r.Find(oid, at+1)
		if err == nil {
			return e.TID, e.Kind != snapshot.NoData, nil
		}
		if !errors.Is(err, snapshot.ErrNotFound) {
			return 0, false, err
		}
	}
	return 0, false, nil
}

// load returns the data of a revision, nil if it has none.
func (l *lookup) load(oid tid.OID, t tid.TID) ([]byte, error) {
	for {
		r, e, err := l.find(oid, t)
		if err != nil {
			return nil, err
		}
		rec, err := r.Load(e)
		switch {
		case err != nil:
			return nil, err
		case rec.Kind == snapshot.NoData:
			return nil, nil
		case rec.Kind == snapshot.HasData && rec.Data == nil:
			return []byte{}, nil
		case rec.Kind == snapshot.HasData:
			return rec.Data, nil
		case rec.DataTID >= t:
			return nil, fmt.Errorf("object %v in transaction %v: a copy of %v, which is not earlier", oid, t, rec.DataTID)
		}
		t = rec.DataTID
	}
}

// allParts returns the parts of a state. What cannot be known, since a catalog page or a tail
// cannot be read, is told to bad and is a gap with the note of [unknown].
func allParts(ctx context.Context, repo *backup.Repository, s *backup.State, bad func(key string, after, upto tid.TID, err error) error) ([]*backup.Part, error) {
	var list []*backup.Part
	add := func(key string, after, upto tid.TID) error {
		for p, err := range repo.Parts(ctx, s, after, upto) {
			if err != nil {
				list = append(list, &backup.Part{Gap: &snapshot.Gap{Gap: true, After: after, Upto: upto, Note: unknown}})
				return bad(key, after, upto, err)
			}
			list = append(list, p)
		}
		return ctx.Err()
	}
	for _, i := range s.Manifest.Items {
		after, upto := i.Range()
		key := ""
		if i.Page != nil {
			key = i.Page.Key
		}
		if err := add(key, after, upto); err != nil {
			return nil, err
		}
	}
	end := s.Manifest.Head
	for _, t := range s.Tails {
		if t.After > end { // tails between are missing
			list = append(list, &backup.Part{Gap: &snapshot.Gap{Gap: true, After: end, Upto: t.After, Note: unknown}})
		}
		if end = t.Upto; t.Heartbeat() {
			continue
		}
		if err := add(t.Key, t.After, t.Upto); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// withLater returns a state with the tails behind a break of their chain as well, as far as
// they can be read: a check says what is wrong with the others.
func withLater(ctx context.Context, repo *backup.Repository, s *backup.State) (*backup.State, error) {
	all := *s
	at := s.Chain()
	for info, err := range repo.Store.List(ctx, snapshot.Prefix(snapshot.KindTail, s.Lineage), snapshot.TailKey(s.Lineage, at.N+1)) {
		if err != nil {
			return nil, err
		}
		k, err := snapshot.ParseKey(info.Key)
		if err != nil || k.Kind != snapshot.KindTail {
			continue
		}
		t, err := repo.Tail(ctx, s.Lineage, k.N)
		if err == nil && t.After >= at.Head {
			all.Tails = append(all.Tails[:len(all.Tails):len(all.Tails)], t)
			at = t.Chain()
		} else if err != nil {
			if _, ok := kindOf(err); !ok {
				return nil, err
			}
		}
	}
	return &all, ctx.Err()
}

// unknown is the note of a gap that is none of the repository.
const unknown = "what is in it cannot be known"
