package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

type restoreOptions struct {
	reading
	cli.PeerTimeout
	cli.TLS
	at       string
	plan     bool
	append   bool
	restart  bool
	noVerify bool
	gaps     bool
	magic    string
	scratch  string

	cluster    string
	partitions int
	replicas   int
	nodes      int
	node       []int
}

func newRestoreCommand(env *cli.Env) *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore [options] TARGET",
		Short: "Restore a Data.fs, a cluster, or the tables of storage nodes",
		Long: `Restore what the source was at --at T, by default at the newest transaction there is. TARGET is

  out.fs                      a Data.fs, byte for byte what neoexport would have written. It is called
                              out.fs.part until it is complete. With --append, an existing file
                              gets what it lacks.
  neo://CLUSTER@MASTER:PORT   a running cluster without data; --append goes on after what it has
  sqlite:DIRECTORY            the databases of the storage nodes of a new cluster, storage1.sqlite and so
                              on: --cluster, --partitions, --nodes, maybe --replicas. With --node only
                              those of some nodes, so that several machines do it at once.
  mysql:DATABASE              the same for one --node in a database of MySQL or MariaDB

An interrupted restore goes on when it is run again. What was restored is read again at the end and
compared with the repository, unless --no-verify is given.

--plan only shows what would be read, whether T can be restored exactly, and whether the identities
open it.` + exitStatus,
		Example: `  neobackup restore --identity operator.txt --plan restored.fs
  neobackup restore --identity operator.txt restored.fs
  neobackup restore --at 2026-11-20T10:00:00Z --identity operator.txt restored.fs
  neobackup restore -i operator.txt --cluster prod --partitions 12 --replicas 1 --nodes 3 sqlite:/srv/neo`,
		Args: cobra.ExactArgs(1),
		RunE: o.command(env, func(ctx context.Context, args []string) error { return runRestore(ctx, env, &o, args[0]) }),
	}
	fs := cmd.Flags()
	cli.Text(fs, &o.at, "at", "", "latest", "T: the moment to restore")
	cli.Flag(fs, &o.plan, "plan", "", "show what would be done, and do nothing")
	cli.Flag(fs, &o.append, "append", "", "add what an existing target lacks, which must be the beginning of what is restored")
	cli.Flag(fs, &o.restart, "restart", "", "discard what an interrupted restore left")
	cli.Flag(fs, &o.noVerify, "no-verify", "", "do not read again what was restored")
	cli.Flag(fs, &o.gaps, "allow-gap", "", "restore a moment after a gap, where something is lost (to a Data.fs): TARGET.unknown lists what may have changed in it")
	cli.Text(fs, &o.magic, "magic", "", string(fsformat.FS30), "FS30 for Python 3, FS21 for Python 2")
	cli.Path(fs, &o.scratch, "scratch", "", "", "directory for segments that are being read (default: that of [drill NAME], or that of the system)")
	cli.Text(fs, &o.cluster, "cluster", "c", "", "name of the cluster, for tables")
	fs.IntVar(&o.partitions, "partitions", 0, "number of partitions, for tables")
	fs.IntVar(&o.replicas, "replicas", 0, "number of copies beside the first, for tables")
	fs.IntVar(&o.nodes, "nodes", 1, "number of storage nodes, for tables")
	fs.IntSliceVar(&o.node, "node", nil, "storage nodes, from 1, whose tables are written; repeatable (default: all)")
	o.reading.addFlags(cmd)
	o.TLS.AddFlags(fs)
	o.PeerTimeout.AddFlags(fs)
	return cmd
}

// target is where to.
type target struct {
	kind string // file, cluster, sqlite or mysql
	name string
}

// shown returns the name as messages may show it, without a password.
func (t target) shown() string {
	if t.kind == "mysql" {
		return adapter.Name(adapter.MySQL, t.name)
	}
	return t.name
}

