package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// StoredProof is a proof as it is stored.
type StoredProof struct {
	*snapshot.Proof
	Key      string
	Modified time.Time // by the clock of the store
}

// Proofs returns the proofs of a lineage, the newest first by the clock of the store. Those
// that no trusted key signed, or that cannot be read, prove nothing: they are logged and left out.
func (r *Repository) Proofs(ctx context.Context, lineage snapshot.ID) ([]*StoredProof, error) {
	var list []*StoredProof
	for info, err := range r.Store.List(ctx, snapshot.Prefix(snapshot.KindProof, lineage), "") {
		if err != nil {
			return nil, err
		}
		if k, err := snapshot.ParseKey(info.Key); err != nil || k.Kind != snapshot.KindProof {
			continue
		}
		p := &snapshot.Proof{}
		err := r.note(ctx, info.Key, p)
		switch {
		case errors.Is(err, snapshot.ErrUntrusted), errors.Is(err, snapshot.ErrCorrupt):
			r.Log.Warn("a proof is ignored", "key", info.Key, "err", err)
			continue
		case errors.Is(err, store.ErrNotFound):
			continue
		case err != nil:
			return nil, err
		}
		list = append(list, &StoredProof{p, info.Key, info.Modified})
	}
	slices.SortStableFunc(list, func(a, b *StoredProof) int {
		return cmp.Or(b.Modified.Compare(a.Modified), cmp.Compare(b.Key, a.Key))
	})
	return list, nil
}

// Proven returns the newest proof of a lineage that says ok and is about what is stored now:
// its manifest is there, and what it proved is still in the chain. It returns nil if there is none.
func (r *Repository) Proven(ctx context.Context, lineage snapshot.ID) (*StoredProof, error) {
	list, err := r.Proofs(ctx, lineage)
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		if p.Result != snapshot.ResultOK {
			continue
		}
		err := r.stands(ctx, p.Proof)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, errProof) {
			return nil, err
		}
		r.Log.Warn("a proof does not count any more", "key", p.Key, "err", err)
	}
	return nil, nil
}

// errProof reports a proof that does not count.
var errProof = errors.New("proves nothing about what is stored")

// stands returns nil if the manifest of a proof is stored as it was.
func (r *Repository) stands(ctx context.Context, p *snapshot.Proof) error {
	key := snapshot.ManifestKey(p.Lineage, p.Seq)
	b, _, err := store.ReadAll(ctx, r.Store, key, maxNote)
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: its manifest %s is not there", errProof, key)
	}
	if err != nil {
		return err
	}
	if snapshot.Sum(b) != p.Manifest {
		return fmt.Errorf("%w: its manifest %s is not the one that was proved", errProof, key)
	}
	if _, err := snapshot.OpenManifest(b, key, r.Marker.ID, r.Trusted); err != nil {
		return fmt.Errorf("%w: its manifest: %w", errProof, err)
	}
	return nil
}
