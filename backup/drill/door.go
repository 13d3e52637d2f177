package drill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/serve"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/zeoclient"
)

// rootOID is the object that all others are reached from.
const rootOID tid.OID = 0

// maxFrame is the greatest answer of the door: that with the largest object a backup has.
const maxFrame = snapshot.MaxRecord + 1<<20

// door is the repository as "neobackup serve" shows it, and a client of it.
type door struct {
	db     *reader.Database
	client *zeoclient.Client
	stop   context.CancelFunc
	served chan error
}

// openDoor serves the history up to the moment and connects to it.
func (d *run) openDoor(ctx context.Context) (_ *door, err error) {
	s := &door{served: make(chan error, 1)}
	if s.db, err = reader.Open(ctx, d.repo, d.keys, d.state, reader.Options{At: d.at, CacheDir: d.path("index"), Log: d.o.Log}); err != nil {
		return nil, err
	}
	nw := newNetwork()
	l, err := nw.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	var serving context.Context
	serving, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	go func() { s.served <- serve.Serve(serving, s.db, []net.Listener{l}, serve.Options{}) }() // the drill tells what is wrong
	addr := l.Addr().String()
	s.client, err = zeoclient.Dial(ctx, zeoclient.Config{Addr: addr, MaxFrame: maxFrame, Dial: func(ctx context.Context) (net.Conn, error) { return nw.Dial(ctx, addr) }})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// load returns an object as a client of the repository gets it.
func (s *door) load(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	rev, err := s.client.LoadBefore(ctx, oid, at+1)
	if err != nil && ctx.Err() == nil && !absent(err) {
		// The server knows more about it than a client is told.
		if _, cause := s.db.LoadBefore(ctx, oid, at+1); cause != nil {
			err = cause
		}
	}
	return rev, err
}

// absent reports an object that does not exist.
func absent(err error) bool {
	return errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject)
}

func (s *door) close() error {
	if s.client != nil {
		s.client.Close()
	}
	s.stop()
	return errors.Join(<-s.served, s.db.Close())
}

// firstRead reads the root object through the way of a client, and takes the time.
func (d *run) firstRead(ctx context.Context) error {
	for {
		start := time.Now()
		var err error
		if d.door, err = d.openDoor(ctx); err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		d.root, err = d.door.load(ctx, rootOID, d.at)
		d.proof.FirstReadMS = (d.opened + time.Since(start)).Milliseconds()
		if absent(err) && !d.res.Head && d.o.At == tid.Zero {
			// The moment that was chosen is before the database had a root.
			if err := d.door.close(); err != nil {
				return err
			}
			d.door = nil
			if d.at, err = newest(d.state); err != nil {
				return err
			}
			d.proof.TID, d.res.Head = d.at, d.at == d.state.Head()
			if !d.res.Head {
				d.o.At = d.at // once
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("the root object, as a client of the repository gets it: %w", err)
		}
		// The last transaction says the same as a time after it, if it is as exact.
		if t := d.door.db.At(); t != tid.Zero && d.o.At == tid.Zero && d.state.Exact(t) == nil {
			d.at, d.proof.TID = t, t
		}
		return nil
	}
}
