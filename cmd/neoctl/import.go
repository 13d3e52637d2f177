package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// What print import exits with, beside 0.
const (
	exitImportBad = 1
	exitNoImport  = 3
)

// parsePrintImport reads [--follow].
func parsePrintImport(args []string) (order, error) {
	if err := atMost(args, 0, 1); err != nil {
		return nil, err
	}
	if len(args) == 0 {
		return printImport, nil
	}
	if args[0] != "--follow" {
		return nil, fmt.Errorf("unexpected %q%s", args[0], conf.DidYouMean(args[0], []string{"--follow"}))
	}
	return followImport, nil
}

func printImport(ctx context.Context, c *session) (string, error) {
	list, err := c.Imports(ctx)
	return importsText(list, err, c.json)
}

// followImport shows how far an import is until nothing more happens by itself.
func followImport(ctx context.Context, c *session) (string, error) {
	list, err := c.FollowImports(ctx)
	return importsText(list, err, c.json)
}

// follower returns what tells on stderr how far imports are. end completes the line.
func follower(env *cli.Env) (show func([]ctl.Import), end func()) {
	status := cli.NewStatus(env)
	status.Every = progressEvery
	return func(list []ctl.Import) {
		if len(list) == 0 {
			status.Show("", "nothing is heard of the import: its storage, or the primary master, is lost")
			return
		}
		states := ""
		for _, i := range list {
			states += fmt.Sprintln(i.Node, i.State)
		}
		status.Show(states, importLines(list))
	}, status.End
}

// importLines tells of imports in a line.
func importLines(list []ctl.Import) string {
	var lines []string
	for _, i := range list {
		lines = append(lines, fmt.Sprintf("%v: %s", i.Node, i.Report.String()))
	}
	return strings.Join(lines, "; ")
}

// importsText is what print import prints, and what it exits with.
func importsText(list []ctl.Import, err error, asJSON bool) (string, error) {
	switch {
	case errors.Is(err, ctl.ErrNoImport) && asJSON:
		return "[]\n", &cli.Exit{Code: exitNoImport}
	case errors.Is(err, ctl.ErrNoImport):
		return capital(err) + ".\n", &cli.Exit{Code: exitNoImport}
	case err != nil:
		return "", err
	}
	var text string
	if asJSON {
		all := []status.Import{}
		for _, i := range list {
			all = append(all, status.ImportOf(i))
		}
		text, err = jsonText(all)
	} else {
		text, err = importJSON(list)
	}
	if err != nil {
		return "", err
	}
	bad := false
	for _, i := range list {
		if !asJSON {
			text += importText(i)
		}
		bad = bad || i.State.Bad()
	}
	if bad {
		return text, &cli.Exit{Code: exitImportBad}
	}
	return text, nil
}

