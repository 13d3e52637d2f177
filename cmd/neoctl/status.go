package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// statusDocument is the JSON form of status: all that is known, and how well that is.
type statusDocument struct {
	*status.Status
	Health status.Health `json:"health"`
}

// parseStatus reads [--watch [SECONDS]].
func parseStatus(args []string) (order, error) {
	if len(args) == 0 {
		return showStatus, nil
	}
	if args[0] != "--watch" {
		return nil, fmt.Errorf("unexpected %q%s", args[0], conf.DidYouMean(args[0], []string{"--watch"}))
	}
	every := 2 * time.Second
	if err := atMost(args, 1, 2); err != nil {
		return nil, err
	}
	if len(args) == 2 {
		seconds, err := strconv.ParseFloat(args[1], 64)
		if err != nil || !(seconds >= 0.1 && seconds <= 86400) {
			return nil, fmt.Errorf("%q is not a number of seconds from 0.1 to 86400", args[1])
		}
		every = time.Duration(seconds * float64(time.Second))
	}
	return func(ctx context.Context, c *session) (string, error) { return watchStatus(ctx, c, every) }, nil
}

// showStatus prints how the cluster is. Whether it is well is for health to tell by its
// exit status.
func showStatus(ctx context.Context, c *session) (string, error) {
	s, err := status.Collect(ctx, c.Client)
	if err != nil {
		return "", err
	}
	if c.json {
		return jsonText(statusDocument{s, s.Health()})
	}
	return statusText(s), nil
}

// watchStatus prints it again and again until it is interrupted: on a terminal in place.
func watchStatus(ctx context.Context, c *session, every time.Duration) (string, error) {
	for {
		text, err := showStatus(ctx, c)
		if ctx.Err() != nil {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		switch {
		case c.json:
		case terminal(c.env.Stdout):
			text = "\x1b[H\x1b[2J" + text
		default:
			text += "\n"
		}
		if _, err := fmt.Fprint(c.env.Stdout, text); err != nil {
			return "", err
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return "", nil
		}
	}
}

// healthDocument is the JSON form of health.
type healthDocument struct {
	Cluster string    `json:"cluster"`
	Time    time.Time `json:"time"`
	status.Health
}

// showHealth prints how well the cluster is, and why it is not better.
func showHealth(ctx context.Context, c *session) (string, error) {
	s, err := status.Collect(ctx, c.Client)
	if err != nil {
		return "", err
	}
	return healthText(s, c.json)
}

// healthText is what health prints, and what it exits with.
func healthText(s *status.Status, asJSON bool) (text string, err error) {
	h := s.Health()
	if asJSON {
		text, err = jsonText(healthDocument{s.Cluster, s.Time, h})
		if err != nil {
			return "", err
		}
	} else {
		text = h.Level.String() + "\n"
		for _, r := range h.Reasons {
			text += r + "\n"
		}
	}
	if h.Level == status.OK {
		return text, nil
	}
	return text, &cli.Exit{Code: int(h.Level)}
}

// asUnhealthy returns what status and health print of a cluster whose admin cannot be asked.
func asUnhealthy(words []string, o *options, err error) (text string, exit error, ok bool) {
	if !unreached(err) {
		return "", nil, false
	}
	asJSON := o.json || slices.Contains(words, "--json")
	s := status.Unreachable(o.address, err)
	switch words[0] {
	case "health":
		text, exit = healthText(s, asJSON)
		return text, exit, true
	case "status":
		if !asJSON {
			return statusText(s), &cli.Exit{Code: 1}, true
		}
		if text, exit = jsonText(statusDocument{s, s.Health()}); exit == nil {
			exit = &cli.Exit{Code: 1}
		}
		return text, exit, true
	}
	return "", nil, false
}

// unreached reports whether the admin could not be asked, as opposed to a refusal.
func unreached(err error) bool {
	return errors.Is(err, errUnreachable) || errors.Is(err, link.ErrClosed) || errors.Is(err, context.DeadlineExceeded)
}

// statusText is a status on one screen.
func statusText(s *status.Status) string {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", key, fmt.Sprintf(format, args...))
	}
	name := s.Cluster
	if name == "" {
		name = "(the admin does not tell its name)"
	}
	h := s.Health()
	if s.Unknown == "" {
		line("cluster", "%s, %s, primary %s", name, s.State, orNone(s.Primary))
	} else if s.Cluster != "" {
		line("cluster", "%s", name)
	}
	line("health", "%s", strings.ToUpper(h.Level.String()))
	const most = 10
	for i, r := range h.Reasons {
		if i == most {
			line("", "and %d more: neoctl health", len(h.Reasons)-most)
			break
		}
		line("", "%s", r)
	}
	if s.Unknown != "" {
		return b.String()
	}
	line("partitions", "%d, %s, %s", len(s.Partitions.Rows), counted(s.Partitions.Replicas, "replica"), cellCounts(s))
	if s.Last != nil {
		line("last commit", "%s", ago(s.Last, s.Time))
	}
	if s.Backup != nil {
		line("backup of", "another cluster, complete up to %s", ago(s.Backup, s.Time))
	}
	if s.CommitsPerSecond != nil || s.LoadsPerSecond != nil {
		line("load", "%s commits/s, %s loads/s", rate(s.CommitsPerSecond), rate(s.LoadsPerSecond))
	}
	statusWork(s, line)
	b.WriteByte('\n')
	b.WriteString(statusNodes(s))
	return b.String()
}

