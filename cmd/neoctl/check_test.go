package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	partitions = 8
	many       = 1500 // records that one partition lacks
)

// runCluster runs a cluster on a directory until it is stopped.
func runCluster(t *testing.T, dir string, cfg simple.Config) (c *simple.Cluster, stop func()) {
	t.Helper()
	cfg.Dir = dir
	c, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	if err := c.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c, stop
}

// spoil changes the database of a storage that does not run.
func spoil(t *testing.T, path string, change func(db backend.Backend) error) {
	t.Helper()
	db, err := sqlitedb.Open(context.Background(), path, sqlitedb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := change(db); err != nil {
		t.Fatal(err)
	}
	if err := db.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// databases returns the files of S1 and S2, which got their ids in any order.
func databases(t *testing.T, dir string) (s1, s2 string) {
	t.Helper()
	s1, s2 = filepath.Join(dir, "storage1.sqlite"), filepath.Join(dir, "storage2.sqlite")
	spoil(t, s1, func(db backend.Backend) error {
		c, err := db.Config()
		if c.ID != 1 {
			s1, s2 = s2, s1
		}
		return err
	})
	return s1, s2
}

// flip changes the bytes of a record in the file of a database.
func flip(t *testing.T, path, data string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A row that was moved may have left its bytes in a free page.
	other := []byte(data)
	other[0] ^= 1
	damaged := bytes.ReplaceAll(b, []byte(data), other)
	if bytes.Equal(damaged, b) {
		t.Fatalf("%q is not in %s", data, path)
	}
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
}

// contents describes everything in a database.
func contents(t *testing.T, path string) (list []string) {
	t.Helper()
	spoil(t, path, func(db backend.Backend) error {
		for p := range partitions {
			tids, err := db.TIDsFrom(t.Context(), p, 0, tid.Max, 10*many)
			if err != nil {
				return err
			}
			for _, at := range tids {
				m, _, err := db.FetchTransaction(t.Context(), at)
				if err != nil {
					return err
				}
				list = append(list, fmt.Sprintf("%v %q %v", at, m.Description, m.OIDs))
			}
			keys, err := db.RecordsFrom(t.Context(), p, 0, tid.Max, 0, 10*many)
			if err != nil {
				return err
			}
			for _, k := range keys {
				o, err := db.FetchObject(t.Context(), k.OID, k.TID)
				if err != nil {
					return err
				}
				list = append(list, fmt.Sprintf("%v %v %q %v", k.TID, k.OID, o.Data, o.DataSerial))
			}
		}
		return nil
	})
	return list
}

// Every way in which a replica can differ is found, in each partition, listed and
// counted; the summary says so until it is repaired, from the copy that the operator
// names.
func TestCheckAndRepair(t *testing.T) {
	dir := t.TempDir()
	c, stop := runCluster(t, dir, simple.Config{Storages: 2, Replicas: 1, Partitions: partitions})
	cl, err := client.Open(t.Context(), client.Config{Cluster: c.Name(), Masters: []proto.Address{c.Master()}, Level: client.NoCompression})
	if err != nil {
		t.Fatal(err)
	}
	commit := func(base tid.TID, stores map[tid.OID]string) tid.TID {
		t.Helper()
		tx, err := cl.Begin(t.Context(), client.BeginOptions{Description: []byte("a change")})
		if err != nil {
			t.Fatal(err)
		}
		for oid, data := range stores {
			if err := tx.Store(t.Context(), oid, base, []byte(data)); err != nil {
				t.Fatal(err)
			}
		}
		at, err := tx.Finish(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	first, second := map[tid.OID]string{}, map[tid.OID]string{}
	for oid := range tid.OID(2 * partitions) {
		first[oid] = fmt.Sprintf("first revision of object %d", oid)
		second[oid] = fmt.Sprintf("second revision of object %d", oid)
	}
	t1 := commit(0, first)
	t2 := commit(t1, second)
	lost := map[tid.OID]string{}
	for i := range tid.OID(many) {
		lost[partitions*(i+10)+6] = "lost"
	}
	t3 := commit(0, lost)
	// What lacks the end of a partition would be taken for an older copy, and be
	// replicated again: each partition ends with something that both have.
	end := map[tid.OID]string{}
	for p := range tid.OID(partitions) {
		end[partitions*(many+100)+p] = "end"
	}
	last := tid.Zero
	for ended := map[int]bool{}; len(ended) < partitions; ended[last.Partition(partitions)] = true {
		last = commit(last, end)
	}
	cl.Close()
	stop()

	s1, s2 := databases(t, dir)
	other := proto.ObjectData{Checksum: sha1.Sum([]byte("other")), Data: []byte("other")}
	spoil(t, s2, func(db backend.Backend) error {
		for _, err := range []error{
			db.DeleteObject(0, t2), // missing
			db.AddObject(partitions+1, t2-1, other, proto.Opt[tid.TID]{}), // extra
			db.DeleteObject(2, t1),
			db.DeleteTransaction(t2),
		} {
			if err != nil {
				return err
			}
		}
		if err := db.Commit(); err != nil {
			return err
		}
		if err := db.AddObject(2, t1, other, proto.Opt[tid.TID]{}); err != nil { // different
			return err
		}
		for oid := range lost {
			if err := db.DeleteObject(oid, t3); err != nil {
				return err
			}
		}
		return nil
	})
	flip(t, s2, "second revision of object 5")
	flip(t, s2, "first revision of object 7")

	c, stop = runCluster(t, dir, simple.Config{})
	admin := c.Admin().String()
	ctl := func(args string) (string, int) {
		t.Helper()
		stdout, stderr, code := runCtl(t, append([]string{"-a", admin}, strings.Fields(args)...)...)
		return stdout + stderr, code
	}
	id := func(x uint64) string { return fmt.Sprintf("%#016x", x) }
	in6 := many // one more if the transaction is there as well
	if t2.Partition(partitions) == 6 {
		in6++
	}
	want := []string{
		fmt.Sprintf("partition 0: S2: missing record, oid %s, tid %s", id(0), id(uint64(t2))),
		fmt.Sprintf("partition 1: S2: extra record, oid %s, tid %s", id(partitions+1), id(uint64(t2-1))),
		fmt.Sprintf("partition 2: S2: different data, oid %s, tid %s", id(2), id(uint64(t1))),
		fmt.Sprintf("partition 5: S2: damaged data, oid %s, tid %s", id(5), id(uint64(t2))),
		fmt.Sprintf("partition 6: and %d more differences", in6-200),
		fmt.Sprintf("partition 7: S2: damaged data, oid %s, tid %s", id(7), id(uint64(t1))),
		fmt.Sprintf("partition %d: S2: missing transaction, tid %s", t2.Partition(partitions), id(uint64(t2))),
		fmt.Sprintf("%d differences found in S2", many+6),
	}
	out, code := ctl("check :S1")
	if code != 1 {
		t.Errorf("check: exit %d", code)
	}
	for _, line := range want {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("check does not say %q:\n%.3000s", line, out)
		}
	}
	if n := strings.Count(out, "partition 6: S2: missing"); n != 200 {
		t.Errorf("%d of partition 6 are listed", n)
	}
	// Without a reference nothing is guessed: where both have something, both are named.
	out, code = ctl("check")
	if code != 1 || !strings.Contains(out, fmt.Sprintf("partition 2: S1: different data, oid %s, tid %s\npartition 2: S2: different data", id(2), id(uint64(t1)))) ||
		strings.Contains(out, "extra") || !strings.Contains(out, "S1: missing record, oid "+id(partitions+1)) {
		t.Errorf("without reference, exit %d:\n%.3000s", code, out)
	}
	warned := func(yes bool) {
		t.Helper()
		out, code := ctl("print summary")
		if code != 0 || strings.Contains(out, "\nCHECK: replicas differ") != yes || strings.HasPrefix(out, `# {"warning": [null]}`) != yes {
			t.Errorf("exit %d, summary (want a warning: %v):\n%s", code, yes, out)
		}
	}
	warned(true)
	clean := 3
	if t2.Partition(partitions) == clean {
		clean = 4
	}
	if out, code := ctl(fmt.Sprintf("check %d:", clean)); code != 0 {
		t.Errorf("partition %d: exit %d\n%s", clean, code, out)
	}
	warned(true) // of the others
	out, code = ctl("repair --from S1 --partition 5 S2")
	if code != 0 || !strings.Contains(out, "partition 5: repaired from S1\nAfter the repair:\n") {
		t.Errorf("repair of a partition: exit %d\n%s", code, out)
	}
	warned(true)
	out, code = ctl("repair --from S1 S2")
	if code != 0 || strings.Count(out, ": repaired from S1\n") < 5 {
		t.Errorf("repair: exit %d\n%s", code, out)
	}
	warned(false)
	if out, code := ctl("check"); code != 0 || !strings.Contains(out, "no difference found") {
		t.Errorf("check: exit %d\n%s", code, out)
	}
	if out, _ := ctl("print pt"); strings.Count(out, "UUUUUUUU") != 2 {
		t.Errorf("partition table:\n%s", out)
	}
	stop()
	good, repaired := contents(t, s1), contents(t, s2)
	if diff := cmp.Diff(good, repaired); diff != "" {
		t.Errorf("S2 (-S1 +S2):\n%s", diff)
	}
	if len(good) < many+4*partitions {
		t.Errorf("S1 has %d rows", len(good))
	}
}

// Damage on both sides: each is repaired from the other, as far as that has something
// better. What is damaged everywhere is left as it is, and said.
func TestRepairBothWays(t *testing.T) {
	dir := t.TempDir()
	c, stop := runCluster(t, dir, simple.Config{Storages: 2, Replicas: 1, Partitions: partitions})
	cl, err := client.Open(t.Context(), client.Config{Cluster: c.Name(), Masters: []proto.Address{c.Master()}, Level: client.NoCompression})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for oid := range tid.OID(4 * partitions) {
		if err := tx.Store(t.Context(), oid, 0, fmt.Appendf(nil, "what object <%d> is", oid)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Finish(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	cl.Close()
	stop()
	s1, s2 := databases(t, dir)
	flip(t, s1, "what object <1> is")
	flip(t, s2, "what object <9> is")
	flip(t, s1, "what object <4> is")
	flip(t, s2, "what object <4> is")
	c, stop = runCluster(t, dir, simple.Config{})
	for _, tt := range []struct {
		args string
		code int
		want []string
	}{
		{"check", 1, []string{"partition 1: S1: damaged data, oid 0x0000000000000001", "partition 1: S2: damaged data, oid 0x0000000000000009",
			"partition 4: S1: damaged data, oid 0x0000000000000004", "partition 4: S2: damaged data, oid 0x0000000000000004", "4 differences found in S1, S2"}},
		{"repair --from S1 S2", 1, []string{"partition 1: repaired from S1", "partition 4: NOT REPAIRED", "S1 is damaged where S2 has nothing better"}},
		{"repair --from S2 --partition 1 S1", 0, []string{"partition 1: repaired from S2", "no difference found"}},
		{"check 1:", 0, []string{"no difference found"}},
		{"check", 1, []string{"2 differences found in S1, S2"}},
		{"print summary", 0, []string{"CHECK: replicas differ (2 differences; partition 4; nodes S1, S2)"}},
		{"print pt", 0, []string{"S1 R UUUUUUUU\nS2 R UUUUUUUU\n"}},
	} {
		out, stderr, code := runCtl(t, append([]string{"-a", c.Admin().String()}, strings.Fields(tt.args)...)...)
		if code != tt.code {
			t.Errorf("neoctl %s: exit %d, want %d:\n%s%s", tt.args, code, tt.code, out, stderr)
		}
		for _, text := range tt.want {
			if !strings.Contains(out, text) {
				t.Errorf("neoctl %s does not say %q:\n%s%s", tt.args, text, out, stderr)
			}
		}
	}
	stop()
}
