package zeo

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// method is a call that clients can make.
type method struct {
	name        string
	first       bool // before the others, and never again
	objects     bool // an argument may hold objects
	least, most int  // arguments
	call        func(c *conn, m *call) error
}

// methods are those of protocol 5.
var methods = named(map[string]*method{
	"register":         {first: true, least: 2, call: callRegister},
	"get_info":         {call: callGetInfo},
	"lastTransaction":  {call: callLastTransaction},
	"ping":             {call: callPing},
	"getInvalidations": {least: 1, call: callGetInvalidations},
	"loadBefore":       {least: 2, call: callLoadBefore},
	"loadSerial":       {least: 2, call: callLoadSerial},
	"getTid":           {least: 1, call: callGetTid},
	"history":          {least: 1, most: 2, call: callHistory},
	"new_oids":         {most: 1, call: callNewOIDs},
	"record_iternext":  {most: 1, call: callRecordIternext},
	"undoLog":          {least: 2, call: callUndoLog},
	"undoInfo":         {least: 2, most: 3, objects: true, call: callUndoInfo},
	"pack":             {least: 1, most: 2, call: callPack},

	"tpc_begin":                       {least: 4, most: 6, objects: true, call: callBegin},
	"storea":                          {least: 4, call: callStore},
	"checkCurrentSerialInTransaction": {least: 3, call: callCheck},
	"deleteObject":                    {least: 3, call: callDelete},
	"restorea":                        {least: 5, call: callRestore},
	"undoa":                           {least: 2, call: callUndo},
	"vote":                            {least: 1, call: callVote},
	"tpc_finish":                      {least: 1, call: callFinish},
	"tpc_abort":                       {least: 1, call: callAbort},

	"storeBlobStart":  {call: callBlobStart},
	"storeBlobChunk":  {least: 1, call: callBlobChunk},
	"storeBlobEnd":    {least: 4, call: callBlobEnd},
	"storeBlobShared": {least: 5, call: callBlobShared},
	"sendBlob":        {least: 2, call: callSendBlob},

	"iterator_start":        {least: 2, call: callIteratorStart},
	"iterator_next":         {least: 1, call: callIteratorNext},
	"iterator_record_start": {least: 2, call: callIteratorRecordStart},
	"iterator_record_next":  {least: 1, call: callIteratorRecordNext},
	"iterator_gc":           {least: 1, call: callIteratorGC},

	"server_status":    {call: callServerStatus},
	"set_client_label": {least: 1, call: callSetClientLabel},
})

// mayHoldObjects reports whether an argument of a method may hold objects.
func mayHoldObjects(name []byte) bool {
	m := methods[string(name)]
	return m != nil && m.objects
}

func named(table map[string]*method) map[string]*method {
	for name, m := range table {
		m.name = name
		m.most = max(m.most, m.least)
	}
	return table
}

// registerLimit is how long a client that registers waits for the storage. Then it
// tries another server, or this one again.
const registerLimit = 10 * time.Second

func callRegister(c *conn, m *call) error {
	name, ok := wire.TextOrBytes(&m.Args[0])
	if !ok {
		return c.failed(m, wire.ArgError("storage: want a text"), nil)
	}
	readOnly, ok := m.Args[1].Truth()
	if !ok {
		return c.failed(m, wire.ArgError("read_only: want a bool"), nil)
	}
	seq := c.srv.storages[string(name)]
	if seq == nil {
		return c.failed(m, textError("builtins.ValueError", "unknown storage: %s", wire.Text(&m.Args[0])), nil)
	}
	if !readOnly && (c.srv.cfg.ReadOnly || seq.feat.ReadOnly) {
		return c.failed(m, readOnlyError(), nil)
	}
	if m.Async {
		return fmt.Errorf("%w: register without answer", wire.ErrBadMessage)
	}
	c.readOnly = readOnly
	c.frames.Limit = c.srv.cfg.MaxFrame
	c.frames.Source.(*watchedReader).idle = c.srv.cfg.IdleTimeout
	c.plain = c.log().With("storage", seq.name)
	c.setLog(c.plain)
	// A client that comes from another server may know of commits that were not
	// announced here yet, and would refuse this one or be shown what is older.
	ctx, cancel := context.WithTimeout(c.ctx, registerLimit)
	err := seq.st.Sync(ctx)
	cancel()
	if err != nil {
		return fmt.Errorf("storage %s is out of service: %w", seq.name, err)
	}
	if !seq.register(c, &m.ID) {
		return fmt.Errorf("storage %s is out of service", seq.name)
	}
	c.out.flush()
	c.seq = seq
	c.log().Info("connected", "read_only", readOnly, "msgpack", c.msgpack)
	return nil
}

