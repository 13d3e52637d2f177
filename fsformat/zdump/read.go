package zdump

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/adler32"
	"hash/crc32"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

const (
	// maxLine is the longest line: an extension of which every byte is escaped.
	maxLine = 4*(1<<16) + 64
	// step is how much memory is set aside for data before they are there.
	step = 1 << 20
)

// ErrHashOnly reports a dump without data, from which nothing can be restored.
var ErrHashOnly = errors.New("the dump has only the digest of the data")

// LoadFunc returns the data of an object in an earlier transaction; nil if it does
// not exist there.
type LoadFunc func(oid tid.OID, at tid.TID) ([]byte, error)

// Read yields the transactions of a dump. The records of a transaction can be read
// once, and are, at the next step if not before. load finds the data that a
// transaction shares with an earlier one.
//
// Digests are verified. Errors say the number of the line, where raw data count as
// the lines they have.
func Read(in io.Reader, load LoadFunc) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		r := reader{r: bufio.NewReaderSize(in, maxLine), load: load}
		for {
			t, err := r.transaction()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("dump: line %d: %w", r.n, err))
				return
			}
			if !yield(t, nil) || r.failed {
				return
			}
			for !r.ended { // what was not read
				if _, err := r.record(); err != nil {
					yield(nil, fmt.Errorf("dump: line %d: %w", r.n, err))
					return
				}
			}
		}
	}
}

type reader struct {
	r      *bufio.Reader
	load   LoadFunc
	n      int  // of the line
	ended  bool // the transaction has no more records
	failed bool // they ended in an error
	at     tid.TID
	data   []byte
}

// line returns the next line without its LF, valid until the next read.
func (r *reader) line() (string, error) {
	b, err := r.r.ReadSlice('\n')
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, bufio.ErrBufferFull) {
		err = fmt.Errorf("a line longer than %d bytes", maxLine)
	}
	if err == nil || err != io.EOF {
		r.n++
	}
	if err != nil {
		return "", err
	}
	return string(b[:len(b)-1]), nil
}

