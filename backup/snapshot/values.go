package snapshot

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// ID is the random id of a repository or a lineage.
type ID [16]byte

// NewID returns a random id.
func NewID() ID {
	var id ID
	rand.Read(id[:]) // never fails
	return id
}

// ParseID reads the 32 hexadecimal digits that ID.String writes.
func ParseID(s string) (ID, error) {
	var id ID
	if err := parseHex(id[:], s); err != nil {
		return id, fmt.Errorf("id %.40q: %w", s, err)
	}
	return id, nil
}

// String returns 32 lowercase hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Hash is a SHA-256. The zero Hash is none.
type Hash [sha256.Size]byte

// Sum returns the hash of b.
func Sum(b []byte) Hash { return sha256.Sum256(b) }

// ParseHash reads the 64 hexadecimal digits that Hash.String writes.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if err := parseHex(h[:], s); err != nil {
		return h, fmt.Errorf("hash %.70q: %w", s, err)
	}
	return h, nil
}

// String returns 64 lowercase hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Short returns the first 8 bytes, as names of objects have them.
func (h Hash) Short() Short { return Short(h[:8]) }

// Short is the beginning of a Hash, in the names of objects.
type Short [8]byte

// String returns 16 lowercase hexadecimal digits.
func (s Short) String() string { return hex.EncodeToString(s[:]) }

// parseHex reads lowercase hexadecimal digits for exactly the bytes of b.
func parseHex(b []byte, s string) error {
	if len(s) != 2*len(b) || !isHex(s) {
		return fmt.Errorf("want %d lowercase hexadecimal digits", 2*len(b))
	}
	_, err := hex.Decode(b, []byte(s))
	return err
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

const (
	timeForm = "2006-01-02T15:04:05Z"
	nameForm = "20060102T150405Z"
)

// parseTime reads a time that time.Format writes for the form.
func parseTime(form, s string) (time.Time, error) {
	t, err := time.Parse(form, s)
	if err != nil || t.Format(form) != s {
		return t, fmt.Errorf("time %.30q: want the form %s", s, form)
	}
	return t, nil
}
