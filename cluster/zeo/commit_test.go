package zeo_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// Conflicts are told to the client, which keeps its locks while it resolves them.
func TestConflictKeepsTheLock(t *testing.T) {
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		s := serve(t, zeotest.NewMemory(), nil)
		a, b := s.client(msgpack), s.client(!msgpack)
		t1 := commit(t, a, zeotest.Store{OID: 1, Data: []byte("base")})
		t2 := commit(t, a, zeotest.Store{OID: 1, Base: t1, Data: []byte("theirs")})

		const txn = 77
		v, err := b.Vote(txn, zeotest.Store{OID: 1, Base: t1, Data: []byte("ours")}, zeotest.Store{OID: 2, Data: []byte("new")})
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprint(zeotest.Dict{"oid": tid.OID(1).Bytes(), "serials": zeotest.Tuple{t2.Bytes(), t1.Bytes()}, "data": []byte("ours")})
		list, _ := v.(zeotest.List)
		if tuple, ok := v.(zeotest.Tuple); ok {
			list = zeotest.List(tuple)
		}
		if len(list) != 1 || fmt.Sprint(list[0]) != want {
			t.Fatalf("vote answered %v, want [%v]", v, want)
		}
		if !s.m.Busy() {
			t.Error("the lock was released while the client resolves")
		}
		if err := b.Async("storea", tid.OID(1), t2, []byte("merged"), txn); err != nil {
			t.Fatal(err)
		}
		if v, err := b.Call("vote", txn); err != nil || fmt.Sprint(v) != "[]" {
			t.Fatalf("second vote: %v, %v", v, err)
		}
		_, err = b.Call("vote", txn)
		wantClass(t, err, "ZODB.POSException.StorageTransactionError")
		if _, err := b.Call("tpc_finish", txn); err != nil {
			t.Fatal(err)
		}
		data, _, _, err := a.LoadBefore(1, tid.Max)
		if string(data) != "merged" || err != nil {
			t.Errorf("after resolution: %q, %v", data, err)
		}
		// A conflict of a check is no matter of resolution.
		if err := b.Async("tpc_begin", 5, []byte{}, []byte{}, zeotest.Dict{}); err != nil {
			t.Fatal(err)
		}
		if err := b.Async("checkCurrentSerialInTransaction", tid.OID(1), t1, 5); err != nil {
			t.Fatal(err)
		}
		_, err = b.Call("vote", 5)
		wantClass(t, err, "ZODB.POSException.ReadConflictError")
		if s.m.Busy() {
			t.Error("the lock is kept after a failed vote")
		}
		if v, err := b.Call("tpc_abort", 5); v != nil || err != nil {
			t.Errorf("abort after a failed vote: %v, %v", v, err)
		}
	})
}

