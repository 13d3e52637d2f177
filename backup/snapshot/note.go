package snapshot

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Version is the version of every note that this package writes, and the greatest
// that it reads.
const Version = 1

// Role is the part that a signer of notes has.
type Role string

// The roles.
const (
	Writer Role = "writer" // marker, epochs, lineages, tails, manifests
	Keeper Role = "keeper" // policies, doom lists, voids
	Driver Role = "drill"  // proofs
)

const (
	maxNote = 64 << 20 // of a manifest or a doom list
	// MaxTailNote is the greatest length of the note of a tail.
	MaxTailNote = 1 << 20
	// MaxPage is the greatest length of a catalog page.
	MaxPage = 1 << 20
)

var repositoryForm = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// GenerateKey returns the private key of a role of the repository with that name, of
// the form PRIVATE+KEY+…, and the key that verifies what it signs.
func GenerateKey(repository string, role Role) (private, verifier string, err error) {
	if !repositoryForm.MatchString(repository) {
		return "", "", fmt.Errorf("%.50q cannot be the name of a repository: want 1 to 32 of a-z, 0-9 and -", repository)
	}
	return note.GenerateKey(rand.Reader, repository+"/"+string(role))
}

// Signer signs the notes of a role.
type Signer struct{ s note.Signer }

// NewSigner reads a private key that GenerateKey made.
func NewSigner(private string) (*Signer, error) {
	s, err := note.NewSigner(strings.TrimSpace(private))
	if err != nil {
		return nil, errors.New("the private key for signing is not of the form PRIVATE+KEY+<name>+<hash>+<key>") // it is not shown
	}
	return &Signer{s}, nil
}

