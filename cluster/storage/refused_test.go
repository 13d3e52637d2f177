package storage

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
)

// A storage that was restarted is refused until the master has noticed that the
// former process is gone. It comes again, for a limited time.
func TestRefusedAsConnected(t *testing.T) {
	for _, noticed := range []time.Duration{0, 150 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			db, err := backendtest.NewMemory().Open()
			if err != nil {
				t.Fatal(err)
			}
			n, err := New(Config{Cluster: "test", Backend: db, Network: r.net.Host("s1"), Bind: proto.Address{Host: "s1"}, Masters: newMasters()})
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- n.Run(t.Context()) }()
			start := time.Now()
			for attempts := 1; ; attempts++ {
				select {
				case err = <-ended:
					if noticed < time.Hour || err == nil || !strings.Contains(err.Error(), "already connected") || attempts > 300 {
						t.Errorf("noticed after %v: Run returned %v after %v and %d attempts", noticed, err, time.Since(start), attempts)
					}
					return
				case c := <-r.conns:
					ev := <-c.Tag.(chan link.Event)
					if time.Since(start) < noticed {
						c.AbortError(ev.ID, proto.ProtocolError, "S1 is already connected")
						continue
					}
					c.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: 1})
					c.Send(&proto.NotifyNodeInformation{Timestamp: 1, Nodes: []proto.Node{{Type: proto.Storage, ID: 1, State: proto.NodeDown}}})
					if err := <-ended; err != nil || time.Since(start) > noticed+2*time.Second {
						t.Errorf("noticed after %v: Run returned %v after %v", noticed, err, time.Since(start))
					}
					return
				}
			}
		})
	}
}
