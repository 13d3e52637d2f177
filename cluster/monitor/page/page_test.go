package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/tid"
)

var (
	day   = time.Date(2026, 11, 29, 18, 59, 3, 0, time.UTC)
	begun = day.Add(-26 * time.Hour)
)

func ref[T any](v T) *T { return &v }

// cluster is one of storages and partitions, each with two copies.
func cluster(storages, partitions int) *status.Status {
	s := &status.Status{
		Format: status.Format, Time: day, Admin: "127.0.0.1:9999", Cluster: "site", State: "RUNNING", Primary: "M1",
		Last: status.MomentOf(tid.FromTime(day.Add(-3 * time.Second))), CommitsPerSecond: ref(41.52), LoadsPerSecond: ref(1204.0),
	}
	s.Nodes = []status.Node{
		{ID: "M1", Type: "MASTER", State: "RUNNING", Address: "10.0.0.1:10000", Host: "db1", Version: "v1.4.0", Since: &begun, Commits: ref(int64(812345)), CommitsPerSecond: ref(41.52)},
		{ID: "M2", Type: "MASTER", State: "RUNNING", Address: "10.0.0.2:10000", Host: "db2", Version: "v1.4.0", Since: &begun},
		{ID: "C1", Type: "CLIENT", State: "RUNNING", Since: &begun},
		{ID: "C2", Type: "CLIENT", State: "RUNNING", Since: &begun},
		{ID: "A1", Type: "ADMIN", State: "RUNNING", Address: "10.0.0.1:9999", Host: "db1", Version: "v1.4.0", Since: &begun},
	}
	for i := 1; i <= storages; i++ {
		s.Nodes = append(s.Nodes, status.Node{
			ID: fmt.Sprintf("S%d", i), Type: "STORAGE", State: "RUNNING", Address: fmt.Sprintf("10.0.0.%d:20000", i), Host: fmt.Sprintf("db%d", i), Adapter: "SQLite",
			Database: fmt.Sprintf("/var/lib/neo/storage%d.sqlite", i), Version: "v1.4.0", Since: &begun, Cells: map[string]int{},
			Commits: ref(int64(400000)), CommitsPerSecond: ref(27.1), Loads: ref(int64(12000000)), LoadsPerSecond: ref(1204.0 / float64(storages)),
		})
	}
	s.Partitions = status.Partitions{ID: ref(uint64(7)), Replicas: 1}
	for p := range partitions {
		var row []status.Cell
		for c := range 2 {
			n := s.Node(fmt.Sprintf("S%d", (p+c)%storages+1))
			row = append(row, status.Cell{Node: n.ID, State: "UP_TO_DATE"})
			n.Cells["UP_TO_DATE"]++
		}
		s.Partitions.Rows = append(s.Partitions.Rows, row)
	}
	return s
}

func healthy() *status.Status {
	s := cluster(3, 12)
	s.Check = &status.Check{Begun: ref(day.Add(-10 * time.Hour)), Ended: ref(day.Add(-9 * time.Hour)), Complete: true, Partitions: 12, Rows: 18_203_114}
	s.Pack = &status.Pack{Order: *status.MomentOf(tid.FromTime(day.Add(-40 * time.Hour))), UpTo: status.MomentOf(tid.FromTime(day.Add(-30 * 24 * time.Hour))), Done: true, Signed: true}
	s.Backups = []status.Backup{{Cluster: "mirror", ReadableTID: status.ID(tid.FromTime(day.Add(-4 * time.Second))), Linked: true, Due: ref(0.4), Behind: true}}
	return s
}

