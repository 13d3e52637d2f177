package zeo_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// soon is a storage of which nobody has to wait. call says how it calls back: with
// the result of what it is given, or with false.
type soon struct {
	*zeotest.Door
	call func(done func(bool))
	slow bool // to begin
}

func (s *soon) BeginAsync(b zeo.Begin) zeo.PendingBegin {
	if b.TID != tid.Zero {
		return nil
	}
	return beginning{s, b}
}

type beginning struct {
	s *soon
	b zeo.Begin
}

func (beginning) Abandon() {}

func (b beginning) Take() zeo.AsyncTxn {
	if b.s.slow {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	t, err := b.Wait(ctx)
	if err != nil {
		return nil
	}
	return t
}

func (b beginning) Wait(ctx context.Context) (zeo.AsyncTxn, error) {
	t, err := b.s.Begin(ctx, b.b)
	if err != nil {
		return nil, err
	}
	return &prompt{Txn: t, s: b.s, given: make(chan struct{}, 1)}, nil
}

type prompt struct {
	zeo.Txn
	s      *soon
	given  chan struct{} // up
	finish func() (tid.TID, error)
}

func (p *prompt) VoteAsync(done func(bool)) {
	if p.s.call == nil { // until it is given up
		go func() {
			<-p.given
			done(false)
		}()
		return
	}
	p.s.call(done)
}

func (p *prompt) GiveUp() {
	select {
	case p.given <- struct{}{}:
	default:
	}
}

func (p *prompt) FinishAsync(committed func(tid.TID), done func(tid.TID, bool)) {
	p.s.call(func(well bool) {
		if !well {
			p.finish = func() (tid.TID, error) { return p.Txn.Finish(context.Background(), committed) }
			done(tid.Zero, false)
			return
		}
		at, err := p.Txn.Finish(context.Background(), committed)
		done(at, err == nil)
	})
}

func (p *prompt) Finish(ctx context.Context, committed func(tid.TID)) (tid.TID, error) {
	if p.finish != nil {
		return p.finish()
	}
	return p.Txn.Finish(ctx, committed)
}

// storages runs a test with storages that are waited for, and that call back.
func storages(t *testing.T, test func(t *testing.T, s *served)) {
	for name, call := range map[string]func(func(bool)){
		"waiting":         nil,
		"at once":         func(done func(bool)) { done(true) },
		"later":           func(done func(bool)) { go done(true) },
		"hands over":      func(done func(bool)) { done(false) },
		"hands over late": func(done func(bool)) { go done(false) },
	} {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, slow %v", name, slow), func(t *testing.T) {
				m := zeotest.NewMemory()
				test(t, serve(t, m, func(cfg *zeo.Config) {
					if call != nil {
						cfg.Storages["1"] = &soon{m.Door(), call, slow}
					}
				}))
			})
		}
	}
}

// A vote that depends on others ends with the connection, or by an abort.
func TestVoteGivenUp(t *testing.T) {
	m := zeotest.NewMemory()
	s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = &soon{Door: m.Door()} })
	for name, end := range map[string]func(*testing.T, *zeotest.Client){
		"abort": func(t *testing.T, c *zeotest.Client) {
			if v, err := c.Call("tpc_abort", 1); v != nil || err != nil {
				t.Errorf("abort: %v, %v", v, err)
			}
		},
		"close": func(_ *testing.T, c *zeotest.Client) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c := s.client(false)
			if err := c.Async("tpc_begin", 1, []byte{}, []byte{}, zeotest.Dict{}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Send(false, "vote", 1); err != nil {
				t.Fatal(err)
			}
			s.eventually("the vote holds the lock", s.m.Busy)
			end(t, c)
			s.eventually("the lock is free", func() bool { return !s.m.Busy() })
		})
	}
}

// early is a transaction whose vote begins after it was given up.
type early struct {
	*soon
	voting chan struct{} // closed when the vote is to begin
	begin  chan struct{} // closed when it may
}

