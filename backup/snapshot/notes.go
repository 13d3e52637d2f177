package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// What the marker says about encryption.
const (
	EncryptionAge  = "age"
	EncryptionNone = "none"
)

// Marker says that a prefix is a repository. It is written last by init, once.
type Marker struct {
	ID         ID        `json:"id"`
	Name       string    `json:"name"` // [a-z0-9-]{1,32}
	Created    time.Time `json:"created"`
	Encryption string    `json:"encryption"` // EncryptionAge or EncryptionNone, for the life of the repository
	Sign       []string  `json:"sign"`       // keys that verify; only those of the configuration are trusted
}

func (*Marker) kind() (string, Role) { return "repository", Writer }

func (m *Marker) place() (ID, string) { return m.ID, MarkerKey }

func (m *Marker) check() error {
	if !repositoryForm.MatchString(m.Name) {
		return fmt.Errorf("name %.50q: want 1 to 32 of a-z, 0-9 and -", m.Name)
	}
	if m.Encryption != EncryptionAge && m.Encryption != EncryptionNone {
		return fmt.Errorf("encryption %.20q: want %q or %q", m.Encryption, EncryptionAge, EncryptionNone)
	}
	return nil
}

// Epoch is the note of an epoch: what segments are encrypted to from then on.
type Epoch struct {
	Repo       ID        `json:"repo"`
	KID        KID       `json:"kid"`
	Created    time.Time `json:"created"`
	Recipient  string    `json:"recipient"`  // of the epoch: age1… or age1pq1…
	Recipients []string  `json:"recipients"` // of the operators, to whom the wrap is encrypted
	Wrap       Hash      `json:"wrap"`       // of the object keys/<kid>.0001
}

func (*Epoch) kind() (string, Role) { return "epoch", Writer }

func (e *Epoch) place() (ID, string) { return e.Repo, Key{Kind: KindEpoch, N: int64(e.KID)}.String() }

func (e *Epoch) check() error {
	if e.KID == 0 {
		return errors.New("no number of the epoch")
	}
	if _, err := ParseRecipient(e.Recipient); err != nil {
		return err
	}
	if len(e.Recipients) == 0 {
		return errors.New("no recipients")
	}
	for _, r := range e.Recipients {
		if _, err := ParseRecipient(r); err != nil {
			return err
		}
	}
	if e.Wrap == (Hash{}) {
		return errors.New("no hash of the wrap")
	}
	return nil
}

// Lineage is the note that makes a lineage the current one.
type Lineage struct {
	Repo    ID        `json:"repo"`
	K       int64     `json:"k"` // from 1; the greatest is current
	Lineage ID        `json:"lineage"`
	Parent  ID        `json:"parent,omitempty"` // the lineage that this one continues or replaces; zero for the first
	At      tid.TID   `json:"at"`               // the history up to here is that of the parent; 0 for the first and a rebase
	Created time.Time `json:"created"`
	Why     string    `json:"why"` // init, fork, rebase, and what the operator said
}

func (*Lineage) kind() (string, Role) { return "lineage", Writer }

func (l *Lineage) place() (ID, string) { return l.Repo, Key{Kind: KindLineage, N: l.K}.String() }

func (l *Lineage) check() error {
	if l.K < 1 || l.K > 0xffff {
		return fmt.Errorf("number %d is not in 1 to 65535", l.K)
	}
	if l.Parent == (ID{}) && l.At != 0 {
		return errors.New("a history that begins in no parent")
	}
	if l.Lineage == l.Parent {
		return errors.New("the lineage is its own parent")
	}
	return nil
}

// Policy says how long a repository keeps what, for all keepers of it. The greatest K
// is in force.
type Policy struct {
	Repo             ID        `json:"repo"`
	K                int64     `json:"k"` // from 1
	Created          time.Time `json:"created"`
	KeepLineagesDays int64     `json:"keep_lineages_days"`
	PruneGraceHours  int64     `json:"prune_grace_hours"` // at least 24
	LockDays         int64     `json:"lock_days,omitempty"`
	Holds            []Hold    `json:"holds,omitempty"`
}

func (*Policy) kind() (string, Role) { return "policy", Keeper }

func (p *Policy) place() (ID, string) { return p.Repo, Key{Kind: KindPolicy, N: p.K}.String() }

func (p *Policy) check() error {
	if p.K < 1 || p.K > 0xffff {
		return fmt.Errorf("number %d is not in 1 to 65535", p.K)
	}
	if p.PruneGraceHours < 24 {
		return fmt.Errorf("prune_grace_hours %d is less than 24", p.PruneGraceHours)
	}
	return nil
}

// Void cancels the doom list of the same time.
type Void struct {
	Repo    ID        `json:"repo"`
	List    string    `json:"list"` // key of the doom list
	Created time.Time `json:"created"`
	Why     string    `json:"why,omitempty"`
}

func (*Void) kind() (string, Role) { return "void", Keeper }

func (v *Void) place() (ID, string) { return v.Repo, v.List + ".void" }

func (v *Void) check() error {
	if k, err := ParseKey(v.List); err != nil || k.Kind != KindDoom {
		return fmt.Errorf("%.60q is no key of a doom list", v.List)
	}
	return nil
}

// Compared is what a drill compared.
type Compared struct {
	Segments int64  `json:"segments"`
	Txns     int64  `json:"txns"`
	Records  int64  `json:"records"`
	Bytes    int64  `json:"bytes"`
	Source   string `json:"source"` // "digest", or "none" where the source could not be reached
}

