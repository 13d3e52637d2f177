package zeo

import (
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/socket"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// output is the queue of one connection to its client. Messages are encoded right
// into it. Whoever finds it idle may write it to the network himself; nobody
// waits for the network while holding a lock of others.
type output struct {
	nc      net.Conn
	try     *socket.Writer // nil: all writes may wait
	raw     net.Conn       // nc, or what is below its TLS: closing that never waits
	limit   int            // bytes that may wait, beside asked, when one more message comes
	dropped func()         // called once, when the limit is passed

	mu      sync.Mutex
	room    sync.Cond    // signalled when bytes were written, or at the end
	enc     wire.Encoder // enc.b: bytes that wait, after rest
	asked   int          // of these, answers to calls that have waited for room
	rest    []byte       // left over by a write that did not wait
	spare   []byte
	sending int // bytes of the write under way
	writing bool
	closed  bool

	wake chan struct{} // for the goroutine that runs run
}

// Above roomy bytes, loads wait until the client has read some answers.
const roomy = 1 << 20

// stallLimit is how long a client may take to read roomy bytes.
const stallLimit = 5 * time.Minute

func newOutput(nc net.Conn, limit int, dropped func()) *output {
	raw := nc
	if t, ok := nc.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	o := &output{nc: nc, try: socket.NewWriter(nc), raw: raw, limit: limit, dropped: dropped, wake: make(chan struct{}, 1)}
	o.room.L = &o.mu
	return o
}

// lock returns the encoder, to which one message or several may be appended
// before unlock.
func (o *output) lock() *wire.Encoder {
	o.mu.Lock()
	if len(o.enc.B)-o.asked > o.limit {
		o.dropLocked()
	}
	if o.closed {
		o.enc.B, o.asked = o.enc.B[:0], 0 // what is appended is lost
	}
	return &o.enc
}

func (o *output) dropLocked() {
	if !o.closed {
		o.closeLocked()
		o.dropped()
	}
}

// unlock leaves what was appended to a later flush or send of the caller.
func (o *output) unlock() { o.mu.Unlock() }

// unlockAsked is unlock after the answer to a call that has waited for room was
// appended to the first n bytes: there are few of these, and big ones do not mean
// that the client does not read.
func (o *output) unlockAsked(n int) {
	o.asked += len(o.enc.B) - n
	o.mu.Unlock()
}

// send writes what waits as far as that is possible without waiting, and leaves
// the rest to the goroutine that runs run.
func (o *output) send() {
	o.mu.Lock()
	wake := !o.trySomeLocked()
	o.mu.Unlock()
	if wake {
		select {
		case o.wake <- struct{}{}:
		default:
		}
	}
}

// trySomeLocked writes without waiting, and reports whether nothing is left or
// somebody is writing. The lock is not held meanwhile.
func (o *output) trySomeLocked() bool {
	for !o.writing && !o.closed && len(o.rest)+len(o.enc.B) > 0 {
		if o.try == nil || len(o.rest) > 0 {
			return false
		}
		b := o.takeLocked()
		o.mu.Unlock()
		n, err := o.try.TryWrite(b)
		o.mu.Lock()
		if err == nil && n < len(b) && !o.closed {
			o.writing, o.sending, o.rest = false, 0, b[n:]
			continue
		}
		o.wroteLocked(b, err)
	}
	return true
}

// takeLocked begins a write of what waits.
func (o *output) takeLocked() []byte {
	b := o.rest
	o.rest = nil
	if len(b) == 0 {
		b = o.enc.B
		o.enc.B, o.spare, o.asked = o.spare[:0], nil, 0
	}
	o.writing, o.sending = true, len(b)
	return b
}

// wroteLocked ends it.
func (o *output) wroteLocked(b []byte, err error) {
	o.writing, o.sending = false, 0
	if cap(b) <= roomy {
		o.spare = b[:0]
	}
	if err != nil {
		o.closeLocked()
	}
	o.room.Broadcast()
}

// flush writes what waits, unless somebody is at it. It may wait for the client.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.trySomeLocked() {
		b := o.takeLocked()
		o.mu.Unlock()
		err := o.write(b)
		if err == nil && o.try != nil {
			err = o.nc.SetWriteDeadline(time.Time{}) // it counts for send as well
		}
		o.mu.Lock()
		o.wroteLocked(b, err)
	}
}

// write writes all of b as long as the client reads some of it.
func (o *output) write(b []byte) error {
	for part := range slices.Chunk(b, roomy) {
		if err := o.nc.SetWriteDeadline(time.Now().Add(stallLimit)); err != nil {
			return err
		}
		if _, err := o.nc.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// waitRoom waits until few bytes wait, and reports whether the output is open.
func (o *output) waitRoom() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed && len(o.rest)+len(o.enc.B)+o.sending > roomy {
		o.room.Wait()
	}
	return !o.closed
}

// pending returns how many bytes wait.
func (o *output) pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.rest) + len(o.enc.B)
}

func (o *output) closeLocked() {
	if o.closed {
		return
	}
	o.closed = true
	o.raw.Close() // the reader of the connection learns of it
	o.room.Broadcast()
}

// close ends the connection at once.
func (o *output) close() {
	o.mu.Lock()
	o.closeLocked()
	o.mu.Unlock()
}

// run writes what others leave until stop is closed.
func (o *output) run(stop <-chan struct{}) {
	for {
		select {
		case <-o.wake:
			o.flush()
		case <-stop:
			return
		}
	}
}
