package proctest

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// The order to write the logs disturbs no client: a transaction that is
// voted through a neozeo is committed, and the neozeo has written its log too.
func TestFlushLog(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Options{})
	addr := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	file := filepath.Join(t.TempDir(), "neozeo.log")
	door := Start(t, "neozeo", "-c", c.Name, "-m", c.Masters, "-b", addr, "-l", file)
	waitForPort(t, addr)
	cl, err := zeotest.Register(addr, false)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	const txn = 7
	if _, err := cl.Vote(txn, zeotest.Store{OID: 1, Data: []byte("voted before the logs are written")}); err != nil {
		t.Fatal(err)
	}
	if out, errOut, status := c.Ctl(t, "flush_log"); status != 0 || out+errOut != "" {
		t.Fatalf("neoctl flush_log: exit status %d, printed %q, %q", status, out, errOut)
	}
	for deadline := time.Now().Add(patience); !hasPacket(t, file, &proto.FlushLog{}); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the log of neozeo has no FlushLog")
		}
	}
	if _, err := cl.Call("tpc_finish", txn); err != nil {
		t.Errorf("the voted transaction was not committed: %v", err)
	}
	wantRunning(t, append(c.Nodes(), door))
}

// hasPacket reports whether a log database has a packet that was received.
func hasPacket(t *testing.T, file string, p proto.Packet) bool {
	t.Helper()
	for e, err := range nodelog.Read(t.Context(), file, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Packet != nil && !e.Packet.Sent && e.Packet.Code == p.Code() {
			return true
		}
	}
	return false
}
