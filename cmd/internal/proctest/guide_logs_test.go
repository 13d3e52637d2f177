package proctest

import (
	"strings"
	"testing"
)

// The commands of docs/logs.md show the lines of nodes, read their log databases, and rotate them.
func TestLogsGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "logs.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999")
	says(t, "the guide", out, `INFO     listening on addr=127\.0\.0\.1:\d+`, `INFO     ready node=S1 `, `"level":"INFO","msg":"ready","node":"A1","master":"M1"`,
		`WARNING  storage lost node=S1 .*unreadable="partitions 0-11"`, `INFO +master +ready role=primary node=M1`, `"storage lost`, `(?m)INFO     stopped$`)
	if strings.Contains(out, "storages present are empty") {
		t.Error("the master warns of a storage before it knows what that has")
	}
}
