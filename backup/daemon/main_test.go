package daemon

import (
	"fmt"
	"os"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
)

func TestMain(m *testing.M) {
	if err := backuptest.WarmUp(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
