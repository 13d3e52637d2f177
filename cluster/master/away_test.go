package master

import (
	"fmt"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/parting"
	"github.com/neozodb/neo/cluster/proto"
)

// A client that cannot be served is told without which storages, and why they have ended,
// until they are back.
func TestAwaited(t *testing.T) {
	s := newSim(t)
	s.quiet = true
	s.command("running partitions=4 s1 s2 c1")
	says := func(want string) {
		t.Helper()
		if got := s.m.awaited(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	s1, s2 := s.m.nodes.ByID(1).Addr, s.m.nodes.ByID(2).Addr
	says("")
	s.receive(s.peers["s2"], (&parting.Message{Reason: "commit: disk full\nmore"}).Packet())
	says("")
	s.command("s2 lost")
	says(fmt.Sprintf(": 2 of 4 partitions cannot be read without S2 (%v), which is gone: commit: disk full", s2))
	s.command("s1 lost") // says nothing
	says(fmt.Sprintf(": 4 of 4 partitions cannot be read without S1 (%v), which is gone; S2 (%v), which is gone: commit: disk full", s1, s2))
	s.command("s2 storage nid=S2")
	if got := s.m.awaited(); strings.Contains(got, "S2") || strings.Contains(got, "disk full") {
		t.Errorf("S2 is back: %s", got)
	}
}

// Only a storage that can say why it ends is asked to.
func TestPartingIsAskedFor(t *testing.T) {
	for _, extra := range []map[string]proto.Value{nil, {parting.Extension: int64(1)}} {
		if got := parseExtra(proto.Storage, extra).parts; got != (extra != nil) {
			t.Errorf("%v: %v", extra, got)
		}
		if parseExtra(proto.Client, extra).parts {
			t.Errorf("a client with %v is asked", extra)
		}
	}
}
