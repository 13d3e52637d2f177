package drill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

// target is what was restored, opened for reading.
type target struct {
	name  string
	db    txn.Database
	how   exporter.CompareOptions // what does not count in a comparison with it
	close func() error
}

// restoreAll restores, and compares what was restored with the repository.
func (d *run) restoreAll(ctx context.Context) (err error) {
	d.src = &restore.Source{Repo: d.repo, Keys: d.keys, State: d.state, At: d.at, Fetch: backup.FetchOptions{Scratch: d.scratch.dir}, Log: d.o.Log}
	if d.plan, err = d.src.Plan(ctx); err != nil {
		return err
	}
	if d.o.Mode == Read {
		return d.readAll(ctx)
	}
	if d.target, err = d.o.restore(ctx, d); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	res, err := d.o.compare(ctx, d, d.target)
	if err != nil {
		return err
	}
	if err := d.complete(ctx, res); err != nil {
		return err
	}
	d.compared(res.Segments, res.Txns, res.Records, res.Bytes)
	return nil
}

func (d *run) compared(segments, txns, records, bytes int64) {
	c := &d.proof.Compared
	c.Segments, c.Txns, c.Records, c.Bytes = segments, txns, records, bytes
}

// complete returns an error unless a comparison was of all that the notes say there is.
func (d *run) complete(ctx context.Context, res *restore.Result) error {
	whole := true // nothing of a segment was left out
	for part, err := range d.repo.Parts(ctx, d.state, tid.Zero, d.at) {
		if err != nil {
			return err
		}
		if l := part.Segment; l == nil || l.Clip != tid.Zero || l.Upto > d.at {
			whole = false
		}
	}
	got, want := [4]int64{res.Segments, res.Txns, res.Records, res.Bytes}, [4]int64{d.plan.Objects, d.plan.Txns, d.plan.Records, d.plan.Text}
	bad := !res.Compared || got[0] != want[0]
	for i := 1; i < len(got); i++ {
		// A cluster keeps the last one of several records of an object in a transaction.
		less := !whole || i > 1 && d.target.how.AnyOrder
		bad = bad || got[i] > want[i] || got[i] < want[i] && !less
	}
	if bad {
		return fmt.Errorf("%w: %d segments, %d transactions, %d records and %d bytes of text were compared of %d, %d, %d and %d", restore.ErrDifferent,
			got[0], got[1], got[2], got[3], want[0], want[1], want[2], want[3])
	}
	return nil
}

func (d *run) told(p Phase) restore.Progress {
	return func(_ restore.Phase, _ tid.TID, done, total int64) { d.progress(p, done, total) }
}

// compareTarget compares a target with the repository, segment by segment.
func compareTarget(ctx context.Context, d *run, t *target) (*restore.Result, error) {
	return d.src.Compare(ctx, t.name, t.db, restore.CompareOptions{How: t.how, Progress: d.told(Comparing)})
}

// restoreTarget restores. The comparison is not that of the restore, but comes later: with what
// then is used.
func restoreTarget(ctx context.Context, d *run) (*target, error) {
	if d.o.Mode == Cluster {
		return restoreCluster(ctx, d)
	}
	path := d.path("Data.fs")
	if _, err := d.src.ToFile(ctx, path, restore.FileOptions{NoVerify: true, Progress: d.told(Restoring)}); err != nil {
		return nil, err
	}
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		return nil, err
	}
	if _, err := r.UseIndex(ctx, "", nil); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &target{name: path, db: r, close: r.Close}, nil
}

// partitions of a cluster that is restored, where the source says nothing.
const partitions = simple.DefaultPartitions

