package client_test

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// script is a cluster whose master and storages say what a test tells them to,
// when it tells them to. There is one partition.
type script struct {
	t        *testing.T
	net      *memnet.Network
	storages int
	last     tid.TID
	stamp    float64
	refusal  proto.ErrorCode // answer to FailedVote
	hangUp   proto.NodeID    // the storage that hangs up when it is asked to vote
	deaf     bool            // the master hangs up when it is told of failures
	take     bool            // storages accept every store at once

	mu       sync.Mutex
	master   *link.Conn // to the client
	requests chan link.Event
	finish   link.Event // the request to finish
	failed   []*proto.FailedVote
	aborted  []*proto.AbortTransaction // at the master
	taken    int                       // bytes of the stores that were accepted at once
}

// playScript runs a test against a script, in simulated time.
func playScript(t *testing.T, storages int, last tid.TID, test func(t *testing.T, s *script)) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, net: memnet.New(1), storages: storages, last: last, stamp: 1, requests: make(chan link.Event, 100)}
		listen := func(host string, deliver func(link.Event)) {
			l, err := link.Listen(t.Context(), proto.Address{Host: host, Port: 10000}, link.Config{Network: s.net.Host(host), Deliver: deliver}, func(*link.Conn) {})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}
		listen("m", s.deliverMaster)
		for i := range storages {
			listen(fmt.Sprintf("s%d", i+1), func(ev link.Event) { s.deliverStorage(proto.NodeID(i+1), ev) })
		}
		test(t, s)
	})
}

func (s *script) deliverMaster(ev link.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch p := ev.Packet.(type) {
	case *proto.RequestIdentification:
		s.master = ev.Conn
		id := proto.Client.ID(1)
		ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: id})
		nodes := []proto.Node{{Type: proto.Client, ID: id, State: proto.NodeRunning, IDTimestamp: proto.Some(s.stamp)}}
		var row []proto.Cell
		for i := range s.storages {
			nodes = append(nodes, proto.Node{Type: proto.Storage, ID: proto.NodeID(i + 1), Addr: proto.Address{Host: fmt.Sprintf("s%d", i+1), Port: 10000}, State: proto.NodeRunning})
			row = append(row, proto.Cell{ID: proto.NodeID(i + 1), State: proto.UpToDate})
		}
		s.stamp++
		ev.Conn.Send(&proto.NotifyNodeInformation{Timestamp: s.stamp, Nodes: nodes})
		ev.Conn.Send(&proto.SendPartitionTable{PTID: proto.Some(uint64(1)), Rows: [][]proto.Cell{row}})
	case *proto.AskLastTransaction:
		ev.Conn.Answer(ev.ID, &proto.AnswerLastTransaction{TID: s.last})
	case *proto.AskBeginTransaction:
		ev.Conn.Answer(ev.ID, &proto.AnswerBeginTransaction{TTID: s.last + 1000})
	case *proto.Ping:
		ev.Conn.Answer(ev.ID, &proto.Pong{})
	case *proto.AskFinishTransaction:
		s.finish = ev
	case *proto.FailedVote:
		s.failed = append(s.failed, p)
		if s.deaf {
			ev.Conn.Close()
			return
		}
		ev.Conn.AnswerError(ev.ID, s.refusal, "")
	case *proto.AbortTransaction:
		s.aborted = append(s.aborted, p)
	case *proto.AskFinalTID:
		s.requests <- ev
	}
}

func (s *script) deliverStorage(id proto.NodeID, ev link.Event) {
	switch p := ev.Packet.(type) {
	case nil:
	case *proto.RequestIdentification:
		ev.Conn.Tag = id
		ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Storage, ID: id, YourID: p.ID})
	case *proto.AskStoreTransaction:
		if id == s.hangUp {
			ev.Conn.Close()
			return
		}
		ev.Conn.Answer(ev.ID, &proto.AnswerStoreTransaction{})
	case *proto.AskVoteTransaction:
		ev.Conn.Answer(ev.ID, &proto.AnswerVoteTransaction{})
	case *proto.AskStoreObject:
		if !s.take {
			s.requests <- ev
			return
		}
		ev.Conn.Answer(ev.ID, &proto.AnswerStoreObject{})
		s.mu.Lock()
		s.taken += len(p.Data)
		s.mu.Unlock()
	default:
		s.requests <- ev
	}
}

