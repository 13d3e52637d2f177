package plan

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/pickle"
)

// applicationRoot is the name of the application in the root of a database of Zope.
const applicationRoot = "Application"

// maxSeen is how many objects an element of a path is sought in: a folder, its BTree, a few
// nodes of that.
const maxSeen = 100

// A notFoundError says how far a path could be followed.
type notFoundError struct {
	at     string // the object, by its path
	oid    tid.OID
	reason string
}

func (e *notFoundError) Error() string {
	return fmt.Sprintf("%s (object %d): %s", e.at, uint64(e.oid), e.reason)
}

// walker follows paths in a database, without any class of the application.
type walker struct {
	ctx  context.Context
	db   txn.Database
	seen map[tid.OID]bool // objects in which the present element was sought
}

// walk returns the object that a path leads to, from what the root of the database has under
// a name.
func (w *walker) walk(root, path string) (tid.OID, error) {
	at, oid := "root", tid.OID(0)
	names := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	if root != "" {
		names = append([]string{root}, names...)
	}
	for _, name := range names {
		w.seen = map[tid.OID]bool{}
		v, err := w.element(oid, name)
		if err != nil {
			return 0, &notFoundError{at, oid, err.Error()}
		}
		if v == nil {
			return 0, &notFoundError{at, oid, fmt.Sprintf("has nothing called %q", name)}
		}
		id, ok := v.(pickle.PersID)
		if !ok {
			return 0, &notFoundError{at, oid, fmt.Sprintf("%q is no object of its own, but a part of this one", name)}
		}
		next, database, ok := reference(id)
		switch {
		case !ok:
			return 0, &notFoundError{at, oid, fmt.Sprintf("%q is a reference of unknown form", name)}
		case database != "":
			return 0, &notFoundError{at, oid, fmt.Sprintf("%q is in another database, %q", name, database)}
		}
		at, oid = at+"/"+name, next
	}
	if _, _, err := w.load(oid); err != nil {
		return 0, &notFoundError{at, oid, err.Error()}
	}
	return oid, nil
}

// load returns class and state of an object as it is now.
func (w *walker) load(oid tid.OID) (class string, state pickle.Value, err error) {
	rev, err := w.db.LoadBefore(w.ctx, oid, tid.Max)
	if err != nil {
		return "", nil, err
	}
	plain, _, err := pickle.Unwrap(rev.Data)
	if err != nil {
		return "", nil, err
	}
	c, state, err := pickle.DecodeRecord(plain)
	return className(c), state, err
}

// className returns the name of a class without its module, as far as the first pickle of a
// record tells.
func className(c pickle.Value) string {
	switch c := c.(type) {
	case pickle.Global:
		return c.Name
	case pickle.Tuple: // class, arguments; or (module, name), arguments
		if len(c) == 2 {
			if name, ok := pickle.Text(c[1]); ok {
				return name
			}
		}
		if len(c) > 0 {
			return className(c[0])
		}
	}
	return ""
}

// Where folders and mappings keep what is in them, beside attributes.
var contents = []string{"_tree", "data", "_container", "_SampleContainer__data"}

// element returns what an object has under a name: an attribute, or what it contains. nil:
// it has nothing.
func (w *walker) element(oid tid.OID, name string) (pickle.Value, error) {
	if len(w.seen) == maxSeen {
		return nil, fmt.Errorf("the search for %q does not end", name)
	}
	if w.seen[oid] {
		return nil, nil
	}
	w.seen[oid] = true
	class, state, err := w.load(oid)
	if err != nil {
		return nil, err
	}
	if d := attributes(state); d != nil {
		if v, ok := d.Get(name); ok {
			return v, nil
		}
		for _, key := range contents {
			v, _ := d.Get(key)
			switch v := v.(type) {
			case *pickle.Dict:
				if v, ok := v.Get(name); ok {
					return v, nil
				}
			case pickle.PersID:
				inner, database, ok := reference(v)
				if !ok || database != "" {
					continue
				}
				if v, err := w.element(inner, name); v != nil || err != nil {
					return v, err
				}
			}
		}
		return nil, nil
	}
	if t, ok := state.(pickle.Tuple); ok {
		return w.tree(class, t, name)
	}
	return nil, nil
}

// attributes returns those of the state of an ordinary object, nil if it is of another
// kind.
func attributes(state pickle.Value) *pickle.Dict {
	if t, ok := state.(pickle.Tuple); ok && len(t) == 2 { // with slots
		state = t[0]
	}
	d, _ := state.(*pickle.Dict)
	return d
}

// tree returns the value of a key of a BTree, or of a bucket of one.
func (w *walker) tree(class string, state pickle.Tuple, name string) (pickle.Value, error) {
	if len(state) == 0 {
		return nil, nil
	}
	items, ok := state[0].(pickle.Tuple)
	if !ok {
		return nil, nil
	}
	if strings.Contains(class, "Bucket") {
		return inBucket(items, name), nil
	}
	if len(state) == 1 { // a small tree: its only bucket is a part of it
		if len(items) != 1 {
			return nil, nil
		}
		bucket, _ := items[0].(pickle.Tuple)
		if len(bucket) == 0 {
			return nil, nil
		}
		inside, _ := bucket[0].(pickle.Tuple)
		return inBucket(inside, name), nil
	}
	// child, key, child, key, child ...: a key is the least of the child behind it
	child := pickle.Value(nil)
	for i := 0; i < len(items); i += 2 {
		if i > 0 {
			key, ok := pickle.Text(items[i-1])
			if !ok || key > name {
				break
			}
		}
		child = items[i]
	}
	id, ok := child.(pickle.PersID)
	if !ok {
		return nil, nil
	}
	oid, database, ok := reference(id)
	if !ok || database != "" {
		return nil, nil
	}
	return w.element(oid, name)
}

// inBucket returns the value of a key in key, value, key, value ...
func inBucket(items pickle.Tuple, name string) pickle.Value {
	for i := 0; i+1 < len(items); i += 2 {
		if key, ok := pickle.Text(items[i]); ok && key == name {
			return items[i+1]
		}
	}
	return nil
}

// reference returns the object that a strong reference leads to, and its database if that is
// another one.
func reference(id pickle.PersID) (oid tid.OID, database string, ok bool) {
	v := id.ID
	if l, isList := v.(*pickle.List); isList && len(l.Items) == 2 {
		kind, _ := pickle.Text(l.Items[0])
		args, _ := l.Items[1].(pickle.Tuple)
		if kind != "m" && kind != "n" || len(args) < 2 {
			return 0, "", false
		}
		if database, ok = pickle.Text(args[0]); !ok {
			return 0, "", false
		}
		v = args[1]
	}
	if t, isTuple := v.(pickle.Tuple); isTuple && len(t) == 2 {
		v = t[0]
	}
	b, ok := pickle.RawBytes(v)
	if !ok {
		var text string
		text, ok = pickle.Text(v)
		b = []byte(text)
	}
	if !ok || len(b) != 8 {
		return 0, "", false
	}
	return tid.OID(binary.BigEndian.Uint64(b)), database, true
}