// busy has everything that can go on, and a storage that is down.
func busy() *status.Status {
	s := cluster(3, 12)
	n := s.Node("S3")
	n.State, n.Since, n.Host = "DOWN", ref(day.Add(-12*time.Minute)), "db3"
	n.CommitsPerSecond, n.LoadsPerSecond = nil, nil
	for p := range s.Partitions.Rows {
		for i := range s.Partitions.Rows[p] {
			if c := &s.Partitions.Rows[p][i]; c.Node == "S3" || c.Node == "S2" && p == 3 {
				c.State = "OUT_OF_DATE"
				s.Replication = append(s.Replication, status.Replication{Partition: p, Node: c.Node, Running: c.Node != "S3"})
			}
		}
	}
	for _, r := range s.Replication {
		s.Node(r.Node).Cells["OUT_OF_DATE"]++
		s.Node(r.Node).Cells["UP_TO_DATE"]--
	}
	for i := range s.Replication {
		if r := &s.Replication[i]; r.Node == "S2" {
			r.Active, r.Reached, r.End = true, status.MomentOf(tid.FromTime(day.Add(-90*24*time.Hour))), s.Last
		}
	}
	s.Imports = []status.Import{
		{Node: "S1", State: "copying", Position: ref(int64(7_400_000_000)), Size: ref(int64(21_000_000_000)), Rate: 38_000_000, Left: ref(358.0), Behind: ref(int64(12))},
		{Node: "S2", State: "failed", Position: ref(int64(1_000_000)), Size: ref(int64(21_000_000_000)), Bad: true, Note: "Data.fs: transaction 040d589d876627ee: object 000000000000001f at offset 4711: the record does not end"},
	}
	s.Backups = []status.Backup{{Cluster: "mirror", ReadableTID: status.ID(tid.FromTime(day.Add(-2 * time.Hour))), Linked: false, Due: ref(7200.0), Behind: true, Note: "upstream cluster: the master at 10.0.0.1:10000 cannot be reached"}}
	s.Check = &status.Check{Begun: ref(day.Add(-10 * time.Hour)), Ended: ref(day.Add(-9 * time.Hour)), Partitions: 12, Rows: 100, Differences: 3, Nodes: []string{"S2"}, Differ: []int{4, 5, 6}}
	s.Pack = &status.Pack{Order: *status.MomentOf(tid.FromTime(day.Add(-time.Minute))), Signed: true, Waiting: []string{"S1", "S2"}}
	return s
}

// large has hundreds of partitions on tens of storages, some of which are not well.
func large() *status.Status {
	s := cluster(24, 480)
	s.Node("S7").State = "DOWN"
	s.Node("S7").Since = ref(day.Add(-time.Hour))
	for p := range s.Partitions.Rows {
		row := s.Partitions.Rows[p]
		switch {
		case p%97 == 5:
			row[1].State = "OUT_OF_DATE"
		case p == 100:
			row[0].State = "CORRUPTED"
		case p == 200:
			row[0].State = "FEEDING"
			s.Partitions.Rows[p] = append(row, status.Cell{Node: "S20", State: "OUT_OF_DATE"})
		}
	}
	for i := 3; i < 150; i++ {
		s.Nodes = append(s.Nodes, status.Node{ID: fmt.Sprintf("C%d", i), Type: "CLIENT", State: "RUNNING"})
	}
	return s
}

// unchecked is healthy, but for a check that could not compare everything.
func unchecked() *status.Status {
	s := healthy()
	s.Check.Complete = false
	return s
}

func down() *status.Status {
	s := cluster(2, 12)
	s.State, s.CommitsPerSecond, s.LoadsPerSecond, s.Last = "RECOVERING", nil, nil, nil
	for i := range s.Nodes {
		if s.Nodes[i].Type == "STORAGE" {
			s.Nodes[i].State = "DOWN"
		}
	}
	return s
}

const script1 = `<script>alert("x")</script>`

