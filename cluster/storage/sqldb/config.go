package sqldb

import (
	"fmt"
	"strconv"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Keys of table config.
const (
	keyVersion  = "version"
	keyName     = "name"
	keyID       = "nid"
	keyPTID     = "ptid"
	keyReplicas = "replicas"
	keyBackup   = "backup_tid"
	keyTruncate = "truncate_tid"
	keyImport   = "zodb"
	// Ours: others leave them alone.
	keyPacked      = "packed_up_to"
	keyPackedOrder = "packed_order"   // the last one that keyPacked takes into account
	keyKept        = "kept_deletions" // partitions where packs have kept deletions, and up to when
	keyConfirmed   = "confirmed_ptid" // a table that all had stored
	keyImported    = "import"         // how far an import is
	keyHold        = "backup_hold"    // nothing after it is fetched from upstream
	keyGapBegin    = "backup_gap_begin"
	keyGapEnd      = "backup_gap_end"
	keyErasure     = "erasure" // begun, and not at its end
	keyOpened      = "opened"  // by the last process, which chose the value
)

func readConfig(c *Conn) (map[string]string, error) {
	m := map[string]string{}
	err := c.Each("SELECT name, value FROM config", func(r *Row) error {
		if !r.Null(1) {
			m[r.Text(0)] = r.Text(1)
		}
		return nil
	})
	return m, err
}

func setConfig(c *Conn, key string, value proto.Opt[string]) error {
	var err error
	if value.OK {
		const q = "REPLACE INTO config (name, value) VALUES (?, ?)"
		if _, err = c.Exec(q, key, value.V); err != nil {
			if widen := c.dialect.Widen(err, len(value.V)); widen != "" {
				if err = c.ExecOnce(widen); err == nil {
					_, err = c.Exec(q, key, value.V)
				}
			}
		}
	} else {
		_, err = c.Exec("DELETE FROM config WHERE name = ?", key)
	}
	return err
}

// Config implements [backend.Keeping].
func (db *DB) Config() (backend.Config, error) {
	var cfg backend.Config
	err := db.readMain(func(c *Conn) error {
		m, err := readConfig(c)
		if err != nil {
			return err
		}
		cfg, err = parseConfig(m)
		if err != nil {
			err = fmt.Errorf("database %s: %w", db.d.Name(), err)
		}
		return err
	})
	return cfg, err
}

func parseConfig(m map[string]string) (backend.Config, error) {
	cfg := backend.Config{Name: m[keyName]}
	number := func(key string, bits int) (int64, bool, error) {
		s, ok := m[key]
		if !ok {
			return 0, false, nil
		}
		n, err := strconv.ParseInt(s, 10, bits)
		if err != nil {
			return 0, false, fmt.Errorf("configuration value %s is %q: %w", key, s, err)
		}
		return n, true, nil
	}
	id, _, err := number(keyID, 32)
	if err != nil {
		return cfg, err
	}
	cfg.ID = proto.NodeID(id)
	ptid, ok, err := number(keyPTID, 64)
	if err != nil {
		return cfg, err
	}
	cfg.PTID = proto.Opt[uint64]{V: uint64(ptid), OK: ok}
	replicas, _, err := number(keyReplicas, 32)
	if err != nil {
		return cfg, err
	}
	cfg.Replicas = int(replicas)
	if cfg.BackupTID, err = moment(m, keyBackup); err != nil {
		return cfg, err
	}
	if cfg.TruncateTID, err = moment(m, keyTruncate); err != nil {
		return cfg, err
	}
	if cfg.BackupHold, err = moment(m, keyHold); err != nil {
		return cfg, err
	}
	for i, key := range []string{keyGapBegin, keyGapEnd} {
		t, err := moment(m, key)
		if err != nil {
			return cfg, err
		}
		cfg.BackupGap[i] = t.V
	}
	confirmed, ok, err := number(keyConfirmed, 64)
	cfg.Confirmed = proto.Opt[uint64]{V: uint64(confirmed), OK: ok}
	return cfg, err
}

// moment returns the TID that a configuration has under a key.
func moment(m map[string]string, key string) (proto.Opt[tid.TID], error) {
	s, ok := m[key]
	if !ok {
		return proto.Opt[tid.TID]{}, nil
	}
	t, err := tid.Parse(s)
	if err != nil {
		return proto.Opt[tid.TID]{}, fmt.Errorf("configuration value %s: %w", key, err)
	}
	return proto.Some(t), nil
}

func (db *DB) setMoment(key string, t proto.Opt[tid.TID]) error {
	return db.write(func(c *Conn) error {
		return setConfig(c, key, proto.Opt[string]{V: t.V.String(), OK: t.OK})
	})
}

// SetBackupTID implements [backend.Keeping].
func (db *DB) SetBackupTID(t proto.Opt[tid.TID]) error { return db.setMoment(keyBackup, t) }

// SetBackupHold implements [backend.Keeping].
func (db *DB) SetBackupHold(t proto.Opt[tid.TID]) error { return db.setMoment(keyHold, t) }

// SetBackupGap implements [backend.Keeping].
func (db *DB) SetBackupGap(gap [2]tid.TID) error {
	return db.write(func(c *Conn) error {
		for i, key := range []string{keyGapBegin, keyGapEnd} {
			if err := setConfig(c, key, proto.Opt[string]{V: gap[i].String(), OK: gap[1] != tid.Zero}); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetTruncateTID implements [backend.Keeping].
func (db *DB) SetTruncateTID(t proto.Opt[tid.TID]) error { return db.setMoment(keyTruncate, t) }

// SetConfirmed implements [backend.Keeping].
func (db *DB) SetConfirmed(ptid proto.Opt[uint64]) error {
	return db.write(func(c *Conn) error {
		return setConfig(c, keyConfirmed, proto.Opt[string]{V: strconv.FormatUint(ptid.V, 10), OK: ptid.OK})
	})
}

// SetName implements [backend.Keeping].
func (db *DB) SetName(name string) error {
	err := db.write(func(c *Conn) error { return setConfig(c, keyName, proto.Some(name)) })
	if err != nil {
		return err
	}
	return db.Commit()
}

// SetID implements [backend.Keeping].
func (db *DB) SetID(id proto.NodeID) error {
	old := db.layout.Load().id
	err := db.write(func(c *Conn) error {
		if old != 0 && old != id {
			// A row that the new id already has is of another time.
			q := "DELETE FROM pt WHERE nid = ? AND `partition` IN (SELECT `partition` FROM (SELECT `partition` FROM pt WHERE nid = ?) AS x)"
			if _, err := c.Exec(q, int64(id), int64(old)); err != nil {
				return err
			}
			if _, err := c.Exec("UPDATE pt SET nid = ? WHERE nid = ?", int64(id), int64(old)); err != nil {
				return err
			}
		}
		if err := setConfig(c, keyID, proto.Some(strconv.Itoa(int(id)))); err != nil {
			return err
		}
		return db.loadLayout()
	})
	if err != nil {
		return err
	}
	return db.Commit()
}

// ImportState implements [backend.Importing].
func (db *DB) ImportState() (proto.Opt[string], error) { return db.text(keyImport) }

// SetImportState implements [backend.Importing].
func (db *DB) SetImportState(state proto.Opt[string]) error { return db.setText(keyImport, state) }

// ImportProgress implements [backend.Importing].
func (db *DB) ImportProgress() (proto.Opt[string], error) { return db.text(keyImported) }

// SetImportProgress implements [backend.Importing].
func (db *DB) SetImportProgress(progress proto.Opt[string]) error {
	return db.setText(keyImported, progress)
}

func (db *DB) text(key string) (proto.Opt[string], error) {
	var value proto.Opt[string]
	err := db.readMain(func(c *Conn) error {
		return c.Each("SELECT value FROM config WHERE name = ?", func(r *Row) error {
			value = proto.Opt[string]{V: r.Text(0), OK: !r.Null(0)}
			return nil
		}, key)
	})
	return value, err
}

func (db *DB) setText(key string, value proto.Opt[string]) error {
	return db.write(func(c *Conn) error { return setConfig(c, key, value) })
}
