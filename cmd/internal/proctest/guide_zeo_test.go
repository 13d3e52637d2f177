package proctest

import (
	"path/filepath"
	"testing"
)

// The commands of docs/zeo.md move databases of all kinds into clusters, and back.
func TestZEOGuide(t *testing.T) {
	t.Parallel()
	out := guide{file: "zeo.md", addrs: []string{"127.0.0.1:10000", "127.0.0.1:8100", "127.0.0.1:8101", "127.0.0.1:8102", "127.0.0.1:8090"}, path: zodbToolsPath(t)}.follow(t)
	says(t, "the guide", out, `Migration done in`, `No difference in 334 transactions`, `equal: 334 transactions`)
}

// The commands of docs/pack.md pack a cluster, and collect its garbage.
func TestPackGuide(t *testing.T) {
	t.Parallel()
	out := guide{file: "pack.md", admin: "127.0.0.1:9999", addrs: []string{"127.0.0.1:10000", "127.0.0.1:8100", "127.0.0.1:9999"}, path: zodbToolsPath(t)}.follow(t)
	says(t, "the guide", out, `Would delete what was replaced or deleted up to`, `Pack up to .* ordered by transaction`, `(?m)^Done\.$`)
}

// zodbToolsPath returns the directory of the tools that people have for ZODB.
func zodbToolsPath(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(openZODBTools(t).bin)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