func parseTarget(s string) (target, error) {
	for _, kind := range []string{"sqlite", "mysql"} {
		if rest, ok := strings.CutPrefix(s, kind+":"); ok {
			if rest == "" {
				return target{}, cli.Usagef("%s: what follows the colon is missing", s)
			}
			return target{kind, rest}, nil
		}
	}
	if strings.HasPrefix(s, "neo://") {
		return target{"cluster", s}, nil
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok && scheme != "file" {
		return target{}, cli.Usagef("%s: a target is the path of a Data.fs, neo://CLUSTER@MASTER:PORT, sqlite:DIRECTORY or mysql:DATABASE", s)
	}
	path, err := conf.ExpandUser(strings.TrimPrefix(s, "file://"))
	return target{"file", path}, err
}

func runRestore(ctx context.Context, env *cli.Env, o *restoreOptions, arg string) error {
	t, err := parseTarget(arg)
	if err != nil {
		return err
	}
	tables := t.kind == "sqlite" || t.kind == "mysql"
	switch {
	case o.magic != string(fsformat.FS30) && o.magic != string(fsformat.FS21):
		return cli.Usagef("--magic %s: want %s or %s", o.magic, fsformat.FS30, fsformat.FS21)
	case t.kind != "file" && o.given("magic"):
		return cli.Usagef("--magic is for a Data.fs")
	case t.kind != "cluster" && o.TLS != cli.TLS{}:
		return cli.Usagef("--ca, --cert and --key are for a cluster: neo://CLUSTER@MASTER:PORT")
	case tables && (o.cluster == "" || o.partitions < 1):
		return cli.Usagef("tables need --cluster NAME and --partitions N: those of the cluster that will use them")
	case !tables && o.given("cluster", "partitions", "replicas", "nodes", "node"):
		return cli.Usagef("--cluster, --partitions, --replicas, --nodes and --node are for tables: sqlite:DIRECTORY or mysql:DATABASE")
	case tables && (o.nodes < 1 || o.replicas < 0 || o.replicas >= o.nodes):
		return cli.Usagef("%d nodes with %d replicas: want at least one node more than replicas", o.nodes, o.replicas)
	case tables && slices.ContainsFunc(o.node, func(n int) bool { return n < 1 || n > o.nodes }):
		return cli.Usagef("--node: want 1 to %d, the number of --nodes", o.nodes)
	case t.kind == "mysql" && len(o.node) != 1:
		return cli.Usagef("a database has the tables of one node: give --node I")
	case o.append && tables:
		return cli.Usagef("--append is for a Data.fs or a cluster; tables go on by themselves after an interruption")
	case o.gaps && t.kind != "file":
		return cli.Usagef("--allow-gap is for a Data.fs: look at what is lost before a cluster uses it")
	case o.restart && t.kind != "file":
		return cli.Usagef("--restart is for a Data.fs; remove the databases instead")
	}
	start := time.Now()
	return o.view(ctx, env, func(s *session, p *place, keys *backup.Keys) error {
		scratch := o.scratch
		if scratch == "" && s.set.Drill != nil {
			scratch = s.set.Drill.Scratch
		}
		src := &restore.Source{Repo: s.Repository, Keys: keys, State: p.state, Fetch: backup.FetchOptions{Scratch: scratch}, AllowGaps: o.gaps, Log: s.log.Logger}
		var err error
		if src.At, err = p.at(o.at, o.now()); err != nil && !(o.plan && errors.Is(err, backup.ErrNotExact) && src.At != tid.Zero) {
			return err
		}
		if o.plan {
			return printPlan(ctx, env, o, s, src)
		}
		if err := s.notBefore(ctx, p, keys, src.At); err != nil {
			return err
		}
		// What comes later is missing: the last moment that is there must not be taken for the last one.
		if m, err := config.ParseMoment(o.at, o.now()); err == nil && m.Latest && (p.older != nil || p.broken != nil) {
			return hint(fmt.Errorf("%w: the latest moment cannot be restored, what came after %v (%s) is missing", errDamage, src.At, when(src.At)),
				"--at %v restores what is there", src.At)
		}
		bar := o.progress(env, "restoring", "", 0)
		phase := restore.Writing
		progress := func(ph restore.Phase, _ tid.TID, done, total int64) {
			if ph != phase {
				bar.done()
				phase = ph
				bar = o.progress(env, string(ph), "", total)
			}
			bar.set(0, done, total)
		}
		res, err := o.restore(ctx, s, src, t, progress)
		bar.done()
		if err != nil {
			return err
		}
		return printRestored(env, o, t, res, time.Since(start))
	})
}

// restore does the work.
func (o *restoreOptions) restore(ctx context.Context, s *session, src *restore.Source, t target, progress restore.Progress) (res *restore.Result, err error) {
	switch t.kind {
	case "file":
		return src.ToFile(ctx, t.name, restore.FileOptions{Append: o.append, Restart: o.restart, Magic: fsformat.Magic(o.magic), NoVerify: o.noVerify, Progress: progress})
	case "cluster":
		var c *client.Client
		if c, err = o.openCluster(ctx, s, t.name); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		return src.ToCluster(ctx, c, func() exporter.Appender { return c.NewAppender(ctx, client.AppenderOptions{}) }, restore.ClusterOptions{Append: o.append, NoVerify: o.noVerify, Progress: progress})
	}
	opt := restore.TablesOptions{Cluster: o.cluster, Partitions: o.partitions, Replicas: o.replicas, Nodes: o.nodes, Only: o.node, NoVerify: o.noVerify, Progress: progress}
	if t.kind == "sqlite" {
		opt.Dir = t.name
	} else {
		opt.Open = func(ctx context.Context, _ int) (restore.Tables, error) {
			db, err := adapter.Open(ctx, adapter.Config{Adapter: adapter.MySQL, Database: t.name, HalfImported: true, Log: s.log.Logger})
			if err != nil {
				return nil, err
			}
			tables, ok := db.(restore.Tables)
			if !ok {
				return nil, errors.Join(fmt.Errorf("database %s cannot be restored to", t.shown()), db.Close())
			}
			return tables, nil
		}
	}
	return src.ToTables(ctx, opt)
}

// openCluster connects to the cluster that is restored to.
func (o *restoreOptions) openCluster(ctx context.Context, s *session, uri string) (*client.Client, error) {
	src, err := config.ParseSource(uri)
	if err != nil {
		return nil, cli.Usagef("%w", err)
	}
	masters, err := conf.ResolveAll(ctx, src.Masters)
	if err != nil {
		return nil, err
	}
	cfg := client.Config{Cluster: src.Cluster, CacheSize: 16 << 20}
	for _, a := range masters {
		cfg.Masters = append(cfg.Masters, proto.Address(a))
	}
	if cfg.TLS, err = o.TLSConfig(); err != nil {
		return nil, wrong(err)
	}
	if cfg.PeerTimeout, err = o.PeerTimeout.Limit(); err != nil {
		return nil, err
	}
	links := s.log.LinkConfig(cfg.TLS)
	cfg.Log, cfg.Record, cfg.FlushLog = links.Log, links.Record, s.log.FlushFile
	return client.Open(ctx, cfg)
}

// printPlan shows what a restore would read. What prevents it is the error too.
func printPlan(ctx context.Context, env *cli.Env, o *restoreOptions, s *session, src *restore.Source) error {
	plan, err := src.Plan(ctx)
	if err != nil {
		return err
	}
	if o.json {
		if err := o.line(env.Stdout, struct {
			V int `json:"v"`
			*restore.Plan
		}{1, plan}); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "moment\t%v  %s\n", plan.At, when(plan.At))
		if plan.Exact {
			fmt.Fprintf(w, "exact\tyes\n")
		} else {
			fmt.Fprintf(w, "exact\tNO: %s\n", plan.NotExact)
		}
		fmt.Fprintf(w, "to read\t%d objects, %s\n", plan.Objects, size(plan.Bytes))
		fmt.Fprintf(w, "contents\t%d transactions, %d records, %s of text\n", plan.Txns, plan.Records, size(plan.Text))
		for _, e := range plan.Epochs {
			opens := "opened by the identity"
			if !e.Opens {
				opens = "NOT opened: " + e.Problem
			}
			fmt.Fprintf(w, "epoch %v\t%d objects, %s: %s\n", e.KID, e.Objects, size(e.Bytes), opens)
		}
		for _, g := range plan.Gaps {
			fmt.Fprintf(w, "LOST\t%s\n", g)
		}
		if plan.Blobs {
			fmt.Fprintf(w, "blobs\tcannot be restored by this version\n")
		}
		// By the rates of spec §19: what a disk and two processors usually manage.
		fmt.Fprintf(w, "time\tabout %v at 100 MB/s\n", (time.Duration(float64(plan.Text)/100e6*float64(time.Second)) + time.Second).Round(time.Second))
		if err := w.Flush(); err != nil {
			return err
		}
	}
	var problem error
	if !plan.Exact {
		problem = s.exactError(src)
	}
	for _, e := range plan.Epochs {
		if !e.Opens {
			problem = errors.Join(problem, fmt.Errorf("epoch %v: %w", e.KID, backup.ErrKeys))
		}
	}
	if len(plan.Gaps) > 0 && !o.gaps {
		problem = errors.Join(problem, fmt.Errorf("%s: %w", plan.Gaps[0], backup.ErrIncomplete))
	}
	if problem != nil && o.json {
		return &cli.Exit{Code: classify(ctx, problem).Exit}
	}
	return problem
}