func callGetInfo(c *conn, m *call) error {
	c.answer(m, func(e *wire.Encoder) {
		f := &c.seq.feat
		objects, bytes := c.seq.st.Size()
		e.BeginDict(6)
		e.Text("length")
		e.Int(objects)
		e.Text("size")
		e.Int(bytes)
		e.Text("name")
		e.Text(f.Name)
		e.Text("supportsUndo")
		e.Bool(f.Undo)
		e.Text("supports_record_iternext")
		e.Bool(f.Objects)
		e.Text("interfaces")
		ifaces := f.interfaces()
		e.BeginTuple(len(ifaces))
		for _, i := range ifaces {
			e.BeginTuple(2)
			e.Text(i[0])
			e.Text(i[1])
			e.EndTuple(2)
		}
		e.EndTuple(len(ifaces))
		e.EndDict(6)
	})
	return nil
}

// interfaces are what the storage claims to provide, in the order of FileStorage.
func (f *Features) interfaces() [][2]string {
	const zodb = "ZODB.interfaces"
	var list [][2]string
	for _, i := range []struct {
		has  bool
		name string
	}{
		{f.Restore, "IStorageRestoreable"},
		{f.Iterate, "IStorageIteration"},
		{f.Undo, "IStorageUndoable"},
		{f.Objects, "IStorageCurrentRecordIteration"},
		{f.GC, "IExternalGC"},
		{true, "IStorage"},
	} {
		if i.has {
			list = append(list, [2]string{zodb, i.name})
		}
	}
	return append(list, [2]string{"zope.interface", "Interface"})
}

func callLastTransaction(c *conn, m *call) error {
	if m.Async {
		return nil
	}
	c.seq.inOrder(c, func(e *wire.Encoder, last tid.TID) {
		at := e.BeginReply(&m.ID, wire.FlagResult)
		e.TID(last)
		e.EndMessage(at)
	})
	c.out.flush()
	return nil
}

// callPing is a barrier: what was committed before, by whomever, is announced
// before its answer.
func callPing(c *conn, m *call) error {
	id, async := m.ID, m.Async
	return c.background(m, nil, func(ctx context.Context) (func(*wire.Encoder), error) {
		if err := c.seq.st.Sync(ctx); err != nil || async {
			return nil, err
		}
		c.seq.inOrder(c, func(e *wire.Encoder, _ tid.TID) {
			at := e.BeginReply(&id, wire.FlagResult)
			e.Null()
			e.EndMessage(at)
		})
		c.out.flush()
		return nil, nil
	})
}

func callGetInvalidations(c *conn, m *call) error {
	t, err := m.Args[0].AsTID("tid")
	if err != nil {
		return c.failed(m, err, nil)
	}
	if m.Async {
		return nil
	}
	id := m.ID
	return c.background(m, nil, func(ctx context.Context) (func(*wire.Encoder), error) {
		err := c.seq.since(ctx, c, &id, t)
		c.out.flush()
		return nil, err
	})
}

func callLoadBefore(c *conn, m *call) error {
	oid, err := m.Args[0].AsOID()
	if err != nil {
		return c.failed(m, keyError(m.Args[0].B), nil)
	}
	before, err := m.Args[1].AsTID("tid")
	if err != nil {
		return c.failed(m, err, nil)
	}
	if m.Async {
		return nil
	}
	return c.startLoad(load{m.ID, oid, before})
}

