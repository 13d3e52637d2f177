//go:build !race

package nodelog

import _ "modernc.org/sqlite" // needs no C compiler

const driverName = "sqlite"