// failures returns the storages that the client reported to the master, and what
// it told the master to abort, since the last call.
func (s *script) failures() (failed []*proto.FailedVote, aborted []*proto.AbortTransaction) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	failed, aborted = s.failed, s.aborted
	s.failed, s.aborted = nil, nil
	return failed, aborted
}

// notify sends to the client what a master notifies.
func (s *script) notify(p proto.Packet) {
	s.mu.Lock()
	conn := s.master
	s.mu.Unlock()
	conn.Send(p)
	synctest.Wait()
}

// request returns the next request to a storage.
func request[P proto.Packet](s *script) (link.Event, P) {
	s.t.Helper()
	synctest.Wait()
	select {
	case ev := <-s.requests:
		p, ok := ev.Packet.(P)
		if !ok {
			s.t.Fatalf("got %T", ev.Packet)
		}
		return ev, p
	default:
		s.t.Fatal("no request")
		panic("unreachable")
	}
}

// none verifies that no storage is asked anything.
func (s *script) none() {
	s.t.Helper()
	synctest.Wait()
	select {
	case ev := <-s.requests:
		s.t.Fatalf("unexpected request %T %+v", ev.Packet, ev.Packet)
	default:
	}
}

func (s *script) open(change func(*client.Config)) *client.Client {
	s.t.Helper()
	cfg := client.Config{Cluster: "test", Masters: []proto.Address{masterAddr}, Network: s.net.Host("c")}
	if change != nil {
		change(&cfg)
	}
	c, err := client.Open(s.t.Context(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func object(oid tid.OID, serial, next tid.TID, data string) *proto.AnswerObject {
	a := &proto.AnswerObject{OID: oid, Serial: serial, ObjectData: proto.ObjectData{Checksum: sha1.Sum([]byte(data)), Data: []byte(data)}}
	if next != 0 {
		a.NextSerial = proto.Some(next)
	}
	return a
}

// loaded is the result of a load in the background.
type loaded struct {
	data         string
	serial, next tid.TID
	err          error
}

// loadBefore loads in the background; before Zero means Load.
func loadBefore(ctx context.Context, c *client.Client, oid tid.OID, before tid.TID) <-chan loaded {
	ch := make(chan loaded, 1)
	go func() {
		var r loaded
		var got txn.Revision
		if before == 0 {
			got.Data, got.Serial, r.err = c.Load(ctx, oid)
		} else {
			got, r.err = c.LoadBefore(ctx, oid, before)
		}
		r.data, r.serial, r.next = string(got.Data), got.Serial, got.Next
		ch <- r
	}()
	synctest.Wait()
	return ch
}

// A revision that is replaced while it is being loaded must not be cached as the
// current one, whichever of answer and invalidation comes first.
func TestLoadRacesInvalidation(t *testing.T) {
	for _, first := range []string{"invalidation", "answer"} {
		t.Run(first+" first", func(t *testing.T) {
			playScript(t, 1, 10, func(t *testing.T, s *script) {
				c := s.open(nil)
				load := loadBefore(t.Context(), c, 1, 0)
				ev, p := request[*proto.AskObject](s)
				if p.Before != proto.Some(tid.TID(11)) {
					t.Errorf("asked for the revision before %v", p.Before)
				}
				invalidate := func() {
					s.notify(&proto.InvalidateObjects{TID: 20, OIDs: []tid.OID{1}})
					s.notify(&proto.InvalidateObjects{TID: 30, OIDs: []tid.OID{2}})
					s.notify(&proto.InvalidateObjects{TID: 40, OIDs: []tid.OID{1}})
				}
				if first == "invalidation" {
					invalidate()
				}
				ev.Conn.Answer(ev.ID, object(1, 5, 0, "old"))
				if r := <-load; r.data != "old" || r.serial != 5 || r.err != nil {
					t.Errorf("load: %+v", r)
				}
				if first == "answer" {
					invalidate()
				}
				// The present must be asked for...
				load = loadBefore(t.Context(), c, 1, 0)
				ev, p = request[*proto.AskObject](s)
				if p.Before != proto.Some(tid.TID(41)) {
					t.Errorf("asked for the revision before %v", p.Before)
				}
				ev.Conn.Answer(ev.ID, object(1, 40, 0, "new"))
				if r := <-load; r.data != "new" || r.serial != 40 {
					t.Errorf("load: %+v", r)
				}
				// ... and the past is in the cache, with its right end.
				for before, want := range map[tid.TID]loaded{11: {data: "old", serial: 5, next: 20}, 20: {data: "old", serial: 5, next: 20}, 41: {data: "new", serial: 40}} {
					if r := <-loadBefore(t.Context(), c, 1, before); r != want {
						t.Errorf("load before %v: %+v, want %+v", before, r, want)
					}
				}
				s.none()
			})
		})
	}
}

// A caller that wants the same object waits for the load that is under way.
func TestLoadsOfOneObject(t *testing.T) {
	playScript(t, 1, 10, func(t *testing.T, s *script) {
		c := s.open(nil)
		a := loadBefore(t.Context(), c, 1, 0)
		b := loadBefore(t.Context(), c, 1, 11)
		past := loadBefore(t.Context(), c, 1, 5)
		ctx, cancel := context.WithCancel(t.Context())
		impatient := loadBefore(ctx, c, 1, 11)
		ev, _ := request[*proto.AskObject](s)
		s.none()
		cancel()
		if r := <-impatient; !errors.Is(r.err, context.Canceled) {
			t.Errorf("load that was given up: %+v", r)
		}
		ev.Conn.Answer(ev.ID, object(1, 7, 0, "seven"))
		if ra, rb := <-a, <-b; ra.data != "seven" || rb != (loaded{data: "seven", serial: 7}) {
			t.Errorf("loads: %+v, %+v", ra, rb)
		}
		ev, p := request[*proto.AskObject](s)
		if p.Before != proto.Some(tid.TID(5)) {
			t.Errorf("asked for the revision before %v", p.Before)
		}
		ev.Conn.Answer(ev.ID, object(1, 3, 7, "three"))
		if r := <-past; r != (loaded{data: "three", serial: 3, next: 7}) {
			t.Errorf("load of the past: %+v", r)
		}
	})
}

// Revisions may arrive in any order: the cache puts each where it belongs.
func TestLoadsOutOfOrder(t *testing.T) {
	playScript(t, 1, 100, func(t *testing.T, s *script) {
		c := s.open(nil)
		revisions := []struct{ serial, next tid.TID }{{30, 40}, {10, 20}, {40, 0}, {20, 30}, {5, 10}}
		for _, r := range revisions {
			before := r.next
			if before == 0 {
				before = 101
			}
			load := loadBefore(t.Context(), c, 1, before)
			ev, _ := request[*proto.AskObject](s)
			ev.Conn.Answer(ev.ID, object(1, r.serial, r.next, fmt.Sprint(r.serial)))
			<-load
		}
		for _, r := range revisions {
			for before := r.serial + 1; before <= r.serial+5; before++ {
				want := loaded{data: fmt.Sprint(r.serial), serial: r.serial, next: r.next}
				if got := <-loadBefore(t.Context(), c, 1, before); got != want {
					t.Errorf("before %v: %+v, want %+v", before, got, want)
				}
			}
		}
		s.none()
	})
}

// LastTID must not name a transaction before those who watch know of it: a reader
// that starts there would miss its changes.
func TestLastTIDFollowsInvalidations(t *testing.T) {
	playScript(t, 1, 10, func(t *testing.T, s *script) {
		release := make(chan struct{})
		var seen tid.TID
		c := s.open(func(cfg *client.Config) {
			cfg.OnInvalidate = func(at tid.TID, _ []tid.OID) {
				<-release
				seen = at
			}
		})
		load := loadBefore(t.Context(), c, 1, 0)
		ev, _ := request[*proto.AskObject](s)
		ev.Conn.Answer(ev.ID, object(1, 5, 0, "old"))
		<-load
		s.notify(&proto.InvalidateObjects{TID: 20, OIDs: []tid.OID{1}})
		if last, err := c.LastTID(t.Context()); last != 10 || err != nil {
			t.Errorf("last TID %v, %v before the invalidation was processed", last, err)
		}
		// The cache knows already, and a load still answers for the time of LastTID.
		if r := <-loadBefore(t.Context(), c, 1, 0); r.data != "old" || r.serial != 5 {
			t.Errorf("load: %+v", r)
		}
		if r := <-loadBefore(t.Context(), c, 1, 20); r != (loaded{data: "old", serial: 5, next: 20}) {
			t.Errorf("load: %+v", r)
		}
		close(release)
		synctest.Wait()
		if last, _ := c.LastTID(t.Context()); last != 20 || seen != 20 {
			t.Errorf("last TID %v, seen %v", last, seen)
		}
		s.none()
	})
}

// After a reconnection the cache keeps what cannot have changed. A load that was
// under way fails: what it would bring may be outdated.
func TestCacheAfterReconnection(t *testing.T) {
	for _, tt := range []struct {
		name   string
		last   tid.TID
		resets int
		cached bool // the past
	}{
		{"nothing new", 10, 0, true},
		{"commits meanwhile", 50, 1, true},
		{"truncated", 8, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			playScript(t, 1, 10, func(t *testing.T, s *script) {
				resets := 0
				c := s.open(func(cfg *client.Config) { cfg.OnReset = func() { resets++ } })
				for _, a := range []*proto.AnswerObject{object(1, 3, 5, "past"), object(1, 5, 0, "present")} {
					before := a.NextSerial.V
					if before == 0 {
						before = 11
					}
					load := loadBefore(t.Context(), c, 1, before)
					ev, _ := request[*proto.AskObject](s)
					ev.Conn.Answer(ev.ID, a)
					<-load
				}
				pending := loadBefore(t.Context(), c, 2, 0)
				late, _ := request[*proto.AskObject](s)
				s.mu.Lock()
				s.last = tt.last
				conn := s.master
				s.mu.Unlock()
				conn.Close()
				synctest.Wait()
				late.Conn.Answer(late.ID, object(2, 3, 0, "late"))
				if r := <-pending; !errors.Is(r.err, client.ErrMasterLost) {
					t.Errorf("load during the loss of the master: %+v", r)
				}
				if last, err := c.LastTID(t.Context()); last != tt.last || err != nil {
					t.Fatalf("last TID %v, %v", last, err)
				}
				if resets != tt.resets {
					t.Errorf("%d resets, want %d", resets, tt.resets)
				}
				past := loadBefore(t.Context(), c, 1, 5)
				if tt.cached {
					if r := <-past; r != (loaded{data: "past", serial: 3, next: 5}) {
						t.Errorf("past: %+v", r)
					}
				} else {
					ev, _ := request[*proto.AskObject](s)
					ev.Conn.Answer(ev.ID, object(1, 3, 0, "past"))
					<-past
				}
				present := loadBefore(t.Context(), c, 1, 0)
				if tt.resets == 0 {
					if r := <-present; r.data != "present" {
						t.Errorf("present: %+v", r)
					}
				} else if tt.cached {
					ev, _ := request[*proto.AskObject](s)
					ev.Conn.Answer(ev.ID, object(1, 5, 0, "present"))
					<-present
				}
				s.none()
			})
		})
	}
}

// A commit of our own is in the cache with its invalidations, before LastTID
// and before the call returns.
func TestOwnCommit(t *testing.T) {
	playScript(t, 1, 10, func(t *testing.T, s *script) {
		c := s.open(nil)
		tx, err := c.Begin(t.Context(), client.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		tx.Flush()
		store, _ := request[*proto.AskStoreObject](s)
		store.Conn.Answer(store.ID, &proto.AnswerStoreObject{})
		if _, err := tx.Vote(t.Context()); err != nil {
			t.Fatal(err)
		}
		load := loadBefore(t.Context(), c, 1, 0) // races the commit
		old, _ := request[*proto.AskObject](s)
		var called, lastThen tid.TID
		done := make(chan tid.TID, 1)
		go func() {
			final, err := tx.Finish(t.Context(), func(at tid.TID) {
				called = at
				lastThen, _ = c.LastTID(t.Context())
			})
			if err != nil {
				t.Error(err)
			}
			done <- final
		}()
		synctest.Wait()
		s.finish.Conn.Answer(s.finish.ID, &proto.AnswerTransactionFinished{TTID: tx.TTID(), TID: 1020})
		if final := <-done; final != 1020 || called != 1020 || lastThen != 10 {
			t.Errorf("finished as %v, told %v while the last was %v", final, called, lastThen)
		}
		old.Conn.Answer(old.ID, object(1, 5, 0, "old"))
		if r := <-load; r.data != "old" {
			t.Errorf("load: %+v", r)
		}
		for before, want := range map[tid.TID]loaded{11: {data: "old", serial: 5, next: 1020}, 1021: {data: "mine", serial: 1020}} {
			if r := <-loadBefore(t.Context(), c, 1, before); r != want {
				t.Errorf("load before %v: %+v, want %+v", before, r, want)
			}
		}
		s.none()
	})
}

// A damaged replica is passed over; if all are damaged it depends.
func TestWrongChecksum(t *testing.T) {
	for _, tt := range []struct {
		name    string
		damage  func(*proto.AnswerObject)
		ignored string // what is loaded in spite of the damage
		says    string
	}{
		{"data", func(a *proto.AnswerObject) { a.Data = []byte("evil") }, "evil", "wrong checksum"},
		{"compression", func(a *proto.AnswerObject) { a.Compression = 7 }, "", "unknown compression 7"},
	} {
		for _, ignore := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, ignore %v", tt.name, ignore), func(t *testing.T) {
				playScript(t, 2, 10, func(t *testing.T, s *script) {
					c := s.open(func(cfg *client.Config) { cfg.IgnoreWrongChecksum = ignore })
					bad := object(1, 5, 0, "good")
					tt.damage(bad)
					load := loadBefore(t.Context(), c, 1, 0)
					first, _ := request[*proto.AskObject](s)
					first.Conn.Answer(first.ID, bad)
					second, _ := request[*proto.AskObject](s)
					if first.Conn.Tag == second.Conn.Tag {
						t.Error("the same replica was asked again at once")
					}
					second.Conn.Answer(second.ID, object(1, 5, 0, "good"))
					if r := <-load; r.data != "good" || r.err != nil {
						t.Errorf("load: %+v", r)
					}
					load = loadBefore(t.Context(), c, 2, 0)
					bad.OID = 2
					var last link.Event
					for range 4 { // two rounds
						last, _ = request[*proto.AskObject](s)
						last.Conn.Answer(last.ID, bad)
					}
					r := <-load
					s.none()
					if ignore {
						if r.data != tt.ignored || r.err != nil {
							t.Errorf("load: %+v", r)
						}
						return
					}
					if !errors.Is(r.err, client.ErrChecksum) {
						t.Fatalf("load: %+v", r)
					}
					// An operator must know what to look at, and where.
					names(t, r.err, tt.says, fmt.Sprintf("object %v at %v", tid.OID(2), tid.TID(5)), fmt.Sprint("storage ", last.Conn.Tag))
				})
			})
		}
	}
}

// names verifies that an error says what it is about.
func names(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not name %s", err, part)
		}
	}
}
