package proctest

import (
	"os/exec"
	"testing"

	"github.com/neozodb/neo/backup/store/storetest"
)

// The commands of docs/monitoring.md watch a cluster.
func TestMonitoringGuide(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		storetest.Missing(t, "curl is not installed: make install-monitoring-tools")
	}
	out := followGuide(t, "monitoring.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:9147", "127.0.0.1:9148", "127.0.0.1:9149")
	says(t, "the guide", out, `(?m)^alive$`, `(?m)^ready$`, `neo_cluster_state\{cluster="site",node="M1",state="RUNNING"\} 1`, `neo_master_transactions_committed_total\{cluster="site",node="M1"\} [1-9]`,
		`neo_storage_stores_total\{cluster="site",node="S1"\} [1-9]`)
}
