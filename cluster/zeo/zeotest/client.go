package zeotest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// Client is a ZEO client that does as it is told: it has no cache, and sends
// nonsense if asked to. It has one user.
type Client struct {
	Conn    net.Conn
	Msgpack bool
	// Notices are the notifications that came while answers were waited for.
	Notices []Message

	r   *bufio.Reader
	buf []byte
	id  int
}

// Message is what the server sends.
type Message struct {
	ID   any
	Flag any
	Name string
	Args any
}

// RemoteError is an exception of the server.
type RemoteError struct {
	Class string
	Data  any
}

func (e *RemoteError) Error() string { return fmt.Sprintf("%s%v", e.Class, e.Data) }

// Dial connects and says hello.
func Dial(addr string, msgpack bool) (*Client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return Hello(nc, msgpack)
}

// Hello begins to talk on a connection.
func Hello(nc net.Conn, msgpack bool) (*Client, error) {
	c := &Client{Conn: nc, Msgpack: msgpack, r: bufio.NewReaderSize(nc, 64<<10)}
	proposed, err := c.ReadFrame()
	if err == nil && len(proposed) != 2 {
		err = fmt.Errorf("hello %q", proposed)
	}
	if err == nil {
		answer := "Z5"
		if msgpack {
			answer = "M5"
		}
		err = c.WriteFrame([]byte(answer))
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// Register says hello and chooses storage 1.
func Register(addr string, msgpack bool) (*Client, error) {
	c, err := Dial(addr, msgpack)
	if err != nil {
		return nil, err
	}
	if _, err := c.Call("register", "1", false); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close closes the connection.
func (c *Client) Close() { c.Conn.Close() }

// WriteFrame sends a frame.
func (c *Client) WriteFrame(b []byte) error {
	c.buf = binary.BigEndian.AppendUint32(c.buf[:0], uint32(len(b)))
	c.buf = append(c.buf, b...)
	_, err := c.Conn.Write(c.buf)
	return err
}

// ReadFrame reads a frame, for at most two minutes.
func (c *Client) ReadFrame() ([]byte, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return nil, err
	}
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err := io.ReadFull(c.r, b)
	return b, err
}

// Send sends a call and returns its id.
func (c *Client) Send(async bool, method string, args ...any) (int, error) {
	id := 0
	if !async {
		c.id++
		id = c.id
	}
	return id, c.SendAs(id, async, method, args...)
}

// SendAs sends a call with an id of any type.
func (c *Client) SendAs(id any, async bool, method string, args ...any) error {
	return c.WriteFrame(Encode(c.Msgpack, Tuple{id, async, method, Tuple(args)}))
}

// Async makes a call that has no answer.
func (c *Client) Async(method string, args ...any) error {
	_, err := c.Send(true, method, args...)
	return err
}

// Read reads one message.
func (c *Client) Read() (Message, error) {
	b, err := c.ReadFrame()
	if err != nil {
		return Message{}, err
	}
	v, err := Decode(c.Msgpack, b)
	if err != nil {
		return Message{}, err
	}
	t, ok := v.(Tuple)
	if !ok || len(t) != 4 {
		return Message{}, fmt.Errorf("message %v", v)
	}
	name, ok := t[2].(string)
	if !ok {
		return Message{}, fmt.Errorf("message %v", v)
	}
	return Message{t[0], t[1], name, t[3]}, nil
}

// Wait reads until the answer to a call has come. Exceptions are a *[RemoteError].
func (c *Client) Wait(id any) (any, error) {
	for {
		m, err := c.Read()
		if err != nil {
			return nil, err
		}
		if m.Name != ".reply" {
			c.Notices = append(c.Notices, m)
			continue
		}
		if fmt.Sprint(m.ID) != fmt.Sprint(id) {
			return nil, fmt.Errorf("answer to %v, want %v", m.ID, id)
		}
		if m.Flag == int64(0) {
			return m.Args, nil
		}
		pair, ok := m.Args.(Tuple)
		if !ok || len(pair) != 2 {
			return nil, fmt.Errorf("exception %v", m.Args)
		}
		class, _ := pair[0].(string)
		return nil, &RemoteError{class, pair[1]}
	}
}

// Call makes a call and waits for its answer.
func (c *Client) Call(method string, args ...any) (any, error) {
	id, err := c.Send(false, method, args...)
	if err != nil {
		return nil, err
	}
	return c.Wait(id)
}

// LoadBefore loads an object.
func (c *Client) LoadBefore(oid tid.OID, before tid.TID) (data []byte, serial, next tid.TID, err error) {
	id := Tuple{oid.Bytes(), before.Bytes()}
	if err := c.SendAs(id, false, "loadBefore", oid, before); err != nil {
		return nil, 0, 0, err
	}
	v, err := c.Wait(id)
	if err != nil {
		return nil, 0, 0, err
	}
	t, ok := v.(Tuple)
	if !ok || len(t) != 3 {
		return nil, 0, 0, fmt.Errorf("loadBefore returned %v", v)
	}
	if n, ok := t[2].([]byte); ok {
		next = tid.FromBytes(n)
	}
	return t[0].([]byte), tid.FromBytes(t[1].([]byte)), next, nil
}

// Store is one object to commit.
type Store struct {
	OID  tid.OID
	Base tid.TID
	Data []byte
}

// ErrConflict reports that a commit met conflicts, and was aborted.
var ErrConflict = errors.New("conflict")

// Vote begins a transaction, stores and votes.
func (c *Client) Vote(txn int, stores ...Store) (any, error) {
	if err := c.Async("tpc_begin", txn, []byte("user"), []byte("test"), Dict{}, nil, " "); err != nil {
		return nil, err
	}
	for _, s := range stores {
		if err := c.Async("storea", s.OID, s.Base, s.Data, txn); err != nil {
			return nil, err
		}
	}
	return c.Call("vote", txn)
}

// Commit commits one transaction.
func (c *Client) Commit(stores ...Store) (tid.TID, error) {
	c.id++
	txn := 1<<40 + c.id
	v, err := c.Vote(txn, stores...)
	if err != nil {
		return 0, err
	}
	if n := length(v); n != 0 {
		if _, err := c.Call("tpc_abort", txn); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("%w: %v", ErrConflict, v)
	}
	if v, err = c.Call("tpc_finish", txn); err != nil {
		return 0, err
	}
	b, ok := v.([]byte)
	if !ok || len(b) != 8 {
		return 0, fmt.Errorf("tpc_finish returned %v", v)
	}
	return tid.FromBytes(b), nil
}

func length(v any) int {
	switch v := v.(type) {
	case Tuple:
		return len(v)
	case List:
		return len(v)
	}
	return -1
}