// hostile has names that would be more than text.
func hostile() *status.Status {
	s := cluster(2, 2)
	s.Cluster = script1
	n := s.Node("S1")
	n.Database, n.Host, n.Version, n.Address = script1, `"><img src=x onerror=alert(1)>`, `'--></style>`+script1, "javascript:alert(1)"
	n.ID = `S1" onmouseover="alert(1)`
	s.Imports = []status.Import{{Node: script1, State: script1, Note: script1}}
	s.Partitions.Rows[0][0].State = script1
	s.Partitions.Rows[1][0].Node = `"></ol>` + script1
	return s
}

func pageOf(s *status.Status) *Page {
	p := New(Config{Collect: func(context.Context) *status.Status { return s }, Version: "v1.4.0"})
	p.repositories = []repository{{name: "home", proofAge: ref(10800.0), proofTo: ref(float64(day.Unix() - 12000)), behind: ref(0.0)}}
	for i := range samples {
		c, l := 30+25*math.Sin(float64(i)/9)+float64(i*7%11), 900+700*math.Sin(float64(i)/25)
		if s.CommitsPerSecond == nil || i > 60 && i < 70 {
			p.commits.add(nil)
			p.loads.add(nil)
			continue
		}
		p.commits.add(&c)
		p.loads.add(&l)
	}
	return p
}

func get(t *testing.T, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w
}

func TestPage(t *testing.T) {
	for _, tt := range []struct {
		name  string
		s     *status.Status
		has   []string
		hasNo []string
	}{
		{"healthy", healthy(), []string{
			"<title>✓ site: ok</title>", "RUNNING", "Healthy", "3 of 3", "db2", "SQLite /var/lib/neo/storage2.sqlite", "since <time",
			"12 partitions, 2 copies wanted of each. All have them.", "Backup cluster mirror", "less than 2 s late", "all compared, ended 9 h ago",
			"18,203,114 rows", "done, ordered 40 h ago", ">3 s ago<", "1,204", "8 up to date", "<path class=\"line\"", "Clients: C1, C2",
			`content="10"`, "2026-11-29 18:59:03 UTC",
		}, []string{"Replication", `class="few"`, `class="lost"`}},
		{"busy", busy(), []string{
			"<title>! site: degraded</title>", "Degraded", "2 of 3", "S3 (db3, /var/lib/neo/storage3.sqlite) is DOWN since 2026-11-29",
			"cells to be copied: S2 (1), S3 (8), which does not run", "S2 copies partition 3: it has all up to 2026-08-31", "copying, 6.9 GiB of 20 GiB, 36 MiB a second, 6 min left",
			"35 %", "12 transactions still to be written back to the source", "the record does not end", "not connected", "differences in partitions 4-6",
			"goes on: S1, S2", `<li class="few"`, `title="Partition 2: S3 out of date, and its node does not run; S1 up to date"`, "✕ its node does not run",
		}, []string{"Healthy"}},
		{"unchecked", unchecked(), []string{
			"<title>! site: degraded</title>", "the last check of replicas could not compare everything (neoctl check)", "not all could be compared, ended 9 h ago",
			`<article class="bad">`,
		}, []string{"Healthy"}},
		{"large", large(), []string{"480 partitions", `title="Partition 100: S5 corrupted; S6 up to date"`, "C corrupted", "F feeding", "and 109 more", "S24"}, nil},
		{"down", down(), []string{"<title>✕ site: down</title>", "the cluster is RECOVERING", "12 cannot be read", `<li class="lost"`, "not known"}, []string{"Healthy"}},
		{"hostile", hostile(), []string{"&lt;script&gt;alert"}, []string{"<script>alert", "<img", ` onmouseover="`, "</style><script", `"></ol>`}},
	} {
		w := get(t, pageOf(tt.s), "/")
		body := w.Body.String()
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%s: %d, %v", tt.name, w.Code, w.Header())
		}
		for _, s := range tt.has {
			if !strings.Contains(body, s) {
				t.Errorf("%s: no %q", tt.name, s)
			}
		}
		for _, s := range tt.hasNo {
			if strings.Contains(body, s) {
				t.Errorf("%s: has %q", tt.name, s)
			}
		}
		if t.Failed() && testing.Verbose() {
			t.Log(body)
		}
	}
}

