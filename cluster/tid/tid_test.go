package tid

import (
	"testing"
	"time"
)

func TestFromTime(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want TID
	}{
		{"1899-12-31T23:59:59Z", 0}, // before the calendar begins
		{"1900-01-01T00:00:00Z", 0},
		{"1970-01-01T00:00:00Z", 0x023c2b00_00000000},
		{"2000-02-29T23:59:59.5Z", 0x0332b37f_fddddddd},    // leap day, fraction truncated
		{"2023-11-14T22:13:20.5Z", 0x03f47f95_57777777},    // unix 1700000000.5
		{"2026-02-12T20:56:30+01:00", 0x0406d7ec_80000000}, // always UTC
	} {
		t.Run(tt.in, func(t *testing.T) {
			at, err := time.Parse(time.RFC3339Nano, tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if got := FromTime(at); got != tt.want {
				t.Errorf("FromTime(%s) = %v, want %v", tt.in, got, tt.want)
			}
		})
	}
}

func TestTime(t *testing.T) {
	for in, want := range map[TID]string{
		0x03f594581aaaaaaa: "2024-01-02 03:04:06.249999",
		0x040d265c07e3a790: "2026-11-20 20:12:01.849048",
		0x040d265a1099e841: "2026-11-20 20:10:03.890906",
		0x040d265b8671e27b: "2026-11-20 20:11:31.510514",
	} {
		if got := in.Time().Format("2006-01-02 15:04:05.999999"); got != want {
			t.Errorf("%v.Time() = %s, want %s", in, got, want)
		}
	}
}

func TestAddFollowsTheCalendar(t *testing.T) {
	for _, tt := range []struct {
		in   TID
		n    int64
		want TID
	}{
		{0x040d265cffffffff, 1, 0x040d265d00000000},
		{0x03f58dffffffffff, 1, 0x03f58e0000000000},  // 2023-12-31 23:59
		{0x03eead5fffffffff, 1, 0x03eebe4000000000},  // 2023-02-28 23:59 to March 1st
		{0x03f6d9dffffffffe, 3, 0x03f6d9e000000001},  // 2024-02-28 23:59 to the 29th
		{0x03f58e0000000001, -2, 0x03f58dffffffffff}, // back over the new year
	} {
		if got := tt.in.Add(tt.n); got != tt.want {
			t.Errorf("%v.Add(%d) = %v, want %v", tt.in, tt.n, got, tt.want)
		}
	}
}

func TestClockNeverGoesBack(t *testing.T) {
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	c := Clock{Now: func() time.Time { return now }}
	last := c.Next()
	for _, step := range []time.Duration{0, -time.Hour, time.Second, -24 * time.Hour, 2 * time.Hour} {
		now = now.Add(step)
		next := c.Next()
		if next <= last {
			t.Errorf("after a step of %v: %v is not above %v", step, next, last)
		}
		last = next
	}
	c.Observe(Max - 5)
	if got := c.Next(); got <= Max-5 {
		t.Errorf("Next = %v after observing %v", got, Max-5)
	}
}

func TestParse(t *testing.T) {
	if got, err := Parse("03f594581aaaaaaa"); err != nil || got != 0x03f594581aaaaaaa {
		t.Errorf("Parse = %v, %v", got, err)
	}
	for _, bad := range []string{"", "12", "03f594581aaaaaaa00", "zzzzzzzzzzzzzzzz"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) succeeded", bad)
		}
	}
}
