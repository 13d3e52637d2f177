package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat/pickle"
	"github.com/neozodb/neo/fsformat/zdump"
)

// reading are the options of commands that read the history without restoring it.
type reading struct {
	common
	identityOptions
	lineage string
}

func (o *reading) addFlags(cmd *cobra.Command) {
	o.identityOptions.addFlags(cmd)
	cli.Text(cmd.Flags(), &o.lineage, "lineage", "", "", "another lineage than the current one: its number or the beginning of its id")
	o.common.addFlags(cmd)
}

// view opens the repository, and calls do with what a lineage holds and the keys.
func (o *reading) view(ctx context.Context, env *cli.Env, do func(s *session, p *place, keys *backup.Keys) error) error {
	return o.use(ctx, env, attempts, func(s *session) error {
		keys, err := s.unlock(&o.identityOptions)
		if err != nil {
			return err
		}
		ahead, cancel := context.WithCancel(ctx)
		defer cancel()
		keys.Ahead(ahead)
		p, err := s.place(ctx, o.lineage)
		if err != nil {
			return err
		}
		s.warn(p)
		return do(s, p, keys)
	})
}

// database opens the history up to a moment for reading objects.
func (s *session) database(ctx context.Context, p *place, keys *backup.Keys, at tid.TID) (*reader.Database, error) {
	dir, err := s.stateDir()
	if err != nil {
		return nil, err
	}
	return reader.Open(ctx, s.Repository, keys, p.state, reader.Options{At: at, CacheDir: filepath.Join(dir, "index"), Log: s.log.Logger})
}

// copied stands for the data of records that copy an earlier revision which has some: only that
// is asked for here.
func copied(tid.OID, tid.TID) ([]byte, error) { return []byte{}, nil }

// scan yields the transactions of a range. Of a part of the history only that is read; of all of it,
// whole segments.
func (s *session) scan(ctx context.Context, p *place, keys *backup.Keys, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	head := p.state.Head()
	upTo = min(upTo, head)
	whole := s.Transactions(ctx, keys, p.state, after, upTo, backup.FetchOptions{}, copied)
	if after == tid.Zero && upTo == head {
		return whole
	}
	return func(yield func(*txn.Transaction, error) bool) {
		db, err := s.database(ctx, p, keys, head)
		if errors.Is(err, backup.ErrNotExact) {
			whole(yield) // to look at, it need not be exact
			return
		}
		if err != nil {
			yield(nil, err)
			return
		}
		defer db.Close() // only read
		db.Transactions(ctx, after, upTo)(yield)
	}
}

type catOptions struct {
	reading
	at           string
	raw, history bool
}

func newCatCommand(env *cli.Env) *cobra.Command {
	var o catOptions
	cmd := &cobra.Command{
		Use:   "cat [options] OID",
		Short: "Show an object",
		Long: `Show an object as it is in the backup, or as it was at --at T: its class and its state. Nothing
of the database is executed. An OID is up to 16 hexadecimal digits; 0 is the root. Only what is
needed is read from the store.` + exitStatus,
		Example: "  neobackup cat --identity operator.txt 0\n  neobackup cat --at 'yesterday 18:00' 1f\n  neobackup cat --history 1f",
		Args:    cobra.ExactArgs(1),
		RunE:    o.command(env, func(ctx context.Context, args []string) error { return runCat(ctx, env, &o, args[0]) }),
	}
	cli.Text(cmd.Flags(), &o.at, "at", "", "latest", "T: the moment")
	cli.Flag(cmd.Flags(), &o.raw, "raw", "", "the data as they are stored: two pickles")
	cli.Flag(cmd.Flags(), &o.history, "history", "", "list the revisions of the object, the newest first")
	o.addFlags(cmd)
	return cmd
}

func parseOID(s string) (tid.OID, error) {
	digits := strings.TrimPrefix(s, "0x")
	if len(digits) < 16 {
		digits = strings.Repeat("0", 16-len(digits)) + digits
	}
	oid, err := tid.ParseOID(digits)
	if err != nil {
		return 0, cli.Usagef("%q is no object id: up to 16 hexadecimal digits", s)
	}
	return oid, nil
}

