package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"filippo.io/age"
)

const (
	maxAgeHeader = 64 << 10
	ageNonce     = 16
	ageChunk     = 64 << 10 // of plaintext
	ageSealed    = ageChunk + 16
)

// Recipient is what is encrypted to: an X25519 or a hybrid recipient of age.
type Recipient interface {
	age.Recipient
	fmt.Stringer
}

// Identity opens what was encrypted to its recipient.
type Identity interface {
	age.Identity
	fmt.Stringer // the secret key
}

// ParseRecipient reads a recipient of the form age1… or age1pq1….
func ParseRecipient(s string) (Recipient, error) {
	if strings.HasPrefix(s, "age1pq1") {
		r, err := age.ParseHybridRecipient(s)
		if err != nil {
			return nil, fmt.Errorf("recipient %.80q: %w", s, err)
		}
		return r, nil
	}
	r, err := age.ParseX25519Recipient(s)
	if err != nil {
		return nil, fmt.Errorf("recipient %.80q: %w", s, err)
	}
	return r, nil
}

// GenerateEpoch returns the identity of a new epoch and its recipient: hybrid if all
// recipients of the operators are.
func GenerateEpoch(recipients []Recipient) (Identity, Recipient, error) {
	hybrid := len(recipients) > 0
	for _, r := range recipients {
		if _, ok := r.(*age.HybridRecipient); !ok {
			hybrid = false
		}
	}
	if hybrid {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			return nil, nil, err
		}
		return id, id.Recipient(), nil
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, nil, err
	}
	return id, id.Recipient(), nil
}

// NewEpochKey makes the identity of a new epoch, and returns its recipient and the identity as
// Wrap encrypts it to the recipients of the operators. The identity itself is forgotten, as far as Go
// forgets: copies of it stay in the memory of the process until that is used for something else.
func NewEpochKey(recipients []Recipient) (recipient string, wrap []byte, err error) {
	id, to, err := GenerateEpoch(recipients)
	if err != nil {
		return "", nil, err
	}
	wrap, err = Wrap(id, recipients)
	return to.String(), wrap, err
}

// Wrap encrypts the identity of an epoch to the recipients of the operators.
func Wrap(id Identity, recipients []Recipient) ([]byte, error) {
	if len(recipients) == 0 {
		return nil, errors.New("no recipients to encrypt the key of an epoch to")
	}
	var b bytes.Buffer
	list := make([]age.Recipient, len(recipients))
	for i, r := range recipients {
		list[i] = r
	}
	w, err := age.Encrypt(&b, list...)
	if err == nil {
		_, err = io.WriteString(w, id.String()+"\n")
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypting the key of an epoch: %w", err)
	}
	return b.Bytes(), nil
}

