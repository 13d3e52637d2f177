package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

// A source keeps all promises of a readable database, whatever its kind, and one that is
// empty is refused.
func TestDatabase(t *testing.T) {
	for _, k := range kinds {
		if k.name == "BackupS3" {
			continue // as BackupFile, and each read is a request
		}
		t.Run(k.name, func(t *testing.T) {
			txntest.Run(t, func(t *testing.T, history txn.History) txn.Database {
				o := k.make(t, history)
				last, err := history.LastTID(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if last == tid.Zero && o.storage.File != nil {
					if _, err := source.Open(t.Context(), "main", o.storage, source.Options{}); !errors.Is(err, source.ErrEmpty) {
						t.Fatalf("an empty file: %v", err)
					}
					t.Skip("nothing more is to be asked of an empty file")
				}
				s := open(t, o, source.Options{})
				if last == tid.Zero {
					if _, err := s.Extent(t.Context()); !errors.Is(err, source.ErrEmpty) {
						t.Errorf("extent of an empty database: %v", err)
					}
				}
				return s
			})
		})
	}
}

// The extent is above every object that has a record, deleted ones too where they are
// told.
func TestExtent(t *testing.T) {
	last := tid.TID(0x03d2_1d9c_0000_0005)
	history := new(txntest.Memory)
	for i, records := range [][]txn.Record{
		{{OID: 0, Data: []byte("root")}, {OID: 70, Data: []byte("x")}},
		{{OID: 1000, Data: []byte("y")}, {OID: 1001, Data: []byte("deleted later")}},
		{{OID: 1001}},
		{{OID: 1 << 40, Data: []byte("a great id")}},
		{{OID: 0, Data: []byte("root again")}},
		{{OID: 1<<40 + 1, Data: []byte("soon deleted")}},
	} {
		at := last - 5 + tid.TID(i)
		for j := range records {
			records[j].TID = at
		}
		if err := history.Append(&txn.Transaction{TID: at, Status: txn.Committed, Records: txn.Slice(records)}); err != nil {
			t.Fatal(err)
		}
	}
	withDeleted := new(txntest.Memory)
	each(t, history, withDeleted.Append)
	if err := withDeleted.Append(&txn.Transaction{TID: last + 1, Status: txn.Committed, Records: txn.Slice([]txn.Record{{OID: 1<<40 + 1, TID: last + 1}})}); err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		for name, h := range map[string]*txntest.Memory{"Exists": history, "Deleted": withDeleted} {
			t.Run(k.name+name, func(t *testing.T) {
				want, err := h.LastTID(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s := open(t, k.make(t, h), source.Options{})
				e, err := s.Extent(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				next := tid.OID(1<<40 + 2)
				if k.name == "ReadOnlyZEO" && h == withDeleted {
					next-- // our server does not tell of what is deleted: see DESIGN.md
				}
				if e.Last != want || e.Next < next || e.Next > next+1<<20 {
					t.Errorf("extent %v up to %v, want at least %v up to %v", e.Next, e.Last, next, want)
				}
			})
		}
	}
	t.Run("ReadOnlyPython", func(t *testing.T) {
		log, lines := newLog()
		s := open(t, pythonServed(t, write(t, withDeleted), true), source.Options{Log: log})
		e, err := s.Extent(t.Context())
		if err != nil || e.Next != 1<<40+2 || e.Last != last+1 {
			t.Errorf("extent %v, %v", e, err)
		}
		if lines.count("its greatest object is looked for") != 1 {
			t.Errorf("the log does not say what is done: %q", lines.lines)
		}
	})
}

// dump is a transaction as text.
func dump(tr *txn.Transaction, with func()) (string, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%v %q %q %q %q", tr.TID, tr.Status, tr.User, tr.Description, tr.Extension)
	if tr.Records != nil {
		for r, err := range tr.Records {
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, " %v %v %x %v", r.OID, r.TID, r.Data, r.DataTID)
			if with != nil {
				with()
				with = nil
			}
		}
	}
	return b.String(), nil
}

// An iteration goes on where the server went away, between transactions and between
// records, and so does each of the others.
func TestServerReturns(t *testing.T) {
	history := txntest.Random(3, 200, 60)
	var want []string
	each(t, history, func(tr *txn.Transaction) error {
		s, err := dump(tr, nil)
		want = append(want, s)
		return err
	})
	for _, k := range kinds {
		if !onServer(k.name) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			o := k.make(t, history)
			log, lines := newLog()
			s := open(t, o, source.Options{Log: log, Patience: time.Minute})
			var returns sync.WaitGroup
			defer returns.Wait()
			outage := func() {
				returns.Wait()
				o.stop()
				returns.Go(func() {
					time.Sleep(200 * time.Millisecond)
					o.start()
				})
			}
			n := 0
			for tr, err := range s.Transactions(t.Context(), 0, tid.Max) {
				if err != nil {
					t.Fatalf("after %d transactions: %v", n, err)
				}
				var with func()
				switch n {
				case 50, 150: // before the next transaction
					outage()
				case 100: // in the middle of the first one from here that has several records
					with = outage
				}
				got, err := dump(tr, with)
				if err != nil {
					t.Fatalf("transaction %v: %v", tr.TID, err)
				}
				if n >= len(want) || got != want[n] {
					t.Fatalf("transaction %d is %.200s", n, got)
				}
				n++
			}
			if n != len(want) {
				t.Errorf("%d transactions, want %d", n, len(want))
			}
			n = len(want)
			for info, err := range s.Backwards(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if n--; n < 0 || !strings.HasPrefix(want[n], info.TID.String()) {
					t.Fatalf("%d transactions from the first, backwards: %v", n, info.TID)
				}
				if n == 120 {
					outage()
				}
			}
			if n != 0 {
				t.Errorf("%d transactions are missing backwards", n)
			}
			var got, all []tid.OID
			for oid := range history.OIDs(t.Context(), tid.Max, 0) {
				all = append(all, oid)
			}
			for oid, err := range s.OIDs(t.Context(), tid.Max, 0) {
				if err != nil {
					t.Fatal(err)
				}
				if got = append(got, oid); len(got) == 20 {
					outage()
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(all) {
				t.Errorf("objects %v, want %v", got, all)
			}
			if k.name == "BackupS3" {
				return // it has no connection, requests are repeated
			}
			if lines.count("connection is lost") == 0 || lines.count("msg=connected") < 2 {
				t.Errorf("the log does not tell of the outages: %q", lines.lines)
			}
		})
	}
}

// existing returns an object that exists.
func existing(t *testing.T, history *txntest.Memory) tid.OID {
	t.Helper()
	for oid, err := range history.OIDs(t.Context(), tid.Max, 0) {
		if err != nil {
			t.Fatal(err)
		}
		return oid
	}
	t.Fatal("there is no object")
	return 0
}

// patient loads an object, however long a server takes.
func patient(t *testing.T, s source.Source, oid tid.OID) txn.Revision {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		r, err := s.LoadBefore(t.Context(), oid, tid.Max)
		if err == nil {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// A read waits for a server, until its context ends or patience does. Trouble says what
// is the matter.
func TestServerIsAway(t *testing.T) {
	history := txntest.Random(3, 50, 40)
	for _, k := range kinds {
		if !onServer(k.name) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			o := k.make(t, history)
			s := open(t, o, source.Options{Patience: 400 * time.Millisecond})
			oid := existing(t, history)
			want := patient(t, s, oid)
			if err := s.Trouble(); err != nil {
				t.Errorf("trouble of a server that serves: %v", err)
			}
			o.stop()
			check := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, txn.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "source main") || !strings.Contains(fmt.Sprint(err), "the import") {
					t.Errorf("%s: %v", what, err)
				}
			}
			_, err := s.LoadBefore(t.Context(), oid+1, want.Serial) // which no cache has
			check("load", err)
			for _, err := range s.Transactions(t.Context(), 0, tid.Max) {
				if err == nil {
					t.Fatal("a transaction of a server that is not there")
				}
				check("iteration", err)
			}
			check("trouble", s.Trouble())
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			lazy := open(t, o, source.Options{Lazy: true, Patience: time.Minute})
			if _, err := lazy.LoadBefore(ctx, oid+1, want.Serial); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("load with a context that ends: %v", err)
			}
			o.start()
			if r := patient(t, s, oid); r.Serial != want.Serial || !bytes.Equal(r.Data, want.Data) {
				t.Errorf("after the outage: %v, want %v", r.Serial, want.Serial)
			}
			for deadline := time.Now().Add(time.Minute); s.Trouble() != nil; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal(s.Trouble())
				}
			}
		})
	}
}

