package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Restore writes a record of another database, whatever the current revision of the
// object is: there are no conflicts. The transaction must have an imposed TID. Data nil:
// the object does not exist at this revision. dataTID, if not Zero, is an earlier
// revision that probably has the same data; it is kept only if it has. data must not be
// changed until the transaction ends. created reports that this client has not restored a
// revision of the object before.
//
// For one transaction after the other. [Appender] has many under way.
func (t *Txn) Restore(ctx context.Context, oid tid.OID, data []byte, dataTID tid.TID) (created bool, err error) {
	if t.opt.TID == tid.Zero {
		return false, fmt.Errorf("transaction %v: restore without an imposed id", t.ttid)
	}
	if dataTID != tid.Zero {
		same, err := t.c.sameData(ctx, oid, dataTID, data)
		if err != nil {
			return false, fmt.Errorf("transaction %v: object %v: %w", t.ttid, oid, err)
		}
		if !same {
			dataTID = tid.Zero
		}
	}
	base, again := t.baseOf(oid)
	if !again {
		base = t.c.restored.get(oid, tid.TID(t.c.last.Load()))
	}
	return !again && base == tid.Zero, t.write(ctx, oid, &write{
		data: data, serial: base, dataSerial: dataTID, deleted: data == nil && dataTID == tid.Zero, restored: true,
	})
}

// sameData reports whether a revision of an object is there and has these data.
func (c *Client) sameData(ctx context.Context, oid tid.OID, at tid.TID, data []byte) (bool, error) {
	switch r, err := c.LoadAt(ctx, oid, at); {
	case err == nil:
		return data != nil && bytes.Equal(r.Data, data), nil
	case errors.Is(err, ErrDeleted):
		return data == nil, nil
	case errors.Is(err, txn.ErrNotFound), errors.Is(err, txn.ErrNoSuchObject):
		return false, nil
	default:
		return false, err
	}
}

// restoredSerials are the revisions that restores have made, so that the next one of an
// object need not ask a storage for its base. A base above the current revision would be
// an error of the node to a storage: only what is committed is noted, and all is forgotten
// when the database was truncated.
type restoredSerials struct {
	mu sync.Mutex
	serials
}

// get returns the revision of an object, Zero if it is not known or above last.
func (s *restoredSerials) get(oid tid.OID, last tid.TID) tid.TID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.serials.get(oid); t <= last {
		return t
	}
	return tid.Zero
}

// committed notes the objects of a transaction.
func (s *restoredSerials) committed(at tid.TID, oids []tid.OID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, oid := range oids {
		s.serials.put(oid, at)
	}
}

func (s *restoredSerials) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serials = serials{}
}

// restoredAt notes what a transaction has restored. Object ids are not given out any more
// that objects of the other database have.
func (c *Client) restoredAt(at tid.TID, oids []tid.OID) {
	if len(oids) == 0 {
		return
	}
	c.restored.committed(at, oids)
	last := slices.Max(oids)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.oids = slices.DeleteFunc(slices.Clone(c.oids), func(oid tid.OID) bool { return oid <= last })
}
