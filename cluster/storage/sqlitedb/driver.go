//go:build !race

package sqlitedb

import (
	"database/sql/driver"
	"errors"

	"modernc.org/sqlite"
)

// openDriver opens a connection. SQLite is in Go: no C compiler is needed.
func openDriver(dsn string) (driver.Conn, error) { return new(sqlite.Driver).Open(dsn) }

// resultCode returns SQLite's extended result code, 0 if err is of another kind.
func resultCode(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}
