package master

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/vitals"
)

// Config configures a master. A zero field takes the documented default.
type Config struct {
	Cluster    string          // name shared by every node; required
	Bind       proto.Address   // where to listen, a numeric IP; port 0: any free one
	Masters    []proto.Address // all masters; this one may be left out
	ID         proto.NodeID    // to force the id of this node; default: the first free one
	Partitions int             // of a new database; default: 100
	Replicas   int             // copies beside the first, of a new database
	// Autostart is the number of storages with which a new database is created
	// without being told. Default: wait for the operator.
	Autostart int
	// Upstream is the cluster that this one may be a backup of.
	Upstream Upstream
	// Self is what the master tells of itself to operators. Default: nothing.
	Self vitals.Self

	// PeerTimeout is how long another node may give no sign of life before it is given
	// up; negative: no limit. See link.Config. Default: link.DefaultPeerTimeout.
	PeerTimeout time.Duration
	TLS         *tls.Config  // default: plain links
	Network     link.Network // default: TCP
	Log         *slog.Logger // default: discard
	// Record is told every packet, for a log of packets.
	Record func(sent bool, peer string, id uint32, p proto.Packet)
	// MastersKnown is told of all masters that are known now, Identified the id of
	// this one, and FlushLog is called when another node asks for it, and must not
	// block. All may be nil.
	MastersKnown func([]proto.Address)
	Identified   func(proto.NodeID)
	FlushLog     func()
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Master is a running master node: the shell of a [Machine].
type Master struct {
	cfg      Config
	machine  *Machine
	links    link.Config
	dialer   link.Dialer
	listener *link.Listener

	inbox chan input
	done  chan struct{} // closed when no input is taken any more
	tasks sync.WaitGroup
	dials context.Context // ends the attempts to connect
	stop  context.CancelFunc

	// Owned by Run.
	conns map[ConnID]*connection
	held  []*connection // with packets that wait for the end of a batch
	// holding tells that more input is there: what is sent may wait for its effects.
	holding bool
	last    ConnID
	wake    <-chan time.Time // ordered by the machine; nil: nothing is
	ended   bool
	err     error
}

type connection struct {
	*link.Conn
	held bool
}

// input is what happens outside, in the order in which it is seen.
type input struct {
	event    link.Event
	accepted *link.Conn
	dialed   proto.Address // of a connection attempt that has ended
	conn     *link.Conn    // its result, nil if it failed
	silent   *link.Conn    // gives no sign of life
	silence  time.Duration // of silent
	probed   *link.Conn    // was asked for a sign of life
	alive    bool          // and has given one
	dump     io.Writer     // where to show the state
	dumped   chan<- struct{}
	stats    chan<- Stats // has room for the answer
}

// inboxSize is how many inputs may wait before peers are no longer read.
const inboxSize = 1024

// New starts to listen. It fails if the address is in use. Connections are
// served once [Master.Run] is called.
func New(cfg Config) (*Master, error) {
	if cfg.Cluster == "" {
		return nil, fmt.Errorf("starting a master: no cluster name")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Partitions == 0 {
		cfg.Partitions = 100
	}
	if cfg.Partitions < 0 || cfg.Replicas < 0 || cfg.Replicas > maxReplicas {
		return nil, fmt.Errorf("starting a master: %d partitions with %d replicas", cfg.Partitions, cfg.Replicas)
	}
	cfg.PeerTimeout = cmp.Or(cfg.PeerTimeout, link.DefaultPeerTimeout)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Master{
		cfg:   cfg,
		inbox: make(chan input, inboxSize),
		done:  make(chan struct{}),
		conns: map[ConnID]*connection{},
	}
	m.dials, m.stop = context.WithCancel(context.Background())
	m.links = link.Config{TLS: cfg.TLS, Log: cfg.Log, Record: cfg.Record, Network: cfg.Network,
		PeerTimeout: cfg.PeerTimeout, Traffic: &link.Traffic{},
		Deliver: func(ev link.Event) { m.put(input{event: ev}) },
		Silent:  func(c *link.Conn, d time.Duration) { m.put(input{silent: c, silence: d}) }}
	var err error
	m.listener, err = link.Listen(m.dials, cfg.Bind, m.links, func(c *link.Conn) {
		if !m.put(input{accepted: c}) {
			c.Close() // the master has ended
		}
	})
	if err != nil {
		m.stop()
		return nil, err
	}
	m.machine = NewMachine(cfg.Now(), Settings{
		Cluster:    cfg.Cluster,
		Addr:       m.listener.Addr(),
		Masters:    cfg.Masters,
		NID:        cfg.ID,
		Partitions: cfg.Partitions,
		Replicas:   cfg.Replicas,
		Autostart:  cfg.Autostart,
		Upstream:   cfg.Upstream,
		Self:       cfg.Self,
	})
	return m, nil
}

// Addr returns the address at which the master listens.
func (m *Master) Addr() proto.Address { return m.listener.Addr() }

func (m *Master) put(in input) bool {
	select {
	case m.inbox <- in:
		return true
	case <-m.done:
		return false
	}
}

// Dump writes the state of the master, for its operator. It does nothing unless
// Run is running.
func (m *Master) Dump(w io.Writer) {
	dumped := make(chan struct{})
	select {
	case m.inbox <- input{dump: w, dumped: dumped}:
		select {
		case <-dumped:
		case <-m.done:
		}
	case <-m.done:
	}
}

// Run serves until ctx ends, the cluster is stopped, or the primary stops this
// master, and then returns nil. When it returns, all connections have ended.
func (m *Master) Run(ctx context.Context) error {
	m.cfg.Log.Info("listening on", "addr", m.listener.Addr().String())
	m.perform(m.machine.Step(m.cfg.Now(), Event{}))
	for !m.ended {
		var late <-chan time.Time
		if m.machine.Impatient() {
			late = time.After(patience)
		} else if m.machine.Unconfirmed() {
			late = time.After(confirmEvery)
		}
		select {
		case in := <-m.inbox:
			m.batch(in)
		case <-m.wake:
			m.wake = nil
			m.perform(m.machine.Step(m.cfg.Now(), Event{Kind: Woken}))
		case <-late:
			m.perform(m.machine.Step(m.cfg.Now(), Event{}))
		case <-ctx.Done():
			m.perform(m.machine.Step(m.cfg.Now(), Event{Kind: StopAsked}))
		}
	}
	close(m.done)
	m.stop()
	m.tasks.Go(m.stopListening)
	for _, c := range m.conns {
		c.Abort()
	}
	m.tasks.Wait()
	for drained := false; !drained; {
		select {
		case in := <-m.inbox: // accepted or dialled meanwhile
			for _, c := range []*link.Conn{in.accepted, in.conn} {
				if c != nil {
					c.Close()
					<-c.Done()
				}
			}
		default:
			drained = true
		}
	}
	for _, c := range m.conns {
		<-c.Done()
	}
	return m.err
}

// maxBatch bounds how many inputs are handled before anything is sent.
const maxBatch = 64

// batch handles an input, and those that wait behind it: what they make the
// master send on a connection goes in one write.
func (m *Master) batch(in input) {
	for n := 1; ; n++ {
		m.holding = n < maxBatch && len(m.inbox) > 0
		m.handle(in)
		if !m.holding || m.ended {
			break
		}
		in = <-m.inbox // nobody else takes from it
	}
	m.holding = false
	for i, c := range m.held {
		c.held = false
		c.Release()
		m.held[i] = nil
	}
	m.held = m.held[:0]
}

// maxOutput is how many bytes may wait for one peer. It is more than a few of the
// largest packets.
const maxOutput = 64 << 20

// checkOutput gives up a peer that does not read: what it is told of every commit
// must not fill the memory. It begins anew when it comes back.
func (m *Master) checkOutput(c *connection) {
	if n := c.Buffered(); n > maxOutput {
		m.cfg.Log.Warn("the peer does not read: closing", "peer", c.String(), "waiting_bytes", n)
		c.Close()
	}
}

// hold makes a connection wait for the end of the batch.
func (m *Master) hold(c *connection) {
	if m.holding && !c.held {
		c.held = true
		c.Hold()
		m.held = append(m.held, c)
	}
}

func (m *Master) stopListening() {
	if err := m.listener.Close(); err != nil {
		m.cfg.Log.Debug("closing the listening socket", "err", err)
	}
}

func (m *Master) handle(in input) {
	ev := Event{}
	switch {
	case in.accepted != nil:
		ev.Kind, ev.Conn = Accepted, m.register(in.accepted)
	case !in.dialed.IsZero() && in.conn == nil:
		ev.Kind, ev.Addr = ConnectFailed, in.dialed
	case !in.dialed.IsZero():
		ev.Kind, ev.Addr, ev.Conn = Connected, in.dialed, m.register(in.conn)
	case in.dump != nil:
		m.machine.dump(in.dump)
		close(in.dumped)
		return
	case in.stats != nil:
		in.stats <- m.machine.stats()
		return
	case in.silent != nil:
		var ok bool
		if ev.Conn, ok = in.silent.Tag.(ConnID); !ok {
			return
		}
		ev.Kind, ev.Silence, ev.Beats = Silent, in.silence, in.silent.Beats()
	case in.probed != nil:
		ev.Kind, ev.Conn, ev.Alive, ev.Beats = Probed, in.probed.Tag.(ConnID), in.alive, in.probed.Beats()
	default:
		var ok bool
		if ev.Conn, ok = in.event.Conn.Tag.(ConnID); !ok {
			return
		}
		switch e := in.event; {
		case e.End():
			delete(m.conns, ev.Conn)
			ev.Kind, ev.Err = Closed, e.Err
		case e.Packet == nil:
			return // the end follows
		case e.Asked != nil:
			ev.Kind, ev.ID, ev.Packet = Answered, e.ID, e.Packet
			ev.Request, ev.Tag = e.Asked.Request, e.Asked.Tag
		default:
			ev.Kind, ev.ID, ev.Packet = Received, e.ID, e.Packet
		}
	}
	m.perform(m.machine.Step(m.cfg.Now(), ev))
}

func (m *Master) register(c *link.Conn) ConnID {
	m.last++
	m.conns[m.last] = &connection{Conn: c}
	c.Tag = m.last
	return m.last
}

// perform carries out the effects of a step.
func (m *Master) perform(effects []Effect) {
	for i := range effects {
		e := &effects[i]
		c := m.conns[e.Conn]
		switch e.Op {
		case Notify:
			if c != nil {
				m.hold(c)
				c.Send(e.Packet)
				m.checkOutput(c)
			}
		case Ask:
			if c != nil {
				m.hold(c)
				c.Ask(e.Packet.(proto.Request), e.Tag)
			}
		case Answer:
			if c != nil {
				m.hold(c)
				c.Answer(e.ID, e.Packet)
			}
		case Abort:
			if c != nil {
				c.Abort()
			}
		case Close:
			if c != nil {
				c.Close()
			}
		case GiveUp:
			if c != nil {
				c.GiveUp(e.Silence)
			}
		case Probe:
			if c != nil {
				conn := c.Conn
				conn.Probe(m.probeTime(), func(alive bool) { m.put(input{probed: conn, alive: alive}) })
			}
		case Name:
			if c != nil {
				c.SetPeer(e.Text)
			}
		case Wake:
			m.wake = time.After(e.Delay)
		case Dial:
			addr := e.Addr
			m.tasks.Go(func() { m.dial(addr) })
		case StopListening:
			m.tasks.Go(m.stopListening)
		case SaveMasters:
			if m.cfg.MastersKnown != nil {
				m.cfg.MastersKnown(e.Masters)
			}
		case Identify:
			if m.cfg.Identified != nil {
				m.cfg.Identified(e.Self)
			}
		case FlushLogs:
			if m.cfg.FlushLog != nil {
				m.cfg.FlushLog()
			}
		case Log:
			m.cfg.Log.Log(context.Background(), e.Line.Level, e.Line.Text, e.Line.Attrs...)
		case Exit:
			m.ended, m.err = true, e.Err
		}
	}
}

// defaultProbe is how long a peer whose place is claimed has time for a sign of life,
// if PeerTimeout does not say it.
const defaultProbe = link.DefaultPeerTimeout / 2

// probeTime is less than the peer that waits for the outcome waits.
func (m *Master) probeTime() time.Duration {
	if m.cfg.PeerTimeout < 0 {
		return defaultProbe
	}
	return m.cfg.PeerTimeout / 2
}

// dial connects to another master, and reports how it went before anything that
// arrives on the connection.
func (m *Master) dial(a proto.Address) {
	known := make(chan struct{})
	defer close(known)
	cfg := m.links
	cfg.Greeted = true
	cfg.Deliver = func(ev link.Event) {
		<-known
		m.links.Deliver(ev)
	}
	c, err := m.dialer.Dial(m.dials, a, cfg)
	if err != nil {
		m.cfg.Log.Debug("master not reached", "addr", a.String(), "err", err)
		m.put(input{dialed: a})
		return
	}
	select {
	case m.inbox <- input{dialed: a, conn: c}:
	case <-m.done:
		c.Close()
	}
}
