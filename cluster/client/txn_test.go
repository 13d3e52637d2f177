package client_test

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// stores returns the requests of one write to two storages, by node.
func stores(s *script) map[proto.NodeID]link.Event {
	s.t.Helper()
	m := map[proto.NodeID]link.Event{}
	for range 2 {
		ev, _ := request[*proto.AskStoreObject](s)
		m[ev.Conn.Tag.(proto.NodeID)] = ev
	}
	return m
}

func answerStore(ev link.Event, conflict proto.Opt[tid.TID]) {
	ev.Conn.Answer(ev.ID, &proto.AnswerStoreObject{Conflict: conflict})
	synctest.Wait()
}

var (
	locked   = proto.Opt[tid.TID]{}
	lockless = proto.Some(tid.Zero)
)

func vote(ctx context.Context, tx *client.Txn) <-chan error {
	ch := make(chan error, 1)
	go func() {
		_, err := tx.Vote(ctx)
		ch <- err
	}()
	synctest.Wait()
	return ch
}

// commitSoon is Finish for a caller that waits for nothing unless it has to.
func commitSoon(ctx context.Context, tx *client.Txn, onFinish func(tid.TID)) (tid.TID, error) {
	type outcome struct {
		at tid.TID
		ok bool
	}
	done := make(chan outcome, 2) // a second call would be found
	tx.VoteAsync(func(voted bool) { done <- outcome{ok: voted} })
	if r := <-done; !r.ok {
		if _, err := tx.Vote(ctx); err != nil {
			return tid.Zero, err
		}
	}
	tx.FinishAsync(onFinish, func(at tid.TID, finished bool) { done <- outcome{at, finished} })
	r := <-done
	if len(done) > 0 {
		return tid.Zero, errors.New("called twice")
	}
	if r.ok {
		return r.at, nil
	}
	return tx.Finish(ctx, nil)
}

