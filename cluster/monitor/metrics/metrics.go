// Package metrics makes metrics for Prometheus, and probes, of what nodes say of themselves. The
// nodes know nothing of it.
//
// # Invariant
//
// The number of series is bounded by the number of nodes, states, kinds of packets and configured
// names: no label has a value that comes from an object, a transaction or a client. What is not
// known is left out rather than reported as 0.
package metrics

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neozodb/neo/cluster/latency"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/monitor"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// statsTimeout is how long a node may take to say how it is. It is less than what scrapes and
// probes may take.
const statsTimeout = 2 * time.Second

// metric is one name in what a program exports.
type metric struct {
	name string
	desc *prometheus.Desc
	typ  prometheus.ValueType
}

// names has all metrics of this package.
var names []string

func define(typ prometheus.ValueType, name, help string, labels []string) *metric {
	name = "neo_" + name
	names = append(names, name)
	return &metric{name, prometheus.NewDesc(name, help, append([]string{"cluster", "node"}, labels...), nil), typ}
}

func gauge(name, help string, labels ...string) *metric {
	return define(prometheus.GaugeValue, name, help, labels)
}

func counter(name, help string, labels ...string) *metric {
	return define(prometheus.CounterValue, name, help, labels)
}

// histogram defines a metric for [emitter.histogram], which gives it its type.
func histogram(name, help string) *metric { return define(prometheus.UntypedValue, name, help, nil) }

// Metrics of every node.
var (
	mInfo       = gauge("node_info", "1, with the kind of the node and its version.", "type", "version")
	mStarted    = gauge("node_start_timestamp_seconds", "When the program was started. A hardened service cannot export process_start_time_seconds.")
	mReady      = gauge("node_ready", "1 if the node serves its purpose, as /readyz says.")
	mExpiry     = gauge("node_certificate_expiry_timestamp_seconds", "When the first of the certificates ends that the program has read.")
	mResponsive = gauge("node_responsive", "1 if the node has answered within 2 seconds. Otherwise only what it counts is reported.")

	mConnections = gauge("link_connections", "Connections with other nodes that are open, in either direction.")
	mOpened      = counter("link_connections_opened_total", "Connections with other nodes so far.")
	mBytes       = counter("link_bytes_total", "Bytes of packets, before encryption.", "direction")
	mPackets     = counter("link_packets_total", "Packets, without signs of life.", "direction", "packet")
)

// Of a cluster, as a primary master and an admin see it.
var (
	mState       = gauge("cluster_state", "1 for the state that the cluster is in.", "state")
	mNodes       = gauge("cluster_nodes", "Nodes that are known.", "type", "state")
	mCells       = gauge("cluster_cells", "Cells of the partition table.", "state")
	mLastTID     = gauge("cluster_last_transaction_timestamp_seconds", "Time of the last transaction.")
	clusterState = []proto.ClusterState{proto.Recovering, proto.Verifying, proto.Running, proto.Stopping, proto.StartingBackup, proto.BackingUp, proto.StoppingBackup}
	cellStates   = []proto.CellState{proto.OutOfDate, proto.UpToDate, proto.Feeding, proto.Corrupted}
)

// Node is a node that is watched.
type Node struct {
	cluster, typ, version string

	// look asks the node, and returns its name, and why it does not serve its purpose. silent: it
	// did not answer, which err says. tell exports what it said.
	look func(ctx context.Context) (name string, tell func(*emitter), silent bool, err error)
	// busy tells that a node that does not answer may just have much to do, and for long.
	busy bool
}

// Set is a program: the nodes that run in it. Its methods may be called at any time.
type Set struct {
	starting string // what the program does while there is no node yet
	started  time.Time
	timeout  time.Duration // of a node to say how it is

	mu     sync.Mutex
	nodes  []*Node
	full   bool
	expiry time.Time // of the first certificate that ends; zero: there is none
}

// NewSet returns a program without nodes. It is not ready before [Set.Complete]: starting says why.
func NewSet(starting string) *Set {
	return &Set{starting: starting, started: time.Now(), timeout: statsTimeout}
}

// Add adds nodes.
func (s *Set) Add(nodes ...*Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes = append(s.nodes, nodes...)
}

