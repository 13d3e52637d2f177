package keeper

import (
	"context"
	"fmt"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
)

// ForgetOptions say what [Keeper.Forget] does. The zero value only plans.
type ForgetOptions struct {
	Confirm bool
	Why     string // what the operator says
}

// ForgetReport is what a lineage leaves behind if it is forgotten.
type ForgetReport struct {
	K       int64       `json:"k"`
	Lineage snapshot.ID `json:"lineage"`
	Until   time.Time   `json:"until,omitzero"` // when the policy would let it go; zero: not known
	Goes    Count       `json:"goes"`
	Stays   Count       `json:"stays"` // what other lineages use of it
	Due     time.Time   `json:"due"`   // prune deletes it from then on
	Written []string    `json:"written,omitempty"`
}

// Forget lets an old lineage go before the policy does: a doom list names all of it, and prune carries that
// out after the grace, if it is right still. The error is an [ErrRefused] for the current lineage,
// one that a hold pins or the newest proof needs, and if no later lineage was proved.
func (k *Keeper) Forget(ctx context.Context, id snapshot.ID, o ForgetOptions) (*ForgetReport, error) {
	if o.Confirm {
		if _, err := k.signer(); err != nil {
			return nil, err
		}
	}
	v, err := k.look(ctx, PruneOptions{})
	if err != nil {
		return nil, err
	}
	l := v.lineage(id)
	if l == nil {
		return nil, fmt.Errorf("%w: no lineage %v has a note", ErrRefused, id)
	}
	if v.policies.Policy == nil {
		return nil, fmt.Errorf("%w: %s", ErrRefused, v.refused[0])
	}
	rep := &ForgetReport{K: l.note.K, Lineage: id, Until: l.until}
	already := l.forgotten
	// What would be if it were forgotten.
	l.forgotten = true
	if err := v.decide(); err != nil {
		return nil, err
	}
	switch {
	case l.kept:
		return rep, fmt.Errorf("%w: lineage %d stays: %s", ErrRefused, l.note.K, l.why)
	case len(v.refused) > 0:
		return rep, fmt.Errorf("%w: %s", ErrRefused, v.refused[0])
	case already:
		return rep, fmt.Errorf("%w: lineage %d is forgotten already, the next prune after the grace deletes it", ErrRefused, l.note.K)
	}
	why := forgotPrefix
	if o.Why != "" {
		why += ": " + o.Why
	}
	var w *doomWriter
	if o.Confirm {
		w = k.newDoom(v, nil, snapshot.MaxDoomed)
	}
	rep.Due = v.now.Add(v.grace())
	for d := range v.list.going() {
		if d.key.Lineage != id && (d.key.Kind != snapshot.KindLineage || d.key.N != l.note.K) {
			continue
		}
		rep.Goes.add(d.size)
		if w != nil {
			if err := w.add(ctx, d.key.String(), why); err != nil {
				return rep, err
			}
		}
	}
	for g, c := range v.list.groups {
		for o := range c.all() {
			if g.lineage == id && !o.reason.goes() {
				rep.Stays.add(o.size)
			}
		}
	}
	if w != nil {
		err = w.close(ctx)
		rep.Written = w.written
	}
	return rep, err
}
