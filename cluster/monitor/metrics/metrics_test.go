package metrics

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/latency"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo"
)

// gather returns what a program exports, by name.
func gather(t *testing.T, set *Set) map[string]*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(set)
	list, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*dto.MetricFamily{}
	for _, f := range list {
		all[f.GetName()] = f
	}
	return all
}

// value returns the sum of a metric with labels, KEY=VALUE.
func value(t *testing.T, all map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	t.Helper()
	sum, found := 0.0, false
	if f := all[name]; f != nil {
	series:
		for _, m := range f.Metric {
			for _, want := range labels {
				if !slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName()+"="+l.GetValue() == want }) {
					continue series
				}
			}
			found = true
			switch {
			case m.Counter != nil:
				sum += m.Counter.GetValue()
			case m.Gauge != nil:
				sum += m.Gauge.GetValue()
			case m.Histogram != nil:
				sum += float64(m.Histogram.GetSampleCount())
			}
		}
	}
	if !found {
		t.Errorf("there is no %s with %v", name, labels)
	}
	return sum
}

// full returns a program of one node of each kind of which everything is known.
func full() *Set {
	now := tid.FromTime(time.Now())
	var traffic link.TrafficStats
	traffic.In.Packets = map[string]uint64{"AskObject": 1}
	node := func(typ string, tell func(*emitter)) *Node {
		return &Node{cluster: "test", typ: typ, version: "1", look: func(context.Context) (string, func(*emitter), bool, error) { return typ, tell, false, nil }}
	}
	set := NewSet("")
	set.Certificates(nil, &tls.Config{Certificates: []tls.Certificate{{Leaf: &x509.Certificate{NotAfter: time.Unix(2000, 0)}}, {Leaf: &x509.Certificate{NotAfter: time.Unix(1000, 0)}}}})
	set.Complete(
		node("master", func(e *emitter) {
			e.master(&master.Stats{ID: 1, Primary: true, State: proto.Running, PTID: proto.Some[uint64](1), LastTID: now, Traffic: traffic,
				Nodes: map[nodetab.Class]int{{Type: proto.Storage, State: proto.NodeRunning}: 1}, Cells: map[proto.CellState]int{}})
		}),
		node("storage", func(e *emitter) {
			e.storage(&storage.Stats{Packed: now, PackOrdered: now, Import: &importing.Report{State: importing.Copying, Size: 2, Position: 1, Left: 1, WriteBack: now}}, false)
		}),
		node("admin", func(e *emitter) {
			e.admin(&admin.Stats{Connected: true, State: proto.Some(proto.Running), Cells: map[proto.CellState]int{}, LastTID: proto.Some(now),
				Backups: []admin.BackupStats{{Name: "b", Lag: proto.Some(time.Second)}}, Follows: &following.Report{Readable: now},
				Imports: map[proto.NodeID]importing.Report{1: {}}, Checks: check.Stats{Last: time.Now()}})
		}),
		node("zeo", func(e *emitter) {
			e.zeo("1", &zeo.StorageStats{LastTID: now})
			e.client("1", &client.Stats{LastTID: now})
		}),
	)
	return set
}

