package socket

import (
	"bytes"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A program that waits writes a line, another one when it takes long, and one when it is over; but none
// for each attempt.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		var w Waiting
		w.Over(log, "found at once")
		for range 3600 {
			w.Failed(log, "no master", "addr", "h:1")
			time.Sleep(time.Second)
		}
		w.Over(log, "found a master", "addr", "h:2")
		w.Failed(log, "no master", "addr", "h:1")
		want := `level=INFO msg="no master yet, trying again" addr=h:1
level=WARN msg="still no master, trying again" addr=h:1 since=10s
level=INFO msg="found a master" addr=h:2 took=1h0m0s
level=INFO msg="no master yet, trying again" addr=h:1
`
		if got := b.String(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}
