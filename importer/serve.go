package importer

import (
	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// writing is what clients write, which shows that they are served.
type writing struct {
	backend.Writing // of the native backend
	served          *pace.Service
}

var _ backend.Writing = writing{}

// HoldData implements [backend.Writing].
func (w writing) HoldData(oid tid.OID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) (backend.DataID, error) {
	w.served.Seen()
	return w.Writing.HoldData(oid, d, dataSerial)
}

// Vote implements [backend.Writing].
func (w writing) Vote(ttid tid.TID, stores []backend.Store, meta *backend.Meta, pack *proto.PackRequest) error {
	w.served.Seen()
	return w.Writing.Vote(ttid, stores, meta, pack)
}

// Lock implements [backend.Writing].
func (w writing) Lock(ttid, final tid.TID, approvePack bool) error {
	w.served.Seen()
	return w.Writing.Lock(ttid, final, approvePack)
}

// CommitVotes implements [backend.Writing]. A client waits for it.
func (w writing) CommitVotes() error {
	w.served.Seen()
	defer w.served.Seen()
	return w.Writing.CommitVotes()
}

// serving notes that a client is served.
func (b *Backend) serving() {
	if b.served != nil {
		b.served.Seen()
	}
}
