package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"filippo.io/age"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// Keys open what a repository has encrypted. They are safe for concurrent use.
type Keys struct {
	r          *Repository
	identities []age.Identity

	mu     sync.Mutex
	opened map[snapshot.KID]snapshot.Identity
}

// Unlock returns the keys that identities of operators give. Nothing is read before an
// epoch is needed.
func (r *Repository) Unlock(identities ...age.Identity) *Keys {
	return &Keys{r: r, identities: identities, opened: map[snapshot.KID]snapshot.Identity{}}
}

// Epoch returns the identity of an epoch. The error is an [ErrKeys] that names the
// recipients to which it is encrypted if no identity opens it.
func (k *Keys) Epoch(ctx context.Context, kid snapshot.KID) (snapshot.Identity, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if id := k.opened[kid]; id != nil {
		return id, nil
	}
	id, err := k.open(ctx, kid)
	if err == nil {
		k.opened[kid] = id
	}
	return id, err
}

func (k *Keys) open(ctx context.Context, kid snapshot.KID) (snapshot.Identity, error) {
	note := &snapshot.Epoch{}
	if err := k.r.note(ctx, snapshot.Key{Kind: snapshot.KindEpoch, N: int64(kid)}.String(), note); err != nil {
		return nil, fmt.Errorf("epoch %v: %w", kid, err)
	}
	if len(k.identities) == 0 {
		return nil, fmt.Errorf("epoch %v: %w: no identity was given; it is encrypted to %s", kid, ErrKeys, strings.Join(note.Recipients, ", "))
	}
	keys, err := list(ctx, k.r.Store, snapshot.KindWrap, snapshot.ID{})
	if err != nil {
		return nil, err
	}
	var errs []error
	for i := len(keys) - 1; i >= 0; i-- { // the newest wrap first
		if keys[i].N != int64(kid) {
			continue
		}
		key := keys[i].String()
		b, _, err := store.ReadAll(ctx, k.r.Store, key, maxNote)
		if err != nil {
			return nil, err
		}
		// A wrap that was put there by another contains no identity of this recipient.
		id, err := snapshot.Unwrap(b, key, note.Recipient, k.identities...)
		if err == nil {
			return id, nil
		}
		errs = append(errs, err)
	}
	// Wraps may have been overwritten, or deleted: the right one is known by the recipient.
	first := snapshot.Key{Kind: snapshot.KindWrap, N: int64(kid), Wrap: 1}
	for _, w := range append(keys, first) {
		if w.N != int64(kid) {
			continue
		}
		var id snapshot.Identity
		cause := &snapshot.CorruptError{Name: w.String(), Offset: -1, Err: errors.New("no identity that was given opens it")}
		found, err := k.r.rescueBytes(ctx, w.String(), cause, maxNote, func(b []byte) bool {
			got, err := snapshot.Unwrap(b, w.String(), note.Recipient, k.identities...)
			if err == nil {
				id = got
			}
			return err == nil
		})
		if err != nil {
			return nil, err
		}
		if found {
			return id, nil
		}
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("epoch %v: %w: its key keys/%v.0001", kid, ErrIncomplete, kid)
	}
	err = errors.Join(errs...)
	if errors.Is(err, snapshot.ErrCorrupt) {
		return nil, fmt.Errorf("epoch %v: %w", kid, err)
	}
	return nil, fmt.Errorf("epoch %v: %w of those given; it is encrypted to %s", kid, ErrKeys, strings.Join(note.Recipients, ", "))
}
