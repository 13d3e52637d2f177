package zeo

import (
	"math"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// meta is a transaction as clients see it in a history or an undo log.
type meta txn.Info

// metaForm says which dict describes a transaction.
type metaForm bool

const (
	metaHistory metaForm = false // its own items override those of the extension
	metaUndo    metaForm = true  // the other way round
)

// specItem is one condition of undoInfo.
type specItem struct{ key, value wire.Value }

// metaItem is one item of a dict that describes a transaction.
type metaItem struct {
	name  string
	value wire.Value
}

func (m *meta) items(form metaForm) []metaItem {
	items := []metaItem{
		{"time", wire.FloatValue(seconds(m.TID))},
		{"user_name", wire.Value{Kind: wire.KindBytes, B: m.User}},
		{"description", wire.Value{Kind: wire.KindBytes, B: m.Description}},
		{"size", wire.IntValue(m.Size)},
	}
	if form == metaUndo {
		return append(items, metaItem{"id", wire.Value{Kind: wire.KindBytes, B: undoID(m.TID)}})
	}
	return append(items, metaItem{"tid", wire.Value{Kind: wire.KindBytes, B: m.TID.Bytes()}})
}

// dict returns the items of m and of its extension as keys and values in turn.
func (m *meta) dict(form metaForm) []wire.Value {
	var d wire.PickleDecoder
	ext := extensionItems(&d, m.Extension)
	var all []wire.Value
	items := m.items(form)
	known := func(v *wire.Value, list []metaItem) bool {
		return v.Kind == wire.KindText && slices.ContainsFunc(list, func(i metaItem) bool { return i.name == string(v.B) })
	}
	overridden := make(map[string]bool)
	for i := 0; i+1 < len(ext); i += 2 {
		if known(&ext[i], items) {
			if form == metaHistory {
				continue
			}
			overridden[string(ext[i].B)] = true
		}
		all = append(all, ext[i], ext[i+1])
	}
	for _, i := range items {
		if !overridden[i.name] {
			all = append(all, wire.Value{Kind: wire.KindText, B: []byte(i.name)}, i.value)
		}
	}
	return all
}

// matches reports whether the entry of m in the undo log has all items of spec.
func (m *meta) matches(spec []specItem) bool {
	all := m.dict(metaUndo)
	for i := range spec {
		found := false
		for k := 0; k+1 < len(all) && !found; k += 2 {
			found = spec[i].key.Equal(&all[k]) && spec[i].value.Equal(&all[k+1])
		}
		if !found {
			return false
		}
	}
	return true
}

// encodeMeta appends the dict that describes m.
func encodeMeta(e *wire.Encoder, m *meta, form metaForm) {
	at := len(e.B)
	dict := wire.Value{Kind: wire.KindDict, Box: &wire.Box{Items: m.dict(form)}}
	budget := wire.MaxValues
	if err := e.Value(&dict, 0, &budget); err != nil {
		// What is in the way is in the extension.
		e.B = e.B[:at]
		plain := *m
		plain.Extension = nil
		dict.Box.Items = plain.dict(form)
		budget = math.MaxInt // nothing is shared
		if err := e.Value(&dict, 0, &budget); err != nil {
			panic("zeo: " + err.Error())
		}
	}
}

// encodeExtension appends a pickled extension as a dict, empty if it is no readable
// dict: the transaction matters more.
func encodeExtension(e *wire.Encoder, pickled []byte) {
	at := len(e.B)
	var d wire.PickleDecoder
	dict := wire.Value{Kind: wire.KindDict, Box: &wire.Box{Items: extensionItems(&d, pickled)}}
	budget := wire.MaxValues
	if err := e.Value(&dict, 0, &budget); err != nil {
		e.B = e.B[:at]
		e.BeginDict(0)
		e.EndDict(0)
	}
}

// extensionItems returns keys and values in turn; they refer to d and to pickled.
func extensionItems(d *wire.PickleDecoder, pickled []byte) []wire.Value {
	if len(pickled) == 0 {
		return nil
	}
	v, err := d.Decode(pickled, false)
	if err != nil || v.Kind != wire.KindDict {
		return nil
	}
	return v.Box.Items
}

// clone copies a value out of its message.
func clone(v *wire.Value, depth int, budget *int) (wire.Value, error) {
	if err := v.Spend(depth, budget); err != nil {
		return wire.Value{}, err
	}
	if v.Kind == wire.KindList || v.Kind == wire.KindDict { // never equal to anything
		return wire.Value{Kind: wire.KindOpaque}, nil
	}
	c := *v
	c.B = append([]byte(nil), v.B...)
	c.Items = nil
	for i := range v.Items {
		item, err := clone(&v.Items[i], depth+1, budget)
		if err != nil {
			return wire.Value{}, err
		}
		c.Items = append(c.Items, item)
	}
	return c, nil
}

// seconds is the time of a transaction as Python's TimeStamp.timeTime gives it.
func seconds(t tid.TID) float64 {
	minute := (t &^ (1<<32 - 1)).Time().Truncate(time.Minute)
	return float64(minute.Unix()) + float64(uint64(t)&(1<<32-1))*60/(1<<32)
}
