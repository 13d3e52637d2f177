package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// InitOptions say what a new repository is.
type InitOptions struct {
	Name       string               // [a-z0-9-]{1,32}
	Signer     *snapshot.Signer     // key of the writer
	Sign       []string             // keys that verify, for the marker
	Recipients []snapshot.Recipient // of the operators; none: the repository is not encrypted
	Source     snapshot.Source      // what will be backed up
	Writer     string               // host/pid/nonce
}

// NotEmptyError reports a place that has objects and is no repository.
type NotEmptyError struct {
	Keys []string // up to three of them
}

func (e *NotEmptyError) Error() string {
	return fmt.Sprintf("the place of a new repository is not empty: it has %s", strings.Join(e.Keys, ", "))
}

// ErrRepository reports a place that is a repository already.
var ErrRepository = errors.New("a backup repository is there already")

// Init makes a repository in an empty place: epoch 1, lineage 1 with manifest 1, and last the
// marker. An interrupted one may be repeated, with the same key of the writer. The store
// must have been tried, see [store.Probe].
func Init(ctx context.Context, cfg Config, o InitOptions) (*Repository, error) {
	cfg.setDefaults()
	m := &snapshot.Marker{ID: snapshot.NewID(), Name: o.Name, Created: now(), Encryption: snapshot.EncryptionNone, Sign: o.Sign}
	if len(o.Recipients) > 0 {
		m.Encryption = snapshot.EncryptionAge
	}
	r := newRepository(cfg, m)
	begun, err := r.begun(ctx)
	if err != nil {
		return nil, err
	}
	if begun != nil {
		m.ID = begun.Repo
	}
	if r.Encrypted() {
		if err := r.firstEpoch(ctx, o); err != nil {
			return nil, err
		}
	}
	if begun == nil || begun.Lineage == (snapshot.ID{}) {
		begun = &snapshot.Lineage{Repo: m.ID, K: 1, Lineage: snapshot.NewID(), Created: now(), Why: "init"}
		first := &snapshot.Manifest{Repo: m.ID, Lineage: begun.Lineage, Seq: 1, Created: now(), Writer: o.Writer, Source: o.Source}
		b, err := first.Sign(o.Signer)
		if err != nil {
			return nil, err
		}
		if err := r.create(ctx, snapshot.ManifestKey(begun.Lineage, 1), b); err != nil {
			return nil, err
		}
		if err := r.NewLineage(ctx, o.Signer, begun); err != nil {
			return nil, err
		}
	}
	b, err := snapshot.Sign(m, o.Signer)
	if err != nil {
		return nil, err
	}
	if err := r.create(ctx, snapshot.MarkerKey, b); err != nil {
		return nil, err
	}
	return Open(ctx, cfg)
}

// begun returns what is there of an interrupted Init: a lineage, or one without id of which
// only the epoch was made; nil if the place is empty.
func (r *Repository) begun(ctx context.Context) (*snapshot.Lineage, error) {
	var foreign []string
	var epochs, lineages []string
	for info, err := range r.Store.List(ctx, "", "") {
		if err != nil {
			return nil, err
		}
		k, err := snapshot.ParseKey(info.Key)
		switch {
		case err == nil && k.Kind == snapshot.KindMarker:
			return nil, ErrRepository
		case err == nil && k.Kind == snapshot.KindEpoch:
			epochs = append(epochs, info.Key)
		case err == nil && k.Kind == snapshot.KindLineage:
			lineages = append(lineages, info.Key)
		case err == nil && slices.Contains([]snapshot.Kind{snapshot.KindWrap, snapshot.KindManifest, snapshot.KindProbe}, k.Kind):
		default:
			foreign = append(foreign, info.Key)
		}
		if len(foreign) == 3 {
			break
		}
	}
	if len(foreign) > 0 || len(lineages) > 1 {
		return nil, &NotEmptyError{append(foreign, lineages...)}
	}
	verified := func(key string, n snapshot.Note, repo *snapshot.ID) error {
		b, _, err := store.ReadAll(ctx, r.Store, key, maxNote)
		if err != nil {
			return err
		}
		// The id of the repository is what the note says.
		if err := snapshot.OpenUnsigned(b, key, snapshot.ID{}, n); err != nil && *repo == (snapshot.ID{}) {
			return err
		}
		return snapshot.Open(b, key, *repo, n, r.Trusted)
	}
	if len(lineages) == 1 {
		l := &snapshot.Lineage{}
		if err := verified(lineages[0], l, &l.Repo); err != nil {
			return nil, fmt.Errorf("%w, left by an interrupted init: %w", &NotEmptyError{lineages}, err)
		}
		return l, nil
	}
	if len(epochs) > 0 {
		e := &snapshot.Epoch{}
		if err := verified(epochs[0], e, &e.Repo); err != nil {
			return nil, fmt.Errorf("%w, left by an interrupted init: %w", &NotEmptyError{epochs}, err)
		}
		return &snapshot.Lineage{Repo: e.Repo}, nil
	}
	return nil, nil
}

