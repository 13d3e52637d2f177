package fsformat

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// WriteTo writes the index as FileStorage does, byte for byte: pickles of the
// position covered, of a pair (6-byte prefix, bucket) for each prefix of object
// ids, and of None. A bucket is the 2-byte suffixes followed by the 6-byte
// positions. x.End must be that of the file.
func (x *Index) WriteTo(w io.Writer) (int64, error) {
	bw := bufio.NewWriterSize(w, 64<<10)
	var total int64
	put := func(b []byte) {
		n, _ := bw.Write(b) // bufio keeps the error for Flush
		total += int64(n)
	}
	put(appendPos([]byte{0x80, 3}, x.End))
	var suffixes, positions, out []byte
	oids := x.OIDs()
	for i := 0; i < len(oids); {
		prefix := oids[i] >> 16
		suffixes, positions = suffixes[:0], positions[:0]
		for ; i < len(oids) && oids[i]>>16 == prefix; i++ {
			pos, _ := x.Get(oids[i])
			suffixes = binary.BigEndian.AppendUint16(suffixes, uint16(oids[i]))
			positions = append(positions, binary.BigEndian.AppendUint64(nil, uint64(pos))[2:]...)
		}
		out = append(out[:0], 0x80, 3, 'C', 6)
		out = append(out, binary.BigEndian.AppendUint64(nil, uint64(prefix))[2:]...)
		n := len(suffixes) + len(positions)
		if n < 256 {
			out = append(out, 'C', byte(n))
		} else {
			out = append(out, 'B')
			out = binary.LittleEndian.AppendUint32(out, uint32(n))
		}
		out = append(out, suffixes...)
		out = append(out, positions...)
		put(append(out, 0x86, '.'))
	}
	put([]byte{0x80, 3, 'N', '.'})
	return total, bw.Flush()
}

// appendPos writes an integer as the shortest pickle opcode, and STOP.
func appendPos(b []byte, n int64) []byte {
	switch {
	case n < 1<<8:
		b = append(b, 'K', byte(n))
	case n < 1<<16:
		b = binary.LittleEndian.AppendUint16(append(b, 'M'), uint16(n))
	case n < 1<<31:
		b = binary.LittleEndian.AppendUint32(append(b, 'J'), uint32(n))
	default:
		le := binary.LittleEndian.AppendUint64(nil, uint64(n))
		k := len(le)
		for k > 1 && le[k-1] == 0 && le[k-2] < 0x80 {
			k--
		}
		b = append(append(b, 0x8a, byte(k)), le[:k]...)
	}
	return append(b, '.')
}

// Save writes the index to a file, which it replaces only when complete.
func (x *Index) Save(path string) error { return x.save(path, true) }

func (x *Index) save(path string, sync bool) error {
	tmp := path + ".index_tmp"
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	_, err = x.WriteTo(f)
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, errors.Join(err, os.Remove(tmp)))
	}
	if !sync {
		return nil
	}
	return syncDir(path)
}
