package config_test

import (
	"strings"
	"testing"

	"github.com/neozodb/neo/importer/config"
)

// An operator who gives the Data.fs itself is told how to write the configuration.
func TestDataFS(t *testing.T) {
	path := "../../testdata/fs/01-basic.fs"
	_, err := config.ReadFile(path)
	if err == nil || !strings.Contains(err.Error(), path+" is a Data.fs") || !strings.Contains(err.Error(), "neomigrate plan "+path) {
		t.Errorf("got %v", err)
	}
}
