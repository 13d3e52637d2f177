package admin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// status is what is watched of a cluster, ours or a backup. The zero status is
// that of a cluster nothing is known about.
type status struct {
	state     proto.Opt[proto.ClusterState]
	down      int                     // nodes that have cells but do not run
	cells     map[proto.CellState]int // number of cells in each state; nil: not known
	ltid      proto.Opt[tid.TID]      // last transaction
	backupTID proto.Opt[tid.TID]      // up to where a backup is complete
}

// equal compares what is watched all the time; transactions are only asked for.
func (s *status) equal(o *status) bool {
	return s.state == o.state && s.down == o.down && maps.Equal(s.cells, o.cells)
}

// operational reports whether the cluster can be asked for its last transaction.
func (s *status) operational() bool {
	return s.state.OK && (s.state.V == proto.Running || s.state.V == proto.BackingUp)
}

func (s *status) backingUp() bool { return s.state.OK && s.state.V == proto.BackingUp }

// tid returns up to which transaction the cluster has everything.
func (s *status) tid() proto.Opt[tid.TID] {
	switch {
	case !s.operational():
		return proto.Opt[tid.TID]{}
	case s.backingUp():
		return s.backupTID
	}
	return s.ltid
}

// severity says how well a cluster is.
type severity uint8

const (
	fine severity = iota
	warning
	problem
)

func (s *status) severity(backup bool) severity {
	switch {
	case s.down > 0 || !s.operational():
		return problem
	case backup && !s.backingUp():
		return warning
	}
	for state, n := range s.cells {
		if state != proto.UpToDate && n > 0 {
			return warning
		}
	}
	return fine
}

// lag tells how far behind a backup is.
type lag struct {
	known  bool
	time   time.Duration
	behind bool // although time may be 0, there is something it does not have
}

// lagOf compares a backup with the cluster it is of.
func lagOf(backup, main *status) lag {
	b, m := backup.tid(), main.tid()
	if !backup.backingUp() || !b.OK || !m.OK {
		return lag{}
	}
	return lag{true, m.V.Time().Sub(b.V.Time()), b.V < m.V}
}

func (l lag) String() string {
	if l.time == 0 && l.behind {
		return "ε"
	}
	return pythonFloat(l.time.Seconds())
}

// over reports whether the backup is later than allowed.
func (l lag) over(maxLag time.Duration) bool {
	if l.time == 0 && l.behind {
		return maxLag <= 0
	}
	return l.known && l.time > maxLag
}

// line is the summary of a cluster: RUNNING; UP_TO_DATE=6; DOWN=1; ltid=… (date)
func (s *status) line(l lag) string {
	if !s.state.OK {
		return "None"
	}
	parts := []string{s.state.V.String()}
	var cells []string
	for _, state := range slices.Sorted(maps.Keys(s.cells)) {
		cells = append(cells, fmt.Sprintf("%v=%d", state, s.cells[state]))
	}
	if cells != nil {
		parts = append(parts, strings.Join(cells, ", "))
	}
	if s.down > 0 {
		parts = append(parts, fmt.Sprintf("DOWN=%d", s.down))
	}
	switch t := s.tid(); {
	case t.OK && l.known:
		parts = append(parts, fmt.Sprintf("ltid=%v", t.V), "lag="+l.String())
	case t.OK:
		parts = append(parts, fmt.Sprintf("ltid=%v (%s)", t.V, pythonTime(t.V.Time())))
	}
	return strings.Join(parts, "; ")
}

// pythonTime writes a moment as Python's datetime does: without fraction if it
// is zero, otherwise with 6 digits.
func pythonTime(t time.Time) string {
	if t.Nanosecond() == 0 {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("2006-01-02 15:04:05.000000")
}

// pythonFloat writes a number as Python's repr does.
func pythonFloat(f float64) string {
	if abs := max(f, -f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// report is what a check finds.
type report struct {
	warning, problem []proto.Opt[string] // sorted, absent is the own cluster
	text             string
}

// subject returns the subject of a mail; names are those that changed.
func (r *report) subject(changed []string) string {
	level := "OK"
	switch {
	case r.problem != nil:
		level = "PROBLEM"
	case r.warning != nil:
		level = "WARNING"
	}
	if changed != nil && level != "OK" {
		level += " (" + strings.Join(changed, ", ") + ")"
	}
	return "NEO monitoring: " + level
}

// levels returns the severity of every cluster that is not fine, by name.
func (r *report) levels(own string) map[string]severity {
	m := map[string]severity{}
	for _, list := range []struct {
		names []proto.Opt[string]
		level severity
	}{{r.warning, warning}, {r.problem, problem}} {
		for _, name := range list.names {
			if name.OK {
				m[name.V] = list.level
			} else {
				m[own] = list.level
			}
		}
	}
	return m
}

func sortNames(list []proto.Opt[string]) {
	slices.SortFunc(list, func(a, b proto.Opt[string]) int {
		if a.OK != b.OK {
			if b.OK {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.V, b.V)
	})
}
