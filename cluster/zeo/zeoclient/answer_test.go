package zeoclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// answering is a server that answers calls with what answer returns for a method, in
// its encoding, and with None for nil.
func answering(nc net.Conn, msgpack bool, answer func(method string) []byte) {
	defer nc.Close()
	hello := "Z5"
	if msgpack {
		hello = "M5"
	}
	send := func(b []byte) bool {
		_, err := nc.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
		return err == nil
	}
	frames := wire.NewFrameReader(nc, 1<<20)
	if !send([]byte(hello)) {
		return
	}
	if _, err := frames.Next(); err != nil {
		return
	}
	d := wire.MessageDecoder{Msgpack: msgpack}
	for {
		frame, err := frames.Next()
		if err != nil {
			return
		}
		var m wire.Message
		if d.Decode(frame, &m) != nil {
			return
		}
		if m.Heartbeat || m.Async {
			answer(string(m.Name)) // told, not answered
			continue
		}
		value := answer(string(m.Name))
		whole := zeotest.Encode(msgpack, zeotest.Tuple{int(m.ID.N), 0, ".reply", nil})
		if value != nil {
			// In place of None, which is the last byte of msgpack, and stands before
			// the ends of the tuple and of the pickle.
			if msgpack {
				whole = append(whole[:len(whole)-1], value...)
			} else {
				whole = append(append(whole[:len(whole)-3], value...), 't', '.')
			}
		}
		if !send(whole) {
			return
		}
		// A notification is no answer: that follows.
		mine := wire.AnswerDecoder{Msgpack: msgpack}
		var a wire.Answer
		if mine.Decode(whole, &a) == nil && a.Notice && !send(zeotest.Encode(msgpack, zeotest.Tuple{int(m.ID.N), 0, ".reply", nil})) {
			return
		}
	}
}

// value encodes a value without what surrounds a pickle.
func value(msgpack bool, v any) []byte {
	b := zeotest.Encode(msgpack, v)
	if !msgpack {
		b = b[2 : len(b)-1]
	}
	return b
}

// Whatever a server answers, each read returns: with a result of its form, or an error.
func FuzzAnswers(f *testing.F) {
	oid, at := tid.OID(1), tid.TID(1<<40)
	for _, msgpack := range []bool{false, true} {
		for _, v := range []any{
			nil, at, []byte("data"), zeotest.Tuple{[]byte("data"), at, nil}, zeotest.Tuple{at, " ", []byte("u"), []byte("d"), zeotest.Dict{"k": 1}},
			zeotest.Tuple{oid, at, []byte("data"), nil}, zeotest.List{zeotest.Dict{"tid": at.Bytes(), "size": 7, "user_name": []byte("u"), "k": "v"}},
		} {
			f.Add(msgpack, value(msgpack, v))
		}
	}
	f.Fuzz(func(t *testing.T, msgpack bool, b []byte) {
		open := func() *Client {
			given := map[string]bool{}
			ours, theirs := net.Pipe()
			go answering(theirs, msgpack, func(method string) []byte {
				switch {
				case method == "register":
					return nil
				case method == "iterator_start" || method == "iterator_record_start":
					return value(msgpack, 1)
				case given[method]: // once: nothing goes on without end
					return nil
				}
				given[method] = true
				return b
			})
			c, err := newClient(t.Context(), ours, Config{Addr: "pipe"})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		for _, read := range []func(c *Client) error{
			func(c *Client) error { _, err := c.LastTID(t.Context()); return err },
			func(c *Client) error {
				r, err := c.LoadBefore(t.Context(), oid, tid.Max)
				if err == nil && r.Data == nil {
					t.Errorf("%x: revision without data", b)
				}
				return err
			},
			func(c *Client) error {
				r, err := c.LoadAt(t.Context(), oid, at)
				if err == nil && r.Data == nil {
					t.Errorf("%x: revision without data", b)
				}
				return err
			},
			func(c *Client) error { _, err := c.Revisions(t.Context(), oid, 10); return err },
			func(c *Client) error {
				for tr, err := range c.Transactions(t.Context(), 0, tid.Max) {
					if err != nil {
						return err
					}
					for _, err := range tr.Records {
						if err != nil {
							return err
						}
					}
				}
				return nil
			},
			func(c *Client) error {
				r, err := record(decoded(c, b))
				if err == nil && r == nil {
					t.Errorf("%x: no record", b)
				}
				return err
			},
		} {
			c := open()
			err := read(c)
			if r, ok := errors.AsType[*RemoteError](err); ok {
				t.Errorf("%x: exception %v", b, r) // the flag says result
			}
			c.Close()
		}
		// The same as an exception.
		var d wire.AnswerDecoder
		d.Msgpack = msgpack
		var a wire.Answer
		if d.Decode(b, &a) == nil {
			if err := exception(&a.Value); err == nil {
				t.Errorf("%x: no error", b)
			}
		}
	})
}

// decoded returns the value b, None if it is none.
func decoded(c *Client, b []byte) *wire.Value {
	var v wire.Value
	if c.msgpack {
		v, _ = new(wire.MsgpackDecoder).Decode(b)
	} else {
		v, _ = new(wire.PickleDecoder).Decode(append(append([]byte{0x80, 3}, b...), '.'), false)
	}
	return &v
}

// What answers no call that waits ends the connection: the call that it was meant for
// would wait without end. The answer to a call that was given up is awaited, once.
func TestAnswersToNoCall(t *testing.T) {
	for _, msgpack := range []bool{false, true} {
		for _, tt := range []struct {
			name   string
			answer func(id int) zeotest.Tuple
			want   string
		}{
			{"answered before", func(int) zeotest.Tuple { return zeotest.Tuple{1, 0, ".reply", nil} }, "answer to call 1, which waits for none"},
			{"not made yet", func(id int) zeotest.Tuple { return zeotest.Tuple{id + 1, 0, ".reply", nil} }, "answer to call 4, which waits for none"},
			{"no call", func(int) zeotest.Tuple { return zeotest.Tuple{-1, 0, ".reply", nil} }, "answer to call -1, which waits for none"},
			{"another flag", func(id int) zeotest.Tuple { return zeotest.Tuple{id, 1, ".reply", nil} }, "answer to no call of ours"},
			{"another name", func(id int) zeotest.Tuple { return zeotest.Tuple{id, 0, "reply", nil} }, `call of "reply" by the server`},
		} {
			t.Run(fmt.Sprint(tt.name, " ", msgpack), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				ours, theirs := net.Pipe()
				called := make(chan int)
				go serveRaw(theirs, msgpack, called, func(id int) []zeotest.Tuple {
					switch id {
					case 1: // register
						return []zeotest.Tuple{{id, 0, ".reply", nil}, {0, true, "info", zeotest.Tuple{}}}
					case 2: // given up
						return nil
					}
					return []zeotest.Tuple{{2, 0, ".reply", nil}, tt.answer(id)}
				})
				c, err := newClient(ctx, ours, Config{Addr: "pipe"})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				given, giveUp := context.WithCancel(ctx)
				go func() {
					for id := range called {
						if id == 2 {
							giveUp()
						}
					}
				}()
				if _, err := c.LastTID(given); !errors.Is(err, context.Canceled) {
					t.Fatalf("a call that is given up: %v", err)
				}
				_, err = c.LastTID(ctx)
				if !errors.Is(err, wire.ErrBadMessage) || !errors.Is(err, txn.ErrUnavailable) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %s", err, tt.want)
				}
			})
		}
	}
}

