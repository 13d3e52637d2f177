//go:build !linux

package mysqldb

import (
	"syscall"
	"time"
)

// limitSilence leaves the limit of the system for what was sent. Probes have theirs.
func limitSilence(time.Duration) func(string, string, syscall.RawConn) error { return nil }
