package store

import (
	"context"
	"io"
	"iter"
	"time"
)

// Wrapped forwards every call, those of the optional interfaces included, to the
// store in it. A wrapper embeds it and replaces the calls that it changes, and so
// loses nothing that the store can do. What the store cannot do remains
// errors.ErrUnsupported.
type Wrapped struct{ Store }

// Retention implements [Retainer].
func (w Wrapped) Retention(ctx context.Context, key, version string) (Retention, error) {
	return GetRetention(ctx, w.Store, key, version)
}

// Retain implements [Retainer].
func (w Wrapped) Retain(ctx context.Context, key, version string, r Retention) error {
	return SetRetention(ctx, w.Store, key, version, r)
}

// Versions implements [Versioner].
func (w Wrapped) Versions(ctx context.Context, prefix string) iter.Seq2[Version, error] {
	return Versions(ctx, w.Store, prefix)
}

// GetVersion implements [Versioner].
func (w Wrapped) GetVersion(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, Info, error) {
	return GetVersion(ctx, w.Store, key, version, off, n)
}

// DeleteVersions implements [Versioner].
func (w Wrapped) DeleteVersions(ctx context.Context, versions []Version) error {
	return DeleteVersions(ctx, w.Store, versions)
}

// Date implements [Dater].
func (w Wrapped) Date() time.Time { return Date(w.Store) }

// ProbeStore implements [Prober].
func (w Wrapped) ProbeStore(ctx context.Context, key string) []Finding {
	return probeStore(ctx, w.Store, key)
}

// body is a reader that tells of what was read.
type body struct {
	io.ReadCloser
	read func(n int) error
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		if e := b.read(n); err == nil && e != nil {
			err = e
		}
	}
	return n, err
}

// sending returns o with a function called before the one that it has.
func (o PutOptions) sending(f func(n int) error) PutOptions {
	next := o.Sending
	o.Sending = func(n int) error {
		if err := f(n); err != nil || next == nil {
			return err
		}
		return next(n)
	}
	return o
}
