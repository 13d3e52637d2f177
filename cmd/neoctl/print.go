package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/tid"
)

func printCluster(ctx context.Context, c *session) (string, error) {
	s, err := c.ClusterState(ctx)
	if err == nil && c.json {
		return jsonText(map[string]string{"state": s.String()})
	}
	return s.String() + "\n", err
}

func printPrimary(ctx context.Context, c *session) (string, error) {
	id, err := c.Primary(ctx)
	if err == nil && c.json {
		return jsonText(map[string]string{"primary": id.String()})
	}
	return id.String() + "\n", err
}

func printNodes(ctx context.Context, c *session, typ proto.Opt[proto.NodeType]) (string, error) {
	if c.json {
		nodes, err := namedNodes(ctx, c, typ)
		if err != nil {
			return "", err
		}
		return jsonText(nodes)
	}
	nodes, err := c.Nodes(ctx, typ)
	if err != nil {
		return "", err
	}
	return nodeTable(nodes), nil
}

// nodeTable aligns the columns; nodes without id come last.
func nodeTable(nodes []proto.Node) string {
	if len(nodes) == 0 {
		return "Empty list!\n"
	}
	nodes = slices.Clone(nodes)
	slices.SortStableFunc(nodes, func(a, b proto.Node) int {
		if (a.ID == 0) != (b.ID == 0) {
			if a.ID == 0 {
				return 1
			}
			return -1
		}
		if a.ID != b.ID {
			return int(a.ID) - int(b.ID)
		}
		return strings.Compare(a.Addr.String(), b.Addr.String())
	})
	rows := make([][5]string, len(nodes))
	var width [5]int
	for i, n := range nodes {
		since := "None"
		if n.IDTimestamp.OK {
			since = dateText(unixTime(n.IDTimestamp.V))
		}
		rows[i] = [5]string{n.ID.String(), n.Type.String(), n.Addr.String(), n.State.String(), since}
		for k, cell := range rows[i] {
			width[k] = max(width[k], len(cell))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%-*s | %-*s | %-*s | %-*s | %s\n", width[0], r[0], width[1], r[1], width[2], r[2], width[3], r[3], r[4])
	}
	return b.String()
}

// unixTime converts seconds since 1970 to the nearest microsecond.
func unixTime(s float64) time.Time {
	sec, frac := math.Modf(s)
	return time.Unix(int64(sec), 0).Add(time.Duration(math.RoundToEven(frac*1e6)) * time.Microsecond)
}

// dateText writes a moment in UTC as Python's datetime does: the fraction only if
// it is not zero.
func dateText(t time.Time) string {
	t = t.UTC()
	if t.Nanosecond() == 0 {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("2006-01-02 15:04:05.000000")
}

func tableHead(p *proto.AnswerPartitionList) string {
	id := "None"
	if p.PTID.OK {
		id = fmt.Sprint(p.PTID.V)
	}
	return fmt.Sprintf("# ptid: %s, replicas: %d\n", id, p.Replicas)
}

func printTable(ctx context.Context, c *session) (string, error) {
	p, err := c.PartitionTable(ctx, 0, 0, 0)
	if err != nil {
		return "", err
	}
	if c.json {
		return tableJSON(0, p)
	}
	text, err := picture(ctx, c, p.Rows)
	return tableHead(p) + text, err
}

// picture shows rows with one line per storage that has cells or runs.
func picture(ctx context.Context, c *session, rows [][]proto.Cell) (string, error) {
	nodes, err := c.Nodes(ctx, proto.Some(proto.Storage))
	if err != nil {
		return "", err
	}
	return parttab.Text(rows, shown(rows, nodes)) + "\n", nil
}

// shown returns the nodes of a picture.
func shown(rows [][]proto.Cell, nodes []proto.Node) []proto.Node {
	hasCells := map[proto.NodeID]bool{}
	for _, row := range rows {
		for _, cell := range row {
			hasCells[cell.ID] = true
		}
	}
	var list []proto.Node
	for _, n := range nodes {
		if hasCells[n.ID] || n.State == proto.NodeRunning {
			list = append(list, n)
		}
		delete(hasCells, n.ID)
	}
	for id := range hasCells { // the admin has not heard of it
		list = append(list, proto.Node{ID: id, State: proto.NodeUnknown})
	}
	return list
}

func printRows(ctx context.Context, c *session, min, max int, node proto.NodeID) (string, error) {
	p, err := c.PartitionTable(ctx, min, max, node)
	if err != nil {
		return "", err
	}
	if c.json {
		return tableJSON(min, p)
	}
	return tableHead(p) + rowTable(min, p.Rows), nil
}

// tableJSON is the table, or some rows of it, as a status has it; first is the partition of the
// first row.
func tableJSON(first int, p *proto.AnswerPartitionList) (string, error) {
	return jsonText(struct {
		First int `json:"first"`
		status.Partitions
	}{first, status.PartitionsOf(p)})
}

func rowTable(first int, rows [][]proto.Cell) string {
	var b strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&b, "%03d |", first+i)
		for _, c := range row {
			fmt.Fprintf(&b, " %v - %v |", c.ID, c.State)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func printIDs(ctx context.Context, c *session) (string, error) {
	ids, err := c.LastIDs(ctx)
	if err != nil {
		return "", err
	}
	if c.json {
		return idsJSON(ids)
	}
	return idText(ids), nil
}

// idsJSON is where the database is, with the names of a status.
func idsJSON(ids *ctl.LastIDs) (string, error) {
	var doc struct {
		LastOID *status.OID    `json:"last_oid"`
		Last    *status.Moment `json:"last"`
		Backup  *status.Moment `json:"backup"`
		PTID    *uint64        `json:"ptid"`
	}
	if ids.LastOID.OK {
		oid := status.OID(ids.LastOID.V)
		doc.LastOID = &oid
	}
	doc.Last, doc.Backup = status.MomentOf(ids.LastTID.V), status.MomentOf(ids.BackupTID.V)
	if ids.PTID.OK {
		doc.PTID = &ids.PTID.V
	}
	return jsonText(doc)
}

func idText(ids *ctl.LastIDs) string {
	var b strings.Builder
	switch {
	case ids.BackupTID.OK:
		fmt.Fprintf(&b, "backup_tid = %s\n", tidText(ids.BackupTID))
	case ids.LastOID.OK:
		fmt.Fprintf(&b, "last_oid = %#x\n", uint64(ids.LastOID.V))
	default:
		b.WriteString("last_oid = None\n")
	}
	fmt.Fprintf(&b, "last_tid = %s\n", tidText(ids.LastTID))
	ptid := "None"
	if ids.PTID.OK {
		ptid = fmt.Sprint(ids.PTID.V)
	}
	fmt.Fprintf(&b, "last_ptid = %s\n", ptid)
	return b.String()
}

func tidText(t proto.Opt[tid.TID]) string {
	if !t.OK {
		return "None"
	}
	return fmt.Sprintf("%#x (%s)", uint64(t.V), dateText(t.V.Time()))
}

func printSummary(ctx context.Context, c *session) (string, error) {
	if c.json {
		return summaryJSON(ctx, c)
	}
	p, err := c.Summary(ctx)
	if err != nil {
		return "", err
	}
	due := ""
	if ctl.HasBackup(p) {
		list, err := c.Backups(ctx)
		if err != nil && !errors.Is(err, ctl.ErrNoBackup) {
			return "", err
		}
		if due, err = dueJSON(list); err != nil {
			return "", err
		}
	}
	return summaryText(p, due)
}

// summaryJSON is the summary with the names of a status.
func summaryJSON(ctx context.Context, c *session) (string, error) {
	s, err := status.Collect(ctx, c.Client)
	if err != nil {
		return "", err
	}
	if s.Unknown != "" {
		return "", proto.Errorf(proto.NotReady, "%s", s.Unknown)
	}
	return jsonText(struct {
		Warnings []string        `json:"warnings"`
		Problems []string        `json:"problems"`
		Summary  string          `json:"summary"`
		Backups  []status.Backup `json:"backups"`
	}{s.Warnings, s.Problems, s.Summary, s.Backups})
}

// summaryText begins with a line for programs: the names of the clusters that are
// not well, null being this one, and of backups how late they are.
func summaryText(p *proto.AnswerMonitorInformation, due string) (string, error) {
	var parts []string
	for _, list := range []struct {
		key   string
		names []proto.Opt[string]
	}{{"warning", p.Warning}, {"problem", p.Problem}} {
		var names []string
		for _, n := range list.names {
			name := []byte("null")
			if n.OK {
				var err error
				if name, err = json.Marshal(n.V); err != nil {
					return "", err
				}
			}
			names = append(names, string(name))
		}
		if names != nil {
			parts = append(parts, fmt.Sprintf("%q: [%s]", list.key, strings.Join(names, ", ")))
		}
	}
	if due != "" {
		parts = append(parts, `"due": `+due)
	}
	return fmt.Sprintf("# {%s}\n%s\n", strings.Join(parts, ", "), p.Summary), nil
}
