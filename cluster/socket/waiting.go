package socket

import (
	"log/slog"
	"time"
)

// longWait is how long something may be waited for before that is worth a warning: nodes
// that are started together, or one of which is restarted, find each other in less.
const longWait = 10 * time.Second

// Waiting logs that something is waited for which is tried again and again: a line when
// that begins, a warning when it takes long, and a line when it is over that says how long
// it took. The zero Waiting waits for nothing. It is for one goroutine at a time.
type Waiting struct {
	since  time.Time
	warned bool
}

// Failed is called for each attempt that has failed. msg says what is missing, as in
// "no primary master".
func (w *Waiting) Failed(log *slog.Logger, msg string, attrs ...any) {
	now := time.Now()
	switch {
	case w.since.IsZero():
		w.since = now
		log.Info(msg+" yet, trying again", attrs...)
	case !w.warned && now.Sub(w.since) >= longWait:
		w.warned = true
		log.Warn("still "+msg+", trying again", append(attrs, "since", now.Sub(w.since).Round(time.Second))...)
	default:
		log.Debug(msg, attrs...)
	}
}

// Over is called when an attempt was successful. It logs msg only if one had failed.
func (w *Waiting) Over(log *slog.Logger, msg string, attrs ...any) {
	if !w.since.IsZero() {
		log.Info(msg, append(attrs, "took", time.Since(w.since).Round(time.Millisecond))...)
	}
	*w = Waiting{}
}
