package daemon

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Kind is what an alarm is about.
type Kind string

// The kinds of alarms.
const (
	RPO      Kind = "rpo"      // what is not stored is too old, or may be
	Proof    Kind = "proof"    // no restore was proved lately
	Damage   Kind = "damage"   // something stored is missing or damaged
	Fenced   Kind = "fenced"   // another writer has taken over
	Diverged Kind = "diverged" // source and repository differ
	Follow   Kind = "follow"   // the source is not followed, for another reason
	Failed   Kind = "failed"   // a job has failed
	Missed   Kind = "missed"   // a job was not run at its time
	Lock     Kind = "lock"     // the lock of an object that is needed runs out
	Clock    Kind = "clock"    // the clocks of host and store differ
)

// State is why a notice is sent.
type State string

// The states of an alarm.
const (
	Begin    State = "begin"
	Reminder State = "reminder"
	End      State = "end"
)

// Notice tells of an alarm.
type Notice struct {
	V          int       `json:"v"` // 1
	Host       string    `json:"host"`
	Repository string    `json:"repository"`
	Alarm      Kind      `json:"alarm"`
	Job        string    `json:"job,omitempty"` // that found it
	State      State     `json:"state"`
	Since      time.Time `json:"since"`
	Ended      time.Time `json:"ended,omitzero"`
	Text       string    `json:"text"`
	Hint       string    `json:"hint,omitempty"` // what to do
}

// Subject returns the notice in a line.
func (n *Notice) Subject() string {
	what := "PROBLEM"
	switch n.State {
	case Reminder:
		what = "still a PROBLEM"
	case End:
		what = "over"
	}
	about := string(n.Alarm)
	if n.Job != "" {
		about += " (" + n.Job + ")"
	}
	return fmt.Sprintf("neobackup %s on %s: %s: %s", n.Repository, n.Host, what, about)
}

// Body returns the notice as text.
func (n *Notice) Body() string {
	const form = "2006-01-02 15:04:05 UTC"
	var b strings.Builder
	fmt.Fprintf(&b, "Repository %s: %s\n", n.Repository, n.Text)
	fmt.Fprintf(&b, "Since: %s\n", n.Since.UTC().Format(form))
	if n.State == End {
		fmt.Fprintf(&b, "Over:  %s\n", n.Ended.UTC().Format(form))
		return b.String()
	}
	if n.Hint != "" {
		fmt.Fprintf(&b, "\nWhat to do: %s\n", n.Hint)
	}
	return b.String()
}

const (
	// remindAfter is about a day: a daily job that ends an alarm comes first.
	remindAfter = 24*time.Hour + 10*time.Minute
	// retryAfter is the time until a notice that could not be delivered is tried again.
	retryAfter = 10 * time.Minute
	// dropAfter is how long the end of an alarm waits for being told.
	dropAfter = 7 * 24 * time.Hour
)

// Alarm is something that is wrong, or was and that is still to be told.
type Alarm struct {
	Kind  Kind      `json:"kind"`
	Job   string    `json:"job,omitempty"`
	Text  string    `json:"text"`
	Hint  string    `json:"hint,omitempty"`
	Since time.Time `json:"since"`
	Told  time.Time `json:"told,omitzero"`  // when a notice was delivered last
	Ended time.Time `json:"ended,omitzero"` // it is over

	sending bool
	retry   time.Time // not before
}

// alarms are those of a repository, by key.
type alarms map[string]*Alarm

// alarmKey is the key of an alarm; job may be empty.
func alarmKey(kind Kind, job string) string {
	if job == "" {
		return string(kind)
	}
	return string(kind) + "/" + job
}

// raise says that something is wrong. It reports whether that is news.
func (a alarms) raise(now time.Time, kind Kind, job, text, hint string) bool {
	key := alarmKey(kind, job)
	x := a[key]
	news := x == nil || !x.Ended.IsZero()
	switch {
	case x == nil:
		x = &Alarm{Kind: kind, Job: job, Since: now}
		a[key] = x
	case !x.Ended.IsZero(): // its end was not told yet: it goes on
		x.Ended = time.Time{}
	}
	x.Text, x.Hint = text, hint
	return news
}

// clear says that something is not wrong, any more. It reports whether it was.
func (a alarms) clear(now time.Time, kind Kind, job string) bool {
	x := a[alarmKey(kind, job)]
	if x == nil || !x.Ended.IsZero() {
		return false
	}
	x.Ended, x.retry = now, time.Time{}
	return true
}

// on reports whether an alarm is in force.
func (a alarms) on(kind Kind, job string) bool {
	x := a[alarmKey(kind, job)]
	return x != nil && x.Ended.IsZero()
}

// inForce returns the alarms that are, by key.
func (a alarms) inForce() []*Alarm {
	var list []*Alarm
	for _, key := range slices.Sorted(maps.Keys(a)) {
		if x := a[key]; x.Ended.IsZero() {
			list = append(list, x)
		}
	}
	return list
}

// due returns the notices that are to be sent now. Each must be answered by told.
func (a alarms) due(now time.Time) map[string]*Notice {
	list := map[string]*Notice{}
	for key, x := range a {
		if x.Told.After(now.Add(clockBack)) { // the clock has gone back
			x.Told = now
		}
		if x.sending || now.Before(x.retry) && x.retry.Before(now.Add(2*retryAfter)) {
			continue
		}
		n := &Notice{V: 1, Alarm: x.Kind, Job: x.Job, Since: x.Since, Ended: x.Ended, Text: x.Text, Hint: x.Hint}
		switch {
		case !x.Ended.IsZero():
			n.State = End
		case x.Told.IsZero():
			n.State = Begin
		case now.Sub(x.Told) >= remindAfter:
			n.State = Reminder
		default:
			continue
		}
		x.sending = true
		list[key] = n
	}
	return list
}

// told says whether a notice was delivered.
func (a alarms) told(now time.Time, key string, n *Notice, ok bool) {
	x := a[key]
	if x == nil {
		return
	}
	x.sending = false
	switch {
	case !ok && n.State == End && now.Sub(x.Ended) >= dropAfter:
		delete(a, key)
	case !ok:
		x.retry = now.Add(retryAfter)
	case n.State == End && !x.Ended.IsZero():
		delete(a, key)
	case n.State == End: // it has begun again meanwhile
		x.Told = time.Time{}
		x.Since = now
	default:
		x.Told = now
	}
}
