// Package s3store is a [store.Store] in a bucket of S3 or of a server that speaks
// its protocol.
//
// It asks for little, since servers differ in everything else: one signed PUT of
// known length with MD5 and SHA-256 for an object, never multipart;
// If-None-Match: * to create; ranged GET, HEAD, ListObjectsV2, DeleteObjects. It
// checks what answers say of themselves, such as the range and the order of keys,
// and repeats nothing: [store.Retry] does. Which promises a server keeps is for
// [store.Probe] to find out.
package s3store

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/neozodb/neo/backup/store"
)

// Store is a prefix of a bucket; create it with [New].
type Store struct {
	c       Config
	prefix  string // empty, or with a slash at its end
	core    *minio.Core
	creds   *credentials.Credentials
	clock   *clock
	timeout time.Duration
}

// New returns the store that c describes. It sends nothing.
func New(c Config) (*Store, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	creds, err := c.Credentials.provider()
	if err != nil {
		return nil, err
	}
	s := &Store{c: c, creds: creds, timeout: cmp.Or(c.Timeout, defaultTimeout)}
	if c.Prefix != "" {
		s.prefix = c.Prefix + "/"
	}
	s.clock = &clock{next: c.transport()}
	if s.core, err = s.client(creds); err != nil {
		return nil, err
	}
	return s, nil
}

// client returns a client with its credentials.
func (s *Store) client(creds *credentials.Credentials) (*minio.Core, error) {
	core, err := minio.NewCore(s.c.Endpoint, &minio.Options{
		Creds:        creds,
		Secure:       !s.c.Insecure,
		Transport:    s.clock,
		Region:       s.c.Region, // without it the first call asks for it
		BucketLookup: s.c.lookup(),
		MaxRetries:   1,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	core.SetAppInfo("neobackup", "1")
	return core, nil
}

// String returns the URL of the store, which has no secrets.
func (s *Store) String() string { return s.c.String() }

// path returns the key in the bucket.
func (s *Store) path(key string) string { return s.prefix + key }

// Put implements [store.Store].
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	if err := store.CheckPut(key, size, o); err != nil {
		return err
	}
	sums, err := hash(ctx, body, size)
	if err != nil {
		return &store.KeyError{Op: "put", Key: key, Err: err}
	}
	if o.SHA256 != ([sha256.Size]byte{}) && o.SHA256 != sums.sha256 {
		return &store.KeyError{Op: "put", Key: key, Err: fmt.Errorf("body %w", store.ErrChecksum)}
	}
	// The whole body with its MD5 in one signed request; neither chunks nor trailers.
	opts := minio.PutObjectOptions{DisableContentSha256: true, DisableMultipart: true, SendContentMd5: true}
	if o.Create {
		opts.SetMatchETagExcept("*")
	}
	if !o.Retain.IsZero() {
		opts.Mode = minio.RetentionMode(strings.ToUpper(string(o.Retain.Mode)))
		opts.RetainUntilDate = roundUp(o.Retain.Until)
	}
	c := s.begin(ctx)
	defer c.end()
	up := &upload{call: c, body: body, size: size, sending: o.Sending}
	_, err = s.core.PutObject(c.ctx, s.c.Bucket, s.path(key), up, size,
		base64.StdEncoding.EncodeToString(sums.md5[:]), hex.EncodeToString(sums.sha256[:]), opts)
	if err == nil {
		return nil
	}
	if up.err != nil {
		err = up.err
	} else if r, ok := errors.AsType[minio.ErrorResponse](err); ok && r.StatusCode == http.StatusPreconditionFailed && o.Create {
		err = store.ErrExists
	} else {
		err = c.classify(err)
	}
	return &store.KeyError{Op: "put", Key: key, Err: err}
}

// roundUp rounds a retention to the seconds that S3 has, never down.
func roundUp(t time.Time) time.Time {
	return t.Add(time.Second - 1).UTC().Truncate(time.Second)
}

// sums are the hashes of a body.
type sums struct {
	md5    [md5.Size]byte
	sha256 [sha256.Size]byte
}

// hash reads a body once.
func hash(ctx context.Context, body io.ReaderAt, size int64) (sums, error) {
	var s sums
	m, h := md5.New(), sha256.New()
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return s, context.Cause(ctx)
		}
		b := buf[:min(int64(len(buf)), size-off)]
		if err := readAt(body, b, off); err != nil {
			return s, err
		}
		m.Write(b)
		h.Write(b)
		off += int64(len(b))
	}
	m.Sum(s.md5[:0])
	h.Sum(s.sha256[:0])
	return s, nil
}

// readAt fills b.
func readAt(body io.ReaderAt, b []byte, off int64) error {
	n, err := body.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read its body: %w", err)
}

