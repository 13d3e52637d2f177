package proctest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The admin shows the cluster, with TLS as well, and says so when its master is gone.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	at := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	c := StartCluster(t, Options{Storages: 2, Replicas: 1, TLS: certificates(t), Admin: []string{"--monitor", at}})
	shows := func(texts ...string) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			_, body := get(t, at, "/")
			missing := ""
			for _, s := range texts {
				if !strings.Contains(body, s) {
					missing = s
				}
			}
			if missing == "" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("no %q in %s", missing, body)
			}
		}
	}
	shows("✓ test: ok", "RUNNING", "4 partitions, 2 copies wanted of each. All have them.", "2 of 2", "SQLite ")
	c.Storages[1].Kill()
	shows("! test: degraded", "1 of 2", "is DOWN since", "its node does not run")
	c.Master.Kill()
	shows("✕ test: down", "Not known: the cluster cannot be asked")
}
