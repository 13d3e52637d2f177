package proctest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// startBackup starts a cluster that is a backup of up from the beginning, and waits
// until it follows.
func startBackup(t testing.TB, up *Cluster, o Options) *Cluster {
	t.Helper()
	o.Master = append(o.Master, "-C", up.Name, "-M", up.Masters, "-B")
	if o.State == "" {
		o.State = "BACKINGUP"
	}
	return StartCluster(t, o)
}

// tide watches a TID that is to rise.
type tide struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	tid     tid.TID // the last one seen
	most    tid.TID
	rises   []rise
	excused bool // what falls now is not wrong
	lost    []fall
	wrong   []fall
}

// fall is a moment at which a TID was less than before.
type fall struct {
	at       time.Time
	from, to tid.TID
}

func (f fall) String() string {
	return fmt.Sprintf("%s: from %v to %v", f.at.Format("15:04:05.000"), f.from, f.to)
}

// over reports whether a transaction of a database is between the two TIDs.
func (f fall) over(db []clustertest.Stored) bool {
	return slices.ContainsFunc(db, func(s clustertest.Stored) bool { return f.to < s.TID && s.TID <= f.from })
}

// follow looks at the TID until the end of the test.
func follow(t testing.TB, every time.Duration, look func(context.Context) (tid.TID, bool)) *tide {
	ctx, cancel := context.WithCancel(t.Context())
	w := &tide{cancel: cancel, done: make(chan struct{})}
	t.Cleanup(func() { w.stop() })
	go func() {
		defer close(w.done)
		for ; ctx.Err() == nil; time.Sleep(every) {
			limit, stop := context.WithTimeout(ctx, 5*time.Second)
			if at, ok := look(limit); ok {
				w.saw(at, time.Now())
			}
			stop()
		}
	}()
	return w
}

func (w *tide) saw(at tid.TID, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at < w.tid {
		f := fall{now, w.tid, at}
		if w.excused {
			w.lost = append(w.lost, f)
		} else {
			w.wrong = append(w.wrong, f)
		}
	}
	w.tid = at
	if at > w.most {
		w.most = at
		w.rises = append(w.rises, rise{now, at})
	}
}

// excuse tells whether the TID may fall from now on.
func (w *tide) excuse(may bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.excused = may
}

// watchBackup watches what would be kept if the backup were promoted now.
func (c *Cluster) watchBackup(t testing.TB) *tide {
	addrs, err := conf.ParseMasters(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	var op *ctl.Client
	return follow(t, 5*time.Millisecond, func(ctx context.Context) (tid.TID, bool) {
		if op == nil {
			// An admin that was killed comes back.
			if op, err = ctl.Dial(ctx, proto.Address(addrs[0]), link.Config{TLS: c.tls}); err != nil {
				op = nil
				return 0, false
			}
			context.AfterFunc(t.Context(), op.Close)
		}
		ids, err := op.LastIDs(ctx)
		if err != nil {
			var refused *proto.Error // there is no primary master now
			if !errors.As(err, &refused) {
				op = nil
			}
			return 0, false
		}
		return ids.BackupTID.V, ids.BackupTID.OK
	})
}

// watchReadable watches what a new client of the backup is given as the last transaction.
func (c *Cluster) watchReadable(t testing.TB) *tide {
	return follow(t, 100*time.Millisecond, func(ctx context.Context) (tid.TID, bool) {
		cl, err := c.connect(ctx, true)
		if err != nil {
			return 0, false
		}
		defer cl.Close()
		at, err := cl.LastTID(ctx)
		return at, err == nil
	})
}

func (w *tide) stop() {
	w.cancel()
	<-w.done
}

// reached returns the TID.
func (w *tide) reached() tid.TID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tid
}

// lags returns how long after their acknowledgement the transactions were backed up,
// ascending. Both lists are in the order of time.
func (w *tide) lags(acknowledged []rise) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []time.Duration
	for _, a := range acknowledged {
		i, _ := slices.BinarySearchFunc(w.rises, a.tid, func(r rise, t tid.TID) int { return int(min(max(int64(r.tid)-int64(t), -1), 1)) })
		if i < len(w.rises) {
			list = append(list, max(w.rises[i].at.Sub(a.at), 0))
		}
	}
	slices.Sort(list)
	return list
}

func percentiles(list []time.Duration) string {
	if len(list) == 0 {
		return "no figure"
	}
	return fmt.Sprintf("p50 %v, max %v of %d", list[len(list)/2].Round(time.Millisecond/10), list[len(list)-1].Round(time.Millisecond/10), len(list))
}

// A master that does not know the upstream cluster of a backup ends and says so: it
// must not make a cluster of its own of the backup.
func TestBackupWithoutUpstream(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Options{})
	for _, p := range c.Nodes() {
		p.Kill()
	}
	python(t, `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("INSERT INTO config VALUES ('backup_tid', '040660ee3597d844')")
db.commit()
`, filepath.Join(c.Dir, "s1.sqlite"))
	if err := c.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	if err := c.Master.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := c.Master.Wait(t, patience); err == nil {
		t.Error("the master ended with status 0")
	}
	says(t, "neomaster", c.Master.Output(), `(?m)^error: the database is a backup: no upstream cluster to backup defined in configuration$`)
}