// restoreCluster restores the tables of a cluster, starts it, and connects to it.
func restoreCluster(ctx context.Context, d *run) (*target, error) {
	dir, err := d.mkdir("cluster")
	if err != nil {
		return nil, err
	}
	np := int(d.state.Manifest.Source.NP)
	if np == 0 {
		np = partitions
	}
	name := "drill-of-" + d.repo.Marker.Name
	if _, err := d.src.ToTables(ctx, restore.TablesOptions{Cluster: name, Partitions: np, Nodes: 1, Dir: dir, NoVerify: true, Progress: d.told(Restoring)}); err != nil {
		return nil, err
	}
	nw := newNetwork()
	log := slog.New(warnings{d.o.Log.Handler()})
	c, err := simple.New(simple.Config{Dir: dir, Name: name, Network: nw, Log: log})
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() { ran <- c.Run(running) }()
	end := func() error {
		stop()
		return <-ran
	}
	if err := c.WaitRunning(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start of the restored cluster: %w", err), end())
	}
	cl, err := client.Open(ctx, client.Config{Cluster: name, Masters: []proto.Address{c.Master()}, ReadOnly: true, Network: nw, Log: log})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("client of the restored cluster: %w", err), end())
	}
	return &target{
		name: "the restored cluster", db: cl, how: exporter.CompareOptions{AnyOrder: true},
		close: func() error { return errors.Join(cl.Close(), end()) },
	}, nil
}

// warnings passes on what is no routine.
type warnings struct{ slog.Handler }

func (h warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}
func (h warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{h.Handler.WithAttrs(a)} }
func (h warnings) WithGroup(g string) slog.Handler      { return warnings{h.Handler.WithGroup(g)} }

// FindingsError reports what a verification has found. It is an [ErrDamaged], or a
// [restore.ErrDifferent] if it is about the source.
type FindingsError struct {
	Findings []verify.Finding // up to maxFindings
	Found    int64
	source   bool
}

func (e *FindingsError) Error() string {
	what := "the repository is damaged"
	if e.source {
		what = "the source differs"
	}
	if e.Found == 1 {
		return fmt.Sprintf("%s: %v", what, e.Findings[0])
	}
	return fmt.Sprintf("%s: %d faults, the first: %v", what, e.Found, e.Findings[0])
}

// Is reports whether target is what the findings are.
func (e *FindingsError) Is(target error) bool {
	return e.source && target == restore.ErrDifferent || !e.source && target == ErrDamaged
}

// report keeps a finding.
func (d *run) report(f verify.Finding) {
	if f.Warning {
		d.warn("%v", f)
		return
	}
	if d.res.Found++; len(d.res.Findings) < maxFindings {
		d.res.Findings = append(d.res.Findings, f)
	}
}

// found returns the error of what was reported.
func (d *run) found(source bool) error {
	if d.res.Found == 0 {
		return nil
	}
	return &FindingsError{d.res.Findings, d.res.Found, source}
}

// readAll reads and verifies all segments, those after the moment too.
func (d *run) readAll(ctx context.Context) error {
	sum, err := verify.Read(ctx, verify.ReadOptions{
		Repo: d.repo, Keys: d.keys, State: d.state, Scratch: d.scratch.dir, Report: d.report, Progress: func(done, total int64) { d.progress(Reading, done, total) },
	})
	if err != nil {
		return err
	}
	if err := d.found(false); err != nil {
		return err
	}
	want, text := int64(0), int64(0)
	for part, err := range d.repo.Parts(ctx, d.state, tid.Zero, d.state.Head()) {
		if err != nil {
			return err
		}
		if part.Segment == nil {
			return fmt.Errorf("what is lost between %v and %v, as an operator accepted, is %w", part.Gap.After, part.Gap.Upto, backup.ErrIncomplete)
		}
		want++
		text += part.Segment.Text
	}
	switch {
	case sum.Unopened > 0:
		return fmt.Errorf("%d segments: %w (%s)", sum.Unopened, backup.ErrKeys, sum.Why)
	case sum.Read != want || sum.Segments != want:
		return fmt.Errorf("%w: %d segments were read of %d", ErrDamaged, sum.Read, want)
	case d.state.HasBlobs():
		return restore.ErrBlobs
	}
	d.compared(sum.Read, sum.Txns, sum.Records, text)
	return nil
}