func callLoadSerial(c *conn, m *call) error {
	oid, err := m.Args[0].AsOID()
	if err != nil {
		return c.failed(m, keyError(m.Args[0].B), nil)
	}
	serial, err := m.Args[1].AsTID("serial")
	if err != nil {
		return c.failed(m, err, nil)
	}
	c.seq.stats.loads.Add(1)
	return c.background(m, oid.Bytes(), func(ctx context.Context) (func(*wire.Encoder), error) {
		r, err := c.seq.st.LoadAt(ctx, oid, serial)
		return func(e *wire.Encoder) { e.Bytes(r.Data) }, err
	})
}

func callGetTid(c *conn, m *call) error {
	oid, err := m.Args[0].AsOID()
	if err != nil {
		return c.failed(m, keyError(m.Args[0].B), nil)
	}
	return c.background(m, oid.Bytes(), func(ctx context.Context) (func(*wire.Encoder), error) {
		r, err := c.seq.st.LoadBefore(ctx, oid, tid.Max)
		return func(e *wire.Encoder) { e.TID(r.Serial) }, err
	})
}

func callHistory(c *conn, m *call) error {
	oid, err := m.Args[0].AsOID()
	if err != nil {
		return c.failed(m, keyError(m.Args[0].B), nil)
	}
	size := int64(1)
	if len(m.Args) > 1 {
		if size, err = m.Args[1].AsInt("size"); err != nil {
			return c.failed(m, err, nil)
		}
	}
	size = min(max(size, 0), wire.MaxValues)
	return c.background(m, oid.Bytes(), func(ctx context.Context) (func(*wire.Encoder), error) {
		revisions, err := c.seq.st.Revisions(ctx, oid, int(size))
		return func(e *wire.Encoder) {
			e.BeginList(len(revisions))
			for i := range revisions {
				encodeMeta(e, (*meta)(&revisions[i]), metaHistory)
			}
			e.EndList(len(revisions))
		}, err
	})
}

const mostOIDs = 100

func callNewOIDs(c *conn, m *call) error {
	n := int64(mostOIDs)
	if len(m.Args) > 0 {
		var err error
		if n, err = m.Args[0].AsInt("n"); err != nil {
			return c.failed(m, err, nil)
		}
	}
	if c.readOnly {
		return c.failed(m, readOnlyError(), nil)
	}
	n = min(max(n, 1), mostOIDs)
	return c.background(m, nil, func(ctx context.Context) (func(*wire.Encoder), error) {
		oids, err := c.seq.st.NewOIDs(ctx, int(n))
		return func(e *wire.Encoder) { e.OIDs(oids) }, err
	})
}

func callRecordIternext(c *conn, m *call) error {
	var from tid.OID
	var given []byte
	if len(m.Args) > 0 && m.Args[0].Kind != wire.KindNil {
		var err error
		if from, err = m.Args[0].AsOID(); err != nil {
			return c.failed(m, err, nil)
		}
		given = from.Bytes()
	}
	if !c.seq.feat.Objects {
		return c.failed(m, ErrUnsupported, nil)
	}
	if given == nil {
		given = from.Bytes()
	}
	return c.background(m, given, func(ctx context.Context) (func(*wire.Encoder), error) {
		oid, r, err := c.seq.st.NextObject(ctx, from)
		if err != nil {
			return nil, err
		}
		var next tid.OID
		more := oid < tid.MaxOID
		if more {
			next, _, err = c.seq.st.NextObject(ctx, oid+1)
			switch {
			case errors.Is(err, txn.ErrNoSuchObject):
				more = false
			case err != nil:
				return nil, err
			}
		}
		return func(e *wire.Encoder) {
			e.BeginTuple(4)
			e.OID(oid)
			e.TID(r.Serial)
			e.Bytes(r.Data)
			if more {
				e.OID(next)
			} else {
				e.Null()
			}
			e.EndTuple(4)
		}, nil
	})
}

func callUndoLog(c *conn, m *call) error { return undoLog(c, m, nil) }

