package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"filippo.io/age"

	"github.com/neozodb/neo/backup/snapshot"
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

// Ahead begins to open the newest epoch, which is needed in most cases: a store may be far away. What goes
// wrong is told when the epoch is needed.
func (k *Keys) Ahead(ctx context.Context) {
	if len(k.identities) == 0 || !k.r.Encrypted() {
		return
	}
	go func() {
		keys, err := list(ctx, k.r.Store, snapshot.KindEpoch, snapshot.ID{})
		if err == nil && len(keys) > 0 {
			k.Epoch(ctx, snapshot.KID(keys[len(keys)-1].N))
		}
	}()
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
	// The note, the list and the first wrap, which mostly is the newest, at the same time.
	key := snapshot.Key{Kind: snapshot.KindEpoch, N: int64(kid)}.String()
	text := k.r.ahead(ctx, key)
	first := snapshot.Key{Kind: snapshot.KindWrap, N: int64(kid), Wrap: 1}
	wrap := k.r.ahead(ctx, first.String())
	keys, listErr := list(ctx, k.r.Store, snapshot.KindWrap, snapshot.ID{})
	note := &snapshot.Epoch{}
	if err := k.r.noteFrom(ctx, text, key, k.r.Marker.ID, note); err != nil {
		return nil, fmt.Errorf("epoch %v: %w", kid, err)
	}
	if len(k.identities) == 0 {
		return nil, fmt.Errorf("epoch %v: %w: no identity was given; it is encrypted to %s", kid, ErrKeys, strings.Join(note.Recipients, ", "))
	}
	if listErr != nil {
		return nil, listErr
	}
	var errs []error
	for i := len(keys) - 1; i >= 0; i-- { // the newest wrap first
		if keys[i].N != int64(kid) {
			continue
		}
		key := keys[i].String()
		var read *ahead
		if keys[i] == first {
			read = wrap
		}
		b, err := k.r.whole(ctx, read, key)
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
	err := errors.Join(errs...)
	if errors.Is(err, snapshot.ErrCorrupt) {
		return nil, fmt.Errorf("epoch %v: %w", kid, err)
	}
	later := ""
	if len(errs) > 1 {
		later = fmt.Sprintf(" at first, and %d times to others since", len(errs)-1)
	}
	return nil, fmt.Errorf("epoch %v: %w of those given; it is encrypted to %s%s", kid, ErrKeys, strings.Join(note.Recipients, ", "), later)
}
