package zeo_test

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// exhausted is a listener of a process that has no file descriptors left.
type exhausted struct{ closed chan struct{} }

func (l *exhausted) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
}

func (l *exhausted) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *exhausted) Addr() net.Addr { return &net.TCPAddr{} }

// A lack of file descriptors passes, however long it lasts; a closed listener does
// not come back.
func TestAcceptGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, err := zeo.New(t.Context(), zeo.Config{Storages: map[string]zeo.Storage{"1": zeotest.NewMemory().Door()}})
		if err != nil {
			t.Fatal(err)
		}
		lack := &exhausted{make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- server.Serve(lack) }()
		select {
		case err := <-done:
			t.Fatalf("Serve ended: %v", err)
		case <-time.After(time.Hour):
		}
		lack.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("with a closed listener: %v", err)
		}
		go func() { done <- server.Serve(&exhausted{make(chan struct{})}) }()
		time.Sleep(time.Minute)
		server.Close()
		if err := <-done; err != nil {
			t.Errorf("after Close: %v", err)
		}
		time.Sleep(time.Minute) // for what the server ends later
	})
}
