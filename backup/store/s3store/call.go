package s3store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/neozodb/neo/backup/store"
)

// defaultTimeout is how long a server may be silent in the middle of a call.
const defaultTimeout = time.Minute

// errSilent ends a call whose server does nothing.
var errSilent = errors.New("no progress")

// call is one call to the server. Its context ends when the server is silent for
// the timeout, but for the time in which the call is paused.
type call struct {
	parent  context.Context
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
	after   atomic.Int64 // Retry-After of the answer, as a duration
}

// callKey is the key of the call in its context.
type callKey struct{}

func (s *Store) begin(ctx context.Context) *call {
	c := &call{parent: ctx, timeout: s.timeout}
	c.ctx, c.cancel = context.WithCancelCause(context.WithValue(ctx, callKey{}, c))
	c.timer = time.AfterFunc(c.timeout, func() {
		c.cancel(fmt.Errorf("%w for %v", errSilent, c.timeout))
	})
	return c
}

func (c *call) pause()  { c.timer.Stop() }
func (c *call) resume() { c.timer.Reset(c.timeout) }

// end releases what the call holds.
func (c *call) end() {
	c.timer.Stop()
	c.cancel(nil)
}

// classify gives an error its meaning for callers: those of the caller's context,
// those that are worth another try, and those that are not.
func (c *call) classify(err error) error {
	if c.parent.Err() != nil {
		return context.Cause(c.parent)
	}
	if cause := context.Cause(c.ctx); errors.Is(cause, errSilent) {
		return &store.TemporaryError{Err: fmt.Errorf("%w: %w", cause, err)}
	}
	r, ok := errors.AsType[minio.ErrorResponse](err)
	if !ok {
		return network(err)
	}
	switch r.Code {
	case minio.NoSuchKey, "NoSuchVersion", "NotFound":
		return fmt.Errorf("%w (%w)", store.ErrNotFound, err)
	case minio.AccessDenied, "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AllAccessDisabled", "AccountProblem", "UnauthorizedAccess":
		return fmt.Errorf("%w: %s: %w", store.ErrDenied, r.Code, err)
	case "RequestTimeTooSkewed":
		return fmt.Errorf("the clock of this host differs too much from that of the store: %w", err)
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "TooManyRequests", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled":
		return &store.TemporaryError{Err: err, SlowDown: true, After: time.Duration(c.after.Load())}
	case "ConditionalRequestConflict", "OperationAborted", // another writer is at work on the key
		"RequestTimeout", "InternalError", "ServiceUnavailable", "IncompleteBody",
		"BadDigest", "XAmzContentSHA256Mismatch": // the body was damaged on its way
		return &store.TemporaryError{Err: err, After: time.Duration(c.after.Load())}
	}
	switch status := r.StatusCode; {
	case status == http.StatusMethodNotAllowed: // the version is a deletion
		return fmt.Errorf("%w (%w)", store.ErrNotFound, err)
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		return fmt.Errorf("%w: %w", store.ErrDenied, err)
	case status == http.StatusNotImplemented:
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return &store.TemporaryError{Err: err, SlowDown: true, After: time.Duration(c.after.Load())}
	case status >= 500 || status == http.StatusRequestTimeout:
		return &store.TemporaryError{Err: err, After: time.Duration(c.after.Load())}
	}
	return err
}

// network classifies an error without an answer of the server.
func network(err error) error {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, host := errors.AsType[x509.HostnameError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	_, verify := errors.AsType[*tls.CertificateVerificationError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	if unknown || host || invalid || verify || record || errors.Is(err, http.ErrSchemeMismatch) {
		return err
	}
	return &store.TemporaryError{Err: err}
}

// clock notes what the headers of answers say and minio-go does not pass on.
type clock struct {
	next http.RoundTripper
	last atomic.Int64 // Unix seconds; 0: no answer yet
}

func (c *clock) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.last.Store(t.Unix())
	}
	if call, ok := r.Context().Value(callKey{}).(*call); ok {
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
			call.after.Store(int64(min(time.Duration(n)*time.Second, time.Minute)))
		}
	}
	return resp, nil
}

func (c *clock) date() time.Time {
	if n := c.last.Load(); n != 0 {
		return time.Unix(n, 0).UTC()
	}
	return time.Time{}
}
