package ports

import "testing"

// Ports are different ones, and none is of a block that another process has.
func TestFree(t *testing.T) {
	mu.Lock()
	used = size // the next one begins a block
	l, err := listen(first + size*next)
	for range blocks {
		if err == nil {
			break
		}
		next = (next + 1) % blocks // it really is of another process
		l, err = listen(first + size*next)
	}
	other := first + size*next
	mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := map[int]bool{}
	for range 3 * size {
		port, err := Free()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] || port/size == other/size || port%size == 0 {
			t.Errorf("port %d", port)
		}
		seen[port] = true
	}
}