func begin(t *testing.T, c *client.Client) *client.Txn {
	t.Helper()
	tx, err := c.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// Which answers of two replicas, with one of them lost or not, make a commit. The
// master must hear of those that missed something and may still be trusted by it:
// it disconnects them before others read from them.
func TestReplicasAnswerDifferently(t *testing.T) {
	none := proto.Some(tid.Max) // no answer, the link is lost instead
	type ids = []proto.NodeID
	for _, tt := range []struct {
		name   string
		a, b   proto.Opt[tid.TID]
		lose   proto.NodeID // after the answers
		hangUp proto.NodeID // instead of voting
		failed ids          // reported to the master; nil: nothing is
		want   string       // part of the error of the vote; "" if it succeeds
	}{
		{"both lock", locked, locked, 0, 0, nil, ""},
		{"one is replicating", locked, lockless, 0, 0, nil, ""},
		{"one is lost before its answer", locked, none, 0, 0, ids{2}, ""},
		{"the other is lost before its answer", none, locked, 0, 0, ids{1}, ""},
		{"one is lost after its answer", locked, locked, 1, 0, ids{1}, ""},
		{"one is lost instead of voting", locked, locked, 0, 2, ids{2}, ""},
		{"the replicating one is lost", locked, lockless, 2, 0, ids{2}, ""},
		{"nobody has checked for conflicts", locked, lockless, 1, 0, nil, "not fully write-locked"},
		{"nobody who checked for conflicts votes", locked, lockless, 0, 1, nil, "not fully write-locked"},
		{"the only one that is left is replicating", none, lockless, 0, 0, nil, "not fully write-locked"},
		{"both are lost", none, none, 0, 0, nil, "no storage available"},
		{"one is lost before its answer, the other instead of voting", none, locked, 0, 2, ids{1, 2}, ""}, // it is for the master to refuse
	} {
		t.Run(tt.name, func(t *testing.T) {
			playScript(t, 2, 10, func(t *testing.T, s *script) {
				s.hangUp = tt.hangUp
				c := s.open(nil)
				tx := begin(t, c)
				if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
					t.Fatal(err)
				}
				tx.Flush()
				evs := stores(s)
				for id, answer := range map[proto.NodeID]proto.Opt[tid.TID]{1: tt.a, 2: tt.b} {
					if answer == none {
						evs[id].Conn.Close()
					} else {
						answerStore(evs[id], answer)
					}
				}
				synctest.Wait()
				if tt.lose != 0 {
					evs[tt.lose].Conn.Close()
					synctest.Wait()
				}
				err := <-vote(t.Context(), tx)
				if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("vote: %v, want %q", err, tt.want)
				}
				failed, _ := s.failures()
				switch {
				case tt.failed == nil && len(failed) > 0:
					t.Errorf("the master was told %+v, want nothing", failed[0])
				case tt.failed != nil && len(failed) != 1:
					t.Errorf("the master was told %d times, want once: without %v", len(failed), tt.failed)
				case tt.failed != nil:
					equal(t, "storages reported as failed", failed[0].IDs, tt.failed)
					if failed[0].TTID != tx.TTID() {
						t.Errorf("failures of transaction %v reported, want %v", failed[0].TTID, tx.TTID())
					}
				}
				if err := tx.Abort(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The master may need the storage that missed the transaction: then it cannot be
// committed, and all who have something of it are told to drop it.
func TestFailedStorageIsNeeded(t *testing.T) {
	playScript(t, 2, 10, func(t *testing.T, s *script) {
		s.refusal, s.hangUp = proto.IncompleteTransaction, 2
		c := s.open(nil)
		tx := begin(t, c)
		if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		tx.Flush()
		for _, ev := range stores(s) {
			answerStore(ev, locked)
		}
		err := <-vote(t.Context(), tx)
		if !errors.Is(err, client.ErrIncomplete) {
			t.Errorf("vote: %v, want %v", err, client.ErrIncomplete)
		}
		names(t, err, tx.TTID().String(), "S2")
		if failed, _ := s.failures(); len(failed) != 1 {
			t.Errorf("the master was told %d times", len(failed))
		}
		if err := tx.Abort(t.Context()); err != nil {
			t.Errorf("abort: %v", err)
		}
		ev, p := request[*proto.AbortTransaction](s)
		if ev.Conn.Tag != proto.NodeID(1) || p.TTID != tx.TTID() {
			t.Errorf("%v was told to abort %v", ev.Conn.Tag, p.TTID)
		}
		_, aborted := s.failures()
		if len(aborted) != 1 || aborted[0].TTID != tx.TTID() {
			t.Fatalf("the master was told to abort %+v", aborted)
		}
		equal(t, "storages of the aborted transaction", slices.Sorted(slices.Values(aborted[0].IDs)), []proto.NodeID{1, 2})
		s.none()
		if _, err := tx.Finish(t.Context(), nil); !errors.Is(err, client.ErrClosed) {
			t.Errorf("finish of an aborted transaction: %v", err)
		}
	})
}

// A slow replica reports a conflict that is resolved already.
func TestLateConflict(t *testing.T) {
	playScript(t, 2, 50, func(t *testing.T, s *script) {
		c := s.open(func(cfg *client.Config) {
			cfg.Resolver = func(_ context.Context, x client.Conflict) ([]byte, error) {
				return fmt.Appendf(nil, "%s+%s", x.CommittedData, x.Data), nil
			}
		})
		tx := begin(t, c)
		if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		tx.Flush()
		first := stores(s)
		answerStore(first[1], proto.Some(tid.TID(20)))
		done := vote(t.Context(), tx)
		ev, p := request[*proto.AskObject](s)
		if p.At != proto.Some(tid.TID(20)) {
			t.Errorf("%+v asked for", p)
		}
		ev.Conn.Answer(ev.ID, object(1, 20, 0, "theirs"))
		second := stores(s)
		for _, ev := range second {
			p := ev.Packet.(*proto.AskStoreObject)
			if p.Serial != 20 || string(p.Data) != "theirs+mine" {
				t.Errorf("stored again: %v %q", p.Serial, p.Data)
			}
		}
		answerStore(second[1], locked)
		answerStore(first[2], proto.Some(tid.TID(20))) // late
		select {
		case err := <-done:
			t.Fatalf("voted before the second replica has answered: %v", err)
		default:
		}
		answerStore(second[2], locked)
		if err := <-done; err != nil {
			t.Errorf("vote: %v", err)
		}
		s.none()
		tx.Abort(t.Context())
	})
}

// A positive answer to an attempt that was followed by another one must not count
// for the latter.
func TestAnswerToEarlierAttempt(t *testing.T) {
	playScript(t, 2, 50, func(t *testing.T, s *script) {
		c := s.open(nil)
		tx := begin(t, c)
		var attempts []map[proto.NodeID]link.Event
		for range 2 {
			if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
				t.Fatal(err)
			}
			tx.Flush()
			attempts = append(attempts, stores(s))
		}
		first, second := attempts[0], attempts[1]
		for id := range first {
			answerStore(first[id], locked)
		}
		answerStore(second[1], locked)
		done := vote(t.Context(), tx)
		if len(done) > 0 {
			t.Fatalf("voted too early: %v", <-done)
		}
		answerStore(second[2], locked)
		if err := <-done; err != nil {
			t.Errorf("vote: %v", err)
		}
		tx.Abort(t.Context())
	})
}

// What a storage hands back is verified, and stored again only if it conflicts.
func TestRelock(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		t.Run(fmt.Sprintf("damaged %v", damaged), func(t *testing.T) {
			playScript(t, 1, 50, func(t *testing.T, s *script) {
				c := s.open(func(cfg *client.Config) { cfg.CacheSize = 10 })
				tx := begin(t, c)
				data := strings.Repeat("x", 20) // more than is kept
				written := make(chan error, 1)
				go func() { written <- tx.Store(t.Context(), 1, 5, []byte(data)) }()
				ev, p := request[*proto.AskStoreObject](s)
				if len(written) > 0 {
					t.Fatal("the store did not wait, with more data under way than allowed")
				}
				answerStore(ev, locked)
				if err := <-written; err != nil {
					t.Fatal(err)
				}
				ev.Conn.Send(&proto.NotifyDeadlock{TTID: tx.TTID(), OID: 1})
				relock, _ := request[*proto.AskRelockObject](s)
				back := p.ObjectData
				if damaged {
					back.Checksum = sha1.Sum([]byte("else"))
				}
				relock.Conn.Answer(relock.ID, &proto.AnswerRelockObject{Conflict: &proto.RelockConflict{Serial: 5, Conflict: 40, Data: &back}})
				err := <-vote(t.Context(), tx)
				if ce, ok := errors.AsType[*txn.ConflictError](err); !damaged && (!ok || string(ce.Data) != data || ce.Committed != 40 || ce.Base != 5) {
					t.Errorf("vote: %v", err)
				}
				if damaged && !errors.Is(err, client.ErrChecksum) {
					t.Errorf("vote: %v", err)
				}
				tx.Abort(t.Context())
				// A transaction that is over does not relock.
				ev.Conn.Send(&proto.NotifyDeadlock{TTID: tx.TTID(), OID: 1})
				if ab, _ := request[*proto.AbortTransaction](s); ab.Packet.(*proto.AbortTransaction).TTID != tx.TTID() {
					t.Error("another transaction was aborted")
				}
				s.none()
			})
		})
	}
}

// The master dies while a commit is being finished: how it ended is found out.
func TestMasterLostInFinish(t *testing.T) {
	for _, tt := range []struct {
		name    string
		master  proto.Opt[tid.TID]
		storage proto.Opt[tid.TID]
		want    tid.TID // Zero: not committed
	}{
		{"the next master knows it", proto.Some(tid.TID(1020)), proto.Opt[tid.TID]{}, 1020},
		{"it was not committed", proto.Opt[tid.TID]{}, proto.Opt[tid.TID]{}, 0},
		{"a storage knows it", proto.Some(tid.Max), proto.Some(tid.TID(1030)), 1030},
		{"no storage knows it", proto.Some(tid.Max), proto.Opt[tid.TID]{}, 0},
	} {
		for name, finish := range map[string]func(context.Context, *client.Txn, func(tid.TID)) (tid.TID, error){
			"waiting": func(ctx context.Context, tx *client.Txn, onFinish func(tid.TID)) (tid.TID, error) {
				return tx.Finish(ctx, onFinish)
			},
			"soon": commitSoon,
		} {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				playScript(t, 1, 10, func(t *testing.T, s *script) {
					resets, losses := 0, 0
					c := s.open(func(cfg *client.Config) {
						cfg.OnReset = func() { resets++ }
						cfg.OnLost = func() {
							if losses++; losses != resets+1 {
								t.Errorf("lost after %d resets, the %d. time", resets, losses)
							}
						}
					})
					tx := begin(t, c)
					if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
						t.Fatal(err)
					}
					tx.Flush()
					ev, _ := request[*proto.AskStoreObject](s)
					answerStore(ev, locked)
					type result struct {
						tid tid.TID
						err error
					}
					done := make(chan result, 1)
					go func() {
						at, err := finish(t.Context(), tx, func(tid.TID) { t.Error("onFinish was called") })
						done <- result{at, err}
					}()
					synctest.Wait()
					s.mu.Lock()
					conn := s.finish.Conn
					s.last = max(s.last, tt.want)
					s.mu.Unlock()
					conn.Close()
					time.Sleep(5 * time.Second) // reconnection
					final, _ := request[*proto.AskFinalTID](s)
					final.Conn.Answer(final.ID, &proto.AnswerFinalTID{TID: tt.master})
					if tt.master == proto.Some(tid.Max) {
						time.Sleep(5 * time.Second)
						final, _ = request[*proto.AskFinalTID](s)
						if final.Conn.Tag == nil {
							t.Error("the master was asked twice")
						}
						final.Conn.Answer(final.ID, &proto.AnswerFinalTID{TID: tt.storage})
					}
					r := <-done
					if r.tid != tt.want || (r.err == nil) != (tt.want != 0) || tt.want == 0 && !errors.Is(r.err, client.ErrMasterLost) {
						t.Errorf("finish: %v, %v", r.tid, r.err)
					}
					if want := min(1, int(tt.want)); resets != want || losses != 1 {
						t.Errorf("lost %d times, %d resets, want 1 and %d", losses, resets, want)
					}
				})
			})
		}
	}
}

// VoteAsync calls back from the goroutine that reads the answer on which it depends.
func TestVoteSoon(t *testing.T) {
	for _, tt := range []struct {
		name  string
		store proto.Opt[tid.TID] // answer to the store
		then  func(s *script, tx *client.Txn)
		voted bool
		vote  error // of the Vote that follows if it was not
	}{
		{"all is well", locked, func(s *script, _ *client.Txn) {}, true, nil},
		{"a conflict", proto.Some(tid.TID(7)), func(*script, *client.Txn) {}, false, &txn.ConflictError{OID: 1, Committed: 7, Base: 5, Data: []byte("mine")}},
		{"given up", locked, func(_ *script, tx *client.Txn) { tx.GiveUp() }, false, nil},
		{"aborted", locked, func(_ *script, tx *client.Txn) { tx.Abort(context.Background()) }, false, client.ErrClosed},
		{"the master is lost", locked, func(s *script, _ *client.Txn) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.master.Close()
		}, false, client.ErrMasterLost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			playScript(t, 1, 10, func(t *testing.T, s *script) {
				c := s.open(nil)
				b := c.BeginAsync(client.BeginOptions{})
				if err := c.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				if tx := b.Take(); tx != nil {
					t.Fatal("no storage is connected, a store would wait")
				}
				tx, err := b.Wait(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
					t.Fatal(err)
				}
				tx.Flush()
				calls := make(chan bool, 2)
				tx.VoteAsync(func(voted bool) { calls <- voted })
				ev, _ := request[*proto.AskStoreObject](s)
				if len(calls) > 0 {
					t.Fatal("called before the answer")
				}
				if tt.voted || tt.store != locked {
					answerStore(ev, tt.store)
				}
				synctest.Wait()
				tt.then(s, tx)
				synctest.Wait()
				if len(calls) != 1 {
					t.Fatalf("called %d times", len(calls))
				}
				if got := <-calls; got != tt.voted {
					t.Errorf("voted: %v, want %v", got, tt.voted)
				}
				if tt.voted {
					return
				}
				if tt.vote == nil {
					answerStore(ev, locked)
				}
				err = <-vote(t.Context(), tx)
				if want, ok := tt.vote.(*txn.ConflictError); ok {
					got, ok := errors.AsType[*txn.ConflictError](err)
					if !ok || got.OID != want.OID || got.Committed != want.Committed || got.Base != want.Base {
						t.Errorf("vote: %v, want %v", err, want)
					}
				} else if !errors.Is(err, tt.vote) {
					t.Errorf("vote: %v, want %v", err, tt.vote)
				}
			})
		})
	}
}

