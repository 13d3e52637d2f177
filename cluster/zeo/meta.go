package zeo

import (
	"math"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
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
type specItem struct{ key, value value }

// metaItem is one item of a dict that describes a transaction.
type metaItem struct {
	name  string
	value value
}

func (m *meta) items(form metaForm) []metaItem {
	items := []metaItem{
		{"time", floatValue(seconds(m.TID))},
		{"user_name", value{kind: kindBytes, b: m.User}},
		{"description", value{kind: kindBytes, b: m.Description}},
		{"size", intValue(m.Size)},
	}
	if form == metaUndo {
		return append(items, metaItem{"id", value{kind: kindBytes, b: undoID(m.TID)}})
	}
	return append(items, metaItem{"tid", value{kind: kindBytes, b: m.TID.Bytes()}})
}

// dict returns the items of m and of its extension as keys and values in turn.
func (m *meta) dict(form metaForm) []value {
	var d pickleDecoder
	ext := extensionItems(&d, m.Extension)
	var all []value
	items := m.items(form)
	known := func(v *value, list []metaItem) bool {
		return v.kind == kindText && slices.ContainsFunc(list, func(i metaItem) bool { return i.name == string(v.b) })
	}
	overridden := make(map[string]bool)
	for i := 0; i+1 < len(ext); i += 2 {
		if known(&ext[i], items) {
			if form == metaHistory {
				continue
			}
			overridden[string(ext[i].b)] = true
		}
		all = append(all, ext[i], ext[i+1])
	}
	for _, i := range items {
		if !overridden[i.name] {
			all = append(all, value{kind: kindText, b: []byte(i.name)}, i.value)
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
			found = spec[i].key.equal(&all[k]) && spec[i].value.equal(&all[k+1])
		}
		if !found {
			return false
		}
	}
	return true
}

// encodeMeta appends the dict that describes m.
func encodeMeta(e *encoder, m *meta, form metaForm) {
	at := len(e.b)
	dict := value{kind: kindDict, box: &box{m.dict(form)}}
	budget := maxValues
	if err := e.value(&dict, 0, &budget); err != nil {
		// What is in the way is in the extension.
		e.b = e.b[:at]
		plain := *m
		plain.Extension = nil
		dict.box.items = plain.dict(form)
		budget = math.MaxInt // nothing is shared
		if err := e.value(&dict, 0, &budget); err != nil {
			panic("zeo: " + err.Error())
		}
	}
}

// encodeExtension appends a pickled extension as a dict, empty if it is no readable
// dict: the transaction matters more.
func encodeExtension(e *encoder, pickled []byte) {
	at := len(e.b)
	var d pickleDecoder
	dict := value{kind: kindDict, box: &box{extensionItems(&d, pickled)}}
	budget := maxValues
	if err := e.value(&dict, 0, &budget); err != nil {
		e.b = e.b[:at]
		e.beginDict(0)
		e.endDict(0)
	}
}

// extensionItems returns keys and values in turn; they refer to d and to pickled.
func extensionItems(d *pickleDecoder, pickled []byte) []value {
	if len(pickled) == 0 {
		return nil
	}
	v, err := d.decode(pickled, false)
	if err != nil || v.kind != kindDict {
		return nil
	}
	return v.box.items
}

// clone copies a value out of its message.
func clone(v *value, depth int, budget *int) (value, error) {
	if err := v.spend(depth, budget); err != nil {
		return value{}, err
	}
	if v.kind == kindList || v.kind == kindDict { // never equal to anything
		return value{kind: kindOpaque}, nil
	}
	c := *v
	c.b = append([]byte(nil), v.b...)
	c.items = nil
	for i := range v.items {
		item, err := clone(&v.items[i], depth+1, budget)
		if err != nil {
			return value{}, err
		}
		c.items = append(c.items, item)
	}
	return c, nil
}

// seconds is the time of a transaction as Python's TimeStamp.timeTime gives it.
func seconds(t tid.TID) float64 {
	minute := (t &^ (1<<32 - 1)).Time().Truncate(time.Minute)
	return float64(minute.Unix()) + float64(uint64(t)&(1<<32-1))*60/(1<<32)
}
