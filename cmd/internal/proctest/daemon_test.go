package proctest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/neozodb/neo/backup/store/storetest"
)

// section returns what the configuration says of a repository, under another name.
func (r *repository) section(t testing.TB, name string) string {
	t.Helper()
	return strings.Replace(string(read(t, r.conf)), "[repository test]", "[repository "+name+"]", 1)
}

// notices collects what a webhook is told.
type notices struct {
	mu   sync.Mutex
	list []notice
}

type notice struct{ Repository, Alarm, Job, State, Text, Hint string }

func (n *notices) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var x notice
	if err := json.NewDecoder(r.Body).Decode(&x); err != nil {
		w.WriteHeader(http.StatusBadRequest)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, x)
}

// find returns the notice of an alarm.
func (n *notices) find(repository, alarm, job, state string) *notice {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, x := range n.list {
		if x.Repository == repository && x.Alarm == alarm && x.Job == job && x.State == state {
			return &x
		}
	}
	return nil
}

// serveMail is an SMTP server until the test ends; mails returns all that it was told.
func serveMail(t testing.TB) (addr string, mails func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var got lockedBuffer
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				say := func(s string) { fmt.Fprintf(conn, "%s\r\n", s) } // a client that is gone is no fault here
				say("220 ready")
				data := false
				for s := bufio.NewScanner(conn); s.Scan(); {
					line := s.Text()
					fmt.Fprintln(&got, line)
					switch {
					case data && line != ".":
					case data:
						data = false
						say("250 taken")
					case line == "DATA":
						data = true
						say("354 go on")
					case line == "QUIT":
						say("221 bye")
						return
					default:
						say("250 ok")
					}
				}
			}()
		}
	}()
	return l.Addr().String(), got.String
}

// listenNotify is a service manager; told returns all that it was told.
func listenNotify(t testing.TB) (path string, told func() string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "n") // a path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	var got lockedBuffer
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			fmt.Fprintf(&got, "%s\n", b[:n])
		}
	}()
	return path, got.String
}

// scrape returns the metrics of a daemon; nil while it does not answer.
func scrape(t testing.TB, addr string) map[string]*dto.MetricFamily {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(string(b)))
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return families
}

// value returns a metric with these labels, "name=value" each.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) (float64, bool) {
	f := families["neobackup_"+name]
	if f == nil {
		return 0, false
	}
