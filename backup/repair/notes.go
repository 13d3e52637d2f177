package repair

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// checkNotes looks for the notes of the repository and its keys. They are numbered, and cannot be written
// again under the same key: what is gone is copied, what was overwritten stays.
func (e *engine) checkNotes(ctx context.Context, p *Plan, d *draft) error {
	keys := []string{snapshot.MarkerKey}
	for _, s := range []store.Store{e.repo.Bare(), e.other()} {
		if s == nil {
			continue
		}
		for _, prefix := range []string{"keys/", "l/"} {
			for info, err := range s.List(ctx, prefix, "") {
				if err != nil {
					return err
				}
				keys = append(keys, info.Key)
			}
		}
	}
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		k, err := snapshot.ParseKey(key)
		if err != nil {
			continue
		}
		b, bad, err := e.note(ctx, e.repo.Bare(), key, k.Kind)
		if err != nil {
			return err
		}
		if bad == nil {
			continue
		}
		if k.Kind == snapshot.KindWrap {
			if err := e.wrap(ctx, p, d, k, bad); err != nil {
				return err
			}
			continue
		}
		s := Step{Key: key, Problem: problem(bad), Means: Left, Detail: "bring back an older version, or copy the repository to another place, with its notes"}
		if e.tampered(key) {
			s.Detail = "an older version is right and is what readers use; delete the newer one"
		}
		if from := e.other(); from != nil && errors.Is(bad, store.ErrNotFound) {
			var other error
			if b, other, err = e.note(ctx, from, key, k.Kind); err != nil {
				return err
			}
			if other == nil {
				s.Means, s.Detail = Copy, ""
				d.notes = append(d.notes, func(ctx context.Context) error { return e.putBytes(ctx, key, b, false) })
			}
		}
		p.step(s)
	}
	return nil
}

// other returns the store of the other copy, nil if there is none.
func (e *engine) other() store.Store {
	if e.o.From == nil {
		return nil
	}
	return e.o.From.Bare()
}

// note reads a note, and says what is wrong with it.
func (e *engine) note(ctx context.Context, s store.Store, key string, kind snapshot.Kind) (b []byte, bad, err error) {
	b, _, err = store.ReadAll(ctx, s, key, 64<<20)
	if errors.Is(err, store.ErrNotFound) {
		return nil, err, nil
	}
	if err != nil {
		return nil, nil, err
	}
	switch kind {
	case snapshot.KindMarker:
		bad = snapshot.Open(b, key, snapshot.ID{}, &snapshot.Marker{}, e.repo.Trusted)
	case snapshot.KindEpoch:
		bad = snapshot.Open(b, key, e.repo.Marker.ID, &snapshot.Epoch{}, e.repo.Trusted)
	case snapshot.KindLineage:
		bad = snapshot.Open(b, key, e.repo.Marker.ID, &snapshot.Lineage{}, e.repo.Trusted)
	case snapshot.KindWrap:
		k, err := snapshot.ParseKey(key)
		if err != nil || k.Wrap != 1 {
			return b, nil, nil // only identities tell
		}
		want, err := e.epoch(ctx, k.N)
		if err == nil && snapshot.Sum(b) != want.Wrap {
			bad = &snapshot.CorruptError{Name: key, Offset: -1, Err: fmt.Errorf("its SHA-256 is %v, the note of the epoch says %v", snapshot.Sum(b), want.Wrap)}
		} else if err != nil && !wrong(err) {
			return nil, nil, err
		}
	}
	return b, bad, nil
}

func (e *engine) epoch(ctx context.Context, kid int64) (*snapshot.Epoch, error) {
	key := snapshot.Key{Kind: snapshot.KindEpoch, N: kid}.String()
	b, _, err := store.ReadAll(ctx, e.repo.Store, key, 64<<20)
	if err != nil {
		return nil, err
	}
	n := &snapshot.Epoch{}
	return n, snapshot.Open(b, key, e.repo.Marker.ID, n, e.repo.Trusted)
}

