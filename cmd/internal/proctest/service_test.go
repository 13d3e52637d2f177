package proctest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// notified is a service manager to which a program tells how it is.
type notified struct {
	conn *net.UnixConn
	all  string
}

// newNotified makes programs that are started from now on tell it.
func newNotified(t *testing.T) *notified {
	t.Helper()
	dir, err := os.MkdirTemp("", "neo-notify-") // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return &notified{conn: c}
}

// want waits until something that matches was told.
func (n *notified) want(t *testing.T, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	n.conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4096)
	for !re.MatchString(n.all) {
		k, err := n.conn.Read(b)
		if err != nil {
			t.Fatalf("not told: %s; but:\n%s", pattern, n.all)
		}
		n.all += string(b[:k]) + "\n"
	}
}

// Each program of a cluster tells the service manager when it is ready, what it does, and that it stops.
func TestNotify(t *testing.T) {
	free := func() string { return fmt.Sprintf("127.0.0.1:%d", FreePort(t)) }
	masters, admin, dir := free(), free(), t.TempDir()
	stopped := func(p *Process, n *notified) {
		t.Helper()
		p.end(15)
		n.want(t, `(?m)^STOPPING=1$`)
		if err := p.Wait(t, patience); err != nil {
			t.Error(err)
		}
	}
	n1 := newNotified(t)
	// A storage and an admin are ready although there is no master yet: both wait for it.
	storage := Start(t, "neostorage", "-c", "n", "-m", masters, "-a", "SQLite", "-d", filepath.Join(dir, "s.sqlite"))
	n1.want(t, `READY=1\nSTATUS=listening at 127\.0\.0\.1:\d+, looking for the primary master of cluster n\n`)
	n2 := newNotified(t)
	adminP := Start(t, "neoadmin", "-c", "n", "-m", masters, "-b", admin)
	n2.want(t, `READY=1\nSTATUS=an admin of cluster n at `+admin)
	n3 := newNotified(t)
	// neozeo is not: it has nothing to serve.
	zeo := Start(t, "neozeo", "-c", "n", "-m", masters, "-b", "127.0.0.1:0")
	n3.want(t, `STATUS=waiting for what is to be served\n`)
	n4 := newNotified(t)
	master := Start(t, "neomaster", "-c", "n", "-b", masters, "-m", masters, "-A", "1", "-p", "2")
	n4.want(t, `READY=1\nSTATUS=a master of cluster n at `+masters)
	n1.want(t, `(?m)^STATUS=S1 of cluster n$`)
	n3.want(t, `READY=1\nSTATUS=serving ZEO clients at \[127\.0\.0\.1:\d+\]\n`)
	if n3.all != regexp.MustCompile(`(?s)^STATUS=waiting.*`).FindString(n3.all) {
		t.Errorf("neozeo was ready before the cluster:\n%s", n3.all)
	}
	stopped(zeo, n3)
	stopped(adminP, n2)
	stopped(master, n4)
	stopped(storage, n1)

	n5 := newNotified(t)
	simple := Start(t, "neosimple", "-q", "-d", filepath.Join(dir, "simple"), "--zeo", "none")
	n5.want(t, `READY=1\nSTATUS=ready name=neo masters=`)
	stopped(simple, n5)
}

// units is where the units of systemd are.
const units = "../../../contrib/systemd/"

// The units start what there is, with options that it has; systemd understands them, and they give it few rights.
func TestUnits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var paths []string
	for name, want := range map[string]string{
		"neomaster.service":   "neomaster -f /etc/neo/neo.conf",
		"neostorage@.service": "neostorage -f /etc/neo/neo.conf -s %i",
		"neoadmin.service":    "neoadmin -f /etc/neo/neo.conf",
		"neozeo.service":      "neozeo -f /etc/neo/neo.conf",
		"neosimple.service":   "neosimple -q -d /var/lib/neo/simple -m 127.0.0.1:10000 --admin 127.0.0.1:9999 --zeo 127.0.0.1:8100 $OPTIONS",
	} {
		text := string(read(t, units+name))
		for _, line := range []string{"ExecStart=/usr/local/bin/" + want, "Type=notify", "Restart=on-failure", "RestartPreventExitStatus=2", "Environment=GOTRACEBACK=crash", "LimitCORE=0", "StartLimitIntervalSec=0",
			"ProtectSystem=strict", "NoNewPrivileges=yes", "StateDirectory=neo", "User=neo", "LimitNOFILE=65536"} {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("%s has no %s", name, line)
			}
		}
		program, _, _ := strings.Cut(want, " ")
		// --version comes after the options are understood.
		args := strings.Fields(strings.NewReplacer("$OPTIONS", "", "%i", "storage1").Replace(want))[1:]
		if out, errOut, status := Run(t, program, append(args, "--version")...); status != 0 || !strings.HasPrefix(out, program+" ") {
			t.Errorf("%s: %s%s", want, out, errOut)
		}
		path := filepath.Join(dir, strings.Replace(name, "@", "@storage1", 1))
		text = strings.ReplaceAll(text, "/usr/local/bin/"+program, Bin(t, program)) // it is not installed here
		text = strings.ReplaceAll(text, "man:"+program+"(1) ", "")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	analyze := tool(t, "systemd-analyze")
	if out, err := exec.CommandContext(t.Context(), analyze, append([]string{"verify"}, paths...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	for _, path := range paths {
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", path).CombinedOutput()
		if strings.Contains(string(out), "unrecognized option") {
			t.Log("this systemd-analyze is too old to judge a file")
			continue
		}
		m := regexp.MustCompile(`Overall exposure level for .*: ([0-9.]+)`).FindSubmatch(out)
		if err != nil || m == nil {
			t.Errorf("%v\n%s", err, out)
			continue
		}
		t.Logf("%s: exposure %s", filepath.Base(path), m[1])
		if level, err := strconv.ParseFloat(string(m[1]), 64); err != nil || level > 2 {
			t.Errorf("%s: exposure %s, want at most 2", path, m[1])
		}
	}
}

// A node that crashes is started again by its unit, which does not do so after exit status 2, that of wrong options.
func TestCrashIsNoUsageError(t *testing.T) {
	t.Parallel()
	environment := regexp.MustCompile(`(?m)^Environment=(.*)$`).FindStringSubmatch(string(read(t, units+"neoadmin.service")))
	if environment == nil {
		t.Fatal("the unit sets nothing")
	}
	cmd := exec.CommandContext(t.Context(), Bin(t, "neoadmin"), "-c", "n", "-m", fmt.Sprintf("127.0.0.1:%d", FreePort(t)), "-b", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), environment[1])
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening on") {
	}
	// The runtime ends a program upon this signal as upon a panic.
	if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	err = cmd.Wait()
	state, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !state.Signaled() {
		t.Errorf("it ends with %v, want a signal", err)
	}
}
