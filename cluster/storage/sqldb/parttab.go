package sqldb

import (
	"fmt"
	"maps"
	"strconv"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// loadLayout reads which partitions are here. The caller holds w.
func (db *DB) loadLayout() error {
	l := &layout{}
	m, err := readConfig(db.conn)
	if err != nil {
		return err
	}
	cfg, err := parseConfig(m)
	if err != nil {
		return fmt.Errorf("database %s: %w", db.d.Name(), err)
	}
	l.id = cfg.ID
	last := int64(-1)
	if err := db.conn.Each("SELECT MAX(`partition`) FROM pt", func(r *Row) error {
		if !r.Null(0) {
			last = r.Int(0)
		}
		return nil
	}); err != nil {
		return err
	}
	if last > int64(db.d.MaxPartition()) {
		return fmt.Errorf("database %s: partition %d is beyond %d", db.d.Name(), last, db.d.MaxPartition())
	}
	l.np = int(last) + 1
	l.readable = make([]bool, l.np)
	l.assigned = make([]bool, l.np)
	l.replicated = make([]bool, l.np)
	if l.id != 0 {
		if err := db.conn.Each("SELECT `partition`, tid FROM pt WHERE nid = ?", func(r *Row) error {
			p := r.Int(0)
			if p < 0 {
				return fmt.Errorf("partition %d", p)
			}
			l.assigned[p] = true
			l.readable[p] = cellState(r.Int(1)).Readable()
			return nil
		}, int64(l.id)); err != nil {
			return err
		}
	}
	if old := db.layout.Swap(l); old != nil && old.np != l.np {
		db.m.Lock()
		db.top = map[int]greatest{}
		db.m.Unlock()
	}
	return nil
}

// cellState returns the state in column pt.tid.
func cellState(v int64) proto.CellState {
	if v >= 0 {
		return proto.OutOfDate
	}
	return proto.CellState(min(-v, int64(proto.Discarded)))
}

// Cells implements [backend.Keeping].
func (db *DB) Cells() ([]backend.Cell, error) {
	var cells []backend.Cell
	err := db.readMain(func(c *Conn) error {
		cells = nil
		return c.Each("SELECT `partition`, nid, tid FROM pt ORDER BY `partition`, nid", func(r *Row) error {
			v := r.Int(2)
			cells = append(cells, backend.Cell{
				Partition: int(r.Int(0)), ID: proto.NodeID(r.Int(1)), State: cellState(v), TID: tid.TID(max(v, 0)),
			})
			return nil
		})
	})
	return cells, err
}

type cellKey struct {
	partition int
	id        proto.NodeID
}

type cellRow struct {
	tid  int64
	pack proto.Opt[tid.TID]
}

func readCells(c *Conn) (map[cellKey]cellRow, error) {
	rows := map[cellKey]cellRow{}
	err := c.Each("SELECT `partition`, nid, tid, pack FROM pt", func(r *Row) error {
		rows[cellKey{int(r.Int(0)), proto.NodeID(r.Int(1))}] =
			cellRow{r.Int(2), proto.Opt[tid.TID]{V: tid.TID(r.Int(3)), OK: !r.Null(3)}}
		return nil
	})
	return rows, err
}

// ChangePartitionTable implements [backend.Keeping].
func (db *DB) ChangePartitionTable(ptid uint64, replicas int, cells []proto.CellChange, reset bool, lastPack tid.TID) error {
	return db.write(func(c *Conn) error {
		me := db.layout.Load().id
		old, err := readCells(c)
		if err != nil {
			return err
		}
		m, err := readConfig(c)
		if err != nil {
			return err
		}
		cfg, err := parseConfig(m)
		if err != nil {
			return err
		}
		now := map[cellKey]cellRow{}
		if !reset {
			now = maps.Clone(old)
		}
		for _, cell := range cells {
			if cell.Partition < 0 || cell.Partition > db.d.MaxPartition() {
				return fmt.Errorf("database %s: cannot hold partition %d: the greatest is %d", db.d.Name(), cell.Partition, db.d.MaxPartition())
			}
			k := cellKey{cell.Partition, cell.ID}
			mine := cell.ID == me
			if cell.State == proto.Discarded {
				delete(now, k)
				if mine {
					db.drop[cell.Partition] = true
				}
				continue
			}
			row, known := old[k]
			if !known {
				row.pack = proto.Opt[tid.TID]{OK: mine}
				if mine && !cell.State.Readable() {
					row.pack.V = lastPack
				}
			}
			switch {
			case !mine || cell.State != proto.OutOfDate:
				row.tid = -int64(cell.State)
			case !known:
				row.tid = 0
			case row.tid >= 0: // stays as complete as it was
			case cellState(row.tid).Readable() && cfg.BackupTID.OK:
				row.tid = int64(cfg.BackupTID.V)
			case cellState(row.tid).Readable():
				trans, obj, _, _, err := maxima(c, cell.Partition)
				if err != nil {
					return err
				}
				least, err := leastVoted(c, cell.Partition)
				if err != nil {
					return err
				}
				complete := max(trans.V, obj.V)
				if cfg.TruncateTID.OK {
					// It may have been in backup mode until the truncation was
					// ordered: transactions come before records, and the last
					// records perhaps in part.
					complete = max(min(trans.V, obj.V), 1) - 1
				}
				row.tid = int64(min(complete, max(least, 1)-1))
			default:
				row.tid = 0
			}
			now[k] = row
		}
		if err := writeCells(c, old, now); err != nil {
			return err
		}
		np := 0
		for k := range now {
			np = max(np, k.partition+1)
		}
		for p := 0; reset && p < np; p++ {
			db.drop[p] = true
		}
		for p := range db.drop {
			if _, ok := now[cellKey{p, me}]; ok || p >= np {
				delete(db.drop, p)
			}
		}
		if err := setConfig(c, keyPTID, proto.Some(strconv.FormatUint(ptid, 10))); err != nil {
			return err
		}
		if err := setConfig(c, keyReplicas, proto.Some(strconv.Itoa(replicas))); err != nil {
			return err
		}
		return db.loadLayout()
	})
}

// leastVoted returns the least TTID of what a partition has in the temporary tables,
// Invalid if there is nothing. A cell cannot be known complete from there on:
// transactions that follow may have been validated, while this one will be dropped.
func leastVoted(c *Conn, p int) (tid.TID, error) {
	least := tid.Invalid
	for _, q := range []string{
		"SELECT MIN(ttid) FROM ttrans WHERE `partition` = ?",
		"SELECT MIN(tid) FROM tobj WHERE `partition` = ?",
	} {
		err := c.Each(q, func(r *Row) error {
			if !r.Null(0) {
				least = min(least, tid.TID(r.Int(0)))
			}
			return nil
		}, int64(p))
		if err != nil {
			return 0, err
		}
	}
	return least, nil
}

// writeCells writes the rows that differ.
func writeCells(c *Conn, old, now map[cellKey]cellRow) error {
	for k := range old {
		if _, ok := now[k]; !ok {
			if _, err := c.Exec("DELETE FROM pt WHERE `partition` = ? AND nid = ?", int64(k.partition), int64(k.id)); err != nil {
				return err
			}
		}
	}
	for k, row := range now {
		before, ok := old[k]
		var err error
		switch {
		case !ok:
			var pack any
			if row.pack.OK {
				pack = int64(row.pack.V)
			}
			_, err = c.Exec("INSERT INTO pt (`partition`, nid, tid, pack) VALUES (?,?,?,?)", int64(k.partition), int64(k.id), row.tid, pack)
		case before.tid != row.tid:
			_, err = c.Exec("UPDATE pt SET tid = ? WHERE `partition` = ? AND nid = ?", row.tid, int64(k.partition), int64(k.id))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SetCellTID implements [backend.Keeping].
func (db *DB) SetCellTID(partition int, t tid.TID) error {
	return db.write(func(c *Conn) error {
		_, err := c.Exec("UPDATE pt SET tid = ? WHERE `partition` = ? AND nid = ? AND tid >= 0", int64(t), int64(partition), int64(db.layout.Load().id))
		return err
	})
}

// SetReplicated implements [backend.Keeping].
func (db *DB) SetReplicated(partition int) {
	db.w.Lock()
	defer db.w.Unlock()
	l := *db.layout.Load()
	if partition < 0 || partition >= l.np {
		return
	}
	l.replicated = append([]bool(nil), l.replicated...)
	l.replicated[partition] = true
	db.layout.Store(&l)
}
