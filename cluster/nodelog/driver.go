//go:build !race

package nodelog

import (
	"errors"

	"modernc.org/sqlite" // needs no C compiler
)

const driverName = "sqlite"

// resultCode returns SQLite's extended result code, 0 if err is of another kind.
func resultCode(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}
