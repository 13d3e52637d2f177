package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/writer"
)

// full is a daemon of which each metric is known.
func full(t *testing.T) *daemon {
	t.Helper()
	now := time.Now()
	w := newWorld(t, two+"max_rpo: 1m\nproof_max_age: 8d\n[schedule b]\nfollow: yes\ncheck: @daily\nextend_locks: @daily\n")
	d := &daemon{Config: Config{Now: time.Now, Flushes: NewFlushes()}, log: slog.New(slog.DiscardHandler)}
	d.Flushes.WithLabelValues("b").Observe(0.1)
	for _, set := range w.section().Repositories {
		left := 5 * 24 * time.Hour
		r := &repo{Repository: Repository{Settings: set}, d: d, name: set.Name, st: &Status{Jobs: map[string]*JobRun{}}, alarms: alarms{}, errors: map[string]int64{"store": 1}, log: d.log}
		if set.Schedule != nil {
			r.follows, r.following = true, true
			for i := range set.Schedule.Jobs {
				r.addJob(&set.Schedule.Jobs[i], now)
			}
			r.st.Jobs["check"].Last, r.st.Jobs["check"].Good = now, now
		}
		r.Writer = func() (writer.Stats, bool) {
			return writer.Stats{Head: 5 << 50, Asof: now, Manifest: 3, Connected: true}, true
		}
		r.sight = &Sight{Head: 5 << 50, Asof: now}
		r.Requests = func() store.Stats { return store.Stats{Puts: 1} }
		r.proof = &backup.StoredProof{Proof: &snapshot.Proof{TID: 4 << 50}, Modified: now}
		r.lockLeft, r.lockSeen, r.cost = &left, now, 1
		r.alarms.raise(now, RPO, "", "x", "")
		d.repos = append(d.repos, r)
	}
	return d
}

// scrape returns the metrics, by name.
func scrape(t *testing.T, d *daemon) map[string]int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer d.serve(l)()
	body := get(t, "http://"+l.Addr().String()+"/metrics", http.StatusOK)
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	names := map[string]int{}
	for name, f := range families {
		names[name] = len(f.Metric)
		for _, m := range f.Metric {
			has := false
			for _, l := range m.Label {
				has = has || l.GetName() == label
			}
			if !has && name != "neobackup_notice_errors_total" {
				t.Errorf("%s has no label %s", name, label)
			}
		}
	}
	return names
}

func get(t *testing.T, url string, status int) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(b)
}

// All metrics are there, in the form of Prometheus.
func TestMetrics(t *testing.T) {
	names := scrape(t, full(t))
	for _, name := range strings.Fields(`head_tid_seconds rpo_seconds source_connected flush_duration_seconds put_total get_total list_total errors_total
		uploaded_bytes_total stored_bytes open_segments spool_bytes manifest_seq proof_age_seconds proof_tid_seconds drill_duration_seconds
		drill_first_read_seconds damage_total lock_min_remaining_seconds estimated_usd_month fenced alarm job_last_run_seconds job_last_success_seconds
		job_running notice_errors_total`) {
		if names["neobackup_"+name] == 0 {
			t.Errorf("%s is missing", name)
		}
		delete(names, "neobackup_"+name)
	}
	if len(names) > 0 {
		t.Errorf("more than is known: %v", names)
	}
}

// A repository whose name is not UTF-8, as in a file of another encoding, does not end the daemon
// when its metrics are read.
func TestNameOfAnyBytes(t *testing.T) {
	d := full(t)
	before := scrape(t, d)
	for _, r := range d.repos {
		r.name += "\xe9"
	}
	d.Flushes.WithLabelValues(Label("caf\xe9")).Observe(1)
	before["neobackup_flush_duration_seconds"]++
	if diff := cmp.Diff(before, scrape(t, d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The rules for Prometheus are YAML, and name metrics that exist.
func TestRules(t *testing.T) {
	b, err := os.ReadFile("../../contrib/prometheus/neobackup.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(b, &rules); err != nil {
		t.Fatal(err)
	}
	known := scrape(t, full(t))
	n := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			n++
			if r.Alert == "" || r.Expr == "" || r.Annotations["summary"] == "" {
				t.Errorf("rule %+v", r)
			}
			found := regexp.MustCompile(`neobackup_[a-z_]+`).FindAllString(r.Expr, -1)
			if len(found) == 0 && !strings.Contains(r.Expr, `job="neobackup"`) {
				t.Errorf("%s is about nothing: %s", r.Alert, r.Expr)
			}
			for _, name := range found {
				base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
				if known[name] == 0 && known[base] == 0 {
					t.Errorf("%s: there is no %s", r.Alert, name)
				}
			}
		}
	}
	if n < 6 {
		t.Errorf("%d rules", n)
	}
}

// The health is that of the daemon: alarms do not make it fail, a goroutine that does not turn does.
func TestHealth(t *testing.T) {
	d := full(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer d.serve(l)()
	url := "http://" + l.Addr().String() + "/healthz"
	for _, r := range d.repos {
		r.ticked = time.Now()
	}
	if got := get(t, url, http.StatusOK); got != "a: x\nb: x\n" {
		t.Errorf("%q", got)
	}
	d.repos[1].ticked = time.Now().Add(-time.Hour)
	if got := get(t, url, http.StatusServiceUnavailable); got != "a: x\nb: the daemon is stuck\n" {
		t.Errorf("%q", got)
	}
}

// A daemon that cannot serve what it was asked to serve has an error, and one that ends closes its listener.
func TestListener(t *testing.T) {
	w := newWorld(t, "[repository a]\nurl: file:///r\nmax_rpo: 1m\n")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, Config{Listener: l, Repositories: []Repository{{Settings: w.section().Repositories[0], StateFile: w.dir + "/a.json",
			Open: func(context.Context) (*backup.Repository, error) { return nil, io.ErrUnexpectedEOF }}}})
	}()
	get(t, "http://"+l.Addr().String()+"/healthz", http.StatusOK)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := http.Get("http://" + l.Addr().String() + "/healthz"); err == nil {
		t.Error("it still listens")
	}
}
