package zeo_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/testlog"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// served is a server over a storage, for one test.
type served struct {
	t    testing.TB
	addr string
	m    *zeotest.Memory
	log  testlog.Buffer
}

func serve(t testing.TB, m *zeotest.Memory, change func(*zeo.Config)) *served {
	t.Helper()
	s := &served{t: t, m: m}
	cfg := zeo.Config{
		Storages: map[string]zeo.Storage{"1": m.Door()},
		Log:      slog.New(slog.NewTextHandler(&s.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	server, err := zeo.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *served) client(msgpack bool) *zeotest.Client {
	s.t.Helper()
	c, err := zeotest.Register(s.addr, msgpack)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

func (s *served) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not after two minutes: %s", what)
		}
	}
}

func commit(t testing.TB, c *zeotest.Client, stores ...zeotest.Store) tid.TID {
	t.Helper()
	at, err := c.Commit(stores...)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func wantClass(t testing.TB, err error, class string) {
	t.Helper()
	r, ok := errors.AsType[*zeotest.RemoteError](err)
	if !ok || r.Class != class {
		t.Errorf("got %v, want %s", err, class)
	}
}

func bothEncodings(t *testing.T, test func(t *testing.T, msgpack bool)) {
	for _, msgpack := range []bool{false, true} {
		t.Run(map[bool]string{false: "pickle", true: "msgpack"}[msgpack], func(t *testing.T) { test(t, msgpack) })
	}
}

func TestCommitAndLoad(t *testing.T) {
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		s := serve(t, zeotest.NewMemory(), nil)
		c := s.client(msgpack)
		big := bytes.Repeat([]byte("x"), 300<<10)
		t1 := commit(t, c, zeotest.Store{OID: 1, Data: []byte("one")}, zeotest.Store{OID: 2, Data: big})
		t2 := commit(t, c, zeotest.Store{OID: 1, Base: t1, Data: []byte("two")})
		for _, tt := range []struct {
			oid          tid.OID
			before       tid.TID
			data         string
			serial, next tid.TID
		}{
			{1, t2, "one", t1, t2},
			{1, tid.Max, "two", t2, 0},
			{2, tid.Max, string(big), t1, 0},
		} {
			data, serial, next, err := c.LoadBefore(tt.oid, tt.before)
			if string(data) != tt.data || serial != tt.serial || next != tt.next || err != nil {
				t.Errorf("object %v before %v: %.10q, %v, %v, %v", tt.oid, tt.before, data, serial, next, err)
			}
		}
		v, err := c.Call("loadSerial", tid.OID(1), t1)
		if b, ok := v.([]byte); !ok || string(b) != "one" || err != nil {
			t.Errorf("loadSerial: %v, %v", v, err)
		}
		if v, err := c.Call("loadBefore", tid.OID(1), t1); v != nil || err != nil {
			t.Errorf("before creation: %v, %v", v, err)
		}
		_, _, _, err = c.LoadBefore(9, tid.Max)
		wantClass(t, err, "ZODB.POSException.POSKeyError")
	})
}

