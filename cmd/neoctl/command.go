package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/moment"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// order is a command with its arguments understood: it talks to an admin node and
// returns what to print.
type order func(context.Context, *session) (string, error)

// command is a line of the table of commands.
type command struct {
	words string // "print pt"
	args  string // for the usage
	help  string
	parse func(args []string) (order, error) // nil: it is carried out elsewhere
}

// commands is in the order of the usage.
func commands() []command {
	return []command{
		{"status", "[--watch [SECONDS]]", "the whole cluster on one screen: nodes by machine and database, partitions, load, replication, import, backup, check, pack", parseStatus},
		{"health", "", "how well the cluster is, and why: exits with 0 if all is well, 1 if it is degraded, 2 if it is down or cannot be asked", noArgs(showHealth)},
		{"print cluster", "", "state of the cluster", noArgs(printCluster)},
		{"print node", "[TYPE]", "nodes, of one type or all", parsePrintNode},
		{"print pt", "[MIN [MAX [NODE]]]", "partition table, or its rows from MIN up to but without MAX", parsePrintPT},
		{"print ids", "", "last ids of the database", noArgs(printIDs)},
		{"print primary", "", "primary master", noArgs(printPrimary)},
		{"print summary", "", "how the cluster and its backups are", noArgs(printSummary)},
		{"print import", "[--follow]", "how far the import of a storage is, and what to do about it; --follow waits for its end", parsePrintImport},
		{"print backup", "", "how far this cluster follows another one, and the backups of this one that are watched", noArgs(printBackup)},
		{"start", "[" + acceptLoss + "]", "start a cluster that recovers; if that may lose transactions, only after you have confirmed it, or with " + acceptLoss, parseStart},
		{"set cluster", "STATE", "VERIFYING, STARTING_BACKUP, STOPPING_BACKUP or STOPPING", parseSetCluster},
		{"set replicas", "N", "copies of each partition beside the first; tweak then makes them", parseSetReplicas},
		{"add", "NODE... | all", "take pending storages into the cluster", parseAdd},
		{"tweak", "[-n] [NODE...]", "rebalance the partition table, emptying the nodes; -n only shows the result", parseTweak},
		{"kill", "NODE", "stop a storage or a secondary master", parseKill},
		{"drop", "NODE", "remove for good a storage that does not run", parseDrop},
		{"check", "[--local] [[PARTITION]:[NODE]... [MIN_TID [MAX_TID]]]", "compare all that replicas have, of all partitions by default, with those of NODE if given, and list what differs; in a backup cluster without NODE also with the upstream cluster, unless --local", parseCheck},
		{"repair", "--from NODE [--partition PARTITION]... NODE...", "check, then let the latter nodes get from the former what differs, and check again", parseRepair},
		{"import", "pause | resume | limit RATE | compare | skip TID[:OID]", "stop an import that goes on serving, let it go on, bound its rate, compare all that is copied with the sources, or leave out what cannot be read", parseImport},
		{"backup", "hold [TID] | release | run-now", "copy nothing after a transaction from the upstream cluster, by default after what there is; end that; or copy until all is there, whatever the schedule and the window say", parseBackup},
		{"pack", "[--at TIME] [--wait] [--dry-run]", "delete the history before TIME, by default all of it; --wait until it is done; --dry-run only tells what would be", parsePack},
		{"prune_orphan", "0|1 NODE... | all", "delete data that nothing refers to; 1 only logs them", parsePrune},
		{"truncate", "TID", "cut the database after a transaction", parseTruncate},
		{"flush_log", "", "make all nodes write their logs", noArgs(flushLog)},
		{"tls", "init | add | show | renew", "certificates of a cluster: see neoctl tls --help", nil},
		{"help", "[COMMAND]", "what a command does", nil},
	}
}

// usage lists the commands.
func usage() string {
	var b strings.Builder
	b.WriteString("Commands:\n")
	for _, c := range commands() {
		b.WriteString(c.usage())
	}
	b.WriteString(wordsHelp)
	return b.String()
}

// usage is a command and what it does.
func (c *command) usage() string {
	return fmt.Sprintf("  %s\n        %s\n", strings.Join(strings.Fields(c.words+" "+c.args+c.options()), " "), c.help)
}

// options are those that several commands have.
func (c *command) options() string {
	switch {
	case c.printsJSON():
		return " [--json]"
	case c.erases():
		return " [--yes]"
	}
	return ""
}

func (c *command) printsJSON() bool {
	return strings.HasPrefix(c.words, "print ") || c.words == "status" || c.words == "health"
}

// erases reports whether the command may ask before it erases something.
func (c *command) erases() bool {
	return slices.Contains([]string{"drop", "truncate", "prune_orphan", "pack"}, c.words)
}

// wordsHelp says what the words in capitals are.
const wordsHelp = "NODE is a letter and a number: S1, M2. TID and TIME are " + moment.Forms + ".\n" +
	"What erases data asks before, or without terminal refuses, unless --yes is given.\n"

