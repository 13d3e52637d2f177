package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type costOptions struct {
	common
	prices  string
	commits float64
}

func newCostCommand(env *cli.Env) *cobra.Command {
	var o costOptions
	cmd := &cobra.Command{
		Use:   "cost [options]",
		Short: "Forecast requests, bytes and their price",
		Long: `Forecast what "follow" asks of the store with the configured interval, what is stored and how that
grows, and what a restore and a new lineage (rebase) would cost. Commits are those of the last
week, or --commits-per-day, at random times: what comes in bursts needs fewer requests.

Prices are in USD: per million requests ("put", "get", "list"), per GB and month ("storage"), per GB that is
read ("egress"). --prices names a file of JSON with some of them; the default is about that of AWS S3:

  ` + defaultPriceText + exitStatus,
		Example: "  neobackup cost\n  neobackup cost --set interval=10s --commits-per-day 400000",
		Args:    cobra.NoArgs,
		RunE: o.command(env, func(ctx context.Context, args []string) error {
			if o.given("commits-per-day") && !(o.commits > 0 && o.commits <= mostCommits) {
				return cli.Usagef("--commits-per-day %v: want more than 0, and at most %v", o.commits, float64(mostCommits))
			}
			return o.with(env, func(ctx context.Context, s *session) error { return runCost(ctx, env, &o, s) })(ctx, args)
		}),
	}
	cli.Path(cmd.Flags(), &o.prices, "prices", "", "", "file of JSON with prices")
	cmd.Flags().Float64Var(&o.commits, "commits-per-day", 0, "transactions per day (default: as in the last week)")
	o.addFlags(cmd)
	return cmd
}

// mostCommits is more than any database has in a day.
const mostCommits = 1e9

// prices are in USD.
type prices struct {
	Put     float64 `json:"put"`  // per million
	Get     float64 `json:"get"`  // per million
	List    float64 `json:"list"` // per million
	Storage float64 `json:"storage"`
	Egress  float64 `json:"egress"`
}

const defaultPriceText = `{"put":5,"get":0.4,"list":5,"storage":0.023,"egress":0.09}`

