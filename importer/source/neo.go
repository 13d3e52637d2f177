package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/importer/config"
)

// neoCache is the size of the cache of a client: what is read here is mostly read once.
const neoCache = 16 << 20

// neoSource is another cluster. Its client finds a master again by itself.
type neoSource struct{ *remote }

// neoConn is a [connection].
type neoConn struct{ *client.Client }

func (c neoConn) serves(ctx context.Context) error {
	_, err := c.Client.LastTID(ctx)
	return err
}

func (neoConn) Done() <-chan struct{} { return nil }

func (neoConn) Err() error { return nil }

func (c neoConn) close() { c.Client.Close() }

func openNEO(ctx context.Context, section string, cfg *config.NEO, opt Options) (Source, error) {
	masters, err := conf.ParseMasters(cfg.Masters)
	if err == nil && len(masters) == 0 {
		err = errors.New("it names no master")
	}
	if err != nil {
		return nil, fmt.Errorf("masters of cluster %q: %w", cfg.Name, err)
	}
	c := client.Config{Cluster: cfg.Name, ReadOnly: true, CacheSize: neoCache, Log: opt.Log}
	if cfg.CA != "" || cfg.Cert != "" || cfg.Key != "" {
		if c.TLS, err = link.LoadTLS(cfg.CA, cfg.Cert, cfg.Key); err != nil {
			return nil, err
		}
	}
	n := new(neoSource)
	n.remote = newRemote(section, fmt.Sprintf("cluster %q with master %s", cfg.Name, cfg.Masters), opt, func(ctx context.Context) (connection, error) {
		resolved, err := conf.ResolveAll(ctx, masters)
		if err != nil {
			return nil, err
		}
		c := c
		for _, a := range resolved {
			c.Masters = append(c.Masters, proto.Address(a))
		}
		cl, err := client.Open(ctx, c)
		if err != nil {
			return nil, err
		}
		return neoConn{cl}, nil
	})
	c.OnLost = func() {
		n.away(errors.New("the primary master was lost"))
		n.wg.Go(n.connectAgain)
	}
	// The client goes on by itself as long as another attempt may succeed.
	if err := n.open(ctx, opt.Lazy, func(error) bool { return true }); err != nil {
		return nil, err
	}
	return n, nil
}

// connectAgain uses the client until a master answers: it connects only when it is used.
func (n *neoSource) connectAgain() {
	for n.ctx.Err() == nil {
		n.mu.Lock()
		conn, ok := n.conn.(neoConn)
		n.mu.Unlock()
		if ok {
			err := conn.Sync(n.ctx)
			if n.ctx.Err() == nil {
				n.away(err)
			}
			if err == nil {
				return
			}
		}
		select {
		case <-time.After(firstPause):
		case <-n.ctx.Done():
		}
	}
}

// Extent implements [Source]. The ids are those that the master has given out. A cluster
// in backup mode does not tell them: then all objects are listed.
func (n *neoSource) Extent(ctx context.Context) (Extent, error) {
	// This first: what is committed up to it has ids that were given out before.
	last, err := n.LastTID(ctx)
	if err != nil {
		return Extent{}, err
	}
	if last == tid.Zero {
		return Extent{}, fmt.Errorf("%s: %w", n.what, ErrEmpty)
	}
	found := false
	greatest, err := read(ctx, n.remote, func(ctx context.Context, conn connection) (oid tid.OID, err error) {
		oid, found, err = conn.(neoConn).LastOID(ctx)
		return oid, err
	})
	if errors.Is(err, txn.ErrReadOnly) {
		n.log.Warn("a cluster in backup mode does not tell its last object id: all objects are listed, which may be slow", "server", n.what)
		greatest, found, err = n.greatest(ctx)
	}
	if err != nil {
		return Extent{}, err
	}
	e := Extent{Last: last}
	if found {
		if e.Next, err = next(greatest); err != nil {
			return Extent{}, fmt.Errorf("source %s: %s: %w", n.section, n.what, err)
		}
	}
	return e, nil
}
