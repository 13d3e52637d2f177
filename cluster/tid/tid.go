// Package tid defines the two identifiers of every ZODB database: the
// transaction id and the object id, both 8 bytes, big-endian, and the clock
// from which transaction ids are made.
//
// # Invariant
//
// A [TID] encodes a moment in UTC: its high 32 bits count minutes in a calendar
// where every month has 31 days, its low 32 bits are a fraction of that minute
// (ZODB's TimeStamp). Numeric order is therefore time order, but plain addition
// may leave the calendar at the end of a month; see [TID.Add].
package tid

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"time"
)

// TID identifies a transaction: 8 bytes on the wire, an unsigned integer here.
type TID uint64

// OID identifies an object: 8 bytes on the wire, an unsigned integer here.
type OID uint64

const (
	Zero TID = 0                  // before every transaction
	Max  TID = 0x7fffffffffffffff // the greatest TID a database can hold
	// Invalid is the all-ones value that NEO uses for "unknown".
	Invalid TID = 0xffffffffffffffff

	Root       OID = 0 // the root object of a database
	MaxOID     OID = 0x7fffffffffffffff
	InvalidOID OID = 0xffffffffffffffff
)

// FromBytes reads a TID from its 8-byte form. It panics if b is shorter.
func FromBytes(b []byte) TID { return TID(binary.BigEndian.Uint64(b)) }

// OIDFromBytes reads an OID from its 8-byte form. It panics if b is shorter.
func OIDFromBytes(b []byte) OID { return OID(binary.BigEndian.Uint64(b)) }

// Append appends the 8-byte form of t to b.
func (t TID) Append(b []byte) []byte { return binary.BigEndian.AppendUint64(b, uint64(t)) }

// Append appends the 8-byte form of o to b.
func (o OID) Append(b []byte) []byte { return binary.BigEndian.AppendUint64(b, uint64(o)) }

// Bytes returns the 8-byte form of t.
func (t TID) Bytes() []byte { return t.Append(make([]byte, 0, 8)) }

// Bytes returns the 8-byte form of o.
func (o OID) Bytes() []byte { return o.Append(make([]byte, 0, 8)) }

// String returns 16 lowercase hexadecimal digits.
func (t TID) String() string { return hex.EncodeToString(t.Bytes()) }

// String returns 16 lowercase hexadecimal digits.
func (o OID) String() string { return hex.EncodeToString(o.Bytes()) }

// Partition returns the partition that holds the metadata of t among np.
func (t TID) Partition(np int) int { return int(uint64(t) % uint64(np)) }

// Partition returns the partition that holds the records of o among np.
func (o OID) Partition(np int) int { return int(uint64(o) % uint64(np)) }

// Parse reads the 16 hexadecimal digits that [TID.String] writes.
func Parse(s string) (TID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 8 {
		return 0, fmt.Errorf("transaction id %q: want 16 hexadecimal digits", s)
	}
	return FromBytes(b), nil
}

// ParseOID reads the 16 hexadecimal digits that [OID.String] writes.
func ParseOID(s string) (OID, error) {
	t, err := Parse(s)
	if err != nil {
		return 0, fmt.Errorf("object id %q: want 16 hexadecimal digits", s)
	}
	return OID(t), nil
}

// FromTime returns the TID of a moment, at the resolution of 60 s / 2³², rounded
// down. Moments before 1900 give [Zero]. Format: ZODB's TimeStamp.
func FromTime(t time.Time) TID {
	t = t.UTC()
	y, mo, d := t.Date()
	if y < 1900 {
		return Zero
	}
	h, mi, s := t.Clock()
	minutes := ((((uint64(y)-1900)*12+uint64(mo)-1)*31+uint64(d)-1)*24+uint64(h))*60 + uint64(mi)
	// The product needs 68 bits.
	hi, lo := bits.Mul64(uint64(s)*1e9+uint64(t.Nanosecond()), 1<<32)
	low, _ := bits.Div64(hi, lo, 60e9)
	return TID(minutes<<32 | min(low, 1<<32-1))
}

// Time returns the moment that t encodes, in UTC, truncated to the
// microsecond as Python shows it. Any value is accepted: impossible days are
// carried into the next month.
func (t TID) Time() time.Time {
	m := uint64(t) >> 32
	minute := m % 60
	hour := m / 60 % 24
	day := m/60/24%31 + 1
	month := m/60/24/31%12 + 1
	year := m/60/24/31/12 + 1900
	hi, lo := bits.Mul64(uint64(t)&(1<<32-1), 60e6)
	micro := hi<<32 | lo>>32
	base := time.Date(int(year), time.Month(month), int(day), int(hour), int(minute), 0, 0, time.UTC)
	return base.Add(time.Duration(micro) * time.Microsecond)
}

// Add returns t moved by n units of 60 s / 2³². Where the low word overflows or
// underflows, the minute moves in the calendar, so that the day after February
// 28th is March 1st; plain addition would give a February 29th to every year.
func (t TID) Add(n int64) TID {
	low := int64(uint64(t)&(1<<32-1)) + n
	minutes := low >> 32 // floor division, also below zero
	low &= 1<<32 - 1
	if minutes == 0 {
		return t&^(1<<32-1) | TID(low)
	}
	base := (t &^ (1<<32 - 1)).Time().Add(time.Duration(minutes) * time.Minute)
	return FromTime(base) | TID(low)
}

// Clock gives out strictly increasing TIDs from a wall clock that may stand
// still or step back. The zero Clock reads time.Now. It has one owner.
type Clock struct {
	Now  func() time.Time // default: time.Now
	last TID
}

// Next returns a TID greater than every one returned or observed before.
func (c *Clock) Next() TID {
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	t := FromTime(now())
	if t <= c.last {
		t = c.last.Add(1)
	}
	c.last = t
	return t
}

// Observe makes sure that Next never returns t or less again.
func (c *Clock) Observe(t TID) { c.last = max(c.last, t) }
