//go:build race

package sqlitedb

import (
	"database/sql/driver"
	"errors"

	"github.com/mattn/go-sqlite3"
)

// openDriver opens a connection. With -race, which needs cgo anyway, SQLite is
// in C: the race detector makes the one in Go more than ten times slower.
func openDriver(dsn string) (driver.Conn, error) { return new(sqlite3.SQLiteDriver).Open(dsn) }

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