func readPrices(path string) (prices, error) {
	var p prices
	if err := json.Unmarshal([]byte(defaultPriceText), &p); err != nil || path == "" {
		return p, err
	}
	f, err := os.Open(path)
	if err != nil {
		return p, wrong(err)
	}
	defer f.Close() // only read
	d := json.NewDecoder(io.LimitReader(f, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, wrong(fmt.Errorf("%s: %w: want %s", path, err, defaultPriceText))
	}
	for _, v := range []float64{p.Put, p.Get, p.List, p.Storage, p.Egress} {
		if v < 0 {
			return p, wrong(fmt.Errorf("%s: a negative price", path))
		}
	}
	return p, nil
}

// load is what the history was like lately.
type load struct {
	Txns   float64 // per day
	Stored float64 // bytes per day, once stored
	// Bytes of a transaction behind a tail, before it is merged, and as text. 0: not known.
	Tail, Text float64
}

// merged returns the bytes of a transaction, once stored.
func (l *load) merged() float64 {
	if l.Txns == 0 {
		return 0
	}
	return l.Stored / l.Txns
}

// forecast is what following costs.
type forecast struct {
	CommitsPerDay   float64 `json:"commits_per_day"`
	PutsPerDay      float64 `json:"puts_per_day"`
	ManifestsPerDay float64 `json:"manifests_per_day"`
	UploadPerDay    float64 `json:"upload_bytes_per_day"`
	Growth          float64 `json:"stored_bytes_per_month"`
	Stored          int64   `json:"stored_bytes"`
	RequestsUSD     float64 `json:"requests_usd_per_month"`
	StorageUSD      float64 `json:"storage_usd_per_month"`

	RestoreGets  float64 `json:"restore_gets"`
	RestoreBytes int64   `json:"restore_bytes"`
	RestoreUSD   float64 `json:"restore_usd"`

	RebasePuts  float64 `json:"rebase_puts"`
	RebaseBytes int64   `json:"rebase_bytes"`
	RebaseUSD   float64 `json:"rebase_usd"` // requests, and storage of both lineages for keep_lineages_days
}

const monthDays = 30

// estimate is a forecast: of following, by what the writer would do.
func estimate(l load, set *config.Repository, stored, objects int64, p prices) forecast {
	c := writer.Forecast(writer.CostOptions{
		Interval: set.Interval, Heartbeat: set.Heartbeat, SegmentSize: set.SegmentSize,
		Commits: l.Txns, Merged: l.merged(), Tail: l.Tail, Text: l.Text, Sealed: min(objects, stored/set.SegmentSize),
	})
	f := forecast{CommitsPerDay: l.Txns, ManifestsPerDay: c.Manifests, PutsPerDay: c.Puts, UploadPerDay: c.Uploaded, Stored: stored, Growth: l.Stored * monthDays}
	f.RequestsUSD = (c.Puts*p.Put + c.Gets*p.Get + c.Lists*p.List) * monthDays / 1e6
	f.StorageUSD = (float64(stored) + f.Growth) / 1e9 * p.Storage
	f.RestoreGets, f.RestoreBytes = float64(objects)+10, stored
	f.RestoreUSD = f.RestoreGets*p.Get/1e6 + float64(stored)/1e9*p.Egress
	// Segments, tails that name 16 of them, pages of 64, the first and the last manifest, a tail more in the old
	// lineage, and the note.
	f.RebasePuts, f.RebaseBytes = math.Ceil(float64(stored)/float64(set.SegmentSize))*(1+1.0/16+1.0/64)+5, stored
	f.RebaseUSD = f.RebasePuts*p.Put/1e6 + float64(stored)/1e9*p.Storage*float64(set.KeepLineagesDays)/monthDays
	return f
}

// lately returns what the history was like in the last week, or since the lineage was filled, and what is
// stored in all: bytes of segments, objects that a restore reads, and transactions.
func lately(ctx context.Context, repo *backup.Repository, state *backup.State, now time.Time) (l load, stored, objects, txns int64, err error) {
	const days = 7
	week := tid.FromTime(now.AddDate(0, 0, -days))
	// Bytes of transactions of that week. What was read after a pack says little of what comes: it lacks
	// what the pack removed.
	var packed tid.TID
	if holes := state.Holes(); len(holes) > 0 {
		packed = holes[len(holes)-1].To
	}
	var since time.Time // of the first transaction that counts
	type sum struct{ bytes, txns, text float64 }
	var sums [2]struct{ merged, tails sum } // up to the pack, and after it
	for part, err := range repo.Parts(ctx, state, tid.Zero, state.Head()) {
		if err != nil {
			return l, 0, 0, 0, err
		}
		seg := part.Segment
		if seg == nil {
			continue
		}
		stored, objects, txns = stored+seg.Bytes, objects+1, txns+seg.Txns
		share := shareAfter(seg.After.Time(), seg.End().Time(), week.Time())
		if share == 0 {
			continue
		}
		if seg.After == tid.Zero { // when it begins is not known
			l.Txns = share * float64(seg.Txns) / days
		} else {
			if since.IsZero() {
				l.Txns, since = 0, seg.After.Time()
				if since.Before(week.Time()) {
					since = week.Time()
				}
			}
			l.Txns += share * float64(seg.Txns)
		}
		of := &sums[0]
		if seg.After >= packed {
			of = &sums[1]
		}
		in := &of.merged
		if seg.Offset() != 0 { // behind a tail: little of it is data
			in = &of.tails
		}
		in.bytes += share * float64(seg.Bytes-min(seg.Bytes, writer.EmptySegment))
		in.txns += share * float64(seg.Txns)
		in.text += share * float64(seg.Text)
	}
	for _, t := range state.Tails {
		if t.Bytes == 0 { // nothing is behind it, but it is read
			objects++
		}
	}
	if !since.IsZero() {
		l.Txns /= max(now.Sub(since).Hours()/24, 1.0/24)
	}
	of := sums[1]
	if of.merged.txns+of.tails.txns == 0 {
		of = sums[0]
	}
	if of.tails.txns > 0 {
		l.Tail = of.tails.bytes / of.tails.txns
	}
	l.Stored = l.Txns * l.Tail
	if of.merged.txns > 0 {
		l.Stored = l.Txns * of.merged.bytes / of.merged.txns
	}
	if n := of.merged.txns + of.tails.txns; n > 0 {
		l.Text = (of.merged.text + of.tails.text) / n
	}
	return l, stored, objects, txns, nil
}

func runCost(ctx context.Context, env *cli.Env, o *costOptions, s *session) error {
	p, err := readPrices(o.prices)
	if err != nil {
		return err
	}
	at, err := s.place(ctx, "")
	if err != nil {
		return err
	}
	s.warn(at)
	head := at.state.Head()
	if head == tid.Zero && o.commits == 0 {
		return hint(errors.New("nothing was backed up yet: there is nothing to conclude from"), "give --commits-per-day, or run snapshot first")
	}
	l, stored, objects, txns, err := lately(ctx, s.Repository, at.state, o.now())
	if err != nil {
		return err
	}
	if o.commits > 0 {
		if txns > 0 {
			l.Stored = float64(stored) / float64(txns) * o.commits
		}
		l.Txns = o.commits
	}
	f := estimate(l, s.set, stored, objects, p)
	if o.json {
		return o.line(env.Stdout, struct {
			V        int    `json:"v"`
			Interval string `json:"interval"`
			Prices   prices `json:"prices"`
			forecast
		}{1, config.FormatDuration(s.set.Interval), p, f})
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "interval\t%s, %.0f commits a day\n", config.FormatDuration(s.set.Interval), f.CommitsPerDay)
	fmt.Fprintf(w, "requests\t%.0f PUT a day, of them %.0f manifests\t%.2f USD a month\n", f.PutsPerDay, f.ManifestsPerDay, f.RequestsUSD)
	fmt.Fprintf(w, "upload\t%s a day\n", size(int64(f.UploadPerDay)))
	fmt.Fprintf(w, "stored\t%s, %s more a month\t%.2f USD a month\n", size(f.Stored), size(int64(f.Growth)), f.StorageUSD)
	fmt.Fprintf(w, "a restore\t%.0f GET, %s\t%.2f USD\n", f.RestoreGets, size(f.RestoreBytes), f.RestoreUSD)
	fmt.Fprintf(w, "a rebase\t%.0f PUT, %s at most, two lineages for %d days\t%.2f USD\n", f.RebasePuts, size(f.RebaseBytes), s.set.KeepLineagesDays, f.RebaseUSD)
	return w.Flush()
}

// shareAfter returns which part of the time from a to b is after t.
func shareAfter(a, b, t time.Time) float64 {
	switch {
	case !b.After(t):
		return 0
	case !a.Before(t):
		return 1
	}
	return b.Sub(t).Seconds() / b.Sub(a).Seconds()
}
