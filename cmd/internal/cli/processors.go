package cli

import (
	"os"
	"runtime"
)

// UseProcessors bounds how many processors run the program at once, unless the
// environment does (GOMAXPROCS). Each packet of a node is little work: to wake a
// second processor for it costs more than it saves.
func UseProcessors(n int) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(min(max(n, 1), runtime.GOMAXPROCS(0)))
	}
}
