package storeurl_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/store/storeurl"
)

func TestOpen(t *testing.T) {
	env := map[string]string{"NEOBACKUP_S3_ACCESS_KEY": "a", "NEOBACKUP_S3_SECRET_KEY": "secret"}
	getenv := func(name string) string { return env[name] }
	dir := filepath.Join(t.TempDir(), "a b")
	// A missing directory may be a disk that is not mounted: it is not made.
	if _, err := storeurl.Open("file://"+dir, getenv); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("missing directory: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := storeurl.Open("file://"+strings.ReplaceAll(dir, " ", "%20"), getenv)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Put(t, s, "neobackup", []byte("x"))
	if _, err := os.Stat(filepath.Join(dir, "neobackup")); err != nil {
		t.Error(err)
	}
	if _, err := storeurl.Open("s3://backups/prod?region=eu-1", getenv); err != nil {
		t.Error(err)
	}
	clear(env)
	for _, bad := range []string{"", "/path", "file:path", "file://host/path", "file:///path?secret", "s3://backups/prod?region=eu-1", "s3://a:secret@backups/prod?region=eu-1", "http://a:secret@b/"} {
		if s, err := storeurl.Open(bad, getenv); err == nil || s != nil || strings.Contains(err.Error(), "a:secret") {
			t.Errorf("Open(%q) = %v, %v", bad, s, err)
		}
	}
}
