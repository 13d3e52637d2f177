package zeoclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

var _ txn.Database = (*Client)(nil)

func malformed(what string) error { return fmt.Errorf("%w: %s", wire.ErrBadMessage, what) }

// tuple returns the n items of a tuple, which msgpack does not tell from a list.
func tuple(v *wire.Value, n int) ([]wire.Value, error) {
	items, ok := v.List()
	if !ok || len(items) != n {
		return nil, malformed(fmt.Sprintf("want a tuple of %d", n))
	}
	return items, nil
}

// optionalTID reads a transaction id or None, which is Zero.
func optionalTID(v *wire.Value, what string) (tid.TID, error) {
	if v.Kind == wire.KindNil {
		return tid.Zero, nil
	}
	return v.AsTID(what)
}

// optionalData copies a record or None, which is nil.
func optionalData(v *wire.Value) ([]byte, error) {
	switch v.Kind {
	case wire.KindNil:
		return nil, nil
	case wire.KindBytes:
		return append([]byte{}, v.B...), nil
	}
	return nil, malformed("data: want bytes")
}

func data(v *wire.Value) ([]byte, error) {
	if v.Kind != wire.KindBytes {
		return nil, malformed("data: want bytes")
	}
	return optionalData(v)
}

func noArguments(e *wire.Encoder) {
	e.BeginTuple(0)
	e.EndTuple(0)
}

func objectAndTID(oid tid.OID, t tid.TID) func(*wire.Encoder) {
	return func(e *wire.Encoder) {
		e.BeginTuple(2)
		e.OID(oid)
		e.TID(t)
		e.EndTuple(2)
	}
}

// LastTID implements [txn.History]. Python's server says the id of the last
// transaction, which is not the greatest where ids are out of order in a Data.fs.
func (c *Client) LastTID(ctx context.Context) (tid.TID, error) {
	var last tid.TID
	err := c.call(ctx, "lastTransaction", "", noArguments, func(v *wire.Value) (err error) {
		last, err = optionalTID(v, "last transaction")
		return err
	})
	if err != nil {
		return 0, err
	}
	return last, nil
}

// LoadBefore implements [txn.Database].
func (c *Client) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	var r txn.Revision
	err := c.call(ctx, "loadBefore", fmt.Sprintf("object %v before %v", oid, before), objectAndTID(oid, before), func(v *wire.Value) error {
		if v.Kind == wire.KindNil {
			return txn.ErrNotFound
		}
		items, err := tuple(v, 3)
		if err != nil {
			return err
		}
		if r.Data, err = data(&items[0]); err != nil {
			return err
		}
		if r.Serial, err = items[1].AsTID("serial"); err != nil {
			return err
		}
		r.Next, err = optionalTID(&items[2], "next serial")
		return err
	})
	if err != nil {
		return txn.Revision{}, err
	}
	return r, nil
}

// LoadAt implements [txn.Database].
func (c *Client) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	r := txn.Revision{Serial: at}
	err := c.call(ctx, "loadSerial", fmt.Sprintf("object %v at %v", oid, at), objectAndTID(oid, at), func(v *wire.Value) (err error) {
		r.Data, err = data(v)
		return err
	})
	if err != nil {
		return txn.Revision{}, err
	}
	return r, nil
}

