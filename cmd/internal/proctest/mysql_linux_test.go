package proctest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
	"github.com/neozodb/neo/cluster/tid"
)

// durable are options of a server that loses nothing which was committed.
var durable = []string{"--innodb-flush-log-at-trx-commit=1", "--rocksdb-flush-log-at-trx-commit=1", "--innodb-lock-wait-timeout=1", "--rocksdb-lock-wait-timeout=1"}

// outage is one way in which a database server fails a storage, and comes back.
type outage struct {
	name string
	fail func(t testing.TB, s *mysqltest.Server, database string)
}

var outages = []outage{
	{"killed", func(t testing.TB, s *mysqltest.Server, _ string) {
		s.Kill()
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}},
	{"restarted", func(t testing.TB, s *mysqltest.Server, _ string) {
		s.Stop()
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}},
	{"connections killed", func(t testing.TB, s *mysqltest.Server, database string) { s.Disconnect(t, database) }},
	{"max_allowed_packet lowered", func(t testing.TB, s *mysqltest.Server, database string) {
		s.Exec(t, "", "SET GLOBAL max_allowed_packet = 16777216")
		s.Disconnect(t, database)
		time.Sleep(200 * time.Millisecond)
		s.Exec(t, "", "SET GLOBAL max_allowed_packet = 67108864")
	}},
	{"rows locked", func(t testing.TB, s *mysqltest.Server, database string) {
		s.Exec(t, database, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; BEGIN; UPDATE pt SET tid = tid + 1; UPDATE config SET value = CONCAT(value, 'x'); DO SLEEP(1.5); ROLLBACK")
	}},
}

// supervise starts a storage again whenever it has ended, as a service manager does.
func supervise(t testing.TB, p *Process) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			if p.Running() {
				continue
			}
			time.Sleep(100 * time.Millisecond)
			if err := p.Restart(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

var allOutages = flag.Bool("all-outages", false, "each way in which a database server fails, in each phase of TestDatabaseServerFails")

// during runs f while the server fails in some ways, which are numbers of outages.
func during(t testing.TB, s *mysqltest.Server, database string, f func() error, ways ...int) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		defer close(done) // also if f ends the test
		done <- f()
	}()
	if *allOutages {
		ways = []int{0, 1, 2, 3, 4, 0, 2}
	}
	for i, way := range ways {
		time.Sleep(time.Duration(50+60*i) * time.Millisecond)
		outages[way].fail(t, s, database)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// whyEnded finds the reasons for which a storage has ended.
var whyEnded = regexp.MustCompile(`(?m)^error: .*`)

// The database server of a replica fails in the middle of a migration, of commits, of replication, and of a
// pack. Its storage goes on, or ends with a reason that names the database, and catches up when it is started
// again: nothing that was acknowledged is lost, and the replicas are equal.
func TestDatabaseServerFails(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "source.fs")
	must(t, "neobench", "generate", file, "--size", "4MB")
	for _, engine := range []string{"InnoDB", "RocksDB"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			s := mysqltest.New(t, "", durable...)
			name := s.Database(t)
			mysql := []string{"-a", "MySQL", "-d", s.String(name), "-e", engine, "-w", "60"}
			c := StartCluster(t, Options{Storages: 2, Replicas: 1, Databases: [][]string{nil, mysql}})
			victim := c.Storages[1]
			stop := supervise(t, victim)
			defer func() { stop() }()

			during(t, s, name, func() error {
				_, errOut, status := Run(t, "neomigrate", "-q", "-c", c.Name, file, c.Masters)
				for n := 0; status != 0 && n < 10; n++ { // it goes on where it was
					time.Sleep(300 * time.Millisecond)
					_, errOut, status = Run(t, "neomigrate", "-q", "-c", c.Name, file, c.Masters)
				}
				if status != 0 {
					return fmt.Errorf("neomigrate: %s", errOut)
				}
				return nil
			}, 0, 4)
			c.waitUpToDate(t, patience)
			copied := filepath.Join(t.TempDir(), "copied.fs")
			c.export(t, copied)
			sameFiles(t, copied, file)

			w := startWorkload(t, c, 2)
			during(t, s, name, func() error { return nil }, 3, 2)
			before := w.acknowledged()
			for deadline := time.Now().Add(patience); w.acknowledged() < before+3; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nothing is committed any more")
				}
			}
			seen := w.stop()
			c.waitUpToDate(t, patience)
			c.ctl(t, 0, `no difference found`, "check", ":")

			// Erased, it is a new node, which replicates all from the beginning.
			stop()
			victim.Kill()
			must(t, "neostorage", append([]string{"-c", c.Name, "-m", c.Masters, "--reset"}, mysql...)...)
			if err := victim.Restart(); err != nil {
				t.Fatal(err)
			}
			stop = supervise(t, victim)
			for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
				if out, _, _ := c.Ctl(t, "print", "node"); strings.Contains(out, "S3 ") {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("S3 does not come")
				}
			}
			c.ctl(t, 0, ``, "add", "S3")
			c.ctl(t, 0, ``, "drop", "S2", "--yes")
			during(t, s, name, func() error {
				c.ctl(t, 0, ``, "tweak")
				return nil
			}, 2, 1, 0)
			c.waitUpToDate(t, patience)
			c.ctl(t, 0, `no difference found`, "check", ":")

			cl, err := Connect(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			last, err := cl.LastTID(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			during(t, s, name, func() error {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				order, err := cl.Pack(ctx, last)
				if err == nil {
					err = cl.WaitForPack(ctx, order)
				}
				return err
			}, 0, 4)
			c.waitUpToDate(t, patience)
			c.ctl(t, 0, `no difference found`, "check", ":")
			stop()
			for _, why := range whyEnded.FindAllString(victim.Output(), -1) {
				if !strings.Contains(why, name) {
					t.Errorf("the database is not named: %s", why)
				}
			}
			// What the victim has is enough.
			c.Storages[0].Kill()
			c.WaitState(t, "RUNNING", patience)
			c.verifyPacked(t, seen)
		})
	}
}

