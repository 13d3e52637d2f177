package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

// line prints a JSON document on a line. Ids are strings of hexadecimal digits: a number of
// JSON does not hold 64 bits.
func (o *common) line(w io.Writer, doc any) error {
	b, err := appendJSON(nil, reflect.ValueOf(doc))
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// appendJSON appends what json.Marshal makes of a value, but for ids.
func appendJSON(b []byte, v reflect.Value) ([]byte, error) {
	if !v.IsValid() {
		return append(b, "null"...), nil
	}
	switch x := v.Interface().(type) {
	case tid.TID, tid.OID, snapshot.ID, snapshot.KID, snapshot.Hash:
		return fmt.Appendf(b, `"%v"`, x), nil
	case json.Marshaler, time.Time, []byte:
		return marshal(b, x)
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return appendJSON(b, v.Elem())
	case reflect.Struct:
		b, _, err := appendFields(append(b, '{'), v, false)
		return append(b, '}'), err
	case reflect.Map:
		m, ok := v.Interface().(map[string]any)
		if !ok {
			break
		}
		b = append(b, '{')
		// v comes first, for the eye.
		keys := slices.SortedFunc(maps.Keys(m), func(x, y string) int {
			switch {
			case x == "v":
				return -1
			case y == "v":
				return 1
			}
			return strings.Compare(x, y)
		})
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			var err error
			if b, err = appendJSON(fmt.Appendf(b, "%q:", k), reflect.ValueOf(m[k])); err != nil {
				return b, err
			}
		}
		return append(b, '}'), nil
	case reflect.Slice, reflect.Array:
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			var err error
			if b, err = appendJSON(b, v.Index(i)); err != nil {
				return b, err
			}
		}
		return append(b, ']'), nil
	}
	return marshal(b, v.Interface())
}

// appendFields appends the fields of a struct, those of embedded structs in place. comma says that
// one is there already.
func appendFields(b []byte, v reflect.Value, comma bool) ([]byte, bool, error) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		var err error
		if f.Anonymous && f.Tag.Get("json") == "" {
			if b, comma, err = appendFields(b, reflect.Indirect(v.Field(i)), comma); err != nil {
				return b, comma, err
			}
			continue
		}
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		x := v.Field(i)
		empty := x.IsZero() || (x.Kind() == reflect.Slice || x.Kind() == reflect.Map) && x.Len() == 0
		if name == "" || name == "-" || !f.IsExported() || (option == "omitempty" && empty || option == "omitzero" && x.IsZero()) {
			continue
		}
		if comma {
			b = append(b, ',')
		}
		comma = true
		if b, err = appendJSON(fmt.Appendf(b, "%q:", name), x); err != nil {
			return b, comma, err
		}
	}
	return b, comma, nil
}

func marshal(b []byte, x any) ([]byte, error) {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false) // URLs are to be read
	err := e.Encode(x)
	return append(b, bytes.TrimSuffix(text.Bytes(), []byte{'\n'})...), err
}
