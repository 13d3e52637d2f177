package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/conf"
)

// ErrSecret reports a file of secrets that is not for its owner alone, or has none.
var ErrSecret = errors.New("not a file of secrets")

// maxSecret is the greatest length of a file of secrets, in bytes.
const maxSecret = 1 << 20

// ReadSecret reads a file that only its owner can read.
func ReadSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %w: no regular file", path, ErrSecret)
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s is %w: others than its owner have access (mode %04o): chmod 600 %s, and replace the key if others may have read it", path, ErrSecret, mode, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("%s is %w: longer than %d bytes", path, ErrSecret, maxSecret)
	}
	return b, err
}

// ReadSigner reads a private key for signing from a file of one line, beside lines that
// begin with #, and returns the key that verifies what it signs too.
func ReadSigner(path string) (*snapshot.Signer, string, error) {
	b, err := ReadSecret(path)
	if err != nil {
		return nil, "", err
	}
	var lines []string
	for _, l := range conf.Lines(string(b)) {
		if !strings.HasPrefix(l, "#") {
			lines = append(lines, l)
		}
	}
	if len(lines) != 1 {
		return nil, "", fmt.Errorf("%s is %w: %d lines, want one key that begins with PRIVATE+KEY", path, ErrSecret, len(lines))
	}
	s, err := snapshot.NewSigner(lines[0])
	if err != nil {
		return nil, "", fmt.Errorf("%s is %w: %w", path, ErrSecret, err)
	}
	verifier, err := snapshot.VerifierOf(lines[0])
	if err != nil {
		return nil, "", fmt.Errorf("%s is %w: %w", path, ErrSecret, err)
	}
	return s, verifier, nil
}

// ReadIdentities reads identities of age from a file.
func ReadIdentities(path string) ([]age.Identity, error) {
	b, err := ReadSecret(path)
	if err != nil {
		return nil, err
	}
	list, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s is %w: want lines that begin with AGE-SECRET-KEY, as age-keygen writes them", path, ErrSecret) // err may show a part of it
	}
	return list, nil
}

// at says where a key was set, at the beginning of an error.
func (r *Repository) at(key string, err error) error {
	if v := r.values[key]; len(v.lines) > 0 {
		return &placeError{fmt.Sprintf("%s:%d: %s", r.file, v.lines[0], key), err}
	}
	return &placeError{key, err}
}

// placeError is an error of what a setting leads to.
type placeError struct {
	place string
	err   error
}

func (e *placeError) Error() string { return e.place + ": " + e.err.Error() }
func (e *placeError) Unwrap() error { return e.err }

// Signer reads the key of sign_key, which must be of that role. It returns the key that
// verifies what it signs too.
func (r *Repository) Signer(role snapshot.Role) (*snapshot.Signer, string, error) {
	if r.SignKey == "" {
		return nil, "", errors.New("no sign_key: a writer signs what it stores, with the key that init made")
	}
	s, verifier, err := ReadSigner(r.SignKey)
	if err != nil {
		return nil, "", r.at("sign_key", err)
	}
	if s.Role() != role {
		return nil, "", r.at("sign_key", fmt.Errorf("%s has the key %s, want one of the role %s", r.SignKey, s.Name(), role))
	}
	return s, verifier, nil
}

// KeeperSigner reads the key of a keeper: that of keeper_key, or else of sign_key if that is of the
// role.
func (r *Repository) KeeperSigner() (*snapshot.Signer, error) {
	key, file := "keeper_key", r.KeeperKey
	if file == "" {
		key, file = "sign_key", r.SignKey
	}
	if file == "" {
		return nil, errors.New("no keeper_key: policies and doom lists are signed")
	}
	s, _, err := ReadSigner(file)
	if err != nil {
		return nil, r.at(key, err)
	}
	if s.Role() != snapshot.Keeper {
		return nil, r.at(key, fmt.Errorf("%s has the key %s, want one of the role %s", file, s.Name(), snapshot.Keeper))
	}
	return s, nil
}

// Trusted returns the keys of verify_keys, and those of sign_key and keeper_key if this host has
// them.
func (r *Repository) Trusted() (snapshot.Verifiers, error) {
	keys := r.VerifyKeys
	for _, own := range []struct{ key, file string }{{"keeper_key", r.KeeperKey}, {"sign_key", r.SignKey}} {
		if own.file == "" {
			continue
		}
		switch _, verifier, err := ReadSigner(own.file); {
		case err == nil:
			keys = append([]string{verifier}, keys...)
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission):
			return nil, r.at(own.key, err)
		case own.key == "sign_key" && len(keys) == 0:
			return nil, r.at(own.key, err)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no verify_keys: what a store answers is believed only if a trusted key has signed it")
	}
	return snapshot.NewVerifiers(keys...)
}

// Getenv returns getenv with the credentials of s3_credentials, if that is set, in place of
// those of the environment.
func (r *Repository) Getenv(getenv func(string) string, file string, others ...string) func(string) string {
	if r.S3Credentials == "" {
		return getenv
	}
	return func(name string) string {
		if name == file {
			return r.S3Credentials
		}
		for _, o := range others {
			if name == o {
				return ""
			}
		}
		return getenv(name)
	}
}

// Identities reads the identities of the drill.
func (d *Drill) Identities() ([]age.Identity, error) {
	list, err := ReadIdentities(d.Identity)
	if err != nil {
		return nil, &placeError{d.place("identity"), err}
	}
	return list, nil
}

// Signer reads the key with which the drill signs its proofs.
func (d *Drill) Signer() (*snapshot.Signer, error) {
	s, _, err := ReadSigner(d.SignKey)
	if err == nil && s.Role() != snapshot.Driver {
		err = fmt.Errorf("%s has the key %s, want one of the role %s", d.SignKey, s.Name(), snapshot.Driver)
	}
	if err != nil {
		return nil, &placeError{d.place("sign_key"), err}
	}
	return s, nil
}

// place says where a key was set.
func (d *Drill) place(key string) string {
	if line, ok := d.lines[key]; ok {
		return fmt.Sprintf("%s:%d: %s", d.file, line, key)
	}
	return key
}
