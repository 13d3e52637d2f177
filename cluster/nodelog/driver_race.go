//go:build race

package nodelog

import (
	"errors"

	"github.com/mattn/go-sqlite3" // the pure Go one takes minutes under the race detector
)

const driverName = "sqlite3"

// resultCode returns SQLite's extended result code, 0 if err is of another kind.
func resultCode(err error) int {
	if e, ok := errors.AsType[sqlite3.Error](err); ok {
		if e.ExtendedCode != 0 {
			return int(e.ExtendedCode)
		}
		return int(e.Code)
	}
	return 0
}
