package backup_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/txn"
)

// Proofs are those that a trusted drill signed, the newest first by the clock of the store; what is proven is the
// newest that says ok and is about what is stored.
func TestProofs(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	s := memstore.New(memstore.Options{Now: func() time.Time { return now }})
	r := backuptest.New(t, s, false)
	r.Tail(backuptest.Txn(100, txn.Record{OID: 0, Data: []byte("x")}))
	r.Manifest(false, false)
	state := r.Now()
	put := func(at time.Time, key string, b []byte) {
		t.Helper()
		now = at
		if err := s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	prove := func(stored, said time.Time, result string, change func(*snapshot.Proof), signer *snapshot.Signer) string {
		t.Helper()
		chain := state.Chain()
		p := &snapshot.Proof{
			Repo: r.Marker.ID, Lineage: r.Lineage, Seq: state.Manifest.Seq, Manifest: state.Hash, Tail: chain.N, Chain: chain.Hash, TID: 100, Time: said, Mode: "file",
			Compared: snapshot.Compared{Source: "none"}, Epochs: []snapshot.KID{}, Result: result,
		}
		if result == snapshot.ResultFailed {
			p.Reason = "a test"
		}
		if change != nil {
			change(p)
		}
		b, err := snapshot.Sign(p, signer)
		if err != nil {
			t.Fatal(err)
		}
		key := snapshot.Key{Kind: snapshot.KindProof, Lineage: p.Lineage, Time: p.Time, Upto: p.TID}.String()
		put(stored, key, b)
		return key
	}
	day := func(n int) time.Time { return time.Date(2026, 11, n, 5, 0, 0, 0, time.UTC) }
	stranger := backuptest.New(t, memstore.New(memstore.Options{}), false)
	want := []string{
		prove(day(25), day(25), snapshot.ResultFailed, nil, r.Driver),
		prove(day(24), day(24), snapshot.ResultOK, func(p *snapshot.Proof) { p.Manifest[0] ^= 1 }, r.Driver), // of another manifest
		prove(day(23), day(22), snapshot.ResultOK, nil, r.Driver),
		prove(day(21), day(28), snapshot.ResultOK, nil, r.Driver), // whose host is in the future
	}
	prove(day(27), day(27), snapshot.ResultOK, nil, stranger.Driver)
	put(day(27), snapshot.Key{Kind: snapshot.KindProof, Lineage: r.Lineage, Time: day(26), Upto: 100}.String(), []byte("damaged"))
	list, err := r.Proofs(t.Context(), r.Lineage)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range list {
		got = append(got, p.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("proofs %v, want %v", got, want)
	}
	p, err := r.Proven(t.Context(), r.Lineage)
	if err != nil || p == nil || p.Key != want[2] {
		t.Fatalf("proven: %+v, %v", p, err)
	}
	for i, days := range map[int]int{2: 8, 3: 9} { // by the clock that makes it older
		if age := list[i].Age(day(30)); age != time.Duration(days)*24*time.Hour {
			t.Errorf("proof %d is %v old", i, age)
		}
	}
	if p, err := r.ProvenBy(t.Context(), []*backup.StoredProof{list[0], list[1]}); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	if err := s.Delete(t.Context(), []string{snapshot.ManifestKey(r.Lineage, state.Manifest.Seq)}); err != nil {
		t.Fatal(err)
	}
	if p, err := r.Proven(t.Context(), r.Lineage); p != nil || err != nil {
		t.Errorf("without its manifest: %+v, %v", p, err)
	}
}
