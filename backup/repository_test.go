package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// both runs a test with and without encryption.
func both(t *testing.T, f func(t *testing.T, r *backuptest.Repo)) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprintf("encrypted=%t", encrypted), func(t *testing.T) {
			f(t, backuptest.New(t, memstore.New(memstore.Options{}), encrypted))
		})
	}
}

// text is a transaction as a test compares it.
func text(t *txn.Transaction) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %q %q %q %q", t.TID, t.Status, t.User, t.Description, t.Extension)
	for range 2 { // records may be read again
		for r, err := range t.Records {
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, " %v:%d:%q:%t:%v", r.OID, len(r.Data), r.Data[:min(len(r.Data), 20)], r.Data == nil, r.DataTID)
		}
	}
	return b.String(), nil
}

func texts(t *testing.T, list ...*txn.Transaction) []string {
	t.Helper()
	var all []string
	for _, x := range list {
		s, err := text(x)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// read returns the history that a repository has in (after, upTo].
func read(ctx context.Context, r *backuptest.Repo, s *backup.State, after, upTo tid.TID, resolve backup.Resolve) ([]string, error) {
	var all []string
	for x, err := range r.Transactions(ctx, r.Keys, s, after, upTo, backup.FetchOptions{}, resolve) {
		if err != nil {
			return all, err
		}
		s, err := text(x)
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	return all, nil
}

// replace stores an object in the place of another one.
func replace(t *testing.T, s store.Store, key string, b []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	g := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

// One history in all forms that a repository may have it.
func TestTransactions(t *testing.T) {
	both(t, func(t *testing.T, r *backuptest.Repo) {
		big := make([]txn.Record, 5) // more than is kept of a transaction
		for i := range big {
			big[i] = txn.Record{OID: tid.OID(100 + i), Data: bytes.Repeat([]byte{byte(i)}, 2<<20)}
		}
		cut := []txn.Record{{OID: 1, Data: []byte("cut 1")}, {OID: 2}, {OID: 3, Data: []byte("cut 3")}, {OID: 4, Data: []byte{}}}
		all := []*txn.Transaction{
			backuptest.Txn(0x10, txn.Record{OID: 1, Data: []byte("one")}, txn.Record{OID: 2, Data: []byte("two")}),
			backuptest.Txn(0x20, txn.Record{OID: 2}), // deleted
			backuptest.Txn(0x30),
			backuptest.Txn(0x40, big...),
			backuptest.Txn(0x50, txn.Record{OID: 1, Data: []byte("one"), DataTID: 0x10}, txn.Record{OID: 2, DataTID: 0x20}),
			backuptest.Txn(0x60, cut...),
			backuptest.Txn(0x70, txn.Record{OID: 7, Data: []byte{}}),
			backuptest.Txn(0x80, txn.Record{OID: 8, Data: []byte("eight")}),
		}
		resolve := func(oid tid.OID, at tid.TID) ([]byte, error) {
			if oid == 1 && at == 0x10 {
				return []byte("one"), nil
			}
			return nil, txn.ErrNotFound
		}
		want := texts(t, all...)
		check := func(when string) {
			t.Helper()
			s := r.Now()
			for after := tid.TID(0); after <= s.Head(); after += 0x10 {
				for _, upTo := range []tid.TID{after + 0x8, after + 0x10, 0x60, s.Head()} {
					got, err := read(t.Context(), r, s, after, upTo, resolve)
					if err != nil {
						t.Fatalf("%s, (%v, %v]: %v", when, after, upTo, err)
					}
					var part []string
					for i, x := range all {
						if x.TID > after && x.TID <= upTo && x.TID <= s.Head() {
							part = append(part, want[i])
						}
					}
					if d := cmp.Diff(part, got); d != "" {
						t.Fatalf("%s, (%v, %v]: %s", when, after, upTo, d)
					}
				}
			}
		}
		r.Tail(all[0])
		r.Tail(all[1], all[2])
		r.Heartbeat()
		r.Manifest(true, false) // one segment
		r.Listed(all[3:4], all[4:5])
		check("tails")
		r.Manifest(false, false)
		r.Cut(all[5], cut[:1], cut[1:3], cut[3:])
		r.Manifest(false, true) // the first ones in a page
		check("a page")
		r.Tail(all[6])
		r.Manifest(false, false) // adopted from the tail
		r.Tail(all[7])
		check("adopted")
		s := r.Now()
		if s.Head() != 0x80 || s.MaxOID() != 104 || s.Tip() != snapshot.Tip(all[7]) || len(s.Tails) != 1 || len(s.Holes()) != 0 {
			t.Errorf("state: head %v, greatest oid %v, %d tails, holes %v", s.Head(), s.MaxOID(), len(s.Tails), s.Holes())
		}
		// Without resolve copies have no data; all else has.
		got, err := read(t.Context(), r, s, 0x40, 0x50, nil)
		if err != nil || !strings.Contains(got[0], ":true:0000000000000010") {
			t.Errorf("without resolve: %v, %v", got, err)
		}
		if err := s.Exact(0x81); !errors.Is(err, backup.ErrNotExact) {
			t.Errorf("beyond the head: %v", err)
		}
	})
}

// The random access to a segment behind a tail, of its own, and large.
func TestOpenPart(t *testing.T) {
	both(t, func(t *testing.T, r *backuptest.Repo) {
		counted := store.Count(r.Store)
		r.Store = counted
		big := random(300<<10, 1)
		r.Tail(backuptest.Txn(0x10, txn.Record{OID: 1, Data: []byte("small")}))
		r.Tail(backuptest.Txn(0x20, txn.Record{OID: 1, Data: big}))
		r.Listed([]*txn.Transaction{backuptest.Txn(0x30, txn.Record{OID: 1, Data: big}, txn.Record{OID: 2, Data: []byte("two")})})
		s := r.Now()
		_, err := r.Keys.Epoch(t.Context(), 1)
		if (err == nil) != r.Encrypted() {
			t.Fatal(err)
		}
		gets := []int64{0, 2, 2} // in memory; the end and the frame
		i := 0
		for p, err := range r.Parts(t.Context(), s, 0, s.Head()) {
			if err != nil {
				t.Fatal(err)
			}
			before := counted.Stats().Gets
			seg, err := r.OpenPart(t.Context(), r.Keys, p)
			if err != nil {
				t.Fatal(err)
			}
			e, err := seg.Find(1, tid.Max)
			if err != nil {
				t.Fatal(err)
			}
			rec, err := seg.Load(e)
			if err != nil || i > 0 && !bytes.Equal(rec.Data, big) {
				t.Fatalf("part %d: %d bytes, %v", i, len(rec.Data), err)
			}
			if n := counted.Stats().Gets - before; n < gets[i] || n > gets[i]+2 {
				t.Errorf("part %d: %d requests, want %d", i, n, gets[i])
			}
			i++
		}
		if i != 3 {
			t.Errorf("%d parts, want 3", i)
		}
	})
}

// What is missing or damaged is an error, and what lies before it can be read.
func TestMissing(t *testing.T) {
	both(t, func(t *testing.T, r *backuptest.Repo) {
		mem := r.Store
		a := backuptest.Txn(0x10, txn.Record{OID: 1, Data: []byte("one")})
		r.Tail(a)
		two := r.Tail(backuptest.Txn(0x20, txn.Record{OID: 1, Data: []byte("two")}))
		r.Tail(backuptest.Txn(0x30, txn.Record{OID: 1, Data: []byte("three")}))
		object := storetest.Get(t, mem, two)
		if err := mem.Delete(t.Context(), []string{two}); err != nil {
			t.Fatal(err)
		}
		s, err := r.State(t.Context(), r.Lineage, nil)
		broken, ok := errors.AsType[*backup.BrokenError](err)
		if !ok || broken.Key != two || broken.Last != 3 || !errors.Is(err, store.ErrNotFound) || s.Head() != 0x10 {
			t.Fatalf("a tail is missing: %v, %v", s, err)
		}
		if got, err := read(t.Context(), r, s, 0, s.Head(), nil); err != nil || !slices.Equal(got, texts(t, a)) {
			t.Errorf("before the break: %v, %v", got, err)
		}
		// A byte of the note.
		bad := slices.Clone(object)
		bad[bytes.Index(bad, []byte(`"asof"`))+9] ^= 1
		replace(t, mem, two, bad)
		if _, err := r.State(t.Context(), r.Lineage, nil); !errors.Is(err, snapshot.ErrCorrupt) {
			t.Errorf("a changed note: %v", err)
		}
		// A byte of the segment, and its end.
		for _, bad := range [][]byte{append(slices.Clone(object[:len(object)-1]), object[len(object)-1]^1), object[:len(object)-1], append(slices.Clone(object), 0)} {
			replace(t, mem, two, bad)
			s, err := r.State(t.Context(), r.Lineage, nil)
			if err == nil {
				_, err = read(t.Context(), r, s, 0, s.Head(), nil)
			}
			if !errors.Is(err, snapshot.ErrCorrupt) || !strings.Contains(err.Error(), two) {
				t.Errorf("%d bytes of %d: %v", len(bad), len(object), err)
			}
		}
		replace(t, mem, two, object)
		if s := r.Now(); s.Head() != 0x30 {
			t.Errorf("head %v", s.Head())
		}
		// A segment.
		keys := r.Listed([]*txn.Transaction{backuptest.Txn(0x40, txn.Record{OID: 1, Data: []byte("four")})})
		s = r.Now()
		if err := mem.Delete(t.Context(), keys); err != nil {
			t.Fatal(err)
		}
		if got, err := read(t.Context(), r, s, 0, s.Head(), nil); !errors.Is(err, backup.ErrIncomplete) || len(got) != 3 {
			t.Errorf("a segment is missing: %d transactions, %v", len(got), err)
		}
		// All manifests.
		if err := mem.Delete(t.Context(), []string{snapshot.ManifestKey(r.Lineage, 1)}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.State(t.Context(), r.Lineage, nil); !errors.Is(err, backup.ErrIncomplete) {
			t.Errorf("no manifest: %v", err)
		}
	})
}

// A manifest replayed, or one that is not the next of the one before.
func TestManifestChain(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), false)
	r.Tail(backuptest.Txn(0x10))
	one := storetest.Get(t, r.Store, snapshot.ManifestKey(r.Lineage, 1))
	two := r.Manifest(true, false)
	known := r.Now()
	r.Tail(backuptest.Txn(0x20))
	three := r.Manifest(true, false)
	if s, err := r.State(t.Context(), r.Lineage, known); err != nil || s.Manifest.Seq != 3 {
		t.Fatal(s, err)
	}
	object := storetest.Get(t, r.Store, three)
	replace(t, r.Store, three, one)
	if _, err := r.State(t.Context(), r.Lineage, nil); !errors.Is(err, snapshot.ErrCorrupt) {
		t.Errorf("an older manifest in the place of a newer one: %v", err)
	}
	replace(t, r.Store, three, object)
	replace(t, r.Store, two, one)
	if _, err := r.State(t.Context(), r.Lineage, nil); !errors.Is(err, snapshot.ErrCorrupt) {
		t.Errorf("manifest 2 is not what manifest 3 follows: %v", err)
	}
	if err := r.Store.Delete(t.Context(), []string{two}); err != nil { // it may be gone
		t.Fatal(err)
	}
	if s := r.Now(); s.Head() != 0x20 {
		t.Errorf("head %v", s.Head())
	}
}

// lateList hides the newest objects from lists.
type lateList struct {
	store.Wrapped
	hidden map[string]bool
}

func (l *lateList) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for i, err := range l.Store.List(ctx, prefix, after) {
			if err == nil && l.hidden[i.Key] {
				continue
			}
			if !yield(i, err) {
				return
			}
		}
	}
}

// A list that is late shows all the same what is there.
func TestLateList(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), false)
	late := &lateList{Wrapped: store.Wrapped{Store: r.Store}, hidden: map[string]bool{}}
	first := r.Now()
	r.Tail(backuptest.Txn(0x10))
	late.hidden[r.Manifest(true, false)] = true
	late.hidden[r.Manifest(true, false)] = true
	for i := range 70 {
		late.hidden[r.Tail(backuptest.Txn(tid.TID(0x20+i)))] = i != 30
	}
	r.Store = late
	for _, known := range []*backup.State{nil, first} {
		s, err := r.State(t.Context(), r.Lineage, known)
		if err != nil || s.Manifest.Seq != 3 || s.Head() != 0x20+69 {
			t.Errorf("%v, %v", s, err)
		}
	}
	again, err := r.State(t.Context(), r.Lineage, r.Now())
	if err != nil || again.Head() != 0x20+69 || len(again.Tails) != 70 {
		t.Errorf("known: %v, %v", again, err)
	}
}

