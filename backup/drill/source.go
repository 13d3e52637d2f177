package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// sourceOpens is how long the source may take until it can be asked.
	sourceOpens = time.Minute
	// sourceSilent is how long it may give nothing.
	sourceSilent = 10 * time.Minute
)

var errSlow = errors.New("it does not answer")

// compareSource compares the history up to the moment with that of the source, if it can be reached.
// One that cannot is no failure: a drill is for the day when it is gone.
func (d *run) compareSource(ctx context.Context) error {
	if d.o.Source == nil {
		d.res.Source = "not compared"
		return nil
	}
	var err error
	for range 2 { // it may be packed meanwhile
		if err = d.against(ctx); !errors.Is(err, feed.ErrPacked) && !errors.Is(err, feed.ErrReplaced) {
			break
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		err = d.found(true)
		if err == nil {
			d.proof.Compared.Source = digest
		}
		return err
	case errors.Is(err, feed.ErrChanged):
		return fmt.Errorf("%w: the source: %w", restore.ErrDifferent, err)
	case errors.Is(err, snapshot.ErrCorrupt), errors.Is(err, backup.ErrIncomplete), errors.Is(err, backup.ErrKeys), errors.Is(err, restore.ErrDifferent):
		return err
	case d.res.Found > 0 && !errors.Is(err, feed.ErrPacked) && !errors.Is(err, feed.ErrReplaced):
		// What the source has shown before it was gone is different all the same.
		return errors.Join(d.found(true), err)
	}
	d.res.Findings, d.res.Found = nil, 0
	d.res.Source = fmt.Sprintf("not compared: %v", err)
	d.warn("the source was not compared: %v", err)
	return nil
}

// against compares with the source.
func (d *run) against(ctx context.Context) (err error) {
	d.res.Findings, d.res.Found = nil, 0
	opening, cancel := context.WithTimeoutCause(ctx, sourceOpens, errSlow)
	defer cancel()
	f, err := d.o.Source(opening)
	var last tid.TID
	if err == nil {
		defer func() {
			if closeErr := f.Close(); closeErr != nil {
				d.o.Log.Warn("closing the source", "err", closeErr) // all was read
			}
		}()
		last, _, err = f.Last(opening)
	}
	if opening.Err() != nil && ctx.Err() == nil {
		return errors.Join(errSlow, err)
	}
	if err != nil {
		return err
	}
	if last < d.at {
		return fmt.Errorf("%w: the source ends with %v, before %v: it was truncated or restored, or is another database", restore.ErrDifferent, last, d.at)
	}
	comparing, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	silent := time.AfterFunc(sourceSilent, func() { stop(errSlow) })
	defer silent.Stop()
	total := d.plan.Text
	d.progress(Source, 0, total)
	told := int64(0)
	o := verify.AgainstOptions{
		Repo: d.repo, Keys: d.keys, State: d.state, Source: verify.FromFeed(f), Packed: f.Packed, Collected: f.Source().Kind == feed.KindFile, UpTo: d.at,
		Fetch: backup.FetchOptions{Scratch: d.scratch.dir}, Report: d.report,
		Progress: func(_ tid.TID, _, _, bytes int64) {
			silent.Reset(sourceSilent)
			if bytes-told >= 4<<20 {
				told = bytes
				d.progress(Source, bytes, max(total, bytes))
			}
		},
	}
	if d.target != nil {
		o.Ours, o.How = d.target.db, d.target.how
	}
	sum, err := verify.Against(comparing, o)
	if cause := context.Cause(comparing); cause != nil && ctx.Err() == nil {
		return errors.Join(cause, err)
	}
	if err != nil {
		return err
	}
	d.progress(Source, total, total)
	d.res.Source = fmt.Sprintf("equal in %d transactions up to %v", sum.Txns, d.at)
	if sum.Explained > 0 {
		d.res.Source += fmt.Sprintf("; %d differences are explained by packs of the source", sum.Explained)
	}
	return nil
}
