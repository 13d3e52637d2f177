package following

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Window is a part of each day, in UTC. The zero Window is the whole day.
type Window struct {
	// From and To are times since midnight, less than a day. To is not within; it is on
	// the next day if it is not after From.
	From, To time.Duration
}

// ParseWindow reads 02:00-05:00, which may go over midnight.
func ParseWindow(s string) (Window, error) {
	from, to, ok := strings.Cut(strings.TrimSpace(s), "-")
	if !ok {
		return Window{}, fmt.Errorf("%q is not a part of the day, such as 02:00-05:00", s)
	}
	var w Window
	for _, end := range []struct {
		text string
		to   *time.Duration
	}{{from, &w.From}, {to, &w.To}} {
		t, err := time.Parse("15:04", strings.TrimSpace(end.text))
		if err != nil {
			return Window{}, fmt.Errorf("%q is not a part of the day, such as 02:00-05:00: %q is not a time of the day", s, end.text)
		}
		*end.to = time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute
	}
	if w.From == w.To {
		return Window{}, fmt.Errorf("%q ends where it begins", s)
	}
	return w, nil
}

func (w Window) String() string {
	clock := func(d time.Duration) string { return fmt.Sprintf("%02d:%02d", int(d.Hours()), int(d.Minutes())%60) }
	return clock(w.From) + "-" + clock(w.To)
}

// Open reports whether a moment is within the window.
func (w Window) Open(t time.Time) bool {
	at := t.Sub(midnight(t))
	if w.From < w.To {
		return at >= w.From && at < w.To
	}
	return at >= w.From || at < w.To
}

// Change returns the moment after t at which the window opens or closes next; zero if it
// never does.
func (w Window) Change(t time.Time) (next time.Time) {
	if w.From == w.To {
		return next
	}
	for day := range 2 {
		for _, at := range []time.Duration{w.From, w.To} {
			at := midnight(t).AddDate(0, 0, day).Add(at)
			if at.After(t) && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}

func midnight(t time.Time) time.Time {
	y, m, d := t.UTC().Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}

// Schedule is when something begins, again and again.
type Schedule struct{ cron cron.Schedule }

// ParseSchedule reads the five fields of cron: minute, hour, day of the month, month and
// day of the week, in UTC; or one of @hourly, @daily, @weekly, @monthly and @yearly.
func ParseSchedule(s string) (*Schedule, error) {
	switch fields := strings.Fields(s); {
	case len(fields) == 0:
		return nil, errors.New("the schedule is empty")
	case strings.Contains(s, "="):
		return nil, fmt.Errorf("schedule %q: it is always in UTC: no time zone can be given", s)
	case strings.HasPrefix(fields[0], "@every"):
		return nil, fmt.Errorf("schedule %q: @every depends on when the master was started; write for instance */10 * * * *", s)
	}
	parsed, err := cron.ParseStandard(s)
	if err != nil {
		return nil, fmt.Errorf("schedule %q: %w: want minute, hour, day of the month, month and day of the week, such as 0 2 * * *, or @daily", s, err)
	}
	c := &Schedule{parsed}
	if c.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("schedule %q: there is no such day", s)
	}
	return c, nil
}

// Next returns the first moment after t, or zero if there is none in the next years.
func (c *Schedule) Next(t time.Time) time.Time { return c.cron.Next(t.UTC()) }

// ParseRate reads bytes per second: 50MB/s, 50MiB or a number.
func ParseRate(s string) (int64, error) {
	digits := strings.ToLower(strings.TrimSpace(s))
	digits = strings.TrimSpace(strings.TrimSuffix(digits, "/s"))
	shift := 0
units:
	for i, unit := range []string{"k", "m", "g"} {
		for _, u := range []string{unit + "ib", unit + "b"} {
			if d, ok := strings.CutSuffix(digits, u); ok {
				digits, shift = strings.TrimSpace(d), 10*(i+1)
				break units
			}
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is not a rate: want bytes per second, such as 50MB/s", s)
	}
	return n << shift, nil
}

// maxDelay is far above what makes sense.
const maxDelay = 10 * 365 * 24 * time.Hour

// ParseDelay reads 90m, 12h, 1h30m or 7d.
func ParseDelay(s string) (time.Duration, error) {
	text := strings.TrimSpace(s)
	var d time.Duration
	days, inDays := strings.CutSuffix(text, "d")
	n, err := strconv.ParseInt(days, 10, 32)
	if inDays {
		d = time.Duration(min(max(n, -1), 1e4)) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(text)
	}
	if err != nil || d < 0 || d > maxDelay {
		return 0, fmt.Errorf("%q is not a delay of up to ten years: want a number with a unit, such as 90m, 12h or 7d", s)
	}
	return d, nil
}