// Unwrap returns the identity of an epoch from a wrap with that key. The error is an
// [age.NoIdentityMatchError] if none of the identities fits, and an ErrCorrupt if what
// is in the wrap is not the identity of the recipient.
func Unwrap(b []byte, key, recipient string, identities ...age.Identity) (Identity, error) {
	if len(b) > maxAgeHeader {
		return nil, corrupt(key, -1, "a key wrap of %d bytes, more than %d", len(b), maxAgeHeader)
	}
	r, err := age.Decrypt(bytes.NewReader(b), identities...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fmt.Errorf("%s: no identity that was given opens it: %w", key, err)
	}
	if err != nil {
		return nil, corrupt(key, -1, "opening a key wrap: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxAgeHeader))
	if err != nil {
		return nil, corrupt(key, -1, "opening a key wrap: %w", err)
	}
	s := strings.TrimSuffix(string(text), "\n")
	if id, err := age.ParseX25519Identity(s); err == nil && id.Recipient().String() == recipient {
		return id, nil
	}
	if id, err := age.ParseHybridIdentity(s); err == nil && id.Recipient().String() == recipient {
		return id, nil
	}
	return nil, corrupt(key, -1, "it does not contain the identity of %.80s", recipient)
}

// Stored is what a line says of a segment as it is stored.
type Stored struct {
	Bytes  int64
	SHA256 Hash
	KID    KID    // epoch; 0: not encrypted
	Header []byte // of the age file, with the nonce
}

// Seal writes what is stored of a segment: an age file of the plaintext, to the
// recipient of an epoch. Without a recipient it writes the plaintext as it is: only
// for a repository whose marker says that it is not encrypted.
func Seal(dst io.Writer, plaintext io.Reader, to Recipient, kid KID) (Stored, error) {
	if (to == nil) != (kid == 0) {
		return Stored{}, fmt.Errorf("recipient %v and epoch %v do not fit", to, kid)
	}
	sum := sha256.New()
	c := &capture{w: io.MultiWriter(dst, sum), keep: to != nil}
	if to == nil {
		if _, err := io.Copy(c, plaintext); err != nil {
			return Stored{}, err
		}
		return Stored{Bytes: c.n, SHA256: Hash(sum.Sum(nil))}, nil
	}
	w, err := age.Encrypt(c, to)
	if err != nil {
		return Stored{}, fmt.Errorf("encrypting: %w", err)
	}
	c.keep = false
	if _, err := io.Copy(w, plaintext); err != nil {
		return Stored{}, err
	}
	if err := w.Close(); err != nil {
		return Stored{}, err
	}
	if got, err := age.ExtractHeader(bytes.NewReader(c.kept)); err != nil || len(got)+ageNonce != len(c.kept) {
		return Stored{}, fmt.Errorf("encrypting: the header of the age file has %d bytes, want %d: %v", len(c.kept), len(got)+ageNonce, err)
	}
	return Stored{Bytes: c.n, SHA256: Hash(sum.Sum(nil)), KID: kid, Header: c.kept}, nil
}

// capture counts what is written, and keeps it as long as keep is set.
type capture struct {
	w    io.Writer
	n    int64
	keep bool
	kept []byte
}

func (c *capture) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	if c.keep {
		c.kept = append(c.kept, p[:n]...)
	}
	return n, err
}

// HeaderOf returns the header with the nonce of the age file that r gives, for a
// segment that no line names.
func HeaderOf(r io.Reader, key string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxAgeHeader))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	h, err := age.ExtractHeader(bytes.NewReader(b))
	if err != nil {
		return nil, corrupt(key, 0, "no age file: %w", err)
	}
	if len(b) < len(h)+ageNonce {
		return nil, corrupt(key, int64(len(b)), "an age file that ends within its header")
	}
	return b[:len(h)+ageNonce], nil
}

// FileKey unwraps the key of an age file, by the header that its line has. The error
// is an [age.NoIdentityMatchError] if no identity fits.
func FileKey(header []byte, key string, identities ...age.Identity) ([]byte, error) {
	if len(header) < ageNonce || len(header) > maxAgeHeader {
		return nil, corrupt(key, 0, "an age header of %d bytes", len(header))
	}
	k, err := age.DecryptHeader(header[:len(header)-ageNonce], identities...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fmt.Errorf("%s: no identity that was given opens it: %w", key, err)
	}
	if err != nil {
		return nil, corrupt(key, 0, "the header of the age file: %w", err)
	}
	return k, nil
}

// Sealed describes an age file that is read at random.
type Sealed struct {
	Key     string // for errors
	Size    int64  // of the file
	Header  []byte // with the nonce
	FileKey []byte // see FileKey
	Suffix  []byte // last bytes of the file, if they were read before; not read again
}

// PlainSize returns the length of the plaintext of the file.
func (s *Sealed) PlainSize() (int64, error) {
	body := s.Size - int64(len(s.Header))
	chunks := (body + ageSealed - 1) / ageSealed
	plain := body - chunks*(ageSealed-ageChunk)
	if body < 0 || plain < 0 || chunks == 0 {
		return 0, corrupt(s.Key, -1, "an age file of %d bytes: it is cut", s.Size)
	}
	return plain, nil
}

// SealedRange returns the range of the file that has to be read for n bytes of
// plaintext from off on, which end within it.
func (s *Sealed) SealedRange(off, n int64) (int64, int64) {
	h := int64(len(s.Header))
	from := h + off/ageChunk*ageSealed
	to := min(h+(off+n+ageChunk-1)/ageChunk*ageSealed, s.Size)
	return from, to - from
}

