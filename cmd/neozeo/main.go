// Command neozeo serves a NEO cluster, or Data.fs files, to ZEO clients.
package main

import "github.com/neozodb/neo/cmd/internal/cli"

func main() { cli.Main(newCommand) }
