package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
)

// A policy is published only if something differs; the greatest that verifies is in force, for all keepers.
func TestPublish(t *testing.T) {
	bubble(t, 1, func(w *world) {
		ctx := w.t.Context()
		w.snapshot(1)
		k := w.keeper(w.mem, usual)
		if f, err := k.Policy(ctx); err != nil || f.Policy != nil {
			w.t.Fatalf("%+v, %v", f, err)
		}
		p, isNew, err := k.Publish(ctx)
		if err != nil || !isNew || p.K != 1 {
			w.t.Fatalf("%+v, %v", p, err)
		}
		if p, isNew, err := k.Publish(ctx); err != nil || isNew || p.K != 1 {
			w.t.Fatalf("%+v, %v", p, err)
		}
		other := w.keeper(w.mem, Settings{KeepLineagesDays: 60, PruneGraceHours: 48, LockDays: 9})
		if d := other.Differences(p); len(d) != 3 {
			w.t.Errorf("%+v", d)
		}
		if _, err := w.keeper(w.mem, usual).Prune(ctx, PruneOptions{}); err != nil {
			w.t.Fatal(err)
		}
		if p, isNew, err := other.Publish(ctx); err != nil || !isNew || p.K != 2 || p.LockDays != 9 {
			w.t.Fatalf("%+v, %v", p, err)
		}
		// One that the keeper did not sign is reported, and its number is taken.
		b, err := snapshot.Sign(&snapshot.Policy{Repo: w.repo.Marker.ID, K: 3, PruneGraceHours: 24, Created: time.Now()}, w.repo.Keeper)
		w.must(err)
		b[len(b)-10] ^= 1
		w.repo.Put("policy/0003", b)
		f, err := k.Policy(ctx)
		if err != nil || f.Policy.K != 2 || len(f.Ignored) != 1 || f.Ignored[0].Key != "policy/0003" {
			w.t.Fatalf("%+v, %v", f, err)
		}
		if p, _, err := k.Publish(ctx); err != nil || p.K != 4 {
			w.t.Fatalf("%+v, %v", p, err)
		}
		looker := New(Options{Repo: k.o.Repo, Settings: usual})
		if _, _, err := looker.Publish(ctx); !errors.Is(err, ErrNoKey) {
			w.t.Errorf("without a key: %v", err)
		}
		if _, err := looker.Prune(ctx, PruneOptions{Confirm: true}); !errors.Is(err, ErrNoKey) {
			w.t.Errorf("without a key: %v", err)
		}
	})
}

// A hold pins the newest lineage in which it is exact when it is published, and stays there.
func TestHolds(t *testing.T) {
	bubble(t, 1, func(w *world) {
		ctx := w.t.Context()
		w.snapshot(2)
		first := w.current().Lineage
		head := w.state(first).Head()
		publish := func(want snapshot.ID, holds ...Hold) *snapshot.Policy {
			w.t.Helper()
			s := usual
			s.Holds = holds
			p, _, err := w.keeper(w.mem, s).Publish(ctx)
			w.must(err)
			if len(holds) > 0 && p.Holds[0].Lineage != want {
				w.t.Errorf("%v pins lineage %v, want %v", p.Holds[0], p.Holds[0].Lineage, want)
			}
			return p
		}
		byTID := Hold{TID: head, Label: "release 5"}
		publish(first, byTID)
		time.Sleep(time.Hour)
		w.rebase()
		w.snapshot(1)
		second := w.current().Lineage
		if p := publish(first, byTID); p.K != 1 {
			w.t.Errorf("policy %d: nothing differs", p.K)
		}
		// A time after the last transaction is exact once the source is known to have nothing up to then.
		later := Hold{Time: time.Now().Add(10 * time.Minute), Label: "merge"}
		later.TID = w.state(second).Head() + 1<<40
		if _, _, err := w.keeper(w.mem, Settings{KeepLineagesDays: 35, PruneGraceHours: 24, Holds: []Hold{later}}).Publish(ctx); !errors.Is(err, backup.ErrNotExact) {
			w.t.Errorf("a hold in the future: %v", err)
		}
		time.Sleep(time.Hour)
		w.follow(0)
		w.snapshot(1)
		p := publish(first, byTID, Hold{TID: w.state(second).Head(), Label: "merge"})
		if p.Holds[1].Lineage != second {
			w.t.Errorf("%+v", p.Holds)
		}
		if p := publish(second, Hold{TID: head, Label: "another label"}); p.K != 3 {
			w.t.Errorf("%+v", p)
		}
		if p := publish(first); len(p.Holds) != 0 {
			w.t.Errorf("%+v", p)
		}
	})
}