func runCat(ctx context.Context, env *cli.Env, o *catOptions, object string) error {
	oid, err := parseOID(object)
	switch {
	case err != nil:
		return err
	case o.raw && (o.history || o.json):
		return cli.Usagef("--raw prints data alone: without --history and --json")
	}
	return o.view(ctx, env, func(s *session, p *place, keys *backup.Keys) (err error) {
		at, err := p.at(o.at, o.now())
		if err != nil {
			return err
		}
		db, err := s.database(ctx, p, keys, at)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		if o.history {
			return catHistory(ctx, env, o, db, oid)
		}
		rev, err := db.LoadBefore(ctx, oid, at+1)
		if err != nil {
			return fmt.Errorf("object %v at %v: %w", oid, at, err)
		}
		text, showErr := pickle.Show(rev.Data)
		switch {
		case o.json:
			return o.line(env.Stdout, map[string]any{"v": 1, "oid": oid, "tid": rev.Serial, "time": rev.Serial.Time(), "size": len(rev.Data), "data": rev.Data, "text": text})
		case o.raw:
			_, err := env.Stdout.Write(rev.Data)
			return err
		case showErr != nil:
			return fmt.Errorf("object %v in transaction %v: %w (--raw shows its data)", oid, rev.Serial, showErr)
		}
		_, err = fmt.Fprintf(env.Stdout, "object %v of transaction %v, %s\n%s\n", oid, rev.Serial, when(rev.Serial), text)
		return err
	})
}

// catHistory lists the revisions of an object.
func catHistory(ctx context.Context, env *cli.Env, o *catOptions, db *reader.Database, oid tid.OID) error {
	infos, err := db.Revisions(ctx, oid, math.MaxInt32)
	if err != nil {
		return fmt.Errorf("object %v: %w", oid, err)
	}
	type revision struct {
		TID  tid.TID `json:"tid"`
		Size int     `json:"size"`
		Gone bool    `json:"gone,omitempty"`
	}
	list := []revision{}
	for _, info := range infos {
		rev, err := db.LoadAt(ctx, oid, info.TID)
		gone := errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject)
		if err != nil && !gone {
			return fmt.Errorf("object %v at %v: %w", oid, info.TID, err)
		}
		list = append(list, revision{info.TID, len(rev.Data), gone})
	}
	if o.json {
		return o.line(env.Stdout, map[string]any{"v": 1, "oid": oid, "revisions": list})
	}
	for _, r := range list {
		what := fmt.Sprintf("%d bytes", r.Size)
		if r.Gone {
			what = "gone"
		}
		if _, err := fmt.Fprintf(env.Stdout, "%v %s %s\n", r.TID, r.TID.Time().Format("2006-01-02 15:04:05.000000"), what); err != nil {
			return err
		}
	}
	return nil
}

type logOptions struct {
	reading
	count   int
	forward bool
	records bool
}

func newLogCommand(env *cli.Env) *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "log [options] [RANGE]",
		Short: "List transactions, the newest first",
		Long: `List transactions, the newest first: when, by whom, what for, how large in a Data.fs. With
--records also what each one stored: data with their class and size, "from" the transaction whose data an
undo brought back, or "gone" for an object that was deleted or whose creation was undone.

What is listed is read with its data: give a number with -n, or a RANGE.` + exitStatus,
		Example: "  neobackup log -n 3\n  neobackup log --records 'yesterday..'",
		Args:    cobra.MaximumNArgs(1),
		RunE:    o.command(env, func(ctx context.Context, args []string) error { return runLog(ctx, env, &o, args) }),
	}
	cmd.Flags().IntVarP(&o.count, "count", "n", 0, "how many at most (default: all)")
	cli.Flag(cmd.Flags(), &o.forward, "forward", "F", "the oldest first")
	cli.Flag(cmd.Flags(), &o.records, "records", "", "list their records too")
	o.addFlags(cmd)
	return cmd
}

func runLog(ctx context.Context, env *cli.Env, o *logOptions, args []string) error {
	if o.count < 0 || o.count == 0 && o.given("count") {
		return cli.Usagef("-n %d: want at least 1 transaction", o.count)
	}
	after, upTo, err := o.parseRange(args)
	if err != nil {
		return err
	}
	return o.view(ctx, env, func(s *session, p *place, keys *backup.Keys) error {
		upTo := min(upTo, p.state.Head())
		l := logger{env: env, o: o}
		if o.forward {
			for t, err := range s.scan(ctx, p, keys, after, upTo) {
				if err != nil {
					return err
				}
				text, err := l.transaction(t)
				if err != nil {
					return err
				}
				if _, err := env.Stdout.Write(text); err != nil {
					return err
				}
				if l.n == o.count && o.count > 0 {
					return nil
				}
			}
			return nil
		}
		return l.backwards(ctx, s, p, keys, after, upTo)
	})
}