func callUndoInfo(c *conn, m *call) error {
	var spec []specItem
	if len(m.Args) > 2 && m.Args[2].Kind != wire.KindNil {
		if m.Args[2].Kind != wire.KindDict {
			return c.failed(m, wire.ArgError("specification: want a dict"), nil)
		}
		var err error
		if spec, err = cloneSpec(m.Args[2].Box.Items); err != nil {
			return c.failed(m, err, nil)
		}
	}
	return undoLog(c, m, spec)
}

// cloneSpec copies keys and values in turn out of their message.
func cloneSpec(items []wire.Value) ([]specItem, error) {
	var spec []specItem
	budget := wire.MaxValues
	for i := 0; i+1 < len(items); i += 2 {
		k, err := clone(&items[i], 0, &budget)
		if err != nil {
			return nil, err
		}
		v, err := clone(&items[i+1], 0, &budget)
		if err != nil {
			return nil, err
		}
		spec = append(spec, specItem{k, v})
	}
	return spec, nil
}

func undoLog(c *conn, m *call, spec []specItem) error {
	first, err := m.Args[0].AsInt("first")
	if err != nil {
		return c.failed(m, err, nil)
	}
	last, err := m.Args[1].AsInt("last")
	if err != nil {
		return c.failed(m, err, nil)
	}
	const most = 1 << 20
	first = min(max(first, 0), most)
	if last < 0 {
		last = first - max(last, -most)
	}
	last = min(last, 2*most)
	if !c.seq.feat.Undo {
		c.answer(m, func(e *wire.Encoder) {
			e.BeginTuple(0)
			e.EndTuple(0)
		})
		return nil
	}
	return c.background(m, nil, func(ctx context.Context) (func(*wire.Encoder), error) {
		accept := func(*txn.Info) bool { return true }
		if len(spec) > 0 {
			accept = func(t *txn.Info) bool { return (*meta)(t).matches(spec) }
		}
		log, err := c.seq.st.UndoLog(ctx, int(first), int(max(first, last)), accept)
		return func(e *wire.Encoder) {
			e.BeginList(len(log))
			for i := range log {
				encodeMeta(e, (*meta)(&log[i]), metaUndo)
			}
			e.EndList(len(log))
		}, err
	})
}

func callPack(c *conn, m *call) error {
	var at time.Time
	switch v := &m.Args[0]; v.Kind {
	case wire.KindFloat:
		whole, part := math.Modf(v.Float())
		if math.IsNaN(v.Float()) || math.Abs(whole) > 1<<40 {
			return c.failed(m, wire.ArgError("time: not a moment"), nil)
		}
		at = time.Unix(int64(whole), int64(part*1e9))
	case wire.KindInt:
		if v.Int() < 0 || v.Int() > 1<<40 {
			return c.failed(m, wire.ArgError("time: not a moment"), nil)
		}
		at = time.Unix(v.Int(), 0)
	default:
		return c.failed(m, wire.ArgError("time: want a float"), nil)
	}
	wait := true
	if len(m.Args) > 1 {
		var ok bool
		if wait, ok = m.Args[1].Truth(); !ok {
			return c.failed(m, wire.ArgError("wait: want a bool"), nil)
		}
	}
	pack := func(ctx context.Context) error {
		c.log().Info("pack started: history is removed, objects that no other refers to stay", "up_to", at.UTC())
		start := time.Now()
		err := c.seq.st.Pack(ctx, tid.FromTime(at))
		took := time.Since(start).Round(time.Millisecond)
		if err != nil {
			c.log().Warn("pack failed", "up_to", at.UTC(), "took", took, "err", err)
			return err
		}
		c.log().Info("pack done", "up_to", at.UTC(), "took", took)
		c.seq.info()
		return nil
	}
	if wait {
		return c.background(m, nil, func(ctx context.Context) (func(*wire.Encoder), error) {
			return (*wire.Encoder).Null, pack(ctx)
		})
	}
	c.srv.wg.Go(func() { // goes on without the client
		_ = pack(c.srv.ctx) // has said how it ended
	})
	c.answer(m, (*wire.Encoder).Null)
	return nil
}

