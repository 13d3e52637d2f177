package clustertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
)

// copying is a database that imports a transaction per 100 ms while the operation lasts.
type copying struct {
	backend.Backend
	now   chan importing.Report // of one value
	until int64                 // when it is done
	held  chan struct{}         // closed: orders are obeyed
}

func (b *copying) Run(ctx context.Context) error {
	for {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		r := <-b.now
		if r.State != importing.Paused {
			r.State = importing.Copying
			if r.Transactions++; r.Transactions >= b.until {
				r.State = importing.Done
			}
		}
		b.now <- r
		if r.State == importing.Done {
			return nil
		}
	}
}

func (b *copying) Progress() importing.Report {
	r := <-b.now
	b.now <- r
	return r
}

func (b *copying) Order(o importing.Order) error {
	<-b.held
	r := <-b.now
	if o.Kind == importing.Pause {
		r.State = importing.Paused
	} else {
		r.State = importing.Copying
	}
	b.now <- r
	return nil
}

// An import is followed over the loss of the master and of its storage until it is done,
// and nothing is heard of it any more when the database is opened without it. An order
// that the storage has not obeyed when it is lost is answered.
func TestImportIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New(1)
		var down []func()
		start := func(run func(context.Context) error) (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				close(done)
			}()
			stop = func() { cancel(); <-done }
			down = append(down, stop)
			return stop
		}
		defer func() {
			for _, stop := range down {
				stop()
			}
		}()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		startMaster := func() func() {
			m, err := master.New(master.Config{Cluster: "test", Bind: masterAddr, Partitions: 1, Autostart: 1, Network: net.Host(masterAddr.Host)})
			must(err)
			return start(m.Run)
		}
		mem := backendtest.NewMemory()
		startStorage := func(wrap func(backend.Backend) backend.Backend) func() {
			db, err := mem.Open()
			must(err)
			n, err := storage.New(storage.Config{Cluster: "test", Bind: storageAddr, Masters: bootstrap.NewMasters(masterAddr), Backend: wrap(db),
				Network: net.Host(storageAddr.Host), Dialer: &link.Dialer{}})
			must(err)
			stop := start(n.Run)
			return func() { stop(); must(db.Close()) }
		}
		b := &copying{now: make(chan importing.Report, 1), until: 500, held: make(chan struct{})}
		b.now <- importing.Report{}
		imports := func(db backend.Backend) backend.Backend {
			b.Backend = db
			return b
		}
		stopMaster, stopStorage := startMaster(), startStorage(imports)
		a, err := admin.New(admin.Config{Cluster: "test", Bind: adminAddr, Masters: bootstrap.NewMasters(masterAddr), Network: net.Host(adminAddr.Host), Dialer: &link.Dialer{}})
		must(err)
		start(a.Run)
		dial := func() *ctl.Client {
			c, err := ctl.Dial(t.Context(), adminAddr, link.Config{Network: net.Host("10.0.3.3")})
			must(err)
			return c
		}
		time.Sleep(10 * time.Second)
		c := dial()
		defer c.Close()
		var told []string
		c.Followed = func(list []ctl.Import) {
			text := "nothing"
			for _, i := range list {
				text = fmt.Sprint(i.Node, " ", i.State)
			}
			if len(told) == 0 || told[len(told)-1] != text {
				told = append(told, text)
			}
		}
		followed := make(chan []ctl.Import, 1)
		go func() {
			list, err := c.FollowImports(t.Context())
			if err != nil {
				t.Error(err)
			}
			followed <- list
		}()
		time.Sleep(5 * time.Second)

		o := dial()
		defer o.Close()
		lost := make(chan error, 1)
		go func() { lost <- o.OrderImport(t.Context(), importing.Order{Kind: importing.Pause}) }()
		time.Sleep(5 * time.Second)
		stopMaster()
		if err := <-lost; err == nil || !strings.Contains(err.Error(), "master was lost before it answered") {
			t.Errorf("an order without answer: %v", err)
		}
		close(b.held)
		startMaster()
		time.Sleep(20 * time.Second)
		must(o.OrderImport(t.Context(), importing.Order{Kind: importing.Resume}))
		time.Sleep(5 * time.Second)
		stopStorage()
		time.Sleep(20 * time.Second)
		stopStorage = startStorage(imports)
		if list := <-followed; len(list) != 1 || list[0].State != importing.Done || list[0].Transactions != b.until {
			t.Errorf("at the end: %+v", list)
		}
		want := []string{"S1 copying", "nothing", "S1 paused", "S1 copying", "nothing", "S1 copying", "S1 done"}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		stopStorage()
		startStorage(func(db backend.Backend) backend.Backend { return db })
		time.Sleep(20 * time.Second)
		n := dial()
		defer n.Close()
		if _, err := n.Imports(t.Context()); !errors.Is(err, ctl.ErrNoImport) {
			t.Errorf("without import: %v", err)
		}
		// What was found before does not make another order wait.
		if err := o.OrderImport(t.Context(), importing.Order{Kind: importing.Pause}); err == nil || !strings.Contains(err.Error(), "no storage reports an import") {
			t.Errorf("without import: %v", err)
		}
	})
}