// A hold is kept by all keepers, for as long as it is in the policy.
func TestHeld(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.snapshot(3)
		first := w.current()
		hold := usual
		hold.Holds = []Hold{{TID: w.state(first.Lineage).Head(), Label: "release"}}
		_, _, err := w.keeper(w.mem, hold).Publish(w.t.Context())
		w.must(err)
		w.rebase()
		k := w.keeper(w.guard(), usual) // has no such line
		for range 20 {
			w.snapshot(1)
			w.prove(w.current().Lineage, snapshot.ResultOK)
			time.Sleep(7 * day)
			w.confirmed(k)
		}
		if len(w.lineages()) != 2 {
			w.t.Fatal("the lineage is gone")
		}
		w.compare(w.state(first.Lineage))
		_, _, err = k.Publish(w.t.Context())
		w.must(err)
		for range 3 {
			w.snapshot(1)
			w.prove(w.current().Lineage, snapshot.ResultOK)
			time.Sleep(2 * day)
			w.confirmed(k)
		}
		if len(w.lineages()) != 1 {
			w.t.Error("the lineage stays without the hold")
		}
	})
}

// What was newer than what is there was removed: nothing more is.
func TestRemoved(t *testing.T) {
	for name, spoil := range map[string]func(w *world) []string{
		"manifests and tails": func(w *world) []string {
			s := w.state(w.current().Lineage)
			keys := []string{snapshot.ManifestKey(s.Lineage, s.Manifest.Seq)}
			for _, t := range s.Tails {
				keys = append(keys, t.Key)
			}
			return keys
		},
		"the last tail": func(w *world) []string {
			s := w.state(w.current().Lineage)
			return []string{s.Tails[len(s.Tails)-1].Key}
		},
		"the note of the current lineage": func(*world) []string { return []string{"l/0002"} },
		"the policy in force":             func(*world) []string { return []string{"policy/0002"} },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, func(w *world) {
				w.mem = memstore.New(memstore.Options{Now: w.now, Versioned: true})
				w.repo = newRepo(w)
				w.old()
				_, _, err := w.keeper(w.mem, Settings{KeepLineagesDays: 60, PruneGraceHours: 24}).Publish(w.t.Context())
				w.must(err)
				w.must(w.mem.Delete(w.t.Context(), spoil(w)))
				before := w.keys()
				rep, err := w.keeper(w.mem, usual).Prune(w.t.Context(), PruneOptions{Confirm: true})
				if err != nil || !rep.Damaged || !maps.Equal(before, w.keys()) {
					w.t.Fatalf("%+v, %v", rep, err)
				}
				t.Log(rep.Refused)
			})
		})
	}
	// Without versions: this host has seen it, or a proof has.
	for _, how := range []string{"seen", "proof", "proof of a tail"} {
		bubble(t, 1, func(w *world) {
			w.old()
			s := w.state(w.current().Lineage)
			k := w.keeper(w.mem, usual)
			switch how {
			case "seen":
				k.o.Check = func(s *backup.State) error { return errors.New("tail 99 was seen") }
			case "proof of a tail":
				w.prove(s.Lineage, snapshot.ResultOK)
				w.must(w.mem.Delete(w.t.Context(), []string{s.Tails[len(s.Tails)-1].Key}))
			default:
				w.snapshot(1)
				w.prove(s.Lineage, snapshot.ResultOK)
				s = w.state(s.Lineage)
				w.must(w.mem.Delete(w.t.Context(), []string{snapshot.ManifestKey(s.Lineage, s.Manifest.Seq)}))
			}
			rep, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true})
			if err != nil || !rep.Damaged {
				w.t.Fatalf("%s: %+v, %v", how, rep, err)
			}
		})
	}
}

// An object that was overwritten is read in its right version, and nothing is deleted until it is mended.
func TestTampered(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.mem = memstore.New(memstore.Options{Now: w.now, Versioned: true})
		w.repo = newRepo(w)
		w.old()
		s := w.state(w.current().Lineage)
		w.must(w.mem.Put(w.t.Context(), snapshot.ManifestKey(s.Lineage, s.Manifest.Seq), bytes.NewReader([]byte("x")), 1, store.PutOptions{}))
		rep, err := w.keeper(w.mem, usual).Prune(w.t.Context(), PruneOptions{Confirm: true})
		if err != nil || !rep.Damaged || len(rep.Written) > 0 {
			w.t.Fatalf("%+v, %v", rep, err)
		}
	})
}

