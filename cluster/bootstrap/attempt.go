package bootstrap

import (
	"errors"
	"fmt"
	"sync"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// attempt receives the events of a connection until a master has accepted us.
type attempt struct {
	cfg  *Config
	addr proto.Address
	done chan outcome // gets exactly one

	mu       sync.Mutex
	over     bool // done has its outcome
	accepted bool // only used by the connection's reader
}

// deliver is called by the connection's reader.
func (a *attempt) deliver(ev link.Event) {
	if ev.End() && errors.Is(ev.Err, link.ErrSilent) {
		a.cfg.Masters.hang(a.addr)
	}
	if a.accepted {
		if a.cfg.Link.Deliver != nil {
			a.cfg.Link.Deliver(ev)
		} else {
			link.HandleBase(ev)
		}
		return
	}
	switch p := ev.Packet.(type) {
	case nil:
		a.settle(outcome{err: ev.Err})
	case *proto.AcceptIdentification:
		a.accept(ev, p)
	case *proto.NotPrimaryMaster:
		a.cfg.Masters.Learn(p.Masters...)
		e := &NotPrimaryError{Masters: p.Masters}
		if p.Primary.OK && p.Primary.V < len(p.Masters) {
			e.Primary = p.Masters[p.Primary.V]
		}
		a.settle(outcome{err: e})
	case *proto.Error:
		a.settle(outcome{err: p})
	case *proto.Ping, *proto.CloseClient:
		link.HandleBase(ev)
	case *proto.FlushLog, *proto.NotifyNodeInformation:
		// A master may tell them to every peer. A complete list of nodes follows
		// the acceptance.
		if a.cfg.Log != nil {
			a.cfg.Log.Debug("ignored before we are accepted", "packet", proto.CodeName(p.Code()), "peer", ev.Conn.String())
		}
	default:
		a.settle(outcome{err: fmt.Errorf("%s before we were accepted", proto.CodeName(p.Code()))})
	}
}

func (a *attempt) accept(ev link.Event, p *proto.AcceptIdentification) {
	var err error
	switch {
	case p.Type != proto.Master:
		err = fmt.Errorf("accepted by a node of type %v, not by a master", p.Type)
	case p.YourID == 0:
		err = errors.New("accepted, but without a node id")
	}
	if err != nil {
		a.settle(outcome{err: err})
		return
	}
	res := &Result{Conn: ev.Conn, MasterID: p.ID, ID: p.YourID}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return
	}
	a.accepted, a.over = true, true
	if a.cfg.Accepted != nil {
		a.cfg.Accepted(res)
	}
	a.done <- outcome{res: res}
}

func (a *attempt) settle(out outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.over {
		a.over = true
		a.done <- out
	}
}

// giveUp ends the attempt with err, unless it has just ended otherwise.
func (a *attempt) giveUp(err error) outcome {
	a.settle(outcome{err: err})
	return <-a.done
}
