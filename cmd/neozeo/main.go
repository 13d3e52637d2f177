// Command neozeo serves a NEO cluster, or Data.fs files, to ZEO clients.
package main

import (
	"runtime"

	"github.com/neozodb/neo/cmd/internal/cli"
)

func main() {
	cli.UseProcessors(runtime.GOMAXPROCS(0) / 2) // the others are for nodes or clients
	cli.Main(newCommand)
}
