package feed

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// clusterCache is the size of the cache of a client: what is read here is read once.
const clusterCache = 1 << 20

// ClusterOptions configures a [Cluster]. A zero field takes the documented default.
type ClusterOptions struct {
	// Client says which cluster it is. Its callbacks, its cache and what is written with
	// are set here.
	Client client.Config
	// Repository is the name of the repository, which masters are told. Required.
	Repository string
	Poll       time.Duration // how often a backup cluster is asked; default: DefaultPoll
	Log        *slog.Logger  // default: discard
}

// Cluster is a cluster, or one in backup mode.
type Cluster struct {
	c    *client.Client
	name string
	poll time.Duration
	log  *slog.Logger

	mu      sync.Mutex
	news    chan struct{} // closed when something may have happened
	resets  int           // how often the client was connected again
	checked int           // resets after which the history was compared
	np      int
	backup  bool
	told    tid.TID // by Last
	tip     tid.TID // the greatest transaction that was read
	packs   packs
	begun   begun
}

// packs are the orders to pack that are known.
type packs struct {
	upTo tid.TID   // the greatest time of an approved one
	from tid.TID   // to be asked for next
	asOf time.Time // when they were asked for last
}

var _ Feed = (*Cluster)(nil)

// OpenCluster connects to a cluster. ctx limits the wait for it.
func OpenCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	f := &Cluster{name: o.Client.Cluster, poll: o.Poll, log: o.Log, news: make(chan struct{})}
	if o.Repository == "" {
		return nil, errors.New("open cluster: the name of the repository is required")
	}
	if f.poll == 0 {
		f.poll = DefaultPoll
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	cfg := o.Client
	cfg.Backup = o.Repository
	cfg.CacheSize = clusterCache
	cfg.OnInvalidate = func(tid.TID, []tid.OID) { f.tell(false) }
	cfg.OnLost = func() { f.tell(false) }
	cfg.OnReset = func() { f.tell(true) }
	if cfg.Log == nil {
		cfg.Log = f.log
	}
	var err error
	if f.c, err = client.Open(ctx, cfg); err != nil {
		return nil, err
	}
	if f.np, err = f.c.Partitions(ctx); err == nil {
		err = f.check(ctx, true)
	}
	if err != nil {
		f.c.Close()
		return nil, fmt.Errorf("open cluster %s: %w", f.name, err)
	}
	return f, nil
}

// tell wakes the calls of Wait.
func (f *Cluster) tell(reset bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if reset {
		f.resets++
	}
	close(f.news)
	f.news = make(chan struct{})
}

// steady repeats a question when the master was lost meanwhile. The client waits for
// another one.
func steady[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for {
		v, err := ask()
		if !errors.Is(err, client.ErrMasterLost) || ctx.Err() != nil {
			return v, err
		}
	}
}

