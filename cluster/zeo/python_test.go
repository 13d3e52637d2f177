package zeo_test

import (
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// What ZEO and ZODB test a remote storage with, over a database in memory.
func TestPython(t *testing.T) {
	full := func(more ...string) []string { return append(append([]string{}, zeotest.UndoMerges...), more...) }
	small := []string{
		"ZEO.tests.testZEO:MappingStorageTests",
		"ZEO.tests.testZEO:ClientConflictResolutionTests",
		"ZEO.tests.testZEO:FileStorageRecoveryTests",
	}
	full5 := append(append([]string{}, zeotest.UndoMerges5...), "ZEO.tests.testZEO:FileStorageTests")
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"ZEO5", full5},
		{"ZEO5Msgpack", append([]string{"--msgpack"}, full5...)},
		{"Full", full("ZEO.tests.testZEO:FileStorageTests")},
		{"FullMsgpack", full("--msgpack", "ZEO.tests.testZEO:FileStorageTests")},
		{"FullTLS", full("ZEO.tests.testZEO:FileStorageSSLTests")},
		{"Mapping", small},
		{"MappingMsgpack", append([]string{"--msgpack"}, small...)},
		{"Connections", []string{
			"ZEO.tests.testConnection:FileStorageConnectionTests",
			"ZEO.tests.testConnection:MappingStorageConnectionTests",
			"ZEO.tests.testConnection:SSLConnectionTests",
			"ZEO.tests.testZEO:ZRPCConnectionTests",
		}},
		{"Reconnections", []string{
			"ZEO.tests.testConnection:FileStorageReconnectionTests",
			"ZEO.tests.testConnection:FileStorageInvqTests",
			"ZEO.tests.testConnection:FileStorageTimeoutTests",
			"ZEO.tests.testConnection:MappingStorageTimeoutTests",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			interpreter := zeotest.Python(t)
			if strings.HasPrefix(tt.name, "ZEO5") {
				interpreter = zeotest.Python5(t)
			}
			zeotest.RunPython(t, interpreter, zeotest.CreateMemory, tt.args...)
		})
	}
}
