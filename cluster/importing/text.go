package importing

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// SummaryPrefix begins the line of the summary of a cluster that tells of an import.
// An operator who finds it knows that the admin understands messages about imports.
const SummaryPrefix = "import: "

// Bad reports whether the operator must do something: the import does not go on.
func (s State) Bad() bool { return s == Failed || s == Different }

// Over reports whether nothing more happens by itself.
func (s State) Over() bool { return s.Bad() || s == Done }

// String is the report in a line: copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left
func (r *Report) String() string {
	text := r.State.String()
	if r.State.Bad() {
		text = strings.ToUpper(text)
	}
	var parts []string
	switch r.State {
	case Copying, Paused, Failed:
		parts = append(parts, r.Copied())
	case Comparing:
		parts = append(parts, "everything is copied")
	case Different:
		parts = append(parts, differences(r.Differences))
	}
	if r.Moves() {
		if r.Rate >= 1 {
			parts = append(parts, humanBytes(r.Rate)+"/s")
		}
		if r.Left > 0 {
			parts = append(parts, Duration(r.Left)+" left")
		}
	}
	if r.Note != "" && r.State != Copying {
		parts = append(parts, r.Note)
	} else if r.State == Done {
		parts = append(parts, DoneNote)
	}
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	return text
}

// DoneNote is what to do after an import, unless its report says more.
const DoneNote = "everything is copied and equal; start the storage again with the adapter and database of the destination"

// Copied tells how much is copied: 45.2 % (1.2 of 2.7 GB); the transactions if the size
// of the sources is not known.
func (r *Report) Copied() string {
	if r.Size <= 0 {
		return humanize.Comma(r.Transactions) + " transactions"
	}
	return Portion(r.Position, r.Size)
}

// Portion tells how much of something in bytes is done: 45.2 % (1.2 of 2.7 GB).
func Portion(position, size int64) string {
	of, all := humanBytes(float64(position)), humanBytes(float64(size))
	if number, unit, _ := strings.Cut(of, " "); strings.HasSuffix(all, " "+unit) {
		of = number
	}
	return fmt.Sprintf("%s (%s of %s)", Percent(position, size), of, all)
}

// Percent tells how much of something is done: 45.2 %
func Percent(n, total int64) string {
	// 100 % would say that it is done.
	percent := math.Floor(1000*float64(n)/float64(total)) / 10
	return fmt.Sprintf("%.1f %%", min(100, percent))
}

// humanBytes writes bytes in decimal units.
func humanBytes(n float64) string { return humanize.Bytes(uint64(min(max(n, 0), math.MaxInt64))) }

func differences(n int64) string {
	if n == 1 {
		return "1 difference"
	}
	return humanize.Comma(n) + " differences"
}

// Duration writes a time with one or two units: 41 s, 12 min, 5 h 12 min, 3 d 4 h.
func Duration(d time.Duration) string {
	minutes := int64(d.Round(time.Minute) / time.Minute)
	switch hours := minutes / 60; {
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

var kindNames = [...]string{"pause", "resume", "limit", "compare", "skip"}

func (k Kind) String() string { return kindNames[k] }

// String is the order as an operator writes it.
func (o *Order) String() string {
	text := o.Kind.String()
	switch o.Kind {
	case Limit:
		text += " " + LimitText(o.Rate)
	case Skip:
		text += " " + o.TID.String()
		if o.OID.OK {
			text += ":" + o.OID.V.String()
		}
	}
	return text
}

// LimitText writes a limit of the rate, which operators give in powers of 1024.
func LimitText(rate int64) string {
	if rate <= 0 {
		return "none"
	}
	return humanize.IBytes(uint64(rate)) + "/s"
}

// Moves reports whether the work goes on by itself.
func (r *Report) Moves() bool { return r.State == Copying || r.State == Comparing }
