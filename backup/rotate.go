package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"filippo.io/age"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// EpochUse is an epoch and what a repository has of it.
type EpochUse struct {
	*snapshot.Epoch
	Wraps    []int64 // numbers of the wraps of its key that are there, ascending
	Segments int64   // of all lineages that are encrypted to it
	Stored   int64   // bytes of these
}

// EpochUses returns all epochs, ascending: new segments are encrypted to the last one. It reads the notes
// and pages of all lineages.
func (r *Repository) EpochUses(ctx context.Context) ([]*EpochUse, error) {
	epochs, err := r.Epochs(ctx)
	if err != nil {
		return nil, err
	}
	var list []*EpochUse
	byID := map[snapshot.KID]*EpochUse{}
	for _, e := range epochs {
		u := &EpochUse{Epoch: e}
		list = append(list, u)
		byID[e.KID] = u
	}
	wraps, err := r.wraps(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range wraps {
		if u := byID[snapshot.KID(k.N)]; u != nil {
			u.Wraps = append(u.Wraps, k.Wrap)
		}
	}
	lineages, err := r.Lineages(ctx)
	if err != nil {
		return nil, err
	}
	counted := map[string]bool{} // a fork uses segments of its parent
	for _, l := range lineages {
		s, err := r.State(ctx, l.Lineage, nil)
		if _, broken := errors.AsType[*BrokenError](err); err != nil && !broken {
			return nil, err
		}
		for p, err := range r.Parts(ctx, s, 0, s.Head()) {
			if err != nil {
				return nil, err
			}
			if p.Segment == nil || p.Segment.KID == 0 || counted[p.Segment.Key] {
				continue
			}
			counted[p.Segment.Key] = true
			u := byID[p.Segment.KID]
			if u == nil {
				return nil, fmt.Errorf("epoch %v of %s: %w: its note", p.Segment.KID, p.Segment.Key, ErrIncomplete)
			}
			u.Segments++
			u.Stored += p.Segment.Bytes
		}
	}
	return list, nil
}

// wraps returns the wraps of the keys of all epochs, ascending.
func (r *Repository) wraps(ctx context.Context) ([]snapshot.Key, error) {
	return list(ctx, r.Store, snapshot.KindWrap, snapshot.ID{})
}

// Rotation says for whom the keys of epochs are to be encrypted.
type Rotation struct {
	Recipients []snapshot.Recipient
	// Test are identities of some of the recipients: each has to open what is made for them. With
	// none, nothing is tried.
	Test   []age.Identity
	Retain store.Retention // of what is stored
}

// ErrTest reports an identity that does not open what was encrypted to its recipient, or to others.
var ErrTest = errors.New("the test identity does not open it")

// Rotate encrypts the key of an epoch to other recipients as well, and returns the key of the object with
// it. Data stay as they are, and so do the wraps that are there. If the newest wrap is for
// these recipients already, as far as can be known, nothing is stored and the key is empty.
func (k *Keys) Rotate(ctx context.Context, kid snapshot.KID, o Rotation) (string, error) {
	r := k.r
	id, err := k.Epoch(ctx, kid)
	if err != nil {
		return "", err
	}
	note := &snapshot.Epoch{}
	if err := r.note(ctx, snapshot.Key{Kind: snapshot.KindEpoch, N: int64(kid)}.String(), note); err != nil {
		return "", fmt.Errorf("epoch %v: %w", kid, err)
	}
	next := snapshot.Key{Kind: snapshot.KindWrap, N: int64(kid), Wrap: 1}
	wraps, err := r.wraps(ctx)
	if err != nil {
		return "", err
	}
	wraps = slices.DeleteFunc(wraps, func(w snapshot.Key) bool { return w.N != int64(kid) })
	if n := len(wraps); n > 0 {
		done, err := r.rotated(ctx, note, wraps[n-1], o)
		if err != nil || done {
			return "", err
		}
		next.Wrap = wraps[n-1].Wrap + 1
	}
	b, err := snapshot.Wrap(id, o.Recipients)
	if err != nil {
		return "", err
	}
	// Before anything is stored.
	if err := opens(b, next.String(), note, o.Test); err != nil {
		return "", err
	}
	for ; ; next.Wrap++ {
		err := r.Store.Put(ctx, next.String(), bytes.NewReader(b), int64(len(b)), store.PutOptions{Create: true, SHA256: snapshot.Sum(b), Retain: o.Retain})
		if errors.Is(err, store.ErrExists) {
			continue // of another rotation
		}
		if err != nil {
			return "", err
		}
		break
	}
	back, _, err := store.ReadAll(ctx, r.Store, next.String(), maxNote)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(back, b) {
		return "", &snapshot.CorruptError{Name: next.String(), Offset: -1, Err: errors.New("it is not what was just stored")}
	}
	return next.String(), opens(back, next.String(), note, o.Test)
}

// opens makes sure that each identity opens a wrap.
func opens(b []byte, key string, note *snapshot.Epoch, test []age.Identity) error {
	for _, id := range test {
		if _, err := snapshot.Unwrap(b, key, note.Recipient, id); err != nil {
			return fmt.Errorf("epoch %v: %w: %w", note.KID, ErrTest, err)
		}
	}
	return nil
}

// rotated reports whether a wrap is for the recipients already. Recipients do not stand in it: it has as many, and
// the test identities open it.
func (r *Repository) rotated(ctx context.Context, note *snapshot.Epoch, wrap snapshot.Key, o Rotation) (bool, error) {
	if wrap.Wrap == 1 && SameRecipients(note, o.Recipients) {
		return true, nil
	}
	if len(o.Test) == 0 || wrap.Wrap == 1 {
		return false, nil
	}
	b, _, err := store.ReadAll(ctx, r.Store, wrap.String(), maxNote)
	if err != nil {
		return false, err
	}
	header, err := age.ExtractHeader(bytes.NewReader(b))
	if err != nil {
		return false, nil // it is none
	}
	return bytes.Count(header, []byte("\n-> ")) == len(o.Recipients) && opens(b, wrap.String(), note, o.Test) == nil, nil
}
