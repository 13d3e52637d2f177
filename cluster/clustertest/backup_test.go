package clustertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	report "github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// scenario is an upstream cluster, its client, and a backup cluster.
type scenario struct {
	*following
	*replicas // the upstream cluster
	cl        *client.Client
	n         atomic.Int64 // of puts
}

// scenarioPlan is an upstream cluster of two storages, and a backup of two that has the given
// number of copies of each partition beside the first.
func scenarioPlan(copies int) FollowPlan {
	side := Plan{Seed: 1, Storages: 2, Partitions: 2, Clients: 2, Objects: 4, Delay: 5 * time.Millisecond}
	plan := FollowPlan{Plan: side, Backup: side, FromStart: true, Fetch: 2, Readers: 1, Packed: true}
	plan.Backup.Replicas = copies
	return plan
}

// backupScenario runs test with the clusters of a scenarioPlan.
func backupScenario(t *testing.T, copies int, test func(s *scenario)) {
	runScenario(t, scenarioPlan(copies), scenarioLog(), test)
}

// runScenario runs test when the backup of a plan follows.
func runScenario(t *testing.T, plan FollowPlan, log *slog.Logger, test func(s *scenario)) {
	simulatePair(t, plan, log, func(f *following) {
		s := &scenario{following: f, replicas: &replicas{simulation: f.up}}
		var err error
		if s.cl, err = f.up.open(f.up.ctx, 0); err != nil {
			t.Fatal(err)
		}
		defer func() { s.cl.Close() }()
		f.await(f.down, proto.BackingUp)
		test(s)
	})
}

// put commits upstream.
func (s *scenario) put(oids ...tid.OID) tid.TID {
	return s.write(s.up.ctx, s.cl, fmt.Sprint("put ", s.n.Add(1)), false, oids...)
}

// packAll packs the upstream cluster up to its last transaction.
func (s *scenario) packAll() {
	if err := s.readHistory(); err != nil {
		s.t.Fatal(err)
	}
	s.packs = append(s.packs, followPack{time: s.looked})
	s.packNow(s.up.ctx, s.cl)
}

// backup returns the state of the backup, and what it has.
func (s *scenario) backup() (proto.ClusterState, ctl.LastIDs) {
	s.t.Helper()
	state, ids, err := s.following.state(s.down)
	if err != nil {
		s.t.Fatal(err)
	}
	return state, *ids
}

