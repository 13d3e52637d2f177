package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

func newCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "neobackup",
		Short: "Keep snapshots of a database in a directory or on S3, and restore them",
		Long: `neobackup keeps the history of a database, a cluster or a Data.fs, in a repository:
a directory or a prefix of a bucket of S3. Each run stores what is new since the last
one, a running one ("follow") stores each transaction within about a second. Every
transaction can be restored, and what is stored is never changed.

The first backup:

  neobackup key generate operator.txt             once for each operator; keep it offline
  neobackup init URL -f neobackup.conf --source SOURCE --recipient age1... --recipient age1...
  neobackup snapshot -f neobackup.conf            or "follow", which does not end
  neobackup restore -f neobackup.conf --identity operator.txt restored.fs

URL is s3://bucket/prefix?endpoint=host:port&region=... or file:///directory; the
credentials of S3 are in NEOBACKUP_S3_ACCESS_KEY and NEOBACKUP_S3_SECRET_KEY. SOURCE is
file:///path/Data.fs, in use or not, or neo://CLUSTER@MASTER:PORT,MASTER:PORT.

Settings are in a configuration file: that of -f, of NEOBACKUP_CONFIG, or
/etc/neo/neobackup.conf. -r names one of its repositories. Without a file, -r gives the URL
of the repository, and --set KEY=VALUE any setting.

T is a moment: latest, a TID (16 hexadecimal digits or tid:<integer>), or a time such as
2026-11-20T10:00:00Z, "2026-11-20 10:00", 2026-11-20, "yesterday 18:00" (UTC) or a UNIX
timestamp: the state after the last transaction at or before it. A RANGE is FROM..TO, both
included, and both may be left out.

With --json, each command prints one document {"v":1,...} on the standard output, lists one
on each line, and {"v":1,"error":{"code":...,"message":...,"hint":...}} if it failed; how far it is goes to
stderr, as JSON too.` + exitStatus,
	}
	cmd.AddCommand(
		newInitCommand(env),
		newSnapshotCommand(env),
		newFollowCommand(env),
		newInfoCommand(env),
		newListCommand(env),
		newCheckCommand(env),
		newVerifyCommand(env),
		newRestoreCommand(env),
		newServeCommand(env),
		newCatCommand(env),
		newLogCommand(env),
		newDiffCommand(env),
		newDumpCommand(env),
		newRebaseCommand(env),
		newCostCommand(env),
		newKeyCommand(env),
		newPruneCommand(env),
		newForgetCommand(env),
		newExtendLocksCommand(env),
		newPolicyCommand(env),
		newDrillCommand(env),
		newRepairCommand(env),
		newRecoverCommand(env),
		newCompactCommand(env),
		newForkCommand(env),
		newCopyCommand(env),
		newDaemonCommand(env),
	)
	return cmd
}

// exitStatus is the end of all help texts.
const exitStatus = `

Exit status: 0 done; 1 failed, the reason is on stderr; 2 wrong usage or configuration, or no
repository; 3 damage; 4 keys: no identity fits, an untrusted signature, or encryption that is
not as configured; 5 the store lacks a guarantee or a permission, or its clock differs;
6 another writer; 7 source and repository differ; 8 not restorable at that moment;
9 too old (info --fail).`

// common are the options of all commands.
type common struct {
	cli.Logging
	config string   // -f
	repo   string   // -r
	sets   []string // --set
	verify []string // --verify-key
	json   bool
	quiet  bool
	stats  bool

	now     func() time.Time       // for tests; default: time.Now
	changed func(name string) bool // whether an option was given
	hooks   *hooks                 // of the daemon that runs the command; nil: none does
}

// given reports whether one of these options was given.
func (o *common) given(names ...string) bool {
	return o.changed != nil && slices.ContainsFunc(names, o.changed)
}

func (o *common) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	o.changed = fs.Changed
	cli.Path(fs, &o.config, "file", "f", "", "configuration file (default: $NEOBACKUP_CONFIG or /etc/neo/neobackup.conf)")
	cli.Text(fs, &o.repo, "repository", "r", "", "name of a repository in the configuration file, or the URL of one without a file")
	cli.Texts(fs, &o.sets, "set", "", "KEY=VALUE: a setting, as in the configuration file; repeatable")
	cli.Texts(fs, &o.verify, "verify-key", "", "key that verifies signatures, as init prints it; repeatable")
	cli.Flag(fs, &o.json, "json", "", "print JSON")
	cli.Flag(fs, &o.quiet, "quiet", "q", "print nothing but results and errors")
	cli.Flag(fs, &o.stats, "stats", "", "print at the end what was asked of the store, and the memory that was used")
	o.Logging.AddFlags(fs)
}

// printStats prints what was asked of a store, without what a probe did.
func (o *common) printStats(env *cli.Env, st, probe store.Stats) {
	st.Puts, st.Gets, st.Lists, st.Deletes, st.Failed = st.Puts-probe.Puts, st.Gets-probe.Gets, st.Lists-probe.Lists, st.Deletes-probe.Deletes, st.Failed-probe.Failed
	st.Sent, st.Received = st.Sent-probe.Sent, st.Received-probe.Received
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if o.json {
		// The command has its own document, and its own error.
		_ = o.line(env.Stderr, map[string]any{"stats": map[string]any{
			"put": st.Puts, "get": st.Gets, "list": st.Lists, "delete": st.Deletes, "failed": st.Failed, "sent_bytes": st.Sent, "received_bytes": st.Received, "memory_bytes": int64(m.Sys),
		}})
		return
	}
	fmt.Fprintf(env.Stderr, "store: %d PUT, %d GET, %d LIST, %d of them with an error; %s sent, %s received; memory: %s\n", st.Puts, st.Gets, st.Lists, st.Failed, size(st.Sent), size(st.Received), size(int64(m.Sys)))
}

// command returns the RunE of a command: it does what do does, and tells its error.
func (o *common) command(env *cli.Env, do func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if o.now == nil {
			o.now = time.Now
		}
		o.hooks = hooksOf(cmd.Context())
		return o.report(cmd.Context(), env, do(cmd.Context(), args))
	}
}

// say prints a line about what is going on, unless that is not wanted.
func (o *common) say(env *cli.Env, format string, args ...any) {
	if o.quiet {
		return
	}
	if o.json {
		o.line(env.Stderr, map[string]any{"message": fmt.Sprintf(format, args...)})
		return
	}
	fmt.Fprintf(env.Stderr, format+"\n", args...)
}

// moment reads --at of a command that takes the latest moment without it. Zero is the latest.
func (o *common) moment(at string) (tid.TID, error) {
	if at == "" {
		return tid.Zero, nil
	}
	m, err := config.ParseMoment(at, o.now())
	if err != nil {
		return tid.Zero, cli.Usagef("--at: %w", err)
	}
	return m.TID, nil
}