func callBegin(c *conn, m *call) error {
	id, err := m.Args[0].AsInt("id")
	if err != nil {
		return c.failed(m, err, nil)
	}
	b := Begin{Status: txn.Committed}
	if b.User, err = m.Args[1].AsBytes("user"); err != nil {
		return c.failed(m, err, nil)
	}
	if b.Description, err = m.Args[2].AsBytes("description"); err != nil {
		return c.failed(m, err, nil)
	}
	b.User, b.Description = append([]byte{}, b.User...), append([]byte{}, b.Description...)
	if b.Extension, err = c.dec.Extension(&m.Args[3]); err != nil {
		return c.failed(m, err, nil)
	}
	if len(m.Args) > 4 {
		if b.TID, err = m.Args[4].AsBase("tid"); err != nil {
			return c.failed(m, err, nil)
		}
	}
	if len(m.Args) > 5 && m.Args[5].Kind != wire.KindNil {
		status, ok := wire.TextOrBytes(&m.Args[5])
		if !ok || len(status) != 1 {
			return c.failed(m, wire.ArgError("status: want one character"), nil)
		}
		b.Status = status[0]
	}
	const most = math.MaxUint16 // as a Data.fs can hold
	var refuse error
	if len(b.User) > most || len(b.Description) > most || len(b.Extension) > most {
		refuse = fmt.Errorf("user, description or extension of more than %d bytes", most)
	}
	if err := c.tx.begin(id, b, refuse); err != nil {
		return c.failed(m, err, nil)
	}
	c.answer(m, (*wire.Encoder).Null)
	return nil
}

// enqueue adds an operation to the open transaction; its id is the last argument.
func (c *conn) enqueue(m *call, o op, data []byte) error {
	id, err := m.Args[len(m.Args)-1].AsInt("id")
	if err != nil {
		return c.failed(m, err, nil)
	}
	t, err := c.tx.queueing(id)
	if err != nil {
		return c.failed(m, err, nil)
	}
	if o.kind != opCheck && o.kind != opUndo {
		c.seq.stats.stores.Add(1)
	}
	if t.refuse == nil {
		t.refuse = t.queue.add(o, data, c.frames.Owned)
	}
	c.answer(m, (*wire.Encoder).Null)
	return nil
}

// target reads the first two arguments of a write: an object and its revision.
func target(m *call, o *op) (err error) {
	if o.oid, err = m.Args[0].AsOID(); err != nil {
		return err
	}
	if o.oid > tid.MaxOID {
		return textError("builtins.ValueError", "object id %v is out of range", o.oid)
	}
	o.serial, err = m.Args[1].AsBase("serial")
	return err
}

func callStore(c *conn, m *call) error {
	o := op{kind: opStore}
	if err := target(m, &o); err != nil {
		return c.failed(m, err, nil)
	}
	data, err := m.Args[2].AsBytes("data")
	if err != nil {
		return c.failed(m, err, nil)
	}
	return c.enqueue(m, o, data)
}

func callCheck(c *conn, m *call) error {
	o := op{kind: opCheck, absent: true}
	if err := target(m, &o); err != nil {
		return c.failed(m, err, nil)
	}
	return c.enqueue(m, o, nil)
}

func callDelete(c *conn, m *call) error {
	o := op{kind: opDelete, absent: true}
	if err := target(m, &o); err != nil {
		return c.failed(m, err, nil)
	}
	return c.enqueue(m, o, nil)
}

func callRestore(c *conn, m *call) error {
	o := op{kind: opRestore}
	if err := target(m, &o); err != nil {
		return c.failed(m, err, nil)
	}
	var data []byte
	var err error
	if m.Args[2].Kind == wire.KindNil {
		o.absent = true
	} else if data, err = m.Args[2].AsBytes("data"); err != nil {
		return c.failed(m, err, nil)
	}
	if p := &m.Args[3]; len(p.B) != 0 {
		if o.prev, err = p.AsTID("prev_txn"); err != nil {
			return c.failed(m, err, nil)
		}
	}
	return c.enqueue(m, o, data)
}

