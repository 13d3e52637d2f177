package proto

import (
	"fmt"

	"github.com/neozodb/neo/cluster/msgpack"
)

// Raw is a [Value] of a kind that no known key has: its msgpack bytes.
type Raw []byte

// maxDepth of nested values; what is deeper is kept as Raw.
const maxDepth = 16

func appendValues(b []byte, m map[string]Value) []byte {
	return appendMap(b, m, msgpack.AppendBin[string], appendValue)
}

// appendValue also takes string, int and list types that are never decoded, for
// the convenience of senders.
func appendValue(b []byte, v Value) []byte {
	switch v := v.(type) {
	case nil:
		return msgpack.AppendNil(b)
	case []byte:
		return msgpack.AppendBin(b, v)
	case string:
		return msgpack.AppendBin(b, v)
	case bool:
		return msgpack.AppendBool(b, v)
	case int:
		return appendInt(b, v)
	case int64:
		return msgpack.AppendInt(b, v)
	case float64:
		return msgpack.AppendFloat(b, v)
	case []Value:
		return appendList(b, v, appendValue)
	case []string:
		return appendList(b, v, msgpack.AppendBin[string])
	case []int:
		return appendList(b, v, appendInt)
	case map[string]Value:
		return appendValues(b, v)
	case ClusterState:
		return appendClusterState(b, v)
	case map[CellState]int:
		return appendMap(b, v, appendCellState, appendInt)
	case Raw:
		return append(b, v...)
	}
	panic(fmt.Sprintf("proto: value of type %T in a packet", v))
}

// values reads a map with binary keys. It is never nil.
func (d *decoder) values(depth int) map[string]Value {
	n := d.Map(2)
	m := map[string]Value{}
	for range n {
		k := d.string()
		v := d.value(depth)
		if d.Err() != nil {
			return nil
		}
		m[k] = v
	}
	return m
}

// value reads any element; what has no other form becomes Raw.
func (d *decoder) value(depth int) Value {
	if depth < maxDepth {
		in := *d
		if v, ok := in.known(depth); ok && in.Err() == nil {
			*d = in
			return v
		}
	}
	start := d.Offset()
	d.Skip()
	if d.Err() != nil {
		return nil
	}
	return Raw(d.Since(start))
}

func (d *decoder) known(depth int) (v Value, ok bool) {
	switch d.Peek() {
	case msgpack.Nil:
		return nil, d.Nil()
	case msgpack.Bool:
		return d.Bool(), true
	case msgpack.Float:
		return d.Float(), true
	case msgpack.Bin:
		return d.Bin(), true
	case msgpack.Int:
		return d.Int(), true
	case msgpack.Ext:
		return d.clusterState(), true
	case msgpack.Array:
		l := []Value{}
		for range d.Array(1) {
			l = append(l, d.value(depth+1))
			if d.Err() != nil {
				return nil, false
			}
		}
		return l, true
	case msgpack.Map:
		in := *d
		if in.Map(2) > 0 && in.Peek() == msgpack.Ext {
			return dict(d, 4, d.cellState, d.int), true
		}
		return d.values(depth + 1), true
	}
	return nil, false
}