// What was asked for and is not used any more is aborted, whichever comes first.
func TestBeginSoonAbandoned(t *testing.T) {
	simulate(t, shape{storages: 1, partitions: 1}, func(t *testing.T, r *rig) {
		c := r.open(nil)
		b := c.BeginAsync(client.BeginOptions{})
		b.Abandon()                  // before the answer
		r.commit(c, text(1, 0, "x")) // connects the storage
		b = c.BeginAsync(client.BeginOptions{})
		synctest.Wait()
		b.Abandon() // after it
		b = c.BeginAsync(client.BeginOptions{})
		synctest.Wait()
		tx := b.Take()
		if tx == nil {
			t.Fatal("nothing stands in the way")
		}
		if err := tx.Store(t.Context(), 2, 0, []byte("y")); err != nil {
			t.Fatal(err)
		}
		at, err := commitSoon(t.Context(), tx, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.want(c, 2, "y", at)
		// A transaction with a TID of its own is taken only while there is no other.
		imposed, err := c.Begin(t.Context(), client.BeginOptions{TID: at + 1000})
		if err != nil {
			t.Fatalf("one of the others is left: %v", err)
		}
		imposed.Abort(t.Context())
	})
}

// Before the finish, a lost master fails the vote, and no master is asked to abort
// a transaction that it does not know.
func TestMasterLostBeforeVote(t *testing.T) {
	playScript(t, 1, 10, func(t *testing.T, s *script) {
		c := s.open(nil)
		tx := begin(t, c)
		if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		tx.Flush()
		ev, _ := request[*proto.AskStoreObject](s)
		answerStore(ev, locked)
		s.mu.Lock()
		conn := s.master
		s.mu.Unlock()
		conn.Close()
		synctest.Wait()
		if err := <-vote(t.Context(), tx); !errors.Is(err, client.ErrMasterLost) {
			t.Errorf("vote: %v", err)
		}
		if err := c.Sync(t.Context()); err != nil {
			t.Errorf("sync with the next master: %v", err)
		}
		tx.Abort(t.Context())
		s.none()
	})
}

// A master that is lost before it has taken note of the storages that failed has not
// agreed to the commit, although the transaction may hear of the loss only later.
func TestMasterLostInVote(t *testing.T) {
	playScript(t, 2, 10, func(t *testing.T, s *script) {
		s.hangUp, s.deaf = 2, true
		c := s.open(func(cfg *client.Config) {
			cfg.OnLost = func() { time.Sleep(time.Second) } // nothing else has heard of it
		})
		tx := begin(t, c)
		if err := tx.Store(t.Context(), 1, 5, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		tx.Flush()
		for _, ev := range stores(s) {
			answerStore(ev, locked)
		}
		if err := <-vote(t.Context(), tx); !errors.Is(err, client.ErrMasterLost) {
			t.Errorf("vote: %v", err)
		}
		if failed, _ := s.failures(); len(failed) != 1 {
			t.Errorf("the master was told %d times", len(failed))
		}
		tx.Abort(t.Context())
	})
}

// A read goes to another replica, and gives up when there is none.
func TestReadRetries(t *testing.T) {
	playScript(t, 2, 10, func(t *testing.T, s *script) {
		c := s.open(nil)
		load := loadBefore(t.Context(), c, 1, 0)
		first, _ := request[*proto.AskObject](s)
		first.Conn.AnswerError(first.ID, proto.NonReadableCell, "")
		second, _ := request[*proto.AskObject](s)
		if first.Conn == second.Conn {
			t.Error("the same replica was asked again at once")
		}
		second.Conn.Close()
		time.Sleep(2 * time.Second)              // it may be the one that is tried first, once a second
		third, _ := request[*proto.AskObject](s) // after a round trip to the master
		third.Conn.Answer(third.ID, object(1, 5, 0, "five"))
		if r := <-load; r.data != "five" {
			t.Errorf("load: %+v", r)
		}
		s.net.Crash("s1")
		s.net.Crash("s2")
		if r := <-loadBefore(t.Context(), c, 2, 0); !errors.Is(r.err, client.ErrNoStorage) {
			t.Errorf("load without storages: %+v", r)
		}
	})
}

// A record that no node would take is refused before anything of it is sent, and
// the links go on for others.
func TestRecordTooBig(t *testing.T) {
	simulate(t, shape{partitions: 3, replicas: 1, storages: 2}, func(t *testing.T, r *rig) {
		a := r.open(func(c *client.Config) { c.Level = client.NoCompression })
		b := r.open(nil)
		tx := begin(t, a)
		if err := tx.Store(t.Context(), 1, 0, []byte("small")); err != nil {
			t.Fatal(err)
		}
		err := tx.Store(t.Context(), 2, 0, make([]byte, proto.MaxElement+1))
		names(t, err, tid.OID(2).String(), tx.TTID().String(), fmt.Sprint(proto.MaxElement+1))
		if err := tx.Abort(t.Context()); err != nil {
			t.Errorf("abort: %v", err)
		}
		at := r.commit(b, text(1, 0, "one"), text(2, 0, "two"))
		at = r.commit(a, text(2, at, "TWO"))
		r.want(a, 2, "TWO", at)
	})
}

// What storages would take for an error of the node, and hang up, is refused before
// it is sent: the links belong to all transactions.
func TestImpossibleRequests(t *testing.T) {
	simulate(t, shape{partitions: 2, replicas: 1, storages: 2}, func(t *testing.T, r *rig) {
		c := r.open(nil)
		at := r.commit(c, text(1, 0, "one"), text(2, 0, "two"), text(3, 0, "three"))
		bystander := begin(t, c)
		if err := bystander.Store(t.Context(), 3, at, []byte("THREE")); err != nil {
			t.Fatal(err)
		}
		bystander.Flush()

		tx := begin(t, c)
		ctx := t.Context()
		for range 2 {
			if err := tx.CheckCurrent(ctx, 1, at); err != nil {
				t.Errorf("check: %v", err)
			}
		}
		var readConflict *txn.ReadConflictError
		if err := tx.CheckCurrent(ctx, 1, at-1); !errors.As(err, &readConflict) || readConflict.OID != 1 {
			t.Errorf("check at another revision: %v", err)
		}
		readConflict = nil
		if err := tx.CheckCurrent(ctx, 2, at+1); !errors.As(err, &readConflict) || readConflict.OID != 2 {
			t.Errorf("check at a revision to come: %v", err)
		}
		var conflict *txn.ConflictError
		if err := tx.Store(ctx, 2, at+1, []byte("TWO")); !errors.As(err, &conflict) || conflict.OID != 2 {
			t.Errorf("store on a revision to come: %v", err)
		}
		if err := tx.Store(ctx, tid.MaxOID+1, 0, []byte("x")); err == nil {
			t.Error("an object id out of range is accepted")
		}
		if err := tx.Store(ctx, 2, at, []byte("TWO")); err != nil {
			t.Errorf("store: %v", err)
		}
		second := must(tx.Finish(ctx, nil))(t)
		third := must(bystander.Finish(ctx, nil))(t)
		r.want(c, 1, "one", at)
		r.want(c, 2, "TWO", second)
		r.want(c, 3, "THREE", third)
	})
}

// A master whose clock is behind the database does not give the id of a transaction
// again whose outcome its client still has to ask for.
func TestOutcomeAfterTheMasterDied(t *testing.T) {
	simulate(t, shape{partitions: 2, storages: 1}, func(t *testing.T, r *rig) {
		a, b := r.open(nil), r.open(nil)
		ahead := tid.FromTime(time.Now().Add(24 * time.Hour))
		copied := must(a.Begin(t.Context(), client.BeginOptions{TID: ahead}))(t)
		if err := copied.Store(t.Context(), 1, 0, []byte("copied")); err != nil {
			t.Fatal(err)
		}
		must(copied.Finish(t.Context(), nil))(t)

		lost := begin(t, a)
		if err := lost.Store(t.Context(), 7, 0, []byte("lost")); err != nil {
			t.Fatal(err)
		}
		must(lost.Vote(t.Context()))(t)
		r.net.Hold("c0", "m") // the finish does not arrive
		done := make(chan error, 1)
		go func() {
			_, err := lost.Finish(t.Context(), nil)
			done <- err
		}()
		synctest.Wait()
		r.net.Cut("c0", "m")
		r.net.Crash("m")
		r.master.stop()
		r.net.Release("c0", "m")
		time.Sleep(time.Millisecond) // what masters give depends on when they start
		r.startMaster()
		other := begin(t, b)
		if err := other.Store(t.Context(), 8, 0, []byte("other")); err != nil {
			t.Fatal(err)
		}
		r.net.Heal("c0", "m")
		time.Sleep(10 * time.Second)
		at := must(other.Finish(t.Context(), nil))(t)
		r.want(b, 8, "other", at)
		if err := <-done; err == nil {
			t.Errorf("transaction %v of a client is said to be committed, after %v of another one", lost.TTID(), other.TTID())
		}
		if _, _, err := b.Load(t.Context(), 7); !errors.Is(err, txn.ErrNoSuchObject) {
			t.Errorf("load of what was lost: %v", err)
		}
	})
}

// A record that is damaged on all replicas is an error, soon and without wearing out
// the storages; a cell that is not readable yet is waited for.
func TestDamagedEverywhere(t *testing.T) {
	playScript(t, 2, 10, func(t *testing.T, s *script) {
		c := s.open(nil)
		refuse := func(why string) {
			ev, _ := request[*proto.AskObject](s)
			ev.Conn.AnswerError(ev.ID, proto.NonReadableCell, "%s", why)
			time.Sleep(time.Second)
		}
		load := loadBefore(t.Context(), c, 1, 0)
		for range 6 {
			refuse("object 1 is damaged")
		}
		select {
		case r := <-load:
			if !errors.Is(r.err, client.ErrChecksum) || !strings.Contains(r.err.Error(), "object 1 is damaged") {
				t.Errorf("load of what is damaged: %v", r.err)
			}
		default:
			t.Error("the load of what is damaged goes on")
		}
		s.none()

		load = loadBefore(t.Context(), c, 1, 0)
		for range 10 {
			refuse("")
		}
		ev, _ := request[*proto.AskObject](s)
		ev.Conn.Answer(ev.ID, object(1, 5, 0, "five"))
		if r := <-load; r.data != "five" {
			t.Errorf("load: %+v", r)
		}
	})
}

// A caller that is told of a commit, by a callback that comes before LastTID names it, finds it
// in the history.
func TestHistoryOfWhatWasJustTold(t *testing.T) {
	simulate(t, shape{partitions: 2, storages: 1}, func(t *testing.T, r *rig) {
		var c, other *client.Client
		newest := func(c *client.Client) tid.TID {
			found := make(chan tid.TID)
			go func() {
				last := tid.Zero
				for tx, err := range c.Transactions(t.Context(), tid.Zero, tid.Max) {
					if err != nil {
						t.Error(err)
						break
					}
					last = tx.TID
				}
				found <- last
			}()
			return <-found // the callback returns only after it
		}
		c = r.open(nil)
		other = r.open(func(cfg *client.Config) {
			cfg.OnInvalidate = func(at tid.TID, _ []tid.OID) {
				if got := newest(other); got != at {
					t.Errorf("told of %v by another client, the history ends with %v", at, got)
				}
			}
		})
		r.commit(c, text(1, 0, "one"))
		tx := begin(t, c)
		if err := tx.Store(t.Context(), 2, 0, []byte("two")); err != nil {
			t.Fatal(err)
		}
		must(tx.Finish(t.Context(), func(at tid.TID) {
			if got := newest(c); got != at {
				t.Errorf("told of %v, the history ends with %v", at, got)
			}
		}))(t)
		must(1, other.Sync(t.Context()))(t)
	})
}
