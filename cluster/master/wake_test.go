package master

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/proto"
)

// The shell wakes the machine when it has asked for it last, and not before.
func TestWake(t *testing.T) {
	for after, want := range map[time.Duration]bool{time.Minute - time.Millisecond: false, time.Minute + time.Millisecond: true} {
		synctest.Test(t, func(t *testing.T) {
			m, err := New(Config{Cluster: "test", Bind: proto.Address{Host: "10.0.0.1", Port: 10000}, Network: memnet.New(1).Host("10.0.0.1")})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range []time.Duration{time.Second, time.Hour, time.Minute} {
				m.perform([]Effect{{Op: Wake, Delay: d}})
			}
			m.machine.gate.wake = time.Now()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- m.Run(ctx) }()
			time.Sleep(after)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if woken := m.machine.gate.wake.IsZero(); woken != want {
				t.Errorf("after %v: woken %v", after, woken)
			}
		})
	}
}
