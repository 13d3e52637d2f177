package side

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/pflag"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

// Reading are the options of a copy of a Data.fs.
type Reading struct {
	Strict   bool // --strict
	Renumber bool // --renumber
}

// AddFlags defines --strict and --renumber.
func (o *Reading) AddFlags(fs *pflag.FlagSet) {
	cli.Flag(fs, &o.Strict, "strict", "", "refuse a Data.fs in which the pointer of a record to the previous one of its object is wrong; default: warn and copy it")
	cli.Flag(fs, &o.Renumber, "renumber", "", "copy a Data.fs whose transaction ids do not increase: in the order of the file, an id not above the one before becomes the next one after it")
}

// Help is what the help of a command that copies says about both.
const Help = `
A Data.fs whose transaction ids do not increase, as after the clock of its server
was set back, is refused before anything is written. --renumber copies it: its
transactions keep their order, on which the data depend, and one whose id is not
above that of the transaction before gets the next one after it. All copies of such
a file, and each that goes on with one, need the option.

An object id has one redundancy, the pointer of its records to the previous ones,
which a copy makes anew. Of each record whose pointer is wrong a warning is printed
with its file, offset, transaction and object, and at the end how many there are;
with --strict nothing is copied then.`

// File is a Data.fs that is copied. What a copy cannot show any more is said on
// stderr: what is left out, damaged records, ids that change.
type File struct {
	*fsformat.Checked
	env   *cli.Env
	opt   Reading
	quiet bool
	bar   *cli.Progress // during CheckOrder

	counting bool
	after    tid.TID // records of blobs are counted behind it
	blobs    int64
	wrong    Wrong
}

// OpenFile opens a Data.fs to copy it. quiet: show no progress, and not which
// transactions get other ids.
func (o *Reading) OpenFile(ctx context.Context, env *cli.Env, name string, anyStatus, quiet bool) (*File, error) {
	f := &File{env: env, opt: *o, quiet: quiet, wrong: Wrong{Out: env.Stderr, File: name}}
	r, err := fsformat.Open(name, fsformat.Options{AnyStatus: anyStatus, Renumber: o.Renumber, Progress: func(pos int64) {
		if f.bar != nil {
			f.bar.Set(0, pos)
		}
	}})
	if err != nil {
		return nil, err
	}
	f.Checked = r.Checked(f.wrong.Report)
	f.showing(func() { err = f.begin(ctx) })
	if err != nil {
		return nil, errors.Join(f.explain(err), r.Close())
	}
	return f, nil
}

// begin says what can be said at once.
func (f *File) begin(ctx context.Context) error {
	t, err := f.Tail(ctx)
	if err != nil {
		return err
	}
	if t.Ignored > 0 {
		fmt.Fprintf(f.env.Stderr, "warning: %s: offset %d: %s: %d bytes ignored\n", f.Name(), t.End, t.Reason, t.Ignored)
	}
	if t.LastTID > tid.FromTime(time.Now().Add(time.Minute)) {
		fmt.Fprintf(f.env.Stderr, "warning: %s: transaction %v, the last one, is in the future (%s): what is committed after it, also in a copy, gets ids above that\n",
			f.Name(), t.LastTID, t.LastTID.Time().Format("2006-01-02 15:04:05"))
	}
	return nil
}

// showing shows how far what do does is.
func (f *File) showing(do func()) {
	// Small files are read before anybody wonders.
	f.bar = cli.NewProgress(f.env, cli.ProgressConfig{What: "checking the order", Total: f.Size(), Quiet: f.quiet || f.Size() < 1<<30})
	do()
	f.bar.Done()
	f.bar = nil
}

// CheckOrder verifies, before anything is copied, that the ids of the transactions
// behind one increase, and with --strict that no record of the file is damaged.
func (f *File) CheckOrder(ctx context.Context, after tid.TID) (err error) {
	f.showing(func() {
		if err = f.Checked.CheckOrder(ctx, after); err == nil && f.opt.Strict {
			// Of the whole file: from the middle, not all of it shows.
			err = f.CheckPrevious(ctx, tid.Zero)
		}
	})
	if err != nil {
		return f.explain(err)
	}
	if f.opt.Strict && f.wrong.N > 0 {
		return f.wrong.Refused()
	}
	return nil
}

// TellRenumbered says which transactions behind one have other ids in a copy, and so
// where to look for what is known by the old ones.
func (f *File) TellRenumbered(ctx context.Context, after tid.TID) error {
	renumbered, err := f.Renumbered(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, x := range renumbered {
		if x.New <= after {
			continue
		}
		n++
		if !f.quiet {
			fmt.Fprintf(f.env.Stderr, "%s: offset %d: transaction %v becomes %v\n", f.Name(), x.Pos, x.Old, x.New)
		}
	}
	if n > 0 && !f.quiet {
		fmt.Fprintf(f.env.Stderr, "%s: %d transactions get other ids; the names of blob files contain the old ones\n", f.Name(), n)
	}
	return nil
}

// explain adds to an error about ids out of order what to do.
func (f *File) explain(err error) error {
	if errors.Is(err, fsformat.ErrOrder) && !f.opt.Renumber {
		return fmt.Errorf("%w; with --renumber, all transactions are copied in the order of the file, and such an id becomes the next one after that of the transaction before", err)
	}
	return err
}

// Close closes the file, and says at the end of a copy how many damaged records were
// copied.
func (f *File) Close() error {
	f.wrong.Done("a copy")
	return f.Checked.Close()
}

// Wrong are the records of a file whose pointers to the previous ones are wrong.
type Wrong struct {
	Out  io.Writer // for warnings
	File string
	N    int64
}

// maxWarnings is how many of them are named.
const maxWarnings = 100

// Report warns of one of them.
func (w *Wrong) Report(e *fsformat.CorruptError) error {
	w.N++
	switch {
	case w.N <= maxWarnings:
		fmt.Fprintf(w.Out, "warning: %v\n", e)
	case w.N == maxWarnings+1:
		fmt.Fprintf(w.Out, "warning: %s: more records like these are only counted\n", w.File)
	}
	return nil
}

// Done says how many there were in what was made of the file.
func (w *Wrong) Done(made string) {
	if w.N > 0 {
		fmt.Fprintf(w.Out, "warning: %s: %s, which %s does not show\n", w.File, w.found(), made)
	}
}

// Refused returns the error of --strict, and lets Done say no more.
func (w *Wrong) Refused() error {
	found := w.found()
	w.N = 0
	return fmt.Errorf("%s: refused by --strict: %s", w.File, found)
}

func (w *Wrong) found() string {
	have := "1 record has a wrong pointer"
	if w.N != 1 {
		have = fmt.Sprintf("%d records have wrong pointers", w.N)
	}
	return have + " to the previous record of the object: an object id or the pointer is damaged (see neofs check)"
}
