package proto

import (
	"cmp"
	"math"
	"slices"

	"github.com/neozodb/neo/cluster/msgpack"
	"github.com/neozodb/neo/cluster/tid"
)

// Extension codes of the enumerations.
const (
	extCellState    = 0
	extClusterState = 1
	extNodeState    = 3
	extNodeType     = 4
)

// decoder reads the elements that arguments are made of.
type decoder struct{ msgpack.Decoder }

// tuple reads the header of an array that must have n elements.
func (d *decoder) tuple(n int) bool {
	m := d.Array(1)
	if d.Err() == nil && m != n {
		d.Fail("array of %d elements instead of %d", m, n)
	}
	return d.Err() == nil
}

// uint reads an integer from 0 to limit.
func (d *decoder) uint(limit uint64) uint64 {
	v := d.Uint()
	if v > limit {
		d.Fail("integer %d exceeds %d", v, limit)
		return 0
	}
	return v
}

func appendInt(b []byte, v int) []byte { return msgpack.AppendInt(b, int64(v)) }

// int reads a count, size, position or partition number.
func (d *decoder) int() int { return int(d.uint(math.MaxInt)) }

func (d *decoder) string() string { return string(d.Bin()) }

func append8(b []byte, v uint64) []byte {
	return append(b, 0xc4, 8, byte(v>>56), byte(v>>48), byte(v>>40), byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func appendTID(b []byte, t tid.TID) []byte { return append8(b, uint64(t)) }
func appendOID(b []byte, o tid.OID) []byte { return append8(b, uint64(o)) }

func appendOptTID(b []byte, t Opt[tid.TID]) []byte {
	if !t.OK {
		return msgpack.AppendNil(b)
	}
	return append8(b, uint64(t.V))
}

func appendOptOID(b []byte, o Opt[tid.OID]) []byte {
	if !o.OK {
		return msgpack.AppendNil(b)
	}
	return append8(b, uint64(o.V))
}

// fixed reads a binary string that must have n bytes.
func (d *decoder) fixed(n int) []byte {
	v := d.Bin()
	if len(v) != n {
		d.Fail("%d bytes instead of %d", len(v), n)
		return nil
	}
	return v
}

func (d *decoder) tid() tid.TID {
	if v := d.fixed(8); v != nil {
		return tid.FromBytes(v)
	}
	return 0
}

func (d *decoder) oid() tid.OID { return tid.OID(d.tid()) }

func (d *decoder) optTID() (o Opt[tid.TID]) {
	if !d.Nil() {
		o = Opt[tid.TID]{d.tid(), true}
	}
	return o
}

func (d *decoder) optOID() (o Opt[tid.OID]) {
	if !d.Nil() {
		o = Opt[tid.OID]{d.oid(), true}
	}
	return o
}

func (d *decoder) hash() (h Hash) {
	copy(h[:], d.fixed(len(h)))
	return h
}

func appendOpt[T any](b []byte, o Opt[T], f func([]byte, T) []byte) []byte {
	if !o.OK {
		return msgpack.AppendNil(b)
	}
	return f(b, o.V)
}

func opt[T any](d *decoder, f func() T) (o Opt[T]) {
	if !d.Nil() {
		o = Opt[T]{f(), true}
	}
	return o
}

func appendOptString(b []byte, o Opt[string]) []byte {
	return appendOpt(b, o, msgpack.AppendBin[string])
}

func (d *decoder) optString() Opt[string] { return opt(d, d.string) }

// appendList writes an array.
func appendList[T any](b []byte, list []T, f func([]byte, T) []byte) []byte {
	b = msgpack.AppendArray(b, len(list))
	for _, v := range list {
		b = f(b, v)
	}
	return b
}

// list reads an array whose elements take at least size bytes each. An empty one
// is nil.
func list[T any](d *decoder, size int, f func() T) []T {
	n := d.Array(size)
	if n == 0 {
		return nil
	}
	l := make([]T, 0, n)
	for range n {
		l = append(l, f())
		if d.Err() != nil {
			return nil
		}
	}
	return l
}

func appendOIDs(b []byte, l []tid.OID) []byte { return appendList(b, l, appendOID) }

func (d *decoder) oids() []tid.OID { return list(d, 10, d.oid) }
func (d *decoder) tids() []tid.TID { return list(d, 10, d.tid) }

// appendMap writes a map in the order of its keys, so that equal packets have
// equal bytes.
func appendMap[K cmp.Ordered, V any](b []byte, m map[K]V, key func([]byte, K) []byte, value func([]byte, V) []byte) []byte {
	b = msgpack.AppendMap(b, len(m))
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		b = value(key(b, k), m[k])
	}
	return b
}

// dict reads a map whose pairs take at least size bytes each. An empty one is nil.
func dict[K comparable, V any](d *decoder, size int, key func() K, value func() V) map[K]V {
	n := d.Map(size)
	if n == 0 {
		return nil
	}
	m := make(map[K]V, n)
	for range n {
		k := key()
		v := value()
		if d.Err() != nil {
			return nil
		}
		m[k] = v
	}
	return m
}

func appendEnum(b []byte, ext, v byte) []byte { return append(b, 0xd4, ext, v) }

// enum reads a value of the enumeration with the given extension code, which
// has n values.
func (d *decoder) enum(ext int8, n uint8) uint8 {
	typ, data := d.Ext()
	if d.Err() != nil {
		return 0
	}
	if typ != ext {
		d.Fail("extension %d instead of %d", typ, ext)
		return 0
	}
	in := msgpack.NewDecoder(data)
	v := in.Uint()
	if in.Err() != nil || in.Len() > 0 || v >= uint64(n) {
		d.Fail("extension %d: % x is not one of its %d values", ext, data[:min(len(data), 9)], n)
		return 0
	}
	return uint8(v)
}

func appendCellState(b []byte, s CellState) []byte { return appendEnum(b, extCellState, byte(s)) }
func appendClusterState(b []byte, s ClusterState) []byte {
	return appendEnum(b, extClusterState, byte(s))
}
func appendNodeState(b []byte, s NodeState) []byte { return appendEnum(b, extNodeState, byte(s)) }
func appendNodeType(b []byte, t NodeType) []byte   { return appendEnum(b, extNodeType, byte(t)) }

func (d *decoder) cellState() CellState { return CellState(d.enum(extCellState, uint8(Discarded)+1)) }
func (d *decoder) clusterState() ClusterState {
	return ClusterState(d.enum(extClusterState, uint8(StoppingBackup)+1))
}
func (d *decoder) nodeState() NodeState { return NodeState(d.enum(extNodeState, uint8(NodePending)+1)) }
func (d *decoder) nodeType() NodeType   { return NodeType(d.enum(extNodeType, uint8(Admin)+1)) }

func appendNodeID(b []byte, id NodeID) []byte {
	if id == 0 {
		return msgpack.AppendNil(b)
	}
	return msgpack.AppendInt(b, int64(id))
}

func (d *decoder) nodeID() NodeID {
	v := d.Int()
	if v < math.MinInt32 || v > math.MaxInt32 || v == 0 {
		d.Fail("node id %d out of range", v)
		return 0
	}
	return NodeID(v)
}

func (d *decoder) optID() NodeID {
	if d.Nil() {
		return 0
	}
	return d.nodeID()
}

func appendOptNodeID(b []byte, o Opt[NodeID]) []byte { return appendOpt(b, o, appendNodeID) }
func (d *decoder) optNodeID() Opt[NodeID]            { return opt(d, d.nodeID) }

func appendAddress(b []byte, a Address) []byte {
	if a.IsZero() {
		return msgpack.AppendNil(b)
	}
	b = msgpack.AppendArray(b, 2)
	b = msgpack.AppendBin(b, a.Host)
	return msgpack.AppendUint(b, uint64(a.Port))
}

func (d *decoder) address() (a Address) {
	if !d.tuple(2) {
		return a
	}
	a.Host = d.string()
	a.Port = uint16(d.uint(math.MaxUint16))
	if a.IsZero() {
		d.Fail("empty address")
	}
	return a
}

func (d *decoder) optAddress() (a Address) {
	if !d.Nil() {
		a = d.address()
	}
	return a
}

func appendNode(b []byte, n Node) []byte {
	b = msgpack.AppendArray(b, 5)
	b = appendNodeType(b, n.Type)
	b = appendAddress(b, n.Addr)
	b = appendNodeID(b, n.ID)
	b = appendNodeState(b, n.State)
	return appendOpt(b, n.IDTimestamp, msgpack.AppendFloat)
}

func (d *decoder) node() (n Node) {
	if !d.tuple(5) {
		return n
	}
	n.Type = d.nodeType()
	n.Addr = d.optAddress()
	n.ID = d.optID()
	n.State = d.nodeState()
	n.IDTimestamp = opt(d, d.Float)
	return n
}

func appendRow(b []byte, row []Cell) []byte { return appendList(b, row, appendCell) }
func (d *decoder) row() []Cell              { return list(d, 5, d.cell) }

func appendCell(b []byte, c Cell) []byte {
	b = msgpack.AppendArray(b, 2)
	return appendCellState(appendNodeID(b, c.ID), c.State)
}

func (d *decoder) cell() (c Cell) {
	if d.tuple(2) {
		c.ID = d.nodeID()
		c.State = d.cellState()
	}
	return c
}

func appendCellChange(b []byte, c CellChange) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendInt(b, c.Partition)
	return appendCellState(appendNodeID(b, c.ID), c.State)
}

