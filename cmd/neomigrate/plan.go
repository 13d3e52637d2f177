package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/plan"
)

type planOptions struct {
	output, destination, adapter, engine string
	mounts, keep                         []string
	withoutBlobs, force, fast            bool
	json, quiet                          bool
	wait                                 float64
}

func newPlanCommand(env *cli.Env) *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use:   "plan [options] SOURCE…",
		Short: "Look at databases before they are imported, and propose importer.conf",
		Long: `Look at databases before they are imported, and propose importer.conf: the file of a
storage node with the adapter Importer, which serves the databases while it copies them.

Nothing is written to a source, which may be in use. Of each Data.fs all is verified and
counted, which reads it two or three times; a sample of it is imported into a database
that is removed again, to know how long the import will take and how much room it needs.
Mount points of Zope (Products.ZODBMountPoint) are found, and what they lead to.

SOURCE is one of
  PATH                        a Data.fs
  PATH                        an importer.conf, of which all sources are taken
  zeo://HOST:PORT[/STORAGE]   a ZEO server
  neo://NAME@MASTER,MASTER    another cluster
Of the last two only what mount points lead to is looked up: plan with their Data.fs, if
they have one. The first SOURCE is the root database. NAME=SOURCE gives it the name under
which other databases refer to it (<zodb_db NAME> in zope.conf); default: the name of the
file without .fs.

What a person has to decide or to repair is listed first, each with a way out, and is at
the head of the proposal. The proposal goes to stdout and the report to stderr; with
--output the proposal to a file and the report to stdout; with --json both are one line
of JSON on stdout.

Exit status: 0 the import can begin; 1 something has to be decided or repaired first, or
the command failed; 2 wrong usage.`,
		Example: `  neomigrate plan main=/var/lib/zope/Data.fs catalog=/var/lib/zope/Catalog.fs --output importer.conf
  neomigrate plan Data.fs archive.fs --mount /old=archive:/archive --keep temporary`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPlan(cmd.Context(), env, &o, args)
		},
	}
	fs := cmd.Flags()
	cli.Path(fs, &o.output, "output", "o", "", "write the proposal to this file; one that exists is kept unless --force")
	cli.Flag(fs, &o.force, "force", "", "replace the file of --output")
	cli.Text(fs, &o.destination, "destination", "d", "", "database that will receive the data, as neostorage --database; default: imported.sqlite beside the first SOURCE")
	cli.Text(fs, &o.adapter, "adapter", "a", adapter.SQLite, "adapter of it: SQLite, MySQL, MySQLdb or PyMySQL")
	cli.Text(fs, &o.engine, "engine", "e", "", "engine of MySQL: InnoDB or RocksDB")
	cli.Texts(fs, &o.mounts, "mount", "", "/PATH=NAME: the mount point /PATH shows database NAME; /PATH=NAME:/REAL if the path in it is another, /PATH=NAME:~ROOT/REAL if it does not begin at Application, as mount-point in zope.conf; /PATH=NAME:OID for an object by its number")
	cli.Texts(fs, &o.keep, "keep", "", "database NAME, or mount point /PATH, that stays outside: applications go on opening it")
	cli.Flag(fs, &o.withoutBlobs, "without-blobs", "", "the files of blobs, which are not imported, are not needed")
	cli.Flag(fs, &o.fast, "fast", "", "read only samples: nothing is verified or counted, and mount points are sought only near the root")
	fs.Float64Var(&o.wait, "wait", 10, "seconds that a server which has a SOURCE may take to be reached")
	cli.Flag(fs, &o.json, "json", "", "print the plan as one line of JSON, and no report")
	cli.Flag(fs, &o.quiet, "quiet", "q", "show no progress")
	return cmd
}

func runPlan(ctx context.Context, env *cli.Env, o *planOptions, args []string) (err error) {
	cfg := plan.Config{
		Keep: o.keep, WithoutBlobs: o.withoutBlobs, Fast: o.fast,
		Destination: config.Destination{Adapter: o.adapter, Engine: o.engine, Database: o.destination},
		Progress: func(what string, total int64) (func(int64), func()) {
			p := cli.NewProgress(env, cli.ProgressConfig{What: what, Total: total, Quiet: o.quiet || total < 32<<20})
			return func(pos int64) { p.Set(0, pos) }, p.Done
		},
	}
	if o.adapter == adapter.Importer {
		return cli.Usagef("--adapter Importer is what the plan is for: name the adapter of its destination")
	}
	if err := adapter.Check(o.adapter, o.engine, o.destination); err != nil {
		return cli.Usagef("%w", err)
	}
	if !(o.wait > 0 && o.wait < 86400) {
		return cli.Usagef("--wait %v: want seconds, more than 0 and less than a day", o.wait)
	}
	cfg.Patience = time.Duration(o.wait * float64(time.Second))
	if o.force && o.output == "" {
		return cli.Usagef("--force is for --output")
	}
	if o.output != "" && !o.force {
		if _, err := os.Lstat(o.output); err == nil { // before hours of reading
			return fmt.Errorf("%s exists: it stays as it is, --force replaces it", o.output)
		}
	}
	for _, text := range o.mounts {
		m, err := plan.ParseMount(text)
		if err != nil {
			return cli.Usagef("--mount: %w", err)
		}
		cfg.Mounts = append(cfg.Mounts, m)
	}
	if err := side.Files(args...); err != nil {
		return err
	}
	for _, arg := range args {
		if err := addSource(env, &cfg, o, arg); err != nil {
			return err
		}
	}
	names := map[string]bool{}
	for _, s := range cfg.Sources {
		if names[s.Name] {
			return cli.Usagef("two sources have the name %s: give one of them another, NAME=SOURCE", s.Name)
		}
		names[s.Name] = true
	}
	if d := &cfg.Destination; d.Adapter == adapter.SQLite && d.Database != "" {
		if d.Database, err = filepath.Abs(d.Database); err != nil {
			return err
		}
	}
	p, err := plan.Make(ctx, cfg)
	if err != nil {
		return err
	}
	if err := o.tell(env, p); err != nil {
		return err
	}
	if p.Musts() > 0 {
		return &cli.Exit{Code: 1}
	}
	return nil
}

