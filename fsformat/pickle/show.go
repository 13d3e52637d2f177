package pickle

import (
	"bytes"
	"fmt"
)

// maxShown is the largest record that is shown.
const maxShown = 16 << 20

// Show describes a ZODB record for people: its class and its state. Wrapped
// records are unwrapped.
func Show(record []byte) (string, error) {
	plain, _, err := Unwrap(record)
	if err != nil {
		return "", err
	}
	if len(plain) > maxShown {
		return "", fmt.Errorf("showing a record: its %d bytes are more than %d", len(plain), maxShown)
	}
	class, state, err := DecodeRecord(plain)
	if err != nil {
		var other error
		if class, state, other = unpickle(plain); other != nil {
			return "", fmt.Errorf("showing a record: %w", err)
		}
	}
	var b bytes.Buffer
	b.WriteString("class ")
	if err := Format(&b, class, 0); err != nil {
		return "", err
	}
	b.WriteString("\nstate ")
	err = Format(&b, state, 0)
	return b.String(), err
}
