package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/s3store"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/store/storeurl"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// account is what a host has of a server.
type account struct {
	server *storetest.Server
	bucket string
	creds  credentials.Value
	role   string
}

// store opens the store as the account may.
func (a *account) store(t *testing.T) store.Store {
	t.Helper()
	env := map[string]string{s3store.EnvAccessKey: a.creds.AccessKeyID, s3store.EnvSecretKey: a.creds.SecretAccessKey, s3store.EnvSessionToken: a.creds.SessionToken}
	s, err := storeurl.Open(a.server.URL(a.bucket, "site"), func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	return store.Retry(s, store.RetryOptions{Attempts: 4})
}

// client returns a client that does what a store does not.
func (a *account) client(t *testing.T) *minio.Client {
	t.Helper()
	c, err := minio.New(a.server.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(a.creds.AccessKeyID, a.creds.SecretAccessKey, a.creds.SessionToken), Region: "us-east-1", BucketLookup: minio.BucketLookupPath})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// root is the account of the administrator.
func root(s *storetest.Server, bucket string) *account {
	return &account{s, bucket, credentials.Value{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, "administrator"}
}

// with returns an account that may what the permissions of a role say, if the server can make one: MinIO
// restricts credentials that it gives for a session.
func with(t *testing.T, s *storetest.Server, bucket string, role Role) *account {
	t.Helper()
	a, err := Bucket{Name: bucket, Prefix: "site/", Lock: true}.Permissions(role)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	c, err := credentials.NewSTSAssumeRole("http://"+s.Endpoint, credentials.STSAssumeRoleOptions{AccessKey: s.AccessKey, SecretKey: s.SecretKey, DurationSeconds: 3600, Policy: string(text)})
	if err != nil {
		t.Fatal(err)
	}
	var v credentials.Value
	for range 600 { // a server that has just started gives none yet
		if v, err = c.GetWithContext(nil); err == nil {
			return &account{s, bucket, v, string(role)}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal(err)
	return nil
}

// recordsOf are those of transaction i.
func recordsOf(i int) []txn.Record {
	return []txn.Record{{OID: tid.OID(i), Data: bytes.Repeat([]byte{byte(i + 1)}, 1000)}}
}

// site is a repository on a server, with accounts for the roles.
type site struct {
	t                     *testing.T
	repo                  *backuptest.Repo
	feed                  *feedtest.Memory
	dir                   string
	mode                  store.Mode
	admin, writer, warden *account
	reader                *account
	versions              map[string][]string // of each object, before anything was tried
}

const siteLockDays = 30

func newSite(t *testing.T, s *storetest.Server, mode store.Mode) *site {
	t.Helper()
	bucket := s.Bucket(t, true)
	admin := root(s, bucket)
	x := &site{t: t, feed: feedtest.New("prod"), dir: t.TempDir(), mode: mode, admin: admin, writer: admin, warden: admin, reader: admin}
	if s.Name == "MinIO" {
		x.writer, x.warden, x.reader = with(t, s, bucket, Writer), with(t, s, bucket, Warden), with(t, s, bucket, Reader)
	}
	x.repo = backuptest.New(t, x.writer.store(t), true)
	for i := range 3 {
		x.feed.Commit(feedtest.Transaction{Description: fmt.Sprint(i), Records: recordsOf(i)})
		x.write(func(w *writer.Writer) error { return w.Snapshot(t.Context(), tid.Zero, "") })
	}
	last := x.feed.Commit(feedtest.Transaction{Description: "tail", Records: recordsOf(3)})
	x.write(func(w *writer.Writer) error {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Follow(ctx) }()
		for w.Stats().Head < last && len(done) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
	return x
}

func (x *site) write(do func(w *writer.Writer) error) {
	x.t.Helper()
	w, err := writer.Open(x.t.Context(), writer.Options{Repo: x.repo.Repository, Signer: x.repo.Signer, Feed: x.feed.Reopen(), StateDir: x.dir, Interval: 100 * time.Millisecond, Lock: x.mode, LockDays: siteLockDays, LockShortDays: 7})
	if err == nil {
		err = errors.Join(do(w), w.Close())
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *site) keeper() *Keeper {
	x.t.Helper()
	r, err := backup.Open(x.t.Context(), backup.Config{Store: x.warden.store(x.t), Trusted: x.repo.Trusted})
	if err != nil {
		x.t.Fatal(err)
	}
	return New(Options{Repo: r, Signer: x.repo.Keeper, Settings: Settings{KeepLineagesDays: 35, PruneGraceHours: 24, LockDays: siteLockDays}, Lock: x.mode, LockShortDays: 7})
}

// What a server really does: locks, deletions of versions, permissions.
func TestServers(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *storetest.Server{"MinIO": storetest.MinIO, "versitygw": storetest.VersityGW} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			for _, mode := range []store.Mode{store.Governance, store.Compliance} {
				t.Run(string(mode), func(t *testing.T) { objectLock(t, s, mode) })
			}
			t.Run("prune", func(t *testing.T) { pruneOnServer(t, s) })
			if name == "MinIO" {
				t.Run("permissions", func(t *testing.T) { permissions(t, s) })
			}
		})
	}
}

// objectLock: what the locks protect survives everything that the credentials of writer and keeper can try, and
// restores.
func objectLock(t *testing.T, s *storetest.Server, mode store.Mode) {
	x := newSite(t, s, mode)
	k := x.keeper()
	if _, _, err := k.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep, err := k.ExtendLocks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if rep.Least < (siteLockDays/2-1)*day || rep.Extended == 0 || rep.Needed < 8 || len(rep.Damage) > 0 {
		t.Fatalf("%+v", rep)
	}
	again, err := k.ExtendLocks(t.Context())
	if err != nil || again.Extended > 3 || again.Ended != 0 {
		t.Fatalf("again: %+v, %v", again, err)
	}
	if _, err := k.Prune(t.Context(), PruneOptions{Confirm: true}); err != nil {
		t.Fatal(err)
	}
	x.remember()
	for _, a := range []*account{x.writer, x.warden} {
		x.attack(a)
	}
	x.survives()
}

// remember notes what is needed: what is locked.
func (x *site) remember() {
	x.t.Helper()
	x.versions = map[string][]string{}
	s := x.admin.store(x.t)
	for v, err := range store.Versions(x.t.Context(), s, "") {
		if err != nil {
			x.t.Fatal(err)
		}
		r, err := store.GetRetention(x.t.Context(), s, v.Key, v.Version)
		if err != nil {
			x.t.Fatal(err)
		}
		if !r.IsZero() {
			x.versions[v.Key] = append(x.versions[v.Key], v.Version)
		}
	}
	if len(x.versions) < 10 {
		x.t.Fatalf("only %d objects are locked: %v", len(x.versions), x.versions)
	}
}

// attack tries to destroy everything.
func (x *site) attack(a *account) {
	x.t.Helper()
	ctx := x.t.Context()
	c := a.client(x.t)
	done := map[string]int{}
	try := func(what string, err error) {
		if err == nil {
			done[what]++
		} else {
			done[what+" refused"]++
		}
	}
	for key, versions := range x.versions {
		path := "site/" + key
		for _, v := range versions {
			try("shorten", c.PutObjectRetention(ctx, a.bucket, path, minio.PutObjectRetentionOptions{VersionID: v, Mode: new(minio.RetentionMode(strings.ToUpper(string(x.mode)))), RetainUntilDate: new(time.Now().Add(time.Minute))}))
			try("lift", c.PutObjectRetention(ctx, a.bucket, path, minio.PutObjectRetentionOptions{VersionID: v}))
			try("delete version", c.RemoveObject(ctx, a.bucket, path, minio.RemoveObjectOptions{VersionID: v}))
			if a != x.admin || x.mode == store.Compliance { // an administrator may bypass governance
				try("bypass", c.RemoveObject(ctx, a.bucket, path, minio.RemoveObjectOptions{VersionID: v, GovernanceBypass: true}))
			}
		}
		_, err := c.PutObject(ctx, a.bucket, path, bytes.NewReader([]byte("destroyed")), 9, minio.PutObjectOptions{DisableMultipart: true, SendContentMd5: true})
		try("overwrite", err)
		try("delete", c.RemoveObject(ctx, a.bucket, path, minio.RemoveObjectOptions{}))
	}
	x.t.Logf("%s: %v", a.role, done)
	for _, what := range []string{"shorten", "lift", "delete version", "bypass"} {
		if done[what] > 0 {
			x.t.Errorf("%s: %d succeeded: %s", a.role, done[what], what)
		}
	}
	if a == x.writer && a != x.admin && done["delete"] > 0 {
		x.t.Errorf("the writer has deleted %d objects", done["delete"])
	}
}

// survives restores everything, after an administrator has taken the marks of deletions away.
func (x *site) survives() {
	x.t.Helper()
	ctx := x.t.Context()
	admin := x.admin.store(x.t)
	var marks []store.Version
	left := map[string][]string{}
	for v, err := range store.Versions(ctx, admin, "") {
		if err != nil {
			x.t.Fatal(err)
		}
		if v.Deleted {
			marks = append(marks, v)
		} else {
			left[v.Key] = append(left[v.Key], v.Version)
		}
	}
	for key, versions := range x.versions {
		for _, v := range versions {
			if !slices.Contains(left[key], v) {
				x.t.Errorf("version %s of %s is gone", v, key)
			}
		}
	}
	if err := store.DeleteVersions(ctx, admin, marks); err != nil {
		x.t.Fatal(err)
	}
	r, err := backup.Open(ctx, backup.Config{Store: x.reader.store(x.t), Trusted: x.repo.Trusted})
	if err != nil {
		x.t.Fatal(err)
	}
	l, err := r.Current(ctx)
	if err != nil {
		x.t.Fatal(err)
	}
	s, err := r.State(ctx, l.Lineage, nil)
	if err != nil {
		x.t.Fatal(err)
	}
	n := 0
	for tr, err := range r.Transactions(ctx, r.Unlock(x.repo.Identity), s, 0, s.Head(), backup.FetchOptions{Scratch: x.dir}, nil) {
		if err != nil {
			x.t.Fatal(err)
		}
		for rec, err := range tr.Records {
			if err != nil || !bytes.Equal(rec.Data, recordsOf(n)[0].Data) {
				x.t.Errorf("transaction %d: %.40q, %v", n, rec.Data, err)
			}
		}
		n++
	}
	if n != 4 {
		x.t.Errorf("%d transactions were restored", n)
	}
	// A keeper deletes nothing in such a state.
	rep, err := x.keeper().Prune(ctx, PruneOptions{Confirm: true})
	if err == nil && len(rep.Refused) == 0 {
		x.t.Errorf("prune goes on: %+v", rep)
	}
}

// pruneOnServer: all versions of what goes are deleted, with the permissions of a keeper.
func pruneOnServer(t *testing.T, s *storetest.Server) {
	x := newSite(t, s, "")
	k := x.keeper()
	k.o.Lock, k.o.Settings.LockDays = "", 0
	if _, _, err := k.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	v, err := k.look(t.Context(), PruneOptions{})
	if err != nil || len(v.refused) > 0 {
		t.Fatal(v, err)
	}
	// As if two days were over.
	p := &pruning{k: k, o: PruneOptions{Confirm: true, ForceShare: 1}}
	v.now = v.now.Add(2 * day)
	if err := v.decide(); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for d := range v.list.going() {
		d.listed = ripe
		keys = append(keys, d.key.String())
	}
	p.plan(v)
	if len(keys) < 4 {
		t.Fatalf("only %v go", keys)
	}
	if _, err := p.carryOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if int(p.rep.Deleted.Objects) != len(keys) || p.rep.Hidden != 0 {
		t.Errorf("%+v, want %d objects", p.rep, len(keys))
	}
	for v, err := range store.Versions(t.Context(), x.admin.store(t), "") {
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(keys, v.Key) {
			t.Errorf("version %s of %s is left, deleted: %v", v.Version, v.Key, v.Deleted)
		}
	}
	if rep, err := k.Prune(t.Context(), PruneOptions{}); err != nil || len(rep.Refused) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// permissions: those of each role are enough for it, and no more.
func permissions(t *testing.T, s *storetest.Server) {
	x := newSite(t, s, store.Governance) // by the writer
	ctx := t.Context()
	key := snapshot.ManifestKey(x.repo.Lineage, 1)
	denied := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, store.ErrDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	put := func(s store.Store, key string) error {
		return s.Put(ctx, key, bytes.NewReader([]byte("x")), 1, store.PutOptions{Create: true})
	}
	ws, rs, ks, ds := x.writer.store(t), x.reader.store(t), x.warden.store(t), with(t, s, x.admin.bucket, Driver).store(t)
	probe := snapshot.NewProbeKey()
	if err := put(ws, probe); err != nil {
		t.Fatal(err)
	}
	denied("the writer deletes", ws.Delete(ctx, []string{probe}))
	denied("the reader puts", put(rs, snapshot.NewProbeKey()))
	denied("the reader deletes", rs.Delete(ctx, []string{probe}))
	denied("the keeper puts a manifest", put(ks, snapshot.ManifestKey(x.repo.Lineage, 99)))
	denied("the drill puts a tail", put(ds, snapshot.TailKey(x.repo.Lineage, 99)))
	denied("the drill deletes", ds.Delete(ctx, []string{probe}))
	if err := put(ds, snapshot.Key{Kind: snapshot.KindProof, Lineage: x.repo.Lineage, Time: time.Now(), Upto: 1}.String()); err != nil {
		t.Errorf("the drill puts a proof: %v", err)
	}
	if _, _, err := store.ReadAll(ctx, rs, key, 1<<20); err != nil {
		t.Errorf("the reader reads: %v", err)
	}
	for _, err := range store.Versions(ctx, rs, "") {
		if err != nil {
			t.Errorf("the reader lists versions: %v", err)
		}
	}
	outside := with(t, s, x.admin.bucket, Reader).client(t)
	if _, err := x.admin.client(t).PutObject(ctx, x.admin.bucket, "other/object", bytes.NewReader([]byte("x")), 1, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := outside.StatObject(ctx, x.admin.bucket, "other/object", minio.StatObjectOptions{}); err == nil {
		t.Error("the reader reads outside of the prefix")
	}
	if _, _, err := x.keeper().Publish(ctx); err != nil {
		t.Errorf("the keeper publishes: %v", err)
	}
}
