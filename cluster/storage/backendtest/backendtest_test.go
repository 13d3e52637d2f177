package backendtest

import "testing"

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) Database { return NewMemory() })
}