// backwards prints the newest transaction first. A segment, or a part of one, can only be read
// forward: they are read one after the other, from the last.
func (l *logger) backwards(ctx context.Context, s *session, p *place, keys *backup.Keys, after, upTo tid.TID) error {
	ends, err := l.ends(ctx, s, p, keys, after, upTo)
	if err != nil {
		return err
	}
	for i := len(ends) - 1; i >= 0; i-- {
		from := after
		if i > 0 {
			from = max(after, ends[i-1])
		}
		var texts [][]byte
		for t, err := range s.scan(ctx, p, keys, from, min(ends[i], upTo)) {
			if err != nil {
				return err
			}
			text, err := l.transaction(t)
			if err != nil {
				return err
			}
			if texts = append(texts, text); l.o.count > 0 && len(texts) > l.o.count {
				texts = slices.Delete(texts, 0, 1)
			}
		}
		slices.Reverse(texts)
		for _, text := range texts {
			if _, err := l.env.Stdout.Write(text); err != nil {
				return err
			}
			if l.o.count > 0 {
				if l.o.count--; l.o.count == 0 {
					return nil
				}
			}
		}
	}
	return nil
}

// fewTransactions is how many are looked for one by one, from the end.
const fewTransactions = 10_000

// ends returns where pieces of the history end that are read one after the other: one piece with
// a few transactions, or segments.
func (l *logger) ends(ctx context.Context, s *session, p *place, keys *backup.Keys, after, upTo tid.TID) ([]tid.TID, error) {
	if n := l.o.count; n > 0 && n <= fewTransactions && upTo == p.state.Head() && upTo > after {
		db, err := s.database(ctx, p, keys, upTo)
		if err == nil {
			defer db.Close() // only read
			first := upTo
			for info, err := range db.Backwards(ctx) {
				if err != nil {
					return nil, err
				}
				if info.TID <= after {
					break
				}
				if first = info.TID; n == 1 {
					break
				}
				n--
			}
			return []tid.TID{first - 1, upTo}, nil
		}
		if !errors.Is(err, backup.ErrNotExact) {
			return nil, err
		}
	}
	var ends []tid.TID
	for part, err := range s.Parts(ctx, p.state, after, upTo) {
		if err != nil {
			return nil, err
		}
		if _, end := part.Range(); len(ends) == 0 || ends[len(ends)-1] < end {
			ends = append(ends, end)
		}
	}
	return ends, nil
}

// logger makes the text of transactions.
type logger struct {
	env     *cli.Env
	o       *logOptions
	scanner pickle.Scanner
	n       int
}

// logRecord is a record in a document.
type logRecord struct {
	OID   tid.OID  `json:"oid"`
	Class string   `json:"class,omitempty"`
	Size  int      `json:"size"`
	From  *tid.TID `json:"from,omitempty"`
	Gone  bool     `json:"gone,omitempty"`
}

func (l *logger) transaction(t *txn.Transaction) ([]byte, error) {
	l.n++
	// As long as in a Data.fs, as neofs counts it.
	length := int64(23 + len(t.User) + len(t.Description) + len(t.Extension))
	var records []logRecord
	for rec, err := range t.Records {
		if err != nil {
			return nil, err
		}
		r := logRecord{OID: rec.OID, Size: len(rec.Data)}
		if rec.DataTID != 0 {
			r.From = &rec.DataTID
		}
		switch {
		case rec.Data == nil:
			r.Gone = true
			length += 42 + 8
		case rec.DataTID != 0:
			length += 42 + 8
		default:
			length += 42 + int64(len(rec.Data))
			if l.o.records {
				r.Class = className(&l.scanner, rec.Data)
			}
		}
		if l.o.records {
			records = append(records, r)
		}
	}
	var b strings.Builder
	if l.o.json {
		doc := map[string]any{"v": 1, "tid": t.TID, "time": t.TID.Time(), "status": string(t.Status), "user": string(t.User), "description": string(t.Description), "size": length}
		if l.o.records {
			doc["records"] = records
		}
		err := l.o.line(&b, doc)
		return []byte(b.String()), err
	}
	status := ""
	if t.Status == 'p' {
		status = " packed"
	}
	fmt.Fprintf(&b, "%v %s user %q description %q size %d%s\n", t.TID, t.TID.Time().Format("2006-01-02 15:04:05.000000"), t.User, t.Description, length, status)
	for _, r := range records {
		switch {
		case r.Gone:
			fmt.Fprintf(&b, "  %v gone\n", r.OID)
		case r.From != nil:
			fmt.Fprintf(&b, "  %v from %v\n", r.OID, *r.From)
		default:
			fmt.Fprintf(&b, "  %v %s %d bytes\n", r.OID, r.Class, r.Size)
		}
	}
	return []byte(b.String()), nil
}

// className returns the class of a record, or why it is not known, in brackets.
func className(s *pickle.Scanner, data []byte) string {
	plain, _, err := pickle.Unwrap(data)
	if err != nil {
		return "(damaged wrapping)"
	}
	module, name, err := s.Class(plain)
	switch {
	case err != nil:
		return "(no class)"
	case len(name) == 0:
		return "(persistent class)"
	}
	return fmt.Sprintf("%s.%s", module, name)
}