func (d *decoder) cellChange() (c CellChange) {
	if d.tuple(3) {
		c.Partition = d.int()
		c.ID = d.nodeID()
		c.State = d.cellState()
	}
	return c
}

func appendRevision(b []byte, r Revision) []byte {
	b = msgpack.AppendArray(b, 2)
	return appendInt(appendTID(b, r.TID), r.Size)
}

func (d *decoder) revision() (r Revision) {
	if d.tuple(2) {
		r.TID = d.tid()
		r.Size = d.int()
	}
	return r
}

func appendUndoSerial(b []byte, u UndoSerial) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOptTID(appendTID(b, u.Current), u.Undo)
	return msgpack.AppendBool(b, u.IsCurrent)
}

func (d *decoder) undoSerial() (u UndoSerial) {
	if d.tuple(3) {
		u.Current = d.tid()
		u.Undo = d.optTID()
		u.IsCurrent = d.Bool()
	}
	return u
}

// appendObjectData writes three arguments. As the Python implementation does,
// an AnswerObject without data has no compression (nil).
func appendObjectData(b []byte, o *ObjectData, answer bool) []byte {
	if answer && len(o.Data) == 0 && o.Checksum == ZeroHash {
		b = msgpack.AppendNil(b)
	} else {
		b = msgpack.AppendUint(b, uint64(o.Compression))
	}
	b = msgpack.AppendBin(b, o.Checksum[:])
	return msgpack.AppendBin(b, o.Data)
}

func (d *decoder) objectData(o *ObjectData) {
	if !d.Nil() {
		o.Compression = uint8(d.uint(math.MaxUint8))
	}
	o.Checksum = d.hash()
	o.Data = d.Bin()
}

func appendRelockConflict(b []byte, c *RelockConflict) []byte {
	if c == nil {
		return msgpack.AppendNil(b)
	}
	b = msgpack.AppendArray(b, 3)
	b = appendTID(appendTID(b, c.Serial), c.Conflict)
	if c.Data == nil {
		return msgpack.AppendNil(b)
	}
	return appendObjectData(msgpack.AppendArray(b, 3), c.Data, false)
}

func (d *decoder) relockConflict() *RelockConflict {
	if d.Nil() || !d.tuple(3) {
		return nil
	}
	c := &RelockConflict{Serial: d.tid(), Conflict: d.tid()}
	if !d.Nil() && d.tuple(3) {
		c.Data = new(ObjectData)
		d.objectData(c.Data)
	}
	return c
}