// Results of a drill.
const (
	ResultOK     = "ok"
	ResultFailed = "failed"
)

// Proof records a restore and what came of it.
type Proof struct {
	Repo        ID        `json:"repo"`
	Lineage     ID        `json:"lineage"`
	Seq         int64     `json:"seq"`      // of the manifest
	Manifest    Hash      `json:"manifest"` // of its object
	Tail        int64     `json:"tail"`     // last one that was used, 0: none
	Chain       Hash      `json:"chain"`    // of the note of that tail; zero for 0
	TID         tid.TID   `json:"tid"`
	Time        time.Time `json:"time"`
	Mode        string    `json:"mode"` // file, cluster or read
	Compared    Compared  `json:"compared"`
	FirstReadMS int64     `json:"first_read_ms"`
	Seconds     int64     `json:"seconds"`
	BytesRead   int64     `json:"bytes_read"`
	Gets        int64     `json:"gets"`
	Epochs      []KID     `json:"epochs"` // that were opened
	Result      string    `json:"result"` // ResultOK or ResultFailed
	Reason      string    `json:"reason,omitempty"`
}

func (*Proof) kind() (string, Role) { return "proof", Driver }

func (p *Proof) place() (ID, string) { return p.Repo, Prefix(KindProof, p.Lineage) }

func (p *Proof) check() error {
	if p.Seq < 1 || p.Seq > MaxSeq || p.Tail > MaxSeq {
		return fmt.Errorf("manifest %d or tail %d is out of range", p.Seq, p.Tail)
	}
	if (p.Tail == 0) != (p.Chain == Hash{}) {
		return errors.New("tail and chain do not fit")
	}
	if !slices.Contains([]string{"file", "cluster", "read"}, p.Mode) {
		return fmt.Errorf("mode %.20q: want file, cluster or read", p.Mode)
	}
	if p.Compared.Source != "digest" && p.Compared.Source != "none" {
		return fmt.Errorf("source %.20q: want digest or none", p.Compared.Source)
	}
	switch {
	case p.Result != ResultOK && p.Result != ResultFailed:
		return fmt.Errorf("result %.20q: want %q or %q", p.Result, ResultOK, ResultFailed)
	case (p.Result == ResultFailed) != (p.Reason != ""):
		return errors.New("a reason belongs to a failed drill, and only to it")
	}
	return nil
}

// Doomed is an object that shall be deleted.
type Doomed struct {
	Key string `json:"key"`
	Why string `json:"why"`
}

// MaxDoomed is the greatest length of a doom list.
const MaxDoomed = 100_000

// Doom is a doom list: what a later run of prune may delete.
type Doom struct {
	Repo    ID        `json:"repo"`
	Created time.Time `json:"created"`
	Policy  int64     `json:"policy"`         // number of the policy that it carries out
	Done    []string  `json:"done,omitempty"` // keys of the doom lists that were carried out

	Objects []Doomed
}

func (d *Doom) check() error {
	if d.Policy < 1 || d.Policy > 0xffff {
		return fmt.Errorf("it carries out policy %d, which cannot be", d.Policy)
	}
	if len(d.Objects) > MaxDoomed {
		return fmt.Errorf("%d objects, more than %d: delete in several lists", len(d.Objects), MaxDoomed)
	}
	for _, key := range d.Done {
		if k, err := ParseKey(key); err != nil || k.Kind != KindDoom {
			return fmt.Errorf("%.60q is no key of a doom list", key)
		}
	}
	return nil
}

// Sign encodes and signs the list, as a keeper.
func (d *Doom) Sign(s *Signer) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("doom list: %w", err)
	}
	b, err := appendFirst(nil, "doom", valueOf(d))
	for i := 0; i < len(d.Objects) && err == nil; i++ {
		if _, err = ParseKey(d.Objects[i].Key); err == nil {
			b, err = appendLine(b, &d.Objects[i])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("doom list: %w", err)
	}
	return sign(b, Keeper, s)
}

// OpenDoom decodes the doom list with that key.
func OpenDoom(b []byte, key string, repo ID, trusted Verifiers) (*Doom, error) {
	text, err := open(b, key, Keeper, trusted)
	if err != nil {
		return nil, err
	}
	d, err := parseDoom(text, key)
	if err != nil {
		return nil, err
	}
	return d, checkPlace(key, repo, d.Repo, Prefix(KindDoom, ID{}))
}

func parseDoom(text []byte, name string) (*Doom, error) {
	d := &Doom{}
	l := &lines{name: name, rest: text}
	if err := l.first("doom", d); err != nil {
		return nil, err
	}
	for {
		line, ok, err := l.line()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if !strings.HasPrefix(string(line), `{"key":`) {
			return nil, corrupt(name, l.off, "%.60q is no line of a doom list", line)
		}
		var o Doomed
		if err := parseLine(line, &o); err != nil {
			return nil, corrupt(name, l.off, "%w", err)
		}
		if _, err := ParseKey(o.Key); err != nil {
			return nil, corrupt(name, l.off, "%w", err)
		}
		if d.Objects = append(d.Objects, o); len(d.Objects) > MaxDoomed {
			return nil, corrupt(name, l.off, "more than %d objects", MaxDoomed)
		}
	}
	if err := d.check(); err != nil {
		return nil, corrupt(name, 0, "%w", err)
	}
	return d, nil
}