func (r *reader) transaction() (*txn.Transaction, error) {
	head, err := r.line()
	if err != nil {
		return nil, err
	}
	f := strings.SplitN(head, " ", 3)
	if len(f) != 3 || f[0] != "txn" {
		return nil, fmt.Errorf("%.40q is no head of a transaction", head)
	}
	t := &txn.Transaction{}
	if t.TID, err = tid.Parse(f[1]); err != nil {
		return nil, err
	}
	status, err := unquote(f[2])
	if err != nil || len(status) != 1 {
		return nil, fmt.Errorf("%.40q is no status", f[2])
	}
	t.Status = status[0]
	for _, m := range []struct {
		name string
		p    *[]byte
	}{{"user ", &t.User}, {"description ", &t.Description}, {"extension ", &t.Extension}} {
		l, err := r.line()
		if err != nil {
			return nil, unexpected(err)
		}
		quoted, ok := strings.CutPrefix(l, m.name)
		if !ok {
			return nil, fmt.Errorf("%.40q instead of the %s", l, strings.TrimSpace(m.name))
		}
		if *m.p, err = unquote(quoted); err != nil {
			return nil, err
		}
	}
	r.ended, r.at = false, t.TID
	t.Records = func(yield func(*txn.Record, error) bool) {
		for !r.ended {
			rec, err := r.record()
			if err != nil {
				r.ended, r.failed = true, true
				yield(nil, fmt.Errorf("dump: line %d: %w", r.n, err))
				return
			}
			if rec != nil && !yield(rec, nil) {
				return
			}
		}
	}
	return t, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// record reads the next record, nil at the end of the transaction.
func (r *reader) record() (*txn.Record, error) {
	l, err := r.line()
	if err != nil {
		return nil, unexpected(err)
	}
	if l == "" {
		r.ended = true
		return nil, nil
	}
	f := strings.Split(l, " ")
	if len(f) < 3 || f[0] != "obj" {
		return nil, fmt.Errorf("%.60q is no object", l)
	}
	rec := &txn.Record{TID: r.at}
	if rec.OID, err = tid.ParseOID(f[1]); err != nil {
		return nil, err
	}
	switch {
	case len(f) == 3 && f[2] == "delete":
	case len(f) == 4 && f[2] == "from":
		if rec.DataTID, err = tid.Parse(f[3]); err != nil {
			return nil, err
		}
		if rec.DataTID >= r.at {
			return nil, fmt.Errorf("object %v: its data are those of %v, which is not earlier", rec.OID, rec.DataTID)
		}
		if rec.Data, err = r.load(rec.OID, rec.DataTID); err != nil {
			return nil, fmt.Errorf("object %v: finding the data of transaction %v: %w", rec.OID, rec.DataTID, err)
		}
		if rec.Data == nil {
			return nil, fmt.Errorf("object %v does not exist in transaction %v, from which its data are", rec.OID, rec.DataTID)
		}
	case len(f) == 5 && f[4] == "-":
		return nil, fmt.Errorf("object %v: %w", rec.OID, ErrHashOnly)
	case len(f) == 4:
		if rec.Data, err = r.body(f[2], f[3]); err != nil {
			return nil, fmt.Errorf("object %v: %w", rec.OID, err)
		}
	default:
		return nil, fmt.Errorf("%.60q is no object", l)
	}
	return rec, nil
}

// body reads data and verifies them.
func (r *reader) body(size, digest string) ([]byte, error) {
	n, err := strconv.ParseUint(size, 10, 48)
	if err != nil {
		return nil, fmt.Errorf("%.40q is no size", size)
	}
	name, want, _ := strings.Cut(digest, ":")
	var h hash.Hash
	switch name {
	case "null":
		want = ""
	case "adler32":
		h = adler32.New()
	case "crc32":
		h = crc32.NewIEEE()
	case "sha1":
		h = sha1.New()
	case "sha256":
		h = sha256.New()
	case "sha512":
		h = sha512.New()
	default:
		return nil, fmt.Errorf("unknown digest %.40q", name)
	}
	if r.data = r.data[:0]; r.data == nil {
		r.data = []byte{} // empty data are data
	}
	for left := n; left > 0; {
		k := min(left, step)
		at := len(r.data)
		r.data = append(r.data, make([]byte, k)...)
		if _, err := io.ReadFull(r.r, r.data[at:]); err != nil {
			return nil, unexpected(err)
		}
		left -= k
	}
	if c, err := r.r.ReadByte(); err != nil || c != '\n' {
		return nil, errors.New("its data are not followed by an end of line")
	}
	r.n += bytes.Count(r.data, []byte{'\n'}) + 1
	if h == nil {
		return r.data, nil
	}
	h.Write(r.data)
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return nil, fmt.Errorf("its %s is %s, not %.140s: the data are damaged", name, got, want)
	}
	return r.data, nil
}

// unquote reverses appendQuoted.
func unquote(s string) ([]byte, error) {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return nil, fmt.Errorf("%.40q is not in quotes", s)
	}
	in := s[1 : len(s)-1]
	var b []byte
	for i := 0; i < len(in); i++ {
		c := in[i]
		if c == '"' {
			return nil, fmt.Errorf("%.40q has a quote in it", s)
		}
		if c != '\\' {
			b = append(b, c)
			continue
		}
		i++
		if i == len(in) {
			return nil, fmt.Errorf("%.40q ends in an escape", s)
		}
		switch in[i] {
		case '\\', '"':
			b = append(b, in[i])
		case 't':
			b = append(b, '\t')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 'x':
			if i+3 > len(in) {
				return nil, fmt.Errorf("%.40q has a broken escape", s)
			}
			n, err := strconv.ParseUint(in[i+1:i+3], 16, 8)
			if err != nil {
				return nil, fmt.Errorf("%.40q has a broken escape", s)
			}
			b = append(b, byte(n))
			i += 2
		default:
			return nil, fmt.Errorf(`%.40q has an unknown escape \%c`, s, in[i])
		}
	}
	return b, nil
}
