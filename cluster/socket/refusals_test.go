package socket

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Each address is told once a minute, with the number of times in between, however
// many there are.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(slog.NewTextHandler(&b, nil))
		var r Refusals
		for range 130 {
			r.Log(log, "peer refused", "10.0.0.1", "10.0.0.1:5", errors.New("expired"))
			time.Sleep(time.Second)
		}
		if got := strings.Count(b.String(), "level=WARN msg=\"peer refused\" addr=10.0.0.1:5 err=expired"); got != 3 {
			t.Errorf("told %d times:\n%s", got, &b)
		}
		if got := strings.Count(b.String(), "untold=59"); got != 2 {
			t.Errorf("number in between told %d times:\n%s", got, &b)
		}
		for i := range 10 * maxRefused {
			r.Log(log, "peer refused", fmt.Sprint(i), "", errors.New("expired"))
		}
		if n := strings.Count(b.String(), "\n") - 3; len(r.since) > maxRefused || n < maxRefused/2 || n > maxRefused {
			t.Errorf("%d addresses are remembered, %d were told", len(r.since), n)
		}
		time.Sleep(refusalInterval)
		b.Reset()
		r.Log(log, "peer refused", "another", "", errors.New("expired"))
		if want := fmt.Sprintf("more=%d", 10*maxRefused-(maxRefused-1)); !strings.Contains(b.String(), want) {
			t.Errorf("told %q, want %s", &b, want)
		}
	})
}