// check verifies, after each connection to a master, that the cluster is the one that was
// read before.
func (f *Cluster) check(ctx context.Context, first bool) error {
	f.mu.Lock()
	resets, tip := f.resets, f.tip
	again := first || resets != f.checked
	f.mu.Unlock()
	if !again {
		return nil
	}
	np, err := steady(ctx, func() (int, error) { return f.c.Partitions(ctx) })
	if err != nil {
		return err
	}
	if np != f.np {
		return fmt.Errorf("cluster %s: %w: it has %d partitions, it had %d", f.name, ErrChanged, np, f.np)
	}
	state, err := steady(ctx, func() (proto.ClusterState, error) { return f.c.ClusterState(ctx) })
	if err != nil {
		return err
	}
	if tip != tid.Zero {
		switch _, err := f.Info(ctx, tip); {
		case errors.Is(err, txn.ErrNotFound):
			return fmt.Errorf("cluster %s: %w: it has no transaction %v any more: it was truncated, or is another one of this name", f.name, ErrChanged, tip)
		case err != nil:
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checked = max(f.checked, resets)
	f.backup = state == proto.BackingUp || state == proto.StartingBackup || state == proto.StoppingBackup
	return nil
}

// Source implements [Feed].
func (f *Cluster) Source() snapshot.Source {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := snapshot.Source{Kind: KindCluster, Name: f.name, NP: int64(f.np)}
	if f.backup {
		s.Kind = KindBackup
	}
	return s
}

// Last implements [Feed]. It waits for a cluster that does not serve.
func (f *Cluster) Last(ctx context.Context) (tid.TID, time.Time, error) {
	var at time.Time
	last, err := steady(ctx, func() (tid.TID, error) {
		at = time.Now()
		return f.c.AskLastTID(ctx)
	})
	if err == nil {
		err = f.check(ctx, false)
	}
	if err != nil {
		return 0, at, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if last < f.told {
		return 0, at, f.truncated(last, f.told)
	}
	f.told = last
	return last, at, nil
}

func (f *Cluster) truncated(last, had tid.TID) error {
	return fmt.Errorf("cluster %s: %w: its last transaction is %v, it was %v: it was truncated, or is another one of this name", f.name, ErrChanged, last, had)
}

// Info implements [Feed].
func (f *Cluster) Info(ctx context.Context, t tid.TID) (*txn.Transaction, error) {
	info, err := steady(ctx, func() (*txn.Info, error) { return f.c.TransactionInfo(ctx, t) })
	if err != nil {
		return nil, fmt.Errorf("transaction %v: %w", t, err)
	}
	return &txn.Transaction{TID: info.TID, Status: info.Status, User: info.User, Description: info.Description, Extension: info.Extension}, nil
}

// Read implements [Feed]. For a range from the beginning it takes one bit of memory for
// each object.
func (f *Cluster) Read(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		if after >= upTo {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
			}
			return
		}
		if err := f.reaches(ctx, upTo); err != nil {
			yield(nil, err)
			return
		}
		run := f.newReading(ctx, after)
		for t, err := range f.c.TransactionsWith(ctx, after, upTo, run.missing) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(nil, err)
				return
			}
			run.next(t.TID)
			t.Records = run.watch(t.Records)
			if !yield(t, nil) {
				run.end(t.TID)
				return
			}
			f.mu.Lock()
			f.tip = max(f.tip, t.TID)
			f.mu.Unlock()
		}
		run.end(upTo)
		// What was read across a change of masters is of one history, and complete.
		err := f.reaches(ctx, upTo)
		if err == nil {
			err = f.check(ctx, false)
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// reaches verifies that the cluster has a history up to a transaction: otherwise what is left would
// be taken for all there is.
func (f *Cluster) reaches(ctx context.Context, upTo tid.TID) error {
	last, err := steady(ctx, func() (tid.TID, error) { return f.c.AskLastTID(ctx) })
	if err == nil && last < upTo {
		err = f.truncated(last, upTo)
	}
	return err
}

// Packed implements [Feed].
func (f *Cluster) Packed(ctx context.Context) (tid.TID, error) { return f.packedSince(ctx, time.Now()) }

// packedSince returns the greatest time of the packs that storages can have begun until a
// moment: a master tells of an order before any storage executes it.
func (f *Cluster) packedSince(ctx context.Context, moment time.Time) (tid.TID, error) {
	f.mu.Lock()
	known := f.packs
	f.mu.Unlock()
	if known.asOf.After(moment) {
		return known.upTo, nil
	}
	now := time.Now()
	orders, err := f.c.PackOrders(ctx, known.from)
	if err != nil {
		return 0, err
	}
	for _, o := range orders {
		if o.Approved.OK && o.Approved.V {
			known.upTo = max(known.upTo, o.Time)
		}
	}
	for _, o := range orders { // those that are not decided are to be asked for again
		if !o.Approved.OK {
			break
		}
		known.from = o.ID + 1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.packs.upTo = max(f.packs.upTo, known.upTo)
	f.packs.from = max(f.packs.from, known.from)
	if now.After(f.packs.asOf) {
		f.packs.asOf = now
	}
	return f.packs.upTo, nil
}

// Has implements [Feed].
func (f *Cluster) Has(ctx context.Context, oid tid.OID, at tid.TID) (bool, error) {
	if at == tid.Zero {
		return false, ctx.Err()
	}
	return steady(ctx, func() (bool, error) { return f.c.HasRevision(ctx, oid, at) })
}

// Mark implements [Feed]: of a cluster, its transactions say enough.
func (f *Cluster) Mark(ctx context.Context, _ tid.TID) (string, error) { return "", ctx.Err() }

// Resume implements [Feed].
func (f *Cluster) Resume(ctx context.Context, _ string) error { return ctx.Err() }

// Wait implements [Feed]. A backup cluster may not tell of transactions: it is asked.
func (f *Cluster) Wait(ctx context.Context) error {
	for {
		f.mu.Lock()
		news, told, backup := f.news, f.told, f.backup
		f.mu.Unlock()
		last, err := steady(ctx, func() (tid.TID, error) {
			if backup {
				return f.c.AskLastTID(ctx)
			}
			return f.c.LastTID(ctx)
		})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || last != told {
			return err
		}
		var tick <-chan time.Time
		if backup {
			tick = time.After(f.poll)
		}
		select {
		case <-news:
			return nil
		case <-tick:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close implements [Feed].
func (f *Cluster) Close() error { return f.c.Close() }
