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
	name, ok := textOrBytes(&m.args[0])
	if !ok {
		return c.failed(m, argError("storage: want a text"), nil)
	}
	readOnly, ok := m.args[1].truth()
	if !ok {
		return c.failed(m, argError("read_only: want a bool"), nil)
	}
	seq := c.srv.storages[string(name)]
	if seq == nil {
		return c.failed(m, textError("builtins.ValueError", "unknown storage: %s", text(&m.args[0])), nil)
	}
	if !readOnly && (c.srv.cfg.ReadOnly || seq.feat.ReadOnly) {
		return c.failed(m, readOnlyError(), nil)
	}
	if m.async {
		return fmt.Errorf("%w: register without answer", errBadMessage)
	}
	c.readOnly = readOnly
	c.frames.limit = c.srv.cfg.MaxFrame
	c.frames.r.(*watchedReader).idle = c.srv.cfg.IdleTimeout
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
	if !seq.register(c, &m.id) {
		return fmt.Errorf("storage %s is out of service", seq.name)
	}
	c.out.flush()
	c.seq = seq
	c.log().Info("connected", "read_only", readOnly, "msgpack", c.msgpack)
	return nil
}

func callGetInfo(c *conn, m *call) error {
	c.answer(m, func(e *encoder) {
		f := &c.seq.feat
		objects, bytes := c.seq.st.Size()
		e.beginDict(6)
		e.text("length")
		e.int(objects)
		e.text("size")
		e.int(bytes)
		e.text("name")
		e.text(f.Name)
		e.text("supportsUndo")
		e.bool(f.Undo)
		e.text("supports_record_iternext")
		e.bool(f.Objects)
		e.text("interfaces")
		ifaces := f.interfaces()
		e.beginTuple(len(ifaces))
		for _, i := range ifaces {
			e.beginTuple(2)
			e.text(i[0])
			e.text(i[1])
			e.endTuple(2)
		}
		e.endTuple(len(ifaces))
		e.endDict(6)
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
	if m.async {
		return nil
	}
	c.seq.inOrder(c, func(e *encoder, last tid.TID) {
		at := e.beginReply(&m.id, flagResult)
		e.tid(last)
		e.endMessage(at)
	})
	c.out.flush()
	return nil
}

// callPing is a barrier: what was committed before, by whomever, is announced
// before its answer.
func callPing(c *conn, m *call) error {
	id, async := m.id, m.async
	return c.background(m, nil, func(ctx context.Context) (func(*encoder), error) {
		if err := c.seq.st.Sync(ctx); err != nil || async {
			return nil, err
		}
		c.seq.inOrder(c, func(e *encoder, _ tid.TID) {
			at := e.beginReply(&id, flagResult)
			e.null()
			e.endMessage(at)
		})
		c.out.flush()
		return nil, nil
	})
}

func callGetInvalidations(c *conn, m *call) error {
	t, err := m.args[0].asTID("tid")
	if err != nil {
		return c.failed(m, err, nil)
	}
	if m.async {
		return nil
	}
	id := m.id
	return c.background(m, nil, func(ctx context.Context) (func(*encoder), error) {
		err := c.seq.since(ctx, c, &id, t)
		c.out.flush()
		return nil, err
	})
}

func callLoadBefore(c *conn, m *call) error {
	oid, err := m.args[0].asOID()
	if err != nil {
		return c.failed(m, keyError(m.args[0].b), nil)
	}
	before, err := m.args[1].asTID("tid")
	if err != nil {
		return c.failed(m, err, nil)
	}
	if m.async {
		return nil
	}
	return c.startLoad(load{m.id, oid, before})
}

func callLoadSerial(c *conn, m *call) error {
	oid, err := m.args[0].asOID()
	if err != nil {
		return c.failed(m, keyError(m.args[0].b), nil)
	}
	serial, err := m.args[1].asTID("serial")
	if err != nil {
		return c.failed(m, err, nil)
	}
	c.seq.stats.loads.Add(1)
	return c.background(m, oid.Bytes(), func(ctx context.Context) (func(*encoder), error) {
		r, err := c.seq.st.LoadAt(ctx, oid, serial)
		return func(e *encoder) { e.bytes(r.Data) }, err
	})
}

func callGetTid(c *conn, m *call) error {
	oid, err := m.args[0].asOID()
	if err != nil {
		return c.failed(m, keyError(m.args[0].b), nil)
	}
	return c.background(m, oid.Bytes(), func(ctx context.Context) (func(*encoder), error) {
		r, err := c.seq.st.LoadBefore(ctx, oid, tid.Max)
		return func(e *encoder) { e.tid(r.Serial) }, err
	})
}

func callHistory(c *conn, m *call) error {
	oid, err := m.args[0].asOID()
	if err != nil {
		return c.failed(m, keyError(m.args[0].b), nil)
	}
	size := int64(1)
	if len(m.args) > 1 {
		if size, err = m.args[1].asInt("size"); err != nil {
			return c.failed(m, err, nil)
		}
	}
	size = min(max(size, 0), maxValues)
	return c.background(m, oid.Bytes(), func(ctx context.Context) (func(*encoder), error) {
		revisions, err := c.seq.st.Revisions(ctx, oid, int(size))
		return func(e *encoder) {
			e.beginList(len(revisions))
			for i := range revisions {
				encodeMeta(e, (*meta)(&revisions[i]), metaHistory)
			}
			e.endList(len(revisions))
		}, err
	})
}

const mostOIDs = 100

func callNewOIDs(c *conn, m *call) error {
	n := int64(mostOIDs)
	if len(m.args) > 0 {
		var err error
		if n, err = m.args[0].asInt("n"); err != nil {
			return c.failed(m, err, nil)
		}
	}
	if c.readOnly {
		return c.failed(m, readOnlyError(), nil)
	}
	n = min(max(n, 1), mostOIDs)
	return c.background(m, nil, func(ctx context.Context) (func(*encoder), error) {
		oids, err := c.seq.st.NewOIDs(ctx, int(n))
		return func(e *encoder) { e.oids(oids) }, err
	})
}

func callRecordIternext(c *conn, m *call) error {
	var from tid.OID
	var given []byte
	if len(m.args) > 0 && m.args[0].kind != kindNil {
		var err error
		if from, err = m.args[0].asOID(); err != nil {
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
	return c.background(m, given, func(ctx context.Context) (func(*encoder), error) {
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
		return func(e *encoder) {
			e.beginTuple(4)
			e.oid(oid)
			e.tid(r.Serial)
			e.bytes(r.Data)
			if more {
				e.oid(next)
			} else {
				e.null()
			}
			e.endTuple(4)
		}, nil
	})
}

func callUndoLog(c *conn, m *call) error { return undoLog(c, m, nil) }

func callUndoInfo(c *conn, m *call) error {
	var spec []specItem
	if len(m.args) > 2 && m.args[2].kind != kindNil {
		if m.args[2].kind != kindDict {
			return c.failed(m, argError("specification: want a dict"), nil)
		}
		var err error
		if spec, err = cloneSpec(m.args[2].box.items); err != nil {
			return c.failed(m, err, nil)
		}
	}
	return undoLog(c, m, spec)
}

// cloneSpec copies keys and values in turn out of their message.
func cloneSpec(items []value) ([]specItem, error) {
	var spec []specItem
	budget := maxValues
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
	first, err := m.args[0].asInt("first")
	if err != nil {
		return c.failed(m, err, nil)
	}
	last, err := m.args[1].asInt("last")
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
		c.answer(m, func(e *encoder) {
			e.beginTuple(0)
			e.endTuple(0)
		})
		return nil
	}
	return c.background(m, nil, func(ctx context.Context) (func(*encoder), error) {
		accept := func(*txn.Info) bool { return true }
		if len(spec) > 0 {
			accept = func(t *txn.Info) bool { return (*meta)(t).matches(spec) }
		}
		log, err := c.seq.st.UndoLog(ctx, int(first), int(max(first, last)), accept)
		return func(e *encoder) {
			e.beginList(len(log))
			for i := range log {
				encodeMeta(e, (*meta)(&log[i]), metaUndo)
			}
			e.endList(len(log))
		}, err
	})
}

func callPack(c *conn, m *call) error {
	var at time.Time
	switch v := &m.args[0]; v.kind {
	case kindFloat:
		whole, part := math.Modf(v.float())
		if math.IsNaN(v.float()) || math.Abs(whole) > 1<<40 {
			return c.failed(m, argError("time: not a moment"), nil)
		}
		at = time.Unix(int64(whole), int64(part*1e9))
	case kindInt:
		if v.int() < 0 || v.int() > 1<<40 {
			return c.failed(m, argError("time: not a moment"), nil)
		}
		at = time.Unix(v.int(), 0)
	default:
		return c.failed(m, argError("time: want a float"), nil)
	}
	wait := true
	if len(m.args) > 1 {
		var ok bool
		if wait, ok = m.args[1].truth(); !ok {
			return c.failed(m, argError("wait: want a bool"), nil)
		}
	}
	pack := func(ctx context.Context) error {
		c.log().Info("pack started", "time", at.UTC())
		if err := c.seq.st.Pack(ctx, tid.FromTime(at)); err != nil {
			return err
		}
		c.log().Info("pack done", "time", at.UTC())
		c.seq.info()
		return nil
	}
	if wait {
		return c.background(m, nil, func(ctx context.Context) (func(*encoder), error) {
			return (*encoder).null, pack(ctx)
		})
	}
	c.srv.wg.Go(func() { // goes on without the client
		if err := pack(c.srv.ctx); err != nil {
			c.log().Error("pack", "err", err)
		}
	})
	c.answer(m, (*encoder).null)
	return nil
}

func callBegin(c *conn, m *call) error {
	id, err := m.args[0].asInt("id")
	if err != nil {
		return c.failed(m, err, nil)
	}
	b := Begin{Status: txn.Committed}
	if b.User, err = m.args[1].asBytes("user"); err != nil {
		return c.failed(m, err, nil)
	}
	if b.Description, err = m.args[2].asBytes("description"); err != nil {
		return c.failed(m, err, nil)
	}
	b.User, b.Description = append([]byte{}, b.User...), append([]byte{}, b.Description...)
	if b.Extension, err = c.dec.extension(&m.args[3]); err != nil {
		return c.failed(m, err, nil)
	}
	if len(m.args) > 4 {
		if b.TID, err = m.args[4].asBase("tid"); err != nil {
			return c.failed(m, err, nil)
		}
	}
	if len(m.args) > 5 && m.args[5].kind != kindNil {
		status, ok := textOrBytes(&m.args[5])
		if !ok || len(status) != 1 {
			return c.failed(m, argError("status: want one character"), nil)
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
	c.answer(m, (*encoder).null)
	return nil
}

// enqueue adds an operation to the open transaction; its id is the last argument.
func (c *conn) enqueue(m *call, o op, data []byte) error {
	id, err := m.args[len(m.args)-1].asInt("id")
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
		t.refuse = t.queue.add(o, data, c.frames.owned)
	}
	c.answer(m, (*encoder).null)
	return nil
}

// target reads the first two arguments of a write: an object and its revision.
func target(m *call, o *op) (err error) {
	if o.oid, err = m.args[0].asOID(); err != nil {
		return err
	}
	if o.oid > tid.MaxOID {
		return textError("builtins.ValueError", "object id %v is out of range", o.oid)
	}
	o.serial, err = m.args[1].asBase("serial")
	return err
}

func callStore(c *conn, m *call) error {
	o := op{kind: opStore}
	if err := target(m, &o); err != nil {
		return c.failed(m, err, nil)
	}
	data, err := m.args[2].asBytes("data")
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
	if m.args[2].kind == kindNil {
		o.absent = true
	} else if data, err = m.args[2].asBytes("data"); err != nil {
		return c.failed(m, err, nil)
	}
	if p := &m.args[3]; len(p.b) != 0 {
		if o.prev, err = p.asTID("prev_txn"); err != nil {
			return c.failed(m, err, nil)
		}
	}
	return c.enqueue(m, o, data)
}

func callUndo(c *conn, m *call) error {
	id, err := m.args[0].asBytes("transaction")
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
	id, err := m.args[0].asInt("id")
	if err == nil {
		err = c.tx.vote(id, m.id, m.async)
	}
	if err != nil {
		return c.failed(m, err, nil)
	}
	return nil
}

func callFinish(c *conn, m *call) error {
	id, err := m.args[0].asInt("id")
	if err == nil {
		err = c.tx.finish(id, m.id, m.async)
	}
	if err != nil {
		return c.failed(m, err, nil)
	}
	return nil
}

func callAbort(c *conn, m *call) error {
	id, err := m.args[0].asInt("id")
	if err == nil {
		msg, async := m.id, m.async
		err = c.tx.abort(id, func() {
			if !async {
				c.send(&msg, (*encoder).null)
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
	c.answer(m, (*encoder).null)
	return nil
}

func callBlobChunk(c *conn, m *call) error {
	if !c.blob {
		return c.failed(m, fmt.Errorf("%w: blob chunk without start", errBadMessage), nil)
	}
	c.answer(m, (*encoder).null)
	return nil
}

func callBlobEnd(c *conn, m *call) error {
	if !c.blob {
		return c.failed(m, fmt.Errorf("%w: blob end without start", errBadMessage), nil)
	}
	c.blob = false
	return refuseBlob(c, m)
}

func callBlobShared(c *conn, m *call) error { return refuseBlob(c, m) }

func refuseBlob(c *conn, m *call) error {
	id, err := m.args[len(m.args)-1].asInt("id")
	if err != nil {
		return c.failed(m, err, nil)
	}
	t, err := c.tx.queueing(id)
	if err != nil {
		return c.failed(m, err, nil)
	}
	t.refuse = fmt.Errorf("blobs: %w", ErrUnsupported)
	c.answer(m, (*encoder).null)
	return nil
}

func callSendBlob(c *conn, m *call) error {
	oid, err := m.args[0].asOID()
	if err != nil {
		return c.failed(m, err, nil)
	}
	serial, err := m.args[1].asTID("serial")
	if err != nil {
		return c.failed(m, err, nil)
	}
	return c.failed(m, &remoteError{quiet: true, class: "ZODB.POSException.POSKeyError", data: func(e *encoder) {
		e.beginTuple(3)
		e.text("No blob file")
		e.oid(oid)
		e.tid(serial)
		e.endTuple(3)
	}}, nil)
}

func callServerStatus(c *conn, m *call) error {
	r := c.seq.status()
	c.answer(m, func(e *encoder) { encodeStatus(e, &r) })
	return nil
}

func callSetClientLabel(c *conn, m *call) error {
	label, ok := textOrBytes(&m.args[0])
	if !ok {
		return c.failed(m, argError("label: want a text"), nil)
	}
	const most = 200
	s := string(label[:min(len(label), most)])
	named := c.plain.With("label", s) // instead of another label
	named.Info("client is named")
	c.setLog(named)
	c.answer(m, (*encoder).null)
	return nil
}

// undoID is the name of a transaction in the undo log.
func undoID(t tid.TID) []byte {
	return base64.StdEncoding.AppendEncode(nil, binary.BigEndian.AppendUint64(nil, uint64(t)))
}