// What is not the protocol ends the connection, and nothing else.
func TestBadInput(t *testing.T) {
	frame := func(msgpack bool, v any) []byte { return zeotest.Encode(msgpack, v) }
	call := func(id any, async bool, name string, args ...any) zeotest.Tuple {
		return zeotest.Tuple{id, async, name, zeotest.Tuple(args)}
	}
	register := call(1, false, "register", "1", false)
	for _, tt := range []struct {
		name  string
		hello string
		send  []any // frames, or values to encode
	}{
		{"wrong version", "Z4", nil},
		{"no encoding", "5", nil},
		{"not ZEO", "GET / HTTP/1.1", nil},
		{"empty hello", "", nil},
		{"nonsense", "Z5", []any{[]byte("nonsense")}},
		{"empty frame", "Z5", []any{[]byte{}}},
		{"call before register", "Z5", []any{call(1, false, "ping")}},
		{"unknown method", "Z5", []any{register, call(2, false, "getAuthProtocol")}},
		{"private method", "Z5", []any{register, call(2, false, "notify_connected", nil)}},
		{"register twice", "Z5", []any{register, call(2, false, "register", "1", false)}},
		{"register without answer", "Z5", []any{call(0, true, "register", "1", false)}},
		{"wrong arguments without answer", "Z5", []any{register, call(0, true, "storea", 1)}},
		{"store without transaction", "Z5", []any{register, call(0, true, "storea", tid.OID(1), nil, []byte("x"), 1)}},
		{"two transactions", "Z5", []any{register,
			call(0, true, "tpc_begin", 1, []byte{}, []byte{}, zeotest.Dict{}),
			call(0, true, "tpc_begin", 2, []byte{}, []byte{}, zeotest.Dict{})}},
		{"blob chunk without start", "Z5", []any{register, call(0, true, "storeBlobChunk", []byte("x"))}},
	} {
		for _, msgpack := range []bool{false, true} {
			hello := tt.hello
			if msgpack && hello == "Z5" {
				hello = "M5"
			}
			t.Run(fmt.Sprint(tt.name, msgpack), func(t *testing.T) {
				s := serve(t, zeotest.NewMemory(), nil)
				nc, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				write := func(b []byte) {
					// The server may have closed already.
					_, _ = nc.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
				}
				write([]byte(hello))
				for _, v := range tt.send {
					b, ok := v.([]byte)
					if !ok {
						b = frame(msgpack, v)
					}
					write(b)
				}
				if err := nc.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, nc); errors.Is(err, context.DeadlineExceeded) || err != nil && strings.Contains(err.Error(), "timeout") {
					t.Errorf("the connection is still open: %v", err)
				}
				commit(t, s.client(msgpack), zeotest.Store{OID: 1, Data: []byte("x")})
			})
		}
	}
}

// A frame that is only announced costs nothing, and one that is too long ends the
// connection.
func TestLongFrames(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), func(cfg *zeo.Config) { cfg.MaxFrame = 1 << 20 })
	for _, registered := range []bool{false, true} {
		c, err := zeotest.Dial(s.addr, false)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		size := uint32(100 << 10) // too long before register
		if registered {
			if _, err := c.Call("register", "1", 0); err != nil {
				t.Fatal(err)
			}
			size = 1<<20 + 1
		}
		if _, err := c.Conn.Write(binary.BigEndian.AppendUint32(nil, size)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadFrame(); err == nil {
			t.Errorf("registered %v: a frame of %d bytes is read", registered, size)
		}
	}
}

// Wrong calls that wait for an answer get an exception.
func TestExceptions(t *testing.T) {
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		s := serve(t, zeotest.NewMemory(), nil)
		c := s.client(msgpack)
		at := commit(t, c, zeotest.Store{OID: 1, Data: []byte("x")})
		const key, typ, value = "ZODB.POSException.POSKeyError", "builtins.TypeError", "builtins.ValueError"
		for _, tt := range []struct {
			class, method string
			args          []any
		}{
			{typ, "ping", []any{1}},
			{typ, "loadBefore", []any{tid.OID(1)}},
			{key, "loadSerial", []any{tid.OID(1), tid.TID(5)}},
			{key, "loadSerial", []any{[]byte("fredwash9"), at}},
			{key, "getTid", []any{tid.OID(7)}},
			{key, "history", []any{nil, nil}},
			{typ, "history", []any{tid.OID(1), nil}},
			{typ, "new_oids", []any{"x"}},
			{key, "sendBlob", []any{tid.OID(1), at}},
			{"builtins.KeyError", "iterator_next", []any{12345}},
			{"builtins.KeyError", "iterator_record_start", []any{12345, at}},
			{"ZODB.POSException.StorageTransactionError", "vote", []any{3}},
			{"ZODB.POSException.StorageTransactionError", "storea", []any{tid.OID(1), at, []byte("x"), 3}},
			{typ, "pack", []any{"now", true}},
			{typ, "getInvalidations", []any{"x"}},
			{value, "storea", []any{tid.MaxOID + 1, at, []byte("x"), 1}},
			{value, "checkCurrentSerialInTransaction", []any{tid.InvalidOID, at, 1}},
			{value, "deleteObject", []any{tid.InvalidOID, at, 1}},
		} {
			_, err := c.Call(tt.method, tt.args...)
			if r, ok := errors.AsType[*zeotest.RemoteError](err); !ok || r.Class != tt.class {
				t.Errorf("%s%v: got %v, want %s", tt.method, tt.args, err, tt.class)
			}
		}
		// Blobs are refused at vote.
		for _, f := range []func() error{
			func() error { return c.Async("tpc_begin", 9, []byte{}, []byte{}, zeotest.Dict{}) },
			func() error { return c.Async("storea", tid.OID(2), nil, []byte("b"), 9) },
			func() error { return c.Async("storeBlobStart") },
			func() error { return c.Async("storeBlobChunk", []byte("blob")) },
			func() error { return c.Async("storeBlobEnd", tid.OID(2), nil, []byte("b"), 9) },
		} {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
		_, err := c.Call("vote", 9)
		wantClass(t, err, "ZODB.POSException.Unsupported")
		// Finishing what was not voted.
		if err := c.Async("tpc_begin", 10, []byte{}, []byte{}, zeotest.Dict{}); err != nil {
			t.Fatal(err)
		}
		_, err = c.Call("tpc_finish", 10)
		wantClass(t, err, "builtins.AssertionError")
		// Clients take any answer for a commit.
		if v, err := c.Call("tpc_finish", 9); err == nil {
			t.Errorf("finishing what was voted elsewhere: %v", v)
		} else if r, ok := errors.AsType[*zeotest.RemoteError](err); ok {
			t.Errorf("finishing what was voted elsewhere: %v instead of the end of the connection", r)
		}
	})
}

