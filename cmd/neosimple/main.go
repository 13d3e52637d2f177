// Neosimple runs a whole NEO cluster in one process: to try things out, to develop
// an application, or to have a database that can grow into a real cluster.
package main

import "github.com/neozodb/neo/cmd/internal/cli"

func main() { cli.Main(newCommand) }
