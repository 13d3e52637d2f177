package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strings"
	"time"
)

// Store is a place for objects, safe for concurrent use. The package comment has
// its promises. Errors name the key; those that callers act on are [ErrExists],
// [ErrNotFound], [ErrDenied], [ErrKey], [ErrChecksum], *[LockedError] and
// *[TemporaryError].
type Store interface {
	// Put stores the size bytes of body under key. It reads body once or several
	// times, from one goroutine at a time, and not after it has returned. With
	// o.Create a key that exists is left as it is, and the error is ErrExists. A
	// *TemporaryError means that the outcome is unknown: the object may be
	// stored, now or a moment later.
	Put(ctx context.Context, key string, body io.ReaderAt, size int64, o PutOptions) error

	// Get returns the bytes [off, off+n) of an object as far as they exist. A
	// negative n asks for its last off bytes instead, [All] for what begins at
	// off, 0 for Info alone. The body gives exactly these bytes, or an error that
	// is not io.EOF; the caller closes it. The error is ErrNotFound if there is
	// no such object.
	Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, Info, error)

	// List yields the objects whose keys begin with prefix and are greater than
	// after, in ascending order of the bytes of their keys. An error is the last
	// step: a list that ends without one is complete.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]

	// Delete removes objects. A key that does not exist is no error. It tries all
	// keys and joins the errors of those that remain, a *[KeyError] or *[LockedError]
	// each.
	Delete(ctx context.Context, keys []string) error
}

// All as the length of a Get asks for everything from the offset on.
const All int64 = math.MaxInt64

// MaxObject is the greatest size of an object, in bytes: one PUT, never multipart.
const MaxObject int64 = 1 << 30

// PutOptions refine a Put. The zero value replaces what is there.
type PutOptions struct {
	// Create fails with ErrExists if the key exists.
	Create bool

	// SHA256 is the hash of the body, if the caller has it; zero: the store
	// computes what it needs. A body that differs is refused with ErrChecksum.
	SHA256 [sha256.Size]byte

	// Retain asks for an object that cannot be deleted before a time. Stores
	// without object lock refuse with errors.ErrUnsupported.
	Retain Retention

	// Sending, if set, is called before each run of bytes that is sent, with its
	// length; an error ends the Put. A repeated request sends again.
	Sending func(n int) error
}

// Info is what a store says of an object without its bytes.
type Info struct {
	Key      string
	Size     int64     // of the whole object
	Modified time.Time // when it was stored, by the clock of the store
	ETag     string    // differs when the content does; "" if the store has none
	Version  string    // "" if the store keeps no versions
}

// Mode is the strength of a retention.
type Mode string

// The modes of object lock. Governance can be lifted by a permission of its own,
// Compliance by nothing.
const (
	Governance Mode = "governance"
	Compliance Mode = "compliance"
)

// Retention is until when an object cannot be deleted. The zero value is none.
type Retention struct {
	Mode  Mode
	Until time.Time
}

// IsZero reports whether nothing is retained.
func (r Retention) IsZero() bool { return r.Mode == "" && r.Until.IsZero() }

// Retainer is a store that has object lock. Versions are those of [Versioner];
// "" is the newest.
type Retainer interface {
	// Retention returns the retention of an object, zero if it has none.
	Retention(ctx context.Context, key, version string) (Retention, error)
	// Retain extends the retention of an object. One that lasts longer already,
	// in the same or the stronger mode, stays.
	Retain(ctx context.Context, key, version string, r Retention) error
}

// Version is one of several objects that were stored under one key.
type Version struct {
	Info
	Latest bool
	// Deleted marks the place of a deletion, which hides what is older.
	Deleted bool
}

// Versioner is a store that can keep what was overwritten or deleted.
type Versioner interface {
	// Versions yields all versions of the objects whose keys begin with prefix:
	// keys ascending, of each key the newest first. Without versioning these are
	// the objects.
	Versions(ctx context.Context, prefix string) iter.Seq2[Version, error]
	// GetVersion is Get of one version.
	GetVersion(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, Info, error)
	// DeleteVersions removes versions for good, as Delete removes objects; only
	// Key and Version matter. One under retention gives a *LockedError.
	DeleteVersions(ctx context.Context, versions []Version) error
}

// Dater is a store that knows the time of its server.
type Dater interface {
	// Date returns the server's time as of its latest answer, zero before it.
	Date() time.Time
}

// Prober is a store with checks of its own for [Probe].
type Prober interface {
	// ProbeStore checks what only this kind of store has. key is an object that
	// exists while it runs.
	ProbeStore(ctx context.Context, key string) []Finding
}

// GetRetention is [Retainer].Retention, or errors.ErrUnsupported.
func GetRetention(ctx context.Context, s Store, key, version string) (Retention, error) {
	if r, ok := s.(Retainer); ok {
		return r.Retention(ctx, key, version)
	}
	return Retention{}, fmt.Errorf("retention of %s: %w", key, errors.ErrUnsupported)
}

