package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/neodoor"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// noZEO is the value of --zeo without which ZEO clients are served.
const noZEO = "none"

// listenZEO opens the port for ZEO clients, nil if they are not served.
func (o *options) listenZEO(ctx context.Context) (net.Listener, error) {
	if o.zeo == noZEO {
		return nil, nil
	}
	addr, err := address(ctx, "zeo", o.zeo)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("--zeo: %w", err)
	}
	return l, nil
}

// zeoDoor serves the cluster to ZEO clients.
type zeoDoor struct {
	storage *neodoor.Cluster
	server  *zeo.Server
	served  chan error
}

// openZEO begins to serve; the context is that of all the time until close, and
// failed is called if accepting connections fails.
func openZEO(ctx context.Context, o *options, log *cli.Log, cluster *simple.Cluster, l net.Listener, failed func()) (d *zeoDoor, err error) {
	cfg := zeo.Config{Log: log.With("part", "zeo")}
	if o.TLS != (cli.TLS{}) {
		// Who may not talk to the nodes must not get in here.
		if cfg.TLS, err = zeo.LoadTLS(o.CA, o.Cert, o.Key); err != nil {
			return nil, err
		}
	}
	tlsConfig, err := o.TLSConfig()
	if err != nil {
		return nil, err
	}
	links := log.LinkConfig(nil)
	d = &zeoDoor{served: make(chan error, 1)}
	d.storage, err = neodoor.Open(ctx, client.Config{
		Cluster: cluster.Name(), Masters: []proto.Address{cluster.Master()}, TLS: tlsConfig, ReadOnly: o.backupOf != "",
		Log: links.Log, Record: links.Record, FlushLog: log.FlushFile,
	})
	if err != nil {
		return nil, err
	}
	cfg.Storages = map[string]zeo.Storage{"1": d.storage}
	if d.server, err = zeo.New(ctx, cfg); err != nil {
		return nil, errors.Join(err, d.storage.Close())
	}
	go func() {
		err := d.server.Serve(l)
		if err != nil {
			failed()
		}
		d.served <- err
	}()
	return d, nil
}

// close disconnects all ZEO clients, after the commits under way.
func (d *zeoDoor) close() error {
	d.server.Close()
	err := errors.Join(<-d.served, d.storage.Close())
	if err != nil {
		err = fmt.Errorf("serving ZEO clients: %w", err)
	}
	return err
}

// loadWithZEO returns two lines of Python that show the root object.
func loadWithZEO(o *options, l net.Listener) string {
	addr := l.Addr().(*net.TCPAddr)
	host := addr.IP.String()
	if addr.IP.IsUnspecified() {
		host = "localhost"
	}
	more, options := "", ""
	if o.TLS != (cli.TLS{}) {
		more = fmt.Sprintf("import ssl; tls = ssl.create_default_context(cafile=%s); tls.check_hostname = False; tls.load_cert_chain(%s, %s); ",
			pythonText(o.CA), pythonText(o.Cert), pythonText(o.Key))
		options = ", ssl=tls"
	}
	if o.backupOf != "" {
		options += ", read_only=True" // a client that may write is refused
	}
	return fmt.Sprintf("  %simport ZEO; db = ZEO.DB((%s, %d)%s)\n  print(list(db.open().root()))\n", more, pythonText(host), addr.Port, options)
}

var pythonEscapes = strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`)

// pythonText returns a text as Python writes it.
func pythonText(s string) string { return "'" + pythonEscapes.Replace(s) + "'" }
