package page

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/status"
)

const metricsText = `# HELP neobackup_proof_age_seconds Age of the newest proof of a restore.
# TYPE neobackup_proof_age_seconds gauge
neobackup_proof_age_seconds{repository="home"} 10800
neobackup_proof_age_seconds{repository="old"} 1e6
# TYPE neobackup_proof_tid_seconds gauge
neobackup_proof_tid_seconds{repository="home"} 1.795966e+09
# TYPE neobackup_rpo_seconds gauge
neobackup_rpo_seconds{repository="home"} 0
neobackup_rpo_seconds{repository="<script>"} 42
# TYPE neobackup_alarm gauge
neobackup_alarm{alarm="behind",job="",repository="<script>"} 1
neobackup_alarm{alarm="damage",job="",repository="<script>"} 0
# TYPE neobackup_manifest_seq gauge
neobackup_manifest_seq{repository="home"} 7
neobackup_manifest_seq{repository="new"} 1
`

// What daemons of neobackup tell is shown, and also that they do not.
func TestRepositories(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, metricsText) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>no metrics") })
	mux.HandleFunc("/other", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "up 1\n") })
	server := httptest.NewServer(mux)
	defer server.Close()
	var urls []*url.URL
	for _, s := range []string{server.URL + "/metrics", strings.Replace(server.URL, "//", "//user:secret@", 1) + "/gone", server.URL + "/page", server.URL + "/other", "http://127.0.0.1:1/metrics"} {
		u, err := ParseMetricsURL(s)
		if err != nil {
			t.Fatal(err)
		}
		urls = append(urls, u)
	}
	p := New(Config{Collect: func(context.Context) *status.Status { return healthy() }, Repositories: urls})
	p.sample(t.Context())
	body := get(t, p, "/").Body.String()
	for _, s := range []string{
		"Backup repository home</h3>\n  <p>restore proved 3 h ago</p>", "that of everything up to 2026-11-29 15:26:40 UTC", "it has everything that the source has",
		"</span> Backup repository old</h3>\n  <p>restore proved 12 days ago</p>", "</span> Backup repository &lt;script&gt;</h3>\n  <p>no restore was proved yet", "42 s of the source may not be in it", "alarm: behind",
		"</span> Backup repository new</h3>", "neobackup cannot be asked: 404 Not Found", "these are no metrics", "there are no metrics of neobackup", "connection refused", "user:xxxxx@",
	} {
		if !strings.Contains(body, s) {
			t.Errorf("no %q", s)
		}
	}
	if strings.Contains(body, "alarm: damage") || strings.Contains(body, "secret") || t.Failed() {
		t.Error(body[strings.Index(body, "<main>"):])
	}
	for _, s := range []string{"127.0.0.1:9145", "ftp://x/metrics", "http://", "http://%zz"} {
		if _, err := ParseMetricsURL(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func FuzzRepositories(f *testing.F) {
	f.Add(metricsText)
	f.Add(`neobackup_rpo_seconds{repository="x"} NaN`)
	f.Add("# TYPE neobackup_rpo_seconds histogram\nneobackup_rpo_seconds_sum 1\n")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := readRepositories(strings.NewReader(s))
		if err != nil {
			return
		}
		for i := range list {
			if w := repositoryWork(&list[i], day); w.Text == "" {
				t.Errorf("%+v", w)
			}
		}
	})
}
