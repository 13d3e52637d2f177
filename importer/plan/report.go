package plan

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/neozodb/neo/cluster/storage/adapter"
)

// Report writes what was found, for people.
func (p *Plan) Report(w io.Writer) error {
	var b strings.Builder
	for _, s := range p.Sources {
		p.source(&b, s)
	}
	if len(p.Mounts) > 0 {
		b.WriteString("\nMount points\n")
		for _, mt := range p.Mounts {
			to := mt.Target
			switch {
			case to != "":
				to = fmt.Sprintf("object %d of %s", uint64(mt.TargetOID), to)
			case mt.Kept:
				to = "stays a mount point"
			default:
				to = "undecided"
			}
			fmt.Fprintf(&b, "  %s %s (object %d): %s; %s\n", mt.Source, mt.Path, uint64(mt.OID), to, mt.Why)
		}
	}
	if e := p.Estimate; e != nil {
		p.estimate(&b, e)
	}
	for _, l := range []struct {
		level Level
		title string
	}{{Must, "To be decided or repaired before the import"}, {Note, "Good to know"}} {
		title := "\n" + l.title + "\n"
		for _, f := range p.Findings {
			if f.Level != l.level {
				continue
			}
			b.WriteString(title)
			title = ""
			source := ""
			if f.Source != "" && len(p.Sources) > 1 {
				source = f.Source + ": "
			}
			fmt.Fprintf(&b, "- %s%s.\n", source, f.Text)
			if f.Do != "" {
				fmt.Fprintf(&b, "  -> %s.\n", f.Do)
			}
		}
	}
	if p.Musts() == 0 {
		b.WriteString("\nNothing keeps the import from beginning.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (p *Plan) source(b *strings.Builder, s *Source) {
	fmt.Fprintf(b, "%s: %s\n", s.Name, s.Where)
	if !s.Read {
		if s.lookup == nil {
			b.WriteString("  was not looked at\n")
		} else {
			fmt.Fprintf(b, "  objects up to number %d, last transaction %v; it was not read\n", uint64(s.Next-1), s.Last)
		}
		return
	}
	fmt.Fprintf(b, "  %s, %s objects, last transaction %v (%s)\n", size(float64(s.Bytes)), humanize.Comma(s.Objects), s.Last, s.Last.Time().Format("2006-01-02 15:04:05"))
	switch {
	case s.Whole:
		fmt.Fprintf(b, "  %s transactions, %s records, %s of data, the largest record has %s\n",
			humanize.Comma(s.Transactions), humanize.Comma(s.Records), size(float64(s.DataBytes)), size(float64(s.LargestData)))
	case p.Fast:
		b.WriteString("  transactions and records were not counted (--fast)\n")
	default:
		fmt.Fprintf(b, "  %s transactions and %s records before the damage\n", humanize.Comma(s.Transactions), humanize.Comma(s.Records))
	}
	if !p.Fast {
		if s.Errors+s.Warnings == 0 {
			b.WriteString("  the check has found nothing\n")
		} else {
			fmt.Fprintf(b, "  the check has found %d errors and %d warnings:\n", s.Errors, s.Warnings)
		}
	}
	for _, text := range s.Problems {
		fmt.Fprintf(b, "    %s\n", text)
	}
	if more := s.Errors + s.Warnings - int64(len(s.Problems)); more > 0 {
		fmt.Fprintf(b, "    and %d more: neofs check shows all\n", more)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Foreign)) {
		fmt.Fprintf(b, "  %s references to database %s\n", humanize.Comma(s.Foreign[name]), name)
	}
}

func (p *Plan) estimate(b *strings.Builder, e *Estimate) {
	fmt.Fprintf(b, "\nWhat an import takes on this machine\n")
	if e.Duration.High < 2 {
		b.WriteString("  duration:    seconds\n")
	} else {
		fmt.Fprintf(b, "  duration:    about %s, between %s and %s\n", seconds(e.Duration.Likely), seconds(e.Duration.Low), seconds(e.Duration.High))
	}
	fmt.Fprintf(b, "  destination: about %s, between %s and %s", size(e.Destination.Likely), size(e.Destination.Low), size(e.Destination.High))
	if e.Free >= 0 {
		fmt.Fprintf(b, "; %s are free there", size(float64(e.Free)))
	}
	fmt.Fprintf(b, "\n  memory:      about %s (a rule of thumb: 24 bytes for each object beside what a node needs anyway)\n", size(float64(e.Memory)))
	share := 100 * float64(e.SampleBytes) / float64(max(1, e.Bytes))
	fmt.Fprintf(b, "  From a sample: %s (%.3g %% of the sources) from %d places, %s transactions and %s records, were imported into an SQLite database\n",
		size(float64(e.SampleBytes)), share, e.Places, humanize.Comma(e.Transactions), humanize.Comma(e.Records))
	fmt.Fprintf(b, "  that was removed again, in %v: reading %v, compression %v, database %v.\n", round(e.Took), round(e.Reading), round(e.Packing), round(e.Writing))
	if share < 99 {
		b.WriteString("  A large database is slower than a sample, which fits into memory; clients that work meanwhile come first. Both may double the duration.\n")
	}
	if p.Import != nil && p.Import.Destination.Adapter != adapter.SQLite {
		fmt.Fprintf(b, "  Another database, as %s will be, may be much slower or faster.\n", p.Import.Destination.Adapter)
	}
	switch parts := max(e.Reading, e.Packing, e.Writing); {
	case parts == e.Reading:
		b.WriteString("  Reading the source is what is slow.\n")
	case parts == e.Packing:
		b.WriteString("  Compression is what is slow.\n")
	default:
		b.WriteString("  Writing to the database is what is slow.\n")
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// seconds writes a duration as precisely as it is known.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", max(1, d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.1f h", d.Hours())
}

func size(n float64) string { return humanize.Bytes(uint64(max(0, n))) }
