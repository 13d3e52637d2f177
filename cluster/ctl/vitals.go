package ctl

import (
	"context"
	"fmt"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/vitals"
)

// Vitals are what an admin knows of the nodes of its cluster beyond the protocol of all
// implementations.
type Vitals struct {
	Cluster string // its name; "" if the admin tells nothing of all this, as one of the Python implementation
	Nodes   map[proto.NodeID]vitals.Node
	Pack    vitals.Pack
	Check   *vitals.Check // nil: none is known
}

// vitalsTimeout bounds how long an admin may take to tell what it knows.
const vitalsTimeout = 20 * time.Second

// Vitals returns what the admin knows of the nodes. Nothing in the protocol says whether an
// admin understands the question, and one that does not closes the connection: it is put on
// another one.
func (c *Client) Vitals(ctx context.Context) (*Vitals, error) {
	c.m.Lock()
	silent := c.silent
	c.m.Unlock()
	if silent {
		return &Vitals{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, vitalsTimeout)
	defer cancel()
	reports := make(chan *proto.NotifyMonitorInformation, 64)
	done := make(chan struct{})
	defer close(done)
	cfg := c.cfg
	cfg.Deliver = func(ev link.Event) {
		if p, ok := ev.Packet.(*proto.NotifyMonitorInformation); ok {
			select {
			case reports <- p:
			case <-done:
			}
			return
		}
		link.HandleBase(ev)
	}
	conn, err := link.Dial(ctx, c.addr, cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Abort()
	conn.Send((&vitals.Message{Topic: vitals.Wanted}).Packet())
	v := &Vitals{Nodes: map[proto.NodeID]vitals.Node{}}
	for {
		var p *proto.NotifyMonitorInformation
		select {
		case p = <-reports:
		case <-conn.Done():
			if len(reports) > 0 {
				continue
			}
			if v.Cluster == "" && len(v.Nodes) == 0 {
				c.m.Lock()
				c.silent = true
				c.m.Unlock()
				return &Vitals{}, nil
			}
			return nil, fmt.Errorf("while the nodes were asked about: %w", link.ErrClosed)
		case <-ctx.Done():
			return nil, fmt.Errorf("while the nodes were asked about: %w", ctx.Err())
		}
		m, ok, err := vitals.Parse(p)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		switch m.Topic {
		case vitals.Reported:
			v.Nodes[m.Node.ID] = m.Node
		case vitals.Packed:
			v.Pack = m.Pack
		case vitals.Checked:
			v.Check = &m.Check
		case vitals.Known:
			v.Cluster = m.Cluster
			return v, nil
		}
	}
}