// importJSON is a line for programs: by storage; sizes in bytes, times in seconds, what is
// not known is null.
func importJSON(list []ctl.Import) (string, error) {
	type report struct {
		State        string     `json:"state"`
		LastTID      status.ID  `json:"last_tid"`
		EndTID       status.ID  `json:"end_tid"`
		Transactions int64      `json:"transactions"`
		Records      int64      `json:"records"`
		Bytes        int64      `json:"bytes"`
		Position     *int64     `json:"position"`
		Size         *int64     `json:"size"`
		Rate         float64    `json:"rate"`
		Left         *float64   `json:"left"`
		Slow         *string    `json:"slow"`
		Limit        *int64     `json:"limit"`
		Skipped      int64      `json:"skipped"`
		Twice        int64      `json:"twice"`
		Blobs        int64      `json:"blobs"`
		ComparedTID  *status.ID `json:"compared_tid"`
		ComparedAt   *float64   `json:"compared_at"`
		Differences  *int64     `json:"differences"`
		WriteBackTID *status.ID `json:"write_back_tid"`
		Behind       *int64     `json:"behind"`
		Note         string     `json:"note"`
	}
	all := map[string]report{}
	for _, i := range list {
		r := status.ImportOf(i)
		all[r.Node] = report{
			State: r.State, LastTID: r.LastTID, EndTID: r.EndTID, Transactions: r.Transactions, Records: r.Records, Bytes: r.Bytes,
			Position: r.Position, Size: r.Size, Rate: r.Rate, Left: r.Left, Slow: r.Slow, Limit: r.Limit,
			Skipped: r.Skipped, Twice: r.Twice, Blobs: r.Blobs, ComparedTID: r.ComparedTID, ComparedAt: seconds(r.ComparedAt),
			Differences: r.Differences, WriteBackTID: r.WriteBackTID, Behind: r.Behind, Note: r.Note,
		}
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(all); err != nil {
		return "", err
	}
	return "# " + b.String(), nil
}

// seconds returns a moment in seconds since 1970, nil if it is not known.
func seconds(t *time.Time) *float64 {
	if t == nil {
		return nil
	}
	s := float64(t.UnixMilli()) / 1000
	return &s
}

// waitsFor says in words what a copy is slowed down by.
var waitsFor = map[string]string{
	"source": "the sources", "processor": "the processors", "database": "the database it writes to", "clients": "the clients, which come first", "limit": "the limit",
}

// importText tells all that is known of an import, in lines.
func importText(i ctl.Import) string {
	var b strings.Builder
	state := i.State.String()
	if i.State.Bad() {
		state = strings.ToUpper(state)
	}
	fmt.Fprintf(&b, "%v: %s\n", i.Node, state)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "  %-15s %s\n", key+":", fmt.Sprintf(format, args...))
	}
	if i.Last == tid.Zero {
		line("copied up to", "nothing yet")
	} else {
		line("copied up to", "%s", idAndTime(i.Last))
	}
	if i.End != tid.Zero {
		line("sources end at", "%s", idAndTime(i.End))
	}
	if i.Size > 0 {
		line("copied", "%s", i.Copied())
	}
	line("transactions", "%s, with %s records of %s", humanize.Comma(i.Transactions), humanize.Comma(i.Records), humanize.Bytes(uint64(i.Bytes)))
	if i.Skipped > 0 {
		line("LEFT OUT", "%s by order, which the log of the storage names", counted(int(i.Skipped), "record"))
	}
	if i.Twice > 0 {
		line("left out", "%s before a later one of the same object in the same transaction", counted(int(i.Twice), "record"))
	}
	if i.Blobs > 0 {
		line("blobs", "%s, whose files are NOT imported", counted(int(i.Blobs), "record"))
	}
	if i.Moves() {
		if i.Rate >= 1 {
			line("rate", "%s/s", humanize.Bytes(uint64(i.Rate)))
		}
		if i.Left > 0 {
			line("time left", "%s", importing.Duration(i.Left))
		}
		if i.Slow != "" {
			slow := waitsFor[i.Slow]
			if slow == "" {
				slow = i.Slow
			}
			line("waits for", "%s", slow)
		}
	}
	if i.Limit > 0 {
		line("limit", "%s", importing.LimitText(i.Limit))
	}
	if i.Compared != tid.Zero {
		found := "no difference"
		if i.Differences > 0 {
			found = fmt.Sprintf("%s DIFFERENT", humanize.Comma(i.Differences))
		}
		at := ""
		if !i.ComparedAt.IsZero() {
			at = " at " + dateText(i.ComparedAt.Truncate(time.Second))
		}
		line("compared", "%s%s, up to %s", found, at, idAndTime(i.Compared))
	}
	if i.WriteBack != tid.Zero {
		behind := "nothing is left"
		if i.Behind > 0 {
			behind = fmt.Sprintf("at least %s to go", counted(int(i.Behind), "transaction"))
		}
		line("written back", "up to %s, %s", idAndTime(i.WriteBack), behind)
	}
	note := i.Note
	if note == "" && i.State == importing.Done {
		note = importing.DoneNote
	}
	if note != "" {
		line("note", "%s", strings.ReplaceAll(note, "\n", "\n"+strings.Repeat(" ", 18)))
	}
	return b.String()
}

