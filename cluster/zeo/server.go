package zeo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/socket"
)

// Config configures a server. A zero field takes the documented default.
type Config struct {
	// Storages by the name that clients ask for: "1" unless they are told another.
	Storages map[string]Storage

	// TLS, with certificates of clients required. Default: plain connections.
	TLS *tls.Config

	ReadOnly bool // no client may write
	Msgpack  bool // propose msgpack to clients; both encodings are accepted anyway

	// InvalidationQueueSize is the number of transactions kept so that clients
	// which reconnect can verify their caches. Default: 10000.
	InvalidationQueueSize int
	// InvalidationAge lets clients verify by older transactions as well, not
	// older than this, if the storage can list them. Default: not.
	InvalidationAge time.Duration
	// TransactionTimeout limits the time from the first vote to the end of a
	// transaction; the client is disconnected then. Default: no limit.
	TransactionTimeout time.Duration

	// MaxFrame is the greatest message accepted, in bytes. Default: 1 GiB.
	MaxFrame int
	// OutputLimit is how many bytes may wait for a client that does not read
	// before it is disconnected. Default: 64 MiB.
	OutputLimit int
	// SpillSize is how many bytes a transaction keeps in memory before vote; the
	// rest goes to a temporary file. Default: 16 MiB.
	SpillSize int
	// IdleTimeout is after how long a silence a client is taken for dead. Clients
	// send a sign of life each minute. Default: 5 minutes.
	IdleTimeout time.Duration
	// MaxConnections limits connections. Default: 10000.
	MaxConnections int

	Log *slog.Logger // default: discard
}

func (cfg *Config) setDefaults() {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&cfg.InvalidationQueueSize, 10000)
	def(&cfg.MaxFrame, 1<<30)
	def(&cfg.OutputLimit, 64<<20)
	def(&cfg.SpillSize, 16<<20)
	def(&cfg.MaxConnections, 10000)
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 5 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
}

// finishGrace is how long commits under way may take once the server is to end.
const finishGrace = 5 * time.Second

// Server is a ZEO server: any number of storages on any number of listeners.
type Server struct {
	cfg      Config
	log      *slog.Logger
	storages map[string]*sequencer

	ctx    context.Context // ends when Run is to end
	cancel context.CancelFunc
	late   context.Context // ends finishGrace later
	wg     sync.WaitGroup  // what does not belong to a connection

	refusals   socket.Refusals
	iterations *iterationLimits

	mu    sync.Mutex
	conns map[*conn]struct{}
}

// New returns a server that is ready to serve: its storages are watched until
// Close.
func New(ctx context.Context, cfg Config) (*Server, error) {
	cfg.setDefaults()
	if len(cfg.Storages) == 0 {
		return nil, errors.New("no storage to serve")
	}
	s := &Server{
		cfg:      cfg,
		log:      cfg.Log,
		storages: make(map[string]*sequencer),
		conns:    make(map[*conn]struct{}),

		iterations: newIterationLimits(),
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	var endLate context.CancelFunc
	s.late, endLate = context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(s.ctx, func() { time.AfterFunc(finishGrace, endLate) })
	for name, st := range cfg.Storages {
		seq := newSequencer(name, st, &cfg, cfg.Log)
		fill, err := seq.start(ctx)
		if err != nil {
			s.cancel()
			s.wg.Wait()
			return nil, fmt.Errorf("storage %s: %w", name, err)
		}
		if fill != nil {
			s.wg.Go(func() { fill(s.ctx) })
		}
		s.storages[name] = seq
	}
	return s, nil
}

// Serve accepts connections on l until the server or l is closed, and closes l. It
// may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	defer context.AfterFunc(s.ctx, func() { l.Close() })()
	defer l.Close()
	for pause := time.Millisecond; ; {
		nc, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accepting connections: %w", err)
			}
			// Such as too many open files, until some clients have gone.
			s.log.Warn("accept", "err", err)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = time.Millisecond
		s.accept(nc)
	}
}

func (s *Server) accept(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		// Keep-alive finds hosts that are gone; small answers must not wait.
		if err := errors.Join(t.SetNoDelay(true), t.SetKeepAlive(true)); err != nil {
			s.log.Warn("accept", "err", err)
		}
	}
	if s.cfg.TLS != nil {
		nc = tls.Server(nc, s.cfg.TLS)
	}
	c := newConn(s, nc)
	s.mu.Lock()
	refused := s.ctx.Err() != nil || len(s.conns) >= s.cfg.MaxConnections
	if !refused {
		s.conns[c] = struct{}{}
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if refused {
		s.log.Warn("connection refused", "client", nc.RemoteAddr().String(), "limit", s.cfg.MaxConnections)
		c.cancel()
		c.out.close()
		return
	}
	go func() {
		defer s.wg.Done()
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

// Close disconnects all clients, lets commits under way end, and returns when
// nothing runs any more.
func (s *Server) Close() {
	s.mu.Lock()
	for c := range s.conns {
		c.out.close() // before calls are cancelled
	}
	s.cancel()
	s.mu.Unlock()
	s.wg.Wait()
}
