package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// Import is the import of a storage, as it last reported it.
type Import struct {
	Node proto.NodeID
	importing.Report
}

// ErrNoImport is returned when the admin knows of no import.
var ErrNoImport = errors.New("no storage reports an import; an admin or a primary master of the Python implementation cannot pass a report on: " +
	"if a storage imports nevertheless, its log says how far it is")

// Imports returns the imports of the cluster, in the order of the storages, at least one;
// else ErrNoImport.
func (c *Client) Imports(ctx context.Context) (list []Import, err error) {
	err = c.followImports(ctx, func(l []Import) bool {
		list = l
		return false
	})
	if err == nil && len(list) == 0 {
		err = ErrNoImport
	}
	return list, err
}

// FollowImports waits until nothing more happens to any import by itself, and returns
// them. There may be none for a while: their storage, or the primary master, is lost. If
// there is none at the beginning it returns ErrNoImport.
func (c *Client) FollowImports(ctx context.Context) (list []Import, err error) {
	err = c.followImports(ctx, func(l []Import) bool {
		list = l
		if c.Followed != nil {
			c.Followed(list)
		}
		return len(list) == 0 || slices.ContainsFunc(list, func(i Import) bool { return !i.State.Over() })
	})
	return list, err
}

// followImports calls f with the imports of the cluster, now and whenever they change,
// until it returns false.
func (c *Client) followImports(ctx context.Context, f func([]Import) (more bool)) error {
	if err := c.findImport(ctx); err != nil {
		return err
	}
	c.conn.Send((&importing.Message{Topic: importing.Wanted}).Packet())
	var list []Import
	known := false
	for {
		m, err := c.importMessage(ctx)
		if err != nil {
			return err
		}
		i, found := slices.BinarySearchFunc(list, m.Node, func(i Import, id proto.NodeID) int { return int(i.Node) - int(id) })
		switch m.Topic {
		case importing.Reported:
			if !found {
				list = slices.Insert(list, i, Import{})
			}
			list[i] = Import{m.Node, m.Report}
		case importing.Gone:
			if found {
				list = slices.Delete(list, i, i+1)
			}
		case importing.Known:
			known = true
		default:
			continue
		}
		if known && !f(slices.Clone(list)) {
			return nil
		}
	}
}

// OrderImport gives an order to the storage that imports. A refusal is a [*proto.Error].
func (c *Client) OrderImport(ctx context.Context, o importing.Order) error {
	if err := c.findImport(ctx); err != nil {
		return err
	}
	c.orders++
	c.conn.Send(o.Packet(0, c.orders))
	for {
		m, err := c.importMessage(ctx)
		if err != nil {
			return err
		}
		if m.Topic != importing.Answered || m.Number != c.orders {
			continue
		}
		if m.Text != "" {
			return proto.Errorf(proto.Denied, "%s", m.Text)
		}
		return nil
	}
}

// findImport looks for an import in the summary. Only an admin that has one there
// understands messages about imports: one of the Python implementation closes the link.
func (c *Client) findImport(ctx context.Context) error {
	if c.importing {
		return nil
	}
	p, err := c.Summary(ctx)
	if err != nil {
		return err
	}
	if c.importing = strings.Contains(p.Summary, "\n"+importing.SummaryPrefix); !c.importing {
		return ErrNoImport
	}
	return nil
}

// importMessage waits for the next message about imports.
func (c *Client) importMessage(ctx context.Context) (*importing.Message, error) {
	for {
		select {
		case p := <-c.reports:
			m, ok, err := importing.Parse(p)
			if err != nil {
				return nil, err
			}
			if ok {
				return m, nil
			}
		case <-c.conn.Done():
			return nil, fmt.Errorf("while an import was asked about, which goes on: %w", link.ErrClosed)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
