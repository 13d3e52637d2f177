// Package moment reads places in the history of a database as operators write them, in all
// programs alike: a transaction by its id, or a time.
//
// # Invariant
//
// A moment has a TID that a database can hold, and a text means the same in all programs. The
// exception are times that name no zone in neolog: they are local, as those that it shows.
package moment

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/tid"
)

// Moment is a place in the history as an operator writes it.
type Moment struct {
	Latest   bool      // the newest transaction there is
	IsTime   bool      // a time: the greatest transaction at or before it
	Relative bool      // a time that depends on the clock
	TID      tid.TID   // of the transaction, or what the time makes
	Time     time.Time // if IsTime, UTC
}

// String returns latest, 16 hexadecimal digits, or the time.
func (m Moment) String() string {
	switch {
	case m.Latest:
		return "latest"
	case m.IsTime:
		return m.Time.Format(time.RFC3339Nano)
	}
	return m.TID.String()
}

var layouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"}

// Forms says in a sentence how a transaction is written, for the help of programs.
const Forms = "16 hexadecimal digits, 0x and hexadecimal digits, tid:<integer>, or a time: 2026-11-20T10:00:00Z, \"2026-11-20 10:00\", 2026-11-20, \"yesterday 18:00\", \"today 6:00\" (UTC) or a UNIX timestamp"

// errForm says what is wanted.
var errForm = errors.New("want a TID (16 hexadecimal digits, 0x and hexadecimal digits, or tid:<integer>), " +
	"or a time such as 2026-11-20T10:00:00Z, 2026-11-20, \"yesterday 18:00\" (UTC) or a UNIX timestamp")

// Parse reads latest, the id of a transaction, or a time. now is what today and yesterday refer
// to. A day without time is its first moment. What is before any transaction is refused.
func Parse(s string, now time.Time) (Moment, error) {
	if strings.TrimSpace(s) == "latest" {
		return Moment{Latest: true}, nil
	}
	m, err := parse(s, now)
	if errors.Is(err, errForm) {
		return Moment{}, fmt.Errorf("%q: want latest, %s", strings.TrimSpace(s), strings.TrimPrefix(errForm.Error(), "want "))
	}
	if err == nil && m.TID == tid.Zero {
		return Moment{}, fmt.Errorf("%q: nothing is that old", strings.TrimSpace(s))
	}
	return m, err
}

// ParseTID reads the id of a transaction, or a time: the greatest id that is not after it.
// It may be [tid.Zero]. now is what today and yesterday refer to.
func ParseTID(s string, now time.Time) (tid.TID, error) {
	m, err := parse(s, now)
	return m.TID, err
}

// ParseTime reads a time, or the id of a transaction, which is one. A time that names no zone,
// and today and yesterday, are those of loc.
func ParseTime(s string, now time.Time, loc *time.Location) (time.Time, error) {
	m, err := parseIn(s, now, loc)
	if errors.Is(err, errForm) {
		err = fmt.Errorf("%q: want a time such as 2026-11-20, \"2026-11-20 18:00\", 2026-11-20T18:00:00Z or \"yesterday 18:00\", a UNIX timestamp, or a TID", strings.TrimSpace(s))
	}
	if err != nil {
		return time.Time{}, err
	}
	if m.IsTime {
		return m.Time, nil
	}
	return m.TID.Time(), nil
}

// parse reads all but latest.
func parse(s string, now time.Time) (Moment, error) { return parseIn(s, now, time.UTC) }

func parseIn(s string, now time.Time, loc *time.Location) (Moment, error) {
	s = strings.TrimSpace(s)
	if t, err := tid.Parse(s); err == nil && len(s) == 16 {
		return complete(Moment{TID: t}, s)
	}
	if digits, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		n, err := strconv.ParseUint(digits, 16, 64)
		if err != nil {
			return Moment{}, fmt.Errorf("%q: want up to 16 hexadecimal digits after 0x", s)
		}
		return complete(Moment{TID: tid.TID(n)}, s)
	}
	for _, l := range layouts {
		if at, err := time.ParseInLocation(l, s, loc); err == nil {
			return complete(Moment{IsTime: true, Time: at.UTC()}, s)
		}
	}
	if day, clock, _ := strings.Cut(s, " "); day == "today" || day == "yesterday" {
		y, m, d := now.In(loc).Date()
		if day == "yesterday" {
			d--
		}
		var c time.Time
		if clock = strings.TrimSpace(clock); clock != "" {
			var err error
			if c, err = time.Parse("15:04", clock); err != nil {
				if c, err = time.Parse("15:04:05", clock); err != nil {
					return Moment{}, fmt.Errorf("%q: %q is not a time of the day, such as 18:00", s, clock)
				}
			}
		}
		at := time.Date(y, m, d, c.Hour(), c.Minute(), c.Second(), c.Nanosecond(), loc)
		return complete(Moment{IsTime: true, Relative: true, Time: at.UTC()}, s)
	}
	t, err := conf.ParseTID(s)
	switch {
	case err != nil:
		return Moment{}, fmt.Errorf("%q: %w", s, errForm)
	case t.IsTime:
		return complete(Moment{IsTime: true, Time: t.Time}, s)
	}
	return complete(Moment{TID: tid.TID(t.ID)}, s)
}

// complete sets the TID of a time, and refuses what no database can have. s is what was written.
func complete(m Moment, s string) (Moment, error) {
	if m.IsTime {
		if y := m.Time.Year(); y < 1900 || y > 9999 {
			return Moment{}, fmt.Errorf("%q is not between the years 1900 and 9999", s)
		}
		m.TID = tid.FromTime(m.Time)
	}
	if m.TID > tid.Max {
		return Moment{}, fmt.Errorf("%q is beyond the greatest TID, %v", s, tid.Max)
	}
	return m, nil
}
