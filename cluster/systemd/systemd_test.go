package systemd

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// A service manager is told in datagrams of lines; without one nothing is told.
func TestManager(t *testing.T) {
	if err := NewManager("").Tell("READY=1"); err != nil {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	if err := NewManager(path).Tell("READY=1"); err == nil {
		t.Error("no socket, no error")
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := NewManager(path).Tell("STATUS=two\nlines", "STOPPING=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if got, want := string(b[:n]), "STATUS=two lines\nSTOPPING=1"; got != want || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// A service manager that hangs, whose queue is full, keeps no program from its work.
func TestManagerHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	told := make(chan error, 1)
	go func() {
		m := NewManager(path)
		for range 1_000_000 {
			if err := m.Tell("STATUS=x"); err != nil {
				told <- err
				return
			}
		}
		told <- nil
	}()
	select {
	case err := <-told:
		if err == nil {
			t.Error("no queue is as long as that")
		}
	case <-time.After(time.Minute):
		t.Error("it waits for the manager")
	}
}
