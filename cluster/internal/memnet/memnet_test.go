package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// connect returns both ends of a connection from a to b.
func connect(t *testing.T, n *Network) (near, far net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen(t.Context(), "b:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = n.Host("a").Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("received %q, %v, want %q", b, err, want)
	}
}

func TestCloseComesAfterData(t *testing.T) {
	n := New(1)
	a, b := connect(t, n)
	send(t, a, "last words")
	a.Close()
	receive(t, b, "last words")
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read = %v, want EOF", err)
	}
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("writing to a closed end succeeded")
	}
	b.Close()
	if n.Conns() != 0 {
		t.Errorf("%d ends left", n.Conns())
	}
}

func TestCutAndHeal(t *testing.T) {
	n := New(1)
	a, b := connect(t, n)
	send(t, a, "lost")
	n.Cut("b", "a")
	for _, c := range []net.Conn{a, b} {
		if _, err := c.Read(make([]byte, 9)); !errors.Is(err, ErrReset) {
			t.Errorf("Read = %v, want a reset", err)
		}
	}
	l, err := n.Host("b").Listen(t.Context(), "b:1")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := n.Host("a").Dial(t.Context(), "b:1"); err == nil {
		t.Error("connected across a cut")
	}
	if _, err := n.Host("c").Dial(t.Context(), "b:1"); err != nil {
		t.Errorf("another host: %v", err)
	}
	n.Heal("a", "b")
	if _, err := n.Host("a").Dial(t.Context(), "b:1"); err != nil {
		t.Errorf("after Heal: %v", err)
	}
	n.Crash("b")
	if _, err := n.Host("a").Dial(t.Context(), "b:1"); err == nil {
		t.Error("connected to a crashed host")
	}
}

func TestDelayKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(7)
		a, b := connect(t, n)
		n.Delay("a", "b", time.Second, time.Minute)
		start := time.Now()
		for _, s := range []string{"1", "2", "3", "4", "5"} {
			send(t, a, s)
		}
		receive(t, b, "12345")
		if took := time.Since(start); took < time.Second || took > time.Minute {
			t.Errorf("arrived after %v", took)
		}
		start = time.Now()
		send(t, b, "back")
		receive(t, a, "back")
		if took := time.Since(start); took != 0 {
			t.Errorf("the other direction took %v", took)
		}
	})
}

func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := connect(t, n)
		n.Hold("a", "b")
		send(t, a, "late")
		b.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := b.Read(make([]byte, 4)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v, want a timeout", err)
		}
		b.SetReadDeadline(time.Time{})
		n.Release("a", "b")
		receive(t, b, "late")
	})
}

func TestWriteWaitsForTheReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := connect(t, New(1))
		done := make(chan error, 1)
		go func() {
			_, err := a.Write(make([]byte, 3*capacity))
			done <- err
		}()
		synctest.Wait()
		if len(done) > 0 {
			t.Fatal("everything was written though nobody reads")
		}
		if n, err := a.(*Conn).TryWrite([]byte("x")); n != 0 || err != nil {
			t.Errorf("TryWrite = %d, %v, want 0", n, err)
		}
		if _, err := io.CopyN(io.Discard, b, 3*capacity); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestDialStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(1).Host("a").Dial(ctx, "b:1"); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial = %v", err)
	}
}