func newDiffCommand(env *cli.Env) *cobra.Command {
	var o reading
	cmd := &cobra.Command{
		Use:   "diff [options] T1..T2",
		Short: "List the objects that differ between two moments",
		Long: `List the objects that are not the same at T1 and T2: new, changed or gone, with the last
transaction that made it so, its user and its description.` + exitStatus,
		Example: "  neobackup diff 'yesterday 18:00..latest'",
		Args:    cobra.ExactArgs(1),
		RunE:    o.command(env, func(ctx context.Context, args []string) error { return runDiff(ctx, env, &o, args[0]) }),
	}
	o.addFlags(cmd)
	return cmd
}

func runDiff(ctx context.Context, env *cli.Env, o *reading, arg string) error {
	from, to, ok := strings.Cut(arg, "..")
	if !ok {
		return cli.Usagef("%q: want T1..T2", arg)
	}
	if to == "" {
		to = "latest"
	}
	return o.view(ctx, env, func(s *session, p *place, keys *backup.Keys) (err error) {
		t1, err := p.at(from, o.now())
		if err != nil {
			return err
		}
		t2, err := p.at(to, o.now())
		if err != nil {
			return err
		}
		if t1 > t2 {
			return cli.Usagef("%s is after %s", from, to)
		}
		changes := map[tid.OID]tid.TID{} // the last one of each object
		users := map[tid.TID]string{}
		db, err := s.database(ctx, p, keys, t2)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		for t, err := range db.Transactions(ctx, t1, t2) {
			if err != nil {
				return err
			}
			for rec, err := range t.Records {
				if err != nil {
					return err
				}
				changes[rec.OID] = t.TID
			}
			users[t.TID] = fmt.Sprintf("user %q description %q", t.User, t.Description)
		}
		var scanner pickle.Scanner
		for _, oid := range slices.Sorted(maps.Keys(changes)) {
			last := changes[oid]
			before, err := db.LoadBefore(ctx, oid, t1+1)
			existed := err == nil
			if err != nil && !errors.Is(err, txn.ErrNotFound) && !errors.Is(err, txn.ErrNoSuchObject) {
				return fmt.Errorf("object %v: %w", oid, err)
			}
			after, err := db.LoadBefore(ctx, oid, t2+1)
			exists := err == nil
			if err != nil && !errors.Is(err, txn.ErrNotFound) && !errors.Is(err, txn.ErrNoSuchObject) {
				return fmt.Errorf("object %v: %w", oid, err)
			}
			what, data := "changed", after.Data
			switch {
			case !existed && !exists, existed && exists && string(before.Data) == string(after.Data):
				continue
			case !existed:
				what = "new"
			case !exists:
				what, data = "gone", before.Data
			}
			class := className(&scanner, data)
			if o.json {
				err = o.line(env.Stdout, map[string]any{"v": 1, "oid": oid, "change": what, "class": class, "tid": last, "time": last.Time(), "size_before": len(before.Data), "size_after": len(after.Data)})
			} else {
				_, err = fmt.Fprintf(env.Stdout, "%v %s %s %d -> %d bytes, transaction %v %s %s\n", oid, what, class, len(before.Data), len(after.Data), last, when(last), users[last])
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

type dumpOptions struct {
	reading
	hashOnly bool
}

func newDumpCommand(env *cli.Env) *cobra.Command {
	var o dumpOptions
	cmd := &cobra.Command{
		Use:   "dump [options] [RANGE]",
		Short: "Write transactions with all their data as text",
		Long: `Write transactions with all their data to the standard output, in the format of zodbtools
("zodb dump"). "neofs restore" makes a Data.fs of it.` + exitStatus,
		Example: "  neobackup dump -i operator.txt | neofs restore restored.fs\n  neobackup dump 2026-01-01..2026-01-31 --hashonly",
		Args:    cobra.MaximumNArgs(1),
		RunE:    o.command(env, func(ctx context.Context, args []string) error { return runDump(ctx, env, &o, args) }),
	}
	cli.Flag(cmd.Flags(), &o.hashOnly, "hashonly", "", "only the digest of the data: to compare, not to restore")
	o.addFlags(cmd)
	return cmd
}

func runDump(ctx context.Context, env *cli.Env, o *dumpOptions, args []string) error {
	if o.json {
		return cli.Usagef("a dump is text, without --json")
	}
	after, upTo, err := o.parseRange(args)
	if err != nil {
		return err
	}
	return o.view(ctx, env, func(s *session, p *place, keys *backup.Keys) error {
		w := zdump.NewWriter(env.Stdout, o.hashOnly)
		for t, err := range s.scan(ctx, p, keys, after, upTo) {
			if err != nil {
				return err
			}
			if err := w.Write(t); err != nil {
				return err
			}
		}
		return w.Flush()
	})
}
