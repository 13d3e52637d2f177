package page

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	// metricsTimeout is how long a daemon of neobackup has to answer.
	metricsTimeout = 5 * time.Second
	// maxMetrics is the size in bytes of an answer that is read.
	maxMetrics = 4 << 20
	// oldProof is the age of a proof that needs attention, as in the alert rules.
	oldProof = 8 * 24 * time.Hour
)

// ParseMetricsURL refuses what is not the address of metrics.
func ParseMetricsURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		err = errors.New("want the address of the metrics of a daemon of neobackup, such as http://127.0.0.1:9145/metrics")
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	return u, nil
}

// repository is what a daemon of neobackup tells of a repository.
type repository struct {
	name string // or where it was asked, if err is set
	err  error

	proofAge *float64 // seconds; nil: no restore was ever proved
	proofTo  *float64 // UNIX time of the transaction up to which it was
	behind   *float64 // seconds; nil: not known
	alarms   []string // in force
}

// askRepositories asks daemons of neobackup, all at once.
func askRepositories(ctx context.Context, urls []*url.URL) []repository {
	answers := make([][]repository, len(urls))
	var wg sync.WaitGroup
	for i, u := range urls {
		wg.Go(func() {
			list, err := askDaemon(ctx, u)
			if err != nil {
				list = []repository{{name: u.Redacted(), err: err}}
			}
			answers[i] = list
		})
	}
	wg.Wait()
	return slices.Concat(answers...)
}

func askDaemon(ctx context.Context, u *url.URL) ([]repository, error) {
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the address is shown in any case
		}
		return nil, err
	}
	defer answer.Body.Close() // only read
	if answer.StatusCode != http.StatusOK {
		return nil, errors.New(answer.Status)
	}
	return readRepositories(io.LimitReader(answer.Body, maxMetrics))
}

// readRepositories reads metrics of neobackup.
func readRepositories(r io.Reader) ([]repository, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		return nil, fmt.Errorf("these are no metrics: %w", err)
	}
	found := map[string]*repository{}
	each := func(family string, do func(*repository, float64, map[string]string)) {
		for _, m := range families["neobackup_"+family].GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			name := labels["repository"]
			if found[name] == nil {
				found[name] = &repository{name: name}
			}
			do(found[name], value(m), labels)
		}
	}
	each("manifest_seq", func(*repository, float64, map[string]string) {})
	each("rpo_seconds", func(r *repository, v float64, _ map[string]string) { r.behind = &v })
	each("proof_age_seconds", func(r *repository, v float64, _ map[string]string) { r.proofAge = &v })
	each("proof_tid_seconds", func(r *repository, v float64, _ map[string]string) { r.proofTo = &v })
	each("alarm", func(r *repository, v float64, labels map[string]string) {
		if v == 1 {
			r.alarms = append(r.alarms, cmp.Or(labels["alarm"], "alarm"))
		}
	})
	if len(found) == 0 {
		return nil, errors.New("there are no metrics of neobackup")
	}
	var list []repository
	for _, r := range found {
		slices.Sort(r.alarms)
		list = append(list, *r)
	}
	slices.SortFunc(list, func(a, b repository) int { return cmp.Compare(a.name, b.name) })
	return list, nil
}

func value(m *dto.Metric) float64 {
	if g := m.GetGauge(); g != nil {
		return g.GetValue()
	}
	return m.GetUntyped().GetValue()
}

// repositoryWork shows a repository.
func repositoryWork(r *repository, now time.Time) work {
	if r.err != nil {
		return work{Name: "Backup repositories", Bad: true, Text: "neobackup cannot be asked: " + r.err.Error(), Lines: []string{r.name}}
	}
	w := work{Name: "Backup repository " + r.name, Text: "no restore was proved yet: neobackup drill", Bad: r.proofAge == nil}
	if r.proofAge != nil {
		age := seconds(*r.proofAge)
		w.Text, w.Bad = "restore proved "+ago(age), age > oldProof
		if r.proofTo != nil {
			w.Lines = append(w.Lines, "that of everything up to "+momentOf(time.Unix(0, 0).Add(seconds(*r.proofTo)), now).Text)
		}
	}
	switch {
	case r.behind == nil:
		w.Lines = append(w.Lines, "it is not known how far it is")
	case *r.behind == 0:
		w.Lines = append(w.Lines, "it has everything that the source has")
	default:
		w.Lines = append(w.Lines, duration(*r.behind)+" of the source may not be in it")
	}
	for _, a := range r.alarms {
		w.Bad = true
		w.Lines = append(w.Lines, "alarm: "+a)
	}
	return w
}
