package fsformat

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// ErrReplaced reports that a file is no longer the one that was read before, with
// more at its end: it was packed, restored or replaced.
var ErrReplaced = errors.New("the file was replaced or packed since it was opened")

// Follow opens the same file again, as long as it is now. It verifies that the
// transactions r has seen are still there; the error is [ErrReplaced] if not. If r
// has an index, the new reader gets it, completed, and r must not load any more. r
// stays open.
func (r *Reader) Follow(ctx context.Context) (*Reader, error) {
	tail, err := r.Tail(ctx)
	if err != nil {
		return nil, err
	}
	next, err := Open(r.name, r.opt)
	if err != nil {
		return nil, err
	}
	if err := next.continues(ctx, r, tail); err != nil {
		next.Close()
		return nil, err
	}
	return next, nil
}

func (r *Reader) continues(ctx context.Context, old *Reader, tail Tail) error {
	r.renumbered = slices.Clip(old.renumbered)
	if r.magic != old.magic && old.size > 0 || r.size < tail.End {
		return fmt.Errorf("%s: %w", r.name, ErrReplaced)
	}
	if tail.End > magicLen {
		was, ok, err := old.lastBefore(tail.End)
		if err != nil {
			return err
		}
		is, ok2, err := r.lastBefore(tail.End)
		if err != nil {
			return err
		}
		if !ok || !ok2 || was != is {
			return fmt.Errorf("%s: %w", r.name, ErrReplaced)
		}
	}
	// What there is to read is only what is new.
	pos := max(tail.End, magicLen)
	r.tailOnce.Do(func() {
		r.tail, r.tailErr = r.tailFromStart(ctx, pos, tail.LastTID)
	})
	if r.tailErr != nil {
		return r.tailErr
	}
	if old.index != nil {
		if err := r.extendIndex(ctx, old.index, nil, nil); err != nil {
			return err
		}
		r.index, old.index = old.index, nil
	}
	return nil
}
