package daemon

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neozodb/neo/cluster/tid"
)

const label = "repository"

// Label returns the label for the name of a repository, in UTF-8, which Prometheus requires: in the
// configuration it is any bytes.
func Label(name string) string { return strings.ToValidUTF8(name, "\uFFFD") }

// NewFlushes returns the histogram of the durations of flushes, by repository.
func NewFlushes() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "neobackup_flush_duration_seconds", Help: "How long it took to store what was new, by flush.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{label})
}

// metric is what a collector tells of each repository.
type metric struct {
	desc *prometheus.Desc
	typ  prometheus.ValueType
}

func gauge(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("neobackup_"+name, help, append([]string{label}, labels...), nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) metric {
	m := gauge(name, help, labels...)
	m.typ = prometheus.CounterValue
	return m
}

var (
	mHead       = gauge("head_tid_seconds", "Time of the newest transaction that is stored, as UNIX time.")
	mRPO        = gauge("rpo_seconds", "Age of what the source has and the repository may not have; 0 if it has everything. Without the writer on this host, it is up to a heartbeat while the source is idle.")
	mConnected  = gauge("source_connected", "1 if the source answers the writer on this host.")
	mPut        = counter("put_total", "PUT requests.")
	mGet        = counter("get_total", "GET requests.")
	mList       = counter("list_total", "LIST requests.")
	mErrors     = counter("errors_total", "Commands that ended with an error, by its code.", "code")
	mUploaded   = counter("uploaded_bytes_total", "Bytes sent to the store.")
	mStored     = gauge("stored_bytes", "Bytes of the segments of the current lineage.")
	mOpen       = gauge("open_segments", "Segments that may still be merged.")
	mSpool      = gauge("spool_bytes", "Bytes of plaintext kept for merging.")
	mManifest   = gauge("manifest_seq", "Number of the newest manifest.")
	mProofAge   = gauge("proof_age_seconds", "Age of the newest proof of a restore.")
	mProofTID   = gauge("proof_tid_seconds", "Time of the transaction up to which a restore was proved, as UNIX time.")
	mDrill      = gauge("drill_duration_seconds", "How long the newest drill with a proof took.")
	mFirstRead  = gauge("drill_first_read_seconds", "How long the first read took in that drill.")
	mDamage     = counter("damage_total", "Findings of damage by the jobs of this daemon.")
	mLock       = gauge("lock_min_remaining_seconds", "Least time for which an object that is needed is still locked, as extend-locks has found it.")
	mCost       = gauge("estimated_usd_month", "About what requests and storage cost in a month, in USD.")
	mFenced     = gauge("fenced", "1 if another writer has taken over.")
	mAlarm      = gauge("alarm", "1 while the alarm is in force.", "alarm", "job")
	mJobLast    = gauge("job_last_run_seconds", "When the last run of the job began, as UNIX time.", "job")
	mJobGood    = gauge("job_last_success_seconds", "When the last run that succeeded began, as UNIX time.", "job")
	mJobRunning = gauge("job_running", "1 while the job runs.", "job")

	mNoticeErrors = prometheus.NewDesc("neobackup_notice_errors_total", "Notices that could not be delivered.", nil, nil)
)

// collector gathers the metrics of all repositories.
type collector struct{ d *daemon }

// Describe implements [prometheus.Collector]: what there is depends on the repositories.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { ch <- mNoticeErrors }

// Collect implements [prometheus.Collector].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(mNoticeErrors, prometheus.CounterValue, float64(c.d.noticeErrors.Load()))
	for _, r := range c.d.repos {
		r.collect(ch)
	}
}

func (r *repo) collect(ch chan<- prometheus.Metric) {
	now := r.d.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seeWriter()
	set := func(m metric, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc, m.typ, v, append([]string{Label(r.name)}, labels...)...)
	}
	flag := func(m metric, on bool, labels ...string) {
		v := 0.0
		if on {
			v = 1
		}
		set(m, v, labels...)
	}
	seconds := func(t tid.TID) float64 { return float64(t.Time().UnixMicro()) / 1e6 }

	if age, ok := r.age(now); ok {
		set(mRPO, age.Seconds())
	}
	switch {
	case r.follows && r.stopped == nil && r.writer.Manifest != 0:
		st := r.writer
		if st.Head != tid.Zero {
			set(mHead, seconds(st.Head))
		}
		set(mStored, float64(st.LineageBytes))
		set(mManifest, float64(st.Manifest))
		set(mOpen, float64(st.Open))
		set(mSpool, float64(st.Spool))
	case r.sight != nil:
		if r.sight.Head != tid.Zero {
			set(mHead, seconds(r.sight.Head))
		}
		set(mStored, float64(r.sight.Stored))
		set(mManifest, float64(r.sight.Manifest))
	}
	if r.follows {
		flag(mConnected, r.writerLive && r.writer.Connected)
		flag(mFenced, r.alarms.on(Fenced, ""))
	}
	if r.Requests != nil {
		st := r.Requests()
		set(mPut, float64(st.Puts))
		set(mGet, float64(st.Gets))
		set(mList, float64(st.Lists))
		set(mUploaded, float64(st.Sent))
	}
	for code, n := range r.errors {
		set(mErrors, float64(n), code)
	}
	set(mDamage, float64(r.damage))
	if p := r.proof; p != nil {
		skew := r.sight.Skew
		set(mProofAge, p.Age(now.Add(skew)).Seconds())
		set(mProofTID, seconds(p.TID))
		set(mDrill, float64(p.Seconds))
		set(mFirstRead, float64(p.FirstReadMS)/1000)
	}
	if r.lockLeft != nil {
		set(mLock, (*r.lockLeft - now.Sub(r.lockSeen)).Seconds())
	}
	if r.cost > 0 {
		set(mCost, r.cost)
	}
	for _, a := range r.alarms {
		flag(mAlarm, a.Ended.IsZero(), string(a.Kind), a.Job)
	}
	for _, j := range r.jobs {
		run := r.st.Jobs[j.Command]
		if !run.Last.IsZero() {
			set(mJobLast, float64(run.Last.Unix()), j.Command)
		}
		if !run.Good.IsZero() {
			set(mJobGood, float64(run.Good.Unix()), j.Command)
		}
		flag(mJobRunning, j.running, j.Command)
	}
}