// serveRaw is a server that answers a call with messages of any form. It tells the
// ids of the calls once they are answered.
func serveRaw(nc net.Conn, msgpack bool, called chan<- int, answer func(id int) []zeotest.Tuple) {
	defer nc.Close()
	defer close(called)
	send := func(b []byte) error {
		_, err := nc.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
		return err
	}
	hello := "Z5"
	if msgpack {
		hello = "M5"
	}
	frames := wire.NewFrameReader(nc, 1<<20)
	if send([]byte(hello)) != nil {
		return
	}
	if _, err := frames.Next(); err != nil {
		return
	}
	d := wire.MessageDecoder{Msgpack: msgpack}
	for {
		frame, err := frames.Next()
		if err != nil {
			return
		}
		var m wire.Message
		if d.Decode(frame, &m) != nil {
			return
		}
		for _, a := range answer(int(m.ID.N)) {
			if send(zeotest.Encode(msgpack, a)) != nil {
				return
			}
		}
		if m.ID.N > 1 {
			called <- int(m.ID.N)
		}
	}
}

// A client that reads nothing tells the server each minute that it is alive.
func TestHeartbeat(t *testing.T) {
	for _, msgpack := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			heard := make(chan string, 10)
			go answering(theirs, msgpack, func(method string) []byte { heard <- method; return nil })
			c, err := newClient(t.Context(), ours, Config{Addr: "pipe"})
			if err != nil {
				t.Fatal(err)
			}
			if m := <-heard; m != "register" {
				t.Errorf("first call: %s", m)
			}
			for range 3 {
				if m := <-heard; m != "" { // a heartbeat has no method
					t.Errorf("call of %s, want a heartbeat", m)
				}
			}
			c.Close()
		})
	}
}

// Objects of Python's extensions are kept in a pickle.
func TestExtensionWithObjects(t *testing.T) {
	dict := []byte("}X\x01\x00\x00\x00kcdatetime\ndate\nC\x04\x07\xe4\x01\x01\x85Rs")
	at := tid.TID(1 << 40)
	begin := value(false, zeotest.Tuple{at, " ", []byte("u"), []byte("d"), nil})
	answer := append(append(bytes.Clone(begin[:len(begin)-2]), dict...), 't')
	ours, theirs := net.Pipe()
	n := 0
	go answering(theirs, false, func(method string) []byte {
		switch method {
		case "iterator_start":
			return value(false, 1)
		case "iterator_next":
			if n++; n == 1 {
				return answer
			}
		}
		return nil
	})
	c, err := newClient(t.Context(), ours, Config{Addr: "pipe"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := "\x80\x03" + string(dict) + "."
	for tr, err := range c.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		if string(tr.Extension) != want || tr.Status != txn.Committed {
			t.Errorf("extension %q, want %q", tr.Extension, want)
		}
	}
}
