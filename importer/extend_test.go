package importer

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/testlog"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
)

// fileImport is an import of a Data.fs into an SQLite database.
type fileImport struct {
	t    *testing.T
	cfg  Config
	path string // of the Data.fs
	next int
	log  *testlog.Buffer
}

func newFileImport(t *testing.T) *fileImport {
	f := &fileImport{t: t, path: filepath.Join(t.TempDir(), "Data.fs"), log: &testlog.Buffer{}}
	database := filepath.Join(t.TempDir(), "neo.sqlite")
	f.cfg = Config{
		Import: config.Import{
			Destination: config.Destination{Section: "neo", Adapter: "SQLite", Database: database, Compress: -1},
			Sources:     []config.Source{{Section: "root", DatabaseName: "root", Storage: config.Storage{File: &config.File{Path: f.path}}}},
		},
		Open: func(ctx context.Context, d config.Destination) (Native, error) {
			db, err := sqlitedb.Open(ctx, d.Database, sqlitedb.Options{HalfImported: true})
			if err != nil {
				return nil, err
			}
			return db, nil
		},
		Log: slog.New(slog.NewTextHandler(f.log, nil)),
	}
	return f
}

// append adds transactions to the file, each with an object of its own.
func (f *fileImport) append(n int) {
	f.t.Helper()
	if f.next == 0 {
		ok(f.t, os.WriteFile(f.path, []byte("FS30"), 0o666))
	}
	w, err := fsformat.OpenAppend(f.t.Context(), f.path, fsformat.WriterOptions{})
	ok(f.t, err)
	for range n {
		ok(f.t, w.Append(&txn.Transaction{TID: tidAt(f.next), Status: ' ', Records: txn.Slice([]txn.Record{{OID: 0, Data: data("root")}, {OID: tid.OID(f.next), Data: data("x")}}[:min(2, f.next+1)])}))
		f.next++
	}
	ok(f.t, w.Close())
}

// run lets a node import to the end.
func (f *fileImport) run() {
	f.t.Helper()
	b, err := Open(f.t.Context(), f.cfg)
	ok(f.t, err)
	created(f.t, b.native)
	finishes(f.t, b, f.log)
	ok(f.t, b.Close())
}

// check compares the database with the file, and returns how much it has.
func (f *fileImport) check() {
	f.t.Helper()
	native, err := f.cfg.Open(f.t.Context(), f.cfg.Import.Destination)
	ok(f.t, err)
	defer native.Close()
	r, err := fsformat.Open(f.path, fsformat.Options{})
	ok(f.t, err)
	defer r.Close()
	wanted(f.t, r, tid.Max).same(f.t, native)
}

// with does something with the database while no node uses it.
func (f *fileImport) with(do func(n Native) error) {
	f.t.Helper()
	native, err := f.cfg.Open(f.t.Context(), f.cfg.Import.Destination)
	ok(f.t, err)
	ok(f.t, do(native))
	ok(f.t, native.Commit())
	ok(f.t, native.Close())
}

