package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// says waits for a text on stderr.
func (p *process) says(want string) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(p.stderr.String(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("no %q in:\n%s", want, p.stderr.String())
		}
	}
}

// operator connects to an admin.
func operator(t *testing.T, admin string) *ctl.Client {
	t.Helper()
	addr, err := conf.ParseAddress(admin, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ctl.Dial(t.Context(), proto.Address(addr), link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// commit stores one object, which has that transaction, through a ZEO door, and returns the
// transaction.
func commit(t *testing.T, zeo string, oid tid.OID, base tid.TID, data string) tid.TID {
	t.Helper()
	c, err := zeotest.Register(zeo, true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	last, err := c.Commit(zeotest.Store{OID: oid, Base: base, Data: []byte(data)})
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// follows waits until a backup has a transaction.
func follows(t *testing.T, op *ctl.Client, last tid.TID) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		ids, err := op.LastIDs(t.Context())
		if err == nil && ids.BackupTID.OK && ids.BackupTID.V >= last {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the backup has %+v, %v, not %v", ids, err, last)
		}
	}
}

// readsOnly looks through the door of a backup: it has an object, and takes no other.
func readsOnly(t *testing.T, zeo string, oid tid.OID, want string) {
	t.Helper()
	if _, err := zeotest.Register(zeo, true); err == nil || !strings.Contains(err.Error(), "ReadOnlyError") {
		t.Errorf("a client that wants to write: %v", err)
	}
	look := func() error {
		c, err := zeotest.Dial(zeo, true)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Call("register", "1", true); err != nil {
			return err
		}
		if data, _, _, err := c.LoadBefore(oid, tid.Max); err != nil || string(data) != want {
			return fmt.Errorf("object %v is %q, %w, want %q", oid, data, err, want)
		}
		if _, err := c.Call("new_oids", 1); err == nil || !strings.Contains(err.Error(), "ReadOnlyError") {
			return fmt.Errorf("a client that writes: %w", err)
		}
		return nil
	}
	// The door hears of what the backup has a moment later.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// A backup has as many partitions as the cluster that it follows, serves ZEO clients that
// read, gets what was committed while it was stopped, and is a cluster of its own when it
// has left backup mode.
func TestBackupOf(t *testing.T) {
	up := start(t, "--name", "up", "-p", "3")
	_, masters, _, upZEO := up.ready()
	first := commit(t, upZEO, 1, 0, "before")
	dir := filepath.Join(t.TempDir(), "db")
	args := []string{"--dir", dir, "--backup-of", "up@" + masters}

	p := start(t, args...)
	name, _, admin, zeo := p.ready()
	if name != "up-backup" {
		t.Errorf("the name is %q", name)
	}
	op := operator(t, admin)
	if table, err := op.PartitionTable(t.Context(), 0, 0, 0); err != nil || len(table.Rows) != 3 {
		t.Errorf("partition table %v, %v", table, err)
	}
	p.says("is a backup of up@" + masters)
	p.says(", read_only=True)")
	p.says("done: everything up to transaction ")
	readsOnly(t, zeo, 1, "before")

	// A client that has looked, and stays connected, hears of what is committed upstream. One that
	// came before the backup had caught up may be disconnected once: what has changed is not known.
	last := first
	hears := func() error {
		c, err := zeotest.Dial(zeo, true)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Call("register", "1", true); err != nil {
			return err
		}
		if _, _, _, err := c.LoadBefore(1, tid.Max); err != nil {
			return err
		}
		last = commit(t, upZEO, 1, last, "during")
		for told := false; !told; {
			m, err := c.Read()
			if err != nil {
				return fmt.Errorf("the client is not told of %v: %w", last, err)
			}
			told = m.Name == "invalidateTransaction"
		}
		data, serial, _, err := c.LoadBefore(1, tid.Max)
		if err == nil && (serial != last || string(data) != "during") {
			t.Errorf("object 1 is %q at %v", data, serial)
		}
		return err
	}
	if err := hears(); err != nil {
		follows(t, op, last)
		if err := hears(); err != nil {
			t.Fatal(err)
		}
	}
	p.stop()
	fails(t, 1, "start it with --backup-of NAME@HOST:PORT", "--dir", dir)

	last = commit(t, upZEO, 3, 0, "absent")
	p = start(t, args...)
	_, _, admin, zeo = p.ready()
	op = operator(t, admin)
	follows(t, op, last)
	readsOnly(t, zeo, 3, "absent")
	if _, err := op.SetClusterState(t.Context(), proto.StoppingBackup); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		state, err := op.ClusterState(t.Context())
		if err == nil && state == proto.Running {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the cluster is %v, %v", state, err)
		}
	}
	p.says("This cluster is no backup any more.")
	p.stop()
	fails(t, 1, "is not a backup: the cluster has left backup mode", args...)

	p = start(t, "--dir", dir)
	_, _, _, zeo = p.ready()
	commit(t, zeo, 4, 0, "its own")
	p.stop()
	up.stop()
}

// The lines of Python that are printed read from a backup, and are refused to write.
func TestBackupOfInPython(t *testing.T) {
	up := start(t, "--import", sample(t, "site.fs"), "--name", "up")
	_, masters, _, _ := up.ready()
	p := start(t, "--backup-of", "up@"+masters)
	p.ready()
	p.says("done: everything up to transaction ")
	const write = `
import transaction
db.open().root()['x'] = 1
try:
    transaction.commit()
except Exception as e:
    print(type(e).__name__)
`
	if got, want := p.paste(write), siteRoot+"ReadOnlyError\n"; got != want {
		t.Errorf("python says %q, want %q", got, want)
	}
	p.stop()
	up.stop()
}

func TestBackupOfRefused(t *testing.T) {
	up := start(t, "--name", "up", "--zeo", "none")
	_, masters, _, _ := up.ready()
	for _, bad := range []struct {
		code int
		want string
		args []string
	}{
		{2, "there is no @; want NAME@HOST:PORT[,HOST:PORT...]: the name of the cluster", []string{"--backup-of", "127.0.0.1:10000"}},
		{2, "there is no name before the @", []string{"--backup-of", "@127.0.0.1:10000"}},
		{2, "there is no address after the @", []string{"--backup-of", "up@"}},
		{2, "is not a number from 0 to 65535", []string{"--backup-of", "up@127.0.0.1:70000"}},
		{2, "--import does not go with --backup-of", []string{"--backup-of", "up@" + masters, "--import", sample(t, "01-basic.fs")}},
		{2, "--partitions does not go with --backup-of", []string{"--backup-of", "up@" + masters, "-p", "12"}},
		{2, "needs another name", []string{"--backup-of", "up@" + masters, "--name", "up"}},
		{1, `this is cluster "up", not "other"`, []string{"--backup-of", "other@" + masters}},
	} {
		fails(t, bad.code, bad.want, append(bad.args, "--dir", filepath.Join(t.TempDir(), "db"))...)
	}
	up.stop()
}

// With certificates the upstream cluster is asked, and followed, with them.
func TestBackupOfWithTLS(t *testing.T) {
	tls := certificates(t)
	up := start(t, append(tls, "--name", "up", "-p", "3", "--zeo", "none")...)
	_, masters, _, _ := up.ready()
	p := start(t, append(tls, "--backup-of", "up@"+masters, "--zeo", "none")...)
	p.ready()
	p.says("done: the upstream cluster has no transaction yet.")
	p.stop()
	up.stop()
}
