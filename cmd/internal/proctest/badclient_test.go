package proctest

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// badClient is a client that a master has accepted, and that says to the storage
// whatever it likes.
type badClient struct {
	t       *testing.T
	master  *link.Conn
	storage *link.Conn
	socket  net.Conn // of storage
	answers chan proto.Packet
}

// outside is the id of a request that is written to the socket.
const outside = 1000

// dialed remembers the socket of a connection.
type dialed struct{ *badClient }

func (d dialed) Dial(ctx context.Context, addr string) (nc net.Conn, err error) {
	d.socket, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
	return d.socket, err
}

func (d dialed) Listen(context.Context, string) (net.Listener, error) {
	return nil, errors.ErrUnsupported
}

// joinBadly identifies a client to the master and to the only storage.
func (c *Cluster) joinBadly(t *testing.T) *badClient {
	t.Helper()
	b := &badClient{t: t, answers: make(chan proto.Packet, 1)}
	masters, err := conf.ParseMasters(c.Masters)
	if err != nil {
		t.Fatal(err)
	}
	nodes := make(chan []proto.Node, 100)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found, err := bootstrap.Find(ctx, bootstrap.Config{
		Masters:  bootstrap.NewMasters(proto.Address(masters[0])),
		Identify: proto.RequestIdentification{Type: proto.Client, Cluster: c.Name, Extra: map[string]proto.Value{}},
		Link: link.Config{Deliver: func(ev link.Event) {
			if p, ok := ev.Packet.(*proto.NotifyNodeInformation); ok {
				nodes <- p.Nodes
			}
			link.HandleBase(ev)
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.master = found.Conn
	t.Cleanup(b.master.Close)
	known := <-nodes // ourselves first
	var storage proto.Address
	for _, n := range known {
		if n.Type == proto.Storage {
			storage = n.Addr
		}
	}
	record := func(sent bool, _ string, id uint32, p proto.Packet) {
		if !sent && id == outside {
			b.answers <- p
		}
	}
	if b.storage, err = link.Dial(ctx, storage, link.Config{Network: dialed{b}, Record: record}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.storage.Close)
	ask[*proto.AcceptIdentification](b, b.storage, &proto.RequestIdentification{
		Type: proto.Client, ID: found.ID, Cluster: c.Name, IDTimestamp: known[0].IDTimestamp, Extra: map[string]proto.Value{},
	})
	return b
}

// call makes a request and returns the answer, or the refusal as an error.
func (b *badClient) call(conn *link.Conn, req proto.Request) (proto.Packet, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	return conn.Call(ctx, req)
}

// ask makes a request that has nothing bad in it.
func ask[A proto.Packet](b *badClient, conn *link.Conn, req proto.Request) A {
	b.t.Helper()
	p, err := b.call(conn, req)
	a, ok := p.(A)
	if !ok {
		b.t.Fatalf("%T answered with %T, %v", req, p, err)
	}
	return a
}

// begin begins a transaction in which an object is stored and locked.
func (b *badClient) begin(oid tid.OID, serial tid.TID) tid.TID {
	b.t.Helper()
	ttid := ask[*proto.AnswerBeginTransaction](b, b.master, &proto.AskBeginTransaction{}).TTID
	b.lock(storeOf(ttid, oid, serial))
	return ttid
}

func (b *badClient) lock(store *proto.AskStoreObject) {
	b.t.Helper()
	if a := ask[*proto.AnswerStoreObject](b, b.storage, store); a.Conflict.OK {
		b.t.Fatalf("object %v is not locked: %v", store.OID, a.Conflict.V)
	}
}

func storeOf(ttid tid.TID, oid tid.OID, serial tid.TID) *proto.AskStoreObject {
	data := []byte("bad")
	return &proto.AskStoreObject{
		OID: oid, Serial: serial, TTID: ttid,
		ObjectData: proto.ObjectData{Checksum: sha1.Sum(data), Data: data},
	}
}

// A client that the master has accepted is not trusted with what it sends. What
// no client sends is refused and ends the link, and what the client had locked is
// free for others: by the end of the link to the storage alone, or, once it has
// voted, by that of the one to the master.
func TestBadClients(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Options{})
	good, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	const oid = 1
	var serial tid.TID
	commit := func(t *testing.T) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		tx, err := good.Begin(ctx, client.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data := "good after " + serial.String()
		if err = tx.Store(ctx, oid, serial, []byte(data)); err == nil {
			serial, err = tx.Finish(ctx, nil)
		}
		if err != nil {
			t.Fatalf("commit of the same object: %v", err)
		}
		check(t, c, oid, serial, data)
	}
	commit(t)

	// unknown stores in a transaction that the master has not begun, and votes.
	unknown := func(vote func(ttid tid.TID) proto.Request) func(*badClient) (*link.Conn, error) {
		return func(b *badClient) (*link.Conn, error) {
			ttid := ask[*proto.AnswerBeginTransaction](b, b.master, &proto.AskBeginTransaction{}).TTID + 4
			b.lock(storeOf(ttid, oid, serial))
			if _, err := b.call(b.storage, vote(ttid)); err != nil {
				b.t.Fatalf("vote: %v", err)
			}
			_, err := b.call(b.master, &proto.AskFinishTransaction{TTID: ttid, OIDs: []tid.OID{oid}})
			return b.master, err
		}
	}
	// store sends a second store, after one that is as it should be.
	store := func(spoil func(*proto.AskStoreObject)) func(*badClient) (*link.Conn, error) {
		return func(b *badClient) (*link.Conn, error) {
			p := storeOf(b.begin(oid, serial), oid, serial)
			spoil(p)
			_, err := b.call(b.storage, p)
			return b.storage, err
		}
	}
	for _, x := range []struct {
		name string
		says string // in the refusal; "": the link ends without a word
		send func(*badClient) (*link.Conn, error)
	}{
		{"a wrong checksum", "checksum differs", store(func(p *proto.AskStoreObject) { p.Checksum[0]++ })},
		{"a checksum of nothing for data", "checksum differs", store(func(p *proto.AskStoreObject) { p.Checksum = proto.ZeroHash })},
		{"an unknown compression", "unknown compression", store(func(p *proto.AskStoreObject) { p.Compression = 2 })},
		{"the last compression", "unknown compression", store(func(p *proto.AskStoreObject) { p.Compression = 255 })},
		{"an oid out of range", "object id out of range", store(func(p *proto.AskStoreObject) { p.OID = tid.MaxOID + 1 })},
		{"no oid", "object id out of range", store(func(p *proto.AskStoreObject) { p.OID = tid.InvalidOID })},
		{"a transaction out of range", "transaction id out of range", store(func(p *proto.AskStoreObject) { p.TTID = tid.Max + 1 })},
		{"no transaction", "transaction id out of range", store(func(p *proto.AskStoreObject) { p.TTID = tid.Zero })},
		{"a check of an oid out of range", "out of range", func(b *badClient) (*link.Conn, error) {
			ttid := b.begin(oid, serial)
			_, err := b.call(b.storage, &proto.AskCheckCurrentSerial{TTID: ttid, OID: tid.InvalidOID, Serial: serial})
			return b.storage, err
		}},
		{"a vote of nothing", "unknown transaction", func(b *badClient) (*link.Conn, error) {
			_, err := b.call(b.storage, &proto.AskVoteTransaction{TTID: b.begin(oid, serial) + 4})
			return b.storage, err
		}},
		{"metadata of an oid out of range", "out of range", func(b *badClient) (*link.Conn, error) {
			_, err := b.call(b.storage, &proto.AskStoreTransaction{TTID: b.begin(oid, serial), OIDs: []tid.OID{oid, tid.InvalidOID}})
			return b.storage, err
		}},
		{"an element that is too large", "", func(b *badClient) (*link.Conn, error) {
			p := storeOf(b.begin(oid, serial), oid, serial)
			p.Data = make([]byte, proto.MaxElement+1)
			p.Checksum = sha1.Sum(p.Data)
			b.socket.Write(proto.Append(nil, outside, p)) // the storage may hang up meanwhile
			select {
			case p := <-b.answers:
				return b.storage, fmt.Errorf("answered with %T", p)
			case <-b.storage.Done():
				return b.storage, nil
			}
		}},
		{"a finish of what never began", "is unknown", unknown(func(ttid tid.TID) proto.Request {
			return &proto.AskVoteTransaction{TTID: ttid}
		})},
		{"a finish of what never began, with metadata", "is unknown", unknown(func(ttid tid.TID) proto.Request {
			return &proto.AskStoreTransaction{TTID: ttid, OIDs: []tid.OID{oid}}
		})},
	} {
		ok := t.Run(x.name, func(t *testing.T) {
			b := c.joinBadly(t)
			conn, err := x.send(b)
			refusal, _ := errors.AsType[*proto.Error](err)
			switch {
			case x.says == "" && err != nil:
				t.Error(err)
			case x.says != "" && (refusal == nil || refusal.ErrCode != proto.ProtocolError || !strings.Contains(refusal.Message, x.says)):
				t.Errorf("refused with %v, want %q", err, x.says)
			}
			select {
			case <-conn.Done():
			case <-time.After(patience):
				t.Error("the link goes on")
			}
			commit(t)
		})
		if !ok {
			break // the object may be locked for good
		}
	}
	for _, p := range c.Nodes() {
		if !p.Running() {
			t.Errorf("%s has ended", p.Name)
		}
		if n := p.PeakMemory(t); n > memoryLimit {
			t.Errorf("%s needed %d MB", p.Name, n>>20)
		}
	}
}

// check verifies with a client of its own what is committed.
func check(t *testing.T, c *Cluster, oid tid.OID, serial tid.TID, data string) {
	t.Helper()
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	got, at, err := cl.Load(t.Context(), oid)
	if err != nil || at != serial || string(got) != data {
		t.Errorf("object %v: %q at %v, %v; want %q at %v", oid, got, at, err, data, serial)
	}
	if last, err := cl.LastTID(t.Context()); last != serial {
		t.Errorf("last TID %v, %v; want %v", last, err, serial)
	}
}
