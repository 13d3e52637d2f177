package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/s3store"
	"github.com/neozodb/neo/backup/store/storeurl"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

const (
	defaultConfig = "/etc/neo/neobackup.conf"
	envConfig     = "NEOBACKUP_CONFIG"
	envIdentity   = "NEOBACKUP_IDENTITY"
)

// isURL reports whether what -r says is the URL of a store, not a name.
func isURL(s string) bool { return strings.Contains(s, ":") || strings.Contains(s, "/") }

// file reads the configuration file. It returns nil if there is none and none was asked
// for.
func (o *common) file(env *cli.Env) (*config.File, error) {
	if o.hooks != nil {
		return o.hooks.file, nil
	}
	path := o.config
	if path == "" {
		path = env.Getenv(envConfig)
	}
	if path == "" {
		f, err := config.ReadFile(defaultConfig)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return f, wrong(err)
	}
	f, err := config.ReadFile(path)
	return f, wrong(err)
}

// wrong makes an error of the configuration one of exit code 2.
func wrong(err error) error {
	if err == nil {
		return nil
	}
	return &wrongError{err}
}

// wrongError is an error of the configuration that names its place.
type wrongError struct{ err error }

func (e *wrongError) Error() string { return e.err.Error() }
func (e *wrongError) Unwrap() error { return e.err }

// absentError is a store that is not there, and may come: a disk that is not mounted.
type absentError struct{ err error }

func (e *absentError) Error() string { return e.err.Error() }
func (e *absentError) Unwrap() error { return e.err }

// settings returns the settings of the repository that is meant.
func (o *common) settings(env *cli.Env) (*config.Repository, error) {
	if isURL(o.repo) {
		if o.config != "" {
			return nil, cli.Usagef("-r %s: give the name of a repository of %s, or a URL without -f", o.repo, o.config)
		}
		s := config.New()
		return s, o.apply(s, o.repo)
	}
	f, err := o.file(env)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, cli.Usagef("which repository? There is no %s: give -f FILE, or -r URL", defaultConfig)
	}
	s, err := f.Repository(o.repo)
	if err != nil {
		return nil, wrong(err)
	}
	s = s.Clone()
	return s, o.apply(s, "")
}

// apply sets what the command line says.
func (o *common) apply(s *config.Repository, url string) error {
	if url != "" {
		if err := s.Set("url", url); err != nil {
			return cli.Usagef("-r: %w", err)
		}
	}
	for _, kv := range o.sets {
		key, value, ok := strings.Cut(kv, "=")
		if !ok {
			return cli.Usagef("--set %s: want KEY=VALUE", kv)
		}
		if err := s.Set(strings.TrimSpace(key), value); err != nil {
			return cli.Usagef("--set: %w", err)
		}
	}
	if len(o.verify) > 0 {
		if err := s.Set("verify_keys", strings.Join(append(s.VerifyKeys, o.verify...), "\n")); err != nil {
			return cli.Usagef("--verify-key: %w", err)
		}
	}
	if err := s.Check(); err != nil {
		return wrong(err)
	}
	return nil
}

// attempts of a call to a store by a command that ends by itself: about half a minute.
const attempts = 9

// session is an open repository with its settings.
type session struct {
	*backup.Repository
	o     *common
	env   *cli.Env
	set   *config.Repository
	log   *cli.Log
	count *store.Counted
	tried store.Stats // what the probe asked of the store
	tells bool        // the command itself tells of what was tampered with, or goes on in spite of it

	before    *verify.Seen // what this host had seen before anything was read, and what this session has seen
	beforeErr error        // why that is not known

	doomed map[string]string // notes of lineages that doom lists name, with the list; nil: not read yet
}

