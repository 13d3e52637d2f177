package master

import (
	"maps"
	"slices"
)

// disturb makes storages hang or go on, lets the master notice it, and restarts
// storages whose end it has not noticed.
func (w *world) disturb() {
	s := w.stores[w.r.IntN(len(w.stores))]
	for _, o := range w.stores { // a hang must not take up all of a history
		if o.link != nil && o.link.hung && w.r.IntN(2) == 0 {
			s = o
		}
	}
	if s.link == nil || s.link.closing {
		return
	}
	switch n := w.r.IntN(10); {
	case n < 2:
		s.link.hung = true
	case n < 4 && s.link.hung:
		w.step(Event{Kind: Silent, Conn: s.link.id, Silence: 8e9, Beats: w.r.IntN(3) > 0})
	case n < 8:
		s.link.hung = false
	default:
		// What it sent before is lost or comes later.
		if w.r.IntN(2) == 0 {
			s.link.toMaster = nil
		}
		s.link.hung, s.link.dead, s.link.toPeer = true, true, nil
		s.link.handle, s.link.lost = nil, nil
		s.link, s.working = nil, false
		s.start()
	}
}

// endProbes tells the master the outcomes of its probes.
func (w *world) endProbes(beats bool) {
	list := w.probed
	w.probed = nil
	for _, id := range list {
		if l := w.links[id]; l != nil {
			w.step(Event{Kind: Probed, Conn: id, Alive: !l.hung && !l.dead, Beats: beats})
		}
	}
}

// resume ends all hangs, and lets the master notice all deaths.
func (w *world) resume() {
	w.endProbes(true)
	for _, id := range slices.Sorted(maps.Keys(w.links)) {
		l := w.links[id]
		l.hung = false
		if l.dead {
			l.dead = false
			l.cut()
		}
	}
}
