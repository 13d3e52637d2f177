package bootstrap

import (
	"slices"
	"sync"

	"github.com/neozodb/neo/cluster/proto"
)

// Masters is the set of known addresses of masters. It only grows: a master that
// is away may be back. Its methods may be called by any goroutine.
type Masters struct {
	mu   sync.Mutex
	list []proto.Address
}

// NewMasters returns a set with the configured addresses.
func NewMasters(addrs ...proto.Address) *Masters {
	m := &Masters{}
	m.Learn(addrs...)
	return m
}

// Learn adds addresses, in order.
func (m *Masters) Learn(addrs ...proto.Address) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range addrs {
		if !a.IsZero() && !slices.Contains(m.list, a) {
			m.list = append(m.list, a)
		}
	}
}

// List returns the addresses, first those known first.
func (m *Masters) List() []proto.Address {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}

// after returns the address that follows a, the first one follows the last.
func (m *Masters) after(a proto.Address) proto.Address {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.list) == 0 {
		return proto.Address{}
	}
	return m.list[(slices.Index(m.list, a)+1)%len(m.list)]
}
