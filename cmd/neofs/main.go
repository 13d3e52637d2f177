// Command neofs looks into Data.fs files, checks, dumps, compares and salvages
// them. It never changes the file it looks into.
package main

import "github.com/neozodb/neo/cmd/internal/cli"

func main() { cli.Main(newCommand) }
