package moment

import (
	"testing"
	"time"
	_ "time/tzdata" // of machines that have none

	"github.com/neozodb/neo/cluster/tid"
)

var now = time.Date(2026, 3, 1, 0, 30, 0, 0, time.FixedZone("", 3600)) // 28 February in UTC

// Each form is read alike, with and without latest and what is before all transactions.
func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"latest":                    "latest",
		"03f1a2b3c4d5e6f7":          "03f1a2b3c4d5e6f7",
		"0x3f1a2b3c4d5e6f7":         "03f1a2b3c4d5e6f7", // as print ids shows it
		"0X3F1A2B3C4D5E6F7":         "03f1a2b3c4d5e6f7",
		"tid:255":                   "00000000000000ff",
		"tid:0xff":                  "00000000000000ff",
		"2026-11-20T10:00:00Z":      "2026-11-20T10:00:00Z",
		"2026-11-20T10:00:00+02:00": "2026-11-20T08:00:00Z",
		"2026-11-20 10:00":          "2026-11-20T10:00:00Z",
		"2026-11-20":                "2026-11-20T00:00:00Z",
		"yesterday 18:00":           "2026-02-27T18:00:00Z",
		"today":                     "2026-02-28T00:00:00Z",
		"1700000000.5":              "2023-11-14T22:13:20.5Z",
		"yesterday 25:00":           "",
		"tomorrow":                  "",
		"":                          "",
		"0x":                        "",
		"0xg":                       "",
		"0x10000000000000000":       "",
		"3f1a2b3c4d5e6f7":           "", // 15 digits
		"0000000000000000":          "",
		"tid:0":                     "",
		"ffffffffffffffff":          "",
		"0xffffffffffffffff":        "",
		"1899-01-01":                "",
		"1900-01-01":                "", // TID zero
	} {
		m, err := Parse(in, now)
		got := m.String()
		if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("Parse(%q) = %q, %v, want %q", in, got, err, want)
		}
		id, err2 := ParseTID(in, now)
		switch {
		case in == "latest" && err2 == nil:
			t.Errorf("ParseTID(%q) = %v", in, id)
		case err == nil && !m.Latest && (err2 != nil || id != m.TID):
			t.Errorf("ParseTID(%q) = %v, %v, want %v", in, id, err2, m.TID)
		}
	}
	for _, zero := range []string{"tid:0", "0x0", "0000000000000000", "1900-01-01"} {
		if id, err := ParseTID(zero, now); err != nil || id != tid.Zero {
			t.Errorf("ParseTID(%q) = %v, %v", zero, id, err)
		}
	}
}

// Times of a place: what names no zone is of that place, also where its clock is changed.
func TestParseTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 29, 22, 30, 0, 0, time.UTC) // 30 March there, a day after summer time began
	for _, tt := range []struct{ in, want string }{
		{"2026-02-27 18:00", "2026-02-27T17:00:00Z"},
		{"2026-02-27 18:00Z", ""},
		{"2026-02-27T18:00:00Z", "2026-02-27T18:00:00Z"},
		{"today", "2026-03-29T22:00:00Z"},
		{"yesterday", "2026-03-28T23:00:00Z"},
		{"yesterday 18:00", "2026-03-29T16:00:00Z"}, // in summer time
		{"0406d7ec80000000", "2026-02-12T19:56:30Z"},
		{"yesterday noon", ""},
	} {
		got, err := ParseTime(tt.in, now, berlin)
		if text := got.UTC().Format(time.RFC3339); err == nil && text != tt.want || err != nil && tt.want != "" {
			t.Errorf("ParseTime(%q) = %s, %v, want %q", tt.in, text, err, tt.want)
		}
	}
}

// What can be read is in a database, and is read again from what it is written as.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"latest", "03f1a2b3c4d5e6f7", "0x3f", "tid:255", "2026-11-20T10:00:00.123456789Z", "2026-11-20 10:00", "yesterday 18:00", "today", "1700000000.5", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := Parse(s, now)
		if err != nil {
			return
		}
		if m.Latest != (m.TID == tid.Zero) || m.TID > tid.Max {
			t.Errorf("%q: %+v", s, m)
		}
		again, err := Parse(m.String(), now)
		if err != nil || again.TID != m.TID || again.Latest != m.Latest || again.IsTime != m.IsTime {
			t.Errorf("%q is %v, which is read as %+v, %v, want %+v", s, m, again, err, m)
		}
	})
}
