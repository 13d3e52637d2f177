package proctest

import (
	"path/filepath"
	"testing"
	"time"
)

// A master that does not know the upstream cluster of a backup ends and says so: it
// must not make a cluster of its own of the backup.
func TestBackupWithoutUpstream(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Options{})
	for _, p := range c.Nodes() {
		p.Kill()
	}
	python(t, `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("INSERT INTO config VALUES ('backup_tid', '040660ee3597d844')")
db.commit()
`, filepath.Join(c.Dir, "s1.sqlite"))
	if err := c.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	if err := c.Master.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := c.Master.Wait(t, 30*time.Second); err == nil {
		t.Error("the master ended with status 0")
	}
	says(t, "neomaster", c.Master.Output(), `(?m)^error: the database is a backup: no upstream cluster to backup defined in configuration$`)
}