// openStore opens the store of a repository with all wrappers.
func (o *common) openStore(env *cli.Env, set *config.Repository, log *cli.Log, attempts int) (store.Store, *store.Counted, error) {
	getenv := set.Getenv(env.Getenv, s3store.EnvFile, s3store.EnvAccessKey, s3store.EnvSecretKey, s3store.EnvSessionToken)
	bare, err := storeurl.Open(set.URL, getenv)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &absentError{hint(err, "a directory is not made by itself, since it may be a disk that is not mounted: mkdir it if it is new")}
	}
	if err != nil {
		return nil, nil, wrong(err)
	}
	count := store.Count(store.Limit(bare, set.LimitUpload, set.LimitDownload))
	if o.hooks != nil {
		o.hooks.meter.add(count)
	}
	return store.Retry(count, store.RetryOptions{Attempts: attempts, Repeating: func(op, key string, attempt int, pause time.Duration, err error) {
		// One that fails now and then is no news, one that goes on failing not each time.
		level := slog.LevelInfo
		if attempt >= 4 && attempt&(attempt-1) == 0 {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "the store fails, trying again", "op", op, "key", key, "attempt", attempt, "pause", pause.Round(time.Millisecond), "err", err)
	}}), count, nil
}

// open opens the repository that is meant. The caller ends the log.
func (o *common) open(ctx context.Context, env *cli.Env, log *cli.Log, attempts int) (*session, error) {
	set, err := o.settings(env)
	if err != nil {
		return nil, err
	}
	return o.openSettings(ctx, env, set, log, attempts)
}

func (o *common) openSettings(ctx context.Context, env *cli.Env, set *config.Repository, log *cli.Log, attempts int) (*session, error) {
	trusted, err := set.Trusted()
	if err != nil {
		return nil, wrong(hint(err, "init has printed the key that verifies: --verify-key or verify_keys; on the host of the writer, sign_key is enough"))
	}
	s, count, err := o.openStore(env, set, log, attempts)
	if err != nil {
		return nil, err
	}
	r, err := backup.Open(ctx, backup.Config{Store: s, Trusted: trusted, Log: log.Logger, EpochKey: epochKey(log)})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", set.URL, err)
	}
	if len(set.Recipients) > 0 && !r.Encrypted() {
		return nil, fmt.Errorf("%s: %w: recipients are configured, but the repository says \"encryption\":\"none\": what is stored there is not encrypted", set.URL, errEncryption)
	}
	ses := &session{Repository: r, o: o, env: env, set: set, log: log, count: count}
	if dir, err := statePath(env, set, r.Marker.ID); err == nil { // else seen says so
		ses.before, ses.beforeErr = verify.LoadSeen(dir, r.Marker.ID)
	}
	return ses, nil
}

// with opens the repository that is meant and calls do.
func (o *common) with(env *cli.Env, do func(ctx context.Context, s *session) error) func(context.Context, []string) error {
	return func(ctx context.Context, _ []string) error {
		return o.use(ctx, env, attempts, func(s *session) error { return do(ctx, s) })
	}
}

// use opens the repository that is meant and calls do.
func (o *common) use(ctx context.Context, env *cli.Env, attempts int, do func(s *session) error) (err error) {
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	s, err := o.open(ctx, env, log, attempts)
	if err != nil {
		return err
	}
	if o.stats {
		defer func() { o.printStats(env, s.count.Stats(), s.tried) }()
	}
	if err := do(s); err != nil || s.tells {
		return err
	}
	return s.tampered()
}

// tampered tells of objects that were overwritten or deleted, and of which an older version was used: what
// was read is right, and something is wrong with the repository.
func (s *session) tampered() error {
	list := s.Tampered()
	for _, t := range list {
		if s.o.json {
			_ = s.o.line(s.env.Stderr, map[string]any{"tampered": t.Key, "version": t.Version, "message": t.String()}) // the exit code tells as well
			continue
		}
		fmt.Fprintf(s.env.Stderr, "warning: %v\n", t)
	}
	if len(list) == 0 {
		return nil
	}
	if !s.o.json {
		fmt.Fprintf(s.env.Stderr, "error: %d objects of the repository were tampered with; what was read is right, from older versions\nhint: neobackup repair stores them again; find out who can write to the bucket\n", len(list))
	}
	return &cli.Exit{Code: 3}
}