// printHelp prints what commands do that begin with some words, by default all.
func printHelp(env *cli.Env, words []string) error {
	text := ""
	for _, c := range commands() {
		name := strings.Fields(c.words)
		if n := min(len(words), len(name)); slices.Equal(words[:n], name[:n]) {
			text += c.usage()
		}
	}
	if text == "" {
		return cli.Usagef("there is no command %q%s", strings.Join(words, " "), nearest(words))
	}
	_, err := fmt.Fprint(env.Stdout, "Commands:\n"+text+wordsHelp)
	return err
}

// nearest ends a sentence about words that are no command.
func nearest(words []string) string {
	var near []string
	for _, c := range commands() {
		name := strings.Fields(c.words)
		if len(words) < len(name) && slices.Equal(words, name[:len(words)]) {
			near = append(near, name[len(words)])
		}
	}
	if near != nil {
		return fmt.Sprintf("; it goes on with %s", strings.Join(near, ", "))
	}
	var begins []string
	for _, c := range commands() {
		if len(words) == 1 && len(words[0]) > 1 && strings.HasPrefix(c.words, words[0]) {
			begins = append(begins, c.words)
		}
	}
	if len(begins) == 1 {
		return fmt.Sprintf("; did you mean %q?", begins[0])
	}
	for n := min(2, len(words)); n > 0; n-- {
		var known []string
		for _, c := range commands() {
			if len(strings.Fields(c.words)) == n {
				known = append(known, c.words)
			}
		}
		if text := conf.DidYouMean(strings.Join(words[:n], " "), known); text != "" {
			return text
		}
	}
	return ""
}

// errInvalid reports words that no command begins with.
var errInvalid = errors.New("invalid command")

// parse finds the command that the words begin with, and has it take the rest.
func (o *options) parse(words []string) (order, error) {
	for _, c := range commands() {
		name := strings.Fields(c.words)
		if c.parse == nil || len(words) < len(name) || !slices.Equal(words[:len(name)], name) {
			continue
		}
		args := slices.Clone(words[len(name):])
		take := func(option string, to *bool) {
			if i := slices.Index(args, option); i >= 0 {
				args, *to = slices.Delete(args, i, i+1), true
			}
		}
		if c.printsJSON() {
			take("--json", &o.json)
		} else if o.json {
			return nil, cli.Usagef("%s prints no JSON: --json is for print, status and health", c.words)
		}
		if c.erases() {
			take("--yes", &o.yes)
		}
		do, err := c.parse(args)
		var exit *cli.Exit
		if err != nil && !errors.As(err, &exit) {
			err = cli.Usagef("%s: %w", strings.TrimSpace(c.words+" "+c.args), err)
		}
		if err != nil {
			return nil, err
		}
		asJSON := o.json
		return func(ctx context.Context, s *session) (string, error) {
			s.json = asJSON
			return do(ctx, s)
		}, nil
	}
	return nil, errInvalid
}

func noArgs(o order) func([]string) (order, error) {
	return func(args []string) (order, error) {
		if len(args) > 0 {
			return nil, fmt.Errorf("unexpected %q", args[0])
		}
		return o, nil
	}
}

// atMost checks the number of arguments.
func atMost(args []string, least, most int) error {
	switch {
	case len(args) < least:
		return errors.New("argument missing")
	case len(args) > most:
		return fmt.Errorf("unexpected %q", args[most])
	}
	return nil
}

func parseNodeID(s string) (proto.NodeID, error) {
	id, err := conf.ParseNodeID(s)
	return proto.NodeID(id), err
}