// All that is needed is locked for half of the days at least, each version of it; nothing else is.
func TestExtendLocks(t *testing.T) {
	bubble(t, 1, func(w *world) {
		ctx := w.t.Context()
		w.mem = memstore.New(memstore.Options{Now: w.now, Versioned: true})
		w.repo = newRepo(w)
		w.old()
		k := w.keeper(w.mem, usual)
		if _, err := k.ExtendLocks(ctx); !errors.Is(err, ErrNoLocks) {
			w.t.Fatalf("no lock is configured: %v", err)
		}
		k.o.Lock, k.o.Settings.LockDays = store.Compliance, 30
		overwritten := ""
		for p, err := range w.repo.Parts(ctx, w.state(w.current().Lineage), 0, 1<<62) {
			w.must(err)
			if overwritten = p.Segment.Key; !strings.Contains(overwritten, "/t/") {
				break
			}
		}
		body, info, err := w.mem.Get(ctx, overwritten, 0, store.All)
		w.must(err)
		b := make([]byte, info.Size)
		body.Read(b)
		b[3] ^= 1
		w.must(w.mem.Put(ctx, overwritten, bytes.NewReader(b), info.Size, store.PutOptions{}))
		for i := range 40 {
			plan, _ := w.goingOf(k)
			rep, err := k.ExtendLocks(ctx)
			w.must(err)
			if rep.Least < 15*day || rep.Days != 30 || rep.Damaged {
				w.t.Fatalf("%+v", rep)
			}
			for v, err := range w.mem.Versions(ctx, "") {
				w.must(err)
				r, err := w.mem.Retention(ctx, v.Key, v.Version)
				w.must(err)
				kind, _ := snapshot.ParseKey(v.Key)
				needed := plan[v.Key] == "" && kind.Kind != snapshot.KindProbe
				if got := r.Until.Sub(w.now()); needed && got < 15*day || !needed && !r.IsZero() && i == 0 {
					w.t.Fatalf("%s %s: needed: %v, locked for %v", v.Key, v.Version, needed, got)
				}
			}
			time.Sleep(day)
		}
		// What is missing is named, and its versions stay locked.
		w.must(w.mem.Delete(ctx, []string{overwritten}))
		rep, err := k.ExtendLocks(ctx)
		if err != nil || !rep.Damaged || !strings.Contains(strings.Join(rep.Damage, "\n"), overwritten) || rep.Least < 14*day {
			w.t.Fatalf("%+v, %v", rep, err)
		}
		// What does not verify is locked as a whole.
		s := w.state(w.current().Lineage)
		w.mem.Corrupt(s.Tails[0].Key, func(b []byte) []byte { b[100] ^= 1; return b })
		rep, err = k.ExtendLocks(ctx)
		if err != nil || !rep.Damaged || !strings.Contains(strings.Join(rep.Damage, "\n"), s.Tails[0].Key) {
			w.t.Fatalf("%+v, %v", rep, err)
		}
		for v, err := range w.mem.Versions(ctx, s.Lineage.String()) {
			w.must(err)
			if r, _ := w.mem.Retention(ctx, v.Key, v.Version); !v.Deleted && r.Until.Sub(w.now()) < 14*day {
				w.t.Errorf("%s is locked until %v", v.Key, r.Until)
			}
		}
	})
}