// Open returns the plaintext of the file and its length. Each read of it is one read
// of r, of whole chunks; the last chunk is authenticated at once. It may be used
// concurrently if r may.
func (s *Sealed) Open(r io.ReaderAt) (io.ReaderAt, int64, error) {
	size, err := s.PlainSize()
	if err != nil {
		return nil, 0, err
	}
	p := &plain{s: s, src: r, size: size}
	// Of the header only the nonce is needed, the key is known. age authenticates the
	// header with it.
	p.age, _, err = age.DecryptReaderAt(p.chunks(), s.Size, age.NewInjectedFileKeyIdentity(s.FileKey))
	if err != nil {
		return nil, 0, p.classify(err)
	}
	return p, size, nil
}

// plain is the plaintext of an age file.
type plain struct {
	s    *Sealed
	src  io.ReaderAt
	age  io.ReaderAt
	size int64

	mu      sync.Mutex
	windows []*window // that calls of ReadAt have read
}

// window is a range of the file that is in memory.
type window struct {
	off int64
	b   []byte
}

// has copies to p what the window has from off on, all or nothing.
func (w *window) has(p []byte, off int64) bool {
	if off < w.off || off+int64(len(p)) > w.off+int64(len(w.b)) {
		return false
	}
	copy(p, w.b[off-w.off:])
	return true
}

// ReadAt reads plaintext.
func (p *plain) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: reading at %d", p.s.Key, off)
	}
	n := min(int64(len(b)), p.size-off)
	if n <= 0 {
		if len(b) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	at, length := p.s.SealedRange(off, n)
	w := &window{off: at, b: make([]byte, length)}
	if err := p.fetch(w.b, at); err != nil {
		return 0, err
	}
	p.mu.Lock()
	p.windows = append(p.windows, w)
	p.mu.Unlock()
	got, err := p.age.ReadAt(b[:n], off)
	p.mu.Lock()
	for i := range p.windows {
		if p.windows[i] == w {
			p.windows = append(p.windows[:i], p.windows[i+1:]...)
			break
		}
	}
	p.mu.Unlock()
	if err != nil && err != io.EOF {
		return got, p.classify(err)
	}
	if int64(got) < int64(len(b)) {
		return got, io.EOF
	}
	return got, nil
}

// fetch reads sealed bytes, from the suffix if they are all there.
func (p *plain) fetch(b []byte, off int64) error {
	suffix := window{p.s.Size - int64(len(p.s.Suffix)), p.s.Suffix}
	if suffix.has(b, off) {
		return nil
	}
	n, err := p.src.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt(p.s.Key, -1, "it ends at byte %d of the stored object, want %d", off+int64(n), p.s.Size)
	}
	return &readError{fmt.Errorf("%s: reading %d bytes at %d: %w", p.s.Key, len(b), off, err)}
}

// readError is an error of the io.ReaderAt, not of what it gave.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// classify returns errors of reading as they are, and all others as damage.
func (p *plain) classify(err error) error {
	if e, ok := errors.AsType[*readError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*CorruptError](err); ok {
		return e
	}
	return corrupt(p.s.Key, -1, "decrypting: %w", err)
}

// chunks is the file as age reads it: the header from memory, chunks from the windows.
func (p *plain) chunks() io.ReaderAt { return readerAt(p.sealedAt) }

type readerAt func(b []byte, off int64) (int, error)

func (f readerAt) ReadAt(b []byte, off int64) (int, error) { return f(b, off) }

func (p *plain) sealedAt(b []byte, off int64) (int, error) {
	if h := p.s.Header; off < int64(len(h)) {
		n := copy(b, h[off:])
		if n < len(b) {
			return n, io.EOF // age reads the header with a buffer, and needs no more
		}
		return n, nil
	}
	p.mu.Lock()
	for _, w := range p.windows {
		if w.has(b, off) {
			p.mu.Unlock()
			return len(b), nil
		}
	}
	p.mu.Unlock()
	if err := p.fetch(b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}