func callUndo(c *conn, m *call) error {
	id, err := m.Args[0].AsBytes("transaction")
	if err != nil {
		return c.failed(m, err, nil)
	}
	o := op{kind: opUndo, absent: true}
	// An id that is none stays Zero, which the storage does not find.
	if raw, err := base64.StdEncoding.DecodeString(string(id)); err == nil && len(raw) == 8 {
		o.serial = tid.FromBytes(raw)
	}
	return c.enqueue(m, o, nil)
}

func callVote(c *conn, m *call) error {
	id, err := m.Args[0].AsInt("id")
	if err == nil {
		err = c.tx.vote(id, m.ID, m.Async)
	}
	if err != nil {
		return c.failed(m, err, nil)
	}
	return nil
}

func callFinish(c *conn, m *call) error {
	id, err := m.Args[0].AsInt("id")
	if err == nil {
		err = c.tx.finish(id, m.ID, m.Async)
	}
	if err != nil {
		return c.failed(m, err, nil)
	}
	return nil
}

func callAbort(c *conn, m *call) error {
	id, err := m.Args[0].AsInt("id")
	if err == nil {
		msg, async := m.ID, m.Async
		err = c.tx.abort(id, func() {
			if !async {
				c.send(&msg, (*wire.Encoder).Null)
			}
		})
	}
	if err != nil {
		return c.failed(m, err, nil)
	}
	return nil
}

// No storage here keeps blobs: their bytes are thrown away, and the vote fails.

func callBlobStart(c *conn, m *call) error {
	c.blob = true
	c.answer(m, (*wire.Encoder).Null)
	return nil
}

func callBlobChunk(c *conn, m *call) error {
	if !c.blob {
		return c.failed(m, fmt.Errorf("%w: blob chunk without start", wire.ErrBadMessage), nil)
	}
	c.answer(m, (*wire.Encoder).Null)
	return nil
}

func callBlobEnd(c *conn, m *call) error {
	if !c.blob {
		return c.failed(m, fmt.Errorf("%w: blob end without start", wire.ErrBadMessage), nil)
	}
	c.blob = false
	return refuseBlob(c, m)
}

func callBlobShared(c *conn, m *call) error { return refuseBlob(c, m) }

func refuseBlob(c *conn, m *call) error {
	id, err := m.Args[len(m.Args)-1].AsInt("id")
	if err != nil {
		return c.failed(m, err, nil)
	}
	t, err := c.tx.queueing(id)
	if err != nil {
		return c.failed(m, err, nil)
	}
	t.refuse = fmt.Errorf("blobs: %w", ErrUnsupported)
	c.answer(m, (*wire.Encoder).Null)
	return nil
}

func callSendBlob(c *conn, m *call) error {
	oid, err := m.Args[0].AsOID()
	if err != nil {
		return c.failed(m, err, nil)
	}
	serial, err := m.Args[1].AsTID("serial")
	if err != nil {
		return c.failed(m, err, nil)
	}
	return c.failed(m, &remoteError{quiet: true, class: "ZODB.POSException.POSKeyError", data: func(e *wire.Encoder) {
		e.BeginTuple(3)
		e.Text("No blob file")
		e.OID(oid)
		e.TID(serial)
		e.EndTuple(3)
	}}, nil)
}

func callServerStatus(c *conn, m *call) error {
	r := c.seq.status()
	c.answer(m, func(e *wire.Encoder) { encodeStatus(e, &r) })
	return nil
}

func callSetClientLabel(c *conn, m *call) error {
	label, ok := wire.TextOrBytes(&m.Args[0])
	if !ok {
		return c.failed(m, wire.ArgError("label: want a text"), nil)
	}
	const most = 200
	s := string(label[:min(len(label), most)])
	named := c.plain.With("label", s) // instead of another label
	named.Info("client is named")
	c.setLog(named)
	c.answer(m, (*wire.Encoder).Null)
	return nil
}

// undoID is the name of a transaction in the undo log.
func undoID(t tid.TID) []byte {
	return base64.StdEncoding.AppendEncode(nil, binary.BigEndian.AppendUint64(nil, uint64(t)))
}
