package following

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

var kindNames = [...]string{"hold", "release", "run-now"}

func (k Kind) String() string { return kindNames[k] }

// String is the order as an operator writes it: hold 0412f6a1b2c3d4e5
func (o *Order) String() string {
	if o.Kind == Hold && o.TID.OK {
		return o.Kind.String() + " " + o.TID.V.String()
	}
	return o.Kind.String()
}

// SummaryPrefix begins the line of a backup in the summary of an admin.
const SummaryPrefix = "BACKUP: "

// String is the report in a line: due 0 s, held at 0412f6a1b2c3d4e5, delay 1 h 0 min
func (r *Report) String() string {
	parts := []string{"due " + r.DueText()}
	if !r.Linked {
		parts = append(parts, "NOT CONNECTED to the upstream master")
	}
	if r.Hold.OK {
		parts = append(parts, "held at "+r.Hold.V.String())
	}
	if r.Delay > 0 {
		parts = append(parts, "delay "+Duration(r.Delay))
	}
	if r.Closed {
		closed := "closed"
		if !r.Opens.IsZero() {
			closed += " until " + r.Opens.UTC().Format("2006-01-02 15:04 UTC")
		}
		parts = append(parts, closed)
	}
	if r.InGap() {
		parts = append(parts, fmt.Sprintf("nothing can be kept before %v", r.Gap[1]))
	}
	if r.Rate > 0 {
		parts = append(parts, "at most "+humanize.IBytes(uint64(r.Rate))+"/s")
	}
	if r.Note != "" {
		parts = append(parts, strings.Join(strings.Fields(r.Note), " "))
	}
	return strings.Join(parts, ", ")
}

// InGap reports whether the cluster is where a pack upstream has left nothing to keep.
func (r *Report) InGap() bool { return r.Gap[1] != 0 }

// DueText is how late the cluster is: 0 s, ε if it lacks something and that is no time, or
// not known as long as nothing is known of the upstream cluster.
func (r *Report) DueText() string {
	switch {
	case r.Upstream == 0:
		return "not known"
	case r.Due > 0:
		return Duration(r.Due)
	case r.Readable < r.Bound:
		return "ε"
	}
	return "0 s"
}

// Duration writes a time with one or two units: 0 s, 41 s, 12 min, 5 h 12 min, 3 d 4 h.
func Duration(d time.Duration) string {
	minutes := int64(d.Round(time.Minute) / time.Minute)
	switch hours := minutes / 60; {
	case d == 0:
		return "0 s"
	case d.Round(time.Second) < time.Minute:
		return fmt.Sprintf("%d s", max(1, int64(d.Round(time.Second)/time.Second)))
	case hours == 0:
		return fmt.Sprintf("%d min", minutes)
	case hours < 48:
		return fmt.Sprintf("%d h %d min", hours, minutes%60)
	default:
		return fmt.Sprintf("%d d %d h", hours/24, hours%24)
	}
}
