package client

import (
	"context"
	"log/slog"
	"testing"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// An attempt to connect lets go of its context, which the client would keep until it
// is closed: storages may come and go for years.
func TestLinkLetsGoOfItsContext(t *testing.T) {
	c := &Client{cfg: Config{Dialer: &link.Dialer{}}, log: slog.New(slog.DiscardHandler), ctx: t.Context()}
	c.storages.init()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	released := false
	l := &storageLink{c: c, id: 1, cancel: func() { released = true }, done: make(chan struct{})}
	l.open(ctx, &view{}, proto.Address{Host: "127.0.0.1", Port: 1})
	if l.err == nil || !released {
		t.Errorf("error %v, context released: %t", l.err, released)
	}
}
