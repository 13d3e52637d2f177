package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// What check and repair exit with, beside 0.
const (
	exitDiffers    = 1
	exitIncomplete = 3
)

// progressEvery is how often a check that lasts tells how far it is.
const progressEvery = 5 * time.Second

// progress returns what tells on stderr how far a check is.
func progress(env *cli.Env) func(*check.Run) {
	last := time.Now()
	return func(r *check.Run) {
		if time.Since(last) < progressEvery {
			return
		}
		last = time.Now()
		over, rows, total, repairing := 0, 0, 0, 0
		for _, p := range r.Parts {
			rows += p.Rows
			total += p.Total
			if p.Over() {
				over++
			}
			if p.State == check.Repairing {
				repairing++
			}
		}
		if repairing > 0 {
			fmt.Fprintf(env.Stderr, "repairing: %s to go\n", counted(repairing, "partition"))
			return
		}
		fmt.Fprintf(env.Stderr, "checking: %d of %s done, %d transactions and records compared, %s\n", over, counted(len(r.Parts), "partition"), rows, counted(total, "difference"))
	}
}

// parseCheck reads [--local] [[PARTITION]:[NODE]... [MIN_TID [MAX_TID]]].
func parseCheck(args []string) (order, error) {
	local := false
	if i := slices.Index(args, "--local"); i >= 0 {
		local, args = true, slices.Delete(slices.Clone(args), i, i+1)
	}
	partitions := map[int]proto.Opt[proto.NodeID]{}
	var all bool
	var source proto.Opt[proto.NodeID] // for all
	n := 0
	for ; n < len(args); n++ {
		offset, node, ok := strings.Cut(args[n], ":")
		if !ok || strings.EqualFold(offset, "tid") {
			break
		}
		var ref proto.Opt[proto.NodeID]
		if node != "" {
			id, err := parseNodeID(node)
			if err != nil {
				return nil, err
			}
			ref = proto.Some(id)
		}
		if offset == "" {
			all, source = true, ref
			continue
		}
		p, err := parseCount(offset, "partition")
		if err != nil {
			return nil, err
		}
		partitions[p] = ref
	}
	if n == 0 && len(args) > 0 {
		return nil, errors.New("no partition given; : means all")
	}
	all = all || n == 0
	var bounds [2]tid.TID
	if err := atMost(args[n:], 0, 2); err != nil {
		return nil, err
	}
	for i, s := range args[n:] {
		var err error
		if bounds[i], err = parseTID(s); err != nil {
			return nil, err
		}
	}
	last := proto.Opt[tid.TID]{V: bounds[1], OK: len(args[n:]) == 2}
	return func(ctx context.Context, c *session) (string, error) {
		if all {
			t, err := c.PartitionTable(ctx, 0, 0, 0)
			if err != nil {
				return "", err
			}
			for p := range t.Rows {
				if _, given := partitions[p]; !given {
					partitions[p] = source
				}
			}
		}
		if local {
			if err := onlyReplicas(ctx, c, partitions); err != nil {
				return "", err
			}
		}
		r, err := runCheck(ctx, c, partitions, bounds[0], last)
		switch {
		case errors.Is(err, ctl.ErrNoReports):
			return fmt.Sprintf("The check was started. %v.\n", capital(err)), &cli.Exit{Code: exitIncomplete}
		case errors.Is(err, ctl.ErrNothingToCheck):
			return capital(err) + ".\n", nil
		case err != nil:
			return "", err
		}
		return checkText(r), verdict(r)
	}, nil
}

// onlyReplicas makes a check of a backup cluster leave the upstream cluster out.
func onlyReplicas(ctx context.Context, c *session, partitions map[int]proto.Opt[proto.NodeID]) error {
	switch s, err := c.ClusterState(ctx); {
	case err != nil:
		return err
	case s == proto.Running:
		return nil // it does anyway
	}
	switch known, err := c.NamesChecks(ctx); {
	case err != nil:
		return err
	case !known:
		return proto.Errorf(proto.Denied, "the admin or the master is of the Python implementation: give a NODE with the good copy instead of --local")
	}
	for p, ref := range partitions {
		if !ref.OK {
			partitions[p] = proto.Some(check.Local)
		}
	}
	return nil
}

