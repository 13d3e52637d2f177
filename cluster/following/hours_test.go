package following

import (
	"testing"
	"time"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.Parse("2006-01-02 15:04:05", s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWindow(t *testing.T) {
	for _, tt := range []struct {
		window, now, change string
		open                bool
	}{
		{"02:00-05:00", "2026-03-01 01:59:59", "2026-03-01 02:00:00", false},
		{"02:00-05:00", "2026-03-01 02:00:00", "2026-03-01 05:00:00", true},
		{"02:00-05:00", "2026-03-01 04:59:59", "2026-03-01 05:00:00", true},
		{"2:00 - 05:00", "2026-03-01 05:00:00", "2026-03-02 02:00:00", false},
		{"22:30-04:00", "2026-02-28 23:00:00", "2026-03-01 04:00:00", true},
		{"22:30-04:00", "2026-03-01 03:59:00", "2026-03-01 04:00:00", true},
		{"22:30-04:00", "2026-03-01 04:00:00", "2026-03-01 22:30:00", false},
		{"22:00-00:00", "2026-12-31 23:59:59", "2027-01-01 00:00:00", true},
	} {
		w, err := ParseWindow(tt.window)
		if err != nil {
			t.Fatal(err)
		}
		now := at(t, tt.now)
		if open, change := w.Open(now), w.Change(now); open != tt.open || !change.Equal(at(t, tt.change)) {
			t.Errorf("%s at %s: open %v, changes %v", tt.window, tt.now, open, change)
		}
		// The moment counts, not where the clock hangs.
		elsewhere := now.In(time.FixedZone("", -7*3600))
		if w.Open(elsewhere) != tt.open || !w.Change(elsewhere).Equal(at(t, tt.change)) {
			t.Errorf("%s at %v", tt.window, elsewhere)
		}
	}
	if w := (Window{}); !w.Open(time.Now()) || !w.Change(time.Now()).IsZero() {
		t.Error("the whole day is not open")
	}
	for _, s := range []string{"", "02:00", "02:00-", "25:00-26:00", "02:60-03:00", "02:00-02:00", "02:00-05:00-06:00", "2-5", "-", "02:00-24:00"} {
		if w, err := ParseWindow(s); err == nil {
			t.Errorf("%q: %v", s, w)
		}
	}
}

func TestSchedule(t *testing.T) {
	for _, tt := range []struct{ schedule, now, next string }{
		{"0 2 * * *", "2026-03-01 02:00:00", "2026-03-02 02:00:00"},
		{"*/10 22-23 * * sun", "2026-03-01 23:51:00", "2026-03-08 22:00:00"},
		{"@daily", "2026-12-31 00:00:01", "2027-01-01 00:00:00"},
		{"0 0 29 2 *", "2026-03-01 00:00:00", "2028-02-29 00:00:00"},
	} {
		c, err := ParseSchedule(tt.schedule)
		if err != nil {
			t.Fatal(err)
		}
		if next := c.Next(at(t, tt.now).In(time.FixedZone("", 5*3600+1800))); !next.Equal(at(t, tt.next)) {
			t.Errorf("%s after %s: %v", tt.schedule, tt.now, next)
		}
	}
	for _, s := range []string{"", " ", "0 2 * *", "0 2 * * * *", "60 2 * * *", "0 0 31 2 *", "TZ=UTC", "TZ=UTC 0 2 * * *", "CRON_TZ=", "@every 1h", "@never", "*/0 * * * *", "daily"} {
		if _, err := ParseSchedule(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestRateAndDelay(t *testing.T) {
	for s, want := range map[string]int64{"50MiB/s": 50 << 20, "50 MB/s": 50 << 20, "1": 1, "1kb": 1024, " 2GB": 2 << 30, "": 0, "0": 0, "-1": 0, "1TB": 0, "5kbkib": 0, "b": 0, "9999999999GB": 0, "1.5MB": 0} {
		if n, err := ParseRate(s); n != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	}
	for s, want := range map[string]time.Duration{"1h": time.Hour, "7d": 168 * time.Hour, "1h30m": 90 * time.Minute, "0s": 0, "0d": 0, "": -1, "60": -1, "-1h": -1, "-1d": -1, "d": -1, "100000d": -1, "1.5d": -1} {
		if d, err := ParseDelay(s); err == nil && d != want || (err != nil) != (want < 0) {
			t.Errorf("%q: %v, %v", s, d, err)
		}
	}
}

func FuzzHours(f *testing.F) {
	for _, s := range []string{"02:00-05:00", "22:30-4:00", "0 2 * * *", "@daily", "*/10 22-23 * * sun", "TZ=UTC", "@every 1ns", "0 0 31 2 *"} {
		f.Add(s, int64(1.7e9))
	}
	f.Fuzz(func(t *testing.T, s string, unix int64) {
		now := time.Unix(unix%1e10, 0)
		if w, err := ParseWindow(s); err == nil {
			next := w.Change(now)
			if !next.After(now) || next.Sub(now) > 24*time.Hour || w.Open(next) == w.Open(now) {
				t.Errorf("%q at %v: %v, then %v at %v", s, now, w.Open(now), w.Open(next), next)
			}
			if again, err := ParseWindow(w.String()); err != nil || again != w {
				t.Errorf("%q: %v, %v", s, again, err)
			}
		}
		if n, err := ParseRate(s); err == nil && n <= 0 {
			t.Errorf("%q: %d", s, n)
		}
		if d, err := ParseDelay(s); err == nil && (d < 0 || d > maxDelay) {
			t.Errorf("%q: %v", s, d)
		}
		if c, err := ParseSchedule(s); err == nil {
			if next := c.Next(now); !next.IsZero() && !next.After(now) {
				t.Errorf("%q after %v: %v", s, now, next)
			}
		}
	})
}
