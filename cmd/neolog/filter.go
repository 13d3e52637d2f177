package main

import (
	"fmt"
	"math"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/moment"
	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// filter says what is shown.
type filter struct {
	from     time.Time // zero: from the beginning
	until    float64   // UNIX time
	nodes    []string  // as the column shows them; nil: all
	packets  []string  // patterns of names, in lower case; nil: all
	level    int       // of records, at least
	noPacket bool
	noRecord bool
	oids     []id
	tids     []id
}

// id is an object or transaction id that is looked for.
type id struct {
	value uint64
	words []string // as messages write it
}

// severities are the names of levels, from 10 in steps of 10.
var severities = []string{"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}

func newFilter(o *options, now time.Time) (*filter, error) {
	f := &filter{until: math.Inf(1), noRecord: o.packets != nil && o.level == "", noPacket: o.level != "" && o.packets == nil}
	var err error
	if o.from != "" {
		if f.from, err = parseTime(o.from, now); err != nil {
			return nil, cli.Usagef("--from: %w", err)
		}
	}
	if o.until != "" {
		until, err := parseTime(o.until, now)
		if err != nil {
			return nil, cli.Usagef("--until: %w", err)
		}
		f.until = float64(until.UnixNano()) / 1e9
	}
	for _, n := range o.nodes {
		if n != "-" {
			f.nodes = append(f.nodes, n)
		}
	}
	if o.level != "" {
		i := slices.Index(severities, strings.ToUpper(o.level))
		if i < 0 {
			return nil, cli.Usagef("--level: %q is none of %s%s", o.level, strings.Join(severities, ", "), conf.DidYouMean(o.level, severities))
		}
		f.level = (i + 1) * 10
	}
	for _, p := range o.packets {
		if err := checkPattern(p); err != nil {
			return nil, cli.Usagef("--packet: %w", err)
		}
		f.packets = append(f.packets, strings.ToLower(p))
	}
	if f.oids, err = parseIDs(o.oid); err != nil {
		return nil, cli.Usagef("--oid: %w", err)
	}
	if f.tids, err = parseIDs(o.tid); err != nil {
		return nil, cli.Usagef("--tid: %w", err)
	}
	return f, nil
}

// checkPattern refuses a pattern that no packet has.
func checkPattern(p string) error {
	names := proto.Names()
	for _, n := range append(names, unknownPacket(0)) {
		ok, err := path.Match(strings.ToLower(p), strings.ToLower(n))
		if err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		if ok {
			return nil
		}
	}
	return fmt.Errorf("no packet is called %q%s", p, conf.DidYouMean(p, names))
}

// parseIDs reads ids: up to 16 hexadecimal digits, with or without 0x.
func parseIDs(list []string) (ids []id, err error) {
	for _, s := range list {
		v, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(s), "0x"), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not an id: up to 16 hexadecimal digits, such as 1f or 0x40d564cb0d194fc", s)
		}
		ids = append(ids, id{v, []string{fmt.Sprintf("%016x", v), fmt.Sprintf("0x%x", v), fmt.Sprintf("0x%016x", v)}})
	}
	return ids, nil
}

// parseTime reads a time. What names no zone is local, as what is shown.
func parseTime(s string, now time.Time) (time.Time, error) {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseFloat(s, 64); err == nil && len(s) < 16 && math.Abs(n) < 1e10 {
		d := time.Duration(math.Round(n*1e6)) * time.Microsecond
		if strings.HasPrefix(s, "-") {
			return now.Add(d), nil
		}
		return time.Unix(0, 0).Add(d), nil
	}
	t, err := moment.ParseTime(s, now, time.Local)
	if err != nil {
		return t, fmt.Errorf("%w; -N is N seconds ago", err)
	}
	return t, nil
}

// wants reports whether an entry may be shown, by what need not be decoded. node is
// what the column shows.
func (f *filter) wants(node string, e *nodelog.Entry) bool {
	if e.Date > f.until || f.nodes != nil && !slices.Contains(f.nodes, node) {
		return false
	}
	if e.Packet == nil {
		return !f.noRecord && e.Level >= f.level
	}
	if f.noPacket {
		return false
	}
	if f.packets == nil {
		return true
	}
	name := strings.ToLower(packetName(e))
	return slices.ContainsFunc(f.packets, func(p string) bool {
		ok, err := path.Match(p, name)
		return err == nil && ok // the pattern was checked
	})
}

// byID reports whether an entry is looked for by an id.
func (f *filter) byID() bool { return f.oids != nil || f.tids != nil }

// mentions reports whether an entry tells of the objects and transactions that are
// looked for. p is its packet, if it could be read.
func (f *filter) mentions(e *nodelog.Entry, p proto.Packet) bool {
	if e.Packet == nil {
		return (f.oids == nil || inText(f.oids, e.Msg)) && (f.tids == nil || inText(f.tids, e.Msg))
	}
	if p == nil {
		return false
	}
	v := reflect.ValueOf(p).Elem()
	return (f.oids == nil || inValue(f.oids, v, reflect.TypeFor[tid.OID]())) && (f.tids == nil || inValue(f.tids, v, reflect.TypeFor[tid.TID]()))
}

func inText(ids []id, text string) bool {
	for _, id := range ids {
		for _, w := range id.words {
			for rest := text; ; {
				before, after, ok := strings.Cut(rest, w)
				if !ok {
					break
				}
				if !endsInDigit(before) && !startsWithDigit(after) { // not within a longer number
					return true
				}
				rest = after
			}
		}
	}
	return false
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
func endsInDigit(s string) bool     { return s != "" && isHex(s[len(s)-1]) }
func startsWithDigit(s string) bool { return s != "" && isHex(s[0]) }

// inValue reports whether one of the ids is somewhere in v, as a value of type t.
func inValue(ids []id, v reflect.Value, t reflect.Type) bool {
	switch {
	case v.Kind() == reflect.Invalid:
		return false
	case v.Type() == t:
		return slices.ContainsFunc(ids, func(i id) bool { return i.value == v.Uint() })
	}
	switch v.Kind() {
	case reflect.Struct:
		if ok := v.FieldByName("OK"); ok.IsValid() && ok.Kind() == reflect.Bool && !ok.Bool() {
			return false // an Opt that is absent
		}
		for i := range v.NumField() {
			if inValue(ids, v.Field(i), t) {
				return true
			}
		}
	case reflect.Pointer, reflect.Interface:
		return inValue(ids, v.Elem(), t)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return false
		}
		for i := range v.Len() {
			if inValue(ids, v.Index(i), t) {
				return true
			}
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if inValue(ids, it.Key(), t) || inValue(ids, it.Value(), t) {
				return true
			}
		}
	}
	return false
}
