package snapshot

import (
	"errors"
	"slices"
	"sort"
)

// Damage is what of a segment cannot be read, although its directory can.
type Damage struct {
	Frames, Blocks int // of text and of the index that are damaged
	// Lost are the revisions whose lines are in damaged frames, as far as the index has
	// them, in its order. Those in damaged blocks are not known.
	Lost []Entry
	Err  error // of the first damaged frame or block, an ErrCorrupt; nil if there is none
}

// Damage reads all frames and index blocks, each by itself, and finds out which are
// damaged. At most limit revisions are in Lost. The error is about reading.
func (s *Reader) Damage(limit int) (*Damage, error) {
	d := &Damage{}
	note := func(err error) error {
		if !errors.Is(err, ErrCorrupt) {
			return err
		}
		if d.Err == nil {
			d.Err = err
		}
		return nil
	}
	bad := make([]bool, len(s.frames))
	var buf []byte
	for i := range s.frames {
		b, err := s.frameText(i, buf)
		if err == nil {
			buf = b
			continue
		}
		if err := note(err); err != nil {
			return nil, err
		}
		bad[i] = true
		d.Frames++
	}
	within := func(pos int64) int {
		return sort.Search(len(s.frames), func(i int) bool { return s.frames[i].pos > pos }) - 1
	}
	// The last record before a damaged frame may reach into it.
	before := make(map[int]Entry)
	for i := range s.blocks {
		list, err := s.Block(i)
		if err != nil {
			if err := note(err); err != nil {
				return nil, err
			}
			d.Blocks++
			continue
		}
		for _, e := range list {
			f := within(e.Pos)
			if f < 0 {
				continue
			}
			if bad[f] {
				if len(d.Lost) < limit {
					d.Lost = append(d.Lost, e)
				}
				continue
			}
			for n := f + 1; n < len(bad); n++ {
				if bad[n] {
					if old, ok := before[n]; !ok || old.Pos < e.Pos {
						before[n] = e
					}
					break
				}
			}
		}
	}
	for _, e := range before {
		if _, err := s.Load(e); err == nil {
			continue
		} else if !errors.Is(err, ErrCorrupt) {
			return nil, err
		}
		if len(d.Lost) < limit {
			d.Lost = append(d.Lost, e)
		}
	}
	slices.SortFunc(d.Lost, Entry.compare)
	return d, nil
}