// Many reads at once go on through an outage.
func TestReadsThroughOutages(t *testing.T) {
	history := txntest.Random(3, 50, 40)
	for _, k := range kinds {
		if !onServer(k.name) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			o := k.make(t, history)
			s := open(t, o, source.Options{Patience: time.Minute})
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error, 8)
			for i := range 8 {
				go func() {
					var err error
					for n := 0; err == nil && ctx.Err() == nil; n++ {
						oid := tid.OID((n + i) % 40)
						want, wErr := history.LoadBefore(ctx, oid, tid.Max)
						var got txn.Revision
						got, err = s.LoadBefore(ctx, oid, tid.Max)
						switch {
						case ctx.Err() != nil:
							err = nil
						case wErr != nil && (errors.Is(err, txn.ErrNoSuchObject) || errors.Is(err, txn.ErrNotFound)):
							err = nil
						case err == nil && (got.Serial != want.Serial || !bytes.Equal(got.Data, want.Data)):
							err = fmt.Errorf("object %v at %v, want %v", oid, got.Serial, want.Serial)
						}
					}
					failed <- err
				}()
			}
			for range 3 {
				time.Sleep(100 * time.Millisecond)
				o.stop()
				time.Sleep(100 * time.Millisecond)
				o.start()
			}
			time.Sleep(100 * time.Millisecond)
			cancel()
			for range 8 {
				if err := <-failed; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Several servers are tried in turn.
func TestSeveralServers(t *testing.T) {
	history := txntest.Small()
	a, b := zeoOrigin(t, history, true), zeoOrigin(t, history, true)
	both := &origin{storage: config.Storage{ZEO: &config.ZEO{Servers: append(a.storage.ZEO.Servers, b.storage.ZEO.Servers...), Wait: true}}}
	a.stop()
	s := open(t, both, source.Options{Patience: time.Minute})
	if _, err := s.LoadBefore(t.Context(), 0, tid.Max); err != nil {
		t.Fatal(err)
	}
	b.stop()
	a.start()
	if _, err := s.LoadBefore(t.Context(), 0, tid.Max); err != nil {
		t.Fatal(err)
	}
}

// A server that comes back with an older copy is not read.
func TestOlderCopy(t *testing.T) {
	newer, older := txntest.Random(3, 50, 40), txntest.Random(3, 40, 40)
	a, b := zeoOrigin(t, newer, true), zeoOrigin(t, older, true)
	both := &origin{storage: config.Storage{ZEO: &config.ZEO{Servers: append(a.storage.ZEO.Servers, b.storage.ZEO.Servers...), Wait: true}}}
	s := open(t, both, source.Options{Patience: 500 * time.Millisecond})
	oid := existing(t, older)
	patient(t, s, oid)
	a.stop()
	err := txn.ErrUnavailable
	for deadline := time.Now().Add(time.Minute); errors.Is(err, txn.ErrUnavailable) && !errors.Is(err, source.ErrChanged) && time.Now().Before(deadline); {
		_, err = s.LoadBefore(t.Context(), oid, tid.Max) // it may not have come to the other one in its time
	}
	if !errors.Is(err, source.ErrChanged) || !errors.Is(err, txn.ErrUnavailable) || !strings.Contains(err.Error(), "older copy") {
		t.Errorf("load from an older copy: %v", err)
	}
}

// What is refused, or not there, is said at the opening, unless it is lazy.
func TestNotOpened(t *testing.T) {
	o := zeoOrigin(t, txntest.Small(), true)
	other := *o.storage.ZEO
	other.Storage = "other"
	absent := *o.storage.ZEO
	absent.Wait = false
	o.stop()
	waiting := absent
	waiting.Wait, waiting.WaitTimeout = true, 2*time.Second
	for name, tt := range map[string]struct {
		storage config.Storage
		up      bool
		want    string
	}{
		"Nothing":         {config.Storage{}, false, "it has no storage"},
		"UnknownStorage":  {config.Storage{ZEO: &other}, true, "unknown storage: other"},
		"Absent":          {config.Storage{ZEO: &absent}, false, "connection refused"},
		"AbsentForAWhile": {config.Storage{ZEO: &waiting}, false, "connection refused"},
		"NoMaster":        {config.Storage{NEO: &config.NEO{Name: "x"}}, false, "no master"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.up {
				o.start()
				defer o.stop()
			}
			s, err := source.Open(t.Context(), "main", tt.storage, source.Options{})
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "source main") {
				t.Errorf("opened: %v", err)
			}
		})
	}
	t.Run("Lazy", func(t *testing.T) {
		s := open(t, &origin{storage: config.Storage{ZEO: &absent}}, source.Options{Lazy: true, Patience: time.Minute})
		if err := s.Trouble(); err == nil {
			t.Error("a server that is not there is no trouble")
		}
		time.AfterFunc(100*time.Millisecond, o.start)
		if _, err := s.LoadBefore(t.Context(), 0, tid.Max); err != nil {
			t.Error(err)
		}
	})
	t.Run("Context", func(t *testing.T) {
		o.stop()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		for _, st := range []config.Storage{{ZEO: &config.ZEO{Servers: absent.Servers, Wait: true}}, {NEO: &config.NEO{Name: "x", Masters: absent.Servers[0]}}} {
			if _, err := source.Open(ctx, "main", st, source.Options{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("opening until the context ends: %v", err)
			}
		}
	})
}
