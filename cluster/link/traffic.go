package link

import (
	"sync"
	"sync/atomic"

	"github.com/neozodb/neo/cluster/proto"
)

// Traffic counts what passes through the connections of a node: give it to all of them in their
// [Config]. The zero Traffic is ready for use.
//
// Each connection counts for itself, so that they do not wait for each other's counters.
type Traffic struct {
	mu     sync.Mutex
	open   map[*counters]struct{}
	opened uint64
	ended  counters // sums of the connections that have ended
}

// TrafficStats is what was counted until now.
type TrafficStats struct {
	Connections int    // open now, in either direction
	Opened      uint64 // so far
	// In and Out are what was received and sent: bytes, before encryption, and packets by
	// name, "AskObject", without signs of life.
	In, Out struct {
		Bytes   uint64
		Packets map[string]uint64
	}
}

const (
	// maxCode is above the code of each packet, without the bit of answers.
	maxCode         = 0x80
	inward, outward = 0, 1
)

// counters are those of one connection.
type counters struct {
	bytes   [2]atomic.Uint64
	packets [2][2 * maxCode]atomic.Uint64
}

func (c *counters) packet(direction int, p proto.Packet) {
	if c == nil {
		return
	}
	code := p.Code()
	i := int(code &^ proto.AnswerBit)
	if i >= maxCode {
		return
	}
	if code&proto.AnswerBit != 0 {
		i += maxCode
	}
	c.packets[direction][i].Add(1)
}

func (c *counters) addBytes(direction, n int) {
	if c != nil && n > 0 {
		c.bytes[direction].Add(uint64(n))
	}
}

// add adds what another one has counted.
func (c *counters) add(o *counters) {
	for d := range o.bytes {
		c.bytes[d].Add(o.bytes[d].Load())
		for i := range o.packets[d] {
			if n := o.packets[d][i].Load(); n > 0 {
				c.packets[d][i].Add(n)
			}
		}
	}
}

// begin returns the counters of a new connection, nil if nothing is counted.
func (t *Traffic) begin() *counters {
	if t == nil {
		return nil
	}
	c := &counters{}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[*counters]struct{}{}
	}
	t.open[c] = struct{}{}
	t.opened++
	return c
}

// end takes the counters of a connection that has ended.
func (t *Traffic) end(c *counters) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
	t.ended.add(c)
}

// Stats returns what was counted until now.
func (t *Traffic) Stats() TrafficStats {
	var sum counters
	t.mu.Lock()
	s := TrafficStats{Connections: len(t.open), Opened: t.opened}
	sum.add(&t.ended)
	for c := range t.open {
		sum.add(c)
	}
	t.mu.Unlock()
	s.In.Bytes, s.Out.Bytes = sum.bytes[inward].Load(), sum.bytes[outward].Load()
	s.In.Packets, s.Out.Packets = names(&sum.packets[inward]), names(&sum.packets[outward])
	return s
}

func names(counts *[2 * maxCode]atomic.Uint64) map[string]uint64 {
	m := map[string]uint64{}
	for i := range counts {
		if n := counts[i].Load(); n > 0 {
			code := uint16(i)
			if i >= maxCode {
				code = uint16(i-maxCode) | proto.AnswerBit
			}
			m[proto.CodeName(code)] = n
		}
	}
	return m
}
