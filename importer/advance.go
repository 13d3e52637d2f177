package importer

import "github.com/neozodb/neo/cluster/tid"

// advance tells readers that everything of the sources up to t is in the native backend.
func (b *Backend) advance(t tid.TID) { b.done.Store(uint64(t)) }

// finish makes the native backend answer everything from now on.
func (b *Backend) finish() { b.own.Store(true) }
