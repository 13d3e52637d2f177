package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

// FileOptions say how a Data.fs is restored. A zero field takes the default.
type FileOptions struct {
	// Append brings an existing file, which must be the beginning of what is restored, up
	// to date. Default: a file that exists is an [ErrNotEmpty].
	Append bool
	// Restart discards what an interrupted restore left in PATH.part. Default: the
	// restore goes on after it.
	Restart  bool
	Magic    fsformat.Magic // of a new file; default: FS30
	NoVerify bool           // the file is not read again at the end
	Progress Progress       // default: none
}

// ToFile restores to a Data.fs, byte for byte what an export of the source would have
// written. Until it is complete and compared it is called PATH.part, and
// PATH.restore says what it is.
func (s *Source) ToFile(ctx context.Context, path string, o FileOptions) (*Result, error) {
	plan, err := s.check(ctx)
	if err != nil {
		return nil, err
	}
	have, err := s.fileTarget(path, &o)
	if err != nil {
		return nil, err
	}
	if err := space(filepath.Dir(path), max(fileSize(plan)-have, 0)); err != nil {
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	mark := path + ".restore"
	if !o.Append {
		if err := s.mark(ctx, mark); err != nil {
			return nil, err
		}
	}
	res := &Result{At: s.at()}
	var begun tid.TID
	src := &history{s: s, gaps: plan.gaps, load: func(tid.OID, tid.TID) ([]byte, error) { return nil, errors.New("no destination") }}
	var records, text int64
	last, err := exporter.ToFile(ctx, src, path, exporter.FileOptions{
		UpTo: s.at(), Magic: o.Magic, Restart: o.Restart,
		Opened: func(after, _ tid.TID) { begun = after },
		Progress: func(last tid.TID, t, r, b int64) {
			res.Txns, records, text = t, r, b
			if o.Progress != nil {
				o.Progress(Writing, last, textOf(t, r, b, plan.Text), plan.Text)
			}
		},
		Copied: func(ctx context.Context, name string, last tid.TID) error {
			if o.NoVerify {
				return nil
			}
			r, err := fsformat.Open(name, fsformat.Options{})
			if err != nil {
				return err
			}
			defer r.Close() // only read
			compared := Result{At: res.At}
			if err := s.compare(ctx, target{name: name, Source: r, last: r.LastTID, load: src.load, gaps: plan.gaps}, &compared, plan.Text, o.Progress); err != nil {
				return err
			}
			*res = compared
			return nil
		},
	})
	res.Resumed = begun
	if err != nil {
		return nil, err
	}
	if !res.Compared {
		res.Last, res.Records, res.Bytes = last, records, text
	}
	if len(plan.gaps) > 0 {
		if err := s.unknown(ctx, path, plan.gaps, res); err != nil {
			return res, err
		}
	}
	if !o.Append {
		if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return res, err
		}
	}
	s.log().Info("restored", "file", path, "last", res.Last, "transactions", res.Txns)
	return res, nil
}

// fileSize is the length of a Data.fs with its index, about, rather more.
func fileSize(p *Plan) int64 { return p.Text + 32*p.Records }

// fileTarget makes sure that a file may be written, and returns how many bytes of it are
// there.
func (s *Source) fileTarget(path string, o *FileOptions) (int64, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		o.Append = false
	case err != nil:
		return 0, err
	case !o.Append:
		return 0, fmt.Errorf("restore to %s: %w: the file exists: restore to another one, or append what it lacks", path, ErrNotEmpty)
	default:
		return info.Size(), nil
	}
	info, err = os.Stat(path + ".part")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if o.Restart {
		return info.Size(), nil
	}
	b, err := os.ReadFile(path + ".restore")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("restore to %s: %w: %s.part is not what a restore has left: restart, or remove it", path, ErrForeign, path)
	}
	if err != nil {
		return 0, err
	}
	var c checkpoint
	if err := json.Unmarshal(b, &c); err != nil {
		return 0, fmt.Errorf("restore to %s: %w: %s.restore cannot be read (%v): restart, or remove it with %s.part", path, ErrForeign, path, err, path)
	}
	if err := s.same(&c); err != nil {
		return 0, fmt.Errorf("restore to %s: %w: restart to give that up", path, err)
	}
	return info.Size(), nil
}

// checkpoint says what is being restored to a target.
type checkpoint struct {
	Version  int           `json:"v"`
	Repo     string        `json:"repo"`
	Lineage  string        `json:"lineage"`
	At       tid.TID       `json:"at"`
	Manifest snapshot.Hash `json:"manifest"` // when it began
}

func (s *Source) checkpoint() checkpoint {
	return checkpoint{1, s.Repo.Marker.ID.String(), s.State.Lineage.String(), s.at(), s.State.Hash}
}

// same returns an error unless a checkpoint is that of this restore. The manifest may be a
// later one, and the last TID another one: the history of a lineage only grows.
func (s *Source) same(c *checkpoint) error {
	if want := s.checkpoint(); c.Version != want.Version || c.Repo != want.Repo || c.Lineage != want.Lineage {
		return fmt.Errorf("%w: of repository %s, lineage %s, at %v, not %s, %s", ErrForeign, c.Repo, c.Lineage, c.At, want.Repo, want.Lineage)
	}
	return nil
}

// mark writes the checkpoint of a file.
func (s *Source) mark(_ context.Context, path string) error {
	b, err := json.Marshal(s.checkpoint())
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	return err
}
