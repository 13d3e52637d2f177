package bootstrap

import (
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// Masters is the set of known addresses of masters. It only grows: a master that
// is away may be back. Its methods may be called by any goroutine.
type Masters struct {
	mu   sync.Mutex
	list []proto.Address
	hung map[proto.Address]time.Time // gave no sign of life then
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

// hungFor is how long a master that gave no sign of life is passed over.
const hungFor = 10 * time.Second

// hang notes that a master gives no sign of life.
func (m *Masters) hang(a proto.Address) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hung == nil {
		m.hung = map[proto.Address]time.Time{}
	}
	m.hung[a] = time.Now()
}

// passOverLocked reports whether another master should be asked before this one, to
// which those that have not noticed yet still refer.
func (m *Masters) passOverLocked(a proto.Address) bool {
	hung := func(a proto.Address) bool {
		t, ok := m.hung[a]
		return ok && time.Since(t) < hungFor
	}
	return hung(a) && slices.ContainsFunc(m.list, func(a proto.Address) bool { return !hung(a) })
}

// passOver is passOverLocked.
func (m *Masters) passOver(a proto.Address) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.passOverLocked(a)
}

// after returns the address that follows a, the first one follows the last. It
// passes over masters that give no sign of life.
func (m *Masters) after(a proto.Address) proto.Address {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.list) == 0 {
		return proto.Address{}
	}
	for {
		a = m.list[(slices.Index(m.list, a)+1)%len(m.list)]
		if !m.passOverLocked(a) {
			return a
		}
	}
}