func (s *session) exactError(src *restore.Source) error { return src.State.Exact(src.At) }

func printRestored(env *cli.Env, o *restoreOptions, t target, res *restore.Result, took time.Duration) error {
	if o.json {
		return o.line(env.Stdout, map[string]any{
			"v": 1, "target": t.shown(), "kind": t.kind, "at": res.At, "last": pointOf(res.Last, o.now()), "compared": res.Compared, "segments": res.Segments,
			"transactions": res.Txns, "records": res.Records, "text_bytes": res.Bytes, "seconds": took.Seconds(), "unknown": res.Unknown, "unknown_file": res.UnknownFile,
		})
	}
	if o.quiet {
		return nil
	}
	name := t.shown()
	if t.kind == "file" {
		if abs, err := filepath.Abs(name); err == nil {
			name = abs
		}
	}
	compared := "read again and equal to the repository"
	if !res.Compared {
		compared = "NOT compared with the repository (--no-verify)"
	}
	fmt.Fprintf(env.Stdout, "%s has everything up to %v (%s): %d transactions, %d records, %s\n", name, res.Last, when(res.Last), res.Txns, res.Records, compared)
	if res.UnknownFile != "" {
		fmt.Fprintf(env.Stdout, "LOST: what was committed in a gap is not in it. %d objects may have changed there: %s lists them\n", res.Unknown, res.UnknownFile)
	}
	if t.kind == "sqlite" || t.kind == "mysql" {
		fmt.Fprintf(env.Stdout, "Start the cluster when the tables of all %d nodes are complete: neomaster -c %s -p %d -r %d, neostorage -c %s for each database, neoadmin; then neoctl start.\n",
			o.nodes, o.cluster, o.partitions, o.replicas, o.cluster)
	}
	return nil
}
