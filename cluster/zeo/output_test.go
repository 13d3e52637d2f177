package zeo

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A client may take its time to read, as long as it reads.
func TestSlowClientIsWaitedFor(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pause time.Duration
		open  bool
	}{
		{"slow", stallLimit * 3 / 4, true},
		{"stuck", stallLimit * 2, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				defer client.Close()
				o := newOutput(server, 16*roomy, func() { t.Error("the client was dropped") })
				e := o.lock()
				e.B = append(e.B, make([]byte, 4*roomy)...)
				o.unlock()
				go o.flush()
				b := make([]byte, roomy)
				for read := 0; read < 4; read++ {
					time.Sleep(tt.pause)
					if _, err := io.ReadFull(client, b); err != nil {
						if tt.open {
							t.Errorf("after %d MiB: %v", read, err)
						}
						return
					}
				}
				synctest.Wait()
				if !tt.open {
					t.Error("everything was written")
				} else if !o.waitRoom() || o.pending() != 0 {
					t.Error("the output was closed")
				}
				o.close()
			})
		})
	}
}
