package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
)

func TestMain(m *testing.M) { os.Exit(mysqltest.Main(m)) }

// The databases of a cluster may be of a database server, and be filled from a Data.fs while it is
// served.
func TestMySQL(t *testing.T) {
	s := mysqltest.Get(t)
	one, two, three := s.String(s.Database(t)), s.String(s.Database(t)), s.String(s.Database(t))
	site := sample(t, "site.fs")
	p := start(t, "--adapter", "MySQL", "--database", one, "--import", site, "--name", "sample")
	p.ready()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(p.stderr.String(), "done: "); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the import does not come to its end:\n%s", p.stderr.String())
		}
	}
	fails(t, 1, one+": in use by another process", "--adapter", "MySQL", "--database", one)
	p.stop()
	if want := "database is in " + one + ".\n"; !strings.Contains(p.stderr.String(), want) {
		t.Errorf("no %q in:\n%s", want, p.stderr.String())
	}
	p = start(t, "--adapter", "MySQL", "--database", one)
	if name, _, _, _ := p.ready(); name != "sample" || strings.Contains(p.stderr.String(), "A new database") {
		t.Errorf("another cluster, %s:\n%s", name, p.stderr.String())
	}
	p.stop()

	replicated := []string{"--adapter", "MySQL", "--engine", "RocksDB", "--database", two, "--database", three}
	p = start(t, append(replicated, "--replicas", "1", "--import", site)...)
	p.ready()
	if want := "It has 334 transactions with 2142 records from "; !strings.Contains(p.stderr.String(), want) {
		t.Errorf("no %q in:\n%s", want, p.stderr.String())
	}
	p.stop()
	fails(t, 1, "2 databases are of as many storages, not of 3", append(replicated, "--storages", "3")...)
	fails(t, 1, "is the server running?", "--adapter", "MySQL", "--database", "neo"+site)
	fails(t, 2, "does not go with --database", append(replicated, "--dir", t.TempDir())...)
	fails(t, 2, "for --adapter MySQL", "--database", two)
	fails(t, 2, "--import", "--adapter", "Importer")
}
