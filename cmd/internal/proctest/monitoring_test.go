package proctest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/store/storetest"
)

// get asks a program that is watched at an address, once it listens.
func get(t testing.TB, addr, path string) (code int, body string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			continue
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
}

// waitProbe waits until a probe answers so.
func waitProbe(t testing.TB, addr, path string, code int, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		got, body := get(t, addr, path)
		if got == code && strings.Contains(body, text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s%s: %d %q, want %d %q", addr, path, got, body, code, text)
		}
	}
}

// promtool runs promtool, which must find nothing.
func promtool(t testing.TB, stdin string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		storetest.Missing(t, "promtool is not installed: make install-monitoring-tools")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil || stdin != "" && len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Each program is alive and ready while it serves, says why if it does not, and its metrics are
// as Prometheus wants them.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	addr := func() string { return fmt.Sprintf("127.0.0.1:%d", FreePort(t)) }
	masterAt, adminAt, storageAt, zeoAt, simpleAt, zeo := addr(), addr(), addr(), addr(), addr(), addr()
	dir := t.TempDir()
	c := StartCluster(t, Options{Storage: []string{"-a", "SQLite", "-d", filepath.Join(dir, "db.sqlite"), "--monitor", storageAt},
		Master: []string{"--monitor", masterAt}, Admin: []string{"--monitor", adminAt}})
	door := Start(t, "neozeo", "-c", c.Name, "-m", c.Masters, "-b", zeo, "--monitor", zeoAt)
	Start(t, "neosimple", "-q", "--monitor", simpleAt)
	c.migrate(t, filepath.Join(samples, "02-undo.fs"))
	for program, x := range map[string]struct{ addr, metrics string }{
		"neomaster":  {masterAt, `neo_cluster_state\{cluster="test",node="M1",state="RUNNING"\} 1\n|neo_master_transactions_committed_total\{cluster="test",node="M1"\} [1-9]`},
		"neostorage": {storageAt, `neo_storage_stores_total\{cluster="test",node="S1"\} [1-9]|neo_storage_commit_duration_seconds_count\{cluster="test",node="S1"\} [1-9]`},
		"neoadmin":   {adminAt, `neo_admin_connected\{cluster="test",node="A1"\} 1\n`},
		"neozeo":     {zeoAt, `neo_client_connected\{cluster="test",node="zeo",storage="1"\} 1\n|neo_zeo_clients\{cluster="test",node="zeo",storage="1"\} 0\n`},
		"neosimple":  {simpleAt, `neo_storage_operational\{cluster="neo",node="S1"\} 1\n|neo_zeo_out_of_service\{cluster="neo",node="zeo",storage="1"\} 0\n`},
	} {
		t.Run(program, func(t *testing.T) {
			waitProbe(t, x.addr, "/readyz", 200, "ready\n")
			waitProbe(t, x.addr, "/healthz", 200, "alive\n")
			code, body := get(t, x.addr, "/metrics")
			for _, want := range append(strings.Split(x.metrics, "|"), `go_goroutines `, `process_resident_memory_bytes `, `neo_node_ready\{[^}]*\} 1\n`) {
				if code != 200 || !regexp.MustCompile(want).MatchString(body) {
					t.Errorf("%d: nothing like %s in the metrics", code, want)
				}
			}
			promtool(t, body, "check", "metrics")
		})
	}
	// A master that stands by is ready, and tells nothing of the cluster, as it knows nothing.
	standbyAt := addr()
	standby := Start(t, "neomaster", "-c", c.Name, "-m", c.Masters, "-b", "127.0.0.1:0", "--monitor", standbyAt)
	waitProbe(t, standbyAt, "/readyz", 200, "ready\n")
	if _, body := get(t, standbyAt, "/metrics"); !strings.Contains(body, `neo_master_primary{cluster="test",node="M2"} 0`) || strings.Contains(body, "neo_cluster_") {
		t.Errorf("a master that stands by exports\n%s", body)
	}
	if err := standby.Stop(t); err != nil {
		t.Error(err)
	}
	// Without a storage the cluster is of no use. All live.
	c.Storages[0].Kill()
	waitProbe(t, masterAt, "/readyz", 503, "the cluster is RECOVERING")
	waitProbe(t, zeoAt, "/readyz", 503, "storage 1: not connected to a running cluster\n")
	waitProbe(t, adminAt, "/readyz", 200, "")
	c.Master.Kill()
	waitProbe(t, adminAt, "/readyz", 503, "not connected to the primary master\n")
	for _, addr := range []string{adminAt, zeoAt} {
		waitProbe(t, addr, "/healthz", 200, "alive\n")
	}
	for _, p := range []*Process{door, c.AdminP} {
		if err := p.Stop(t); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

// An address that is in use, or is none, is refused before a program does anything.
func TestMonitorAddressIsRefused(t *testing.T) {
	t.Parallel()
	used := Start(t, "neosimple", "-q", "--monitor", "127.0.0.1:0", "--log-level", "info")
	var addr string
	for deadline := time.Now().Add(patience); addr == ""; time.Sleep(20 * time.Millisecond) {
		if m := regexp.MustCompile(`listening on.*addr=(\S+).*monitoring`).FindStringSubmatch(used.Output()); m != nil {
			addr = m[1]
		} else if time.Now().After(deadline) {
			t.Fatalf("no address in %s", used.Output())
		}
	}
	database := filepath.Join(t.TempDir(), "s.sqlite")
	for program, args := range map[string][]string{
		"neomaster": {"-c", "x", "-b", "127.0.0.1:0"}, "neoadmin": {"-c", "x", "-b", "127.0.0.1:0"},
		"neostorage": {"-c", "x", "-a", "SQLite", "-d", database}, "neozeo": {"-c", "x", "-b", "127.0.0.1:0"}, "neosimple": {},
	} {
		for monitor, want := range map[string]string{addr: "address already in use: each node needs an address of its own", "9147": `"9147" is not HOST:PORT`} {
			out, err := exec.CommandContext(t.Context(), Bin(t, program), append(args, "--monitor", monitor)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--monitor: ") || !strings.Contains(string(out), want) {
				t.Errorf("%s --monitor %s: %v, %s", program, monitor, err, out)
			}
		}
	}
	if _, err := os.Stat(database); err == nil {
		t.Error("the database was made")
	}
}

func TestPrometheusRules(t *testing.T) {
	t.Parallel()
	rules, err := filepath.Glob("../../../contrib/prometheus/*.rules.yml")
	if err != nil || len(rules) < 2 {
		t.Fatalf("%d files of rules, %v", len(rules), err)
	}
	promtool(t, "", append([]string{"check", "rules"}, rules...)...)

	// Each alert is raised by what it is for, and none by a cluster that is well.
	path, err := filepath.Abs("../../../contrib/prometheus/neo.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := strings.Count(string(read(t, path)), "- alert:")
	test := filepath.Join(t.TempDir(), "test.yml")
	text := strings.NewReplacer("RULES", path, "BACKUPS", filepath.Join(filepath.Dir(path), "neobackup.rules.yml"), "value: ALERTS", fmt.Sprint("value: ", alerts)).Replace(string(read(t, "testdata/neo.rules.test.yml")))
	if err := os.WriteFile(test, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "test", "rules", test)
}