// A client may go away at any step: others commit as if it had never been.
func TestDisconnectAtEveryStep(t *testing.T) {
	store := func(c *zeotest.Client, txn int, base tid.TID) error {
		return c.Async("storea", tid.OID(1), base, []byte("lost"), txn)
	}
	begin := func(c *zeotest.Client, txn int) error {
		return c.Async("tpc_begin", txn, []byte("u"), []byte("d"), zeotest.Dict{})
	}
	for _, tt := range []struct {
		name string
		do   func(c *zeotest.Client, current tid.TID) error
	}{
		{"after the connection", func(*zeotest.Client, tid.TID) error { return nil }},
		{"within a frame", func(c *zeotest.Client, _ tid.TID) error {
			_, err := c.Conn.Write([]byte{0, 0, 1, 0, 'x'})
			return err
		}},
		{"after begin", func(c *zeotest.Client, _ tid.TID) error { return begin(c, 1) }},
		{"after a store", func(c *zeotest.Client, cur tid.TID) error { return errors.Join(begin(c, 1), store(c, 1, cur)) }},
		{"within vote", func(c *zeotest.Client, cur tid.TID) error {
			_, err := c.Send(false, "vote", 1)
			return errors.Join(begin(c, 1), store(c, 1, cur), err)
		}},
		{"after vote", func(c *zeotest.Client, cur tid.TID) error {
			_, err := c.Vote(1, zeotest.Store{OID: 1, Base: cur, Data: []byte("lost")})
			return err
		}},
		{"while resolving", func(c *zeotest.Client, _ tid.TID) error {
			_, err := c.Vote(1, zeotest.Store{OID: 1, Base: 1, Data: []byte("lost")})
			return err
		}},
		{"closed by the server after vote", func(c *zeotest.Client, cur tid.TID) error {
			if _, err := c.Vote(1, zeotest.Store{OID: 1, Base: cur, Data: []byte("lost")}); err != nil {
				return err
			}
			if err := c.Async("storea", tid.OID(1), cur, []byte("x"), 99); err != nil { // another transaction
				return err
			}
			if _, err := c.Read(); err != io.EOF {
				return fmt.Errorf("got %v, want the end", err)
			}
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			storages(t, func(t *testing.T, s *served) {
				a := s.client(false)
				current := commit(t, a, zeotest.Store{OID: 1, Data: []byte("first")})
				b := s.client(true)
				if err := tt.do(b, current); err != nil {
					t.Fatal(err)
				}
				b.Close()
				s.eventually("the lock is free", func() bool { return !s.m.Busy() })
				at := commit(t, a, zeotest.Store{OID: 1, Base: current, Data: []byte("second")})
				data, serial, _, err := a.LoadBefore(1, tid.Max)
				if string(data) != "second" || serial != at || err != nil {
					t.Errorf("%q at %v, %v", data, serial, err)
				}
				s.eventually("nothing of the client is left", func() bool {
					v, err := a.Call("server_status")
					if err != nil {
						t.Fatal(err)
					}
					st := v.(zeotest.Dict)
					return st["connections"] == int64(1) && st["active_txns"] == int64(0) && st["waiting"] == int64(0) && st["lock_time"] == nil
				})
			})
		})
	}
}

