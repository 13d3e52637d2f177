package simple

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// quietHandler makes warnings mere information once the cluster is being stopped:
// that nodes of one process lose each other then is no news.
type quietHandler struct {
	slog.Handler
	stopping *atomic.Bool
}

func (h quietHandler) level(l slog.Level) slog.Level {
	if l == slog.LevelWarn && h.stopping.Load() {
		return slog.LevelInfo
	}
	return l
}

func (h quietHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.Handler.Enabled(ctx, h.level(l))
}

func (h quietHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = h.level(r.Level)
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs), h.stopping}
}

func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name), h.stopping}
}
