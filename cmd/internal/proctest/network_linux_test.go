package proctest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// network is a network of hosts on this machine: network namespaces, linked by a
// bridge in a namespace of its own. The test is one of the hosts. It takes root and
// iproute2, as on the machines of CI.
type network struct {
	prefix string // of the names of namespaces and links
	subnet string // the first three numbers of the addresses
	hosts  int
}

// newNetwork makes a network without hosts but the test itself.
func newNetwork(t testing.TB) *network {
	t.Helper()
	pid := os.Getpid()
	n := &network{
		prefix: fmt.Sprintf("n%x", pid),
		subnet: fmt.Sprintf("10.%d.%d", 128+pid>>8%64, pid%256),
	}
	if out, err := exec.Command("ip", "netns", "add", n.prefix).CombinedOutput(); err != nil {
		zeotest.Missing(t, "making a network (run this test as root, with iproute2): %v: %s", err, out)
	}
	t.Cleanup(func() { ip(t, "netns", "del", n.prefix) })
	ip(t, "-n", n.prefix, "link", "add", "hub", "type", "bridge")
	ip(t, "-n", n.prefix, "link", "set", "hub", "up")
	ip(t, "link", "add", n.prefix, "type", "veth", "peer", "name", "port1", "netns", n.prefix)
	ip(t, "addr", "add", n.subnet+".1/24", "dev", n.prefix)
	ip(t, "link", "set", n.prefix, "up")
	n.plug(t, 1)
	n.hosts = 1
	return n
}

// host is a machine in a [network].
type host struct {
	net  *network
	n    int
	addr string // IPv4 address
}

// add adds a host.
func (n *network) add(t testing.TB) *host {
	t.Helper()
	n.hosts++
	h := &host{n, n.hosts, fmt.Sprintf("%s.%d", n.subnet, n.hosts)}
	ip(t, "netns", "add", h.name())
	t.Cleanup(func() { ip(t, "netns", "del", h.name()) })
	ip(t, "-n", h.name(), "link", "add", "eth0", "type", "veth", "peer", "name", h.port(), "netns", n.prefix)
	ip(t, "-n", h.name(), "addr", "add", h.addr+"/24", "dev", "eth0")
	ip(t, "-n", h.name(), "link", "set", "eth0", "up")
	ip(t, "-n", h.name(), "link", "set", "lo", "up")
	n.plug(t, h.n)
	return h
}

func (n *network) plug(t testing.TB, host int) {
	port := fmt.Sprint("port", host)
	ip(t, "-n", n.prefix, "link", "set", port, "master", "hub")
	ip(t, "-n", n.prefix, "link", "set", port, "up")
}

func (h *host) name() string { return fmt.Sprintf("%s-%d", h.net.prefix, h.n) }
func (h *host) port() string { return fmt.Sprint("port", h.n) }

// cut takes the host off the network: what is sent from or to it is lost, and
// neither side is told.
func (h *host) cut(t testing.TB) { ip(t, "-n", h.net.prefix, "link", "set", h.port(), "nomaster") }

// mend ends a cut.
func (h *host) mend(t testing.TB) {
	ip(t, "-n", h.net.prefix, "link", "set", h.port(), "master", "hub")
}

// start starts a program of the module on the host, as [Start] does.
func (h *host) start(t testing.TB, program string, args ...string) *Process {
	t.Helper()
	return start(t, program, "ip", append([]string{"netns", "exec", h.name(), Bin(t, program)}, args...))
}

// ip runs the program of iproute2.
func ip(t testing.TB, args ...string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("ip", args...)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
}