// idAndTimeUTC writes a TID with its time, for people who may not know that all times are UTC.
func idAndTimeUTC(t tid.TID) string {
	return fmt.Sprintf("%v (%s UTC)", t, dateText(t.Time().Truncate(time.Second)))
}

// idAndTime writes a TID as the logs do, with its time.
func idAndTime(t tid.TID) string {
	return fmt.Sprintf("%v (%s)", t, dateText(t.Time().Truncate(time.Second)))
}

// parseImport reads pause | resume | limit RATE | compare | skip TID[:OID].
func parseImport(args []string) (order, error) {
	if len(args) == 0 {
		return nil, errors.New("argument missing")
	}
	var o importing.Order
	args, values := args[:1], args[1:]
	wanted := 0
	var err error
	switch args[0] {
	case "pause":
		o.Kind = importing.Pause
	case "resume":
		o.Kind = importing.Resume
	case "compare":
		o.Kind = importing.Compare
	case "limit":
		o.Kind, wanted = importing.Limit, 1
	case "skip":
		o.Kind, wanted = importing.Skip, 1
	default:
		return nil, fmt.Errorf("unexpected %q%s", args[0], conf.DidYouMean(args[0], []string{"pause", "resume", "limit", "compare", "skip"}))
	}
	if err := atMost(values, wanted, wanted); err != nil {
		return nil, err
	}
	switch o.Kind {
	case importing.Limit:
		o.Rate, err = parseRate(values[0])
	case importing.Skip:
		o.TID, o.OID, err = parseSkipped(values[0])
	}
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *session) (string, error) {
		err := c.OrderImport(ctx, o)
		if errors.Is(err, ctl.ErrNoImport) {
			return "", proto.Errorf(proto.Denied, "%s", capital(err))
		}
		if err != nil {
			return "", err
		}
		list, err := c.Imports(ctx)
		if errors.Is(err, ctl.ErrNoImport) { // it was lost since
			return "done\n", nil
		}
		return strings.ReplaceAll(importLines(list), "; ", "\n") + "\n", err
	}, nil
}

// parseRate reads bytes per second: a size, with /s or without, or none.
func parseRate(s string) (int64, error) {
	if s == "none" || s == "0" {
		return 0, nil
	}
	n, err := client.ParseSize(strings.TrimSuffix(s, "/s"))
	if err != nil {
		return 0, fmt.Errorf("%w, per second; or none", err)
	}
	return int64(n), nil
}

// parseSkipped reads TID[:OID]: 16 hexadecimal digits each, as logs and print import show
// them, or tid:<integer> and an integer.
func parseSkipped(s string) (t tid.TID, oid proto.Opt[tid.OID], err error) {
	number := len(s) > 4 && strings.EqualFold(s[:4], "tid:")
	if number {
		s = s[4:]
	}
	first, second, more := strings.Cut(s, ":")
	// A bare integer would be a moment elsewhere.
	t, err = tid.Parse(first)
	if digits, ok := strings.CutPrefix(strings.ToLower(first), "0x"); ok && !number {
		var n uint64
		n, err = strconv.ParseUint(digits, 16, 64)
		t = tid.TID(n)
	}
	if number {
		var n uint64
		n, err = strconv.ParseUint(first, 0, 64)
		t = tid.TID(n)
	}
	if err != nil || t == tid.Zero || t > tid.Max {
		return 0, oid, fmt.Errorf("%q is not the id of one transaction: want 16 hexadecimal digits, 0x and hexadecimal digits, or tid:<integer>", first)
	}
	if more {
		var n uint64
		if o, err := tid.ParseOID(second); err == nil {
			n = uint64(o)
		} else if n, err = strconv.ParseUint(second, 0, 64); err != nil {
			n = math.MaxUint64
		}
		if n > uint64(tid.MaxOID) {
			return 0, oid, fmt.Errorf("%q is not an object id: want 16 hexadecimal digits, or an integer", second)
		}
		oid = proto.Some(tid.OID(n))
	}
	return t, oid, nil
}
