package mysqltest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What keeps a server from being made is told, and its directory is removed.
func TestSetUpFails(t *testing.T) {
	bin, tmp := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "mariadb-install-db"), []byte("#!/bin/sh\necho no room on the disk\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("TMPDIR", tmp)
	if _, err := newServer(); err == nil || !strings.Contains(err.Error(), "no room on the disk") {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
