package backendtest

import (
	"maps"
	"slices"
)

// Copy returns a copy of what is durable, as a backup of a database would have, which
// may be in use.
func (d *Memory) Copy() *Memory {
	d.m.Lock()
	defer d.m.Unlock()
	present := d.disk.clone()
	for _, f := range slices.Backward(d.undo) {
		f()
	}
	c := &Memory{Device: d.Device, disk: d.disk.clone()}
	// The maps themselves stay: what takes back the changes refers to them.
	d.disk.fill(present)
	return c
}

// Restore replaces a database that is not in use by a copy.
func (d *Memory) Restore(c *Memory) {
	d.m.Lock()
	defer d.m.Unlock()
	d.disk, d.undo = c.disk.clone(), nil
}

func (t *tables) clone() tables {
	c := newTables()
	c.fill(*t)
	for oid, list := range c.obj {
		c.obj[oid] = slices.Clone(list)
	}
	for ttid, list := range c.tobj {
		c.tobj[ttid] = slices.Clone(list)
	}
	return c
}

// fill makes the content of the tables that of o.
func (t *tables) fill(o tables) {
	t.id = o.id
	replace(t.config, o.config)
	replace(t.moment, o.moment)
	replace(t.cells, o.cells)
	replace(t.packs, o.packs)
	replace(t.trans, o.trans)
	replace(t.obj, o.obj)
	replace(t.data, o.data)
	replace(t.voted, o.voted)
	replace(t.tobj, o.tobj)
}

func replace[K comparable, V any](m, o map[K]V) {
	clear(m)
	maps.Copy(m, o)
}
