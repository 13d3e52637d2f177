package conf

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// ErrNotTID reports that a text does not have the form of a transaction id.
var ErrNotTID = errors.New("not a transaction id")

// A TID is a transaction id as an operator writes it: either the id itself or a
// moment, which the caller converts.
type TID struct {
	ID     uint64
	IsTime bool
	Time   time.Time // if IsTime
}

// ParseTID reads tid:<integer> (decimal, or with the prefix 0x, 0o or 0b; the
// word in any case), or a UNIX timestamp in seconds. A bare integer is always a
// timestamp: a forgotten "tid:" must not truncate a database to nothing.
func ParseTID(s string) (TID, error) {
	if prefix, digits, ok := strings.Cut(s, ":"); ok && strings.EqualFold(prefix, "tid") {
		n, err := strconv.ParseUint(digits, 0, 64)
		if err != nil {
			return TID{}, fmt.Errorf("%q: %w: want an integer after the colon", s, ErrNotTID)
		}
		return TID{ID: n}, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return TID{}, fmt.Errorf("%q: %w: want tid:<integer> or a UNIX timestamp", s, ErrNotTID)
	}
	if f < minTimestamp || f >= maxTimestamp {
		return TID{}, fmt.Errorf("%q: %w: a UNIX timestamp is between years 1900 and 9999", s, ErrNotTID)
	}
	r := new(big.Rat).SetFloat64(f)
	if len(s) < 32 && strings.Trim(s, "+-0123456789.") == "" {
		// The nearest float would lose digits of a decimal text.
		r.SetString(s)
	}
	r.Mul(r, big.NewRat(1e9, 1))
	ns := new(big.Int).Div(r.Num(), r.Denom())
	sec, frac := new(big.Int).DivMod(ns, big.NewInt(1e9), new(big.Int))
	return TID{IsTime: true, Time: time.Unix(sec.Int64(), frac.Int64()).UTC()}, nil
}

// Range of timestamps that a transaction id can hold.
const (
	minTimestamp = -2208988800  // 1900-01-01
	maxTimestamp = 253402300800 // 10000-01-01
)

// namespace is the part of a node id that tells the type of the node.
var namespace = map[byte]int32{'S': 0, 'M': -1 << 28, 'C': -2 << 28, 'A': -3 << 28}

// ParseNodeID reads the id of a node as operators write it: a capital letter,
// S for storages, M masters, C clients, A admins, and a number from 1. The
// result is the number on the wire.
func ParseNodeID(s string) (int32, error) {
	if s != "" {
		if base, ok := namespace[s[0]]; ok {
			n, err := strconv.ParseUint(s[1:], 10, 24)
			if err == nil && n > 0 && s[1] != '+' {
				return base + int32(n), nil
			}
		}
	}
	return 0, fmt.Errorf("%q is not a node: want a letter and a number, like S1", s)
}
