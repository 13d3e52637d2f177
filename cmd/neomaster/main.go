// Neomaster runs a master node of a NEO cluster.
package main

import "github.com/neozodb/neo/cmd/internal/cli"

func main() {
	cli.UseProcessors(1) // all is decided by one goroutine
	cli.Main(newCommand)
}
