// Command neobackup keeps snapshots of a database, a cluster or a Data.fs, in a
// directory or in a bucket of S3, continuously if wanted, and restores them.
package main

import (
	"os"
	"runtime"

	"github.com/neozodb/neo/cmd/internal/cli"
)

func main() {
	cli.Calm()
	if path, err := os.Executable(); err == nil {
		program = path
	}
	if runtime.GOOS == "linux" {
		program = "/proc/self/exe" // also after the file was replaced by that of a newer version
	}
	cli.Main(newCommand)
}