// statusWork tells of what goes on beside serving.
func statusWork(s *status.Status, line func(key, format string, args ...any)) {
	if n := len(s.Replication); n > 0 {
		text := fmt.Sprintf("%s out of date", counted(n, "cell"))
		for _, r := range s.Replication {
			if !r.Active {
				continue
			}
			text += fmt.Sprintf("; %s copies partition %d", r.Node, r.Partition)
			switch {
			case r.Reached != nil && r.End != nil:
				text += fmt.Sprintf(", at %s of %s", shortTime(r.Reached.Time), shortTime(r.End.Time))
			case r.End != nil:
				text += ", transactions first"
			}
		}
		line("replication", "%s", text)
	}
	for _, i := range s.Imports {
		text := i.Node + " " + i.State
		if i.Position != nil && i.Size != nil && *i.Size > 0 && i.State != "done" {
			text += fmt.Sprintf(", %s of %s", humanize.Bytes(uint64(max(0, *i.Position))), humanize.Bytes(uint64(max(0, *i.Size))))
		}
		if i.Left != nil {
			text += fmt.Sprintf(", %s left", following.Duration(time.Duration(*i.Left*float64(time.Second))))
		}
		line("import", "%s", text)
	}
	for _, k := range s.Backups {
		what := "this cluster"
		if k.Cluster != "" {
			what = k.Cluster
		}
		due := "due not known"
		if k.Due != nil {
			due = "due " + following.Duration(time.Duration(*k.Due*float64(time.Second)))
		}
		if !k.Linked {
			due += ", NOT CONNECTED to the upstream master"
		}
		line("backup", "%s: %s", what, due)
	}
	if c := s.Check; c != nil {
		found := "no difference"
		if c.Differences > 0 {
			found = counted(c.Differences, "difference") + " on " + strings.Join(c.Nodes, ", ")
		}
		switch {
		case c.Ended == nil:
			since := ""
			if c.Begun != nil {
				since = " since " + shortTime(*c.Begun)
			}
			line("check", "goes on%s: %s so far", since, found)
		case !c.Complete:
			line("check", "%s: NOT COMPLETE, %s in what was compared", shortTime(*c.Ended), found)
		default:
			line("check", "%s: %s in %s", shortTime(*c.Ended), found, counted(c.Partitions, "partition"))
		}
	}
	if k := s.Pack; k != nil {
		text := "ordered " + shortTime(k.Order.Time)
		if k.UpTo != nil {
			text += ", up to " + shortTime(k.UpTo.Time)
		}
		switch {
		case k.Done:
			text += ": done"
		case !k.Signed:
			text += ": waits for an earlier order"
		default:
			text += ": not done yet by " + strings.Join(k.Waiting, ", ")
		}
		line("pack", "%s", text)
	}
}

// statusNodes is the table of the nodes.
func statusNodes(s *status.Status) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSTATE\tSINCE\tHOST\tADDRESS\tSERVES")
	for i := range s.Nodes {
		n := &s.Nodes[i]
		serves := strings.ToLower(n.Type)
		switch {
		case n.ID != "" && n.ID == s.Primary:
			serves = "primary master"
		case n.Database != "":
			serves = strings.TrimSpace(n.Adapter + " " + n.Database)
		}
		if text := nodeCells(n); text != "" {
			serves += ": " + text
		}
		if n.PackDisabled {
			serves += ", executes no pack orders"
		}
		since := "-"
		if n.Since != nil {
			since = shortTime(*n.Since)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", orNone(n.ID), n.State, since, orNone(n.Host), orNone(n.Address), serves)
	}
	_ = w.Flush() // to a strings.Builder
	return b.String()
}

// cellCounts is how many cells are in each state: 24 UP_TO_DATE, 3 OUT_OF_DATE.
func cellCounts(s *status.Status) string {
	all := map[string]int{}
	for _, row := range s.Partitions.Rows {
		for _, c := range row {
			all[c.State]++
		}
	}
	text := countTexts(all)
	if text == "" {
		return "no cell"
	}
	return text
}

func nodeCells(n *status.Node) string { return countTexts(n.Cells) }

func countTexts(counts map[string]int) string {
	var parts []string
	for _, state := range []string{"UP_TO_DATE", "FEEDING", "OUT_OF_DATE", "CORRUPTED", "DISCARDED"} {
		if counts[state] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[state], state))
		}
	}
	return strings.Join(parts, ", ")
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func rate(f *float64) string {
	switch {
	case f == nil:
		return "?"
	case *f >= 100:
		return fmt.Sprintf("%.0f", *f)
	}
	return fmt.Sprintf("%.1f", *f)
}

// shortTime writes a moment to the second.
func shortTime(t time.Time) string { return dateText(t.Truncate(time.Second)) + " UTC" }

// ago writes a transaction with how long ago it was.
func ago(m *status.Moment, now time.Time) string {
	return fmt.Sprintf("%s (%s), %s ago", m.TID, shortTime(tid.TID(m.TID).Time()), following.Duration(max(0, now.Sub(m.Time)).Truncate(time.Second)))
}