// An older wrap goes only if the newest one opens, and only if that is wanted both times.
func TestDropWraps(t *testing.T) {
	bubble(t, 2, func(w *world) {
		ctx := w.t.Context()
		w.old()
		id, err := w.repo.Keys.Epoch(ctx, 1)
		w.must(err)
		stranger, err := age.GenerateX25519Identity()
		w.must(err)
		operator := w.repo.Identity.(*age.X25519Identity)
		b, err := snapshot.Wrap(id, []snapshot.Recipient{stranger.Recipient(), operator.Recipient()})
		w.must(err)
		w.repo.Put("keys/0001.0002", b)
		k := w.keeper(w.mem, usual)
		run := func(ids ...age.Identity) {
			w.t.Helper()
			time.Sleep(25 * time.Hour)
			_, err := k.Prune(ctx, PruneOptions{Confirm: true, DropWraps: ids})
			w.must(err)
		}
		for range 3 {
			run()
		}
		run(operator)
		run()
		run()
		if len(w.keys()["keys/0001.0001"].Key) == 0 {
			w.t.Fatal("the older wrap is gone without a second order")
		}
		run(operator)
		run(operator)
		if have := w.keys(); have["keys/0001.0001"].Key != "" || have["keys/0001.0002"].Key == "" || have["keys/0001.pub"].Key == "" {
			w.t.Fatalf("%v", have)
		}
		w.repo.Keys = w.repo.Unlock(stranger)
		w.compare(w.state(w.current().Lineage))
		// A newest wrap that does not open is no reason to give up another one.
		w.repo.Put("keys/0001.0003", []byte("rubbish"))
		if _, err := k.Prune(ctx, PruneOptions{Confirm: true, DropWraps: []age.Identity{operator}}); !errors.Is(err, backup.ErrKeys) {
			w.t.Errorf("a wrap that does not open: %v", err)
		}
	})
}

// The permissions are what they are documented to be.
func TestAccess(t *testing.T) {
	b := Bucket{Name: "backups", Prefix: "prod/", AWS: true, Lock: true}
	for _, role := range Roles {
		a, err := b.Permissions(role)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		has := func(s string) bool { return strings.Contains(string(text), `"`+s+`"`) }
		if has("s3:BypassGovernanceRetention") || has("s3:*") {
			t.Errorf("%s may too much: %s", role, text)
		}
		if got := has("s3:DeleteObject") || has("s3:DeleteObjectVersion"); got != (role == Warden) {
			t.Errorf("%s may delete: %v", role, got)
		}
		if got := has("s3:PutObject"); got != (role != Reader) {
			t.Errorf("%s may put: %v", role, got)
		}
		if got := has("s3:if-none-match"); got != (role != Reader) {
			t.Errorf("%s may overwrite: %v", role, !got)
		}
		if got := has("s3:PutObjectRetention"); got != (role == Writer || role == Warden) {
			t.Errorf("%s may lock: %v", role, got)
		}
	}
	if _, err := b.Permissions("root"); err == nil {
		t.Error("a role that does not exist")
	}
}

// A policy of a newer version is not passed over: it may keep more than the one before. Nothing is deleted, and none is
// published after it.
func TestNewerPolicy(t *testing.T) {
	bubble(t, 1, func(w *world) {
		ctx := w.t.Context()
		w.old()
		w.confirmed(w.keeper(w.mem, usual))
		time.Sleep(25 * time.Hour)
		private, verifier, err := snapshot.GenerateKey("test", snapshot.Keeper)
		w.must(err)
		trusted, err := snapshot.NewVerifiers(verifier)
		w.must(err)
		w.repo.Trusted = append(w.repo.Trusted, trusted...)
		signer, err := note.NewSigner(private)
		w.must(err)
		put := func(k, v int) {
			text := fmt.Sprintf(`{"neobackup":"policy","v":%d,"repo":"%v","k":%d,"created":"2000-01-01T00:00:00Z","keep_lineages_days":35,"prune_grace_hours":24,"lock_days":0,"holds":[]}`+"\n", v, w.repo.Marker.ID, k)
			b, err := note.Sign(&note.Note{Text: text}, signer)
			w.must(err)
			w.repo.Put(snapshot.Key{Kind: snapshot.KindPolicy, N: int64(k)}.String(), b)
		}
		put(2, 2)
		before := w.keys()
		k := w.keeper(w.mem, Settings{KeepLineagesDays: 50, PruneGraceHours: 24})
		if rep, err := k.Prune(ctx, PruneOptions{Confirm: true}); !errors.Is(err, snapshot.ErrVersion) {
			w.t.Errorf("prune: %+v, %v", rep, err)
		}
		if _, _, err := k.Publish(ctx); !errors.Is(err, snapshot.ErrVersion) {
			w.t.Errorf("publish: %v", err)
		}
		if !maps.Equal(before, w.keys()) {
			w.t.Error("something was changed")
		}
		put(3, 1)
		if f, err := k.Policy(ctx); err != nil || f.Policy.K != 3 || len(f.Ignored) != 1 {
			w.t.Errorf("with a later one that is known: %+v, %v", f, err)
		}
	})
}