// reads loads an object from the backup, as of what its client knows; nil: it is not there.
func (s *scenario) reads(oid tid.OID) string {
	s.t.Helper()
	cl, err := s.following.open(0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer cl.Close()
	last, err := cl.LastTID(s.down.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	data, err := load(s.down.ctx, cl, oid, last)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

// storageLinks changes the links between the storages of both clusters.
func (s *scenario) storageLinks(change func(a, b string)) {
	for i := range s.up.plan.Storages {
		for j := range s.down.plan.Storages {
			change(s.up.storageHost(i), s.down.storageHost(j))
		}
	}
}

// A new cluster is a backup at once, stays one when all of its nodes are restarted, and is
// left with nothing lost.
func TestBackupNormalCase(t *testing.T) {
	t.Run("restart", func(t *testing.T) {
		backupScenario(t, 1, func(s *scenario) {
			s.put(s.oids[0], s.oids[1])
			s.caughtUp()
			for i := range 3 {
				s.down.crash(i, 0)
			}
			last := s.put(s.oids[0])
			s.caughtUp()
			if _, ids := s.backup(); ids.BackupTID.V != last {
				t.Errorf("the backup has %+v, not %v", ids, last)
			}
			s.look()
			s.leave()
			s.down.compareReplicas()
		})
	})
	// The cluster is left with what the furthest copies have: the others copy it first.
	t.Run("a replica is late", func(t *testing.T) {
		backupScenario(t, 1, func(s *scenario) {
			s.caughtUp()
			time.Sleep(time.Second) // the replicas, too
			s.down.net.Hold(s.down.storageHost(0), s.down.storageHost(1))
			last := s.put(s.oids...)
			time.Sleep(2 * time.Second)
			time.AfterFunc(3*time.Second, func() { s.down.net.Release(s.down.storageHost(0), s.down.storageHost(1)) })
			s.leave()
			if _, ids := s.backup(); ids.LastTID.V != last {
				t.Errorf("the last transaction is %v, not %v", ids.LastTID, last)
			}
			s.down.compareReplicas()
		})
	})
	// What was only received in part is given up.
	t.Run("left while it receives", func(t *testing.T) {
		backupScenario(t, 1, func(s *scenario) {
			kept := s.put(s.oids...)
			s.caughtUp()
			s.storageLinks(func(up, down string) { s.up.net.Delay(up, down, time.Second, time.Second) })
			s.put(s.oids...)
			s.put(s.oids...)
			time.Sleep(1500 * time.Millisecond)
			s.leave()
			if _, ids := s.backup(); ids.LastTID.V != kept {
				t.Errorf("the last transaction is %v, not %v", ids.LastTID, kept)
			}
			s.down.compareReplicas()
		})
	})
	// After an interruption the backup goes on although nothing is committed upstream.
	t.Run("upstream is idle", func(t *testing.T) {
		backupScenario(t, 1, func(s *scenario) {
			s.caughtUp()
			s.storageLinks(s.up.net.Cut)
			s.put(s.oids...)
			time.Sleep(3 * time.Second)
			s.up.net.Cut(s.up.masterHost(), s.down.masterHost())
			time.Sleep(3 * time.Second)
			s.storageLinks(s.up.net.Heal)
			s.up.net.Heal(s.up.masterHost(), s.down.masterHost())
			s.caughtUp()
			s.look()
			s.leave()
			s.down.compareReplicas()
		})
	})
}

// The backup goes on after the loss of the link upstream and of each of its storages.
func TestBackupNodeLost(t *testing.T) {
	backupScenario(t, 1, func(s *scenario) {
		for i := range 6 {
			s.put(s.oids[i%4])
			switch i % 3 {
			case 0:
				s.up.net.Drop(s.up.masterHost(), s.down.masterHost())
			default:
				s.down.crash(i%3-1, time.Second)
			}
			s.put(s.oids[(i+1)%4])
			s.caughtUp()
		}
		s.look()
		s.leave()
		time.Sleep(5 * time.Minute)
		s.down.compareReplicas()
	})
}

// Clients can read a backup, and nothing else.
func TestBackupReadOnlyAccess(t *testing.T) {
	backupScenario(t, 0, func(s *scenario) {
		s.put(s.oids[0])
		s.caughtUp()
		if got, want := s.reads(s.oids[0]), fmt.Sprint("put 1 ", s.oids[0]); got != want {
			t.Errorf("read %q, want %q", got, want)
		}
		cfg := client.Config{Cluster: s.down.cluster, Masters: s.down.masters(), Network: s.down.net.Host(s.down.clientHost(1)), Dialer: &link.Dialer{}}
		if cl, err := client.Open(s.down.ctx, cfg); !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("a client that wants to write: %v", err)
			if err == nil {
				cl.Close()
			}
		}
		cfg.ReadOnly = true
		cl, err := client.Open(s.down.ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		if _, err := cl.Begin(s.down.ctx, client.BeginOptions{}); err == nil {
			t.Error("a transaction has begun")
		}
		if db, err := Dump(s.down.ctx, cl); err != nil || len(db) != 2 {
			t.Errorf("%d transactions, %v", len(db), err)
		}
	})
}

// A storage that was away is not counted as further than it is: until it has what it
// missed, its cells are not read.
func TestBackupTid(t *testing.T) {
	backupScenario(t, 1, func(s *scenario) {
		done := make(chan struct{})
		ended := make(chan struct{})
		go func() { s.monitor(done); close(ended) }()
		for i := range 4 {
			s.put(s.oids...)
			s.caughtUp()
			go func() {
				time.Sleep(50 * time.Millisecond)
				s.put(s.oids[i%4])
			}()
			s.down.crash(i%2, 2*time.Second)
			last := s.put(s.oids[(i+1)%4])
			s.caughtUp()
			for _, oid := range s.oids {
				if got := s.reads(oid); got == "" {
					t.Errorf("%v is not there at %v", oid, last)
				}
			}
		}
		close(done)
		<-ended
		s.look()
		s.leave()
		s.down.compareReplicas()
	})
}

// What upstream tells before it has told its last transaction, and its pack orders, does not count: a
// partition that it does not touch may lack what was committed while there was no link.
func TestBackupEarlyInvalidation(t *testing.T) {
	backupScenario(t, 1, func(s *scenario) {
		s.put(s.oids...)
		s.caughtUp()
		s.up.net.Cut(s.up.masterHost(), s.down.masterHost())
		time.Sleep(time.Second)
		missed := s.put(s.oids...)
		// From now on what a master tells the other one takes a second: transactions and a pack come
		// before each of the answers.
		s.up.net.Delay(s.up.masterHost(), s.down.masterHost(), time.Second, time.Second)
		s.up.net.Delay(s.down.masterHost(), s.up.masterHost(), time.Second, time.Second)
		s.up.net.Heal(s.up.masterHost(), s.down.masterHost())
		states := map[proto.ClusterState]int{}
		for s.ok() && states[proto.BackingUp] == 0 {
			s.put(s.oids[0])
			state, _ := s.backup()
			states[state]++
		}
		// The storages cannot fetch: what the backup is said to have now it would have by hearsay.
		s.storageLinks(s.up.net.Cut)
		s.packAll()
		for range 10 {
			s.put(s.oids[0])
			time.Sleep(10 * time.Millisecond)
		}
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			if state, ids := s.backup(); state != proto.BackingUp || ids.BackupTID.V >= missed {
				t.Fatalf("%v: the backup is said to have all up to %v, but it lacks %v", state, ids.BackupTID.V, missed)
			}
		}
		if states[proto.StartingBackup] == 0 {
			t.Error("nothing was committed before the clusters were linked")
		}
		s.storageLinks(s.up.net.Heal)
		s.caughtUp()
		time.Sleep(time.Minute) // the replicas, too
		if got, want := s.reads(s.oids[1]), fmt.Sprint("put 2 ", s.oids[1]); got != want {
			t.Errorf("read %q, want %q", got, want)
		}
		if n := s.records(s.oids[1]); n != 2 {
			t.Errorf("%d records of two copies after a pack", n)
		}
		s.look()
		s.leave()
		s.down.compareReplicas()
	})
}

// A backup notices that its upstream cluster was truncated, stops, is truncated by its
// operator as well, and follows again.
func TestUpstreamTruncated(t *testing.T) {
	backupScenario(t, 1, func(s *scenario) {
		at := s.put(s.oids...)
		lost := s.put(s.oids[0])
		s.caughtUp()
		s.look()
		if err := s.up.operate(func(ctx context.Context, c *ctl.Client) error { return c.Truncate(ctx, at) }); err != nil {
			t.Fatal(err)
		}
		s.await(s.up, proto.Running)
		s.await(s.down, proto.Running)
		if _, ids := s.backup(); ids.LastTID.V != lost {
			t.Errorf("the former backup has %v, not %v", ids.LastTID, lost)
		}
		if err := s.down.operate(func(ctx context.Context, c *ctl.Client) error { return c.Truncate(ctx, at) }); err != nil {
			t.Fatal(err)
		}
		s.await(s.down, proto.Running)
		s.history.truncate(at)
		s.looked = at
		s.order(s.down, proto.StartingBackup)
		s.put(s.oids[1])
		s.caughtUp()
		if got, want := s.reads(s.oids[0]), fmt.Sprint("put 1 ", s.oids[0]); got != want {
			t.Errorf("read %q, want %q", got, want)
		}
		s.look()
		s.leave()
		s.down.compareReplicas()
	})
}

// records counts what the storages of the backup have of an object.
func (s *scenario) records(oid tid.OID) (n int) {
	s.t.Helper()
	for _, db := range s.down.dbs {
		b, err := db.Copy().Open()
		if err != nil {
			s.t.Fatal(err)
		}
		keys, err := b.RecordsFrom(context.Background(), oid.Partition(s.down.plan.Partitions), 0, tid.Max, 0, 1<<20)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, k := range keys {
			if k.OID == oid {
				n++
			}
		}
	}
	return n
}

// A pack of the upstream cluster is executed in the backup as well.
func TestBackupPack(t *testing.T) {
	backupScenario(t, 0, func(s *scenario) {
		for range 3 {
			s.put(s.oids...)
		}
		s.caughtUp()
		if n := s.records(s.oids[0]); n != 4 {
			t.Fatalf("%d records before the pack", n)
		}
		s.packAll()
		s.caughtUp()
		time.Sleep(time.Minute)
		if n := s.records(s.oids[0]); n != 1 {
			t.Errorf("%d records after the pack", n)
		}
		if got, want := s.reads(s.oids[0]), fmt.Sprint("put 3 ", s.oids[0]); got != want {
			t.Errorf("read %q, want %q", got, want)
		}
		s.look()
		s.leave()
	})
}

// A client that is connected while the backup passes what a pack upstream has removed is
// never at a time in between.
func TestBackupGapIsNotRead(t *testing.T) {
	backupScenario(t, 0, func(s *scenario) {
		s.put(s.oids...)
		s.caughtUp()
		_, before := s.backup()
		cl, err := s.following.open(0)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		s.storageLinks(s.up.net.Cut)
		for range 3 {
			s.put(s.oids...)
		}
		s.packAll()
		s.put(s.oids[0])
		if err := s.readHistory(); err != nil {
			t.Fatal(err)
		}
		order := tid.Zero
		for at, mark := range s.marks {
			if mark == packMark {
				order = at
			}
		}
		s.storageLinks(s.up.net.Heal)
		last := s.looked
		for at := tid.Zero; at < last && s.up.ctx.Err() == nil; time.Sleep(time.Millisecond / 4) {
			if at, err = cl.LastTID(s.down.ctx); err != nil {
				t.Fatal(err)
			}
			if before.BackupTID.V < at && at < order {
				t.Fatalf("the client is at %v, in the gap between %v and %v", at, before.BackupTID.V, order)
			}
			for _, oid := range s.oids {
				if data, err := load(s.down.ctx, cl, oid, at); err != nil || data == nil {
					t.Fatalf("object %v at %v: %q, %v", oid, at, data, err)
				}
			}
		}
	})
}

// An object that was deleted and packed upstream goes in the backup as well, also when that
// happened while the backup was away.
func TestDeleteObject(t *testing.T) {
	for name, away := range map[string]bool{"following": false, "away": true} {
		t.Run(name, func(t *testing.T) {
			backupScenario(t, 1, func(s *scenario) {
				s.put(s.oids...)
				s.caughtUp()
				if away {
					s.up.net.Cut(s.up.masterHost(), s.down.masterHost())
					time.Sleep(time.Second)
				}
				s.write(s.up.ctx, s.cl, "delete", true, s.oids[0])
				s.packAll()
				time.Sleep(time.Minute)
				if away {
					if got := s.records(s.oids[0]); got != 4 {
						t.Errorf("%d records before the backup is back", got)
					}
					s.up.net.Heal(s.up.masterHost(), s.down.masterHost())
				}
				s.caughtUp()
				if got := s.reads(s.oids[0]); got != "" {
					t.Errorf("a deleted object is read: %q", got)
				}
				time.Sleep(5 * time.Minute)
				if n := s.records(s.oids[0]); n != 0 {
					t.Errorf("%d records of a deleted object", n)
				}
				if got, want := s.reads(s.oids[1]), fmt.Sprint("put 1 ", s.oids[1]); got != want {
					t.Errorf("read %q, want %q", got, want)
				}
				s.look()
				s.leave()
				s.down.compareReplicas()
			})
		})
	}
}

// An object whose creation was undone is not there in the backup, before and after a pack.
func TestCreationUndone(t *testing.T) {
	backupScenario(t, 1, func(s *scenario) {
		oids, err := s.cl.NewOIDs(s.up.ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		created := s.put(oids...)
		s.caughtUp()
		if got, want := s.reads(oids[0]), fmt.Sprint("put 1 ", oids[0]); got != want {
			t.Errorf("read %q, want %q", got, want)
		}
		s.undoOf(s.up.ctx, s.cl, "undo", created)
		s.caughtUp()
		if got := s.reads(oids[0]); got != "" {
			t.Errorf("an object is read whose creation was undone: %q", got)
		}
		s.packAll()
		s.caughtUp()
		time.Sleep(5 * time.Minute)
		if got := s.reads(oids[0]); got != "" {
			t.Errorf("an object is read whose creation was undone: %q", got)
		}
		if n := s.records(oids[0]); n != 0 {
			t.Errorf("%d records of an object whose creation was undone", n)
		}
		s.look()
		s.leave()
		s.down.compareReplicas()
	})
}

// replicationLog notes what storages of the backup have replicated. It is a handler of the log.
type replicationLog struct {
	slog.Handler
	host string
	all  *replicationList
}

type replicationList struct {
	mu   sync.Mutex
	list []replicated
}

// replicated is a line of the log: a storage begins to replicate a partition, or has done so.
type replicated struct {
	host, partition, peer string
	done                  bool
	after, upTo           tid.TID
}

func (l replicationLog) Enabled(context.Context, slog.Level) bool { return true }

func (l replicationLog) WithAttrs(list []slog.Attr) slog.Handler {
	for _, a := range list {
		if a.Key == "host" {
			l.host = a.Value.String()
		}
	}
	l.Handler = l.Handler.WithAttrs(list)
	return l
}

func (l replicationLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "replicating" || r.Message == "replicated" {
		e := replicated{host: l.host, done: r.Message == "replicated"}
		r.Attrs(func(a slog.Attr) bool {
			switch a.Key {
			case "partition":
				e.partition = a.Value.String()
			case "peer":
				e.peer = a.Value.String()
			case "after":
				e.after = a.Value.Any().(tid.TID)
			case "up_to":
				e.upTo = a.Value.Any().(tid.TID)
			}
			return true
		})
		if e.partition != "" { // else it is the line that sums up all partitions
			l.all.mu.Lock()
			l.all.list = append(l.all.list, e)
			l.all.mu.Unlock()
		}
	}
	if !l.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return l.Handler.Handle(ctx, r)
}

// take returns the lines since the last call.
func (l *replicationList) take() []replicated {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

// ofUpstream reports whether the source was a storage of the upstream cluster.
func (e replicated) ofUpstream() bool { return strings.HasPrefix(e.peer, "10.") }

func names(clusters []proto.Opt[string]) []string {
	list := []string{}
	for _, c := range clusters {
		list = append(list, c.V) // "": the own cluster
	}
	return list
}

// monitored waits until the admin upstream tells this of the backup.
func (s *scenario) monitored(what, levels, want string) {
	s.t.Helper()
	s.until(what, func() (bool, error) {
		var m *proto.AnswerMonitorInformation
		err := s.up.operate(func(ctx context.Context, c *ctl.Client) (err error) {
			m, err = c.Summary(ctx)
			return err
		})
		if err != nil {
			return false, err
		}
		text, _, _ := strings.Cut(m.Summary, "\n    "+report.SummaryPrefix)
		_, text, _ = strings.Cut(text, "\n\ndown\n    ")
		got := fmt.Sprintf("warning %s problem %s", names(m.Warning), names(m.Problem))
		return got == levels && text == want, fmt.Errorf("%s: %s", got, text)
	})
}

// After interruptions the backup goes on: the admin upstream tells of each of them, and that it
// is over; the copy that is furthest leads; and nothing is fetched again.
func TestResumingBackupReplication(t *testing.T) {
	t.Run("monitored", func(t *testing.T) {
		const fine, late, bad = "warning [] problem []", "warning [down] problem []", "warning [] problem [down]"
		plan := scenarioPlan(1)
		plan.Watched = true
		runScenario(t, plan, scenarioLog(), func(s *scenario) {
			is := func(cells string, at tid.TID, lag string) string {
				return fmt.Sprintf("BACKINGUP; %s; ltid=%v; lag=%s", cells, at, lag)
			}
			const whole, half = "UP_TO_DATE=4", "OUT_OF_DATE=2, UP_TO_DATE=2"
			t1 := s.put(s.oids...)
			s.monitored("it follows", fine, is(whole, t1, "0.0"))

			back := make(chan struct{})
			go func() { s.down.crash(1, time.Minute); close(back) }()
			s.monitored("a storage is away", bad, is(half+"; DOWN=1", t1, "0.0"))
			t2 := s.put(s.oids...)
			s.monitored("the other one follows", bad, is(half+"; DOWN=1", t2, "0.0"))
			s.down.net.Cut(s.down.storageHost(0), s.down.storageHost(1))
			<-back
			s.monitored("it is back, and cannot copy", late, is(half, t2, "0.0"))
			s.down.net.Heal(s.down.storageHost(0), s.down.storageHost(1))
			s.monitored("it has what it missed", fine, is(whole, t2, "0.0"))

			s.storageLinks(s.up.net.Cut)
			t3 := s.put(s.oids...)
			s.monitored("the storages cannot fetch", late, is(whole, t3-1, "ε"))
			time.Sleep(10 * time.Second)
			t4 := s.put(s.oids...)
			lag := strconv.FormatFloat(t4.Time().Sub((t3 - 1).Time()).Seconds(), 'f', -1, 64)
			s.monitored("they are late", late, is(whole, t3-1, lag))
			s.up.net.Cut(s.up.masterHost(), s.down.masterHost())
			s.monitored("the link upstream is lost", bad, "STARTING_BACKUP; "+whole)
			s.storageLinks(s.up.net.Heal)
			s.up.net.Heal(s.up.masterHost(), s.down.masterHost())
			s.monitored("all goes on", fine, is(whole, t4, "0.0"))
		})
	})

	// The storage that has fetched is lost, and none upstream can be reached: what another one has
	// copied from it already is kept, and the last one copies from there.
	t.Run("the furthest copy leads", func(t *testing.T) {
		plan := scenarioPlan(2)
		plan.Partitions, plan.Backup.Partitions, plan.Backup.Storages = 1, 1, 3
		plan.Storages = 1
		var list replicationList
		runScenario(t, plan, slog.New(replicationLog{Handler: logHandler(), all: &list}), func(s *scenario) {
			s.put(s.oids...)
			s.caughtUp()
			time.Sleep(time.Second) // the replicas, too
			leader := 0
			for _, e := range list.take() {
				if e.ofUpstream() {
					fmt.Sscanf(e.host, "storage%d", &leader)
				}
			}
			if leader == 0 {
				t.Fatal("no storage has fetched")
			}
			leader-- // they are numbered from 1
			near, far := (leader+1)%3, (leader+2)%3
			host := s.down.storageHost
			s.down.net.Hold(host(leader), host(far))
			last := s.put(s.oids...)
			s.caughtUp()
			time.Sleep(time.Second)
			s.storageLinks(s.up.net.Cut)
			list.take()
			back := make(chan struct{})
			go func() { s.down.crash(leader, time.Minute); close(back) }()
			time.Sleep(10 * time.Second)
			if _, ids := s.backup(); ids.BackupTID.V != last {
				t.Errorf("without the storage that has fetched the backup has %v, not %v", ids.BackupTID.V, last)
			}
			for _, oid := range s.oids {
				if got, want := s.reads(oid), fmt.Sprint("put 2 ", oid); got != want {
					t.Errorf("read %q, want %q", got, want)
				}
			}
			copied := false
			for _, e := range list.take() {
				if e.ofUpstream() {
					t.Errorf("%+v although another copy has it", e)
				}
				copied = copied || e.done && e.host == fmt.Sprint("storage", far+1) && e.upTo >= last
			}
			if !copied {
				t.Errorf("storage %d has not copied from storage %d", far+1, near+1)
			}
			s.storageLinks(s.up.net.Heal)
			s.down.net.Release(host(leader), host(far))
			<-back
			s.put(s.oids...)
			s.caughtUp()
			s.look()
			s.leave()
			s.down.compareReplicas()
		})
	})

	// A storage fetches what follows what it has, also after it was lost.
	t.Run("nothing is fetched again", func(t *testing.T) {
		var list replicationList
		runScenario(t, scenarioPlan(1), slog.New(replicationLog{Handler: logHandler(), all: &list}), func(s *scenario) {
			s.caughtUp()
			for i := range 20 {
				s.put(s.oids[i%4])
				if i%7 == 6 {
					s.down.crash(i%2, 500*time.Millisecond)
				}
			}
			s.up.net.Cut(s.up.masterHost(), s.down.masterHost())
			s.put(s.oids...)
			time.Sleep(time.Second)
			if state, _ := s.backup(); state != proto.StartingBackup {
				t.Errorf("without upstream: %v", state)
			}
			s.up.net.Heal(s.up.masterHost(), s.down.masterHost())
			s.caughtUp()
			s.look()
			has := map[string]tid.TID{} // what a cell has replicated
			for _, e := range list.take() {
				cell := e.host + " partition " + e.partition
				switch {
				case e.done:
					has[cell] = max(has[cell], e.upTo)
				case !e.ofUpstream(): // it begins again after what was announced
					has[cell] = min(has[cell], e.after)
				case e.after < has[cell]:
					t.Errorf("%s has all up to %v, and fetches what is after %v again", cell, has[cell], e.after)
				}
			}
			if len(has) != 4 {
				t.Errorf("what was replicated: %v", has)
			}
			s.leave()
			s.down.compareReplicas()
		})
	})
}

// A backup goes on fetching from another storage when one of the upstream cluster is lost.
func TestBackupUpstreamStorageDead(t *testing.T) {
	plan := scenarioPlan(1)
	plan.Replicas = 1
	runScenario(t, plan, scenarioLog(), func(s *scenario) {
		s.caughtUp()
		for i := range 2 {
			// The master upstream has it, the backup has not.
			for j := range 2 {
				s.up.net.Cut(s.up.storageHost(i), s.down.storageHost(j))
			}
			s.put(s.oids...)
			time.Sleep(time.Second)
			s.up.crash(i, 20*time.Second)
			for j := range 2 {
				s.up.net.Heal(s.up.storageHost(i), s.down.storageHost(j))
			}
			s.caughtUp()
			time.Sleep(time.Minute) // the storage is a replica again
		}
		s.look()
		s.leave()
		s.down.compareReplicas()
	})
}

// An upstream cluster that starts when its backup runs is followed.
func TestUpstreamStartWithDownstreamRunning(t *testing.T) {
	backupScenario(t, 1, func(s *scenario) {
		s.put(s.oids...)
		s.caughtUp()
		for i := range 3 {
			s.up.crash(i, 10*time.Second)
		}
		s.await(s.down, proto.BackingUp)
		s.put(s.oids...)
		s.caughtUp()
		s.look()
		s.leave()
		s.down.compareReplicas()
	})
}

// A transaction that is still being completed by a storage upstream is fetched when it is.
func TestBackupDelayedUnlockTransaction(t *testing.T) {
	backupScenario(t, 1, func(s *scenario) {
		s.caughtUp()
		s.put(s.oids...)
		// What the master upstream sends to a storage comes late: the backup asks before.
		for i := range 2 {
			s.up.net.Delay(s.up.masterHost(), s.up.storageHost(i), 2*time.Second, 2*time.Second)
		}
		last := s.put(s.oids...)
		_, ids := s.backup()
		if ids.BackupTID.V >= last {
			t.Errorf("the backup has %v before the storages upstream have completed it", last)
		}
		s.caughtUp()
		for _, oid := range s.oids {
			if got, want := s.reads(oid), fmt.Sprint("put 2 ", oid); got != want {
				t.Errorf("read %q, want %q", got, want)
			}
		}
		s.look()
		s.leave()
		s.down.compareReplicas()
	})
}

// The backup follows whichever master of the upstream cluster is primary.
func TestBackupFromUpstreamWithSecondaryMaster(t *testing.T) {
	plan := scenarioPlan(0)
	plan.Masters = 2
	runScenario(t, plan, scenarioLog(), func(s *scenario) {
		for range 3 {
			s.caughtUp()
			s.up.crash(s.up.plan.Storages, 20*time.Second) // the other one takes over
			s.put(s.oids...)
			s.caughtUp()
			s.up.vanish(s.up.standbyHost(1), s.up.plan.Storages, 20*time.Second)
			s.put(s.oids...)
		}
		s.caughtUp()
		s.look()
		s.leave()
		s.down.compareReplicas()
	})
}

// scenarioLog is the log of scenarios if a seed is given.
func scenarioLog() *slog.Logger { return slog.New(logHandler()) }

func logHandler() slog.Handler {
	if *seed == 0 {
		return slog.DiscardHandler
	}
	return slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
}
