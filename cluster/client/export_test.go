package client

import "weak"

// UnderWay adds the transactions under way to a set that does not keep them.
func (c *Client) UnderWay(set map[weak.Pointer[Txn]]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.txns {
		set[weak.Make(t)] = true
	}
}
