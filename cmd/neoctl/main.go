// Neoctl operates a NEO cluster through an admin node.
//
// What it prints and what it exits with are those of the Python implementation, which
// scripts rely on, with two exceptions: what erases data for good is refused without a
// terminal unless --yes is given, in favour of the data; and wrong usage exits with 2.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/spf13/cobra"
)

func main() { cli.Main(newCommand) }

type options struct {
	cli.Logging
	cli.TLS
	address       string
	file, section string
	cluster       string // of the file
	masters       string // of the file
	json, yes     bool
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neoctl [options] [command [arguments]]",
		Short: "Operate a NEO cluster",
		Long: "Operates a NEO cluster through one of its admin nodes. Without command, lists the commands.\n\n" + usage() +
			"\nA check goes on if neoctl is interrupted; print summary tells what the last one has found." +
			"\n\nAn import goes on in any case. RATE is bytes per second: 20MB, 500KB (powers of 1024), or none. skip makes the import" +
			"\ngo on without a record, or a transaction, that it cannot read: TID and OID as print import names them. print import shows" +
			"\na line of JSON after a #, by storage (bytes, seconds, null for what is not known), then all of it in words; with --follow only" +
			"\nwhen nothing more happens by itself, and meanwhile on stderr how far it is." +
			"\n\nWhat drop, truncate, prune_orphan 0 and pack (without --at, or up to a time to come) erase is told before, and must be confirmed by an answer on a terminal, or by --yes:" +
			"\na script without --yes is refused. drop of a storage without cells erases nothing of the cluster and is not asked about." +
			"\n\nWith --json, print, status and health print one document of JSON: ids in hexadecimal, times in RFC 3339, null for what is not known." +
			"\nWith -f, a section of neo.conf (by default [admin]) tells the address of the admin (bind) and the certificates." +
			"\npack is given by a client: the admin tells the name of the cluster and its masters; with an admin of the Python implementation, -f does." +
			"\n\nExit status of health: 0 all is well; 1 degraded: it serves, but something needs you; 2 down, or it cannot be asked." +
			"\n\nExit status: 0 done; 1 refused or failed, the reason is on stderr, or check or repair has found differences," +
			"\nor print import finds an import that has failed, or whose copy differs from its sources; 2 wrong usage; 3 check or repair" +
			"\nhas found no difference, but could not compare everything, or print import finds no import.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, words []string) error {
			if err := o.loadFile(func(option string) bool { return cmd.Flags().Changed(option) }); err != nil {
				return err
			}
			return run(cmd.Context(), env, &o, words)
		},
	}
	fs := cmd.Flags()
	cli.Text(fs, &o.address, "address", "a", "127.0.0.1:9999", "address of an admin node")
	cli.Path(fs, &o.file, "file", "f", "", "configuration file that tells the address of the admin and the certificates: neo.conf")
	cli.Text(fs, &o.section, "section", "s", "admin", "section of the configuration file")
	cli.Flag(fs, &o.json, "json", "", "print JSON: of print, status and health; may follow the command too")
	cli.Flag(fs, &o.yes, "yes", "", "erase without question: drop, truncate, prune_orphan 0 and pack; may follow the command too")
	o.Logging.AddFlags(fs)
	o.TLS.AddFlags(fs)
	cli.StopAtFirstWord(cmd)
	addTLSCommand(cmd, env)
	return cmd
}

