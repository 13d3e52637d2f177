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
	if _, err := newServer(""); err == nil || !strings.Contains(err.Error(), "no room on the disk") {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// What a dead process has left is removed, unless it is another user's.
func TestRemoveLeft(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	const dead = "2147483646" // no process has so great a number
	mine, other := filepath.Join(tmp, prefix+dead+"-1"), filepath.Join(tmp, prefix+dead+"-2")
	for _, dir := range []string{mine, other} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(other, os.Getuid()+1, -1); err != nil {
		Missing(t, "making a directory of another user (run this test as root): %v", err)
	}
	if err := removeLeft(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine); !os.IsNotExist(err) {
		t.Errorf("%s: %v", mine, err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}
