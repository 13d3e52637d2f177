// Command neobackup keeps snapshots of a database, a cluster or a Data.fs, in a
// directory or in a bucket of S3, continuously if wanted, and restores them.
package main

import "github.com/neozodb/neo/cmd/internal/cli"

func main() {
	cli.Calm()
	cli.Main(newCommand)
}
