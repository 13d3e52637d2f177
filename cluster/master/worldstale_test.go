package master

import (
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Databases of storages that are replaced by older copies, in the random histories.

// worldMark is what the disk of a storage has against older copies of it.
type worldMark struct {
	confirmed uint64
	noted     uint64 // only in memory
	restored  bool   // an older copy has taken its place
	reported  uint64 // version of the table in the last recovery
	heard     *Machine
}

func (k *worldMark) tableReceived(ptid uint64) {
	k.noted = 0
	if k.confirmed > ptid {
		k.confirmed = 0
	}
}

func (k *worldMark) confirm() {
	if k.noted > 0 {
		k.confirmed, k.noted = k.noted, 0
	}
}

// copies counts what is done with copies.
type copies struct {
	forced   bool // the present master was told to go on without something
	calm     bool // no more of them
	restored int
	excused  int
}

// worldCopy is a copy of the disk of a storage.
type worldCopy struct {
	nid       proto.NodeID
	table     parttab.Table
	voted     map[tid.TID]*worldVote
	data      map[int]map[tid.TID]tid.TID
	truncate  proto.Opt[tid.TID]
	confirmed uint64
}

// save makes a copy of the disk of a storage, which may be running.
func (s *worldStore) save() {
	if s.w.silent() || !s.table.PTID().OK {
		return
	}
	c := &worldCopy{nid: s.nid, table: *s.table.Clone(), voted: map[tid.TID]*worldVote{},
		data: map[int]map[tid.TID]tid.TID{}, truncate: s.truncate, confirmed: s.marked.confirmed}
	for ttid, v := range s.voted {
		c.voted[ttid] = &worldVote{slices.Clone(v.parts), v.tid}
	}
	for p, tids := range s.data {
		c.data[p] = maps.Clone(tids)
	}
	s.copies = append(s.copies, c)
}

// restore replaces the database of a storage that starts, now and then.
func (s *worldStore) restore() {
	if len(s.copies) == 0 || s.w.copies.calm || s.w.r.IntN(12) > 0 {
		return
	}
	c := s.copies[s.w.r.IntN(len(s.copies))]
	s.nid, s.table, s.truncate = c.nid, *c.table.Clone(), c.truncate
	s.marked = worldMark{confirmed: c.confirmed, restored: true}
	s.voted, s.data = map[tid.TID]*worldVote{}, map[int]map[tid.TID]tid.TID{}
	for ttid, v := range c.voted {
		s.voted[ttid] = &worldVote{slices.Clone(v.parts), v.tid}
	}
	for p, tids := range c.data {
		s.data[p] = maps.Clone(tids)
	}
	s.w.copies.restored++
}

// claim is what a storage says of its database when it comes.
func (s *worldStore) claim() map[string]proto.Value {
	if s.w.silent() {
		return nil
	}
	pack := func(t tid.TID) proto.Value { return binary.BigEndian.AppendUint64(nil, uint64(t)) }
	last, unfinished := []proto.Value{}, []proto.Value{}
	for p := range s.table.NP() {
		if s.table.Cell(p, s.nid).Readable() {
			t := pack(greatest(s.data[p]))
			last = append(last, []proto.Value{int64(p), t, t})
		}
	}
	for ttid, v := range s.voted {
		unfinished = append(unfinished, []proto.Value{pack(ttid), pack(v.tid)})
	}
	return map[string]proto.Value{"confirmed_ptid": int64(s.marked.confirmed), "last_tids": last, "unfinished": unfinished}
}

func greatest(tids map[tid.TID]tid.TID) (last tid.TID) {
	for t := range tids {
		last = max(last, t)
	}
	return last
}

// answerEnd digests the end of a partition. All of a transaction is in each of its
// partitions here, so that records and transactions are the same.
func (s *worldStore) answerEnd(e Effect) {
	digest := func(p int, from tid.TID) (count int, h proto.Hash, last tid.TID) {
		list := slices.Sorted(maps.Keys(s.data[p]))
		list = slices.DeleteFunc(list, func(t tid.TID) bool { return t < from })
		if len(list) > 0 {
			last = list[len(list)-1]
		}
		return len(list), sha1.Sum(fmt.Append(nil, list)), last
	}
	switch q := e.Packet.(type) {
	case *proto.AskCheckTIDRange:
		count, h, last := digest(q.Partition, q.Min)
		s.answer(e, &proto.AnswerCheckTIDRange{Count: count, Checksum: h, Last: last})
	case *proto.AskCheckSerialRange:
		count, h, last := digest(q.Partition, q.Min)
		s.answer(e, &proto.AnswerCheckSerialRange{Count: count, TIDChecksum: h, LastTID: last})
	}
}

// silent reports whether the storages are of another implementation, which says nothing
// of its databases. Nothing is replaced then.
func (w *world) silent() bool { return w.seed%4 == 0 }

// restartAll is a power cut, after which any database may be an older copy.
func (w *world) restartAll() {
	for _, s := range w.stores {
		s.kill()
	}
	w.restartMaster()
}

// checkServing is called whenever the operation begins: every copy that the table
// calls readable has all that clients were told is committed, or else it was lost with
// every copy of it and nothing that is left can tell.
func (w *world) checkServing() {
	known := uint64(0)
	for _, s := range w.stores {
		if w.store(s.nid) == s && s.marked.reported > 0 {
			known = max(known, s.marked.confirmed)
		}
	}
	for p, row := range w.m.table.Rows() {
		var has, lacks []*worldStore
		for t, parts := range w.acked {
			if !slices.Contains(parts, p) {
				continue
			}
			has, lacks = nil, nil
			// By something that is here, the master too if it has seen the commit.
			told := w.m.seen.last[p].tid == t
			if w.m.startup == startupWhole {
				// It waits for all that have readable cells, also if they come and go.
				for _, s := range w.stores {
					_, ok := s.data[p][t]
					told = told || ok && s.marked.heard == w.m && s.table.Cell(p, s.nid).Readable() && s.table.PTID().V >= w.m.rec.target
				}
			}
			for _, c := range row {
				s := w.store(c.ID)
				if s == nil || !c.State.Readable() {
					continue
				}
				if _, ok := s.data[p][t]; ok {
					has = append(has, s)
				} else {
					lacks = append(lacks, s)
					told = told || s.marked.reported < known
				}
			}
			switch {
			case lacks == nil:
			case has != nil:
				w.t.Errorf("seed %d: %v is readable on %v, but not on %v, in partition %d", w.seed, t, has[0].nid, lacks[0].nid, p)
			case told && !w.copies.forced:
				w.t.Errorf("seed %d: %v of partition %d has vanished in silence: %v came with table %d, but %d was confirmed",
					w.seed, t, p, lacks[0].nid, lacks[0].marked.reported, known)
			default:
				w.copies.excused++ // nothing that is here knows of it
				delete(w.acked, t)
			}
		}
	}
}

// describe shows the storages of a history that failed.
func (w *world) describe() string {
	text := fmt.Sprintf("master: %v, target %d, safe %d, confirmed %d, max %d, table %v\n", w.m.state, w.m.rec.target, w.m.safePTID, w.m.confirmedPTID, w.m.maxPTID, w.m.table.Rows())
	for _, s := range w.stores {
		text += fmt.Sprintf("  storage %d: %v table %v %v confirmed %d truncate %v restored %t, linked %t\n", s.number, s.nid, s.table.PTID(), s.table.Rows(),
			s.marked.confirmed, s.truncate, s.marked.restored, s.link != nil)
	}
	return text
}
