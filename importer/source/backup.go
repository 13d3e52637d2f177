package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/storeurl"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/importer/config"
)

const (
	// openPatience is how long one attempt to open a repository may take.
	openPatience = time.Minute
	// maxIdentities is the greatest length of a file of identities.
	maxIdentities = 1 << 20
)

// backupSource is a backup repository. Its index is read ahead in the background.
type backupSource struct {
	*remote
	cfg     *config.Backup
	store   store.Store
	trusted snapshot.Verifiers
	again   bool // the import has begun before
}

// backupConn is a [connection]: a repository that is open is not lost, a store that does not
// answer is an error of the read.
type backupConn struct {
	*reader.Database
	b *backupSource
}

func (backupConn) serves(context.Context) error { return nil }

func (backupConn) Done() <-chan struct{} { return nil }

func (backupConn) Err() error { return nil }

func (c backupConn) close() { c.Database.Close() }

// saw notes whether the store answers.
func (c backupConn) saw(err error) {
	if errors.Is(err, txn.ErrUnavailable) {
		c.b.away(err)
	} else if err == nil {
		c.b.away(nil)
	}
}

func (c backupConn) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	r, err := c.Database.LoadBefore(ctx, oid, before)
	c.saw(err)
	return r, err
}

func (c backupConn) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	r, err := c.Database.LoadAt(ctx, oid, at)
	c.saw(err)
	return r, err
}

func (c backupConn) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	list, err := c.Database.Revisions(ctx, oid, n)
	c.saw(err)
	return list, err
}

func (c backupConn) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return watched(c, c.Database.Transactions(ctx, after, upTo))
}

func (c backupConn) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return watched(c, c.Database.Backwards(ctx))
}

func (c backupConn) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return watched(c, c.Database.OIDs(ctx, at, from))
}

// watched tells what becomes of an iteration.
func watched[T any](c backupConn, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		begun := false
		for v, err := range seq {
			if !begun || err != nil {
				c.saw(err)
				begun = true
			}
			if !yield(v, err) {
				return
			}
		}
	}
}

func openBackup(ctx context.Context, section string, cfg *config.Backup, opt Options) (Source, error) {
	s, err := storeurl.Open(cfg.URL, os.Getenv)
	if err != nil {
		return nil, err
	}
	b := &backupSource{cfg: cfg, again: opt.Lazy, store: store.Retry(s, store.RetryOptions{Repeating: func(op, key string, attempt int, pause time.Duration, err error) {
		opt.Log.Debug("the store of the backup failed for the moment, trying again", "op", op, "key", key, "err", err)
	}})}
	if b.trusted, err = snapshot.NewVerifiers(cfg.VerifyKeys...); err != nil {
		return nil, fmt.Errorf("verify-keys: %w", err)
	}
	b.remote = newRemote(section, "backup repository "+cfg.URL, opt, b.dial)
	if err := b.open(ctx, opt.Lazy, func(err error) bool { return !errors.Is(err, txn.ErrUnavailable) }); err != nil {
		return nil, err
	}
	return b, nil
}

// dial opens the repository.
func (b *backupSource) dial(ctx context.Context) (connection, error) {
	limited, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	d, err := b.database(limited)
	switch {
	case err == nil:
		return backupConn{d, b}, nil
	case store.Temporary(err) || limited.Err() != nil:
		return nil, fmt.Errorf("%s: %w: %w", b.what, txn.ErrUnavailable, err)
	}
	return nil, fmt.Errorf("%s: %w", b.what, err)
}

func (b *backupSource) database(ctx context.Context) (*reader.Database, error) {
	repo, err := backup.Open(ctx, backup.Config{Store: b.store, Trusted: b.trusted, Log: b.log})
	if err != nil {
		return nil, err
	}
	identities, err := b.identities(repo)
	if err != nil {
		return nil, err
	}
	keys := repo.Unlock(identities...)
	keys.Ahead(ctx)
	lineage, err := b.lineage(ctx, repo)
	if err != nil {
		return nil, err
	}
	state, err := repo.State(ctx, lineage, nil)
	if _, broken := errors.AsType[*backup.BrokenError](err); broken && b.cfg.At != 0 && state.Head() >= b.cfg.At {
		b.log.Warn("the repository is damaged after what is imported", "at", b.cfg.At, "err", err)
	} else if err != nil {
		return nil, err
	}
	o := reader.Options{At: b.cfg.At, CacheSize: b.cfg.CacheSize, ReadTimeout: b.patience, Log: b.log}
	if b.cfg.StateDir != "" {
		o.CacheDir = filepath.Join(b.cfg.StateDir, "index")
	}
	d, err := reader.Open(ctx, repo, keys, state, o)
	if err != nil {
		return nil, err
	}
	if err := b.remember(repo, lineage); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	b.log.Info("opened", "repository", repo.Marker.Name, "lineage", lineage.String(), "last", d.At())
	return d, nil
}

// identities reads what opens the repository.
func (b *backupSource) identities(repo *backup.Repository) ([]age.Identity, error) {
	switch path := b.cfg.IdentityFile; {
	case !repo.Encrypted():
		return nil, nil
	case path == "":
		return nil, fmt.Errorf("%w: it is encrypted: name the file of an operator's identity in identity-file", backup.ErrKeys)
	default:
		return readIdentities(path)
	}
}