// tell writes the report and the proposal.
func (o *planOptions) tell(env *cli.Env, p *plan.Plan) error {
	report := env.Stderr
	if o.json {
		if err := json.NewEncoder(env.Stdout).Encode(p); err != nil {
			return err
		}
	} else {
		if o.output != "" {
			report = env.Stdout
		}
		if err := p.Report(report); err != nil {
			return err
		}
	}
	switch {
	case p.Text == "":
		fmt.Fprintln(env.Stderr, "no importer.conf can be proposed")
	case o.output != "":
		if err := writeNew(o.output, p.Text, o.force); err != nil {
			return err
		}
		if !o.json {
			fmt.Fprintf(report, "\n%s is written. Stop the servers of the sources, then: neostorage --adapter Importer --database %[1]s …\n", o.output)
		}
	case !o.json:
		if _, err := io.WriteString(env.Stdout, p.Text); err != nil {
			return err
		}
	}
	return nil
}

// writeNew writes a file that must not exist, unless it may be replaced.
func writeNew(path, text string, replace bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".importer.conf-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.WriteString(text)
	// A temporary file is for its owner alone, and a configuration may have a password.
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if replace {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Link(f.Name(), path); errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists: it stays as it is, --force replaces it", path)
	} else if err != nil {
		return err
	}
	return nil
}

// addSource adds what an argument names.
func addSource(env *cli.Env, cfg *plan.Config, o *planOptions, arg string) error {
	name, where := "", arg
	if _, err := os.Stat(arg); err != nil {
		if n, w, ok := strings.Cut(arg, "="); ok && n != "" && !strings.ContainsAny(n, "/?") {
			name, where = n, w
		}
	}
	g := plan.Given{Name: name}
	switch {
	case strings.HasPrefix(where, "zeo://"):
		server, storage, _ := strings.Cut(strings.TrimPrefix(where, "zeo://"), "/")
		if server == "" || strings.ContainsAny(storage, "/?") {
			return cli.Usagef("%q: want zeo://HOST:PORT, or with /STORAGE", where)
		}
		if storage == "" {
			storage = "1"
		}
		g.Storage.ZEO = &config.ZEO{Servers: []string{server}, Storage: storage, Wait: true, WaitTimeout: 30 * time.Second}
		if name == "" {
			g.Name = storage
		}
	case strings.HasPrefix(where, "neo://"), strings.HasPrefix(where, "neos://"):
		uri, err := client.ParseURI(where, env.Getenv)
		if err != nil {
			return cli.Usagef("%w", err)
		}
		g.Storage.NEO = &config.NEO{Name: uri.Cluster, Masters: uri.Masters, CA: uri.Storage["ca"], Cert: uri.Storage["cert"], Key: uri.Storage["key"]}
		if name == "" {
			g.Name = g.Storage.NEO.Name
		}
	default:
		conf, err := isConfiguration(where)
		if err != nil {
			return err
		}
		if conf {
			if name != "" {
				return cli.Usagef("%s is a configuration: it says itself what its sources are called", where)
			}
			return addConfiguration(env, cfg, o, where)
		}
		path, err := filepath.Abs(where)
		if err != nil {
			return err
		}
		g.Storage.File = &config.File{Path: path}
		if name == "" {
			g.Name = strings.TrimSuffix(filepath.Base(path), ".fs")
		}
	}
	cfg.Sources = append(cfg.Sources, g)
	return nil
}

// isConfiguration reports whether a file is an importer.conf, and no Data.fs.
func isConfiguration(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	b = b[:n]
	if m := string(b[:min(n, 4)]); m == string(fsformat.FS21) || m == string(fsformat.FS30) {
		return false, nil
	}
	text := strings.TrimSpace(string(b))
	return utf8.ValidString(text) && text != "" && strings.Contains("#;[", text[:1]), nil
}

// addConfiguration adds what an importer.conf says. The command line has precedence.
func addConfiguration(env *cli.Env, cfg *plan.Config, o *planOptions, path string) error {
	imp, err := config.ReadFile(path)
	if err != nil {
		return err
	}
	for _, w := range imp.Warnings {
		fmt.Fprintf(env.Stderr, "warning: %s\n", w)
	}
	if o.destination == "" {
		if o.engine != "" || o.adapter != adapter.SQLite {
			return cli.Usagef("--adapter and --engine need --destination, since %s has a destination", path)
		}
		cfg.Destination = imp.Destination
	}
	root := imp.Root()
	for pass := range 2 {
		for i := range imp.Sources {
			if src := &imp.Sources[i]; (src == root) == (pass == 0) {
				cfg.Sources = append(cfg.Sources, plan.Given{Name: src.DatabaseName, Storage: src.Storage, Section: src})
			}
		}
	}
	return nil
}