func TestReadOnly(t *testing.T) {
	m := zeotest.NewMemory()
	s := serve(t, m, func(cfg *zeo.Config) { cfg.ReadOnly = true })
	c, err := zeotest.Dial(s.addr, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Call("register", "2", true)
	wantClass(t, err, "builtins.ValueError")
	if !s.log.Contains("unknown storage: 2") {
		t.Error("the log does not say which storage is unknown")
	}
	_, err = c.Call("register", "1", false)
	wantClass(t, err, "ZODB.POSException.ReadOnlyError")
	if _, err := c.Call("register", "1", true); err != nil { // falls back
		t.Fatal(err)
	}
	_, err = c.Call("new_oids", 3)
	wantClass(t, err, "ZODB.POSException.ReadOnlyError")
	_, err = c.Call("tpc_begin", 1, []byte{}, []byte{}, zeotest.Dict{})
	wantClass(t, err, "ZODB.POSException.ReadOnlyError")
	_, err = c.Call("vote", 1)
	wantClass(t, err, "ZODB.POSException.ReadOnlyError")
}

// Whoever does not read is dropped, and nobody waits for him.
func TestStuckClientIsDropped(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), func(cfg *zeo.Config) { cfg.OutputLimit = 64 << 10 })
	s.client(false) // never reads what comes next
	writer := s.client(true)
	var stores []zeotest.Store
	for oid := range tid.OID(2000) {
		stores = append(stores, zeotest.Store{OID: oid, Data: []byte("x")})
	}
	slowest := time.Duration(0)
	for n := 0; !s.log.Contains("dropped"); n++ {
		if n == 2000 {
			t.Fatal("not dropped")
		}
		began := time.Now()
		at := commit(t, writer, stores...)
		slowest = max(slowest, time.Since(began))
		for i := range stores {
			stores[i].Base = at
		}
	}
	if slowest > 2*time.Minute { // it would not end
		t.Errorf("a commit took %v", slowest)
	}
	s.eventually("only the writer is left", func() bool {
		v, err := writer.Call("server_status")
		return err == nil && v.(zeotest.Dict)["connections"] == int64(1)
	})
}

