package ports

import "testing"

// Ports are different ones, and none is of a block that another process has.
func TestFree(t *testing.T) {
	mu.Lock()
	used = size // the next one begins a block
	other := first + size*next
	mu.Unlock()
	l, err := listen(other)
	if err != nil {
		t.Skip(err) // it really is of another process
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
