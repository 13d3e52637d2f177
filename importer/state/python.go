package state

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat/pickle"
)

// parsePickle reads a dict of instances. What their class is does not matter.
func parsePickle(b []byte) (State, error) {
	v, n, err := pickle.Decode(b)
	if err != nil {
		return nil, err
	}
	if n < len(b) {
		return nil, errors.New("more follows its pickle")
	}
	sources, ok := v.(*pickle.Dict)
	if !ok {
		return nil, fmt.Errorf("it is a pickle of %T instead of a dict", v)
	}
	s := State{}
	for _, item := range sources.Items {
		name, ok := pickle.Text(item.Key)
		if !ok {
			return nil, fmt.Errorf("the name of a source is %T instead of text", item.Key)
		}
		o, ok := item.Value.(*pickle.Object)
		if !ok {
			return nil, fmt.Errorf("source %q is %T instead of an object", name, item.Value)
		}
		fields, ok := o.State.(*pickle.Dict)
		if !ok {
			return nil, fmt.Errorf("source %q has no fields", name)
		}
		if s[name], err = parseFields(fields); err != nil {
			return nil, fmt.Errorf("source %q: %w", name, err)
		}
	}
	return s, nil
}

func parseFields(fields *pickle.Dict) (Source, error) {
	var s Source
	var ltid tid.OID // read like the others
	for name, p := range map[string]*tid.OID{"oid": &s.OID, "ltid": &ltid, "shift_oid": &s.Shift, "next_oid": &s.Next} {
		v, ok := fields.Get(name)
		if !ok {
			return Source{}, fmt.Errorf("it has no %s", name)
		}
		if *p, ok = number(v); !ok {
			return Source{}, fmt.Errorf("its %s is %v", name, v)
		}
	}
	s.LTID = tid.TID(ltid)
	v, _ := fields.Get("mapping")
	mapping, ok := v.(*pickle.Dict)
	if !ok {
		return Source{}, fmt.Errorf("its mapping is %T instead of a dict", v)
	}
	s.Mapping = make(map[tid.OID]tid.OID, len(mapping.Items))
	for _, item := range mapping.Items {
		oid, ok := number(item.Key)
		to, ok2 := number(item.Value)
		if !ok || !ok2 {
			return Source{}, fmt.Errorf("its mapping leads from %v to %v", item.Key, item.Value)
		}
		s.Mapping[oid] = to
	}
	return s, nil
}

// number reads an integer, or the 8 bytes of one.
func number(v pickle.Value) (tid.OID, bool) {
	if n, ok := pickle.Int(v); ok {
		return tid.OID(n), n >= 0
	}
	if b, ok := pickle.RawBytes(v); ok && len(b) == 8 {
		return tid.OIDFromBytes(b), true
	}
	return 0, false
}

// pythonBytes returns the bytes of a literal as repr of Python writes it.
func pythonBytes(literal string) ([]byte, error) {
	broken := errors.New("the bytes literal is broken")
	if len(literal) < 3 || literal[len(literal)-1] != literal[1] {
		return nil, broken
	}
	s := literal[2 : len(literal)-1]
	b := make([]byte, 0, len(s))
	for len(s) > 0 {
		c := s[0]
		if s = s[1:]; c != '\\' {
			b = append(b, c)
			continue
		}
		if s == "" {
			return nil, broken
		}
		c, s = s[0], s[1:]
		switch c {
		case '\\', '\'', '"':
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'x':
			if len(s) < 2 {
				return nil, broken
			}
			n, err := strconv.ParseUint(s[:2], 16, 8)
			if err != nil {
				return nil, broken
			}
			c, s = byte(n), s[2:]
		default:
			return nil, broken
		}
		b = append(b, c)
	}
	return b, nil
}