// SetRetention is [Retainer].Retain, or errors.ErrUnsupported.
func SetRetention(ctx context.Context, s Store, key, version string, r Retention) error {
	if s, ok := s.(Retainer); ok {
		return s.Retain(ctx, key, version, r)
	}
	return fmt.Errorf("retention of %s: %w", key, errors.ErrUnsupported)
}

// Versions is [Versioner].Versions, or yields errors.ErrUnsupported.
func Versions(ctx context.Context, s Store, prefix string) iter.Seq2[Version, error] {
	if s, ok := s.(Versioner); ok {
		return s.Versions(ctx, prefix)
	}
	return func(yield func(Version, error) bool) {
		yield(Version{}, fmt.Errorf("versions of %s: %w", prefix, errors.ErrUnsupported))
	}
}

// GetVersion is [Versioner].GetVersion, or errors.ErrUnsupported.
func GetVersion(ctx context.Context, s Store, key, version string, off, n int64) (io.ReadCloser, Info, error) {
	if s, ok := s.(Versioner); ok {
		return s.GetVersion(ctx, key, version, off, n)
	}
	return nil, Info{}, fmt.Errorf("version %s of %s: %w", version, key, errors.ErrUnsupported)
}

// DeleteVersions is [Versioner].DeleteVersions, or errors.ErrUnsupported.
func DeleteVersions(ctx context.Context, s Store, versions []Version) error {
	if s, ok := s.(Versioner); ok {
		return s.DeleteVersions(ctx, versions)
	}
	return fmt.Errorf("deletion of versions: %w", errors.ErrUnsupported)
}

// Date is [Dater].Date, or zero for a store whose clock is unknown.
func Date(s Store) time.Time {
	if s, ok := s.(Dater); ok {
		return s.Date()
	}
	return time.Time{}
}

// probeStore is [Prober].ProbeStore, or nothing.
func probeStore(ctx context.Context, s Store, key string) []Finding {
	if s, ok := s.(Prober); ok {
		return s.ProbeStore(ctx, key)
	}
	return nil
}

// ReadAll returns a whole object, which must not be larger than limit bytes.
func ReadAll(ctx context.Context, s Store, key string, limit int64) ([]byte, Info, error) {
	body, info, err := s.Get(ctx, key, 0, All)
	if err != nil {
		return nil, info, err
	}
	defer body.Close()
	if info.Size > limit {
		return nil, info, fmt.Errorf("%s has %d bytes, at most %d are expected", key, info.Size, limit)
	}
	b := make([]byte, info.Size)
	if _, err := io.ReadFull(body, b); err != nil {
		return nil, info, fmt.Errorf("read %s: %w", key, err)
	}
	return b, info, nil
}

// MaxKey is the greatest length of a key, in bytes, without the prefix of a
// repository; MaxPath with it.
const (
	MaxKey  = 120
	MaxPath = 200
)

// CheckKey returns an error that is ErrKey unless key is one of a repository:
// non-empty elements of [0-9a-z.-] and the letters T and Z, separated by slashes,
// none of which begins with a dot. Each store checks it in Put, so that keys mean
// the same on all.
func CheckKey(key string) error {
	if len(key) > MaxKey {
		return fmt.Errorf("%w %q: longer than %d bytes", ErrKey, key, MaxKey)
	}
	for element := range strings.SplitSeq(key, "/") {
		if element == "" || element[0] == '.' {
			return fmt.Errorf("%w %q", ErrKey, key)
		}
		for _, c := range []byte(element) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != 'T' && c != 'Z' {
				return fmt.Errorf("%w %q: character %q", ErrKey, key, c)
			}
		}
	}
	return nil
}

// CheckPut returns the error of a Put that no store accepts, whatever it holds.
func CheckPut(key string, size int64, o PutOptions) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if size < 0 || size > MaxObject {
		return fmt.Errorf("put %s: %d bytes, an object has 0 to %d", key, size, MaxObject)
	}
	if r := o.Retain; !r.IsZero() && (r.Until.IsZero() || r.Mode != Governance && r.Mode != Compliance) {
		return fmt.Errorf("put %s: retention %q until %v", key, r.Mode, r.Until)
	}
	return nil
}

// CheckRange returns the error of a Get with a range that has no meaning.
func CheckRange(key string, off, n int64) error {
	if off < 0 {
		return fmt.Errorf("get %s: offset %d", key, off)
	}
	return nil
}

// Span returns the bytes [from, to) of an object of size bytes that a Get of off
// and n means.
func Span(off, n, size int64) (from, to int64) {
	if n < 0 {
		return max(0, size-off), size
	}
	from = min(off, size)
	return from, from + min(n, size-from)
}

// Extended returns what the retention of an object is after a Retain of r: neither
// shorter nor weaker than either.
func Extended(old, r Retention) Retention {
	if old.IsZero() {
		return r
	}
	if r.Until.After(old.Until) {
		old.Until = r.Until
	}
	if r.Mode == Compliance {
		old.Mode = Compliance
	}
	return old
}
