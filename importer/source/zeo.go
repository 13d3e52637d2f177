package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/zeoclient"
	"github.com/neozodb/neo/importer/config"
)

// dialTimeout is how long one server may take to accept.
const dialTimeout = 10 * time.Second

// zeoSource is a storage of a ZEO server.
type zeoSource struct {
	*remote
	servers []zeoclient.Config
	last    atomic.Uint64 // the greatest last transaction that a server had
}

// zeoConn is a [connection].
type zeoConn struct{ *zeoclient.Client }

func (zeoConn) serves(context.Context) error { return nil }

func (c zeoConn) close() { c.Client.Close() }

func openZEO(ctx context.Context, section string, cfg *config.ZEO, opt Options) (Source, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("it names no server")
	}
	z := new(zeoSource)
	for _, addr := range cfg.Servers {
		c := zeoclient.Config{Network: "tcp", Addr: addr, Storage: cfg.Storage}
		if strings.Contains(addr, "/") {
			c.Network = "unix"
		}
		if cfg.CA != "" || cfg.Cert != "" || cfg.Key != "" {
			var err error
			if c.TLS, err = zeoTLS(cfg, addr, c.Network); err != nil {
				return nil, err
			}
		}
		z.servers = append(z.servers, c)
	}
	what := "ZEO server " + strings.Join(cfg.Servers, " or ")
	if cfg.Storage != "" && cfg.Storage != "1" {
		what += fmt.Sprintf(", storage %q", cfg.Storage)
	}
	z.remote = newRemote(section, what, opt, z.dial)
	if cfg.WaitTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.WaitTimeout)
		defer cancel()
	}
	err := z.open(ctx, opt.Lazy, func(err error) bool {
		_, refused := errors.AsType[*zeoclient.RemoteError](err)
		return refused || !cfg.Wait
	})
	if err != nil {
		return nil, err
	}
	return z, nil
}

// dial connects to the first server that serves what was there before.
func (z *zeoSource) dial(ctx context.Context) (connection, error) {
	var failures []error
	for i := range z.servers {
		c, err := z.dialServer(ctx, &z.servers[i])
		if err == nil {
			return zeoConn{c}, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failures = append(failures, err)
	}
	return nil, oneLine(failures)
}

// oneLine joins errors, of which there is at least one.
func oneLine(list []error) error {
	err := list[0]
	for _, e := range list[1:] {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}

func (z *zeoSource) dialServer(ctx context.Context, cfg *zeoclient.Config) (*zeoclient.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := zeoclient.Dial(ctx, *cfg)
	if err != nil {
		return nil, err
	}
	last, err := c.LastTID(ctx)
	if seen := tid.TID(z.last.Load()); err == nil && last < seen {
		err = &changedError{fmt.Sprintf("ZEO server %s: its last transaction is %v, and it was %v: it serves an older copy; put back what it was", cfg.Addr, last, seen)}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	z.saw(last)
	return c, nil
}

func (z *zeoSource) saw(last tid.TID) {
	for {
		seen := z.last.Load()
		if uint64(last) <= seen || z.last.CompareAndSwap(seen, uint64(last)) {
			return
		}
	}
}

// LastTID implements [txn.History].
func (z *zeoSource) LastTID(ctx context.Context) (tid.TID, error) {
	last, err := z.remote.LastTID(ctx)
	if err == nil {
		z.saw(last)
	}
	return last, err
}

// Extent implements [Source]. The server is asked for a new object id, which changes
// nothing that it keeps. One that is read-only refuses: then the greatest object is
// looked for.
func (z *zeoSource) Extent(ctx context.Context) (Extent, error) {
	// This first: what is committed up to it has ids that were given out before.
	last, err := z.LastTID(ctx)
	if err != nil {
		return Extent{}, err
	}
	if last == tid.Zero {
		return Extent{}, fmt.Errorf("%s: %w", z.what, ErrEmpty)
	}
	e := Extent{Last: last}
	e.Next, err = read(ctx, z.remote, z.newOID)
	if err == nil {
		if e.Next > tid.MaxOID {
			return Extent{}, fmt.Errorf("source %s: object ids from %v on cannot be imported, and %s gives out %v", z.section, tid.MaxOID, z.what, e.Next)
		}
		return e, nil
	}
	if ctx.Err() != nil || errors.Is(err, txn.ErrUnavailable) {
		return Extent{}, err
	}
	z.log.Info("the server gives out no object id, its greatest object is looked for", "server", z.what, "reason", err)
	found := false
	greatest, err := read(ctx, z.remote, func(ctx context.Context, conn connection) (oid tid.OID, err error) {
		oid, found, err = conn.(zeoConn).GreatestOID(ctx)
		return oid, err
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, txn.ErrUnavailable) {
		z.log.Warn("the server cannot be asked for its greatest object: all objects are read, which is slow", "server", z.what, "err", err)
		greatest, found, err = z.greatest(ctx)
	}
	if err != nil {
		return Extent{}, err
	}
	if found {
		if e.Next, err = next(greatest); err != nil {
			return Extent{}, fmt.Errorf("source %s: %s: %w", z.section, z.what, err)
		}
	}
	return e, nil
}

// newOID asks for an object id on a connection of its own, since only one that may write
// can. It goes to the server that the connection in use is with, as far as one can tell.
func (z *zeoSource) newOID(ctx context.Context, conn connection) (tid.OID, error) {
	for i := range z.servers {
		cfg := z.servers[i]
		if cfg.Addr != conn.(zeoConn).Addr() {
			continue
		}
		cfg.Writable = true
		c, err := zeoclient.Dial(ctx, cfg)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return c.NewOID(ctx)
	}
	return 0, fmt.Errorf("%s: not a server of this source", conn.(zeoConn).Addr())
}

// zeoTLS is the configuration of Python's client: the server has a certificate that one
// of the authorities has signed, for its host name unless it is reached by a path, or as
// the configuration says.
func zeoTLS(cfg *config.ZEO, addr, network string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.Cert != "" {
		key := cfg.Key
		if key == "" {
			key = cfg.Cert
		}
		own, err := tls.LoadX509KeyPair(cfg.Cert, key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", cfg.Cert, key, err)
		}
		c.Certificates = []tls.Certificate{own}
	}
	if cfg.CA != "" {
		var err error
		if c.RootCAs, err = authorities(cfg.CA); err != nil {
			return nil, fmt.Errorf("authorities of servers: %w", err)
		}
	}
	c.ServerName = cfg.ServerName
	if c.ServerName == "" && network == "tcp" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		c.ServerName = host
	}
	if c.ServerName != "" && !cfg.AnyName {
		return c, nil
	}
	c.InsecureSkipVerify = true // the name does not matter; the rest is verified here
	c.VerifyConnection = func(s tls.ConnectionState) error {
		o := x509.VerifyOptions{Roots: c.RootCAs, Intermediates: x509.NewCertPool()}
		for _, i := range s.PeerCertificates[1:] {
			o.Intermediates.AddCert(i)
		}
		_, err := s.PeerCertificates[0].Verify(o)
		return err
	}
	return c, nil
}

// authorities reads the certificates of a PEM file, or of those in a directory.
func authorities(path string) (*x509.CertPool, error) {
	files := []string{path}
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if fi.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		files = nil
		for _, e := range entries {
			if !e.IsDir() {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	pool, found := x509.NewCertPool(), false
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		found = pool.AppendCertsFromPEM(b) || found
	}
	if !found {
		return nil, fmt.Errorf("%s: no certificate", path)
	}
	return pool, nil
}