func capital(err error) string {
	s := err.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

// interrupted is the error of an order that has done something already, which is told
// as well.
type interrupted struct {
	text string
	error
}

func (e *interrupted) Unwrap() error { return e.error }

// runCheck compares and waits for the end.
func runCheck(ctx context.Context, c *session, partitions map[int]proto.Opt[proto.NodeID], min tid.TID, max proto.Opt[tid.TID]) (*check.Run, error) {
	id, err := c.CheckReplicas(ctx, partitions, min, max)
	if err != nil {
		return nil, err
	}
	return c.FollowCheck(ctx, id)
}

// verdict returns what the command exits with after a check.
func verdict(r *check.Run) error {
	code := 0
	for _, p := range r.Parts {
		switch {
		case p.Total > 0:
			code = exitDiffers
		case p.State == check.Failed && code == 0:
			code = exitIncomplete
		}
	}
	if code == 0 {
		return nil
	}
	return &cli.Exit{Code: code}
}

// checkText lists what a check has found.
func checkText(r *check.Run) string {
	var b strings.Builder
	rows, total, failed := 0, 0, 0
	upstream, faulty := "", false
	nodes := map[proto.NodeID]bool{}
	notes := map[string][]int{} // with their partitions
	var order []string
	for _, n := range r.Partitions() {
		p := r.Parts[n]
		for _, d := range p.Found {
			fmt.Fprintln(&b, d)
		}
		if more := p.Total - len(p.Found); more > 0 {
			fmt.Fprintf(&b, "partition %d: and %s\n", n, counted(more, "more difference"))
		}
		for _, id := range p.Nodes {
			nodes[id] = true
		}
		rows += p.Rows
		total += p.Total
		faulty = faulty || p.Faulty
		if p.Upstream != "" {
			upstream = " with cluster " + p.Upstream
		}
		note := strings.Join(p.Notes, "; ")
		if p.State == check.Failed {
			failed++
			note = "NOT COMPARED to the end: " + note
		}
		if note != "" {
			if notes[note] == nil {
				order = append(order, note)
			}
			notes[note] = append(notes[note], n)
		}
	}
	for _, note := range order {
		fmt.Fprintf(&b, "%s: %s\n", status.PartitionNames(notes[note]), note)
	}
	fmt.Fprintf(&b, "%d transactions and records of %s compared%s: ", rows, counted(len(r.Parts)-failed, "partition"), upstream)
	if total == 0 {
		b.WriteString("no difference found")
	} else {
		var names []string
		for _, id := range slices.Sorted(maps.Keys(nodes)) {
			names = append(names, id.String())
		}
		if faulty {
			names = append(names, "the upstream cluster")
		}
		fmt.Fprintf(&b, "%s found in %s", counted(total, "difference"), strings.Join(names, ", "))
	}
	if failed > 0 {
		fmt.Fprintf(&b, "; %s could not be compared", counted(failed, "partition"))
	}
	b.WriteByte('\n')
	return b.String()
}

// counted returns a number with its noun, in the plural unless it is 1.
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// parseRepair reads --from NODE [--partition PARTITION]... NODE...
func parseRepair(args []string) (order, error) {
	var from proto.NodeID
	var nodes []proto.NodeID
	var given []int
	for len(args) > 0 {
		name, value, ok := strings.Cut(args[0], "=")
		args = args[1:]
		if name != "--from" && name != "--partition" {
			if strings.HasPrefix(name, "-") {
				return nil, fmt.Errorf("unknown option %s", name)
			}
			id, err := parseNodeID(name)
			if err != nil {
				return nil, err
			}
			nodes = append(nodes, id)
			continue
		}
		if !ok {
			if len(args) == 0 {
				return nil, fmt.Errorf("%s: argument missing", name)
			}
			value, args = args[0], args[1:]
		}
		if name == "--from" && strings.EqualFold(value, "upstream") {
			return nil, errors.New("--from: nothing is repaired from the upstream cluster, which is no copy of this one; NODE must be a storage of this cluster")
		}
		if name == "--from" {
			id, err := parseNodeID(value)
			if err != nil {
				return nil, err
			}
			if from != 0 && from != id {
				return nil, errors.New("--from: only one copy can be the good one")
			}
			from = id
			continue
		}
		p, err := parseCount(value, "partition")
		if err != nil {
			return nil, err
		}
		given = append(given, p)
	}
	switch {
	case from == 0:
		return nil, errors.New("--from NODE is required: it has the good copy")
	case len(nodes) == 0:
		return nil, errors.New("no node to be repaired")
	case slices.Contains(nodes, from):
		return nil, fmt.Errorf("%v cannot be repaired from itself", from)
	}
	return func(ctx context.Context, c *session) (string, error) { return repair(ctx, c, from, nodes, given) }, nil
}

// repair checks with the good copy as reference, lets the nodes get what differs, and
// checks again what was repaired.
func repair(ctx context.Context, c *session, from proto.NodeID, nodes []proto.NodeID, given []int) (string, error) {
	t, err := c.PartitionTable(ctx, 0, 0, 0)
	if err != nil {
		return "", err
	}
	partitions := map[int]proto.Opt[proto.NodeID]{}
	for _, p := range given {
		partitions[p] = proto.Some(from)
	}
	if given == nil {
		for p, row := range t.Rows {
			has := func(id proto.NodeID) bool {
				return slices.ContainsFunc(row, func(cell proto.Cell) bool { return cell.ID == id })
			}
			if has(from) && slices.ContainsFunc(nodes, has) {
				partitions[p] = proto.Some(from)
			}
		}
	}
	if len(partitions) == 0 {
		return "", proto.Errorf(proto.Denied, "%v has no partition in common with the nodes to be repaired: see neoctl print pt", from)
	}
	r, err := runCheck(ctx, c, partitions, 0, proto.Opt[tid.TID]{})
	switch {
	case errors.Is(err, ctl.ErrNoReports):
		return "", proto.Errorf(proto.Denied, "%v; a storage of it is repaired by emptying it (tweak NODE, drop NODE) and adding it again", err)
	case errors.Is(err, ctl.ErrNothingToCheck):
		return capital(err) + ".\n", nil
	case err != nil:
		return "", err
	}
	text := checkText(r)
	again := map[int]proto.Opt[proto.NodeID]{}
	for n, p := range r.Parts {
		if slices.ContainsFunc(nodes, func(id proto.NodeID) bool { return slices.Contains(p.Nodes, id) }) {
			again[n] = proto.Some(from)
		}
	}
	away := false // copies that cannot be compared
	for _, n := range r.Partitions() {
		if n >= len(t.Rows) {
			continue
		}
		for _, cell := range t.Rows[n] {
			if slices.Contains(nodes, cell.ID) && !cell.State.Readable() {
				away = true
				text += fmt.Sprintf("partition %d: the copy of %v is %v: it is replicated when %v runs, and can be repaired then\n", n, cell.ID, cell.State, cell.ID)
			}
		}
	}
	if len(again) == 0 {
		err := verdict(r)
		if err == nil && away {
			err = &cli.Exit{Code: exitIncomplete}
		}
		return text + "Nothing to repair.\n", err
	}
	if r, err = c.RepairReplicas(ctx, nodes); err != nil {
		return "", &interrupted{text, err}
	}
	var failed bool
	for _, n := range r.Partitions() {
		if _, ok := again[n]; !ok {
			continue
		}
		p := r.Parts[n]
		if p.State != check.Repaired {
			failed = true
			text += fmt.Sprintf("partition %d: NOT REPAIRED: %s\n", n, strings.Join(p.Notes, "; "))
			continue
		}
		text += fmt.Sprintf("partition %d: repaired from %v\n", n, from)
	}
	if r, err = runCheck(ctx, c, again, 0, proto.Opt[tid.TID]{}); err != nil {
		return "", &interrupted{text, err}
	}
	text += "After the repair:\n" + checkText(r)
	if err := verdict(r); err != nil || !failed && !away {
		return text, err
	}
	return text, &cli.Exit{Code: exitIncomplete}
}