// A client that asks for more than it reads waits for itself: its answers are all
// sent once it reads.
func TestLoadsWaitForTheirClient(t *testing.T) {
	m := zeotest.NewMemory()
	s := serve(t, m, func(cfg *zeo.Config) { cfg.OutputLimit = 4 << 20 })
	c := s.client(false)
	at := commit(t, c, zeotest.Store{OID: 1, Data: bytes.Repeat([]byte("x"), 100<<10)})
	const loads = 300 // 30 MB
	sent := make(chan error, 1)
	go func() {
		for i := range loads {
			if err := c.SendAs(zeotest.Tuple{i, "x"}, false, "loadBefore", tid.OID(1), at+1); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	time.Sleep(50 * time.Millisecond)
	for range loads {
		if _, err := c.Read(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// slow delays the answers to loads.
type slow struct {
	zeo.Storage
	mu    sync.Mutex
	loads chan struct{} // closed to let loads go; nil: they go
	in    chan struct{} // one for each load that has its result
}

func (s *slow) Features() zeo.Features {
	f := s.Storage.Features()
	f.Local = false
	return f
}

func (s *slow) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	r, err := s.Storage.LoadBefore(ctx, oid, before)
	s.mu.Lock()
	hold := s.loads
	s.mu.Unlock()
	if hold != nil {
		s.in <- struct{}{}
		select {
		case <-hold:
		case <-ctx.Done():
			return txn.Revision{}, ctx.Err()
		}
	}
	return r, err
}

// After a transaction was announced, answers to loads know of it, even if they were
// found before. Otherwise client caches would keep an old revision as the current
// one for ever.
func TestLoadsKnowWhatWasAnnounced(t *testing.T) {
	for _, queue := range []int{100, 1} { // known from the history, or to be loaded again
		t.Run(fmt.Sprint("queue ", queue), func(t *testing.T) {
			m := zeotest.NewMemory()
			st := &slow{Storage: m.Door(), in: make(chan struct{}, 100)}
			s := serve(t, m, func(cfg *zeo.Config) {
				cfg.Storages["1"] = st
				cfg.InvalidationQueueSize = queue
			})
			reader, writer := s.client(false), s.client(true)
			t1 := commit(t, writer, zeotest.Store{OID: 1, Data: []byte("old")})
			hold := make(chan struct{})
			st.mu.Lock()
			st.loads = hold
			st.mu.Unlock()
			// One object exists, one will.
			existing, created := zeotest.Tuple{tid.OID(1).Bytes(), tid.Max.Bytes()}, zeotest.Tuple{tid.OID(2).Bytes(), tid.Max.Bytes()}
			if err := errors.Join(
				reader.SendAs(existing, false, "loadBefore", tid.OID(1), tid.Max),
				reader.SendAs(created, false, "loadBefore", tid.OID(2), tid.Max),
			); err != nil {
				t.Fatal(err)
			}
			<-st.in
			<-st.in
			t2 := commit(t, writer, zeotest.Store{OID: 1, Base: t1, Data: []byte("new")}, zeotest.Store{OID: 2, Data: []byte("x")})
			t3 := commit(t, writer, zeotest.Store{OID: 3, Data: []byte("other")})
			st.mu.Lock()
			st.loads = nil
			st.mu.Unlock()
			close(hold)
			announced := tid.Zero
			for n := 0; n < 2; {
				m, err := reader.Read()
				if err != nil {
					t.Fatal(err)
				}
				if m.Name == "invalidateTransaction" {
					announced = tid.FromBytes(m.Args.(zeotest.Tuple)[0].([]byte))
					continue
				}
				if m.Name != ".reply" {
					continue
				}
				n++
				if announced < t3 {
					t.Fatal("the answer came before the announcement: nothing is tested")
				}
				answer, ok := m.Args.(zeotest.Tuple)
				if !ok || len(answer) != 3 {
					t.Fatalf("answer %v", m)
				}
				serial := tid.FromBytes(answer[1].([]byte))
				end, _ := answer[2].([]byte)
				if serial == t1 && (end == nil || tid.FromBytes(end) != t2) {
					t.Errorf("the old revision is answered as current until %x, although %v was announced", end, t2)
				}
			}
		})
	}
}

// All clients of all servers see the same transactions, in the same order, without
// gaps, each his own by the answer to tpc_finish.
func TestDoorsShareOneOrder(t *testing.T) {
	m := zeotest.NewMemory()
	doors := []*served{serve(t, m, nil), serve(t, m, nil), serve(t, m, nil)}
	const commits = 60
	var clients []*zeotest.Client
	for i := range 6 {
		clients = append(clients, doors[i%3].client(i%2 == 0))
	}
	seen := make([][]tid.TID, len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			oid := tid.OID(i + 1)
			base := tid.Zero
			for range commits {
				at, err := c.Commit(zeotest.Store{OID: oid, Base: base, Data: []byte("x")})
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				base = at
				for _, n := range c.Notices {
					if n.Name == "invalidateTransaction" {
						seen[i] = append(seen[i], tid.FromBytes(n.Args.(zeotest.Tuple)[0].([]byte)))
					}
				}
				c.Notices = nil
				seen[i] = append(seen[i], at)
			}
		})
	}
	wg.Wait()
	last, err := m.LastTID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		for len(seen[i]) == 0 || seen[i][len(seen[i])-1] < last {
			n, err := c.Read()
			if err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
			if n.Name == "invalidateTransaction" {
				seen[i] = append(seen[i], tid.FromBytes(n.Args.(zeotest.Tuple)[0].([]byte)))
			}
		}
		if !slices.IsSorted(seen[i]) || len(seen[i]) != commits*len(clients) || !slices.Equal(seen[i], seen[0]) {
			t.Errorf("client %d saw %d transactions, want %d in order as client 0", i, len(seen[i]), commits*len(clients))
		}
	}
}

func TestCacheVerification(t *testing.T) {
	m := zeotest.NewMemory()
	first := serve(t, m, nil)
	w := first.client(false)
	var at []tid.TID
	base := map[tid.OID]tid.TID{}
	for i := range 10 {
		oid := tid.OID(i%3 + 1)
		base[oid] = commit(t, w, zeotest.Store{OID: oid, Base: base[oid], Data: []byte("x")})
		at = append(at, base[oid])
	}
	want := func(last tid.TID, oids ...tid.OID) string {
		var list zeotest.List
		for _, o := range oids {
			list = append(list, o.Bytes())
		}
		return fmt.Sprint(zeotest.Tuple{last.Bytes(), list})
	}
	// The history is filled at start. Three transactions are kept.
	s := serve(t, m, func(cfg *zeo.Config) { cfg.InvalidationQueueSize = 3 })
	aged := serve(t, m, func(cfg *zeo.Config) {
		cfg.InvalidationQueueSize = 3
		cfg.InvalidationAge = time.Hour
	})
	for _, tt := range []struct {
		s    *served
		from tid.TID
		want string
	}{
		{s, at[9], want(at[9])},
		{s, at[8], want(at[9], 1)},
		{s, at[6], want(at[9], 1, 2, 3)},
		{s, at[5], fmt.Sprint(nil)},
		{aged, at[5], want(at[9], 1, 2, 3)},
		{aged, 1, fmt.Sprint(nil)}, // too old
		{first, at[0] - 1, want(at[9], 1, 2, 3)},
	} {
		c := tt.s.client(false)
		got, err := c.Call("getInvalidations", tt.from)
		if fmt.Sprint(got) != tt.want || err != nil {
			t.Errorf("since %v: %v, %v, want %v", tt.from, got, err, tt.want)
		}
	}
}

// What follows while a client iterates does not disturb it.
func TestIterators(t *testing.T) {
	bothEncodings(t, func(t *testing.T, msgpack bool) {
		s := serve(t, zeotest.NewMemory(), nil)
		c := s.client(msgpack)
		var at []tid.TID
		for i := range 5 {
			at = append(at, commit(t, c, zeotest.Store{OID: tid.OID(2*i + 1), Data: []byte{byte(i)}}, zeotest.Store{OID: tid.OID(2*i + 2), Data: []byte("y")}))
		}
		it, err := c.Call("iterator_start", at[1], at[3])
		if err != nil {
			t.Fatal(err)
		}
		var records []any
		for i := 1; i <= 3; i++ {
			v, err := c.Call("iterator_next", it)
			if err != nil || !bytes.Equal(v.(zeotest.Tuple)[0].([]byte), at[i].Bytes()) {
				t.Fatalf("transaction %d: %v, %v", i, v, err)
			}
			_, err = c.Call("iterator_record_start", it, at[4])
			if err == nil {
				t.Error("records of another transaction")
			}
			r, err := c.Call("iterator_record_start", it, at[i])
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, r)
			if _, err := c.Call("iterator_record_next", r); err != nil { // the first of two
				t.Fatal(err)
			}
		}
		if v, err := c.Call("iterator_next", it); v != nil || err != nil {
			t.Errorf("at the end: %v, %v", v, err)
		}
		for i, r := range records { // go on though the transactions were left
			v, err := c.Call("iterator_record_next", r)
			want := tid.OID(2*(i+1) + 2)
			if err != nil || !bytes.Equal(v.(zeotest.Tuple)[0].([]byte), want.Bytes()) {
				t.Errorf("second record of %d: %v, %v", i, v, err)
			}
		}
		if err := c.Async("iterator_gc", zeotest.List{records[0], 77, records[1]}); err != nil {
			t.Fatal(err)
		}
		_, err = c.Call("iterator_record_next", records[0])
		wantClass(t, err, "builtins.KeyError")
		if v, err := c.Call("iterator_record_next", records[2]); v != nil || err != nil {
			t.Errorf("end of records: %v, %v", v, err)
		}
		v, err := c.Call("record_iternext", nil)
		if err != nil || !bytes.Equal(v.(zeotest.Tuple)[3].([]byte), tid.OID(2).Bytes()) {
			t.Errorf("record_iternext: %v, %v", v, err)
		}
		v, err = c.Call("record_iternext", tid.OID(10))
		if err != nil || v.(zeotest.Tuple)[3] != nil {
			t.Errorf("last object: %v, %v", v, err)
		}
	})
}