// Revisions implements [txn.Database]. The protocol does not tell the status of the
// transactions nor which other objects they changed: Committed, and no OIDs. Of an
// extension it does not tell items that have the name of a field, and objects in it
// are shown as text.
func (c *Client) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	var list []txn.Info
	err := c.call(ctx, "history", fmt.Sprintf("object %v", oid), func(e *wire.Encoder) {
		e.BeginTuple(2)
		e.OID(oid)
		e.Int(int64(n))
		e.EndTuple(2)
	}, func(v *wire.Value) error {
		items, ok := v.List()
		if !ok {
			return malformed("history: want a list")
		}
		for i := range items {
			info, err := revision(&items[i])
			if err != nil {
				return err
			}
			list = append(list, info)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// revision copies an entry of a history.
func revision(v *wire.Value) (txn.Info, error) {
	info := txn.Info{Status: txn.Committed}
	if v.Kind != wire.KindDict {
		return info, malformed("history: want dicts")
	}
	var extension []wire.Value
	found := false
	for items := v.Box.Items; len(items) > 1; items = items[2:] {
		name, value := "", &items[1]
		if items[0].Kind == wire.KindText {
			name = string(items[0].B)
		}
		var err error
		switch name {
		case "time", "serial", "version":
		case "tid":
			info.TID, err = value.AsTID("tid")
			found = true
		case "size":
			info.Size, err = value.AsInt("size")
		case "user_name":
			info.User, err = value.AsBytes("user_name")
			info.User = bytes.Clone(info.User)
		case "description":
			info.Description, err = value.AsBytes("description")
			info.Description = bytes.Clone(info.Description)
		default:
			extension = append(extension, items[0], *value)
		}
		if err != nil {
			return info, malformed("history: " + err.Error())
		}
	}
	if !found {
		return info, malformed("history: entry without tid")
	}
	var err error
	info.Extension, err = wire.PickleDict(extension)
	return info, err
}

// Transactions implements [txn.History].
func (c *Client) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		if after >= upTo {
			return
		}
		id, err := c.startIterator(ctx, after, upTo)
		if err != nil {
			yield(nil, err)
			return
		}
		last := after
		for {
			t, err := c.nextTransaction(ctx, id)
			if err == nil && t != nil && (t.TID <= after || t.TID > upTo) {
				err = fmt.Errorf("ZEO server %s: transaction %v is not in (%v, %v]", c.addr, t.TID, after, upTo)
			}
			if err != nil {
				c.forget(id)
				yield(nil, fmt.Errorf("transactions after %v: %w", last, err))
				return
			}
			if t == nil {
				return // the server has forgotten the iterator
			}
			last = t.TID
			t.Records = c.records(ctx, id, t.TID)
			if !yield(t, nil) {
				c.forget(id)
				return
			}
		}
	}
}

func (c *Client) startIterator(ctx context.Context, after, upTo tid.TID) (int64, error) {
	var id int64
	err := c.call(ctx, "iterator_start", fmt.Sprintf("transactions after %v", after), func(e *wire.Encoder) {
		e.BeginTuple(2)
		if after == tid.Zero {
			e.Null()
		} else {
			e.TID(after + 1)
		}
		e.TIDOrNull(upTo)
		e.EndTuple(2)
	}, func(v *wire.Value) (err error) {
		id, err = v.AsInt("iterator")
		return err
	})
	if err != nil {
		return 0, err
	}
	return id, nil
}

// nextTransaction returns nil at the end.
func (c *Client) nextTransaction(ctx context.Context, iterator int64) (*txn.Transaction, error) {
	var t *txn.Transaction
	err := c.call(ctx, "iterator_next", "", func(e *wire.Encoder) {
		e.BeginTuple(1)
		e.Int(iterator)
		e.EndTuple(1)
	}, func(v *wire.Value) (err error) {
		if v.Kind != wire.KindNil {
			t, err = c.transaction(v)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// transaction copies a transaction without its records.
func (c *Client) transaction(v *wire.Value) (*txn.Transaction, error) {
	items, err := tuple(v, 5)
	if err != nil {
		return nil, err
	}
	t := new(txn.Transaction)
	if t.TID, err = items[0].AsTID("tid"); err != nil {
		return nil, err
	}
	status, ok := wire.TextOrBytes(&items[1])
	if !ok || len(status) != 1 {
		return nil, malformed(fmt.Sprintf("status of transaction %v", t.TID))
	}
	t.Status = status[0]
	if t.User, err = items[2].AsBytes("user"); err != nil {
		return nil, err
	}
	if t.Description, err = items[3].AsBytes("description"); err != nil {
		return nil, err
	}
	t.User, t.Description = bytes.Clone(t.User), bytes.Clone(t.Description)
	if t.Extension, err = c.dec.Extension(&items[4]); err != nil {
		return nil, fmt.Errorf("transaction %v: %w", t.TID, err)
	}
	return t, nil
}

// records yields the records of the transaction that an iterator returned last.
func (c *Client) records(ctx context.Context, iterator int64, at tid.TID) iter.Seq2[*txn.Record, error] {
	return func(yield func(*txn.Record, error) bool) {
		var id int64
		about := fmt.Sprintf("transaction %v", at)
		err := c.call(ctx, "iterator_record_start", about, func(e *wire.Encoder) {
			e.BeginTuple(2)
			e.Int(iterator)
			e.TID(at)
			e.EndTuple(2)
		}, func(v *wire.Value) (err error) {
			id, err = v.AsInt("iterator")
			return err
		})
		if err != nil {
			yield(nil, err)
			return
		}
		for {
			var r *txn.Record
			err := c.call(ctx, "iterator_record_next", about, func(e *wire.Encoder) {
				e.BeginTuple(1)
				e.Int(id)
				e.EndTuple(1)
			}, func(v *wire.Value) (err error) {
				if v.Kind != wire.KindNil {
					r, err = record(v)
				}
				return err
			})
			if err != nil {
				c.forget(id)
				yield(nil, err)
				return
			}
			if r == nil {
				return
			}
			if !yield(r, nil) {
				c.forget(id)
				return
			}
		}
	}
}

func record(v *wire.Value) (*txn.Record, error) {
	items, err := tuple(v, 4)
	if err != nil {
		return nil, err
	}
	r := new(txn.Record)
	if r.OID, err = items[0].AsOID(); err != nil {
		return nil, err
	}
	if r.TID, err = items[1].AsTID("tid"); err != nil {
		return nil, err
	}
	if r.Data, err = optionalData(&items[2]); err != nil {
		return nil, err
	}
	r.DataTID, err = optionalTID(&items[3], "data_txn")
	return r, err
}

// Backwards asks for windows of time that hold about so many transactions.
const (
	windowSize  = 1000
	firstWindow = tid.TID(1) << 32 // a minute
)

// Backwards implements [txn.Database]. It does not use undoLog, which leaves out what
// is before the last pack and lets extensions override ids: it goes through windows of
// time that end where the last one began, and asks for the transactions of each in
// their order. Sizes and OIDs are not known.
func (c *Client) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		upTo, err := c.LastTID(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		var infos []txn.Info
		for window := firstWindow; upTo > tid.Zero; {
			after := upTo - min(window, upTo)
			infos = infos[:0]
			for t, err := range c.Transactions(ctx, after, upTo) {
				if err != nil {
					yield(nil, err)
					return
				}
				infos = append(infos, txn.Info{TID: t.TID, Status: t.Status, User: t.User, Description: t.Description, Extension: t.Extension})
				if len(infos) > windowSize && window > 1 {
					break
				}
			}
			if len(infos) > windowSize && window > 1 {
				window /= 2
				continue
			}
			for i := range slices.Backward(infos) {
				if !yield(&infos[i], nil) {
					return
				}
			}
			upTo = after
			if len(infos) < windowSize/4 {
				window *= 2
			}
		}
	}
}

// OIDs implements [txn.Database]. The server knows only what exists now, and sends all
// data on the way; for an earlier time all transactions before it are read, and the
// ids of all objects are in memory.
func (c *Client) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) {
		last, err := c.LastTID(ctx)
		if err != nil {
			yield(0, err)
			return
		}
		if at >= last {
			c.currentOIDs(ctx, from, yield)
			return
		}
		exists := make(map[tid.OID]struct{})
		for t, err := range c.Transactions(ctx, tid.Zero, at) {
			if err != nil {
				yield(0, err)
				return
			}
			for r, err := range t.Records {
				if err != nil {
					yield(0, err)
					return
				}
				if r.Data == nil || r.OID < from {
					delete(exists, r.OID)
				} else {
					exists[r.OID] = struct{}{}
				}
			}
		}
		oids := make([]tid.OID, 0, len(exists))
		for oid := range exists {
			oids = append(oids, oid)
		}
		slices.Sort(oids)
		for _, oid := range oids {
			if !yield(oid, nil) {
				return
			}
		}
	}
}

func (c *Client) currentOIDs(ctx context.Context, from tid.OID, yield func(tid.OID, error) bool) {
	for {
		var oid, next tid.OID
		more := false
		err := c.call(ctx, "record_iternext", fmt.Sprintf("object %v", from), func(e *wire.Encoder) {
			e.BeginTuple(1)
			e.OID(from)
			e.EndTuple(1)
		}, func(v *wire.Value) error {
			items, err := tuple(v, 4)
			if err != nil {
				return err
			}
			if oid, err = items[0].AsOID(); err != nil || items[3].Kind == wire.KindNil {
				return err
			}
			more = true
			next, err = items[3].AsOID()
			return err
		})
		if err != nil {
			oid, err = c.afterError(ctx, from, err)
			switch {
			case err == errNoMoreObjects || err == nil && oid >= tid.MaxOID:
				return
			case err != nil:
				yield(0, err)
				return
			}
			from = oid + 1
			continue
		}
		if oid < from || more && next <= oid {
			yield(0, fmt.Errorf("ZEO server %s: record_iternext: object %v, then %v, asked from %v: %w", c.addr, oid, next, from, wire.ErrBadMessage))
			return
		}
		if !yield(oid, nil) || !more {
			return
		}
		from = next
	}
}

var errNoMoreObjects = errors.New("no more objects")

// afterError says what an error of record_iternext means: the object that is deleted,
// which is to be left out, or the end. Our server says POSKeyError at the end, of the
// object that was asked for. Python's says ValueError at the end, and POSKeyError of
// an object that is deleted, which has a history.
func (c *Client) afterError(ctx context.Context, from tid.OID, err error) (tid.OID, error) {
	r, ok := errors.AsType[*RemoteError](err)
	switch {
	case !ok:
		return 0, err
	case r.Class == "builtins.ValueError":
		return 0, errNoMoreObjects
	case !errors.Is(r, txn.ErrNoSuchObject) || r.oid == nil:
		return 0, err
	}
	oid := tid.OIDFromBytes(r.oid)
	if oid != from {
		if oid < from {
			return 0, err
		}
		return oid, nil
	}
	_, history := c.Revisions(ctx, oid, 1)
	switch {
	case errors.Is(history, txn.ErrNoSuchObject):
		return 0, errNoMoreObjects
	case history != nil:
		return 0, history
	}
	return oid, nil
}