// upload is the body of a PUT. It is no io.Seeker: nothing rewinds it.
type upload struct {
	call      *call
	body      io.ReaderAt
	off, size int64
	sending   func(int) error
	err       error // of the body, or of sending
}

func (u *upload) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	if u.off == u.size {
		return 0, io.EOF
	}
	u.call.pause() // neither the disk nor a limit is the fault of the server
	defer u.call.resume()
	p = p[:min(int64(len(p)), u.size-u.off)]
	if u.err = readAt(u.body, p, u.off); u.err != nil {
		return 0, u.err
	}
	if u.sending != nil {
		if u.err = u.sending(len(p)); u.err != nil {
			return 0, u.err
		}
	}
	u.off += int64(len(p))
	return len(p), nil
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	return s.GetVersion(ctx, key, "", off, n)
}

// GetVersion implements [store.Versioner].
func (s *Store) GetVersion(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, store.Info, error) {
	if err := store.CheckRange(key, off, n); err != nil {
		return nil, store.Info{}, err
	}
	body, info, err := s.get(ctx, key, version, off, n)
	if err != nil {
		return nil, store.Info{}, &store.KeyError{Op: "get", Key: key, Version: version, Err: err}
	}
	return body, info, nil
}

func (s *Store) get(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, store.Info, error) {
	var opts minio.GetObjectOptions
	opts.VersionID = version
	ranged := true
	switch {
	case n == 0 || n < 0 && off == 0:
		info, _, err := s.stat(ctx, key, version)
		return http.NoBody, info, err
	case n < 0:
		opts.Set("Range", fmt.Sprintf("bytes=-%d", off))
	case n > math.MaxInt64-off || n == store.All:
		if ranged = off > 0; ranged {
			opts.Set("Range", fmt.Sprintf("bytes=%d-", off))
		}
	default:
		opts.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	c := s.begin(ctx)
	r, oi, h, err := s.core.GetObject(c.ctx, s.c.Bucket, s.path(key), opts)
	if err != nil {
		err = c.classify(err)
		c.end()
		if e, ok := errors.AsType[minio.ErrorResponse](err); !ok || e.StatusCode != http.StatusRequestedRangeNotSatisfiable {
			return nil, store.Info{}, err
		}
		// There is nothing in the range; the answer does not tell the size.
		info, _, err := s.stat(ctx, key, version)
		if err != nil {
			return nil, store.Info{}, err
		}
		from, to := store.Span(off, n, info.Size)
		if n < 0 && off > info.Size && info.Size > 0 { // some refuse more last bytes than there are
			return s.get(ctx, key, version, 0, store.All)
		}
		if from < to {
			return nil, store.Info{}, fmt.Errorf("%w: no range [%d, %d) in an object of %d bytes", store.ErrLied, from, to, info.Size)
		}
		return http.NoBody, info, nil
	}
	info := s.info(key, oi)
	length := oi.Size
	from, to := int64(0), length
	if cr := h.Get("Content-Range"); cr != "" {
		if _, err := fmt.Sscanf(cr, "bytes %d-%d/%d", &from, &to, &info.Size); err != nil {
			info.Size = -1
		}
		to++
	}
	wantFrom, wantTo := store.Span(off, n, info.Size)
	if info.Size < 0 || length < 0 || from != wantFrom || to != wantTo || to-from != length {
		r.Close()
		c.end()
		return nil, store.Info{}, fmt.Errorf("%w: asked for %s, got Content-Range %q, Content-Length %d", store.ErrLied, cmp.Or(opts.Header().Get("Range"), "all"), h.Get("Content-Range"), length)
	}
	c.pause()
	return &download{call: c, key: key, body: r, left: length}, info, nil
}

// download is the body of a GET.
type download struct {
	call *call
	key  string
	body io.ReadCloser
	left int64
}

func (d *download) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	d.call.resume()
	n, err := d.body.Read(p[:min(int64(len(p)), d.left)])
	d.call.pause()
	d.left -= int64(n)
	switch {
	case err == nil || d.left == 0:
		return n, nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, &store.KeyError{Op: "read", Key: d.key, Err: d.call.classify(err)}
}

func (d *download) Close() error {
	if d.left > 0 {
		d.call.cancel(nil) // rather than reading the rest
	}
	d.body.Close() // all that it may say is that it was not read to its end
	d.call.end()
	return nil
}

// info describes an object.
func (s *Store) info(key string, o minio.ObjectInfo) store.Info {
	return store.Info{Key: key, Size: o.Size, Modified: o.LastModified.UTC(), ETag: o.ETag, Version: o.VersionID}
}

// stat asks for what is known of an object.
func (s *Store) stat(ctx context.Context, key, version string) (store.Info, http.Header, error) {
	c := s.begin(ctx)
	defer c.end()
	o, err := s.core.StatObject(c.ctx, s.c.Bucket, s.path(key), minio.StatObjectOptions{VersionID: version})
	if err != nil {
		return store.Info{}, nil, c.classify(err)
	}
	if o.Size < 0 {
		return store.Info{}, nil, fmt.Errorf("%w: no Content-Length", store.ErrLied)
	}
	return s.info(key, o), o.Metadata, nil
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		opts := minio.ListObjectsOptions{Prefix: s.path(prefix), Recursive: true}
		if after != "" {
			opts.StartAfter = s.path(after)
		}
		last := after
		err := s.list(ctx, opts, func(o minio.ObjectInfo) (bool, error) {
			key, ok := strings.CutPrefix(o.Key, s.prefix)
			if !ok || !strings.HasPrefix(key, prefix) || key <= last {
				return false, fmt.Errorf("%w: %q follows %q", store.ErrLied, o.Key, s.path(last))
			}
			last = key
			return yield(s.info(key, o), nil), nil
		})
		if err != nil {
			yield(store.Info{}, &store.KeyError{Op: "list", Key: prefix, Err: err})
		}
	}
}