// An import of a source that was written to since is extended, as often as that happens.
func TestExtend(t *testing.T) {
	f := newFileImport(t)
	_, err := Extend(t.Context(), f.cfg)
	refused(t, "before it began", err, "no import into the database has begun")
	f.append(5)
	f.run()
	x, err := Extend(t.Context(), f.cfg)
	if ok(t, err); x != (Extension{tidAt(4), tidAt(4)}) {
		t.Errorf("nothing was added: %+v", x)
	}
	for _, n := range []int{1, 7} {
		was := tidAt(f.next - 1)
		f.append(n)
		f.log.Reset()
		f.run() // not imported, and told
		if want := "the source has grown since its import ended"; !containsAll(f.log.String(), want, "--extend-import", tidAt(f.next-1).String()) {
			t.Errorf("no %q in\n%s", want, f.log)
		}
		x, err := Extend(t.Context(), f.cfg)
		if ok(t, err); x != (Extension{was, tidAt(f.next - 1)}) {
			t.Errorf("%d were added: %+v", n, x)
		}
		if _, err := sqlitedb.Open(t.Context(), f.cfg.Import.Destination.Database, sqlitedb.Options{}); err == nil {
			t.Error("the database is served although it has less than the source")
		}
		f.run()
		f.check()
	}

	// One that has not come to its end goes on from where it is.
	f.append(3)
	_, err = Extend(t.Context(), f.cfg)
	ok(t, err)
	f.append(2)
	x, err = Extend(t.Context(), f.cfg)
	if ok(t, err); x != (Extension{tidAt(f.next - 3), tidAt(f.next - 1)}) {
		t.Errorf("twice: %+v", x)
	}
	b, err := Open(t.Context(), f.cfg)
	ok(t, err)
	if p := b.Progress(); p.State != importing.Waiting || p.Last != tidAt(f.next-6) || p.End != tidAt(f.next-1) {
		t.Errorf("it goes on with %+v", p)
	}
	ok(t, b.Close())
	f.run()
	f.check()
}

// Where the cluster has something of its own, or the source is another one, an import is not
// extended, and nothing is changed.
func TestNotExtended(t *testing.T) {
	fresh := func(t *testing.T) *fileImport {
		f := newFileImport(t)
		f.append(3)
		f.run()
		f.append(2)
		return f
	}
	for _, tt := range []struct {
		name    string
		prepare func(f *fileImport)
		want    string
	}{
		{"a commit", func(f *fileImport) {
			f.with(func(n Native) error {
				return copyOne(n, &txn.Transaction{TID: tidAt(9), Status: ' ', Records: txn.Slice([]txn.Record{{OID: 1, Data: data("client")}})})
			})
		}, "clients have written to the database, transaction " + tidAt(9).String()},
		{"a pack", func(f *fileImport) {
			f.with(func(n Native) error {
				if err := n.Vote(tidAt(9), nil, &backend.Meta{}, &proto.PackRequest{Time: tidAt(2)}); err != nil {
					return err
				}
				if err := n.Lock(tidAt(9), tidAt(9), true); err != nil {
					return err
				}
				return n.Unlock(tidAt(9), tidAt(9), true, false, true)
			})
		}, "clients have written to the database"},
		{"a vote", func(f *fileImport) {
			f.with(func(n Native) error {
				return n.Vote(tidAt(9), nil, &backend.Meta{}, &proto.PackRequest{Time: tidAt(2)})
			})
		}, "not finished"},
		{"another storage", func(f *fileImport) {
			f.with(func(n Native) error {
				return n.ChangePartitionTable(2, 1, []proto.CellChange{{Partition: 0, ID: 2, State: proto.UpToDate}}, false, 0)
			})
		}, "readable cell of another storage, S2"},
		{"two sources", func(f *fileImport) {
			f.cfg.Import.Sources = append(f.cfg.Import.Sources, config.Source{Section: "other", OID: 1})
		}, "2 sources"},
		{"another section", func(f *fileImport) { f.cfg.Import.Sources[0].Section = "main" }, "[main] was no source"},
		{"another file", func(f *fileImport) {
			f.path = filepath.Join(f.t.TempDir(), "other.fs")
			f.next = 0
			f.append(1)
			f.cfg.Import.Sources[0].Storage.File = &config.File{Path: f.path}
		}, tidAt(2).String() + ", the last one of the import that has begun, is not in it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := fresh(t)
			tt.prepare(f)
			var before, after [2]proto.Opt[string]
			read := func(to *[2]proto.Opt[string]) {
				f.with(func(n Native) (err error) {
					if to[0], err = n.ImportState(); err == nil {
						to[1], err = n.ImportProgress()
					}
					return err
				})
			}
			read(&before)
			_, err := Extend(t.Context(), f.cfg)
			refused(t, tt.name, err, tt.want)
			if read(&after); before != after {
				t.Errorf("%v became %v", before, after)
			}
		})
	}
}

func containsAll(s string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}