func parseNodeIDs(args []string) ([]proto.NodeID, error) {
	ids := []proto.NodeID{}
	for _, s := range args {
		id, err := parseNodeID(s)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func parseTID(s string) (tid.TID, error) { return moment.ParseTID(s, time.Now()) }

// parseCount reads a number that is not negative.
func parseCount(s, what string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("invalid %s: %q", what, s)
	}
	return int(n), nil
}

func parsePrintNode(args []string) (order, error) {
	if err := atMost(args, 0, 1); err != nil {
		return nil, err
	}
	var typ proto.Opt[proto.NodeType]
	if len(args) > 0 {
		for t := proto.Master; t <= proto.Admin; t++ {
			if strings.EqualFold(args[0], t.String()) {
				typ = proto.Some(t)
			}
		}
		if !typ.OK {
			return nil, fmt.Errorf("unknown node type: %q%s", args[0], conf.DidYouMean(args[0], []string{"MASTER", "STORAGE", "CLIENT", "ADMIN"}))
		}
	}
	return func(ctx context.Context, c *session) (string, error) { return printNodes(ctx, c, typ) }, nil
}

func parsePrintPT(args []string) (order, error) {
	if err := atMost(args, 0, 3); err != nil {
		return nil, err
	}
	if len(args) == 0 {
		return printTable, nil
	}
	var bounds [2]int
	for i, s := range args[:min(2, len(args))] {
		var err error
		if bounds[i], err = parseCount(s, "partition"); err != nil {
			return nil, err
		}
	}
	var node proto.NodeID
	if len(args) == 3 {
		var err error
		if node, err = parseNodeID(args[2]); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, c *session) (string, error) {
		return printRows(ctx, c, bounds[0], bounds[1], node)
	}, nil
}

func setState(s proto.ClusterState) order {
	return acknowledged(func(ctx context.Context, c *session) (string, error) { return c.SetClusterState(ctx, s) })
}

// acceptLoss lets a start lose transactions without a question.
const acceptLoss = "--accept-loss"

func parseStart(args []string) (order, error) {
	if err := atMost(args, 0, 1); err != nil {
		return nil, err
	}
	if len(args) == 0 {
		return start, nil
	}
	if args[0] != acceptLoss {
		return nil, fmt.Errorf("unexpected %q", args[0])
	}
	return startAnyway, nil
}

// startAnyway starts whatever may be lost.
func startAnyway(ctx context.Context, c *session) (string, error) {
	text, err := c.StartAnyway(ctx)
	return text + "\n", err
}

// start starts what loses nothing.
func start(ctx context.Context, c *session) (string, error) {
	text, err := c.Start(ctx)
	return text + "\n", err
}

func parseSetCluster(args []string) (order, error) {
	if err := atMost(args, 1, 1); err != nil {
		return nil, err
	}
	for s := proto.Recovering; s <= proto.StoppingBackup; s++ {
		if strings.EqualFold(args[0], s.String()) {
			return setState(s), nil
		}
	}
	return nil, fmt.Errorf("unknown cluster state: %q%s", args[0], conf.DidYouMean(args[0], []string{"VERIFYING", "STARTING_BACKUP", "STOPPING_BACKUP", "STOPPING"}))
}

func parseSetReplicas(args []string) (order, error) {
	if err := atMost(args, 1, 1); err != nil {
		return nil, err
	}
	n, err := parseCount(args[0], "number of replicas")
	if err != nil {
		return nil, err
	}
	return acknowledged(func(ctx context.Context, c *session) (string, error) {
		if err := enoughStorages(ctx, c, n); err != nil {
			return "", err
		}
		return c.SetReplicas(ctx, n)
	}), nil
}

// parseStorages reads NODE... | all. With all the result is nil.
func parseStorages(args []string) ([]proto.NodeID, error) {
	if len(args) == 0 {
		return nil, errors.New("argument missing")
	}
	if len(args) == 1 && args[0] == "all" {
		return nil, nil
	}
	return parseNodeIDs(args)
}

// storages returns the nodes meant by parseStorages.
func storages(ctx context.Context, c *session, ids []proto.NodeID) ([]proto.NodeID, error) {
	if ids != nil {
		return ids, nil
	}
	return c.Storages(ctx)
}

func parseAdd(args []string) (order, error) {
	ids, err := parseStorages(args)
	if err != nil {
		return nil, err
	}
	return acknowledged(func(ctx context.Context, c *session) (string, error) {
		if err := knownStorages(ctx, c, ids); err != nil {
			return "", err
		}
		ids, err := storages(ctx, c, ids)
		if err != nil {
			return "", err
		}
		return c.Add(ctx, ids)
	}), nil
}

func parsePrune(args []string) (order, error) {
	if len(args) == 0 || args[0] != "0" && args[0] != "1" {
		return nil, errors.New("the first argument is 0 or 1")
	}
	dryRun := args[0] == "1"
	ids, err := parseStorages(args[1:])
	if err != nil {
		return nil, err
	}
	do := acknowledged(func(ctx context.Context, c *session) (string, error) {
		ids, err := storages(ctx, c, ids)
		if err != nil {
			return "", err
		}
		return c.Repair(ctx, dryRun, ids)
	})
	if dryRun {
		return do, nil
	}
	return erasing(do, "prune_orphan "+strings.Join(args, " "), func(ctx context.Context, c *session) (string, error) { return pruneLoss(ctx, c, ids) }), nil
}

func parseTweak(args []string) (order, error) {
	dryRun := len(args) > 0 && args[0] == "-n"
	if dryRun {
		args = args[1:]
	}
	ids, err := parseNodeIDs(args)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *session) (string, error) {
		p, err := c.Tweak(ctx, dryRun, ids)
		if err != nil {
			return "", err
		}
		if !p.Changed {
			return "No change done.\n", nil
		}
		return picture(ctx, c, p.Rows)
	}, nil
}

func flushLog(_ context.Context, c *session) (string, error) {
	c.FlushLog()
	return "", nil
}

// acknowledged prints what the master says to an order.
func acknowledged(o order) order {
	return func(ctx context.Context, c *session) (string, error) {
		text, err := o(ctx, c)
		return text + "\n", err
	}
}