// stateDir returns the directory of what this host knows of a repository, and makes it.
func (s *session) stateDir() (string, error) {
	return stateDir(s.env, s.set, s.Marker.ID)
}

func stateDir(env *cli.Env, set *config.Repository, id snapshot.ID) (string, error) {
	dir, err := statePath(env, set, id)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	return dir, nil
}

// statePath returns the path of the state directory, which may not be there.
func statePath(env *cli.Env, set *config.Repository, id snapshot.ID) (string, error) {
	if set.StateDir != "" {
		return set.StateDir, nil
	}
	dir, err := defaultStateDir(env)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, id.String()), nil
}

// defaultStateDir returns the directory above those of repositories without state_dir.
func defaultStateDir(env *cli.Env) (string, error) {
	if dir := env.Getenv("STATE_DIRECTORY"); dir != "" { // of systemd, may be a list
		dir, _, _ = strings.Cut(dir, ":")
		return dir, nil
	}
	if dir := env.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "neobackup"), nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/neobackup", nil
	}
	home := env.Getenv("HOME")
	if home == "" {
		return "", cli.Usagef("state_dir is not set, and there is no HOME: give --set state_dir=DIRECTORY")
	}
	return filepath.Join(home, ".local/state/neobackup"), nil
}

// identityOptions are those of commands that read what is encrypted.
type identityOptions struct{ files []string }

func (o *identityOptions) addFlags(cmd *cobra.Command) {
	cli.Texts(cmd.Flags(), &o.files, "identity", "i", "file with an identity of age, of one of the recipients; repeatable (default: $NEOBACKUP_IDENTITY, or that of [drill NAME])")
}

// identities reads the identities that were given.
func (o *identityOptions) identities(env *cli.Env, set *config.Repository) ([]age.Identity, error) {
	files := o.files
	if file := env.Getenv(envIdentity); len(files) == 0 && file != "" {
		files = []string{file}
	}
	if len(files) == 0 && set.Drill != nil && set.Drill.Identity != "" {
		list, err := set.Drill.Identities()
		return list, wrong(err)
	}
	var all []age.Identity
	for _, f := range files {
		list, err := config.ReadIdentities(f)
		if err != nil {
			return nil, wrong(fmt.Errorf("identity: %w", err))
		}
		all = append(all, list...)
	}
	return all, nil
}

// unlock returns the keys of the repository.
func (s *session) unlock(o *identityOptions) (*backup.Keys, error) {
	list, err := o.identities(s.env, s.set)
	if err != nil {
		return nil, err
	}
	return s.Unlock(list...), nil
}

// lineage returns the id of a lineage by its number, its id or the beginning of that; that of
// the current one without.
func (s *session) lineage(ctx context.Context, name string) (*snapshot.Lineage, error) {
	if name == "" {
		return s.Current(ctx)
	}
	all, err := s.Lineages(ctx)
	if err != nil {
		return nil, err
	}
	var found []*snapshot.Lineage
	for _, l := range all {
		if fmt.Sprint(l.K) == name {
			return l, nil
		}
		if len(name) >= 4 && strings.HasPrefix(l.Lineage.String(), name) {
			found = append(found, l)
		}
	}
	if len(found) != 1 {
		return nil, cli.Usagef("--lineage %s: %d lineages are meant; neobackup list --lineages shows them", name, len(found))
	}
	return found[0], nil
}

// place is a lineage and what it holds.
type place struct {
	lineage *snapshot.Lineage
	state   *backup.State
	broken  *backup.BrokenError // nil unless the chain of tails is
	older   error               // nil unless this host has seen a newer state
	doomed  string              // doom list that names the lineage: it will be deleted
}

// damaged reports whether something is missing that was there.
func (p *place) damaged() bool { return p.broken != nil || p.older != nil }

