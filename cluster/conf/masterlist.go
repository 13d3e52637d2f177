package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// maxMasterList is the greatest size in bytes of a dynamic master list.
const maxMasterList = 1 << 20

// A MasterList is the file of --dynamic-master-list: the masters a node knows,
// kept for its next start. It is a JSON array of [host, port], replaced as a
// whole, so that a crash leaves the old list or the new one.
type MasterList struct {
	path string
	last []Address
	ok   bool // last is what the file holds
}

// OpenMasterList reads the list at path. A file that does not exist is created
// empty, so that a wrong path is found out at once and not when a master leaves.
func OpenMasterList(path string) (*MasterList, []Address, error) {
	l := &MasterList{path: path}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil, l.Save(nil)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("dynamic master list: %w", err)
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("dynamic master list: %w", err)
	}
	if info.Size() > maxMasterList {
		return nil, nil, fmt.Errorf("dynamic master list %s: %d bytes are too many", path, info.Size())
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil && len(b) > 0 {
		return nil, nil, fmt.Errorf("dynamic master list: %w", err)
	}
	list, err := decodeMasterList(b)
	if err != nil {
		return nil, nil, fmt.Errorf("dynamic master list %s: %w", path, err)
	}
	l.last, l.ok = list, true
	return l, slices.Clone(list), nil
}

// decodeMasterList reads [["10.0.0.1", 10000], …].
func decodeMasterList(b []byte) ([]Address, error) {
	var raw [][]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, err
	}
	var list []Address
	for i, r := range raw {
		var a Address
		if len(r) != 2 {
			return nil, fmt.Errorf("entry %d: want [host, port]", i)
		}
		if err := json.Unmarshal(r[0], &a.Host); err != nil {
			return nil, fmt.Errorf("entry %d: host: %w", i, err)
		}
		if err := json.Unmarshal(r[1], &a.Port); err != nil {
			return nil, fmt.Errorf("entry %d: port: %w", i, err)
		}
		if a.Host == "" || a.Port == 0 {
			return nil, fmt.Errorf("entry %d: %v is not the address of a master", i, a)
		}
		list = append(list, a)
	}
	return list, nil
}

func encodeMasterList(list []Address) ([]byte, error) {
	raw := make([][2]any, len(list))
	for i, a := range list {
		raw[i] = [2]any{a.Host, a.Port}
	}
	b, err := json.Marshal(raw)
	return append(b, '\n'), err
}

// Save replaces the list, unless it is the one saved before.
func (l *MasterList) Save(list []Address) error {
	if l.ok && slices.Equal(l.last, list) {
		return nil
	}
	b, err := encodeMasterList(list)
	if err != nil {
		return fmt.Errorf("dynamic master list %s: %w", l.path, err)
	}
	if err := replaceFile(l.path, b); err != nil {
		return fmt.Errorf("dynamic master list: %w", err)
	}
	l.last, l.ok = slices.Clone(list), true
	return nil
}

// replaceFile writes a temporary file beside path, makes it durable, and renames
// it over path.
func replaceFile(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, openErr := os.Open(dir)
	if openErr != nil {
		return openErr
	}
	return errors.Join(d.Sync(), d.Close())
}
