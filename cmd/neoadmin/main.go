// Neoadmin runs an admin node of a NEO cluster: neoctl talks to it, and it watches
// the backups of the cluster.
package main

import "github.com/neozodb/neo/cmd/internal/cli"

func main() { cli.Main(newCommand) }
