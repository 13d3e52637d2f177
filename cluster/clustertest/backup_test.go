package clustertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
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
	n         int
}

// backupScenario runs test with an upstream cluster of two storages, and a backup of two
// that has the given number of copies of each partition beside the first.
func backupScenario(t *testing.T, copies int, test func(s *scenario)) {
	side := Plan{Seed: 1, Storages: 2, Partitions: 2, Clients: 2, Objects: 4, Delay: 5 * time.Millisecond}
	plan := FollowPlan{Plan: side, Backup: side, FromStart: true, Fetch: 2, Readers: 1, Packed: true}
	plan.Backup.Replicas = copies
	simulatePair(t, plan, scenarioLog(), func(f *following) {
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
	s.n++
	return s.write(s.up.ctx, s.cl, fmt.Sprint("put ", s.n), false, oids...)
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

// After a storage of the backup was lost while it fetched, what it had is not fetched by
// another one from the beginning, and the fetching goes on from the copy that is furthest.
func TestResumingBackupReplication(t *testing.T) {
	backupScenario(t, 1, func(s *scenario) {
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
		s.leave()
		s.down.compareReplicas()
	})
}

// A backup goes on fetching from another storage when one of the upstream cluster is lost.
func TestBackupUpstreamStorageDead(t *testing.T) {
	side := Plan{Seed: 1, Storages: 2, Partitions: 2, Replicas: 1, Clients: 2, Objects: 4, Delay: 5 * time.Millisecond}
	plan := FollowPlan{Plan: side, Backup: side, FromStart: true, Fetch: 2, Readers: 1}
	simulatePair(t, plan, scenarioLog(), func(f *following) {
		s := &scenario{following: f, replicas: &replicas{simulation: f.up}}
		cl, err := f.up.open(f.up.ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		s.cl = cl
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
	side := Plan{Seed: 1, Storages: 2, Partitions: 2, Clients: 2, Objects: 4, Delay: 5 * time.Millisecond}
	plan := FollowPlan{Plan: side, Backup: side, FromStart: true, Fetch: 2, Readers: 1}
	plan.Masters = 2
	simulatePair(t, plan, scenarioLog(), func(f *following) {
		s := &scenario{following: f, replicas: &replicas{simulation: f.up}}
		cl, err := f.up.open(f.up.ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		s.cl = cl
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
func scenarioLog() *slog.Logger {
	if *seed == 0 {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
