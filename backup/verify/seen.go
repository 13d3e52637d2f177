package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

// Seen is the newest state of a repository that a host has seen. Without it, a state from which
// the newest manifests and tails were deleted would pass for the newest.
type Seen struct {
	V        int             `json:"v"`
	Repo     string          `json:"repo"`
	K        int64           `json:"k"` // the newest lineage
	Lineages map[string]Mark `json:"lineages"`

	changed bool
}

// Mark is the newest state of a lineage.
type Mark struct {
	Seq  int64   `json:"seq"`
	Tail int64   `json:"tail"`
	Head tid.TID `json:"head"`
}

// seenFile is its name in a state directory.
const seenFile = "seen.json"

// LoadSeen reads what a host has seen of a repository; nothing if there is no such file, or
// if it is about another repository. What a state is compared with is read before the state: a
// writer of the same host may add to both meanwhile.
func LoadSeen(dir string, repo snapshot.ID) (*Seen, error) {
	s, err := readSeen(dir)
	if err != nil {
		return nil, err
	}
	return s.of(repo), nil
}

// readSeen reads the file, whatever repository it is about; nil: there is none.
func readSeen(dir string) (*Seen, error) {
	b, err := os.ReadFile(filepath.Join(dir, seenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &Seen{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w: remove it if the repository is known to be good", filepath.Join(dir, seenFile), err)
	}
	if s.V != 1 {
		return nil, fmt.Errorf("%s has version %d, this program knows 1", filepath.Join(dir, seenFile), s.V)
	}
	if s.Lineages == nil {
		s.Lineages = map[string]Mark{}
	}
	return s, nil
}

// of returns what was seen of a repository.
func (s *Seen) of(repo snapshot.ID) *Seen {
	if s == nil || s.Repo != repo.String() {
		return &Seen{V: 1, Repo: repo.String(), Lineages: map[string]Mark{}}
	}
	return s
}

// Save writes the file, if something newer was seen.
func (s *Seen) Save(dir string) error {
	if !s.changed {
		return nil
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, seenFile)
	f, err := os.CreateTemp(dir, seenFile+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	s.changed = false
	return nil
}

// Compare returns an error if a state is older than the one that was seen.
func (s *Seen) Compare(state *backup.State) error {
	c := state.Chain()
	var errs []error
	for _, text := range s.compare(state.Lineage, state.Manifest.Seq, c.N, c.Head) {
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
}

// Update notes a state, as far as it is newer.
func (s *Seen) Update(state *backup.State) {
	c := state.Chain()
	s.update(state.Lineage, state.Manifest.Seq, c.N, c.Head)
}

// Replace notes a state that took the place of what was seen of its lineage, be it older: after a repair that the
// operator confirmed.
func (s *Seen) Replace(state *backup.State) {
	c := state.Chain()
	s.Lineages[state.Lineage.String()] = Mark{state.Manifest.Seq, c.N, c.Head}
	s.changed = true
}

// Note is Update for what is known of a lineage: numbers of the newest manifest and tail, and the last
// transaction.
func (s *Seen) Note(lineage snapshot.ID, seq, tail int64, head tid.TID) {
	s.update(lineage, seq, tail, head)
}

func (s *Seen) compare(lineage snapshot.ID, seq, tail int64, head tid.TID) (texts []string) {
	m := s.Lineages[lineage.String()]
	if seq < m.Seq {
		texts = append(texts, fmt.Sprintf("the newest manifest of lineage %v is number %d, this host has seen number %d", lineage, seq, m.Seq))
	}
	if tail < m.Tail {
		texts = append(texts, fmt.Sprintf("the last tail of lineage %v is number %d, this host has seen number %d", lineage, tail, m.Tail))
	}
	if head < m.Head {
		texts = append(texts, fmt.Sprintf("lineage %v ends with %v, this host has seen %v", lineage, head, m.Head))
	}
	return texts
}

func (s *Seen) update(lineage snapshot.ID, seq, tail int64, head tid.TID) {
	old := s.Lineages[lineage.String()]
	m := Mark{max(old.Seq, seq), max(old.Tail, tail), max(old.Head, head)}
	s.Lineages[lineage.String()] = m
	s.changed = s.changed || m != old
}