func TestHeaders(t *testing.T) {
	h := get(t, pageOf(healthy()), "/").Header()
	if h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%v", h)
	}
	for _, s := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'none'", "script-src 'sha256-"} {
		if csp := h.Get("Content-Security-Policy"); !strings.Contains(csp, s) || strings.Contains(csp, "unsafe") {
			t.Errorf("policy %q has no %q", csp, s)
		}
	}
	if w := get(t, pageOf(healthy()), "/etc/passwd"); w.Code != http.StatusNotFound {
		t.Errorf("another path: %d", w.Code)
	}
}

func TestJSON(t *testing.T) {
	w := get(t, pageOf(healthy()), "/status.json")
	var s document
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || s.Health.Level != status.OK || !strings.Contains(w.Body.String(), `"health":{"level":"ok"`) || s.Cluster != "site" || len(s.Nodes) != 8 || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%v, %s", err, w.Body)
	}
}

// An admin that cannot be asked makes a page that says so.
func TestUnreachable(t *testing.T) {
	p := New(Config{Collect: func(context.Context) *status.Status {
		return status.Unreachable("10.0.0.1:9999", errors.New("connection refused"))
	}})
	body := get(t, p, "/").Body.String()
	for _, s := range []string{"<title>✕ unknown: down</title>", "the admin at 10.0.0.1:9999 cannot be asked: connection refused", "Not known"} {
		if !strings.Contains(body, s) {
			t.Errorf("no %q in %s", s, body)
		}
	}
}

// A reader that goes away while the cluster is asked does not make others see a cluster that is down.
func TestReaderGoesAway(t *testing.T) {
	asked := make(chan struct{})
	hang := true
	p := New(Config{Collect: func(ctx context.Context) *status.Status {
		if hang {
			hang = false
			close(asked)
			<-ctx.Done()
			return status.Unreachable("10.0.0.1:9999", ctx.Err())
		}
		return healthy()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/", http.NoBody))
	}()
	<-asked
	cancel()
	<-gone
	if body := get(t, p, "/status.json").Body.String(); !strings.Contains(body, `"unknown":""`) {
		t.Errorf("another reader sees %s", body)
	}
}

// Many readers cost the cluster one question a second, and see nothing that is older.
func TestReadersShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		p := New(Config{Collect: func(ctx context.Context) *status.Status {
			asked++
			if _, ok := ctx.Deadline(); !ok {
				t.Error("asked without limit")
			}
			s := healthy()
			s.Time = time.Now()
			return s
		}})
		for range 20 {
			get(t, p, "/")
		}
		time.Sleep(fresh)
		if get(t, p, "/"); asked != 1 {
			t.Errorf("asked %d times within a second", asked)
		}
		time.Sleep(time.Millisecond)
		if get(t, p, "/"); asked != 2 {
			t.Error("an old status was shown")
		}
	})
}

func TestChart(t *testing.T) {
	r := newRing(samples)
	if newChart(r.points()) != nil {
		t.Error("a chart of nothing")
	}
	for i := range 3 * samples {
		f := float64(i)
		r.add(&f)
	}
	if p := r.points(); len(p) != samples || p[0] != 2*samples || p[samples-1] != 3*samples-1 {
		t.Errorf("%d points from %v to %v", len(p), p[0], p[len(p)-1])
	}
	c := newChart([]point{0, 10, math.NaN(), 5, 5})
	if c.Max != 10 || strings.Count(c.Line, "M") != 2 || strings.Count(c.Area, "Z") != 2 || strings.Contains(c.Line, "NaN") {
		t.Errorf("%+v", c)
	}
	if c := newChart([]point{0, 0}); c == nil || strings.Contains(c.Line, "NaN") {
		t.Errorf("%+v", c)
	}
}