// verifyPacked checks that the last revision of each object, as clients saw it, is there.
func (c *Cluster) verifyPacked(t testing.TB, seen clustertest.Observed) {
	t.Helper()
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	last := map[tid.OID]clustertest.Attempt{}
	for _, a := range seen.Attempts {
		for _, w := range a.Writes {
			if a.Outcome != clustertest.Aborted && a.TID > last[w.OID].TID {
				last[w.OID] = a
			}
		}
	}
	for oid, a := range last {
		o, err := cl.LoadBefore(t.Context(), oid, tid.Max)
		if err != nil || o.Serial < a.TID {
			t.Errorf("object %v of %v: %v, %v", oid, a.TID, o, err)
		}
	}
}

// The database server fails in the middle of an import.
func TestDatabaseServerFailsInImport(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"InnoDB", "RocksDB"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "source.fs")
			must(t, "neobench", "generate", file, "--size", "4MB")
			s := mysqltest.New(t, "", durable...)
			name := s.Database(t)
			conf := write(t, "importer.conf", []byte("[neo]\nadapter = MySQL\ndatabase = "+s.String(name)+"\nengine = "+engine+"\nwait = 60\n"+fileSource("root", file)))
			c := startImporting(t, conf, 4)
			stop := supervise(t, c.Storages[0])
			defer stop()
			during(t, s, name, func() error { return nil }, 2, 0, 3, 4)
			c.waitImport(t, importDone)
			c.WaitState(t, "RUNNING", patience)
			copied := filepath.Join(t.TempDir(), "copied.fs")
			c.export(t, copied)
			sameFiles(t, copied, file)
		})
	}
}

// The disk of a database server gets full. Its storage ends and says why; the server may end as well. Once there
// is room again, all that was acknowledged is there, and it goes on.
func TestDatabaseServerDiskFull(t *testing.T) {
	t.Parallel()
	for engine, want := range map[string]string{"InnoDB": `error: .*(is full|No space left|disk full)`, "RocksDB": `error: .*(No space left|connection|is full)`} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			dir := tmpfs(t, "size=60m")
			s := mysqltest.New(t, filepath.Join(dir, "data"), append(durable, "--innodb-log-file-size=4M", "--innodb-data-file-path=ibdata1:12M:autoextend",
				"--innodb-autoextend-increment=1", "--innodb-buffer-pool-size=16M", "--loose-rocksdb-db-write-buffer-size=4M", "--loose-rocksdb-wal-recovery-mode=2", // 1 refuses a torn end
				"--aria-log-file-size=8M")...)
			name := s.Database(t)
			c := StartCluster(t, Options{Storage: []string{"-a", "MySQL", "-d", s.String(name), "-e", engine, "-w", "30"}})
			fill := filepath.Join(dir, "ballast")
			leave(t, fill, 4<<20)
			victim := c.Storages[0]

			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var seen clustertest.Observed
			var wg sync.WaitGroup
			wg.Go(func() { seen.Attempts = c.attempts(ctx, t, 1) })
			err := victim.Wait(t, patience)
			cancel()
			wg.Wait()
			if err == nil || !strings.Contains(err.Error(), "exit status 1") {
				t.Errorf("on a full disk the storage ended with %v", err)
			}
			says(t, "the storage", victim.Output(), want, name)
			t.Logf("the server runs: %v", s.Running())
			if err := os.Remove(fill); err != nil {
				t.Fatal(err)
			}
			if !s.Running() { // RocksDB ends rather than go on without what it could not write
				s.Kill()
				if err := s.Start(); err != nil {
					t.Fatal(err)
				}
			}
			if err := victim.Restart(); err != nil {
				t.Fatal(err)
			}
			c.WaitState(t, "RUNNING", patience)
			db := c.verify(t, seen)
			acknowledged := 0
			for _, a := range seen.Attempts {
				if a.Outcome == clustertest.Committed {
					acknowledged++
				}
			}
			t.Logf("%d of %d transactions were acknowledged, %d are there", acknowledged, len(seen.Attempts), len(db))
			if acknowledged < 3 {
				t.Errorf("only %d transactions were acknowledged before the disk was full", acknowledged)
			}
			cl, err := Connect(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			var own tid.OID
			var base tid.TID
			a := clustertest.Attempt{Mark: "after"}
			if commit(t.Context(), cl, &a, &own, &base); a.Outcome != clustertest.Committed {
				t.Errorf("nothing can be committed any more: %+v", a)
			}
			c.ctl(t, 0, `no difference found`, "check", ":")
		})
	}
}

// leave fills a disk by a file, so that no more than n bytes are left.
func leave(t testing.TB, file string, n int) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 0; ; size += 1 << 18 {
		if _, err := f.Write(make([]byte, 1<<18)); err != nil {
			if err := f.Truncate(int64(max(0, size-n))); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}