// wrap finds the right bytes of the first wrap of an epoch's key, which get the next number.
func (e *engine) wrap(ctx context.Context, p *Plan, d *draft, k snapshot.Key, bad error) error {
	key := k.String()
	want, err := e.epoch(ctx, k.N)
	if wrong(err) {
		p.step(Step{Key: key, Problem: problem(bad), Means: Left, Detail: "the note of the epoch does not verify"})
		return nil
	}
	if err != nil {
		return err
	}
	s := Step{Key: key, Problem: problem(bad), Means: Left, Detail: "no right version of it was found; other wraps of the epoch open it as well, if there are any"}
	var b []byte
	right := func(got []byte, means Means) bool {
		if snapshot.Sum(got) != want.Wrap {
			return false
		}
		b, s.Means, s.Detail = got, means, "it gets the next number"
		return true
	}
	for v, err := range store.Versions(ctx, e.repo.Bare(), key) {
		if err != nil {
			break // there are none
		}
		if v.Key != key || v.Deleted || v.Version == "" || v.Size > 1<<20 {
			continue
		}
		got, err := e.version(ctx, v)
		if err != nil {
			return err
		}
		if right(got, Version) {
			break
		}
	}
	if from := e.other(); b == nil && from != nil {
		got, _, err := store.ReadAll(ctx, from, key, 1<<20)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		right(got, Copy)
	}
	if b != nil {
		next := int64(2)
		for info, err := range e.repo.Bare().List(ctx, "keys/", "") {
			if err != nil {
				return err
			}
			o, err := snapshot.ParseKey(info.Key)
			if err != nil || o.Kind != snapshot.KindWrap || o.N != k.N {
				continue
			}
			if next = max(next, o.Wrap+1); o.Wrap > 1 {
				again, _, err := store.ReadAll(ctx, e.repo.Bare(), info.Key, 1<<20)
				if err == nil && snapshot.Sum(again) == want.Wrap {
					return nil // it was repaired before
				}
			}
		}
		put := snapshot.Key{Kind: snapshot.KindWrap, N: k.N, Wrap: next}.String()
		d.notes = append(d.notes, func(ctx context.Context) error { return e.putBytes(ctx, put, b, false) })
	}
	p.step(s)
	return nil
}

func (e *engine) version(ctx context.Context, v store.Version) ([]byte, error) {
	body, _, err := store.GetVersion(ctx, e.repo.Bare(), v.Key, v.Version, 0, store.All)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// deletedTails finds tails after the last one that is there, which were deleted: in older versions, or in the other copy. They
// are created again as they were: nothing else may take their numbers. It returns the number of the last one.
func (e *engine) deletedTails(ctx context.Context, p *Plan, d *draft, s *backup.State) (int64, error) {
	for at := s.Chain(); ; {
		key := snapshot.TailKey(e.id, at.N+1)
		b, means, err := e.deletedTail(ctx, key, &at)
		if err != nil || b == nil {
			return at.N, err
		}
		t, err := snapshot.OpenTail(b, key, e.repo.Marker.ID, e.repo.Trusted)
		if err != nil {
			return at.N, err
		}
		p.step(Step{Key: key, After: t.After, Upto: t.Upto, Problem: key + ", which came after the last tail that is there, was deleted", Means: means})
		d.notes = append(d.notes, func(ctx context.Context) error {
			err := e.putBytes(ctx, key, b, true)
			if errors.Is(err, store.ErrExists) {
				return fmt.Errorf("%w: %s was created: plan it again", ErrChanged, key)
			}
			return err
		})
		at = t.Chain()
		p.Old, p.more = s.Head(), at.Head
	}
}

// deletedTail returns the object of the tail that goes on from a place, if that is known; nil if it is nowhere.
func (e *engine) deletedTail(ctx context.Context, key string, at *snapshot.Chain) ([]byte, Means, error) {
	right := func(b []byte) bool {
		t, err := snapshot.OpenTail(b, key, e.repo.Marker.ID, e.repo.Trusted)
		return err == nil && (at == nil || t.Follows(*at) == nil) && int64(len(b)) == t.NoteSize()+t.Bytes && (t.Bytes == 0 || snapshot.Sum(b[t.NoteSize():]) == t.SHA256)
	}
	for v, err := range store.Versions(ctx, e.repo.Bare(), key) {
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, store.ErrDenied) {
			break
		}
		if err != nil {
			return nil, "", err
		}
		if v.Key != key || v.Deleted || v.Version == "" {
			continue
		}
		b, err := e.version(ctx, v)
		if err != nil {
			return nil, "", err
		}
		if right(b) {
			return b, Version, nil
		}
	}
	if from := e.other(); from != nil {
		b, _, err := store.ReadAll(ctx, from, key, store.MaxObject)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, "", err
		}
		if right(b) {
			return b, Copy, nil
		}
	}
	return nil, "", nil
}