func run(ctx context.Context, env *cli.Env, o *options, words []string) (err error) {
	if len(words) == 0 {
		_, err := fmt.Fprint(env.Stdout, usage())
		return err
	}
	if words[0] == "help" {
		return printHelp(env, words[1:])
	}
	order, err := o.parse(words)
	if errors.Is(err, errInvalid) {
		fmt.Fprintf(env.Stderr, "invalid command: %s\n", strings.Join(words, " ")+nearest(words))
		return &cli.Exit{Code: 2}
	}
	if err != nil {
		return err
	}
	addr, err := conf.ParseAddress(o.address, conf.AdminPort)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	tls, err := o.TLSConfig()
	if err != nil {
		return err
	}
	log, err := o.OpenUnbufferedLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	session := &session{env: env, o: o, link: log.LinkConfig(tls), sure: o.yes}
	text, err := execute(ctx, addr, session, order)
	if loss, ok := errors.AsType[*erasure](err); ok {
		if !confirmErasure(env, loss) {
			return &cli.Exit{Code: 1}
		}
		session.sure = true
		text, err = execute(ctx, addr, session, order)
	}
	if loss, ok := errors.AsType[*ctl.LossError](err); ok {
		if !confirmed(env, loss.Text) {
			return &cli.Exit{Code: 1}
		}
		text, err = execute(ctx, addr, session, startAnyway)
	}
	if t, exit, ok := asUnhealthy(words, o, err); ok {
		text, err = t, exit
	}
	var found *cli.Exit
	if before, ok := errors.AsType[*interrupted](err); ok {
		fmt.Fprint(env.Stdout, before.text)
	}
	if err != nil && !errors.As(err, &found) {
		return explain(env, err)
	}
	if _, printErr := fmt.Fprint(env.Stdout, text); printErr != nil {
		return printErr
	}
	return err
}

// confirmation is what an operator types to start a cluster that may lose transactions.
const confirmation = "lose them"

// confirmed tells what a start may lose, and asks whether it is wanted. Without a
// terminal it is not.
func confirmed(env *cli.Env, loss string) bool {
	w := env.Stderr
	fmt.Fprintf(w, "*** TO START THE CLUSTER NOW MAY LOSE TRANSACTIONS PERMANENTLY ***\n\n%s\n\n", strings.ReplaceAll(loss, ". ", ".\n"))
	if !interactive(env) {
		fmt.Fprintf(w, "Not started. Bring the missing storages and the newest databases back; or, to go on without them: neoctl start %s\n", acceptLoss)
		return false
	}
	fmt.Fprintf(w, "To go on without them, type %q: ", confirmation)
	line, err := bufio.NewReader(env.Stdin).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != confirmation {
		fmt.Fprintln(w, "Not started.")
		return false
	}
	return true
}

// errUnreachable is printed as the Python implementation does.
var errUnreachable = errors.New("not connected")

// execute carries out an order and returns what it prints.
func execute(ctx context.Context, addr conf.Address, s *session, order order) (string, error) {
	addr, err := addr.Resolve(ctx)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errUnreachable, err)
	}
	client, err := ctl.Dial(ctx, proto.Address(addr), s.link)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errUnreachable, err)
	}
	defer client.Close()
	client.Progress = progress(s.env)
	show, end := follower(s.env)
	defer end()
	client.Followed = show
	s.Client = client
	return order(ctx, s)
}

// explain prints an error as scripts know it, and returns the exit code. What the
// master denies is for the operator to read as it is; the rest is an error.
func explain(env *cli.Env, err error) error {
	failed := &cli.Exit{Code: 1}
	var refused *proto.Error
	switch {
	case errors.As(err, &refused) && refused.ErrCode == proto.Denied:
		fmt.Fprintln(env.Stderr, refused.Message)
	case errors.As(err, &refused) && refused.ErrCode == proto.NotReady:
		fmt.Fprintf(env.Stderr, "ERROR: %s\n", refused.Message)
	case errors.As(err, &refused):
		fmt.Fprintf(env.Stderr, "ERROR: %v\n", refused)
	case errors.Is(err, link.ErrClosed):
		fmt.Fprintf(env.Stderr, "ERROR: Connection closed: %v\n", err)
	case errors.Is(err, errUnreachable):
		fmt.Fprintf(env.Stderr, "ERROR: %v\n", err)
	default:
		return err
	}
	return failed
}