// VerifierOf returns the key that verifies what a private key signs.
func VerifierOf(private string) (string, error) {
	bad := errors.New("the private key for signing is not of the form PRIVATE+KEY+<name>+<hash>+<key>") // it is not shown
	if _, err := NewSigner(private); err != nil {
		return "", err
	}
	parts := strings.SplitN(strings.TrimSpace(private), "+", 5)
	if len(parts) != 5 {
		return "", bad
	}
	// The algorithm (1 is Ed25519) and the seed.
	b, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(b) != 1+ed25519.SeedSize || b[0] != 1 {
		return "", bad
	}
	public, ok := ed25519.NewKeyFromSeed(b[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return "", bad
	}
	return note.NewEd25519VerifierKey(parts[2], public)
}

// Name returns the name of the key, <repository>/<role>.
func (s *Signer) Name() string { return s.s.Name() }

// Role returns the role that the name of the key says.
func (s *Signer) Role() Role { return roleOf(s.s.Name()) }

func roleOf(name string) Role {
	_, role, _ := strings.Cut(name, "/")
	return Role(role)
}

// Verifiers are the keys that are trusted, of any role.
type Verifiers []note.Verifier

// NewVerifiers reads keys of the form <repository>/<role>+<hash>+<key>. One that is there twice
// counts once.
func NewVerifiers(keys ...string) (Verifiers, error) {
	var list Verifiers
	for i, k := range keys {
		if slices.Contains(keys[:i], k) {
			continue // a note would be ambiguous
		}
		v, err := note.NewVerifier(k)
		if err != nil {
			return nil, fmt.Errorf("%.100q does not verify notes: want <repository>/<role>+<hash>+<key>, as \"init\" prints it", k)
		}
		if r := roleOf(v.Name()); r != Writer && r != Keeper && r != Driver {
			return nil, fmt.Errorf("%.100q: the role of the key is %q, want writer, keeper or drill", k, r)
		}
		list = append(list, v)
	}
	return list, nil
}

// head is how each note begins.
type head struct {
	Note string `json:"neobackup"`
	V    int64  `json:"v"`
}

// sign returns a text as a note.
func sign(text []byte, role Role, s *Signer) ([]byte, error) {
	if s.Role() != role {
		return nil, fmt.Errorf("key %s does not sign for the %s", s.Name(), role)
	}
	b, err := note.Sign(&note.Note{Text: string(text)}, s.s)
	if err != nil {
		return nil, fmt.Errorf("signing as %s: %w", s.Name(), err)
	}
	return b, nil
}

// open returns the text of a note that a trusted key of the role signed.
func open(b []byte, name string, role Role, trusted Verifiers) ([]byte, error) {
	if len(b) > maxNote {
		return nil, corrupt(name, -1, "a note of %d bytes, more than %d", len(b), maxNote)
	}
	var list []note.Verifier
	for _, v := range trusted {
		if roleOf(v.Name()) == role {
			list = append(list, v)
		}
	}
	n, err := note.Open(b, note.VerifierList(list...))
	if err == nil {
		return []byte(n.Text), nil
	}
	if e, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		u := &UntrustedError{Name: name, Role: role}
		for _, s := range e.Note.Sigs {
			u.Found = append(u.Found, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
		}
		for _, s := range e.Note.UnverifiedSigs {
			u.Found = append(u.Found, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
		}
		return nil, u
	}
	if e, ok := errors.AsType[*note.InvalidSignatureError](err); ok {
		return nil, corrupt(name, -1, "the signature of %s+%08x does not fit the text", e.Name, e.Hash)
	}
	return nil, corrupt(name, -1, "no signed note: %w", err)
}

// unsigned returns the text of a note whatever signed it.
func unsigned(b []byte, name string) ([]byte, error) {
	n, err := note.Open(b, note.VerifierList())
	if e, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		n, err = e.Note, nil
	}
	if err != nil {
		return nil, corrupt(name, -1, "no signed note: %w", err)
	}
	return []byte(n.Text), nil
}

// Text returns the text of a signed note without its signatures. It verifies nothing.
func Text(b []byte) ([]byte, error) { return unsigned(b, "note") }

// lines yields the lines of a text with their offsets.
type lines struct {
	name string
	rest []byte
	off  int64 // of the current line
	next int64
}

// line returns the next line without its LF, or false at the end.
func (l *lines) line() ([]byte, bool, error) {
	if len(l.rest) == 0 {
		return nil, false, nil
	}
	l.off = l.next
	line, rest, ok := bytes.Cut(l.rest, []byte{'\n'})
	if !ok {
		return nil, false, corrupt(l.name, l.off, "a line without its end")
	}
	l.rest = rest
	l.next += int64(len(line)) + 1
	return line, true, nil
}

// first reads the first line of a text into the note that p points to, whose first
// fields are those of head, and makes sure that it is one of that kind.
func (l *lines) first(kind string, p any) error {
	line, ok, err := l.line()
	if err != nil {
		return err
	}
	if !ok {
		return corrupt(l.name, 0, "an empty note")
	}
	if err := checkHead(line, l.name, kind); err != nil {
		return err
	}
	if err := parseFirst(line, p); err != nil {
		return corrupt(l.name, 0, "%s: %w", kind, err)
	}
	return nil
}

// headForm is how the first line of each note begins, in all versions.
var headForm = regexp.MustCompile(`^\{"neobackup":"([a-z]{1,20})","v":([1-9][0-9]{0,8})[,}]`)

// checkHead refuses another kind of note and a greater version.
func checkHead(line []byte, name, kind string) error {
	m := headForm.FindSubmatch(line)
	if m == nil {
		return corrupt(name, 0, "%.60q is not the first line of a note of a backup repository", line)
	}
	var v int64
	fmt.Sscan(string(m[2]), &v)
	if v > Version {
		return &VersionError{Name: name, What: string(m[1]), Got: v, Known: Version}
	}
	if string(m[1]) != kind {
		return corrupt(name, 0, "a note of kind %q, want %q", m[1], kind)
	}
	return nil
}

// end refuses further lines.
func (l *lines) end(kind string) error {
	line, ok, err := l.line()
	if err == nil && ok {
		err = corrupt(l.name, l.off, "%.60q follows the only line of a %s", line, kind)
	}
	return err
}

// Note is a note of one line: *[Marker], *[Epoch], *[Lineage], *[Policy], *[Void] or
// *[Proof].
type Note interface {
	kind() (string, Role)
	check() error
	place() (repo ID, key string) // key as far as the note determines it
}

// Sign encodes a note of one line and signs it, as a key of its role.
func Sign(n Note, s *Signer) ([]byte, error) {
	kind, role := n.kind()
	if err := n.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	p := reflect.ValueOf(n)
	b, err := appendFirst(nil, kind, p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return sign(b, role, s)
}

// appendFirst appends the first line of a note: its kind, its version, its fields.
func appendFirst(b []byte, kind string, p reflect.Value) ([]byte, error) {
	b = fmt.Appendf(b, `{"neobackup":%q,"v":%d`, kind, Version)
	at := len(b)
	b, err := appendObject(b, p)
	if err != nil {
		return nil, err
	}
	if b[at] = ','; b[at+1] == '}' {
		b = slices.Delete(b, at, at+1)
	}
	return append(b, '\n'), nil
}

// Open decodes the note with that key into n. Only a note of the repository that a
// trusted key of its role signed is taken. The repository is ignored for a marker.
func Open(b []byte, key string, repo ID, n Note, trusted Verifiers) error {
	kind, role := n.kind()
	text, err := open(b, key, role, trusted)
	if err != nil {
		return err
	}
	return parseNote(text, key, kind, repo, n)
}

// OpenUnsigned decodes a note whatever signed it: a marker, before the keys that it
// lists are compared with the trusted ones; and for recovery.
func OpenUnsigned(b []byte, key string, repo ID, n Note) error {
	kind, _ := n.kind()
	text, err := unsigned(b, key)
	if err != nil {
		return err
	}
	return parseNote(text, key, kind, repo, n)
}

func parseNote(text []byte, key, kind string, repo ID, n Note) error {
	l := &lines{name: key, rest: text}
	if err := l.first(kind, n); err != nil {
		return err
	}
	if err := l.end(kind); err != nil {
		return err
	}
	if err := n.check(); err != nil {
		return corrupt(key, 0, "%s: %w", kind, err)
	}
	of, want := n.place()
	if kind == "repository" {
		repo = of
	}
	return checkPlace(key, repo, of, want)
}

// checkPlace makes sure that a note is of the repository and at the place that it
// says it is.
func checkPlace(key string, repo, of ID, want string) error {
	if of != repo {
		return corrupt(key, 0, "a note of repository %v, want %v", of, repo)
	}
	if !strings.HasPrefix(key, want) {
		return corrupt(key, 0, "the note says that it is %s", want)
	}
	return nil
}
