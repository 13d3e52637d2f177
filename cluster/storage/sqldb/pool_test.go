package sqldb

import (
	"context"
	"errors"
	"testing"
)

// A read that waits for a connection ends with its context.
func TestWaitForReaderEnds(t *testing.T) {
	p := &pool{limit: 1, opened: 1, lost: func(error) bool { return false }}
	p.cond.L = &p.m
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.use(ctx, func(*Conn) error { return nil }) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}
