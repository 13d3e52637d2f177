package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// Backup is how far a cluster follows another one.
type Backup struct {
	Cluster string // a backup that the admin watches; "": the cluster of the admin itself
	following.Report
}

// ErrNoBackup is returned when no backup is known.
var ErrNoBackup = errors.New("no backup reports how far it is: neither is this cluster a backup of another one, nor is one watched that reports; " +
	"nodes of the Python implementation do not, and print summary says what is known of them")

// Backups returns how far this cluster follows another one, if it does, and then the
// backups that its admin watches; at least one, else ErrNoBackup.
func (c *Client) Backups(ctx context.Context) (list []Backup, err error) {
	if err := c.findBackup(ctx); err != nil {
		return nil, err
	}
	c.conn.Send((&following.Message{Topic: following.Wanted}).Packet())
	for {
		m, err := c.backupMessage(ctx)
		if err != nil {
			return nil, err
		}
		switch m.Topic {
		case following.Reported:
			list = append(list, Backup{m.Cluster, m.Report})
		case following.Known:
			if list == nil {
				return nil, ErrNoBackup
			}
			return list, nil
		}
	}
}

// OrderBackup gives an order to a backup cluster. A refusal is a [*proto.Error].
func (c *Client) OrderBackup(ctx context.Context, o following.Order) error {
	if err := c.findBackup(ctx); err != nil {
		return err
	}
	c.orders++
	c.conn.Send(o.Packet(c.orders))
	for {
		m, err := c.backupMessage(ctx)
		if err != nil {
			return err
		}
		if m.Topic != following.Answered || m.Number != c.orders {
			continue
		}
		if m.Text != "" {
			return proto.Errorf(proto.Denied, "%s", m.Text)
		}
		return nil
	}
}

// findBackup looks for a backup in the summary. Only an admin that has one there understands
// messages about backups: one of the Python implementation closes the link.
func (c *Client) findBackup(ctx context.Context) error {
	if c.following {
		return nil
	}
	p, err := c.Summary(ctx)
	if err != nil {
		return err
	}
	if c.following = HasBackup(p); !c.following {
		return ErrNoBackup
	}
	return nil
}

// HasBackup reports whether a summary tells of a backup that reports how far it is.
func HasBackup(p *proto.AnswerMonitorInformation) bool {
	for line := range strings.Lines(p.Summary) {
		if strings.HasPrefix(strings.TrimSpace(line), following.SummaryPrefix) {
			return true
		}
	}
	return false
}

// backupMessage waits for the next message about backups.
func (c *Client) backupMessage(ctx context.Context) (*following.Message, error) {
	for {
		select {
		case p := <-c.reports:
			m, ok, err := following.Parse(p)
			if err != nil {
				return nil, err
			}
			if ok {
				return m, nil
			}
		case <-c.conn.Done():
			return nil, fmt.Errorf("while a backup was asked about, which goes on: %w", link.ErrClosed)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