// The data of a big transaction wait in a file.
func TestBigTransaction(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), func(cfg *zeo.Config) { cfg.SpillSize = 100 << 10 })
	c := s.client(false)
	var stores []zeotest.Store
	for oid := range tid.OID(50) {
		stores = append(stores, zeotest.Store{OID: oid, Data: bytes.Repeat([]byte{byte(oid)}, 10<<10)})
	}
	stores = append(stores, zeotest.Store{OID: 7, Data: []byte("the last store counts")}, zeotest.Store{OID: 8, Data: []byte{}})
	commit(t, c, stores...)
	for oid, want := range map[tid.OID]string{49: strings.Repeat("\x31", 10<<10), 7: "the last store counts", 8: ""} {
		data, _, _, err := c.LoadBefore(oid, tid.Max)
		if string(data) != want || err != nil {
			t.Errorf("object %v: %.20q, %v", oid, data, err)
		}
	}
}

// What cannot be kept until the vote is an answer to the vote: clients take the end
// of the connection for a passing trouble, and try again for ever.
func TestImpossibleTransaction(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), func(cfg *zeo.Config) { cfg.SpillSize = 100 << 10 })
	c := s.client(false)
	if err := c.Async("tpc_begin", 1, []byte("user"), make([]byte, 70000), zeotest.Dict{}, nil, " "); err != nil {
		t.Fatal(err)
	}
	if err := c.Async("storea", tid.OID(1), tid.Zero, []byte("x"), 1); err != nil {
		t.Fatal(err)
	}
	_, err := c.Call("vote", 1)
	wantClass(t, err, "ZODB.POSException.StorageError")
	if err == nil || !strings.Contains(fmt.Sprint(err), "more than 65535 bytes") {
		t.Errorf("vote on a long description: %v", err)
	}

	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	big := zeotest.Store{OID: 1, Data: make([]byte, 200<<10)}
	_, err = c.Vote(2, zeotest.Store{OID: 2, Data: []byte("x")}, big, big, zeotest.Store{OID: 3, Data: []byte("x")})
	wantClass(t, err, "ZODB.POSException.StorageError")
	if err == nil || !strings.Contains(fmt.Sprint(err), "keeping a big transaction") {
		t.Errorf("vote on what could not be kept: %v", err)
	}
	commit(t, c, zeotest.Store{OID: 1, Data: []byte("x")})
	s.eventually("nothing is open", func() bool {
		v, err := c.Call("server_status")
		return err == nil && v.(zeotest.Dict)["active_txns"] == int64(0)
	})
}

