//go:build unix

package socket

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// pair returns both ends of a TCP connection.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// A writer takes what fits, does not wait for the rest, and nothing is lost or
// repeated when the rest is written the usual way.
func TestTryWriteDoesNotWait(t *testing.T) {
	a, b := pair(t)
	w := NewWriter(a)
	if w == nil {
		t.Fatal("no writer for a TCP connection")
	}
	sent := make([]byte, 64<<20) // more than any buffer of a socket
	for i := range sent {
		sent[i] = byte(i * 7 / 3)
	}
	n, err := w.TryWrite(sent)
	if err != nil || n == 0 || n == len(sent) {
		t.Fatalf("%d bytes written, %v", n, err)
	}
	for end := time.Now().Add(time.Minute); ; { // until it is full
		more, err := w.TryWrite(sent[n:])
		if err != nil || time.Now().After(end) {
			t.Fatalf("%d bytes written, %v", n+more, err)
		}
		if more == 0 {
			break
		}
		n += more
	}
	done := make(chan error, 1)
	go func() {
		_, err := a.Write(sent[n:])
		done <- errors.Join(err, a.Close())
	}()
	got, err := io.ReadAll(NewReader(b))
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes received, equal %v, %v", len(got), len(sent), bytes.Equal(got, sent), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTryWriteAfterTheEnd(t *testing.T) {
	a, _ := pair(t)
	w := NewWriter(a)
	a.Close()
	if n, err := w.TryWrite([]byte("x")); n != 0 || err == nil {
		t.Errorf("%d bytes written to a closed connection, %v", n, err)
	}
}

// A reader waits for input, obeys deadlines, and ends with its connection.
func TestReader(t *testing.T) {
	a, b := pair(t)
	r := NewReader(b)
	buf := make([]byte, 10)
	if n, err := r.Read(nil); n != 0 || err != nil {
		t.Errorf("reading nothing: %d, %v", n, err)
	}
	time.AfterFunc(20*time.Millisecond, func() { a.Write([]byte("late")) })
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "late" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	if err := b.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := r.Read(buf); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("after the deadline: %v", err)
	}
	if err := b.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { b.Close() })
	if _, err := r.Read(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed meanwhile: %v", err)
	}
}

func TestOtherConnections(t *testing.T) {
	a, _ := net.Pipe()
	defer a.Close()
	if NewWriter(a) != nil {
		t.Error("a writer for what is no socket")
	}
	if r := NewReader(a); r != io.Reader(a) {
		t.Errorf("reader %T, want the connection", r)
	}
}
