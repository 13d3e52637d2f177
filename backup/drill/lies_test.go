package drill

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

// write writes a history to a Data.fs.
func write(t testing.TB, list backuptest.History, path string) {
	t.Helper()
	if _, err := exporter.ToFile(t.Context(), list, path, exporter.FileOptions{}); err != nil {
		t.Fatal(err)
	}
}

// records returns those of a transaction.
func records(t testing.TB, tr *txn.Transaction) []txn.Record {
	t.Helper()
	var list []txn.Record
	for rec, err := range tr.Records {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, *rec)
	}
	return list
}

// changed returns the history with a change in transaction i.
func changed(t testing.TB, list backuptest.History, i int, do func(tr *txn.Transaction, recs []txn.Record) []txn.Record) backuptest.History {
	t.Helper()
	list = slices.Clone(list)
	tr := *list[i]
	tr.Records = txn.Slice(do(&tr, records(t, list[i])))
	list[i] = &tr
	return list
}

// lies are histories that are not the one that was backed up, in a way that is hard to see.
func lies(t testing.TB, list backuptest.History) map[string]backuptest.History {
	byteIn := func(i int) backuptest.History {
		own := func(r txn.Record) bool { return len(r.Data) > 50 && r.DataTID == 0 }
		for !slices.ContainsFunc(records(t, list[i]), own) {
			i--
		}
		return changed(t, list, i, func(_ *txn.Transaction, recs []txn.Record) []txn.Record {
			r := &recs[slices.IndexFunc(recs, own)]
			r.Data = slices.Clone(r.Data)
			r.Data[len(r.Data)-3] ^= 1
			return recs
		})
	}
	meta := changed(t, list, 100, func(tr *txn.Transaction, recs []txn.Record) []txn.Record {
		tr.Description = append(slices.Clone(tr.Description), '.')
		return recs
	})
	return map[string]backuptest.History{
		"a byte of an old revision": byteIn(40), // which is the last one of its object
		"a byte of the last one":    byteIn(len(list) - 1),
		"metadata":                  meta,
		"no last transaction":       list[:len(list)-1],
		"a transaction is missing":  slices.Delete(slices.Clone(list), 200, 201),
		"a record is missing": changed(t, list, len(list)-1, func(_ *txn.Transaction, recs []txn.Record) []txn.Record {
			return recs[1:]
		}),
		"nothing": nil,
	}
}

