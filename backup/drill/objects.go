package drill

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/pickle"
)

// parallel is how many objects are loaded at once.
const parallel = 8

// maxReferences is how many references are looked up for each object of the sample, on average.
const maxReferences = 20

// compareObjects compares which objects there are, and of a sample of them the data, in what was
// restored and as a client of the repository gets them. It follows their references.
func (d *run) compareObjects(ctx context.Context) error {
	sample, err := d.sample(ctx)
	if err != nil {
		return err
	}
	d.progress(Objects, 0, int64(len(sample)))
	refs := make([][]tid.OID, len(sample))
	var done, untold atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, oid := range sample {
		g.Go(func() error {
			rev, err := d.same(gctx, oid)
			if err != nil {
				return err
			}
			if refs[i], err = references(rev.Data); err != nil {
				untold.Add(1) // an application may keep something else in records
			}
			d.tellObjects(done.Add(1), len(sample))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.res.Objects = int64(len(sample))
	if n := untold.Load(); n > 0 {
		d.warn("%d of %d objects are no pickles that can be read here: their references were not followed", n, len(sample))
	}
	if err := d.rootResolves(ctx); err != nil {
		return err
	}
	return d.follow(ctx, refs)
}

// tellObjects tells progress, from one goroutine at a time.
func (d *run) tellObjects(done int64, total int) {
	d.telling.Lock()
	defer d.telling.Unlock()
	d.progress(Objects, done, int64(total))
}

// sample compares the lists of objects, and returns some of them, each with the same
// probability, and the root.
func (d *run) sample(ctx context.Context) ([]tid.OID, error) {
	theirs := func() (tid.OID, error, bool) { return 0, nil, false }
	if d.target != nil {
		next, stop := iter.Pull2(d.target.db.OIDs(ctx, d.at, 0))
		defer stop()
		theirs = next
	}
	var sample []tid.OID
	n := 0
	for oid, err := range d.door.db.OIDs(ctx, d.at, 0) {
		if err != nil {
			return nil, err
		}
		if d.target != nil {
			switch got, err, more := theirs(); {
			case err != nil:
				return nil, err
			case !more || got > oid:
				return nil, fmt.Errorf("%w: object %v is in the repository, and was not restored", restore.ErrDifferent, oid)
			case got < oid:
				return nil, fmt.Errorf("%w: object %v was restored, and is not in the repository", restore.ErrDifferent, got)
			}
		}
		if n++; len(sample) < d.o.Sample {
			sample = append(sample, oid)
		} else if i := d.o.Rand.IntN(n); i < len(sample) {
			sample[i] = oid
		}
	}
	if got, err, more := theirs(); err != nil {
		return nil, err
	} else if more {
		return nil, fmt.Errorf("%w: object %v was restored, and is not in the repository", restore.ErrDifferent, got)
	}
	d.res.Existing = int64(n)
	slices.Sort(sample)
	if i, there := slices.BinarySearch(sample, rootOID); !there {
		sample = slices.Insert(sample, i, rootOID)
	}
	return sample, ctx.Err()
}

// same returns an object, which is the same in what was restored.
func (d *run) same(ctx context.Context, oid tid.OID) (txn.Revision, error) {
	rev, err := d.door.load(ctx, oid, d.at)
	if err != nil {
		return rev, fmt.Errorf("object %v, as a client of the repository gets it: %w", oid, err)
	}
	if d.target == nil {
		return rev, nil
	}
	got, err := d.target.db.LoadBefore(ctx, oid, d.at+1)
	switch {
	case absent(err):
		return rev, fmt.Errorf("%w: object %v does not exist where it was restored", restore.ErrDifferent, oid)
	case err != nil:
		return rev, fmt.Errorf("object %v, as it was restored: %w", oid, err)
	case got.Serial != rev.Serial:
		return rev, fmt.Errorf("%w: object %v is of transaction %v in the repository, and of %v where it was restored", restore.ErrDifferent, oid, rev.Serial, got.Serial)
	case !bytes.Equal(got.Data, rev.Data):
		return rev, fmt.Errorf("%w: object %v of transaction %v has other data where it was restored", restore.ErrDifferent, oid, rev.Serial)
	}
	return rev, nil
}

// references returns the objects that a record needs.
func references(record []byte) ([]tid.OID, error) {
	plain, _, err := pickle.Unwrap(record)
	if err != nil {
		return nil, err
	}
	var s pickle.Scanner
	list, err := s.References(plain)
	if err != nil {
		return nil, err
	}
	var oids []tid.OID
	for _, r := range list {
		if r.Kind == pickle.Strong && len(r.Database) == 0 {
			oids = append(oids, tid.OID(r.OID))
		}
	}
	return oids, nil
}

// rootResolves returns an error unless all that the root object refers to exists.
func (d *run) rootResolves(ctx context.Context) error {
	oids, err := references(d.root.Data)
	if err != nil {
		d.warn("the root object is no pickle that can be read here: %v", err)
		return nil
	}
	for _, oid := range oids {
		there, err := d.exists(ctx, oid)
		if err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("%w: the root object refers to object %v, which does not exist", ErrDamaged, oid)
		}
	}
	return nil
}

// exists reports whether there is an object.
func (d *run) exists(ctx context.Context, oid tid.OID) (bool, error) {
	if d.target != nil {
		_, err := d.target.db.LoadBefore(ctx, oid, d.at+1)
		if absent(err) {
			return false, nil
		}
		return err == nil, err
	}
	for next, err := range d.door.db.OIDs(ctx, d.at, oid) { // without its data
		return err == nil && next == oid, err
	}
	return false, ctx.Err()
}

// follow counts the references that lead nowhere. Databases have some: they are no fault of the backup.
func (d *run) follow(ctx context.Context, refs [][]tid.OID) error {
	unique := map[tid.OID]bool{}
	for _, list := range refs {
		for _, oid := range list {
			unique[oid] = true
		}
	}
	oids := slices.Sorted(maps.Keys(unique))
	if limit := maxReferences * d.o.Sample; len(oids) > limit {
		d.o.Rand.Shuffle(len(oids), func(i, j int) { oids[i], oids[j] = oids[j], oids[i] })
		oids = oids[:limit]
	}
	var dangling atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, oid := range oids {
		g.Go(func() error {
			there, err := d.exists(gctx, oid)
			if err == nil && !there {
				dangling.Add(1)
				d.o.Log.Info("a reference leads to no object", "oid", oid)
			}
			return err
		})
	}
	err := g.Wait()
	d.res.References, d.res.Dangling = int64(len(oids)), dangling.Load()
	return err
}
