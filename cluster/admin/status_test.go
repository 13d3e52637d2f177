package admin

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

func running(ltid tid.TID) status {
	return status{state: proto.Some(proto.Running), cells: map[proto.CellState]int{proto.UpToDate: 12}, ltid: proto.Some(ltid)}
}

func backingUp(at tid.TID) status {
	return status{state: proto.Some(proto.BackingUp), cells: map[proto.CellState]int{proto.UpToDate: 12}, backupTID: proto.Some(at), ltid: proto.Some(at + 5)}
}

// Lines as the Python implementation writes them.
func TestLine(t *testing.T) {
	const last = tid.TID(0x040d265c07e3a790)
	degraded := running(last)
	degraded.cells = map[proto.CellState]int{proto.UpToDate: 12, proto.OutOfDate: 12}
	degraded.down = 1
	for _, tt := range []struct {
		name   string
		status status
		lag    lag
		want   string
	}{
		{"nothing known", status{}, lag{}, "None"},
		{"degraded", degraded, lag{}, "RUNNING; OUT_OF_DATE=12, UP_TO_DATE=12; DOWN=1; ltid=040d265c07e3a790 (2026-11-20 20:12:01.849048)"},
		{"not operational: no transaction", status{state: proto.Some(proto.Recovering), ltid: proto.Some(last)}, lag{}, "RECOVERING"},
		{"date without fraction", running(tid.FromTime(time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC))), lag{}, "RUNNING; UP_TO_DATE=12; ltid=0405ed5800000000 (2026-01-02 03:04:00)"},
		{"backup", backingUp(last), lag{known: true}, "BACKINGUP; UP_TO_DATE=12; ltid=040d265c07e3a790; lag=0.0"},
		{"backup, main unknown", backingUp(last), lag{}, "BACKINGUP; UP_TO_DATE=12; ltid=040d265c07e3a790 (2026-11-20 20:12:01.849048)"},
	} {
		if got := tt.status.line(tt.lag); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestSeverity(t *testing.T) {
	cells := func(s status, m map[proto.CellState]int) status { s.cells = m; return s }
	down := running(0)
	down.down = 1
	for _, tt := range []struct {
		name   string
		status status
		backup bool
		want   severity
	}{
		{"fine", running(0), false, fine},
		{"unknown", status{}, false, problem},
		{"recovering", status{state: proto.Some(proto.Recovering)}, false, problem},
		{"node down", down, false, problem},
		{"feeding", cells(running(0), map[proto.CellState]int{proto.UpToDate: 1, proto.Feeding: 1}), false, warning},
		{"none out of date any more", cells(running(0), map[proto.CellState]int{proto.UpToDate: 1, proto.OutOfDate: 0}), false, fine},
		{"backup that does not back up", running(0), true, warning},
		{"backup", backingUp(0), true, fine},
	} {
		if got := tt.status.severity(tt.backup); got != tt.want {
			t.Errorf("%s: severity %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestLag(t *testing.T) {
	at := func(d time.Duration) tid.TID { return tid.FromTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(d)) }
	for _, tt := range []struct {
		name         string
		backup       tid.TID
		main         tid.TID
		want         string
		over, over10 bool
	}{
		{"complete", at(0), at(0), "0.0", false, false},
		{"behind by less than is shown", at(0), at(0) + 1, "ε", true, false},
		{"behind", at(0), at(15 * time.Second), "15.0", true, true},
		{"little", at(0), at(20 * time.Microsecond), "1.9e-05", true, false}, // and not 0.00002
	} {
		b, m := backingUp(tt.backup), running(tt.main)
		l := lagOf(&b, &m)
		if l.String() != tt.want || l.over(0) != tt.over || l.over(10*time.Second) != tt.over10 {
			t.Errorf("%s: lag %v, over 0: %v, over 10: %v", tt.name, l, l.over(0), l.over(10*time.Second))
		}
	}
	b, m := backingUp(1), status{}
	if l := lagOf(&b, &m); l.known {
		t.Error("lag behind a cluster that is not known")
	}
}

func TestReport(t *testing.T) {
	var m monitor
	m.init("main", []string{"z", "a", "late", "a"}, time.Second)
	m.own.status = running(tid.FromTime(time.Date(2026, 1, 1, 0, 1, 0, 0, time.UTC)))
	m.backup("late").status = backingUp(tid.FromTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)))
	m.backup("a").status = backingUp(m.own.ltid.V)
	r := m.report()
	want := `RUNNING; UP_TO_DATE=12; ltid=0405e70100000000 (2026-01-01 00:01:00)

a
    BACKINGUP; UP_TO_DATE=12; ltid=0405e70100000000; lag=0.0

late
    BACKINGUP; UP_TO_DATE=12; ltid=0405e70000000000; lag=60.0

z
    None`
	if diff := cmp.Diff(want, r.text); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]proto.Opt[string]{proto.Some("late")}, r.warning); diff != "" {
		t.Errorf("warning (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]proto.Opt[string]{proto.Some("z")}, r.problem); diff != "" {
		t.Errorf("problem (-want +got):\n%s", diff)
	}
	if got, want := r.subject([]string{"late", "z"}), "NEO monitoring: PROBLEM (late, z)"; got != want {
		t.Errorf("subject %q, want %q", got, want)
	}
}