// place reads what a lineage holds.
func (s *session) place(ctx context.Context, lineage string) (*place, error) {
	l, err := s.lineage(ctx, lineage)
	if err != nil {
		return nil, err
	}
	p := &place{lineage: l}
	p.state, err = s.State(ctx, l.Lineage, nil)
	if b, ok := errors.AsType[*backup.BrokenError](err); ok {
		p.broken, err = b, nil
	}
	if err != nil {
		return nil, err
	}
	if lineage != "" {
		p.doomed = s.doomedBy(ctx, l)
	}
	return p, s.seen(p)
}

// doomedBy returns the doom list that names a lineage, "" if none does. That of the current one is not asked for
// where it is meant without a name: nothing announces it.
func (s *session) doomedBy(ctx context.Context, l *snapshot.Lineage) string {
	if s.doomed == nil {
		var err error
		s.doomed, err = s.Announced(ctx, func(key string) bool {
			return strings.HasPrefix(key, snapshot.Prefix(snapshot.KindLineage, snapshot.ID{}))
		})
		if err != nil { // such as one of a keeper that is not trusted here
			s.log.Warn("what will be deleted is not known", "err", err)
			s.doomed = map[string]string{}
		}
	}
	return s.doomed[snapshot.Key{Kind: snapshot.KindLineage, N: l.K}.String()]
}

// doomedText says that a lineage will be deleted.
func (p *place) doomedText() string {
	return fmt.Sprintf("lineage %d will be deleted: %s announces it; neobackup prune --undo cancels that, a hold in the policy keeps the lineage", p.lineage.K, p.doomed)
}