func TestStatus(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), nil)
	c := s.client(true)
	commit(t, c, zeotest.Store{OID: 1, Data: []byte("x")})
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Write([]byte("\x00\x00\x00\x04ruok")); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\x00\x00\x00\x02Z5", `{"1":{"connections":1,`, `"commits":1`, `"active_txns":0`, `"lock_time":null`, `"last-transaction":"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is not in %q", want, b)
		}
	}
	if err := c.Async("set_client_label", "the label"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	s.eventually("the label is in the log", func() bool { return s.log.Contains(`msg=disconnected`) && s.log.Contains(`label="the label"`) })
}

// A client that names itself again has one name.
func TestLastLabelCounts(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), nil)
	c := s.client(false)
	for _, label := range []string{"first", "second", "third"} {
		if err := c.Async("set_client_label", label); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	s.eventually("the label is in the log", func() bool { return s.log.Contains("msg=disconnected") })
	for line := range strings.Lines(s.log.String()) {
		if strings.Count(line, "label=") > 1 || strings.Contains(line, "msg=disconnected") && !strings.Contains(line, "label=third") {
			t.Errorf("in the log: %s", line)
		}
	}
}

// An answer does not wait for more, whatever comes with the question.
func TestAnswerIsSentBeforeASilence(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), nil)
	frames := func(messages ...zeotest.Tuple) (b []byte) {
		for _, m := range messages {
			p := zeotest.Encode(false, m)
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
		}
		return b
	}
	c := s.client(false)
	at := commit(t, c, zeotest.Store{OID: 1, Data: []byte("x")})
	id := zeotest.Tuple{tid.OID(1).Bytes(), tid.Max.Bytes()}
	load := zeotest.Tuple{id, false, "loadBefore", id}
	for name, more := range map[string]zeotest.Tuple{
		"sign of life": {-1, false, ".reply", nil},
		"label":        {0, true, "set_client_label", zeotest.Tuple{"label"}},
		"begin":        {0, true, "tpc_begin", zeotest.Tuple{5, []byte{}, []byte{}, zeotest.Dict{}}},
		"store":        {0, true, "storea", zeotest.Tuple{tid.OID(1), at, []byte("y"), 5}},
		"abort":        {0, true, "tpc_abort", zeotest.Tuple{6}},
	} {
		if name == "store" {
			if err := c.Async("tpc_begin", 5, []byte{}, []byte{}, zeotest.Dict{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Conn.Write(frames(load, more)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Wait(id); err != nil {
			t.Fatalf("load and %s: %v", name, err)
		}
	}
}

// Whoever is silent for too long is taken for dead; signs of life are enough.
func TestSilence(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), func(cfg *zeo.Config) { cfg.IdleTimeout = 10 * time.Second })
	alive, dead := s.client(false), s.client(true)
	ended := make(chan error, 1)
	go func() {
		_, err := dead.ReadFrame()
		ended <- err
	}()
	for over := false; !over; {
		if err := alive.SendAs(-1, false, ".reply"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if over = true; err != io.EOF {
				t.Errorf("the silent client: %v", err)
			}
		case <-time.After(20 * time.Millisecond):
		}
	}
	if _, err := alive.Call("ping"); err != nil {
		t.Error(err)
	}
}

// The log says of a pack that it began, what it does not do, and how it ended and when,
// whether the client waits for it or not.
func TestPackIsLogged(t *testing.T) {
	s := serve(t, zeotest.NewMemory(), nil)
	c := s.client(true)
	for i, wait := range []bool{true, false} {
		if _, err := c.Call("pack", 1e9, wait); err != nil {
			t.Fatal(err)
		}
		s.eventually("pack done", func() bool { return strings.Count(s.log.String(), `msg="pack done" `) == i+1 })
	}
	if _, err := c.Commit(zeotest.Store{OID: 0, Data: []byte("no pickle")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Call("pack", 4e9, true); err == nil {
		t.Error("the pack of what cannot be read has succeeded")
	}
	log := s.log.String()
	for text, n := range map[string]int{
		`objects that no other refers to stay" client=127.0.0.1:`: 3,
		`up_to=2001-09-09T01:46:40.000Z took=`:                    2,
		`level=WARN msg="pack failed" `:                           1,
	} {
		if got := strings.Count(log, text); got != n {
			t.Errorf("logged %d times, want %d: %s\n%s", got, n, text, log)
		}
	}
}
