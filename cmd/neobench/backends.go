package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

// What the databases are in; see backends.
const (
	sqlite  = "SQLite"
	innodb  = "InnoDB"
	rocksdb = "RocksDB"
)

func newBackends(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	b := backends{comparison: &c, rounds: 3, log: env.Stderr, engines: []string{sqlite, innodb, rocksdb}}
	size, theirs := "20MB", "2MB"
	cmd := &cobra.Command{
		Use:   "backends",
		Short: "Measure storages on SQLite, InnoDB and RocksDB, beside those of Python on the same server",
		Long: `Measure storages on SQLite, InnoDB and RocksDB, beside those of Python on the same server.

A private MariaDB server (programs mariadbd and mariadb-install-db) serves all databases
of InnoDB and RocksDB. Each round measures each kind of database, with our storages and
with those of Python in turn: commits and loads that nothing caches, then on new clusters
neomigrate of a Data.fs, replication to a second storage, a pack, and an import by the
adapter Importer.

With --peer, a Python that can import neo, and MySQLdb for the server, the clients of the
commits and loads are its processes, the same for both storages, and the figures named (Go)
are those of our client. Each side has its own neomigrate. Python gets a shorter Data.fs,
because it takes long, except by the Importer into the server. Figures are medians of the
rounds, and the ratio is the median of the ratios in each round, with the least and the
greatest in brackets.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.size, err = parseSize(size); err != nil {
				return cli.Usagef("--size: %w", err)
			}
			if b.theirSize, err = parseSize(theirs); err != nil {
				return cli.Usagef("--peer-size: %w", err)
			}
			if b.rounds < 1 {
				return cli.Usagef("--rounds: want 1 or more")
			}
			for _, e := range b.engines {
				if e != sqlite && e != innodb && e != rocksdb {
					return cli.Usagef("--engines: unknown engine %q: want SQLite, InnoDB or RocksDB", e)
				}
			}
			return c.in(func() error { return b.run(cmd.Context()) })
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().StringVar(&c.neo, "peer", "", "Python that can import neo, and MySQLdb for the server; default: not compared with")
	cmd.Flags().StringVar(&size, "size", size, "size of the Data.fs that is imported")
	cmd.Flags().StringVar(&theirs, "peer-size", theirs, "size of the Data.fs that Python imports")
	cmd.Flags().IntVar(&b.rounds, "rounds", b.rounds, "rounds, of which medians are shown")
	cmd.Flags().StringSliceVar(&b.engines, "engines", b.engines, "kinds of databases to measure")
	cmd.Flags().StringSliceVar(&c.storageArgs, "storage-option", nil, "option of our storages, such as --replication-share=50; repeatable")
	return cmd
}

// backends measures kinds of databases, each with both implementations.
type backends struct {
	*comparison
	engines   []string
	rounds    int
	theirSize int64
	log       io.Writer
	fileOnly  bool            // Python has no client of the server
	server    *databaseServer // nil: no engine needs one
	measured  []*measure
}

// Numbers of operations that are measured in a round, of all clients together.
const (
	backendCommits = 400
	backendLoads   = 4000
)

// measure is what was measured of one kind of database: ours, and Python's if there is any.
type measure struct {
	what, engine, unit string
	ours, theirs       []float64
}

func (b *backends) add(what, engine, unit string, python bool, value float64) {
	i := slices.IndexFunc(b.measured, func(m *measure) bool { return m.what == what && m.engine == engine })
	if i < 0 {
		i = len(b.measured)
		b.measured = append(b.measured, &measure{what: what, engine: engine, unit: unit})
	}
	if m := b.measured[i]; python {
		m.theirs = append(m.theirs, value)
	} else {
		m.ours = append(m.ours, value)
	}
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}

// print writes the medians, those of one kind of figure together.
func (b *backends) print() {
	var order []string
	for _, m := range b.measured {
		if !slices.Contains(order, m.what) {
			order = append(order, m.what)
		}
	}
	for _, what := range order {
		for _, m := range b.measured {
			if m.what != what || len(m.ours) == 0 {
				continue
			}
			fmt.Fprintf(b.out, "%-44s %-7s %10.1f %-7s", m.what, m.engine, median(m.ours), m.unit)
			var ratios []float64
			for i := range min(len(m.ours), len(m.theirs)) {
				if m.theirs[i] > 0 {
					ratios = append(ratios, m.ours[i]/m.theirs[i])
				}
			}
			if len(ratios) > 0 {
				fmt.Fprintf(b.out, " Python %10.1f   ratio %6.2f [%.2f..%.2f]", median(m.theirs), median(ratios), slices.Min(ratios), slices.Max(ratios))
			}
			fmt.Fprintln(b.out)
		}
	}
}

func (b *backends) run(ctx context.Context) error {
	if b.neo != "" {
		if err := quiet(exec.CommandContext(ctx, b.neo, "-c", "import neo")); err != nil {
			return fmt.Errorf("--peer: %w", err)
		}
		if err := quiet(exec.CommandContext(ctx, b.neo, "-c", "import MySQLdb")); err != nil {
			b.fileOnly = true
			fmt.Fprintf(b.log, "%s cannot import MySQLdb (pip install mysqlclient): its storages are measured on SQLite alone\n", b.neo)
		}
	}
	fsync, err := fsyncFloor(b.dir)
	if err != nil {
		return err
	}
	b.line("one 24 kB append and fsync on this disk", float64(fsync.Microseconds()), "µs", 0)
	if slices.ContainsFunc(b.engines, func(e string) bool { return e != sqlite }) {
		if b.server, err = startServer(ctx, filepath.Join(b.dir, "server")); err != nil {
			return err
		}
		defer b.server.stop()
		trip, err := b.server.roundTrip(ctx)
		if err != nil {
			return err
		}
		b.line("SELECT 1, a round trip to the server", float64(trip.Microseconds()), "µs", 0)
	}
	for _, engine := range b.engines {
		if engine == sqlite {
			continue
		}
		rate, one, err := b.server.inserts(ctx, engine)
		if err != nil {
			return err
		}
		b.line(fmt.Sprintf("INSERT of %d rows of 2 kB, %s", floorRows, engine), rate, "rows/s", 0)
		b.line("INSERT of one row and COMMIT, "+engine, float64(one.Microseconds()), "µs", 0)
	}

	data, theirs := filepath.Join(b.dir, "Data.fs"), filepath.Join(b.dir, "peer.fs")
	if err := generate(data, b.size, 1); err != nil {
		return err
	}
	if err := generate(theirs, b.theirSize, 1); err != nil {
		return err
	}
	sides := []bool{false}
	if b.neo != "" {
		sides = append(sides, true)
	}
	for round := range b.rounds {
		for _, engine := range b.engines {
			for _, python := range sides {
				if python && b.fileOnly && engine != sqlite {
					continue
				}
				source := data
				if python {
					source = theirs
				}
				s := &side{backends: b, ctx: ctx, engine: engine, python: python, dir: filepath.Join(b.dir, "side"), data: source, whole: data}
				begun := time.Now()
				if err := s.measure(); err != nil {
					return fmt.Errorf("%v: %w", s, err)
				}
				fmt.Fprintf(b.log, "round %d of %d: %v, %.0f s\n", round+1, b.rounds, s, time.Since(begun).Seconds())
			}
			slices.Reverse(sides)
		}
	}
	if b.server != nil {
		b.line("peak memory of the server", float64(peakMemory(b.server.cmd.Process.Pid))/1e6, "MB", 0)
	}
	b.print()
	return nil
}

// side is one implementation on one kind of database, in one round.
type side struct {
	*backends
	ctx    context.Context
	engine string
	python bool
	dir    string // of the SQLite files and logs
	data   string // the Data.fs to import
	whole  string // that of our side
	mb     float64
	used   []string // databases of the server
}

func (s *side) String() string {
	if s.python {
		return s.engine + ", Python"
	}
	return s.engine
}

func (s *side) add(what, unit string, value float64) {
	s.backends.add(what, s.engine, unit, s.python, value)
}

func (s *side) measure() (err error) {
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(s.dir))
		for _, name := range s.used {
			_, dropErr := s.server.db.ExecContext(s.ctx, "DROP DATABASE "+name)
			err = errors.Join(err, dropErr)
		}
	}()
	if err := s.measureData(); err != nil {
		return err
	}
	for _, step := range []func() error{s.service, s.migrate, s.imported} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (s *side) measureData() error {
	st, err := os.Stat(s.data)
	if err == nil {
		s.mb = float64(st.Size()) / 1e6
	}
	return err
}

// peers is the Python that runs the nodes, nil for ours.
func (s *side) peers() []string {
	if s.python {
		return []string{s.neo}
	}
	return nil
}

// database returns the adapter and the database string of a new, empty database.
func (s *side) database(name string) (adapter, database string, err error) {
	if s.engine == sqlite {
		return "SQLite", filepath.Join(s.dir, name+".sqlite"), nil
	}
	created, err := s.server.create(s.ctx)
	s.used = append(s.used, created)
	return "MySQL", s.server.url(created), err
}

// start starts a cluster of one storage, to which a second one can be added.
func (s *side) start(name string) (*running, error) {
	var options [2][]string
	for i := range options {
		adapter, database, err := s.database(fmt.Sprint(name, i))
		if err != nil {
			return nil, err
		}
		options[i] = []string{"-a", adapter, "-d", database}
		if adapter == "MySQL" {
			options[i] = append(options[i], "-e", s.engine)
		}
	}
	return s.startWith(s.ctx, s.dir, name, s.peers(), 1, func(n int) []string { return options[n] })
}

// service measures commits and loads.
func (s *side) service() error {
	cl, err := s.start("service")
	if err != nil {
		return err
	}
	defer cl.stop()
	if s.neo != "" {
		for _, n := range []int{4, 1} {
			if err := s.pythonClients(cl, n); err != nil {
				return err
			}
		}
	}
	if s.python {
		return nil
	}
	g, err := cl.target(s.ctx)
	if err != nil {
		return err
	}
	for _, n := range []int{4, 1} {
		f, err := g.commits(s.ctx, n, backendCommits/n, 10, 2000, 0)
		if err != nil {
			return err
		}
		s.add(f.name+" (Go)", "/s", f.rate())
	}
	oids, err := g.someOIDs(s.ctx, 50000)
	if err != nil {
		return err
	}
	for _, n := range []int{4, 1} {
		f, err := g.loads(s.ctx, n, backendLoads/n, oids)
		if err != nil {
			return err
		}
		s.add(f.name+" (Go)", "/s", f.rate())
	}
	return nil
}

func (s *side) pythonClients(cl *running, n int) error {
	args := []string{"storage", "neo:" + cl.name + "@" + cl.masters, fmt.Sprint(n), fmt.Sprint(backendCommits), fmt.Sprint(backendLoads)}
	for _, p := range cl.processes {
		args = append(args, fmt.Sprint(p.Process.Pid))
	}
	if s.engine != sqlite {
		args = append(args, fmt.Sprint(s.server.cmd.Process.Pid))
	}
	f, err := s.peer(s.ctx, s.neo, args...)
	if err != nil {
		return err
	}
	for _, what := range []string{"commit", "load"} {
		of := fmt.Sprintf(", %d clients", n)
		s.add(what+of+" (Python clients)", "/s", f[what+"s_s"])
		s.add(what+of+", median, low is good", "µs", f[what+"_us"])
		server := f[what+"_cpu_us"]
		s.add("CPU/"+what+of+", nodes and server, low is good", "µs", server)
		s.add("CPU/"+what+of+", with the clients, low is good", "µs", server+f["client_"+what+"_cpu_us"])
	}
	return nil
}

// migrate measures neomigrate, replication, and a pack.
func (s *side) migrate() error {
	var before int64
	if s.engine == rocksdb && !s.python {
		if err := s.server.compact(s.ctx); err != nil {
			return err
		}
		var err error
		if before, err = diskUse(s.server.dir, ".sst"); err != nil {
			return err
		}
	}
	cl, err := s.start("migrate")
	if err != nil {
		return err
	}
	defer cl.stop()
	tool := cl.program("neomigrate", "-q", "-c", cl.name, s.data, cl.masters)
	begun := time.Now()
	if err := quiet(tool); err != nil {
		return err
	}
	s.add("neomigrate of a Data.fs", "MB/s", s.mb/time.Since(begun).Seconds())
	if !s.python {
		for i, what := range []string{"master", "storage", "admin"} {
			s.add("peak memory of the "+what, "MB", float64(peakMemory(cl.processes[i].Process.Pid))/1e6)
		}
		size, err := s.diskUse("migrate0", before)
		if err != nil {
			return err
		}
		s.add("disk for each GB of Data.fs", "MB", float64(size)/1e3/s.mb)
	}

	if err := cl.addReplica(); err != nil {
		return err
	}
	begun = time.Now()
	if err := cl.awaitCells(s.ctx); err != nil {
		return err
	}
	s.add("replication of a storage", "MB/s", s.mb/time.Since(begun).Seconds())

	g, err := cl.target(s.ctx)
	if err != nil {
		return err
	}
	packer, err := client.Open(s.ctx, g.cfg)
	if err != nil {
		return err
	}
	defer packer.Close()
	begun = time.Now()
	id, err := packer.Pack(s.ctx, tid.Max)
	if err == nil {
		err = packer.WaitForPack(s.ctx, id)
	}
	s.add("pack of both storages", "MB/s", s.mb/time.Since(begun).Seconds())
	return err
}

// diskUse returns the bytes of a database on disk. before is what the files of RocksDB had without it.
func (s *side) diskUse(name string, before int64) (int64, error) {
	switch s.engine {
	case sqlite:
		path := filepath.Join(s.dir, name+".sqlite")
		file, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		return file.Size(), nil
	case innodb:
		return diskUse(filepath.Join(s.server.dir, s.used[len(s.used)-2]), "")
	}
	if err := s.server.compact(s.ctx); err != nil {
		return 0, err
	}
	after, err := diskUse(s.server.dir, ".sst")
	return after - before, err
}

// awaitCells waits until all cells of two storages are complete.
func (r *running) awaitCells(ctx context.Context) error {
	addr, err := conf.ParseAddress(r.admin, 0)
	if err != nil {
		return err
	}
	op, err := ctl.Dial(ctx, proto.Address(addr), link.Config{})
	if err != nil {
		return err
	}
	defer op.Close()
	for {
		table, err := op.PartitionTable(ctx, 0, 0, 0)
		if err != nil {
			return err
		}
		complete := len(table.Rows) > 0
		for _, row := range table.Rows {
			complete = complete && len(row) == 2 && !slices.ContainsFunc(row, func(c proto.Cell) bool { return c.State != proto.UpToDate })
		}
		if complete {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// imported measures the adapter Importer from the start of the nodes until table trans has all transactions. Python
// gets the same Data.fs, but on SQLite the short one, and only the time since the cluster runs counts.
func (s *side) imported() error {
	if s.engine != sqlite {
		s.data = s.whole
		if err := s.measureData(); err != nil {
			return err
		}
	}
	transactions, err := countTransactions(s.ctx, s.data)
	if err != nil {
		return err
	}
	// Each gets a copy, since that of Python opens it for writing.
	source, config, log := filepath.Join(s.dir, "source.fs"), filepath.Join(s.dir, "importer.conf"), filepath.Join(s.dir, "importer.log")
	if _, err := copyFile(s.data, source); err != nil {
		return err
	}
	adapter, database, err := s.database("imported")
	if err != nil {
		return err
	}
	text := fmt.Sprintf("[neo]\nadapter: %s\ndatabase: %s\n", adapter, database)
	if adapter == "MySQL" {
		text += "engine: " + s.engine + "\n"
	}
	text += fmt.Sprintf("[root]\nstorage:\n  <filestorage>\n    path %s\n  </filestorage>\n", source)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	begun := time.Now()
	cl, err := s.startWith(s.ctx, s.dir, "import", s.peers(), 1, func(int) []string { return []string{"-a", "Importer", "-d", config, "-l", log} })
	if err != nil {
		return err
	}
	defer cl.stop()
	var took time.Duration
	if s.python && s.engine == sqlite {
		begun = time.Now() // its interpreters take long to start, and its Data.fs is short
	}
	switch {
	case !s.python:
		if err = followImport(s.ctx, cl.admin, nil); err != nil {
			break
		}
		// When the copy was at its end is in the log, some time later.
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			if took, _, err = importTimes(s.ctx, log, begun); err == nil || s.ctx.Err() != nil || time.Now().After(deadline) {
				break
			}
		}
	case s.engine == sqlite:
		_, err = s.peer(s.ctx, s.neo, "imported", database, fmt.Sprint(transactions))
		took = time.Since(begun)
	default:
		name := strings.TrimPrefix(database[:len(database)-len(s.server.socket)], "root@")
		err = s.server.await(s.ctx, name, transactions)
		took = time.Since(begun)
	}
	if err != nil {
		return err
	}
	s.add("import by the adapter Importer", "MB/s", s.mb/took.Seconds())
	return nil
}

func countTransactions(ctx context.Context, data string) (n int64, err error) {
	r, err := fsformat.Open(data, fsformat.Options{})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for _, err := range r.Scan(ctx, tid.Zero, tid.Max) {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// await waits until table trans of a database has n rows.
func (s *databaseServer) await(ctx context.Context, name string, n int64) error {
	last := int64(-1)
	for since := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		var rows int64
		if err := s.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+name+".trans").Scan(&rows); err != nil {
			return err
		}
		if rows >= n {
			return nil
		}
		if rows > last {
			last, since = rows, time.Now()
		}
		if time.Since(since) > time.Minute {
			return fmt.Errorf("%d of %d transactions are imported, and none for a minute", rows, n)
		}
	}
}
