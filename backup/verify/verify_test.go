package verify

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
)

var rounds = flag.Int("verify.rounds", 60, "random damages to look for")

// history returns n transactions with data, deletions and copies of earlier revisions.
func history(r *rand.Rand, n int) []*txn.Transaction {
	type revision struct {
		at   tid.TID
		data []byte
	}
	old := map[tid.OID][]revision{}
	var list []*txn.Transaction
	at := tid.TID(100)
	for range n {
		at += tid.TID(2 + r.IntN(9))
		var records []txn.Record
		for range 1 + r.IntN(5) {
			rec := txn.Record{OID: tid.OID(r.IntN(20))}
			if slices.ContainsFunc(records, func(o txn.Record) bool { return o.OID == rec.OID }) {
				continue
			}
			switch k := r.IntN(6); {
			case k == 0:
			case k == 1 && len(old[rec.OID]) > 0:
				from := old[rec.OID][r.IntN(len(old[rec.OID]))]
				rec.DataTID, rec.Data = from.at, from.data
			default:
				rec.Data = make([]byte, 1+r.IntN(3000))
				for i := range rec.Data {
					rec.Data[i] = byte(r.Uint32())
				}
			}
			records = append(records, rec)
			old[rec.OID] = append(old[rec.OID], revision{at, rec.Data})
		}
		list = append(list, backuptest.Txn(at, records...))
	}
	return list
}

func recordsOf(t *txn.Transaction) []txn.Record {
	var list []txn.Record
	for r := range t.Records {
		list = append(list, *r)
	}
	return list
}

// sample is a repository with pages, sealed, merged and open segments, tails of all kinds.
func sample(t testing.TB, encrypted bool, o memstore.Options) (*memstore.Store, *backuptest.Repo, backuptest.History) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	list := history(r, 60)
	mem := memstore.New(o)
	repo := backuptest.New(t, mem, encrypted)
	repo.Tail(list[:5]...)
	repo.Tail(list[5:10]...)
	repo.Manifest(true, false)
	repo.Listed(list[10:18], list[18:25])
	repo.Manifest(true, true)
	repo.Tail(list[25:30]...)
	repo.Manifest(false, true) // a segment behind a tail
	recs := recordsOf(list[30])
	if len(recs) < 2 {
		t.Fatal("a transaction with one record")
	}
	repo.Cut(list[30], recs[:1], recs[1:])
	repo.Listed(list[31:40], list[40:45])
	repo.Heartbeat()
	repo.Tail(list[45:52]...)
	repo.Tail(list[52:]...)
	return mem, repo, list
}

// look checks and reads a repository, and returns all that is found.
func look(t testing.TB, s store.Store, repo *backuptest.Repo, dir string) (found []Finding, err error) {
	t.Helper()
	report := func(f Finding) { found = append(found, f) }
	sum, err := Check(t.Context(), backup.Config{Store: s, Trusted: repo.Trusted}, CheckOptions{StateDir: dir, Report: report})
	if err != nil {
		return found, err
	}
	if n := int64(len(found)); sum.Damage+sum.Warnings != n {
		t.Errorf("%d findings, the summary says %d and %d", n, sum.Damage, sum.Warnings)
	}
	again, err := backup.Open(t.Context(), backup.Config{Store: s, Trusted: repo.Trusted})
	if err != nil {
		return found, nil
	}
	l, err := again.Current(t.Context())
	if err != nil {
		return found, nil
	}
	state, err := again.State(t.Context(), l.Lineage, nil)
	if err != nil && !errors.As(err, new(*backup.BrokenError)) {
		return found, nil
	}
	keys := again.Unlock()
	if repo.Identity != nil {
		keys = again.Unlock(repo.Identity)
	}
	_, err = Read(t.Context(), ReadOptions{Repo: again, Keys: keys, State: state, Scratch: t.TempDir(), Report: report})
	return found, err
}