func (s *early) BeginAsync(b zeo.Begin) zeo.PendingBegin {
	return earlyBeginning{s.soon.BeginAsync(b).(beginning), s}
}

type earlyBeginning struct {
	beginning
	s *early
}

func (b earlyBeginning) Wait(ctx context.Context) (zeo.AsyncTxn, error) {
	p, err := b.beginning.Wait(ctx)
	if err != nil {
		return nil, err
	}
	return &earlyPrompt{p.(*prompt), b.s, make(chan struct{})}, nil
}

// earlyPrompt waits for others once its vote has begun, until it is given up.
type earlyPrompt struct {
	*prompt
	s     *early
	begun chan struct{}
}

func (p *earlyPrompt) VoteAsync(done func(bool)) {
	close(p.s.voting)
	<-p.s.begin
	close(p.begun)
	p.prompt.VoteAsync(done)
}

func (p *earlyPrompt) GiveUp() {
	select {
	case <-p.begun:
		p.prompt.GiveUp()
	default: // nothing to give up yet
	}
}

// An abort that comes just before the storage is asked for its vote ends that too.
func TestVoteGivenUpBeforeItBegins(t *testing.T) {
	m := zeotest.NewMemory()
	st := &early{&soon{Door: m.Door(), slow: true}, make(chan struct{}), make(chan struct{})}
	s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = st })
	c := s.client(false)
	if err := c.Async("tpc_begin", 1, []byte{}, []byte{}, zeotest.Dict{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Send(false, "vote", 1); err != nil {
		t.Fatal(err)
	}
	<-st.voting
	id, err := c.Send(false, "tpc_abort", 1)
	if err == nil {
		_, err = c.Call("lastTransaction") // answered after the abort was read
	}
	close(st.begin)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.Wait(id); v != nil || err != nil {
		t.Errorf("abort: %v, %v", v, err)
	}
}

// cached is a storage that has everything at hand, and where something happens
// between the look at the cache and the answer.
type cached struct {
	*zeotest.Door
	meanwhile func()
	hits      int
}

func (s *cached) Features() zeo.Features {
	f := s.Door.Features()
	f.Local = false
	return f
}

func (s *cached) Cached(oid tid.OID, before tid.TID) (txn.Revision, bool) {
	r, err := s.LoadBefore(context.Background(), oid, before)
	if err != nil {
		return r, false
	}
	s.hits++
	if f := s.meanwhile; f != nil {
		s.meanwhile = nil
		f()
	}
	return r, true
}

// What is in the cache is answered like what is loaded: never as current after its
// successor was announced.
func TestCachedLoadKnowsWhatWasAnnounced(t *testing.T) {
	for _, queue := range []int{100, 1} { // known from the history, or to be loaded
		m := zeotest.NewMemory()
		other := serve(t, m, nil).client(true)
		t1 := commit(t, other, zeotest.Store{OID: 1, Data: []byte("old")})
		st := &cached{Door: m.Door()}
		var t2 tid.TID
		s := serve(t, m, func(cfg *zeo.Config) {
			cfg.Storages["1"] = st
			cfg.InvalidationQueueSize = queue
		})
		c := s.client(false)
		st.meanwhile = func() {
			t2 = commit(t, other, zeotest.Store{OID: 1, Base: t1, Data: []byte("new")})
			commit(t, other, zeotest.Store{OID: 2, Data: []byte("another")})
		}
		data, serial, next, err := c.LoadBefore(1, tid.Max)
		if err != nil || serial == t1 && (string(data) != "old" || next != t2) || serial != t1 && (string(data) != "new" || serial != t2 || next != 0) {
			t.Errorf("queue %d: %q at %v, next %v, %v; %v came before the answer", queue, data, serial, next, err, t2)
		}
		if _, _, _, err := c.LoadBefore(9, tid.Max); err == nil {
			t.Error("an object that does not exist")
		}
		if st.hits == 0 {
			t.Error("the cache was not used")
		}
	}
}
