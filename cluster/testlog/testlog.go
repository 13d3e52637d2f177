// Package testlog keeps what a program says, for tests.
package testlog

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// Buffer is a log, or an output, that can be read while it is written.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write takes what is said. It never fails.
func (l *Buffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// String returns all that was said.
func (l *Buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Reset forgets what was said.
func (l *Buffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

// Count returns how often a text was said.
func (l *Buffer) Count(text string) int { return strings.Count(l.String(), text) }

// Contains reports whether a text was said.
func (l *Buffer) Contains(text string) bool { return strings.Contains(l.String(), text) }

// Logger returns a logger that writes messages from level Info on, as text.
func (l *Buffer) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