// A commit that was under way when the client went is whole, or not at all.
func TestDisconnectWithinFinish(t *testing.T) {
	storages(t, func(t *testing.T, s *served) {
		for i := range 20 {
			x, y := tid.OID(2*i+1), tid.OID(2*i+2)
			c, other := s.client(false), s.client(true)
			if _, err := c.Vote(1, zeotest.Store{OID: x, Data: []byte("x")}, zeotest.Store{OID: y, Data: []byte("y")}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Send(false, "tpc_finish", 1); err != nil {
				t.Fatal(err)
			}
			c.Close()
			s.eventually("the lock is free", func() bool { return !s.m.Busy() })
			_, _, _, err1 := other.LoadBefore(x, tid.Max)
			_, _, _, err2 := other.LoadBefore(y, tid.Max)
			if (err1 == nil) != (err2 == nil) {
				t.Errorf("half a transaction: %v, %v", err1, err2)
			}
		}
	})
}

// Votes wait for the lock in their order; who gives up meanwhile is passed over.
func TestVotesWait(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), nil)
	var clients []*zeotest.Client
	for i := range 4 {
		c := s.client(i%2 == 0)
		clients = append(clients, c)
	}
	holder, gone, aborts, next := clients[0], clients[1], clients[2], clients[3]
	if _, err := holder.Vote(1, zeotest.Store{OID: 1, Data: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	ids := make(map[*zeotest.Client]int)
	for i, c := range clients[1:] {
		err := c.Async("tpc_begin", 1, []byte{}, []byte{}, zeotest.Dict{})
		id, err2 := c.Send(false, "vote", 1)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		ids[c] = id
		s.eventually("the vote waits", func() bool {
			v, err := holder.Call("server_status")
			return err == nil && v.(zeotest.Dict)["waiting"] == int64(i+1)
		})
	}
	again, err := aborts.Send(false, "vote", 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = aborts.Wait(again)
	wantClass(t, err, "ZODB.POSException.StorageTransactionError")
	gone.Close()
	abort, err := aborts.Send(false, "tpc_abort", 1)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := aborts.Wait(abort); v != nil || err != nil {
		t.Errorf("abort while waiting: %v, %v", v, err)
	}
	if _, err := holder.Call("tpc_finish", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Wait(ids[next]); err != nil {
		t.Errorf("next vote: %v", err)
	}
	if _, err := next.Call("tpc_finish", 1); err != nil {
		t.Error(err)
	}
}

func TestTransactionTimeout(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), func(cfg *zeo.Config) { cfg.TransactionTimeout = 50 * time.Millisecond })
	c := s.client(false)
	if _, err := c.Vote(1, zeotest.Store{OID: 1, Data: []byte("a")}); err == nil { // else it has ended already
		if _, err := c.Read(); err == nil {
			t.Error("the connection is still open")
		}
	}
	s.eventually("the timeout is in the log", func() bool { return s.log.Contains("transaction timeout") })
	s.eventually("the lock is free", func() bool { return !s.m.Busy() })
	var d *zeotest.Client
	oid := tid.OID(1)
	s.eventually("a transaction ends in time", func() bool {
		oid++
		d = s.client(false)
		_, err := d.Commit(zeotest.Store{OID: oid, Data: []byte("b")})
		return err == nil
	})
	time.Sleep(100 * time.Millisecond)
	if _, err := d.Call("ping"); err != nil {
		t.Errorf("a transaction that ended in time: %v", err)
	}
}

// checking notes what is to be checked.
type checking struct {
	*zeotest.Door
	checks []tid.OID
}

func (s *checking) Begin(ctx context.Context, b zeo.Begin) (zeo.Txn, error) {
	t, err := s.Door.Begin(ctx, b)
	return &checkingTxn{t, s}, err
}

type checkingTxn struct {
	zeo.Txn
	s *checking
}

func (t *checkingTxn) Check(ctx context.Context, oid tid.OID, base tid.TID) error {
	t.s.checks = append(t.s.checks, oid)
	return t.Txn.Check(ctx, oid, base)
}

// Storages of a cluster take a second check of an object for a mistake of its client,
// of which all ZEO clients have one.
func TestObjectsAreCheckedOnce(t *testing.T) {
	m := zeotest.NewMemory()
	st := &checking{Door: m.Door()}
	s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = st })
	c := s.client(false)
	at := commit(t, c, zeotest.Store{OID: 1, Data: []byte("x")}, zeotest.Store{OID: 2, Data: []byte("y")})
	vote := func(bases ...tid.TID) error {
		if err := c.Async("tpc_begin", 5, []byte{}, []byte{}, zeotest.Dict{}); err != nil {
			t.Fatal(err)
		}
		for _, base := range bases {
			for _, oid := range []tid.OID{1, 2} {
				if err := c.Async("checkCurrentSerialInTransaction", oid, base, 5); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, err := c.Call("vote", 5)
		return err
	}
	if err := vote(at, at, at); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(st.checks, []tid.OID{1, 2}) {
		t.Errorf("checked %v, want each once", st.checks)
	}
	if _, err := c.Call("tpc_finish", 5); err != nil {
		t.Fatal(err)
	}
	wantClass(t, vote(at, at-1), "ZODB.POSException.ReadConflictError")
	if s.m.Busy() {
		t.Error("the lock is kept after a failed vote")
	}
}

// Clients give up resolving conflicts after nine votes, and then finish what was
// not voted unless the ninth fails.
func TestLastVote(t *testing.T) {
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		s := serve(t, zeotest.NewMemory(), nil)
		c := s.client(msgpack)
		base := commit(t, c, zeotest.Store{OID: 1, Data: []byte("x")})
		newest := commit(t, c, zeotest.Store{OID: 1, Base: base, Data: []byte("y")})
		answer, err := c.Vote(1, zeotest.Store{OID: 1, Base: base, Data: []byte("mine")})
		for n := 1; n < 9; n++ {
			if err != nil || !strings.Contains(fmt.Sprint(answer), "serials") {
				t.Fatalf("vote %d: %v, %v, want a conflict", n, answer, err)
			}
			if err := c.Async("storea", tid.OID(1), base, []byte("not resolved"), 1); err != nil {
				t.Fatal(err)
			}
			answer, err = c.Call("vote", 1)
		}
		wantClass(t, err, "ZODB.POSException.ConflictError")
		// The client goes on with the same connection.
		commit(t, c, zeotest.Store{OID: 1, Base: newest, Data: []byte("again")})
	})
}
