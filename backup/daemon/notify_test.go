package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A webhook gets the notice as JSON; what is no success is an error, which does not tell the address.
func TestWebhook(t *testing.T) {
	var got []byte
	answer := http.StatusNoContent
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || r.URL.RawQuery != "token=secret" {
			t.Errorf("%s %s %v", r.Method, r.URL, err)
		}
		got = b
		w.WriteHeader(answer)
	}))
	defer s.Close()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	n := &Notice{V: 1, Host: "backup1", Repository: "prod", Alarm: Failed, Job: "check", State: Begin, Since: at, Text: "check has failed: <no>", Hint: "try again"}
	w := &Webhook{URL: s.URL + "/hook?token=secret"}
	if err := w.Notify(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	var back Notice
	if err := json.Unmarshal(got, &back); err != nil || back != *n || strings.Contains(string(got), "ended") {
		t.Errorf("%s, %v", got, err)
	}
	answer = http.StatusInternalServerError
	if err := w.Notify(t.Context(), n); err == nil || err.Error() != "the webhook answers 500 Internal Server Error" {
		t.Errorf("%v", err)
	}
	s.Close()
	for _, w := range []*Webhook{w, {URL: "http://\x00/?token=secret"}} {
		if err := w.Notify(t.Context(), n); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v", err)
		}
	}
	if got, want := n.Subject(), "neobackup prod on backup1: PROBLEM: failed (check)"; got != want {
		t.Errorf("subject %q", got)
	}
	if got, want := n.Body(), "Repository prod: check has failed: <no>\nSince: 2026-03-01 12:00:00 UTC\n\nWhat to do: try again\n"; got != want {
		t.Errorf("body %q", got)
	}
	n.State, n.Ended = End, at.Add(time.Hour)
	if got, want := n.Subject()+"\n"+n.Body(), "neobackup prod on backup1: over: failed (check)\nRepository prod: check has failed: <no>\nSince: 2026-03-01 12:00:00 UTC\nOver:  2026-03-01 13:00:00 UTC\n"; got != want {
		t.Errorf("%q", got)
	}
}

// A delivery is tried three times, each for a limited time, and ends with the daemon.
func TestDeliver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &broken{err: errors.New("no")}
		if err := deliver(t.Context(), b, &Notice{}); err == nil || b.tries.Load() != notifyTries {
			t.Errorf("%v after %d tries", err, b.tries.Load())
		}
		begin := time.Now()
		if err := deliver(t.Context(), hanging{}, &Notice{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 3*notifyTimeout+3*notifyPause {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if err := deliver(ctx, hanging{}, &Notice{}); err == nil || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

type hanging struct{}

func (hanging) Name() string { return "hanging" }

func (hanging) Notify(ctx context.Context, _ *Notice) error {
	<-ctx.Done()
	return ctx.Err()
}

// An alarm has one notice at the beginning, one a day, one at the end, whatever fails and wherever the clock goes.
func TestAlarms(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := alarms{}
	due := func() (states []string) {
		for key, n := range a.due(now) {
			states = append(states, key+" "+string(n.State))
		}
		slices.Sort(states)
		return states
	}
	want := func(step string, want ...string) {
		t.Helper()
		if got := due(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", step, got, want)
		}
	}
	told := func(key string, state State, ok bool) { a.told(now, key, &Notice{State: state}, ok) }

	if !a.raise(now, RPO, "", "x", "") || a.raise(now, RPO, "", "y", "") || !a.on(RPO, "") || a["rpo"].Text != "y" {
		t.Error("raised twice")
	}
	want("begin", "rpo begin")
	want("it is being sent")
	told("rpo", Begin, false)
	want("it has just failed")
	now = now.Add(retryAfter)
	want("again", "rpo begin")
	told("rpo", Begin, true)
	now = now.Add(remindAfter - time.Second)
	want("no day yet")
	now = now.Add(time.Second)
	want("a day", "rpo reminder")
	told("rpo", Reminder, true)
	now = now.AddDate(-1, 0, 0)
	want("a year back")
	now = now.Add(remindAfter)
	want("a day later", "rpo reminder")
	if !a.clear(now, RPO, "") || a.clear(now, RPO, "") || a.on(RPO, "") || len(a.inForce()) > 0 {
		t.Error("cleared twice")
	}
	want("the reminder is being sent")
	told("rpo", Reminder, true)
	want("end", "rpo end")
	// It begins again while its end is told.
	a.raise(now, RPO, "", "z", "")
	told("rpo", End, true)
	want("begins again", "rpo begin")
	told("rpo", Begin, true)
	// It begins again before its end is told: there is nothing to tell.
	a.clear(now, RPO, "")
	a.raise(now, RPO, "", "z", "")
	want("nothing happened")
	a.clear(now, RPO, "")
	for range 7 * 24 * 6 {
		if got := due(); len(got) == 1 {
			told("rpo", End, false)
		}
		now = now.Add(retryAfter)
	}
	want("a week", "rpo end")
	told("rpo", End, false)
	if len(a) > 0 {
		t.Errorf("left %v", a)
	}
	// One that was over before it could be told.
	a.raise(now, Failed, "check", "x", "")
	a.clear(now, Failed, "check")
	want("only the end", "failed/check end")
	told("failed/check", End, true)
	told("failed/check", End, true) // of an alarm that is gone
	want("none")
}

// A webhook that has moved is an error: what follows a redirect without the notice, a page of login, say, has not got it.
func TestWebhookMoved(t *testing.T) {
	got := 0
	code := http.StatusFound
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hook" {
			http.Redirect(w, r, "/login?token=secret", code)
			return
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.Method == http.MethodPost && len(b) > 0 {
			got++
		}
	}))
	defer s.Close()
	w := &Webhook{URL: s.URL + "/hook"}
	for _, code = range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther} {
		if err := w.Notify(t.Context(), &Notice{}); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "redirect") {
			t.Errorf("%d: %v", code, err)
		}
	}
	for _, code = range []int{http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		if err := w.Notify(t.Context(), &Notice{}); err != nil {
			t.Errorf("%d: %v", code, err)
		}
	}
	if got != 2 {
		t.Errorf("%d notices arrived", got)
	}
}
