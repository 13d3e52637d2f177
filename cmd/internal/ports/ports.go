// Package ports finds TCP ports for programs that are started beside each other, by
// tests and by measurements.
package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// The ports, outside of the range from which outgoing connections get theirs, and above
// those that tests of packages take. They are divided into blocks.
const (
	first  = 15000
	blocks = 150
	size   = 100
)

// Each block is of one process, which listens on its first port until it ends: a port that
// is free now may be that of a program which does not listen yet, or is started again.
var (
	mu   sync.Mutex
	held = map[int]net.Listener{}
	next = rand.IntN(blocks) // the block that is tried next
	base int                 // first port of the current block
	used = size              // how many of its ports were tried
)

// Free returns a port of 127.0.0.1 that was free a moment ago, and that no other process
// gets from Free while this one runs. None is returned twice before all have been tried.
func Free() (int, error) {
	mu.Lock()
	defer mu.Unlock()
	for range blocks * size {
		if used == size {
			if err := begin(); err != nil {
				return 0, err
			}
		}
		port := base + used
		used++
		if l, err := listen(port); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port")
}

// begin goes on with the next block that is not of another process.
func begin() error {
	for range blocks {
		base = first + size*next
		next = (next + 1) % blocks
		if held[base] == nil {
			l, err := listen(base)
			if err != nil {
				continue
			}
			held[base] = l
		}
		used = 1
		return nil
	}
	return errors.New("other processes have all ports")
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
}