// A restore that does not write what the repository has, and does not know it, is found by the
// comparison.
func TestRestoreThatLies(t *testing.T) {
	w := newWorld(t)
	w.o.Source = nil
	for name, list := range lies(t, w.list) {
		o := w.o
		o.restore = func(ctx context.Context, d *run) (*target, error) {
			path := d.path("Data.fs")
			write(t, list, path)
			r, err := fsformat.Open(path, fsformat.Options{})
			if err != nil {
				return nil, err
			}
			if _, err := r.UseIndex(ctx, "", nil); err != nil {
				return nil, err
			}
			return &target{name: path, db: r, close: r.Close}, nil
		}
		res, err := w.run(t.Context(), o)
		if !errors.Is(err, restore.ErrDifferent) || res.Key == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A comparison that lies about what it has seen is found by the objects, the counts or the source.
func TestComparisonThatLies(t *testing.T) {
	w := newWorld(t)
	w.o.Sample = 0
	all := restore.Result{Compared: true}
	for part, err := range w.repo.Parts(t.Context(), w.repo.Now(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		l := part.Segment
		all.Segments, all.Txns, all.Records, all.Bytes = all.Segments+1, all.Txns+l.Txns, all.Records+l.Records, all.Bytes+l.Text
	}
	for name, list := range lies(t, w.list) {
		o := w.o
		o.restore = func(ctx context.Context, d *run) (*target, error) {
			path := d.path("Data.fs")
			write(t, list, path)
			r, err := fsformat.Open(path, fsformat.Options{})
			if err == nil {
				_, err = r.UseIndex(ctx, "", nil)
			}
			return &target{name: path, db: r, close: r.Close}, err
		}
		o.compare = func(context.Context, *run, *target) (*restore.Result, error) { res := all; return &res, nil }
		if res, err := w.run(t.Context(), o); !errors.Is(err, restore.ErrDifferent) || res.Key == "" {
			t.Errorf("%s: %v", name, err)
		}
		// What concerns the present is found without a source too.
		switch name {
		case "a byte of an old revision", "a record is missing", "no last transaction", "nothing":
			if o.Source = nil; name != "a byte of an old revision" {
				o.Sample = 3 // that an object is missing is seen in the list
			}
			if res, err := w.run(t.Context(), o); !errors.Is(err, restore.ErrDifferent) || res.Key == "" {
				t.Errorf("%s, without the source: %v", name, err)
			}
		}
	}
	for name, change := range map[string]func(*restore.Result){
		"not compared": func(r *restore.Result) { r.Compared = false },
		"segments":     func(r *restore.Result) { r.Segments-- },
		"transactions": func(r *restore.Result) { r.Txns-- },
		"records":      func(r *restore.Result) { r.Records++ },
		"text":         func(r *restore.Result) { r.Bytes = 0 },
	} {
		o := w.o
		o.compare = func(context.Context, *run, *target) (*restore.Result, error) {
			res := all
			change(&res)
			return &res, nil
		}
		if res, err := w.run(t.Context(), o); !errors.Is(err, restore.ErrDifferent) || res.Key == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := w.o
	o.compare = func(context.Context, *run, *target) (*restore.Result, error) { return &all, nil }
	if _, err := w.run(t.Context(), o); err != nil {
		t.Errorf("the comparison is right: %v", err)
	}
}

// A source that differs makes a drill of each mode fail, one that was packed or goes on does not,
// one that cannot be reached is told of.
func TestSource(t *testing.T) {
	w := newWorld(t)
	open := func(path string) func(context.Context) (feed.Feed, error) {
		return func(ctx context.Context) (feed.Feed, error) { return feed.OpenFile(ctx, path, feed.FileOptions{}) }
	}
	n := 0
	try := func(name string, list backuptest.History) (*Result, error) {
		path := filepath.Join(t.TempDir(), "Data.fs")
		write(t, list, path)
		o := w.o
		o.At, o.Source, o.Mode = Head, open(path), []Mode{File, Read, File, Cluster}[n%4]
		n++
		return w.run(t.Context(), o)
	}
	for name, list := range lies(t, w.list) {
		if res, err := try(name, list); !errors.Is(err, restore.ErrDifferent) || res.Key == "" || res.Proof.Compared.Source != noSource {
			t.Errorf("%s: %v", name, err)
		}
	}
	last := w.head()
	more := append(slices.Clone(w.list), backuptest.Txn(last+1, txn.Record{OID: 1, Data: records(t, w.list[5])[0].Data}))
	res, err := try("it goes on", more)
	if err != nil || res.Proof.Compared.Source != digest {
		t.Errorf("a source that goes on: %v, %+v", err, res)
	}
	// The file grows and its index is written while it is compared.
	path := filepath.Join(t.TempDir(), "Data.fs")
	write(t, w.list, path)
	o := w.o
	o.At, o.Mode, o.Source = Head, Read, open(path)
	grows := 0
	o.Progress = func(p Phase, _, _ int64) {
		if p == Source {
			grows++
			write(t, more, path)
		}
	}
	if res, err := w.run(t.Context(), o); err != nil || res.Proof.Compared.Source != digest || grows == 0 {
		t.Errorf("a source that is written: %v, %+v", err, res)
	}
	for name, source := range map[string]func(context.Context) (feed.Feed, error){
		"none":           nil,
		"is not there":   open(filepath.Join(t.TempDir(), "Data.fs")),
		"cannot be read": open(t.TempDir()),
	} {
		o := w.o
		o.At, o.Source = Head, source
		res, err := w.run(t.Context(), o)
		if err != nil || res.Proof.Compared.Source != noSource || !strings.HasPrefix(res.Source, "not compared") || (len(res.Warnings) > 0) != (source != nil) {
			t.Errorf("%s: %v, %+v", name, err, res)
		}
	}
}

// What a pack of the source removed is no difference.
func TestPackedSource(t *testing.T) {
	w := &world{t: t, mem: memstore.New(memstore.Options{})}
	w.repo = backuptest.New(t, w.mem, false)
	w.repo.Tail(backuptest.ReadFile(t, "../../testdata/fs/05-before-pack.fs")...)
	for _, mode := range []Mode{File, Read} {
		res, err := w.run(t.Context(), Options{
			Store: w.mem, Trusted: w.repo.Trusted, Signer: w.repo.Driver, Scratch: t.TempDir(), Mode: mode, At: Head,
			Source: func(ctx context.Context) (feed.Feed, error) {
				return feed.OpenFile(ctx, "../../testdata/fs/05-packed.fs", feed.FileOptions{})
			},
		})
		if err != nil || res.Proof.Compared.Source != digest || !strings.Contains(res.Source, "explained by packs") {
			t.Errorf("%s: %v, %+v", mode, err, res)
		}
	}
}

// A key or an identity that does not fit is found before anything is restored. A proof that
// readers would not believe is not written.
func TestKeys(t *testing.T) {
	w := newWorld(t)
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, ids := range map[string][]age.Identity{"another": {other}, "none": nil} {
		o := w.o
		o.Identities = ids
		res, err := w.run(t.Context(), o)
		if !errors.Is(err, backup.ErrKeys) || !strings.Contains(err.Error(), "epoch 0001") || res.Key == "" || res.Proof.Compared.Segments != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	stranger := backuptest.New(t, memstore.New(memstore.Options{}), false)
	for name, c := range map[string]struct {
		change func(o *Options)
		want   error
	}{
		"key of another drill": {func(o *Options) { o.Signer = stranger.Driver }, ErrSetup},
		"key of the writer":    {func(o *Options) { o.Signer = w.repo.Signer }, ErrSetup},
		"no key":               {func(o *Options) { o.Signer = nil }, ErrSetup},
		"the writer untrusted": {func(o *Options) { o.Trusted = stranger.Trusted }, snapshot.ErrUntrusted},
		"no scratch":           {func(o *Options) { o.Scratch = "" }, ErrSetup},
		"mode":                 {func(o *Options) { o.Mode = "tape" }, ErrSetup},
		"lineage":              {func(o *Options) { o.Lineage = snapshot.NewID() }, ErrSetup},
		"moment":               {func(o *Options) { o.At = w.head() + 1 }, backup.ErrNotExact},
	} {
		o := w.o
		c.change(&o)
		if o.Scratch == "" {
			if _, err := Run(t.Context(), o); !errors.Is(err, c.want) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if res, err := w.run(t.Context(), o); !errors.Is(err, c.want) || res != nil && (res.Proof != nil || res.Key != "") {
			t.Errorf("%s: %v, %+v", name, err, res)
		}
	}
	o := w.o
	o.Scratch = filepath.Join(t.TempDir(), "not mounted")
	if res, err := Run(t.Context(), o); !errors.Is(err, ErrSetup) || !errors.Is(err, os.ErrNotExist) || res.Key != "" {
		t.Errorf("scratch that is not there: %v", err)
	}
	empty := backuptest.New(t, memstore.New(memstore.Options{}), false)
	o = Options{Store: empty.Store, Trusted: empty.Trusted, Signer: empty.Driver, Scratch: t.TempDir()}
	if res, err := Run(t.Context(), o); !errors.Is(err, backup.ErrNotExact) || res.Key != "" || res.Proof != nil {
		t.Errorf("empty: %v, %+v", err, res)
	}
}

// The head is drilled, then a moment at random, in turn; a kind that failed is repeated.
func TestMoments(t *testing.T) {
	w := newWorld(t)
	w.o.Mode, w.o.Source = Read, nil
	drill := func(head bool) tid.TID {
		t.Helper()
		res, err := w.run(t.Context(), w.o)
		if err != nil {
			t.Fatal(err)
		}
		if res.Head != head || head != (res.Proof.TID == w.repo.Now().Head()) {
			t.Fatalf("head %v, TID %v of %v", res.Head, res.Proof.TID, w.repo.Now().Head())
		}
		return res.Proof.TID
	}
	all := map[tid.TID]bool{}
	for _, tr := range w.list {
		all[tr.TID] = true
	}
	drill(true)
	last := w.head()
	for i := range 3 {
		if at := drill(false); !all[at] {
			t.Errorf("%v is no transaction", at)
		}
		last++
		w.repo.Tail(backuptest.Txn(last, txn.Record{OID: 1, Data: []byte("x")}))
		if i == 1 {
			w.repo.Manifest(false, false)
		}
		drill(true)
		// What the proof names is in a manifest meanwhile.
		last++
		w.repo.Tail(backuptest.Txn(last, txn.Record{OID: 1, Data: []byte("y")}))
		if i == 2 {
			w.repo.Manifest(false, false)
			last++
			w.repo.Tail(backuptest.Txn(last, txn.Record{OID: 1, Data: []byte("z")}))
		}
	}
	ids := w.o.Identities
	w.o.Identities = nil
	if _, err := w.run(t.Context(), w.o); err == nil {
		t.Error("without identity")
	}
	w.o.Identities = ids
	w.o.Rand = nil
	drill(false)
	drill(true)
}

// A moment in a hole is not chosen; before the root existed neither.
func TestHoles(t *testing.T) {
	w := &world{t: t, mem: memstore.New(memstore.Options{})}
	w.repo = backuptest.New(t, w.mem, false)
	root := []byte("\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\x80\x03}q\x01.")
	var list []*txn.Transaction
	for i := range 20 {
		oid := tid.OID(1)
		if i >= 8 {
			oid = 0
		}
		list = append(list, backuptest.Txn(tid.TID(100+10*i), txn.Record{OID: oid, Data: root}))
	}
	w.repo.Tail(list[:12]...)
	w.repo.TailExact(265, list[12:18]...) // 211 to 264 are in a hole
	w.repo.Tail(list[18:]...)
	seen := map[tid.TID]bool{}
	w.o = Options{Store: w.mem, Trusted: w.repo.Trusted, Signer: w.repo.Driver, Scratch: t.TempDir(), Mode: Read}
	for range 40 {
		res, err := w.run(t.Context(), w.o)
		if err != nil {
			t.Fatal(err)
		}
		at := res.Proof.TID
		if at < 180 || w.repo.Now().Exact(at) != nil {
			t.Errorf("%v", at)
		}
		seen[at] = true
	}
	if len(seen) < 4 {
		t.Errorf("moments: %v", seen)
	}
	if _, err := w.run(t.Context(), Options{Store: w.mem, Trusted: w.repo.Trusted, Signer: w.repo.Driver, Scratch: w.o.Scratch, At: 220}); !errors.Is(err, backup.ErrNotExact) {
		t.Errorf("in a hole: %v", err)
	}
	if res, err := w.run(t.Context(), Options{Store: w.mem, Trusted: w.repo.Trusted, Signer: w.repo.Driver, Scratch: w.o.Scratch, At: 130}); err == nil || !absent(err) || res.Key == "" {
		t.Errorf("without root: %v", err)
	}
}

// References that lead nowhere are counted, and those of the root are a failure.
func TestDangling(t *testing.T) {
	record := func(refs ...byte) []byte {
		b := []byte("\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03}(")
		for i, oid := range refs {
			b = fmt.Appendf(b, "K%c(C\x08\x00\x00\x00\x00\x00\x00\x00%ccpersistent.mapping\nPersistentMapping\ntQ", i, oid)
		}
		return append(b, "u."...)
	}
	for root, want := range map[byte]error{1: nil, 9: ErrDamaged} {
		for _, mode := range []Mode{File, Read} {
			w := &world{t: t, mem: memstore.New(memstore.Options{})}
			w.repo = backuptest.New(t, w.mem, false)
			w.repo.Tail(backuptest.Txn(100, txn.Record{OID: 0, Data: record(root)}, txn.Record{OID: 1, Data: record(2, 7, 8)}, txn.Record{OID: 2, Data: record()}, txn.Record{OID: 8, Data: record()}))
			w.repo.Tail(backuptest.Txn(101, txn.Record{OID: 8}))
			res, err := w.run(t.Context(), Options{Store: w.mem, Trusted: w.repo.Trusted, Signer: w.repo.Driver, Scratch: t.TempDir(), Mode: mode})
			if !errors.Is(err, want) || err == nil && (res.References != 4 || res.Dangling != 2 || res.Existing != 3 || res.Objects != 3) {
				t.Errorf("root refers to %d: %v, %+v", root, err, res)
			}
		}
	}
}

// breaks is a source that is gone after some transactions.
type breaks struct {
	feed.Feed
	after int
}

func (f breaks) Read(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		n := 0
		for t, err := range f.Feed.Read(ctx, after, upTo) {
			if n++; n > f.after {
				yield(nil, errors.New("the source is gone"))
				return
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

// A source that has shown a difference before it was gone differs; one that has shown none is not compared.
func TestSourceBreaks(t *testing.T) {
	w := newWorld(t)
	for name, list := range map[string]backuptest.History{"metadata": lies(t, w.list)["metadata"], "equal": w.list} {
		path := filepath.Join(t.TempDir(), "Data.fs")
		write(t, list, path)
		o := w.o
		o.At, o.Mode = Head, Read
		o.Source = func(ctx context.Context) (feed.Feed, error) {
			f, err := feed.OpenFile(ctx, path, feed.FileOptions{})
			return breaks{f, 250}, err
		}
		res, err := w.run(t.Context(), o)
		switch {
		case name == "metadata" && (!errors.Is(err, restore.ErrDifferent) || res.Found == 0 || res.Proof.Result != snapshot.ResultFailed):
			t.Errorf("%s: %v, %+v", name, err, res)
		case name == "equal" && (err != nil || res.Found != 0 || res.Proof.Compared.Source != noSource || !strings.Contains(res.Source, "the source is gone")):
			t.Errorf("%s: %v, %+v", name, err, res)
		}
	}
}
