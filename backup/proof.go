package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// StoredProof is a proof as it is stored.
type StoredProof struct {
	*snapshot.Proof
	Key      string
	Modified time.Time // by the clock of the store
}

// Age returns how old a proof is, by the clock of the store or by what it says itself: what is older.
// The one of a copied object may be new, the other is what the host of the drill took for the time.
func (p *StoredProof) Age(now time.Time) time.Duration {
	return max(now.Sub(p.Modified), now.Sub(p.Time))
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
		list = append(list, &StoredProof{&snapshot.Proof{}, info.Key, info.Modified})
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, p := range list {
		g.Go(func() error {
			err := r.note(gctx, p.Key, p.Proof)
			switch {
			case err == nil:
				return nil
			case errors.Is(err, snapshot.ErrUntrusted), errors.Is(err, snapshot.ErrCorrupt):
				r.Log.Warn("a proof is ignored", "key", p.Key, "err", err)
			case !errors.Is(err, store.ErrNotFound):
				return err
			}
			p.Proof = nil
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(p *StoredProof) bool { return p.Proof == nil })
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
	return r.ProvenBy(ctx, list)
}

// ProvenBy is Proven with what Proofs has returned.
func (r *Repository) ProvenBy(ctx context.Context, list []*StoredProof) (*StoredProof, error) {
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
