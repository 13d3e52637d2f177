//go:build race

package nodelog

import _ "github.com/mattn/go-sqlite3" // the pure Go one takes minutes under the race detector

const driverName = "sqlite3"
