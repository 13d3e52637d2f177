package master

import (
	"log/slog"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// ConnID names a connection between a [Machine] and its shell.
type ConnID uint64

// EventKind says what has happened.
type EventKind uint8

const (
	nothing       EventKind = iota
	Accepted                // a peer has connected: Conn
	Connected               // a Dial has succeeded: Conn, Addr
	ConnectFailed           // a Dial has not: Addr
	Received                // a request or a notification: Conn, ID, Packet
	Answered                // the answer, or an Error, to Request: Conn, Packet, Tag
	Closed                  // the connection has ended, not by our will: Conn
	StopAsked               // the process is to end in order
	Silent                  // nothing arrives on Conn, since Silence: it may be given up
	Woken                   // it is time: see Wake
	Probed                  // the outcome of a Probe of Conn: Alive, Beats
)

// Event is what a [Machine] is told, by kind.
type Event struct {
	Kind    EventKind
	Conn    ConnID
	Addr    proto.Address
	ID      uint32
	Packet  proto.Packet
	Request proto.Request
	Tag     any // of the Ask
	Silence time.Duration
	Err     error // why the connection has ended; may be nil
	Alive   bool  // the peer has given a sign of life
	Beats   bool  // it does so by itself, however busy it is
}

// Op says what the shell must do.
type Op uint8

const (
	Notify        Op = iota // send Packet on Conn
	Ask                     // send Packet, a request, on Conn; its answer comes back with Tag
	Answer                  // send Packet on Conn as the answer to the request ID
	Abort                   // send what is queued on Conn, then close it; it gives no event any more
	Close                   // close Conn at once; it gives no event any more
	GiveUp                  // close Conn, which is silent since Silence; it gives no event any more
	Probe                   // ask the peer of Conn for a sign of life; the outcome comes as Probed
	Name                    // Text is the name of the peer of Conn from now on
	Dial                    // connect to Addr, not more often than once per second
	Wake                    // tell Woken after Delay, instead of what was ordered before
	StopListening           // accept no connection any more
	Identify                // the id of this master is Self
	SaveMasters             // remember Masters for the next start
	FlushLogs               // make the logs complete on disk
	Log                     // write a line to the log
	Exit                    // carry out what precedes, flush connections, and end with Err
)

// Effect is one thing a [Machine] wants done, by Op.
type Effect struct {
	Op      Op
	Conn    ConnID
	ID      uint32
	Packet  proto.Packet
	Tag     any
	Addr    proto.Address
	Masters []proto.Address
	Text    string
	Self    proto.NodeID
	Silence time.Duration
	Delay   time.Duration
	Line    *Line
	Err     error
}

// Line is one line of log.
type Line struct {
	Level slog.Level
	Text  string
	Attrs []any
}