func readIdentities(path string) ([]age.Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("identity-file: %w", err)
	}
	defer f.Close() // only read
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("identity-file: %w", err)
	}
	if mode := fi.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("identity-file: others than its owner have access to %s (mode %04o), or it is no regular file: chmod 600 %s", path, mode.Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxIdentities))
	if err != nil {
		return nil, fmt.Errorf("identity-file: %w", err)
	}
	list, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil { // which may show a part of it
		return nil, fmt.Errorf("identity-file: %s has no identities of age: want lines that begin with AGE-SECRET-KEY, as age-keygen writes them", path)
	}
	return list, nil
}

// remembered is what is known of an import that has begun.
type remembered struct {
	Repository string `json:"repository"`
	Lineage    string `json:"lineage"`
}

// memory returns the file of what is remembered, "" if there is no place for it.
func (b *backupSource) memory() string {
	if b.cfg.StateDir == "" {
		return ""
	}
	return filepath.Join(b.cfg.StateDir, "import-"+b.section+".json")
}

// lineage returns the lineage that is imported: an import goes on with the one with which it
// began, although another may be the current one meanwhile.
func (b *backupSource) lineage(ctx context.Context, repo *backup.Repository) (snapshot.ID, error) {
	want := b.cfg.Lineage
	if path := b.memory(); want == "" && path != "" && b.again {
		var known remembered
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &known)
		}
		switch {
		case err == nil && known.Repository == repo.Marker.ID.String():
			want = known.Lineage
		case err == nil:
			return snapshot.ID{}, fmt.Errorf("the import began with repository %s, as %s says, url is that of repository %s: give the url of that one, or set lineage if this is a copy of it", known.Repository, path, repo.Marker.ID)
		case !errors.Is(err, os.ErrNotExist):
			return snapshot.ID{}, fmt.Errorf("%s, which says with which lineage the import began: %w; set lineage instead of it", path, err)
		}
	}
	if want == "" && !b.again {
		l, err := repo.Current(ctx)
		if err != nil {
			return snapshot.ID{}, err
		}
		return l.Lineage, nil
	}
	list, err := repo.Lineages(ctx)
	if err != nil {
		return snapshot.ID{}, err
	}
	if want == "" {
		// A lineage read from a packed source lacks deletions that were not imported yet.
		if len(list) != 1 {
			return snapshot.ID{}, fmt.Errorf("the repository has %d lineages, and it is not known with which of them the import began: set lineage to that one (the log of the first start has it; \"neobackup list --lineages\" shows all)", len(list))
		}
		return list[0].Lineage, nil
	}
	for _, l := range list {
		if l.Lineage.String() == want {
			return l.Lineage, nil
		}
	}
	return snapshot.ID{}, fmt.Errorf("lineage %s: %w", want, backup.ErrIncomplete)
}

// remember notes the lineage of an import that begins.
func (b *backupSource) remember(repo *backup.Repository, lineage snapshot.ID) error {
	path := b.memory()
	if path == "" || b.cfg.Lineage != "" {
		return nil
	}
	text, err := json.Marshal(remembered{repo.Marker.ID.String(), lineage.String()})
	if err != nil {
		return err
	}
	if known, err := os.ReadFile(path); err == nil && bytes.Equal(known, append(text, '\n')) {
		return nil
	}
	if err := os.MkdirAll(b.cfg.StateDir, 0o700); err != nil {
		return err
	}
	t, err := os.CreateTemp(b.cfg.StateDir, "tmp-*")
	if err != nil {
		return err
	}
	_, err = t.Write(append(text, '\n'))
	err = errors.Join(err, t.Sync(), t.Close())
	if err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(t.Name()))
	}
	return nil
}

// Extent implements [Source].
func (b *backupSource) Extent(ctx context.Context) (Extent, error) {
	return read(ctx, b.remote, func(_ context.Context, conn connection) (Extent, error) {
		d := conn.(backupConn)
		last := d.At()
		if last == tid.Zero {
			return Extent{}, fmt.Errorf("%s: %w", b.what, ErrEmpty)
		}
		e := Extent{Last: last}
		if greatest, ok := d.MaxOID(); ok {
			var err error
			if e.Next, err = next(greatest); err != nil {
				return Extent{}, fmt.Errorf("source %s: %s: %w", b.section, b.what, err)
			}
		}
		return e, nil
	})
}

// LastRevision implements [Indexed].
func (b *backupSource) LastRevision(oid tid.OID) (last tid.TID, known bool) {
	b.mu.Lock()
	conn, open := b.conn.(backupConn)
	b.mu.Unlock()
	if !open {
		return tid.Zero, false
	}
	return conn.Database.LastRevision(oid)
}

// DataTID implements [Indexed].
func (b *backupSource) DataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error) {
	return read(ctx, b.remote, func(ctx context.Context, conn connection) (tid.TID, error) {
		c := conn.(backupConn)
		t, err := c.Database.DataTID(ctx, oid, at)
		c.saw(err)
		return t, err
	})
}

var _ Indexed = (*backupSource)(nil)

// Position implements [Source]. It counts the text of the history.
func (b *backupSource) Position(t tid.TID) (pos, size int64, ok bool) {
	b.mu.Lock()
	conn, open := b.conn.(backupConn)
	b.mu.Unlock()
	if !open {
		return 0, 0, false
	}
	pos, size = conn.Database.Position(t)
	return pos, size, true
}