// firstEpoch makes an epoch for the recipients unless an interrupted Init has.
func (r *Repository) firstEpoch(ctx context.Context, o InitOptions) error {
	epochs, err := r.Epochs(ctx)
	if err != nil {
		return err
	}
	if n := len(epochs); n > 0 && SameRecipients(epochs[n-1], o.Recipients) {
		return nil
	}
	_, err = r.NewEpoch(ctx, o.Signer, o.Recipients)
	return err
}

// SameRecipients reports whether an epoch is encrypted to exactly these recipients.
func SameRecipients(e *snapshot.Epoch, recipients []snapshot.Recipient) bool {
	var want []string
	for _, r := range recipients {
		want = append(want, r.String())
	}
	have := slices.Clone(e.Recipients)
	slices.Sort(have)
	slices.Sort(want)
	return slices.Equal(slices.Compact(have), slices.Compact(want))
}

// NewEpoch makes the next epoch, for these recipients of operators. Its identity is
// forgotten: only they can open it.
func (r *Repository) NewEpoch(ctx context.Context, signer *snapshot.Signer, recipients []snapshot.Recipient) (*snapshot.Epoch, error) {
	newKey := r.EpochKey
	if newKey == nil {
		newKey = func(_ context.Context, to []snapshot.Recipient) (string, []byte, error) {
			return snapshot.NewEpochKey(to)
		}
	}
	recipient, wrap, err := newKey(ctx, recipients)
	if err != nil {
		return nil, err
	}
	e := &snapshot.Epoch{Repo: r.Marker.ID, Created: now(), Recipient: recipient, Wrap: snapshot.Sum(wrap)}
	for _, r := range recipients {
		e.Recipients = append(e.Recipients, r.String())
	}
	for {
		// A wrap without note, of a crash or of another writer, has its number.
		keys, err := list(ctx, r.Store, snapshot.KindWrap, snapshot.ID{})
		if err != nil {
			return nil, err
		}
		epochs, err := list(ctx, r.Store, snapshot.KindEpoch, snapshot.ID{})
		if err != nil {
			return nil, err
		}
		e.KID = 1
		for _, k := range append(keys, epochs...) {
			e.KID = max(e.KID, snapshot.KID(k.N)+1)
		}
		key := snapshot.Key{Kind: snapshot.KindWrap, N: int64(e.KID), Wrap: 1}.String()
		err = r.create(ctx, key, wrap)
		if errors.Is(err, store.ErrExists) {
			continue
		}
		if err != nil {
			return nil, err
		}
		back, _, err := store.ReadAll(ctx, r.Store, key, maxNote)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(back, wrap) {
			return nil, &snapshot.CorruptError{Name: key, Offset: -1, Err: errors.New("it is not what was just stored")}
		}
		b, err := snapshot.Sign(e, signer)
		if err != nil {
			return nil, err
		}
		return e, r.create(ctx, snapshot.Key{Kind: snapshot.KindEpoch, N: int64(e.KID)}.String(), b)
	}
}

// NewLineage writes the note that makes a lineage, whose manifest 1 exists, the current one.
func (r *Repository) NewLineage(ctx context.Context, signer *snapshot.Signer, l *snapshot.Lineage) error {
	b, err := snapshot.Sign(l, signer)
	if err != nil {
		return err
	}
	return r.create(ctx, snapshot.Key{Kind: snapshot.KindLineage, N: l.K}.String(), b)
}

// create stores an object that must not exist.
func (r *Repository) create(ctx context.Context, key string, b []byte) error {
	return r.Store.Put(ctx, key, bytes.NewReader(b), int64(len(b)), store.PutOptions{Create: true, SHA256: snapshot.Sum(b)})
}

// now is the time in notes, which have no fractions of a second.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }
