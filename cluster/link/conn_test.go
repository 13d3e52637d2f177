package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// inbox collects the events of connections.
type inbox chan Event

func (in inbox) next(t *testing.T) Event {
	t.Helper()
	select {
	case ev := <-in:
		return ev
	case <-time.After(2 * time.Minute):
		t.Fatal("no event")
		panic("unreachable")
	}
}

// packet waits for a packet of type P.
func packet[P proto.Packet](t *testing.T, in inbox) (Event, P) {
	t.Helper()
	ev := in.next(t)
	p, ok := ev.Packet.(P)
	if !ok {
		t.Fatalf("event %T (%v), want a %T", ev.Packet, ev.Err, p)
	}
	return ev, p
}

func (in inbox) end(t *testing.T) error {
	t.Helper()
	ev := in.next(t)
	if !ev.End() {
		t.Fatalf("event %T (%v), want the end", ev.Packet, ev.Err)
	}
	if !errors.Is(ev.Err, ErrClosed) {
		t.Errorf("ended with %v, which is not ErrClosed", ev.Err)
	}
	<-ev.Conn.Done()
	return ev.Err
}

// couple returns two connected Conns on a network in memory, and their events.
func couple(t *testing.T, n *memnet.Network) (a, b *Conn, ain, bin inbox) {
	t.Helper()
	ain, bin = make(inbox, 1000), make(inbox, 1000)
	accepted := make(chan *Conn, 1)
	l, err := Listen(t.Context(), proto.Address{Host: "b"}, Config{Deliver: func(ev Event) { bin <- ev }, Network: n.Host("b")},
		func(c *Conn) { accepted <- c })
	if err != nil {
		t.Fatal(err)
	}
	a, err = Dial(t.Context(), l.Addr(), Config{Deliver: func(ev Event) { ain <- ev }, Network: n.Host("a")})
	if err != nil {
		t.Fatal(err)
	}
	b = <-accepted
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	return a, b, ain, bin
}

// bubble runs a test in simulated time; goroutines left behind fail it.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestAnswersInAnyOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b, ain, bin := couple(t, memnet.New(1))
		a.Send(&proto.NotifyReady{}) // id 0
		one := a.Ask(&proto.AskFinalTID{TTID: 1}, "one")
		two := a.Ask(&proto.AskNewOIDs{Count: 1}, "two")
		if one != 1 || two != 2 || a.PendingCount() != 2 {
			t.Errorf("ids %d, %d, %d pending; want 1, 2, 2 pending", one, two, a.PendingCount())
		}
		packet[*proto.NotifyReady](t, bin)
		ev1, _ := packet[*proto.AskFinalTID](t, bin)
		ev2, _ := packet[*proto.AskNewOIDs](t, bin)
		b.Answer(ev2.ID, &proto.AnswerNewOIDs{OIDs: []tid.OID{7}})
		b.AnswerError(ev1.ID, proto.TIDNotFound, "no %d", 1)
		got, p2 := packet[*proto.AnswerNewOIDs](t, ain)
		if got.Asked == nil || got.Asked.Tag != "two" || got.Asked.ID != two || p2.OIDs[0] != 7 {
			t.Errorf("first answer %+v for %+v", p2, got.Asked)
		}
		got, p1 := packet[*proto.Error](t, ain)
		if got.Asked == nil || got.Asked.Tag != "one" || p1.Message != "no 1" {
			t.Errorf("second answer %+v for %+v", p1, got.Asked)
		}
		if n := a.PendingCount(); n != 0 {
			t.Errorf("%d pending", n)
		}
		a.Close()
		ain.end(t)
		if err := bin.end(t); !errors.Is(err, io.EOF) {
			t.Errorf("the other side ended with %v, want EOF", err)
		}
	})
}

func TestCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b, ain, bin := couple(t, memnet.New(1))
		type result struct {
			p   proto.Packet
			err error
		}
		call := func(ctx context.Context, req proto.Request) <-chan result {
			ch := make(chan result, 1)
			go func() {
				p, err := a.Call(ctx, req)
				ch <- result{p, err}
			}()
			return ch
		}
		r := call(t.Context(), &proto.SetNumReplicas{Replicas: 1})
		ev, _ := packet[*proto.SetNumReplicas](t, bin)
		b.AnswerError(ev.ID, proto.Ack, "done")
		if got := <-r; got.err != nil || got.p.(*proto.Error).Message != "done" {
			t.Errorf("ACK: Call = %v, %v", got.p, got.err)
		}

		r = call(t.Context(), &proto.AskObject{OID: 1})
		ev, _ = packet[*proto.AskObject](t, bin)
		b.AnswerError(ev.ID, proto.OIDNotFound, "")
		got := <-r
		if e, ok := errors.AsType[*proto.Error](got.err); !ok || e.ErrCode != proto.OIDNotFound {
			t.Errorf("refused: Call = %v, %v", got.p, got.err)
		}

		// Given up: the late answer is no protocol error.
		ctx, cancel := context.WithCancel(t.Context())
		r = call(ctx, &proto.AskObject{OID: 2})
		ev, _ = packet[*proto.AskObject](t, bin)
		cancel()
		if got := <-r; !errors.Is(got.err, context.Canceled) {
			t.Errorf("given up: Call = %v, %v", got.p, got.err)
		}
		b.Answer(ev.ID, &proto.AnswerObject{OID: 2})

		r = call(t.Context(), &proto.AskObject{OID: 3})
		packet[*proto.AskObject](t, bin)
		b.Close()
		if got := <-r; !errors.Is(got.err, ErrClosed) {
			t.Errorf("lost: Call = %v, %v", got.p, got.err)
		}
		ain.end(t)
		bin.end(t)
		if _, err := a.Call(t.Context(), &proto.Ping{}); !errors.Is(err, ErrClosed) {
			t.Errorf("after the end: Call = %v", err)
		}
	})
}

func TestLostRequestsComeBeforeTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b, ain, bin := couple(t, memnet.New(1))
		for i := range 5 {
			a.Ask(&proto.AskFinalTID{TTID: tid.TID(i)}, i)
		}
		for range 5 {
			packet[*proto.AskFinalTID](t, bin)
		}
		b.Answer(2, &proto.AnswerFinalTID{})
		b.Abort()
		packet[*proto.AnswerFinalTID](t, ain)
		for _, want := range []int{0, 1, 3, 4} {
			ev := ain.next(t)
			if ev.Packet != nil || ev.Asked == nil || ev.Asked.Tag != want || !errors.Is(ev.Err, ErrClosed) {
				t.Errorf("event %+v, want the loss of request %d", ev, want)
			}
		}
		ain.end(t)
		bin.end(t)
		a.Ask(&proto.Ping{}, nil)
		a.Send(&proto.NotifyReady{})
		a.Answer(1, &proto.Pong{})
		a.Abort()
		a.Close()
		synctest.Wait()
		if len(ain) > 0 {
			t.Errorf("event after the end: %+v", <-ain)
		}
	})
}

func TestUnexpectedAnswers(t *testing.T) {
	for name, answer := range map[string]proto.Packet{
		"unknown id":   &proto.AnswerNewOIDs{},
		"wrong answer": &proto.AnswerFinalTID{},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				a, b, ain, bin := couple(t, memnet.New(1))
				id := a.Ask(&proto.AskObject{}, nil)
				packet[*proto.AskObject](t, bin)
				if name == "unknown id" {
					id = 1000
				}
				b.Answer(id, answer)
				if _, p := packet[*proto.Error](t, bin); p.ErrCode != proto.ProtocolError {
					t.Errorf("answered by %v, want PROTOCOL_ERROR", p)
				}
				bin.end(t)
				ev := ain.next(t)
				if ev.Asked == nil || ev.Packet != nil {
					t.Errorf("event %+v, want the loss of the request", ev)
				}
				if e, ok := errors.AsType[*proto.Error](ev.Err); ok {
					t.Errorf("our own verdict %v looks like the peer's", e)
				}
				ain.end(t)
			})
		})
	}
}

func TestUnsolicitedErrorIsDelivered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b, ain, bin := couple(t, memnet.New(1))
		b.AnswerError(77, proto.NotReady, "odd id")
		if ev, p := packet[*proto.Error](t, ain); ev.Asked != nil || ev.ID != 77 || p.ErrCode != proto.NotReady {
			t.Errorf("event %+v", ev)
		}
		a.Close()
		ain.end(t)
		bin.end(t)
	})
}

// A peer that hangs up after its last request still has it executed.
func TestReceivedPacketsSurviveTheEndOfTheConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := memnet.New(1)
		a, b, ain, bin := couple(t, n)
		n.Hold("a", "b")
		for range 3 {
			a.Ask(&proto.AskNewOIDs{Count: 1}, nil)
		}
		a.Abort()
		n.Release("a", "b")
		for range 3 {
			ev, _ := packet[*proto.AskNewOIDs](t, bin)
			b.Answer(ev.ID, &proto.AnswerNewOIDs{})
		}
		bin.end(t)
		for range 3 {
			if ev := ain.next(t); ev.Packet != nil {
				t.Errorf("received %T after an abort", ev.Packet)
			}
		}
		ain.end(t)
	})
}

func TestAbort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := memnet.New(1)
		a, b, ain, bin := couple(t, n)
		n.Delay("a", "b", time.Second, time.Second)
		n.Delay("b", "a", time.Second, time.Second)
		id := a.Ask(&proto.AskObject{OID: 1}, nil)
		time.Sleep(time.Second / 2)
		a.Send(&proto.NotifyReady{}) // is already under way when the other side aborts
		ev, _ := packet[*proto.AskObject](t, bin)
		b.AbortError(ev.ID, proto.NotReady, "Retry Later")
		a.Send(&proto.NotifyReady{})
		if ev, p := packet[*proto.Error](t, ain); ev.ID != id || p.ErrCode != proto.NotReady {
			t.Errorf("received %+v", p)
		}
		ain.end(t)
		bin.end(t)
		if !b.Closed() || len(bin) > 0 {
			t.Error("packets are delivered after an abort")
		}
	})
}

// A peer that neither reads nor closes does not keep an aborted connection.
func TestAbortDoesNotWaitForEver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := memnet.New(1)
		nc, stuck := rawPair(t, n)
		in := make(inbox, 10)
		c := New(nc, Config{Deliver: func(ev Event) { in <- ev }})
		send(t, stuck, proto.Handshake[:])
		synctest.Wait()
		big := make([]byte, 1<<20)
		c.Answer(1, &proto.AnswerObject{ObjectData: proto.ObjectData{Data: big}})
		if got := c.Buffered(); got < len(big)/2 {
			t.Errorf("%d bytes buffered", got)
		}
		start := time.Now()
		c.Abort()
		in.end(t)
		if took := time.Since(start); took > flushTimeout+lingerTimeout+time.Second {
			t.Errorf("an abort took %v", took)
		}

		nc, idle := rawPair(t, n)
		c = New(nc, Config{Deliver: func(ev Event) { in <- ev }})
		send(t, idle, proto.Handshake[:])
		synctest.Wait()
		start = time.Now()
		c.Abort()
		in.end(t)
		if took := time.Since(start); took != lingerTimeout {
			t.Errorf("the peer was given %v to close, want %v", took, lingerTimeout)
		}
	})
}

// rawPair returns two ends of a connection without a Conn.
func rawPair(t *testing.T, n *memnet.Network) (near, far net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen(t.Context(), "b:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err = n.Host("a").Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

func send(t *testing.T, nc net.Conn, b []byte) {
	t.Helper()
	if _, err := nc.Write(b); err != nil {
		t.Fatal(err)
	}
}

// A commit whose last request was received is not forgotten because our side
// closes the connection.
func TestRequestsToKeepSurviveOurClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		near, far := rawPair(t, memnet.New(1))
		var got []string
		blocked := make(chan bool)
		deliver := func(ev Event) {
			if ev.Packet == nil {
				got = append(got, "end")
				return
			}
			got = append(got, proto.CodeName(ev.Packet.Code()))
			if ev.ID == 0 {
				<-blocked
			}
		}
		b := proto.Handshake[:]
		for i, p := range []proto.Packet{&proto.Ping{}, &proto.AskNewOIDs{}, &proto.AskFinishTransaction{}, &proto.AbortTransaction{}, &proto.AskLockInformation{}} {
			b = proto.Append(b, uint32(i), p)
		}
		send(t, far, b)
		c := New(near, Config{Deliver: deliver})
		synctest.Wait()
		ask := Event{Conn: c, Packet: &proto.AskNewOIDs{}}
		keep := Event{Conn: c, Packet: &proto.AskLockInformation{}}
		if ask.Stale() || keep.Stale() {
			t.Error("requests are stale before the connection is closed")
		}
		c.Close()
		if !ask.Stale() || keep.Stale() {
			t.Errorf("after Close: stale %t and %t, want true and false", ask.Stale(), keep.Stale())
		}
		close(blocked)
		<-c.Done()
		want := []string{"Ping", "AskFinishTransaction", "AbortTransaction", "AskLockInformation", "end"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
	})
}

func TestDelayedPackets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, _, ain, bin := couple(t, memnet.New(1))
		object := &proto.AddObject{OID: 1, ObjectData: proto.ObjectData{Data: make([]byte, 1000)}}
		for range 3 {
			a.SendAs(9, object)
		}
		synctest.Wait()
		if len(bin) > 0 {
			t.Error("sent at once")
		}
		a.Answer(9, &proto.Error{})
		for range 3 {
			if ev, _ := packet[*proto.AddObject](t, bin); ev.ID != 9 {
				t.Errorf("id %d, want 9", ev.ID)
			}
		}
		packet[*proto.Error](t, bin)
		for range delayedBytes/1000 + 2 {
			a.SendAs(9, object)
		}
		synctest.Wait()
		if len(bin) == 0 {
			t.Errorf("nothing is sent though %d bytes wait", a.Buffered())
		}
		a.Close()
		ain.end(t)
	})
}

func TestPingIsABarrier(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := memnet.New(1)
		near, far := rawPair(t, n)
		var seen []uint16
		c := New(near, Config{Deliver: func(ev Event) {
			if ev.Packet == nil {
				return
			}
			time.Sleep(time.Minute) // work
			seen = append(seen, ev.Packet.Code())
			if !HandleBase(ev) && ev.ID != 0 {
				t.Errorf("Ping is left to others")
			}
		}})
		b := proto.Append(proto.Append(proto.Handshake[:], 0, &proto.NotifyReady{}), 1, &proto.Ping{})
		send(t, far, b)
		r := proto.NewReader(far)
		if err := r.Handshake(); err != nil {
			t.Fatal(err)
		}
		id, p, err := r.Next()
		if _, ok := p.(*proto.Pong); !ok || id != 1 || err != nil {
			t.Fatalf("received %d %T, %v, want Pong", id, p, err)
		}
		if len(seen) != 2 {
			t.Errorf("Pong came after %d packets", len(seen))
		}
		c.Close()
		<-c.Done()
	})
}

func TestRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var lines []string
		cfg := Config{Record: func(sent bool, peer string, id uint32, p proto.Packet) {
			mu.Lock()
			defer mu.Unlock()
			arrow := " < "
			if sent {
				arrow = " > "
			}
			lines = append(lines, peer+arrow+proto.CodeName(p.Code()))
		}}
		near, far := rawPair(t, memnet.New(1))
		c := New(near, cfg)
		c.SetPeer("S7")
		send(t, far, proto.Append(proto.Handshake[:], 0, &proto.Ping{}))
		synctest.Wait()
		c.Close()
		<-c.Done()
		if diff := cmp.Diff([]string{"S7 < Ping", "S7 > Pong"}, lines); diff != "" {
			t.Errorf("recorded (-want +got):\n%s", diff)
		}
	})
}

func TestTooLargePacketsAreNotSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, _, ain, bin := couple(t, memnet.New(1))
		a.Send(&proto.NotifyReady{})
		a.Send(&proto.AddObject{ObjectData: proto.ObjectData{Data: make([]byte, proto.MaxElement+1)}})
		packet[*proto.NotifyReady](t, bin)
		bin.end(t)
		if err := ain.end(t); !strings.Contains(err.Error(), "AddObject is too large") {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestHandshake(t *testing.T) {
	for name, tt := range map[string]struct {
		sent string
		want string
	}{
		"other version":     {"\x92\xa3NEO\x06", "version 6"},
		"older framing":     {"\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00", "does not speak the NEO protocol"},
		"web browser":       {"GET / HTTP/1.1\r\n\r\n", "does not speak the NEO protocol"},
		"TLS":               {"\x16\x03\x01\x02\x00\x01", "speaks TLS"},
		"nothing":           {"", "no handshake (it may require TLS"},
		"half a handshake":  {"\x92\xa3N", "EOF"},
		"python 2 strings":  {"\x92\xc4\x03NEO\x05", "does not speak the NEO protocol"},
		"handshake, then":   {"\x92\xa3NEO\x05\xc1", "invalid"},
		"unknown packet":    {"\x92\xa3NEO\x05\x93\x00\xcd\x7f\xff\x90", "unknown packet code 0x7fff"},
		"half a packet":     {"\x92\xa3NEO\x05\x93\x00", "EOF"},
		"bomb":              {"\x92\xa3NEO\x05\xdd\x7f\xff\xff\xff\x01", "exceeds"},
		"too large element": {"\x92\xa3NEO\x05\x93\x00\xcd\x80\x00\x92\x00\xc6\x04\x00\x00\x01", "element of 67108865 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				near, far := rawPair(t, memnet.New(1))
				in := make(inbox, 10)
				New(near, Config{Deliver: func(ev Event) { in <- ev }})
				send(t, far, []byte(tt.sent))
				far.(*memnet.Conn).CloseWrite()
				if err := in.end(t); !strings.Contains(err.Error(), tt.want) {
					t.Errorf("ended with %q, want %q", err, tt.want)
				}
				got, err := io.ReadAll(far)
				if err != nil || !bytes.Equal(got, proto.Handshake[:]) {
					t.Errorf("the peer received % x, %v, want only our handshake", got, err)
				}
			})
		})
	}
}

func TestSilentPeerIsDropped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		near, _ := rawPair(t, memnet.New(1))
		in := make(inbox, 10)
		start := time.Now()
		New(near, Config{Deliver: func(ev Event) { in <- ev }})
		ev := <-in
		if took := time.Since(start); took != handshakeTimeout || !ev.End() {
			t.Errorf("%+v after %v", ev, took)
		}
		<-ev.Conn.Done()
	})
}

// net.Pipe has no buffer and cannot be half closed.
func TestPipe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		x, y := net.Pipe()
		in := make(inbox, 10)
		a := New(x, Config{Deliver: func(ev Event) { in <- ev }})
		b := New(y, Config{})
		go func() {
			ev := <-in
			a.AbortError(ev.ID, proto.OIDNotFound, "gone")
		}()
		_, err := b.Call(t.Context(), &proto.AskObject{OID: 1})
		if e, ok := errors.AsType[*proto.Error](err); !ok || e.Message != "gone" {
			t.Errorf("Call = %v", err)
		}
		in.end(t)
		<-b.Done()
	})
}

func TestDialer(t *testing.T) {
	const ms = time.Millisecond
	bubble(t, func(t *testing.T) {
		n := memnet.New(1)
		d := &Dialer{}
		cfg := Config{Network: n.Host("a")}
		start := time.Now()
		here, there := proto.Address{Host: "b", Port: 1}, proto.Address{Host: "b", Port: 2}
		var at []time.Duration
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := d.Dial(t.Context(), here, cfg); err == nil {
					t.Error("connected to nobody")
				}
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(start))
			})
		}
		wg.Wait()
		want := []time.Duration{0, 50 * ms, 150 * ms, 350 * ms, 750 * ms, 1550 * ms, 2550 * ms, 3550 * ms}
		if !slices.Equal(at, want) {
			t.Errorf("attempts after %v, want %v", at, want)
		}
		start = time.Now()
		if _, err := d.Dial(t.Context(), there, cfg); err == nil || time.Since(start) != 0 {
			t.Errorf("another address had to wait %v", time.Since(start))
		}
		d.Forget(here)
		if _, err := d.Dial(t.Context(), here, cfg); err == nil || time.Since(start) != 0 {
			t.Errorf("a forgotten address had to wait %v", time.Since(start))
		}
		// Once a second it is asked at its pace, and anew after two without attempt.
		for range 8 {
			_, _ = d.Dial(t.Context(), there, cfg)
		}
		for pause, want := range map[time.Duration]time.Duration{1500 * ms: time.Second, 3 * time.Second: 50 * ms} {
			for range 6 {
				_, _ = d.Dial(t.Context(), there, cfg)
			}
			time.Sleep(pause)
			_, _ = d.Dial(t.Context(), there, cfg)
			start := time.Now()
			if _, _ = d.Dial(t.Context(), there, cfg); time.Since(start) != want {
				t.Errorf("%v after the last attempts, the pause is %v, want %v", pause, time.Since(start), want)
			}
		}
		_, _ = d.Dial(t.Context(), here, cfg)
		start = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := d.Dial(ctx, here, cfg); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second/2 {
			t.Errorf("Dial = %v after %v", err, time.Since(start))
		}
	})
}

// checkGoroutines fails the test if it leaves goroutines of this package behind.
func checkGoroutines(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var stacks string
		for range 6000 {
			b := make([]byte, 1<<20)
			stacks = string(b[:runtime.Stack(b, true)])
			if !strings.Contains(stacks, "link.(*Conn)") && !strings.Contains(stacks, "link.(*Listener)") {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("goroutines left behind:\n%s", stacks)
	})
}

// pair returns two connected Conns over TCP.
func tcpPair(t testing.TB, client, server Config) (*Conn, *Conn) {
	t.Helper()
	accepted := make(chan *Conn, 1)
	l, err := Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, server, func(c *Conn) { accepted <- c })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := Dial(t.Context(), l.Addr(), client)
	if err != nil {
		t.Fatal(err)
	}
	return a, <-accepted
}

// Many callers, answers out of order, packets of all sizes.
func stress(t *testing.T, client, server Config) {
	checkGoroutines(t)
	var held []Event
	server.Deliver = func(ev Event) {
		if q, ok := ev.Packet.(*proto.AskObject); ok {
			held = append(held, ev)
			if len(held) < 3 && q.OID%7 != 0 {
				return
			}
		}
		for _, h := range slices.Backward(held) {
			oid := h.Packet.(*proto.AskObject).OID
			data := bytes.Repeat([]byte{byte(oid)}, int(oid*oid%50000))
			h.Conn.Answer(h.ID, &proto.AnswerObject{OID: oid, ObjectData: proto.ObjectData{Data: data}})
		}
		held = held[:0]
	}
	a, b := tcpPair(t, client, server)
	stop := make(chan struct{})
	var wg, flush sync.WaitGroup
	flush.Go(func() { // so that no request is held for ever
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				a.Send(&proto.NotifyReady{})
			}
		}
	})
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				oid := tid.OID(g*1000 + i)
				p, err := a.Call(t.Context(), &proto.AskObject{OID: oid})
				if err != nil {
					t.Error(err)
					return
				}
				o := p.(*proto.AnswerObject)
				if o.OID != oid || len(o.Data) != int(oid*oid%50000) || bytes.Count(o.Data, []byte{byte(oid)}) != len(o.Data) {
					t.Errorf("object %v has wrong data", oid)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	flush.Wait()
	a.Abort()
	<-a.Done()
	<-b.Done()
}

func TestStressTCP(t *testing.T) { stress(t, Config{}, Config{}) }

// Sending never waits for the network; what is queued arrives all the same.
func TestSlowReceiverTCP(t *testing.T) {
	checkGoroutines(t)
	gate := make(chan bool)
	received := make(chan int, 1)
	total := 0
	a, b := tcpPair(t, Config{}, Config{Deliver: func(ev Event) {
		<-gate
		if p, ok := ev.Packet.(*proto.AddObject); ok {
			total += len(p.Data)
		}
		if ev.End() {
			received <- total
		}
	}})
	const n, size = 64, 1 << 20
	for i := range n {
		p := &proto.AddObject{OID: tid.OID(i), ObjectData: proto.ObjectData{Data: make([]byte, size)}}
		if i%2 == 0 {
			a.SendAs(1, p)
		} else {
			a.Send(p)
		}
	}
	if a.Buffered() == 0 {
		t.Error("everything went into the socket")
	}
	close(gate)
	for a.Buffered() > 0 {
		time.Sleep(time.Millisecond)
	}
	a.Abort()
	if got := <-received; got != n*size {
		t.Errorf("received %d bytes, want %d", got, n*size)
	}
	<-a.Done()
	<-b.Done()
}

func TestListenReportsAPortInUse(t *testing.T) {
	l, err := Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, Config{}, func(*Conn) {})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Addr().Port == 0 {
		t.Errorf("listening at %v", l.Addr())
	}
	if _, err := Listen(t.Context(), l.Addr(), Config{}, func(*Conn) {}); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("second Listen = %v", err)
	}
}

// Idle is called once for all packets that have arrived, after the last of them.
func TestIdle(t *testing.T) {
	events := make(chan string, 100)
	got := 0
	near, far := net.Pipe()
	defer far.Close()
	c := New(near, Config{
		Deliver: func(ev Event) {
			if ev.Packet != nil {
				got++
			}
		},
		Idle: func(*Conn) {
			events <- fmt.Sprint(got)
			got = 0
		},
	})
	defer func() { c.Close(); <-c.Done() }()
	go io.Copy(io.Discard, far) // what it sends
	b := proto.Handshake[:]
	for range 5 {
		b = proto.Append(b, 1, &proto.CloseClient{})
	}
	more := proto.Append(nil, 1, &proto.CloseClient{})
	for _, part := range [][]byte{b, more[:2], more[2:]} {
		if _, err := far.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"0", "5", "0", "1"} {
		if s := <-events; s != want {
			t.Errorf("%d: %s packets, want %s", i, s, want)
		}
	}
}