// What an identity opens, and what one does not.
func TestKeys(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), true)
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*backup.Keys{r.Unlock(), r.Unlock(other)} {
		_, err := k.Epoch(t.Context(), 1)
		if !errors.Is(err, backup.ErrKeys) || !strings.Contains(err.Error(), r.Identity.(*age.X25519Identity).Recipient().String()) {
			t.Errorf("%v", err)
		}
	}
	// A foreign wrap changes nothing.
	var b bytes.Buffer
	w, err := age.Encrypt(&b, r.Identity.(*age.X25519Identity).Recipient())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w, other)
	w.Close()
	r.Put("keys/0001.0002", b.Bytes())
	id, err := r.Unlock(r.Identity).Epoch(t.Context(), 1)
	if err != nil || id.String() == other.String() {
		t.Errorf("with a foreign wrap: %v", err)
	}
	if _, err := r.NewEpoch(t.Context(), r.Signer, []snapshot.Recipient{other.Recipient()}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Unlock(other).Epoch(t.Context(), 2); err != nil {
		t.Error(err)
	}
	epochs, err := r.Epochs(t.Context())
	if err != nil || len(epochs) != 2 || !backup.SameRecipients(epochs[1], []snapshot.Recipient{other.Recipient()}) || backup.SameRecipients(epochs[0], []snapshot.Recipient{other.Recipient()}) {
		t.Errorf("epochs %v, %v", epochs, err)
	}
}

