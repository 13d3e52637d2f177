package link

import "github.com/neozodb/neo/cluster/proto"

// Queue is Answer for whoever has more to answer at once: the packet is sent with
// the next one, or by [Conn.Flush].
func (c *Conn) Queue(id uint32, p proto.Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != open {
		return
	}
	c.queueLocked(id, p)
	if len(c.out) > delayedBytes {
		c.flushLocked()
	}
}

// AskLater is Ask for whoever has more to ask at once: the request is sent with
// the next packet, or by [Conn.Flush].
func (c *Conn) AskLater(req proto.Request, tag any) (id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.askLocked(req, &pending{Pending: Pending{Request: req, Tag: tag}}, true)
}

// Flush sends what was queued.
func (c *Conn) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == open {
		c.flushLocked()
	}
}
