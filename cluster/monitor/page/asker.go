package page

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
)

// Asker asks an admin how its cluster is, over a connection that it keeps.
type Asker struct {
	link  link.Config
	admin atomic.Pointer[admin]

	mu     sync.Mutex  // of what follows
	client *ctl.Client // nil if not connected
}

type admin struct {
	cluster string
	addr    proto.Address
}

var errStarting = errors.New("the program is starting")

// NewAsker returns one that is told later whom to ask. cfg is what its connection needs.
func NewAsker(cfg link.Config) *Asker { return &Asker{link: cfg} }

// Use tells the name of the cluster and the address of its admin.
func (a *Asker) Use(cluster string, addr proto.Address) { a.admin.Store(&admin{cluster, addr}) }

// Collect asks. It returns a status also if the admin does not answer.
func (a *Asker) Collect(ctx context.Context) *status.Status {
	to := a.admin.Load()
	if to == nil {
		s := status.Unreachable("", errStarting)
		s.Unknown = errStarting.Error()
		return s
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	kept := a.client != nil
	s, err := a.askLocked(ctx, to)
	if err != nil && kept && ctx.Err() == nil {
		s, err = a.askLocked(ctx, to) // the connection may have been lost long ago
	}
	if err != nil {
		s = status.Unreachable(to.addr.String(), err)
	}
	if s.Cluster == "" {
		s.Cluster = to.cluster
	}
	return s
}

func (a *Asker) askLocked(ctx context.Context, to *admin) (s *status.Status, err error) {
	if a.client == nil {
		if a.client, err = ctl.Dial(ctx, to.addr, a.link); err != nil {
			a.client = nil
			return nil, err
		}
	}
	if s, err = status.Collect(ctx, a.client); err != nil {
		a.closeLocked()
		return nil, err
	}
	s.Time = time.Now().UTC() // of its end: it may have taken its time
	return s, nil
}

// Close ends the connection.
func (a *Asker) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closeLocked()
}

func (a *Asker) closeLocked() {
	if a.client != nil {
		a.client.Close()
		a.client = nil
	}
}
