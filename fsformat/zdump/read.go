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

// LoadFunc returns the data of an object in an earlier transaction; nil if that
// transaction deleted it or undid its creation. It returns an error if the transaction
// has no record of it.
type LoadFunc func(oid tid.OID, at tid.TID) ([]byte, error)

// Read yields the transactions of a dump. The records of a transaction can be read
// once, and are, at the next step if not before. load finds the data that a
// transaction shares with an earlier one.
//
// Digests are verified. Errors say the number of the line, where raw data count as
// the lines they have.
func Read(in io.Reader, load LoadFunc) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		s := NewScanner(in)
		failed := false
		for {
			t, err := s.Transaction()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			t.Records = func(yield func(*txn.Record, error) bool) {
				for {
					rec, err := s.loaded(load)
					if err != nil {
						failed = true
						yield(nil, err)
						return
					}
					if rec == nil || !yield(rec, nil) {
						return
					}
				}
			}
			if !yield(t, nil) || failed {
				return
			}
			for { // what was not read
				rec, err := s.loaded(load)
				if err != nil {
					yield(nil, err)
					return
				}
				if rec == nil {
					break
				}
			}
		}
	}
}

// loaded returns the next record with the data that it shares with an earlier one.
func (s *Scanner) loaded(load LoadFunc) (*txn.Record, error) {
	rec, err := s.Record()
	if err != nil || rec == nil || rec.DataTID == 0 {
		return rec, err
	}
	if rec.Data, err = load(rec.OID, rec.DataTID); err != nil {
		return nil, s.fail(fmt.Errorf("object %v: finding the data of transaction %v: %w", rec.OID, rec.DataTID, err))
	}
	return rec, nil
}

// Scanner reads a dump step by step, without the data that a transaction shares with
// an earlier one. After an error it returns that error again.
type Scanner struct {
	r     *bufio.Reader
	n     int   // of the line
	pos   int64 // where the next line begins
	start int64 // where the last one began
	inTxn bool  // its records are not all read
	at    tid.TID
	data  []byte
	err   error
}

// NewScanner returns a scanner of the dump that in gives.
func NewScanner(in io.Reader) *Scanner {
	return &Scanner{r: bufio.NewReaderSize(in, maxLine)}
}

// Resume makes a scanner that has read nothing begin with a line of an object of
// transaction at.
func (s *Scanner) Resume(at tid.TID) { s.inTxn, s.at = true, at }

// Transaction returns the head of the next transaction, with nil for its records, or
// io.EOF. Records that were not read are read over.
func (s *Scanner) Transaction() (*txn.Transaction, error) {
	for s.inTxn && s.err == nil {
		if _, err := s.Record(); err != nil {
			return nil, err
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	t, err := s.transaction()
	if err == io.EOF {
		return nil, err
	}
	if err != nil {
		return nil, s.fail(err)
	}
	s.inTxn, s.at = true, t.TID
	return t, nil
}

// Record returns the next record of the transaction, nil at its end. A record whose
// data are those of an earlier transaction has DataTID, and no data. It is valid until
// the next call.
func (s *Scanner) Record() (*txn.Record, error) {
	if s.err != nil {
		return nil, s.err
	}
	if !s.inTxn {
		return nil, nil
	}
	rec, err := s.record()
	if err != nil {
		return nil, s.fail(err)
	}
	return rec, nil
}

// Pos returns where the line of the last record or transaction begins, in bytes of the
// dump.
func (s *Scanner) Pos() int64 { return s.start }

// Offset returns how many bytes of the dump were read.
func (s *Scanner) Offset() int64 { return s.pos }

// Open reports whether the records of the last transaction are not all read.
func (s *Scanner) Open() bool { return s.inTxn }

func (s *Scanner) fail(err error) error {
	s.err = fmt.Errorf("dump: line %d: %w", s.n, err)
	return s.err
}

// line returns the next line without its LF, valid until the next read.
func (s *Scanner) line() (string, error) {
	b, err := s.r.ReadSlice('\n')
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, bufio.ErrBufferFull) {
		err = fmt.Errorf("a line longer than %d bytes", maxLine)
	}
	if err == nil || err != io.EOF {
		s.n++
	}
	s.start = s.pos
	s.pos += int64(len(b))
	if err != nil {
		return "", err
	}
	return string(b[:len(b)-1]), nil
}

func (s *Scanner) transaction() (*txn.Transaction, error) {
	head, err := s.line()
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
	start := s.start
	status, err := unquote(f[2])
	if err != nil || len(status) != 1 {
		return nil, fmt.Errorf("%.40q is no status", f[2])
	}
	t.Status = status[0]
	for _, m := range []struct {
		name string
		p    *[]byte
	}{{"user ", &t.User}, {"description ", &t.Description}, {"extension ", &t.Extension}} {
		l, err := s.line()
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
	s.start = start
	return t, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// record reads the next record, nil at the end of the transaction.
func (s *Scanner) record() (*txn.Record, error) {
	l, err := s.line()
	if err != nil {
		return nil, unexpected(err)
	}
	if l == "" {
		s.inTxn = false
		return nil, nil
	}
	f := strings.Split(l, " ")
	if len(f) < 3 || f[0] != "obj" {
		return nil, fmt.Errorf("%.60q is no object", l)
	}
	rec := &txn.Record{TID: s.at}
	if rec.OID, err = tid.ParseOID(f[1]); err != nil {
		return nil, err
	}
	switch {
	case len(f) == 3 && f[2] == "delete":
	case len(f) == 4 && f[2] == "from":
		if rec.DataTID, err = tid.Parse(f[3]); err != nil {
			return nil, err
		}
		if rec.DataTID == 0 {
			return nil, fmt.Errorf("object %v: its data are those of transaction %v, which cannot be", rec.OID, rec.DataTID)
		}
		if rec.DataTID >= s.at {
			return nil, fmt.Errorf("object %v: its data are those of %v, which is not earlier", rec.OID, rec.DataTID)
		}
	case len(f) == 5 && f[4] == "-":
		return nil, fmt.Errorf("object %v: %w", rec.OID, ErrHashOnly)
	case len(f) == 4:
		if rec.Data, err = s.body(f[2], f[3]); err != nil {
			return nil, fmt.Errorf("object %v: %w", rec.OID, err)
		}
	default:
		return nil, fmt.Errorf("%.60q is no object", l)
	}
	return rec, nil
}

// body reads data and verifies them.
func (s *Scanner) body(size, digest string) ([]byte, error) {
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
	if s.data = s.data[:0]; s.data == nil {
		s.data = []byte{} // empty data are data
	}
	for left := n; left > 0; {
		k := min(left, step)
		at := len(s.data)
		s.data = append(s.data, make([]byte, k)...)
		if _, err := io.ReadFull(s.r, s.data[at:]); err != nil {
			return nil, unexpected(err)
		}
		left -= k
	}
	if c, err := s.r.ReadByte(); err != nil || c != '\n' {
		return nil, errors.New("its data are not followed by an end of line")
	}
	s.n += bytes.Count(s.data, []byte{'\n'}) + 1
	s.pos += int64(n) + 1
	if h == nil {
		return s.data, nil
	}
	h.Write(s.data)
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return nil, fmt.Errorf("its %s is %s, not %.140s: the data are damaged", name, got, want)
	}
	return s.data, nil
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