// list calls f with each result, until it returns false or an error.
func (s *Store) list(ctx context.Context, opts minio.ListObjectsOptions, f func(minio.ObjectInfo) (bool, error)) error {
	no := false
	opts.FetchOwner = &no
	c := s.begin(ctx)
	defer c.end()
	for o := range s.core.ListObjectsIter(c.ctx, s.c.Bucket, opts) {
		if o.Err != nil {
			return c.classify(o.Err)
		}
		c.pause()
		if ok, err := f(o); !ok {
			return err
		}
		c.resume()
	}
	// minio-go ends as after the last key when its context ends.
	if c.ctx.Err() != nil {
		return c.classify(context.Cause(c.ctx))
	}
	return nil
}

// Versions implements [store.Versioner]. Servers do not agree on an order: some list
// deletions apart from the rest, some the oldest first. So all are held in memory.
func (s *Store) Versions(ctx context.Context, prefix string) iter.Seq2[store.Version, error] {
	return func(yield func(store.Version, error) bool) {
		opts := minio.ListObjectsOptions{Prefix: s.path(prefix), Recursive: true, WithVersions: true}
		var all []store.Version
		err := s.list(ctx, opts, func(o minio.ObjectInfo) (bool, error) {
			key, ok := strings.CutPrefix(o.Key, s.prefix)
			if !ok || !strings.HasPrefix(key, prefix) {
				return false, fmt.Errorf("%w: %q", store.ErrLied, o.Key)
			}
			all = append(all, store.Version{Info: s.info(key, o), Latest: o.IsLatest, Deleted: o.IsDeleteMarker})
			return true, nil
		})
		if err != nil {
			yield(store.Version{}, &store.KeyError{Op: "list versions of", Key: prefix, Err: err})
			return
		}
		slices.SortStableFunc(all, func(a, b store.Version) int {
			switch {
			case a.Key != b.Key:
				return strings.Compare(a.Key, b.Key)
			case a.Latest != b.Latest:
				return map[bool]int{true: -1, false: 1}[a.Latest]
			}
			return b.Modified.Compare(a.Modified)
		})
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// Delete implements [store.Store]. In a versioned bucket it hides the objects.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	objects := make([]minio.ObjectInfo, len(keys))
	for i, key := range keys {
		objects[i].Key = s.path(key)
	}
	return s.remove(ctx, objects)
}

// DeleteVersions implements [store.Versioner].
func (s *Store) DeleteVersions(ctx context.Context, versions []store.Version) error {
	objects := make([]minio.ObjectInfo, len(versions))
	for i, v := range versions {
		objects[i].Key, objects[i].VersionID = s.path(v.Key), v.Version
	}
	return s.remove(ctx, objects)
}

// removed is one object of a deletion.
type removed struct{ key, version string }

// batch is how many objects one request deletes.
const batch = 1000

func (s *Store) remove(ctx context.Context, objects []minio.ObjectInfo) error {
	var errs []error
	for len(objects) > 0 {
		n := min(batch, len(objects))
		errs = append(errs, s.removeBatch(ctx, objects[:n])...)
		objects = objects[n:]
	}
	return errors.Join(errs...)
}

func (s *Store) removeBatch(ctx context.Context, objects []minio.ObjectInfo) (errs []error) {
	c := s.begin(ctx)
	defer c.end()
	ch := make(chan minio.ObjectInfo, len(objects))
	open := map[removed]bool{}
	for _, o := range objects {
		ch <- o
		open[removed{o.Key, o.VersionID}] = true
	}
	close(ch)
	var failed error   // of the request
	var then time.Time // of the answer, by the clock of the store
	for r := range s.core.RemoveObjectsWithResult(c.ctx, s.c.Bucket, ch, minio.RemoveObjectsOptions{}) {
		if then.IsZero() {
			then = s.Date()
		}
		if r.ObjectName == "" {
			failed = r.Err
			continue
		}
		o := removed{r.ObjectName, r.ObjectVersionID}
		if !open[o] { // some answers have a version that was not asked for
			o.version = ""
		}
		delete(open, o)
		if r.Err != nil {
			if err := s.notRemoved(ctx, c, o, then, r.Err); err != nil {
				errs = append(errs, err)
			}
		}
	}
	// minio-go keeps some answers to itself: those are asked for.
	for o := range open {
		err := failed
		if err == nil && c.ctx.Err() != nil {
			err = context.Cause(c.ctx)
		}
		if err == nil {
			err = minio.ErrorResponse{Code: "NoAnswer", Message: "The store does not say whether the object was deleted."}
			if _, _, e := s.stat(ctx, strings.TrimPrefix(o.key, s.prefix), o.version); errors.Is(e, store.ErrNotFound) {
				continue
			}
		}
		errs = append(errs, &store.KeyError{Op: "delete", Key: strings.TrimPrefix(o.key, s.prefix), Version: o.version, Err: c.classify(err)})
	}
	return errs
}

// notRemoved returns the error of an object that could not be deleted, nil if it
// does not exist. Servers refuse to delete what is locked in different ways: with
// 400 or with 403, which also stands for a missing permission. What counts is whether it
// was locked when the store refused: that may be over by now.
func (s *Store) notRemoved(ctx context.Context, c *call, o removed, then time.Time, err error) error {
	err = c.classify(err)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	key := strings.TrimPrefix(o.key, s.prefix)
	if !store.Temporary(err) && ctx.Err() == nil {
		if r, e := s.Retention(ctx, key, o.version); e == nil && r.Until.After(then) {
			return &store.LockedError{Key: key, Version: o.version, Until: r.Until, Err: err}
		}
	}
	return &store.KeyError{Op: "delete", Key: key, Version: o.version, Err: err}
}

// Retention implements [store.Retainer], from the headers of the object: the
// answers to GetObjectRetention differ between servers. It is zero also if the
// credentials may not see it.
func (s *Store) Retention(ctx context.Context, key, version string) (store.Retention, error) {
	_, h, err := s.stat(ctx, key, version)
	if err != nil {
		return store.Retention{}, &store.KeyError{Op: "retention of", Key: key, Version: version, Err: err}
	}
	mode, until := h.Get("X-Amz-Object-Lock-Mode"), h.Get("X-Amz-Object-Lock-Retain-Until-Date")
	if mode == "" && until == "" {
		return store.Retention{}, nil
	}
	t, err := time.Parse(time.RFC3339, until)
	if err != nil {
		return store.Retention{}, &store.KeyError{Op: "retention of", Key: key, Version: version, Err: fmt.Errorf("%w: retention until %q", store.ErrLied, until)}
	}
	return store.Retention{Mode: store.Mode(strings.ToLower(mode)), Until: t.UTC()}, nil
}

// Retain implements [store.Retainer].
func (s *Store) Retain(ctx context.Context, key, version string, r store.Retention) error {
	old, err := s.Retention(ctx, key, version)
	if err != nil {
		return err
	}
	if r = store.Extended(old, r); r == old {
		return nil
	}
	mode, until := minio.RetentionMode(strings.ToUpper(string(r.Mode))), roundUp(r.Until)
	c := s.begin(ctx)
	defer c.end()
	err = s.core.PutObjectRetention(c.ctx, s.c.Bucket, s.path(key), minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until, VersionID: version})
	if err != nil {
		return &store.KeyError{Op: "retain", Key: key, Version: version, Err: c.classify(err)}
	}
	return nil
}

// Date implements [store.Dater]: the Date of the latest answer.
func (s *Store) Date() time.Time { return s.clock.date() }

// ProbeStore implements [store.Prober]: it tries a wrong secret key.
func (s *Store) ProbeStore(ctx context.Context, key string) []store.Finding {
	f := store.Finding{Check: "wrong-secret", Severity: store.Warning}
	if value, err := s.creds.GetWithContext(nil); err != nil {
		f.Detail = "not tried: " + err.Error()
	} else {
		other := *s
		value.SecretAccessKey += "x"
		other.creds = credentials.NewStatic(value.AccessKeyID, value.SecretAccessKey, value.SessionToken, credentials.SignatureV4)
		if other.core, err = s.client(other.creds); err == nil {
			_, _, err = other.stat(ctx, key, "")
		}
		switch {
		case err == nil:
			f.Detail = "a wrong secret key is accepted: any client that reaches the server can read and delete"
		case errors.Is(err, store.ErrDenied):
			f.Severity = store.OK
		default:
			f.Detail = "not tried: " + err.Error()
		}
	}
	return []store.Finding{f}
}
