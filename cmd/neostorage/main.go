// Command neostorage runs a storage node: it keeps partitions of the database of
// a NEO cluster.
package main

import "github.com/neozodb/neo/cmd/internal/cli"

func main() {
	cli.Calm()
	cli.Main(newCommand)
}
