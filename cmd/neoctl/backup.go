package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// exitNoBackup is what print backup exits with when there is none.
const exitNoBackup = 3

// parseBackup reads hold [TID] | release | run-now.
func parseBackup(args []string) (order, error) {
	if err := atMost(args, 1, 2); err != nil {
		return nil, err
	}
	var o following.Order
	switch args[0] {
	case "hold":
		if len(args) == 2 {
			t, err := parseTID(args[1])
			if err != nil {
				return nil, err
			}
			o.TID = proto.Some(t)
		}
	case "release":
		o.Kind = following.Release
	case "run-now":
		o.Kind = following.RunNow
	default:
		return nil, fmt.Errorf("unexpected %q%s", args[0], conf.DidYouMean(args[0], []string{"hold", "release", "run-now"}))
	}
	if o.Kind != following.Hold {
		if err := atMost(args, 1, 1); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, c *session) (string, error) { return orderBackup(ctx, c, o) }, nil
}

func orderBackup(ctx context.Context, c *session, o following.Order) (string, error) {
	if err := c.OrderBackup(ctx, o); err != nil {
		if errors.Is(err, ctl.ErrNoBackup) {
			return "", proto.Errorf(proto.Denied, "%v", err)
		}
		return "", err
	}
	return printBackup(ctx, c)
}

// printBackup shows how far this cluster follows another one, and the backups of this one.
func printBackup(ctx context.Context, c *session) (string, error) {
	list, err := c.Backups(ctx)
	switch {
	case errors.Is(err, ctl.ErrNoBackup) && c.json:
		return "[]\n", &cli.Exit{Code: exitNoBackup}
	case errors.Is(err, ctl.ErrNoBackup):
		return capital(err) + ".\n", &cli.Exit{Code: exitNoBackup}
	case err != nil:
		return "", err
	}
	if c.json {
		all := []status.Backup{}
		for _, b := range list {
			all = append(all, status.BackupOf(b))
		}
		return jsonText(all)
	}
	text, err := backupJSON(list)
	if err != nil {
		return "", err
	}
	for _, b := range list {
		text += backupText(b)
	}
	return text, nil
}

// backupJSON is a line for programs: by cluster, "" being this one; times in seconds, what is
// not known is null.
func backupJSON(list []ctl.Backup) (string, error) {
	type report struct {
		BackupTID   status.ID   `json:"backup_tid"`
		ReadableTID status.ID   `json:"readable_tid"`
		UpstreamTID *status.ID  `json:"upstream_tid"`
		WantedTID   *status.ID  `json:"wanted_tid"`
		Due         *float64    `json:"due"`
		Behind      bool        `json:"behind"`
		HoldTID     *status.ID  `json:"hold_tid"`
		Delay       float64     `json:"delay"`
		Closed      bool        `json:"closed"`
		Opens       *float64    `json:"opens"`
		Linked      bool        `json:"linked"`
		Rate        *int64      `json:"rate"`
		Gap         []status.ID `json:"gap"`
		Note        string      `json:"note"`
	}
	all := map[string]report{}
	for _, b := range list {
		r := status.BackupOf(b)
		gap := r.Gap
		if len(gap) == 0 {
			gap = nil // null, as programs know it
		}
		all[r.Cluster] = report{
			BackupTID: r.BackupTID, ReadableTID: r.ReadableTID, UpstreamTID: r.UpstreamTID, WantedTID: r.WantedTID, Due: r.Due, Behind: r.Behind,
			HoldTID: r.HoldTID, Delay: r.Delay, Closed: r.Closed, Opens: seconds(r.Opens), Linked: r.Linked, Rate: r.Rate, Gap: gap, Note: r.Note,
		}
	}
	var text strings.Builder
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(all); err != nil {
		return "", err
	}
	return "# " + text.String(), nil
}

// backupText tells all that is known of a backup, in lines.
func backupText(b ctl.Backup) string {
	var text strings.Builder
	name := "this cluster"
	if b.Cluster != "" {
		name = b.Cluster
	}
	fmt.Fprintf(&text, "%s: due %s\n", name, b.DueText())
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&text, "  %-15s %s\n", key+":", fmt.Sprintf(format, args...))
	}
	at := func(key string, t tid.TID, nothing string) {
		if t == tid.Zero {
			line(key, "%s", nothing)
			return
		}
		line(key, "%s", idAndTimeUTC(t))
	}
	at("readable", b.Readable, "nothing yet")
	at("kept", b.Backup, "nothing yet")
	at("wanted by now", b.Bound, "not known")
	at("upstream", b.Upstream, "not known")
	if !b.Linked {
		line("link", "NOT CONNECTED to the upstream master")
	}
	if b.Hold.OK {
		line("held at", "%s", idAndTimeUTC(b.Hold.V))
	}
	if b.Delay > 0 {
		line("delay", "%s", following.Duration(b.Delay))
	}
	switch {
	case b.Closed && !b.Opens.IsZero():
		line("closed until", "%s", b.Opens.UTC().Format("2006-01-02 15:04 UTC"))
	case b.Closed:
		line("closed", "it is not known until when")
	}
	if b.InGap() {
		line("gap", "nothing between %v and %v can be kept: the upstream cluster was packed", b.Gap[0], b.Gap[1])
	}
	if b.Rate > 0 {
		line("limit", "%s/s", humanize.IBytes(uint64(b.Rate)))
	}
	if b.Note != "" {
		line("note", "%s", strings.Join(strings.Fields(b.Note), " "))
	}
	return text.String()
}

// dueJSON is what the line for programs of the summary says of backups: their names, null
// being this cluster, and how late they are in seconds.
func dueJSON(list []ctl.Backup) (string, error) {
	due := [][]any{}
	for _, b := range list {
		var name any
		if b.Cluster != "" {
			name = b.Cluster
		}
		var seconds any
		if b.Upstream != tid.Zero {
			seconds = b.Due.Seconds()
		}
		due = append(due, []any{name, seconds})
	}
	slices.SortStableFunc(due, func(a, b []any) int { return strings.Compare(fmt.Sprint(a[0]), fmt.Sprint(b[0])) })
	text, err := json.Marshal(due)
	return string(text), err
}
