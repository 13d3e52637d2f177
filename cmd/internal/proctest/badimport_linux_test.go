package proctest

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// The disk of the destination gets full during the copy: the storage says so and stops. Once
// there is space again, the import goes on, and everything is there.
func TestImportToFullDisk(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, "size=4m")
	fill := ballast(t, dir, 13<<18)
	file := write(t, "Data.fs", read(t, filepath.Join(samples, "site.fs")))
	conf, _ := importerConf(t, fileSource("root", file))
	text := regexp.MustCompile(`database = \S+`).ReplaceAllString(string(read(t, conf)), "database = "+filepath.Join(dir, "neo.sqlite"))
	if err := os.WriteFile(conf, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	c := beginImporting(t, conf, 4)
	victim := c.Storages[0]
	deadline := time.Now().Add(patience)
	for victim.Running() && !regexp.MustCompile(`disk is full|no space left`).MatchString(victim.Output()) {
		if time.Now().After(deadline) {
			t.Fatalf("the disk is not full:\n%s", victim.Output())
		}
		time.Sleep(50 * time.Millisecond)
	}
	says(t, "the storage", victim.Output(), `(disk is full|no space left)`, `neo\.sqlite`)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if victim.Running() {
		victim.Kill()
	}
	if err := victim.Restart(); err != nil {
		t.Fatal(err)
	}
	c.WaitState(t, "RUNNING", patience)
	c.waitImport(t, importDone)
	out := filepath.Join(t.TempDir(), "out.fs")
	c.export(t, out)
	sameBytes(t, out, read(t, file))
}
