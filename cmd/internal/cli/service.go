package cli

import (
	"context"
	"sync"

	"github.com/neozodb/neo/cluster/systemd"
)

// Service is how a command tells the service manager, if it runs under one, how it is.
type Service struct {
	log     *Log
	manager *systemd.Manager
	stopped sync.Once
}

// Service returns the service that this command is. Once ctx ends, the service manager is told
// that the command stops.
func (l *Log) Service(ctx context.Context, env *Env) *Service {
	s := &Service{log: l, manager: systemd.NewManager(env.Getenv(systemd.Socket))}
	context.AfterFunc(ctx, s.Stopping)
	return s
}

// Ready tells that the command is ready, and in words what it does.
func (s *Service) Ready(status string) { s.tell("READY=1", "STATUS="+status) }

// Status tells in words what the command does.
func (s *Service) Status(status string) { s.tell("STATUS=" + status) }

// Stopping tells that the command stops. It is to be deferred, for a command that ends by itself.
func (s *Service) Stopping() {
	s.stopped.Do(func() { s.tell("STOPPING=1", "STATUS=stopping") })
}

func (s *Service) tell(lines ...string) {
	if err := s.manager.Tell(lines...); err != nil {
		s.log.Warn("the service manager cannot be told", "err", err)
	}
}
