package backup

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// DoomList is a doom list as it is stored: what a keeper may delete a while after.
type DoomList struct {
	Key      string
	Modified time.Time // by the clock of the store
	Void     bool      // a keeper has cancelled it
}

// DoomLists returns the doom lists, the oldest first by the clock of the store. None of them is read, their
// voids are.
func (r *Repository) DoomLists(ctx context.Context) ([]*DoomList, error) {
	var list []*DoomList
	for info, err := range r.Store.List(ctx, snapshot.Prefix(snapshot.KindDoom, snapshot.ID{}), "") {
		if err != nil {
			return nil, err
		}
		k, err := snapshot.ParseKey(info.Key)
		if err != nil || k.Kind != snapshot.KindDoom {
			continue
		}
		l := &DoomList{Key: info.Key, Modified: info.Modified}
		if l.Void, err = r.Voided(ctx, l.Key); err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	slices.SortStableFunc(list, func(a, b *DoomList) int {
		return cmp.Or(a.Modified.Compare(b.Modified), cmp.Compare(a.Key, b.Key))
	})
	return list, nil
}

// Voided reports whether a keeper has cancelled a doom list. It does not ask a list of objects, which may be
// late. A void that no trusted key signed cancels nothing, and is logged.
func (r *Repository) Voided(ctx context.Context, key string) (bool, error) {
	v := &snapshot.Void{}
	err := r.note(ctx, key+".void", v)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case errors.Is(err, snapshot.ErrUntrusted), errors.Is(err, snapshot.ErrCorrupt):
		r.Log.Warn("a void of a doom list is ignored", "key", key+".void", "err", err)
		return false, nil
	}
	return false, err
}

// Doom reads a doom list.
func (r *Repository) Doom(ctx context.Context, key string) (*snapshot.Doom, error) {
	b, _, err := store.ReadAll(ctx, r.Store, key, maxNote)
	if err != nil {
		return nil, err
	}
	return snapshot.OpenDoom(b, key, r.Marker.ID, r.Trusted)
}

// Doomed returns the keys that are wanted and that a doom list names which is not void, each with the key
// of the list. Lists that were carried out count: another keeper may still be at it. The error is
// that of the first list that cannot be read, such as one that no trusted key signed.
func (r *Repository) Doomed(ctx context.Context, wanted func(key string) bool) (map[string]string, error) {
	lists, err := r.DoomLists(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, l := range lists {
		if l.Void {
			continue
		}
		d, err := r.Doom(ctx, l.Key)
		if errors.Is(err, store.ErrNotFound) {
			continue // carried out long ago, and deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		for _, o := range d.Objects {
			if wanted(o.Key) {
				found[o.Key] = l.Key
			}
		}
	}
	return found, nil
}
