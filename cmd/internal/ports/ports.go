// Package ports finds TCP ports for programs that are started beside each other, by
// tests and by measurements.
package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
)

// The ports, outside of the range from which outgoing connections get theirs.
const (
	first = 15000
	count = 15000
)

// next counts the ports that were tried, from a place by chance, so that programs that
// run beside each other seldom try the same.
var next atomic.Uint32

func init() { next.Store(rand.Uint32N(count)) }

// Free returns a port of 127.0.0.1 that was free a moment ago. No port is returned twice
// in 15,000 calls: one that is free now may have been given to a program that does not
// listen yet.
func Free() (int, error) {
	for range 100 {
		port := first + int(next.Add(1)%count)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, errors.New("no free port in 100 tries")
}