// An init that ended at any call of the store is repeated.
func TestInitInterrupted(t *testing.T) {
	private, public, err := snapshot.GenerateKey("test", snapshot.Writer)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := snapshot.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := snapshot.NewVerifiers(public)
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	o := backup.InitOptions{Name: "test", Signer: signer, Sign: []string{public}, Recipients: []snapshot.Recipient{id.Recipient()}, Source: snapshot.Source{Kind: "file", Name: "f"}, Writer: "w"}
	calls := 0
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			mem := memstore.New(memstore.Options{})
			cfg := backup.Config{Store: storetest.DieAt(mem, n, after), Trusted: trusted}
			_, err := backup.Init(t.Context(), cfg, o)
			if err == nil {
				calls = n
				break
			}
			if n > 100 {
				t.Fatal(err)
			}
			cfg.Store = mem
			r, err := backup.Init(t.Context(), cfg, o)
			if errors.Is(err, backup.ErrRepository) { // the marker was stored
				r, err = backup.Open(t.Context(), cfg)
			}
			if err != nil {
				t.Fatalf("call %d, after %t: %v", n, after, err)
			}
			l, err := r.Current(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s, err := r.State(t.Context(), l.Lineage, nil); err != nil || s.Head() != 0 {
				t.Fatal(s, err)
			}
			epochs, err := r.Epochs(t.Context())
			if err != nil || len(epochs) != 1 {
				t.Fatal(epochs, err)
			}
			if _, err := r.Unlock(id).Epoch(t.Context(), epochs[0].KID); err != nil {
				t.Fatal(err)
			}
			if _, err := backup.Init(t.Context(), cfg, o); !errors.Is(err, backup.ErrRepository) {
				t.Fatalf("again: %v", err)
			}
		}
	}
	if calls < 8 {
		t.Errorf("only %d calls were tried", calls)
	}
	mem := memstore.New(memstore.Options{})
	storetest.Put(t, mem, "other/object", nil)
	_, err = backup.Init(t.Context(), backup.Config{Store: mem, Trusted: trusted}, o)
	if e, ok := errors.AsType[*backup.NotEmptyError](err); !ok || !slices.Equal(e.Keys, []string{"other/object"}) {
		t.Errorf("not empty: %v", err)
	}
	if _, err := backup.Open(t.Context(), backup.Config{Store: mem, Trusted: trusted}); !errors.Is(err, backup.ErrNoRepository) {
		t.Errorf("no repository: %v", err)
	}
}

// A TID in a hole is refused with what can be restored, and no transaction is invented for that.
func TestNotExactError(t *testing.T) {
	for _, tt := range []struct {
		before, after tid.TID
		want          string
	}{
		{2, 9, "the nearest that are: 0000000000000002 and 0000000000000009"},
		{0, 9, "the first that is: 0000000000000009"},
		{2, 0, "the nearest that are: 0000000000000002, and those that are still to be read"},
		{0, 0, "none is yet, those that are still to be read will be"},
	} {
		e := &backup.NotExactError{TID: 5, Head: 10, Before: tt.before, After: tt.after}
		if s := e.Error(); !strings.HasSuffix(s, "; "+tt.want) {
			t.Errorf("got %q, want %q", s, tt.want)
		}
	}
}