metrics:
	for _, m := range f.Metric {
		has := map[string]bool{}
		for _, l := range m.Label {
			has[l.GetName()+"="+l.GetValue()] = true
		}
		for _, l := range labels {
			if !has[l] {
				continue metrics
			}
		}
		switch {
		case m.Gauge != nil:
			return m.Gauge.GetValue(), true
		case m.Counter != nil:
			return m.Counter.GetValue(), true
		case m.Histogram != nil:
			return float64(m.Histogram.GetSampleCount()), true
		}
	}
	return 0, false
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// The daemon follows a cluster into a bucket and a Data.fs that grows into a directory, makes up for a drill, a check and a
// verification that were missed, serves metrics, goes on after a kill, stops at a source that another writer has taken over, with
// notices by webhook and mail, while the other one goes on, and ends in order.
func TestDaemon(t *testing.T) {
	s3 := storetest.GoFakeS3(t)
	t.Setenv("NEOBACKUP_S3_ACCESS_KEY", s3.AccessKey)
	t.Setenv("NEOBACKUP_S3_SECRET_KEY", s3.SecretKey)
	socket, told := listenNotify(t)
	var hooks notices
	hook := httptest.NewServer(&hooks)
	t.Cleanup(hook.Close)
	smtp, mails := serveMail(t)

	c := StartCluster(t, Options{Storages: 1, Partitions: 4})
	must(t, "neomigrate", "-q", "-c", c.Name, samples+"/site.fs", c.Masters)
	whole := read(t, samples+"/site.fs")
	source := write(t, "Data.fs", whole)
	file := newRepository(t, "file://"+source, "", "--set", "heartbeat=5s", "--set", "max_rpo=1h")
	file.run(t, "snapshot")
	early := read(t, file.restore(t, "--at", "2026-01-15"))
	file = newRepository(t, "file://"+source, "", "--set", "heartbeat=5s", "--set", "max_rpo=1h")
	if len(early) == 0 || string(whole[:len(early)]) != string(early) {
		t.Fatal("an earlier state is not the beginning of the file")
	}
	if err := os.WriteFile(source, early, 0o600); err != nil {
		t.Fatal(err)
	}
	cluster := newRepository(t, "neo://"+c.Name+"@"+c.Masters, s3.URL(s3.Bucket(t, false), "prod"), "--set", "interval=200ms", "--set", "heartbeat=1s", "--set", "proof_max_age=8d")

	dir := t.TempDir()
	addr := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	conf := filepath.Join(dir, "both.conf")
	text := cluster.section(t, "cluster") + file.section(t, "file")
	for name, r := range map[string]*repository{"cluster": cluster, "file": file} {
		key := filepath.Join(dir, name+"-drill.key")
		verifier, _ := must(t, "neobackup", "key", "sign", "drill", key, "-q", "-f", r.conf)
		trusted := "sign_key: " + filepath.Join(filepath.Dir(r.conf), "test-writer.key") + "\nverify_keys: "
		if !strings.Contains(text, trusted) {
			t.Fatalf("%s\nhas no %s", text, trusted)
		}
		text = strings.Replace(text, trusted, trusted+strings.TrimSpace(verifier)+" ", 1)
		text += fmt.Sprintf("[drill %s]\nidentity: %s\nsign_key: %s\nscratch: %s\n", name, r.identity, key, t.TempDir())
	}
	text += "[schedule cluster]\nfollow: yes\ndrill: 0 5 * * 0\nverify: 30 3 * * * --read-data=rotate/30\ncheck: @daily\n[schedule file]\nfollow: yes\ncheck: @daily\n" +
		"[notify]\nwebhook: " + hook.URL + "/?token=secret\nemail: ops@example.org\nsmtp: " + smtp + "\n[metrics]\nlisten: " + addr + "\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster.conf, file.conf = conf, conf
	head := func(name string) string {
		var info struct {
			Status string
			Head   struct{ TID string }
		}
		out, _, _ := Run(t, "neobackup", "info", "-r", name, "--json", "-f", conf)
		if err := json.Unmarshal([]byte(out), &info); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return info.Head.TID
	}

	// The daemon ran last week: its jobs were missed.
	state := filepath.Join(filepath.Dir(cluster.identity), "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	week := time.Now().Add(-9 * 24 * time.Hour).UTC().Format(time.RFC3339)
	if err := os.WriteFile(filepath.Join(state, "daemon.json"), fmt.Appendf(nil, `{"v":1,"repository":"cluster","jobs":{"drill":{"from":%q},"verify":{"from":%q},"check":{"from":%q}}}`, week, week, week), 0o600); err != nil {
		t.Fatal(err)
	}
	work := startWorkload(t, c, 2)
	waitFor(t, "commits", func() bool { return work.acknowledged() > 10 })
	cluster.run(t, "snapshot", "-r", "cluster") // a drill of nothing fails
	t.Setenv("NOTIFY_SOCKET", socket)
	p := Start(t, "neobackup", "daemon", "-f", conf)
	waitFor(t, "READY=1", func() bool { return strings.Contains(told(), "READY=1\n") })
	waitFor(t, "a proof", func() bool {
		_, ok := value(scrape(t, addr), "proof_tid_seconds", "repository=cluster")
		if n := hooks.find("cluster", "failed", "drill", "begin"); n != nil || !p.Running() {
			t.Fatalf("the drill: %+v", n)
		}
		return ok
	})
	for _, job := range []string{"check", "verify", "drill"} {
		waitFor(t, job, func() bool {
			_, ok := value(scrape(t, addr), "job_last_success_seconds", "repository=cluster", "job="+job)
			return ok
		})
		waitFor(t, "the notices of "+job, func() bool {
			return hooks.find("cluster", "missed", job, "begin") != nil && hooks.find("cluster", "missed", job, "end") != nil
		})
	}
	waitFor(t, "the beginning of the file", func() bool { return head("file") != "" })
	// The repository is stored before the metrics tell of it.
	for _, name := range []string{"put_total", "get_total", "list_total", "uploaded_bytes_total", "flush_duration_seconds", "stored_bytes", "manifest_seq", "head_tid_seconds", "estimated_usd_month"} {
		for _, repository := range []string{"cluster", "file"} {
			waitFor(t, name+" of "+repository, func() bool {
				v, ok := value(scrape(t, addr), name, "repository="+repository)
				return ok && v > 0
			})
		}
	}
	for _, repository := range []string{"cluster", "file"} {
		waitFor(t, "source_connected of "+repository, func() bool {
			v, ok := value(scrape(t, addr), "source_connected", "repository="+repository)
			return ok && v == 1
		})
	}
	waitFor(t, "rpo_seconds of an idle file", func() bool {
		v, ok := value(scrape(t, addr), "rpo_seconds", "repository=file")
		return ok && v <= 10
	})
	says(t, "info", cluster.run(t, "info", "-r", "cluster"), `daemon +runs on this host`, `last drill +.* UTC, ok`, `next verify +.* 03:30 UTC`, `pro(ved|ven)`)
	f, err := os.OpenFile(source, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(whole[len(early) : len(early)+len(whole[len(early):])/2]); err != nil {
		t.Fatal(err)
	}

	// What was acknowledged before a kill is there, and the next start goes on.
	p.Kill()
	before := head("cluster")
	if err := p.Restart(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "more of the cluster", func() bool { return head("cluster") > before })
	says(t, "info", cluster.run(t, "info", "-r", "cluster"), `daemon +runs on this host`, `last drill +.* UTC, ok`)
	if err := syscall.Kill(p.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}

	// Another host takes over the cluster.
	other := filepath.Join(t.TempDir(), "other")
	waitFor(t, "the fence", func() bool {
		Run(t, "neobackup", "snapshot", "-f", conf, "-r", "cluster", "--set", "state_dir="+other) // one of both is fenced
		time.Sleep(300 * time.Millisecond)
		return hooks.find("cluster", "fenced", "", "begin") != nil
	})
	if n := hooks.find("cluster", "fenced", "", "begin"); !strings.Contains(n.Text, "another writer has taken over") || !strings.Contains(n.Hint, "systemctl restart neobackup") {
		t.Errorf("notice %+v", n)
	}
	waitFor(t, "the mail", func() bool { return strings.Contains(mails(), "PROBLEM: fenced") })
	says(t, "mail", mails(), `RCPT TO:<ops@example.org>`, `From: "NEO backup" <`, `What to do: one writer at a time`)
	if v, ok := value(scrape(t, addr), "fenced", "repository=cluster"); !ok || v != 1 {
		t.Errorf("fenced: %v, %v", v, ok)
	}
	if _, err := f.Write(whole[len(early)+len(whole[len(early):])/2:]); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	waitFor(t, "the rest of the file", func() bool { return head("file") == "040660ee3597d844" })
	wantRunning(t, []*Process{p})
	if out := p.Output(); strings.Contains(out, "token=secret") || !strings.Contains(out, "SIGHUP: the configuration is read at the start only") {
		t.Errorf("the daemon printed\n%s", out)
	}
	work.finish(t)
	if err := p.Stop(t); err != nil {
		t.Errorf("the daemon, told to stop, ended with %v", err)
	}
	waitFor(t, "STOPPING=1", func() bool { return strings.Contains(told(), "STOPPING=1\n") })
	cluster.run(t, "snapshot", "-r", "cluster", "--set", "state_dir="+other)
	export := filepath.Join(dir, "export.fs")
	c.export(t, export)
	sameFiles(t, cluster.restore(t, "-r", "cluster"), export)
	sameFiles(t, file.restore(t, "-r", "file"), source)
	says(t, "info", cluster.run(t, "info", "-r", "cluster"), `daemon +does not run on this host; it did until`, `alarm +since .*the source is not followed any more`, `due verify`)
}