// Nothing is found in a good repository, and everything is read.
func TestGood(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		mem, repo, list := sample(t, encrypted, memstore.Options{})
		found, err := look(t, mem, repo, t.TempDir())
		if err != nil || len(found) > 0 {
			t.Fatalf("%v, %v", found, err)
		}
		copies, records := int64(0), int64(0)
		for _, tr := range list {
			for _, r := range recordsOf(tr) {
				records++
				if r.DataTID != 0 {
					copies++
				}
			}
		}
		sum, err := Read(t.Context(), ReadOptions{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), Scratch: t.TempDir(), Parallel: 1})
		if err != nil || sum.Txns != int64(len(list)) || sum.Records != records || sum.Read != sum.Segments || copies == 0 || sum.Unopened != 0 {
			t.Errorf("%+v, %v; want %d transactions, %d records", sum, err, len(list), records)
		}
		checked, err := Check(t.Context(), repo.Config, CheckOptions{})
		if err != nil || len(checked.Lineages) != 1 || checked.Lineages[0].Head != list[59].TID || checked.Lineages[0].Segments != sum.Segments || checked.Spare == 0 {
			t.Errorf("%+v, %v", checked, err)
		}
	}
}

// needed returns the objects without which something is lost.
func needed(t testing.TB, repo *backuptest.Repo) []string {
	t.Helper()
	c := newChecker(t.Context(), repo.Config, nil)
	if err := c.check(""); err != nil {
		t.Fatal(err)
	}
	keys := []string{snapshot.MarkerKey, "l/0001"}
	if repo.Identity != nil {
		keys = append(keys, "keys/0001.pub", "keys/0001.0001")
	}
	for info, err := range repo.Config.Store.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if c.isNeeded(info.Key) {
			keys = append(keys, info.Key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Each needed object that is missing, cut, longer, or has another bit is found and named; a
// segment with its range.
func TestDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, encrypted := range []bool{false, true} {
		mem, repo, _ := sample(t, encrypted, memstore.Options{})
		keys := needed(t, repo)
		state := repo.Now()
		last := state.Tails[len(state.Tails)-1].Key
		dir := t.TempDir() // what is the newest, only a host that has seen it knows
		if found, err := look(t, mem, repo, dir); err != nil || len(found) > 0 {
			t.Fatal(found, err)
		}
		for i := range max(*rounds, 5*len(keys)) {
			key := keys[i%len(keys)]
			k, err := snapshot.ParseKey(key)
			if err != nil {
				t.Fatal(err)
			}
			whole := storetest.Get(t, mem, key)
			what := ""
			if i/len(keys) == 0 {
				what = "missing"
				if err := mem.Delete(t.Context(), []string{key}); err != nil {
					t.Fatal(err)
				}
			} else {
				mem.Corrupt(key, func(b []byte) []byte {
					switch k := r.IntN(6); k {
					case 0:
						n := r.IntN(len(b))
						what = fmt.Sprintf("cut at %d of %d", n, len(b))
						return b[:n]
					case 1:
						what = "longer"
						return append(b, b[0])
					default:
						n := r.IntN(len(b))
						what = fmt.Sprintf("another bit in byte %d of %d", n, len(b))
						b[n] ^= 1 << r.IntN(8)
						return b
					}
				})
			}
			found, err := look(t, mem, repo, dir)
			if err != nil {
				t.Fatalf("%s %s: %v", key, what, err)
			}
			var checked []Finding
			if _, err := Check(t.Context(), repo.Config, CheckOptions{Report: func(f Finding) { checked = append(checked, f) }}); err != nil {
				t.Fatal(err)
			}
			if err := mem.Put(t.Context(), key, bytes.NewReader(whole), int64(len(whole)), store.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			newest := key == last || key == snapshot.ManifestKey(repo.Lineage, state.Manifest.Seq)
			if i/len(keys) == 0 && !newest || what == "longer" || strings.HasPrefix(what, "cut") {
				// Without reading segments.
				found = slices.DeleteFunc(found, func(f Finding) bool { return f.Key == key })
				found = append(found, checked...)
			}
			ok := slices.ContainsFunc(found, func(f Finding) bool {
				if !f.Warning && f.Kind == Older && what == "missing" && newest {
					return true
				}
				if f.Warning || f.Key != key && f.Key != snapshot.Prefix(k.Kind, k.Lineage) {
					return false
				}
				return k.Kind != snapshot.KindSegment && k.Kind != snapshot.KindPage || f.Upto != 0
			})
			if !ok {
				t.Errorf("%s %s: found %v", key, what, found)
			}
		}
	}
}

// All damage of a run is found, not only the first.
func TestAllDamage(t *testing.T) {
	mem, repo, _ := sample(t, true, memstore.Options{})
	var want []string
	state := repo.Now()
	for _, key := range needed(t, repo) {
		k, _ := snapshot.ParseKey(key)
		// A note that only lists segments has them no more when it is damaged.
		if k.Kind == snapshot.KindSegment && k.After < state.Manifest.Head || k.Kind == snapshot.KindTail && k.N > state.Manifest.Tail {
			want = append(want, key)
			mem.Corrupt(key, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		}
	}
	found, err := look(t, mem, repo, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range want {
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Key == key && !f.Warning }) {
			t.Errorf("%s: not found in %v", key, found)
		}
	}
}

// Notes that a trusted key signed, and that do not follow each other, are found.
func TestChains(t *testing.T) {
	mem, repo, _ := sample(t, false, memstore.Options{})
	state := repo.Now()
	broken := func(key string) {
		t.Helper()
		found, err := look(t, mem, repo, "")
		if err != nil || !slices.ContainsFunc(found, func(f Finding) bool { return f.Kind == Broken && f.Key == key && !f.Warning }) {
			t.Errorf("%s: %v, %v", key, found, err)
		}
	}
	// A tail that does not follow the one before.
	tail := *state.Tails[2].Tail
	whole := storetest.Get(t, mem, state.Tails[2].Key)
	n := tail.NoteSize()
	tail.Prev = snapshot.Sum([]byte("another one"))
	note, err := tail.Sign(repo.Signer)
	if err != nil {
		t.Fatal(err)
	}
	mem.Corrupt(state.Tails[2].Key, func(b []byte) []byte { return append(note, b[n:]...) })
	broken(state.Tails[2].Key)
	mem.Corrupt(state.Tails[2].Key, func([]byte) []byte { return whole })
	// A manifest that does not, and one that takes something back.
	m := *state.Manifest
	m.Seq, m.Prev = m.Seq+1, snapshot.Sum([]byte("another one"))
	b, err := m.Sign(repo.Signer)
	if err != nil {
		t.Fatal(err)
	}
	repo.Put(snapshot.ManifestKey(repo.Lineage, m.Seq), b)
	broken(snapshot.ManifestKey(repo.Lineage, m.Seq))
	m.Prev, m.Items = state.Hash, m.Items[:1]
	m.SumUp()
	if b, err = m.Sign(repo.Signer); err != nil {
		t.Fatal(err)
	}
	mem.Corrupt(snapshot.ManifestKey(repo.Lineage, m.Seq), func([]byte) []byte { return b })
	broken(snapshot.ManifestKey(repo.Lineage, m.Seq))
}

// What copies name is found in each part of a transaction that is cut, and is not taken for
// missing if its segment cannot be known.
func TestCopies(t *testing.T) {
	mem := memstore.New(memstore.Options{})
	repo := backuptest.New(t, mem, false)
	cut := backuptest.Txn(20, txn.Record{OID: 1, Data: []byte("one")}, txn.Record{OID: 2, Data: []byte("two")})
	recs := recordsOf(cut)
	repo.Tail(backuptest.Txn(10))
	repo.Cut(cut, recs[:1], recs[1:])
	key := repo.Tail(backuptest.Txn(30, txn.Record{OID: 3, Data: []byte("three")}))
	repo.Tail(backuptest.Txn(35, txn.Record{OID: 4}))
	// Of copies that are superseded in their own transaction, no index says whether they have data.
	twice := backuptest.Txn(38, txn.Record{OID: 4, DataTID: 35}, txn.Record{OID: 4, Data: []byte("four")})
	repo.Tail(twice)
	recs = []txn.Record{{OID: 4, TID: 39, DataTID: 35}, {OID: 4, TID: 39, DataTID: 38, Data: []byte("four")}}
	repo.Cut(backuptest.Txn(39, recs...), recs[:1], recs[1:])
	repo.Tail(backuptest.Txn(40, txn.Record{OID: 1, DataTID: 20, Data: []byte("one")}, txn.Record{OID: 2, DataTID: 20, Data: []byte("two")}, txn.Record{OID: 3, DataTID: 30, Data: []byte("three")}))
	if found, err := look(t, mem, repo, ""); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	mem.Corrupt(key, func(b []byte) []byte { b[50] ^= 1; return b })
	if found, err := look(t, mem, repo, ""); err != nil || len(found) != 1 || found[0].Key != key {
		t.Error(found, err)
	}
}

// Behind a break of the chain of tails, segments are read as well.
func TestBehindBreak(t *testing.T) {
	mem, repo, _ := sample(t, true, memstore.Options{})
	state := repo.Now()
	note, segment := state.Tails[0].Key, state.Tails[len(state.Tails)-1].Key
	mem.Corrupt(note, func(b []byte) []byte { b[50] ^= 1; return b })
	mem.Corrupt(segment, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	found, err := look(t, mem, repo, "")
	if err != nil || len(found) != 2 {
		t.Fatalf("%v, %v", found, err)
	}
	for _, key := range []string{note, segment} {
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Key == key && !f.Warning }) {
			t.Errorf("%s: not found in %v", key, found)
		}
	}
}

// The objects that a damaged frame has are named.
func TestDamagedObjects(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	mem := memstore.New(memstore.Options{})
	repo := backuptest.New(t, mem, false)
	var list []*txn.Transaction
	for i := range 40 {
		data := make([]byte, 60<<10)
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		list = append(list, backuptest.Txn(tid.TID(10+i), txn.Record{OID: tid.OID(i), Data: data}))
	}
	key := repo.Listed(list)[0]
	mem.Corrupt(key, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	found, err := look(t, mem, repo, "")
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	f := found[0]
	if f.Kind != Damaged || f.Key != key || f.Objects == 0 || f.Objects > 8 || f.Upto != list[39].TID {
		t.Errorf("%+v", f)
	}
	// Exactly those cannot be read.
	for p := range repo.Parts(t.Context(), repo.Now(), 0, tid.Max) {
		s, err := repo.OpenPart(t.Context(), repo.Keys, p)
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range s.Entries() {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Load(e); (err != nil) != slices.Contains(f.OIDs, e.OID) {
				t.Errorf("object %v: %v; the finding names %v", e.OID, err, f.OIDs)
			}
		}
	}
}

// Two segments of which each has the bytes of the other one are found.
func TestSwapped(t *testing.T) {
	mem, repo, _ := sample(t, true, memstore.Options{})
	var keys []string
	for p := range repo.Parts(t.Context(), repo.Now(), 0, tid.Max) {
		if p.Segment.Offset() == 0 {
			keys = append(keys, p.Segment.Key)
		}
	}
	a, b := storetest.Get(t, mem, keys[0]), storetest.Get(t, mem, keys[1])
	mem.Corrupt(keys[0], func([]byte) []byte { return b })
	mem.Corrupt(keys[1], func([]byte) []byte { return a })
	found, err := look(t, mem, repo, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys[:2] {
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Key == key && !f.Warning }) {
			t.Errorf("%s: not found in %v", key, found)
		}
	}
}

// A state from which the newest notes were removed is found by what this host has seen.
func TestOlder(t *testing.T) {
	mem, repo, _ := sample(t, true, memstore.Options{})
	dir := t.TempDir()
	if found, err := look(t, mem, repo, dir); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	state := repo.Now()
	last := state.Tails[len(state.Tails)-1]
	kept := storetest.Get(t, mem, last.Key)
	remove := func(key string) {
		t.Helper()
		if err := mem.Delete(t.Context(), []string{key}); err != nil {
			t.Fatal(err)
		}
	}
	older := func(what string, want bool) {
		t.Helper()
		found, err := look(t, mem, repo, dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.ContainsFunc(found, func(f Finding) bool { return f.Kind == Older && !f.Warning }); got != want {
			t.Errorf("%s: %v", what, found)
		}
		seen, err := LoadSeen(dir, repo.Marker.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := seen.Compare(repo.Now()); (err != nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	remove(last.Key)
	older("the last tail removed", true)
	older("again", true)
	repo.Put(last.Key, kept)
	older("put back", false)
	for _, tail := range state.Tails {
		remove(tail.Key)
	}
	remove(snapshot.ManifestKey(repo.Lineage, state.Manifest.Seq))
	older("the newest manifest and all tails after it removed", true)
	if _, err := LoadSeen(dir, snapshot.NewID()); err != nil {
		t.Error(err)
	}
}

// Notes that another key signed, and segments that anyone can encrypt, are found.
func TestForged(t *testing.T) {
	mem, repo, list := sample(t, true, memstore.Options{})
	private, _, err := snapshot.GenerateKey("test", snapshot.Writer)
	if err != nil {
		t.Fatal(err)
	}
	forger, err := snapshot.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	// A segment with the recipient of the epoch, which is public, under the key of another.
	epochs, err := repo.Epochs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	to, err := snapshot.ParseRecipient(epochs[0].Recipient)
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := repo.Plain(list[39].TID, 0, list[40:45])
	var b bytes.Buffer
	if _, err := snapshot.Seal(&b, bytes.NewReader(plain), to, 1); err != nil {
		t.Fatal(err)
	}
	var key string
	for p := range repo.Parts(t.Context(), repo.Now(), list[39].TID, list[44].TID) {
		key = p.Segment.Key
	}
	mem.Corrupt(key, func([]byte) []byte { return b.Bytes() })
	// A manifest and a tail.
	m := *repo.Now().Manifest
	m.Seq, m.Prev = m.Seq+1, repo.Now().Hash
	forged, err := m.Sign(forger)
	if err != nil {
		t.Fatal(err)
	}
	manifest := snapshot.ManifestKey(repo.Lineage, m.Seq)
	found, err := look(t, mem, repo, "")
	if err != nil || !slices.ContainsFunc(found, func(f Finding) bool { return f.Kind == Damaged && f.Key == key && !f.Warning }) {
		t.Errorf("forged segment: %v %v", found, err)
	}
	repo.Put(manifest, forged)
	c := repo.Repository
	found, err = look(t, mem, repo, "")
	if err != nil || !slices.ContainsFunc(found, func(f Finding) bool { return f.Kind == Untrusted && f.Key == manifest }) {
		t.Errorf("forged manifest: %v %v", found, err)
	}
	if _, err := c.State(t.Context(), repo.Lineage, nil); !errors.Is(err, snapshot.ErrUntrusted) {
		t.Errorf("a reader takes it: %v", err)
	}
}

// A writer that is wrong, with right hashes and signatures, is found: a copy of what is not
// there, or of another kind.
func TestDanglingCopies(t *testing.T) {
	for _, apart := range []bool{false, true} {
		mem := memstore.New(memstore.Options{})
		repo := backuptest.New(t, mem, true)
		list := []*txn.Transaction{
			backuptest.Txn(10, txn.Record{OID: 1, Data: []byte("one")}, txn.Record{OID: 2}),
			backuptest.Txn(20, txn.Record{OID: 1, DataTID: 10, Data: []byte("one")}, txn.Record{OID: 2, DataTID: 10}),
			backuptest.Txn(30, txn.Record{OID: 1, DataTID: 15, Data: []byte("one")}),
			backuptest.Txn(40, txn.Record{OID: 2, DataTID: 10, Data: []byte("two")}),
			backuptest.Txn(50, txn.Record{OID: 1, DataTID: 20}),
			backuptest.Txn(60, txn.Record{OID: 3, DataTID: 5, Data: []byte("x")}),
		}
		if apart {
			for _, tr := range list {
				repo.Tail(tr)
			}
		} else {
			repo.Tail(list...)
		}
		found, err := look(t, mem, repo, "")
		if err != nil || len(found) != 4 {
			t.Fatalf("apart %v: %v, %v", apart, found, err)
		}
		for i, want := range []string{"transaction 000000000000001e", "transaction 0000000000000028", "transaction 0000000000000032", "transaction 000000000000003c"} {
			if !slices.ContainsFunc(found, func(f Finding) bool { return strings.Contains(f.Text, want) && len(f.OIDs) == 1 && f.Key != "" }) {
				t.Errorf("apart %v: %d: %v", apart, i, found)
			}
		}
	}
}

// What was overwritten is found where the store keeps versions, with the version that is right.
func TestVersions(t *testing.T) {
	mem, repo, _ := sample(t, false, memstore.Options{Versioned: true})
	if found, err := look(t, mem, repo, ""); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	var key string
	for p := range repo.Parts(t.Context(), repo.Now(), 0, tid.Max) {
		if p.Segment.Offset() == 0 {
			key = p.Segment.Key
		}
	}
	b := storetest.Get(t, mem, key)
	b[100] ^= 1
	if err := mem.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	found, err := look(t, mem, repo, "")
	if err != nil || !slices.ContainsFunc(found, func(f Finding) bool { return f.Kind == Overwritten && f.Key == key && !f.Warning }) ||
		!slices.ContainsFunc(found, func(f Finding) bool {
			return f.Kind == Damaged && f.Key == key && strings.Contains(f.Text, "has the right bytes")
		}) {
		t.Errorf("%v %v", found, err)
	}
}

// Without identity only hashes are verified, which the summary says; with a wrong one too.
func TestUnopened(t *testing.T) {
	mem, repo, _ := sample(t, true, memstore.Options{})
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, keys := range []*backup.Keys{nil, repo.Unlock(), repo.Unlock(other)} {
		sum, err := Read(t.Context(), ReadOptions{Repo: repo.Repository, Keys: keys, State: repo.Now()})
		if err != nil || sum.Unopened != sum.Segments || sum.Why == "" || sum.Damage != 0 || sum.Bytes == 0 {
			t.Errorf("%+v, %v", sum, err)
		}
	}
	var key string
	for p := range repo.Parts(t.Context(), repo.Now(), 0, tid.Max) {
		if p.Segment.Offset() == 0 {
			key = p.Segment.Key
		}
	}
	mem.Corrupt(key, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	sum, err := Read(t.Context(), ReadOptions{Repo: repo.Repository, State: repo.Now()})
	if err != nil || sum.Damage != 1 || sum.Unopened != sum.Segments-1 {
		t.Errorf("%+v, %v", sum, err)
	}
}

// The shares of a repository are all of it, whatever comes and goes.
func TestShare(t *testing.T) {
	_, repo, _ := sample(t, false, memstore.Options{})
	now := time.Date(2026, 11, 29, 23, 59, 0, 0, time.UTC)
	read := map[string]int{}
	for d := range 3 {
		share, err := ParseShare("rotate/3", now.AddDate(0, 0, d))
		if err != nil {
			t.Fatal(err)
		}
		total := int64(0)
		sum, err := Read(t.Context(), ReadOptions{Repo: repo.Repository, State: repo.Now(), Share: share, Progress: func(done, of int64) {
			if done > of {
				t.Errorf("%d of %d", done, of)
			}
			total = of
		}})
		if err != nil || sum.Bytes != total {
			t.Fatalf("%+v of %d, %v", sum, total, err)
		}
		for p := range repo.Parts(t.Context(), repo.Now(), 0, tid.Max) {
			if share.has(p.Segment) {
				read[p.Segment.Key]++
				sum.Read--
			}
		}
		if sum.Read != 0 {
			t.Errorf("day %d: %d segments too many", d, sum.Read)
		}
	}
	for p := range repo.Parts(t.Context(), repo.Now(), 0, tid.Max) {
		if read[p.Segment.Key] != 1 {
			t.Errorf("%s: read %d times", p.Segment.Key, read[p.Segment.Key])
		}
	}
	for s, want := range map[string]string{"": "all", "all": "all", "2/7": "2/7", "5%": "5%", "0.5%": "0.5%", "rotate/1": "1/1"} {
		got, err := ParseShare(s, now)
		if err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"0/3", "4/3", "x", "1/0", "rotate/0", "%", "0%", "101%", "-1%", "NaN%", "1/2/3", "rotate"} {
		if got, err := ParseShare(s, now); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// A store that fails is no damage: the run ends with its error, and nothing is reported.
func TestStoreFails(t *testing.T) {
	mem, repo, _ := sample(t, true, memstore.Options{})
	for n := 1; ; n++ {
		f := storetest.FailAt(mem, n, storetest.Fault{Err: storetest.ErrFault, Cut: n%2 == 0})
		again, err := backup.Open(t.Context(), backup.Config{Store: f, Trusted: repo.Trusted})
		var found []Finding
		report := func(f Finding) { found = append(found, f) }
		if err == nil {
			_, err = Check(t.Context(), again.Config, CheckOptions{Report: report})
		}
		var state *backup.State
		if err == nil {
			state, err = again.State(t.Context(), repo.Lineage, nil)
		}
		if err == nil {
			_, err = Read(t.Context(), ReadOptions{Repo: again, Keys: again.Unlock(repo.Identity), State: state, Report: report, Parallel: 1})
		}
		if len(found) > 0 {
			t.Fatalf("call %d: %v", n, found)
		}
		if f.Fired() == 0 {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		// A list of which only the beginning is read may be cut.
		if err != nil && !errors.Is(err, storetest.ErrFault) || err == nil && n%2 == 1 {
			t.Fatalf("call %d: %v", n, err)
		}
	}
}

// Objects of others and needed objects that are doomed are told.
func TestWarnings(t *testing.T) {
	mem, repo, _ := sample(t, false, memstore.Options{})
	storetest.Put(t, mem, "other/object", []byte("x"))
	state := repo.Now()
	doom := &snapshot.Doom{Repo: repo.Marker.ID, Created: time.Now().UTC().Truncate(time.Second), Policy: 1, Objects: []snapshot.Doomed{{Key: state.Tails[0].Key, Why: "test"}}}
	b, err := doom.Sign(repo.Keeper)
	if err != nil {
		t.Fatal(err)
	}
	key := snapshot.Key{Kind: snapshot.KindDoom, Time: doom.Created}
	storetest.Put(t, mem, key.String(), b)
	found, err := look(t, mem, repo, "")
	if err != nil || len(found) != 2 {
		t.Fatal(found, err)
	}
	for _, f := range found {
		if !f.Warning || f.Kind != Doomed && f.Kind != Foreign {
			t.Errorf("%+v", f)
		}
	}
	// A later list says that it was carried out: what is there still was spared.
	later := snapshot.Key{Kind: snapshot.KindDoom, Time: doom.Created.Add(time.Hour)}
	if b, err = (&snapshot.Doom{Repo: repo.Marker.ID, Created: later.Time, Policy: 1, Done: []string{key.String()}}).Sign(repo.Keeper); err != nil {
		t.Fatal(err)
	}
	storetest.Put(t, mem, later.String(), b)
	if found, err = look(t, mem, repo, ""); err != nil || len(found) != 1 {
		t.Error(found, err)
	}
	if err := mem.Delete(t.Context(), []string{later.String()}); err != nil {
		t.Fatal(err)
	}
	v := &snapshot.Void{Repo: repo.Marker.ID, List: key.String(), Created: doom.Created}
	if b, err = snapshot.Sign(v, repo.Keeper); err != nil {
		t.Fatal(err)
	}
	key.Kind = snapshot.KindVoid
	storetest.Put(t, mem, key.String(), b)
	if found, err = look(t, mem, repo, ""); err != nil || len(found) != 1 {
		t.Error(found, err)
	}
	empty := backup.Config{Store: memstore.New(memstore.Options{}), Trusted: repo.Trusted}
	if _, err := Check(t.Context(), empty, CheckOptions{}); !errors.Is(err, backup.ErrNoRepository) {
		t.Error(err)
	}
}

// The history is compared with the source, and each difference is named with its segment.
func TestAgainst(t *testing.T) {
	_, repo, list := sample(t, true, memstore.Options{})
	against := func(src exporter.Source, packed tid.TID) (*AgainstSummary, []Finding) {
		t.Helper()
		var found []Finding
		ask := func(context.Context) (tid.TID, error) { return packed, nil }
		if packed == 0 {
			ask = nil
		}
		sum, err := Against(t.Context(), AgainstOptions{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), Source: src, Packed: ask, Report: func(f Finding) { found = append(found, f) }})
		if err != nil {
			t.Fatal(err)
		}
		return sum, found
	}
	if sum, found := against(list, 0); len(found) > 0 || sum.Txns != 60 || sum.Records == 0 {
		t.Errorf("%+v %v", sum, found)
	}
	for i := 3; i < len(list); i += 11 {
		other := slices.Clone(list)
		recs := recordsOf(list[i])
		recs[0].Data, recs[0].DataTID = []byte("other"), 0
		c := *list[i]
		c.Records = txn.Slice(recs)
		other[i] = &c
		sum, found := against(other, 0)
		if len(found) != 1 || found[0].Kind != Different || found[0].Key == "" || found[0].After >= c.TID || found[0].Upto < c.TID || found[0].OIDs[0] != recs[0].OID || sum.Damage != 1 {
			t.Errorf("transaction %d: %+v", i, found)
		}
	}
	// What a pack has removed is explained: superseded revisions and deletions, not what was
	// current, nor what came later; and the status of 41 transactions.
	upTo := list[40].TID
	newest := map[tid.OID]tid.TID{}
	for _, tr := range list[:41] {
		for _, rec := range recordsOf(tr) {
			newest[rec.OID] = tr.TID
		}
	}
	var packed backuptest.History
	removed, deleted := int64(0), int64(0)
	var current *txn.Record
	for _, tr := range list {
		c := *tr
		if tr.TID <= upTo {
			c.Status = txn.Packed
			c.Records = txn.Slice(slices.DeleteFunc(recordsOf(tr), func(r txn.Record) bool {
				gone := r.TID < newest[r.OID] || r.Data == nil
				if gone {
					removed++
				} else {
					current = &r
				}
				if gone && r.TID == newest[r.OID] {
					deleted++
				}
				return gone
			}))
		}
		packed = append(packed, &c)
	}
	if sum, found := against(packed, upTo); len(found) > 0 || sum.Explained != removed+41 || deleted == 0 || removed < 20 {
		t.Errorf("%+v %v; %d removed, %d deletions", sum, found, removed, deleted)
	}
	if _, found := against(packed, list[11].TID); len(found) == 0 {
		t.Error("what was removed after the pack is explained by it")
	}
	for i, tr := range packed { // the current revision of an object
		if tr.TID == current.TID {
			c := *tr
			c.Records = txn.Slice(slices.DeleteFunc(recordsOf(tr), func(r txn.Record) bool { return r.OID == current.OID }))
			packed[i] = &c
		}
	}
	if sum, found := against(packed, upTo); len(found) != 1 || found[0].OIDs[0] != current.OID || sum.Damage != 1 {
		t.Errorf("a current revision is missing: %+v %v", sum, found)
	}
	broken := source(func(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
		return func(yield func(*txn.Transaction, error) bool) {
			for tr := range list.Transactions(ctx, after, upTo) {
				if tr.TID == list[50].TID {
					yield(nil, io.ErrUnexpectedEOF)
					return
				}
				if !yield(tr, nil) {
					return
				}
			}
		}
	})
	if _, err := Against(t.Context(), AgainstOptions{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), Source: broken}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a source that fails: %v", err)
	}
}

// What a writer of this host stores and notes while the repository is listed makes no state an older one.
func TestSeenMeanwhile(t *testing.T) {
	mem, repo, _ := sample(t, true, memstore.Options{})
	dir := t.TempDir()
	if found, err := look(t, noting{mem, func() {
		seen, err := LoadSeen(dir, repo.Marker.ID)
		if err != nil {
			t.Error(err)
			return
		}
		state := repo.Now()
		c := state.Chain()
		seen.Note(state.Lineage, state.Manifest.Seq+1, c.N+1, c.Head+1)
		if err := seen.Save(dir); err != nil {
			t.Error(err)
		}
	}}, repo, dir); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
}

// noting is a store that calls a function after each listing.
type noting struct {
	store.Store
	listed func()
}

func (s noting) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for i, err := range s.Store.List(ctx, prefix, after) {
			if !yield(i, err) {
				return
			}
		}
		s.listed()
	}
}