// seen compares a state with what this host has seen before, and notes it. Without a state directory
// nothing is compared.
func (s *session) seen(p *place) error {
	dir, err := s.stateDir()
	if err != nil {
		s.log.Info("what this host has seen before is not known", "err", err)
		return nil
	}
	seen, err := verify.LoadSeen(dir, s.Marker.ID)
	if err = errors.Join(s.beforeErr, err); errors.Is(err, fs.ErrPermission) { // it is that of the writer, which is another user
		s.log.Warn("what this host has seen before is not known", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	if p.older = s.before.Compare(p.state); p.older == nil && p.broken == nil {
		s.before.Update(p.state)
		seen.Update(p.state)
		if err := seen.Save(dir); err != nil { // a full disk must not keep anything from being restored
			s.log.Warn("what was seen is not kept for the next time", "err", err)
		}
	}
	return nil
}

// warn tells of a state that is not the newest one: what comes after it is not used.
func (s *session) warn(p *place) {
	if p.older != nil {
		fmt.Fprintf(s.env.Stderr, "warning: newer objects were removed from the repository, or the store shows an old state: %v\n", p.older)
	}
	if p.broken != nil {
		fmt.Fprintf(s.env.Stderr, "warning: %v; what is used ends at %v (%s)\n", p.broken, p.state.Head(), when(p.state.Head()))
	}
	if p.doomed != "" {
		fmt.Fprintf(s.env.Stderr, "warning: %s\n", p.doomedText())
	}
}

// asof returns the time at which the source had nothing beyond the head.
func (p *place) asof() time.Time {
	if n := len(p.state.Tails); n > 0 {
		return p.state.Tails[n-1].Asof
	}
	return p.state.Manifest.Asof
}

// at returns the TID that a moment means, which is exact.
func (p *place) at(text string, now time.Time) (tid.TID, error) {
	m, err := config.ParseMoment(text, now)
	if err != nil {
		return 0, cli.Usagef("%w", err)
	}
	head := p.state.Head()
	t := m.TID
	switch {
	case m.Latest:
		t = head
	case m.IsTime && t > head && !p.asof().IsZero() && !m.Time.After(p.asof()):
		t = head // the source had nothing between
	}
	if t == tid.Zero {
		return 0, fmt.Errorf("%w: the repository has no transaction yet", backup.ErrNotExact)
	}
	err = p.state.Exact(t)
	if err != nil && m.IsTime {
		err = fmt.Errorf("%s: %w", m, err)
	}
	return t, err
}

// notBefore returns an error if nothing was committed yet at a TID: a year that is wrong must not
// restore an empty database.
func (s *session) notBefore(ctx context.Context, p *place, keys *backup.Keys, at tid.TID) error {
	if at == p.state.Head() {
		return nil
	}
	for part, err := range s.Parts(ctx, p.state, tid.Zero, p.state.Head()) {
		if err != nil {
			return err
		}
		if part.Gap != nil || part.Segment.Txns == 0 {
			continue
		}
		r, err := s.OpenPart(ctx, keys, part)
		if err != nil {
			return err
		}
		if first := r.Footer().First; at < first {
			return hint(fmt.Errorf("%w: nothing was committed until %v (%s); the first transaction of the repository is %v (%s)", backup.ErrNotExact, at, when(at), first, when(first)), "give a later --at T")
		}
		return nil
	}
	return nil
}

// parseRange reads FROM..TO, and returns it as (after, upTo].
func (o *common) parseRange(args []string) (after, upTo tid.TID, err error) {
	upTo = tid.Max
	if len(args) == 0 {
		return 0, upTo, nil
	}
	from, to, ok := strings.Cut(args[0], "..")
	if !ok {
		return 0, 0, cli.Usagef("%q is no range: FROM..TO", args[0])
	}
	moment := func(s string) (tid.TID, error) {
		m, err := config.ParseMoment(s, o.now())
		if err != nil {
			return 0, cli.Usagef("%w", err)
		}
		if m.Latest {
			return tid.Max, nil
		}
		return m.TID, nil
	}
	if from != "" {
		if after, err = moment(from); err != nil {
			return 0, 0, err
		}
		after--
	}
	if to != "" {
		if upTo, err = moment(to); err != nil {
			return 0, 0, err
		}
	}
	return after, upTo, nil
}

// probeAge is how old the result of a probe may be when a writer starts.
const probeAge = 7 * 24 * time.Hour

// probed is the result of a probe, as it is kept in the state directory.
type probed struct {
	V      int           `json:"v"`
	URL    string        `json:"url"`
	Lock   store.Mode    `json:"lock,omitempty"`
	Report *store.Report `json:"report"`
}

const probeFile = "probe.json"

// lastProbe returns the result of the last probe of this store, or nil.
func lastProbe(dir string, set *config.Repository) *probed {
	b, err := os.ReadFile(filepath.Join(dir, probeFile))
	if err != nil {
		return nil // it may be deleted at any time
	}
	p := &probed{}
	if json.Unmarshal(b, p) != nil || p.V != 1 || p.Report == nil || p.URL != set.URL || p.Lock != set.Lock {
		return nil
	}
	return p
}

// probe tries the store and keeps the result, which is good if the error is nil. dir may be
// empty.
func (o *common) probe(ctx context.Context, s store.Store, set *config.Repository, dir string) (*store.Report, error) {
	rep, err := store.Probe(ctx, s, store.ProbeOptions{Lock: set.Lock, Now: o.now})
	if err != nil {
		return rep, fmt.Errorf("probe of %s: %w", set.URL, err)
	}
	if dir != "" {
		b, err := json.Marshal(probed{1, set.URL, set.Lock, rep})
		if err == nil {
			err = writeFile(filepath.Join(dir, probeFile), append(b, '\n'), 0o600, true)
		}
		if err != nil {
			return rep, err
		}
	}
	return rep, rep.Err(set.URL)
}

// writeFile writes a file whole and durably. Without replace a file that exists is an
// fs.ErrExist.
func writeFile(path string, b []byte, mode fs.FileMode, replace bool) (err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close() // read only
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // in vain when it was renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if replace {
		err = os.Rename(f.Name(), path)
	} else {
		err = os.Link(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return dir.Sync()
}

// when is the time of a transaction as people read it.
func when(t tid.TID) string { return t.Time().Format("2006-01-02 15:04:05") }