// Each metric is exported when what it tells is known, and named as Prometheus wants it.
func TestNames(t *testing.T) {
	all := gather(t, full())
	if got := value(t, all, "neo_node_certificate_expiry_timestamp_seconds", "node=storage"); got != 1000 {
		t.Errorf("the first certificate ends at %v, want 1000", got)
	}
	for _, name := range names {
		if all[name] == nil {
			t.Errorf("%s is never exported", name)
		}
	}
	if got := slices.Sorted(maps.Keys(all)); len(got) != len(names) {
		t.Errorf("%d metrics are exported, %d are defined", len(got), len(names))
	}
	problems, err := promlint.NewWithMetricFamilies(slices.Collect(maps.Values(all))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// What is in contrib and in the documentation names metrics that exist, with labels that they have.
func TestContribNamesMetrics(t *testing.T) {
	all := gather(t, full())
	name, selector := regexp.MustCompile(`\bneo_[a-z_]+\(?`), regexp.MustCompile(`\b(neo_[a-z_]+)\{([^}]*)\}`)
	named := func(where, text string) (n int) {
		for _, m := range name.FindAllString(text, -1) {
			n++
			if strings.HasSuffix(m, "_") || strings.HasSuffix(m, "_(") { // of several
				if !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, strings.TrimSuffix(m, "(")) }) {
					t.Errorf("%s: no metric begins with %s", where, m)
				}
			} else if all[m] == nil && all[base(m)] == nil {
				t.Errorf("%s: there is no metric %s", where, m)
			}
		}
		for _, m := range selector.FindAllStringSubmatch(text, -1) {
			f := all[m[1]]
			if f == nil {
				f = all[base(m[1])]
			}
			for _, matcher := range strings.Split(m[2], ",") {
				label := strings.TrimSpace(matcher[:max(0, strings.IndexAny(matcher, "=!"))])
				if f != nil && !slices.ContainsFunc(f.Metric[0].Label, func(l *dto.LabelPair) bool { return l.GetName() == label }) {
					t.Errorf("%s: %s has no label %q", where, m[1], label)
				}
			}
		}
		return n
	}
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if named("neo.rules.yml", string(read("../../../contrib/prometheus/neo.rules.yml"))) < 20 {
		t.Error("neo.rules.yml has hardly any metric")
	}
	var dashboard struct {
		Title  string
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(read("../../../contrib/grafana/neo.json"), &dashboard); err != nil {
		t.Fatalf("neo.json: %v", err)
	}
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d, %q, is there twice, has no title, or is too wide", p.ID, p.Title)
		}
		ids[p.ID] = true
		n := 0
		for _, q := range p.Targets {
			n += named("panel "+p.Title, q.Expr)
			n += strings.Count(q.Expr, "neobackup_") + strings.Count(q.Expr, "process_")
		}
		if n == 0 && p.Type != "row" {
			t.Errorf("panel %q shows nothing", p.Title)
		}
	}
	err := filepath.WalkDir("../../../docs", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			named(path, string(read(path)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// base returns the name of the histogram that a series belongs to.
func base(name string) string {
	for _, s := range []string{"_bucket", "_sum", "_count"} {
		name = strings.TrimSuffix(name, s)
	}
	return name
}

// A cluster counts what its clients do. The probes say how it is.
func TestCluster(t *testing.T) {
	c, err := simple.New(simple.Config{Dir: t.TempDir(), Storages: 2, Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	set := NewSet("starting: not yet")
	set.timeout = time.Minute // the machine may be busy
	m, storages, a := c.Nodes()
	if err := set.ready(t.Context()); err == nil || err.Error() != "starting: not yet" {
		t.Errorf("ready before the start: %v", err)
	}
	if err := set.alive(t.Context()); err != nil {
		t.Errorf("alive before the start: %v", err)
	}
	set.Complete(Master("neo", "1", m), Admin("neo", "1", a))
	for _, s := range storages {
		set.Add(Storage("neo", "1", s))
	}
	_, stop := started(t, c)
	defer func() {
		stop()
		if err := set.ready(context.Background()); err == nil || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("ready after the end: %v", err)
		}
		if all := gather(t, set); value(t, all, "neo_node_responsive") != 0 {
			t.Error("nodes that have ended are responsive")
		}
	}()
	if err := c.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	cl, err := client.Open(t.Context(), client.Config{Cluster: "neo", Masters: []proto.Address{c.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	serials := map[tid.OID]tid.TID{}
	commit := func(oids ...tid.OID) {
		tx, err := cl.Begin(t.Context(), client.BeginOptions{})
		if err == nil {
			for _, oid := range oids {
				err = errors.Join(err, tx.Store(t.Context(), oid, serials[oid], []byte("data")))
			}
			_, voteErr := tx.Vote(t.Context())
			err = errors.Join(err, voteErr)
		}
		if err != nil {
			t.Fatal(err)
		}
		last, err := tx.Finish(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, oid := range oids {
			serials[oid] = last
		}
	}
	commit(1, 2)
	commit(1)
	commit(3)
	tx, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	many := make([]tid.OID, 200)
	for i := range many {
		many[i] = tid.OID(100 + i)
	}
	commit(many...)
	cl.ClearCache()
	var loads sync.WaitGroup
	for _, oid := range many { // many arrive together
		loads.Go(func() {
			if _, _, err := cl.Load(t.Context(), oid); err != nil {
				t.Error(err)
			}
		})
	}
	loads.Wait()
	cl.ClearCache()
	for range 2 {
		if _, _, err := cl.Load(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.Sync(t.Context()); err != nil { // the abort has arrived
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); set.ready(t.Context()) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(set.ready(t.Context()))
		}
	}
	all := gather(t, set)
	for metric, want := range map[string]float64{
		"neo_master_primary": 1, "neo_master_transactions_begun_total": 5, "neo_master_transactions_committed_total": 4,
		"neo_master_transactions_aborted_total": 1, "neo_master_commit_duration_seconds": 4, "neo_master_transactions_pending": 0,
		"neo_master_recoveries_total": 1, "neo_cluster_partitions": 12, "neo_cluster_partitions_unreadable": 0,
		"neo_cluster_partitions_underreplicated": 0, "neo_cluster_storages_down": 0,
		"neo_storage_operational": 2, "neo_storage_loads_total": 201, "neo_storage_stores_total": 408, "neo_storage_replication_cells": 0,
		"neo_node_ready": 4, "neo_node_responsive": 4, "neo_admin_connected": 1,
	} {
		if got := value(t, all, metric); got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
	for _, want := range []struct {
		metric, label string
		value         float64
	}{
		{"neo_cluster_state", "state=RUNNING", 2}, {"neo_cluster_state", "state=RECOVERING", 0}, {"neo_cluster_cells", "state=UP_TO_DATE", 48},
		{"neo_storage_cells", "node=S1", 12}, {"neo_link_packets_total", "packet=AskStoreObject", 408},
	} {
		if got := value(t, all, want.metric, want.label); got != want.value {
			t.Errorf("%s{%s} is %v, want %v", want.metric, want.label, got, want.value)
		}
	}
	if value(t, all, "neo_storage_commit_duration_seconds") == 0 || value(t, all, "neo_storage_loaded_bytes_total") == 0 {
		t.Error("no commit, or no bytes loaded")
	}
	s := cl.Stats()
	s.Traffic, s.LastTID, s.CacheSize = link.TrafficStats{}, 0, 0
	if want := (client.Stats{Cluster: "neo", Connected: true, Storages: 2, Hits: 1, Misses: 201, MaxSize: client.DefaultCacheSize, CacheObjects: 1, Commits: 4, Aborts: 1}); !reflect.DeepEqual(s, want) {
		t.Errorf("the client says %+v, want %+v", s, want)
	}
}

// A node that does not answer is reported as that. Whether it must be started again depends on what it is.
func TestSilence(t *testing.T) {
	silent := func(busy bool) *Set {
		set := NewSet("")
		set.Complete(&Node{cluster: "c", typ: "node", busy: busy, look: func(ctx context.Context) (string, func(*emitter), bool, error) {
			<-ctx.Done()
			return "N1", func(*emitter) {}, true, fmt.Errorf("no answer: %w", ctx.Err())
		}})
		return set
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if NewSet("").timeout != statsTimeout {
		t.Error("nodes are not waited for as documented")
	}
	for _, busy := range []bool{false, true} {
		set := silent(busy)
		if err := set.ready(ctx); err == nil || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("ready: %v", err)
		}
		if err := set.alive(ctx); (err == nil) != busy {
			t.Errorf("alive although it does not answer, which it may be too busy for (%v): %v", busy, err)
		}
	}
	set := silent(false)
	set.timeout = time.Millisecond
	all := gather(t, set)
	if value(t, all, "neo_node_responsive") != 0 || value(t, all, "neo_node_ready") != 0 {
		t.Error("it is responsive, or ready")
	}
}

// A name that is not UTF-8, which the protocol and files allow, does not end the program when its
// metrics are read.
func TestNamesOfAnyBytes(t *testing.T) {
	set := NewSet("")
	set.Complete(&Node{cluster: "caf\xe9", typ: "node", look: func(context.Context) (string, func(*emitter), bool, error) {
		return "N1", func(e *emitter) {
			e.set(mBackupLag, 3, "b\xff")
			e.histogram(mCommit, latency.Snapshot{Count: 1})
		}, false, nil
	}})
	all := gather(t, set)
	for name, labels := range map[string][]string{
		"neo_node_ready":                     {"cluster=caf\uFFFD"},
		"neo_backup_lag_seconds":             {"cluster=caf\uFFFD", "backup=b\uFFFD"},
		"neo_master_commit_duration_seconds": {"cluster=caf\uFFFD"},
	} {
		if value(t, all, name, labels...) == 0 {
			t.Errorf("%s%q: 0", name, labels)
		}
	}
}

// started runs a cluster until stop, which waits for its end. The context ends before.
func started(t testing.TB, c *simple.Cluster) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	return ctx, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkScrape is the price of a scrape, of a master with 1,000 partitions, two storages and an
// admin together. Prometheus asks every 15 seconds or so.
func BenchmarkScrape(b *testing.B) {
	c, err := simple.New(simple.Config{Dir: b.TempDir(), Storages: 2, Partitions: 1000})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := started(b, c)
	defer stop()
	if err := c.WaitRunning(ctx); err != nil {
		b.Fatal(err)
	}
	set := NewSet("")
	m, storages, a := c.Nodes()
	set.Complete(Master("neo", "1", m), Admin("neo", "1", a), Storage("neo", "1", storages[0]), Storage("neo", "1", storages[1]))
	r := prometheus.NewRegistry()
	r.MustRegister(set)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
