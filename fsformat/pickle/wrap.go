package pickle

import (
	"bytes"
	"compress/zlib"
	"encoding/hex"
	"fmt"
	"io"
)

// maxUnwrapped is the longest record that is taken out of a wrapping.
const maxUnwrapped = 1 << 30

// Unwrap returns the record inside of one that a storage wrapper has written:
// compressed by zc.zlibstorage (".z") or in hexadecimal (".h", ZODB's tests).
// wrapped is false, and the record returned as it is, if it is none.
func Unwrap(record []byte) (plain []byte, wrapped bool, err error) {
	if len(record) < 2 || record[0] != '.' {
		return record, false, nil
	}
	switch record[1] {
	case 'z':
		z, err := zlib.NewReader(bytes.NewReader(record[2:]))
		if err != nil {
			return nil, true, fmt.Errorf("unwrapping a compressed record: %w", err)
		}
		plain, err := io.ReadAll(io.LimitReader(z, maxUnwrapped+1))
		if err != nil {
			return nil, true, fmt.Errorf("unwrapping a compressed record: %w", err)
		}
		if len(plain) > maxUnwrapped {
			return nil, true, fmt.Errorf("unwrapping a compressed record: more than %d bytes", maxUnwrapped)
		}
		return plain, true, nil
	case 'h':
		plain := make([]byte, hex.DecodedLen(len(record)-2))
		if _, err := hex.Decode(plain, record[2:]); err != nil {
			return nil, true, fmt.Errorf("unwrapping a hexadecimal record: %w", err)
		}
		return plain, true, nil
	}
	return record, false, nil
}

// wrap puts a record into the wrapping that another one has.
func wrap(plain, like []byte) ([]byte, error) {
	if like[1] == 'h' {
		return hex.AppendEncode([]byte(".h"), plain), nil
	}
	b := bytes.NewBufferString(".z")
	z := zlib.NewWriter(b)
	if _, err := z.Write(plain); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
