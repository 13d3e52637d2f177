package fsformat

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat/pickle"
)

// Until 2010, an index was one pickle: a mapping with the position 'pos' and with
// the 'index', which maps each object to a position. Both changed over the years:
//
//	mapping   a dict; an OOBucket, with '_buckets' before the index to keep the
//	          pickling from recursing; an OOBTree, or one that is the index too
//	index     a dict {oid: position}; a ZODB.fsIndex.fsIndex, whose state has '_data'
//	'_data'   a list of (prefix, bucket string), as in the present form; a dict or an
//	          OOBTree that maps each prefix to a bucket
//	bucket    a string; an fsBucket, which maps suffixes to 6-byte positions

// parseOld reads an index of one pickle.
func (x *Index) parseOld(v pickle.Value) error {
	var old legacyIndex
	top, err := old.items(v, 0)
	if err != nil {
		return err
	}
	pos, _ := find(top, "pos")
	n, ok := pickle.Int(pos)
	if !ok || n < magicLen || n >= maxPos {
		return fmt.Errorf("an old form without a valid position: %v", pos)
	}
	x.End = n
	index, ok := find(top, "index")
	if !ok {
		data, ok := find(top, "_data")
		if !ok {
			return errors.New("an old form without an index in it")
		}
		return old.data(x, data)
	}
	if o, ok := index.(*pickle.Object); ok && o.HasState {
		if state, ok := o.State.(*pickle.Dict); ok {
			data, ok := state.Get("_data")
			if !ok {
				return errors.New("an old form whose fsIndex has no data")
			}
			return old.data(x, data)
		}
	}
	return old.positions(x, index)
}

// find returns the value of a text key among keys and values.
func find(items []pickle.Value, key string) (pickle.Value, bool) {
	for i := 0; i+1 < len(items); i += 2 {
		if s, ok := pickle.Text(items[i]); ok && s == key {
			return items[i+1], true
		}
	}
	return nil, false
}

// legacyIndex reads the mappings of an old index.
type legacyIndex struct{ seen map[*pickle.Object]bool }

// maxTreeDepth is more than a BTree can have.
const maxTreeDepth = 40

// items returns the keys and values, in turns, of a dict, a bucket or a BTree.
func (old *legacyIndex) items(v pickle.Value, depth int) ([]pickle.Value, error) {
	switch v := v.(type) {
	case *pickle.Dict:
		out := make([]pickle.Value, 0, 2*len(v.Items))
		for _, it := range v.Items {
			out = append(out, it.Key, it.Value)
		}
		return out, nil
	case *pickle.Object:
		// A node twice would be a tree that has no end, or is no tree.
		if old.seen[v] || depth > maxTreeDepth {
			return nil, errors.New("an old form with a BTree that is none")
		}
		if old.seen == nil {
			old.seen = make(map[*pickle.Object]bool)
		}
		old.seen[v] = true
		if !v.HasState || v.State == nil {
			return nil, nil // empty
		}
		if state, ok := v.State.(*pickle.Dict); ok {
			return old.items(state, depth+1)
		}
		return old.node(v.State, depth)
	}
	return nil, fmt.Errorf("an old form with a %T where a mapping was expected", v)
}

// node returns the keys and values in the state of a bucket or of a BTree:
//
//	bucket   ((key, value, key, value, ...),) or with the next bucket after it
//	BTree    ((child, key, child, ...), first bucket), or ((state of a bucket,),)
func (old *legacyIndex) node(state pickle.Value, depth int) ([]pickle.Value, error) {
	bad := errors.New("an old form with a BTree of unknown form")
	t, ok := state.(pickle.Tuple)
	if !ok || len(t) == 0 || len(t) > 2 || depth > maxTreeDepth {
		return nil, bad
	}
	in, ok := t[0].(pickle.Tuple)
	if !ok {
		return nil, bad
	}
	if len(in) == 1 && len(t) == 1 {
		return old.node(in[0], depth+1)
	}
	if len(in)%2 == 0 {
		return in, nil
	}
	var out []pickle.Value
	for i := 0; i < len(in); i += 2 {
		items, err := old.items(in[i], depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, items...)
	}
	return out, nil
}

// data adds what is in '_data'.
func (old *legacyIndex) data(x *Index, v pickle.Value) error {
	if list, ok := v.(*pickle.List); ok {
		for _, pair := range list.Items {
			if _, err := x.parseBucket(pair); err != nil {
				return err
			}
		}
		return nil
	}
	items, err := old.items(v, 0)
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(items); i += 2 {
		if _, ok := pickle.RawBytes(items[i+1]); ok {
			if _, err := x.parseBucket(pickle.Tuple(items[i : i+2])); err != nil {
				return err
			}
			continue
		}
		if err := old.bucket(x, items[i], items[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// bucket adds the objects with a prefix.
func (old *legacyIndex) bucket(x *Index, prefix, bucket pickle.Value) error {
	p, ok := oldBytes(prefix)
	if !ok || len(p) != 6 {
		return errors.New("an old form with a prefix that is none")
	}
	items, err := old.items(bucket, 0)
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(items); i += 2 {
		suffix, ok1 := oldBytes(items[i])
		pos, ok2 := oldBytes(items[i+1])
		if !ok1 || !ok2 || len(suffix) != 2 || len(pos) != 6 {
			return errors.New("an old form with a bucket that is none")
		}
		oid := binary.BigEndian.Uint64(append(append(make([]byte, 0, 8), p...), suffix...))
		at := binary.BigEndian.Uint64(append([]byte{0, 0}, pos...))
		if err := x.parsed(tid.OID(oid), int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// positions adds a mapping of objects to positions.
func (old *legacyIndex) positions(x *Index, v pickle.Value) error {
	items, err := old.items(v, 0)
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(items); i += 2 {
		oid, ok1 := oldBytes(items[i])
		pos, ok2 := pickle.Int(items[i+1])
		if !ok1 || !ok2 || len(oid) != 8 {
			return errors.New("an old form with an entry that maps no object to a position")
		}
		if err := x.parsed(tid.OIDFromBytes(oid), pos); err != nil {
			return err
		}
	}
	return nil
}

// oldBytes returns v if it is bytes, or a str of Python 2, which a pickler of
// Python 3 may have taken for text.
func oldBytes(v pickle.Value) ([]byte, bool) {
	if s, ok := v.(string); ok {
		return []byte(s), true
	}
	return pickle.RawBytes(v)
}