// Complete adds the last nodes.
func (s *Set) Complete(nodes ...*Node) {
	s.Add(nodes...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = true
}

// Certificates notes when the certificates end that the program shows. A nil configuration has none.
func (s *Set) Certificates(configs ...*tls.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cfg := range configs {
		if cfg == nil {
			continue
		}
		for _, c := range cfg.Certificates {
			if end := c.Leaf; end != nil && (s.expiry.IsZero() || end.NotAfter.Before(s.expiry)) {
				s.expiry = end.NotAfter
			}
		}
	}
}

func (s *Set) list() (nodes []*Node, full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[:len(s.nodes):len(s.nodes)], s.full
}

// Config returns what a server of the program shows.
func (s *Set) Config() monitor.Config {
	return monitor.Config{Alive: s.alive, Ready: s.ready, Collectors: []prometheus.Collector{s}}
}

// alive returns why the program should be started again.
func (s *Set) alive(ctx context.Context) error {
	nodes, _ := s.list()
	var must []*Node
	for _, n := range nodes {
		if !n.busy {
			must = append(must, n)
		}
	}
	return s.probe(ctx, must, func(silent bool, err error) error {
		if silent {
			return err
		}
		return nil
	})
}

// ready returns why the program does not serve its purpose.
func (s *Set) ready(ctx context.Context) error {
	nodes, full := s.list()
	if !full {
		return errors.New(s.starting)
	}
	return s.probe(ctx, nodes, func(_ bool, err error) error { return err })
}

// probe asks all nodes at once. It returns the first reason.
func (s *Set) probe(ctx context.Context, nodes []*Node, reason func(silent bool, err error) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			name, _, silent, err := n.look(ctx)
			if err = reason(silent, err); err != nil && len(nodes) > 1 {
				err = fmt.Errorf("%s %s: %w", n.typ, name, err)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Describe implements [prometheus.Collector]: what there is depends on the nodes.
func (s *Set) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (s *Set) Collect(ch chan<- prometheus.Metric) {
	nodes, _ := s.list()
	s.mu.Lock()
	expiry := s.expiry
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			name, tell, silent, err := n.look(ctx)
			e := &emitter{ch, n.cluster, name}
			e.set(mInfo, 1, n.typ, n.version)
			e.set(mStarted, float64(s.started.UnixMilli())/1e3)
			if !expiry.IsZero() {
				e.set(mExpiry, float64(expiry.Unix()))
			}
			e.flag(mResponsive, !silent)
			e.flag(mReady, err == nil)
			tell(e)
		})
	}
	wg.Wait()
}

// emitter exports the metrics of a node.
type emitter struct {
	ch            chan<- prometheus.Metric
	cluster, node string
}

func (e *emitter) set(m *metric, v float64, labels ...string) {
	e.ch <- prometheus.MustNewConstMetric(m.desc, m.typ, v, valid(append([]string{e.cluster, e.node}, labels...))...)
}

// valid makes UTF-8 of labels, which Prometheus requires: names of clusters and of ZEO storages are any bytes.
func valid(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	return labels
}

func (e *emitter) flag(m *metric, on bool, labels ...string) {
	v := 0.0
	if on {
		v = 1
	}
	e.set(m, v, labels...)
}

// time exports when a transaction was, unless there is none.
func (e *emitter) time(m *metric, t tid.TID, labels ...string) {
	if t > tid.Zero {
		e.set(m, float64(t.Time().UnixMicro())/1e6, labels...)
	}
}

func (e *emitter) histogram(m *metric, s latency.Snapshot) {
	within := make(map[float64]uint64, len(s.Within))
	for i, n := range s.Within {
		within[latency.Bounds[i].Seconds()] = n
	}
	e.ch <- prometheus.MustNewConstHistogram(m.desc, s.Count, s.Sum.Seconds(), within, valid([]string{e.cluster, e.node})...)
}

func (e *emitter) states(state proto.ClusterState) {
	for _, s := range clusterState {
		e.flag(mState, s == state, s.String())
	}
}

func (e *emitter) cells(m *metric, cells map[proto.CellState]int) {
	for _, s := range cellStates {
		e.set(m, float64(cells[s]), s.String())
	}
}

func (e *emitter) traffic(t *link.TrafficStats) {
	e.set(mConnections, float64(t.Connections))
	e.set(mOpened, float64(t.Opened))
	for direction, d := range map[string]struct {
		bytes   uint64
		packets map[string]uint64
	}{"in": {t.In.Bytes, t.In.Packets}, "out": {t.Out.Bytes, t.Out.Packets}} {
		e.set(mBytes, float64(d.bytes), direction)
		for name, n := range d.packets {
			e.set(mPackets, float64(n), direction, name)
		}
	}
}

// named returns the name of a node: its id, or the address at which it listens before it has one.
func named(id proto.NodeID, addr proto.Address) string {
	if id == 0 {
		return addr.String()
	}
	return id.String()
}
