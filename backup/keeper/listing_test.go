package keeper

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// someKeys returns keys of all kinds, in order.
func someKeys() []string {
	a, b := snapshot.ID{1, 2}, snapshot.ID{0xfe}
	at := time.Date(2026, 11, 20, 20, 10, 3, 0, time.UTC)
	keys := []string{snapshot.MarkerKey}
	for _, k := range []snapshot.Key{
		{Kind: snapshot.KindEpoch, N: 1}, {Kind: snapshot.KindEpoch, N: 0xffff}, {Kind: snapshot.KindWrap, N: 1, Wrap: 1}, {Kind: snapshot.KindWrap, N: 1, Wrap: 0x1f}, {Kind: snapshot.KindWrap, N: 2, Wrap: 1},
		{Kind: snapshot.KindLineage, N: 1}, {Kind: snapshot.KindLineage, N: 0xabc}, {Kind: snapshot.KindPolicy, N: 7}, {Kind: snapshot.KindDoom, Time: at}, {Kind: snapshot.KindDoom, Time: at.AddDate(-2000, 0, 0)},
		{Kind: snapshot.KindVoid, Time: at}, {Kind: snapshot.KindProbe, Rest: "00ff"}, {Kind: snapshot.KindProbe, Rest: "zz/a"},
	} {
		keys = append(keys, k.String())
	}
	for _, id := range []snapshot.ID{a, b} {
		for _, k := range []snapshot.Key{
			{Kind: snapshot.KindManifest, N: 1}, {Kind: snapshot.KindManifest, N: 2}, {Kind: snapshot.KindManifest, N: snapshot.MaxSeq}, {Kind: snapshot.KindTail, N: 1}, {Kind: snapshot.KindTail, N: snapshot.MaxSeq},
			{Kind: snapshot.KindPage, Sum: snapshot.Short{1}}, {Kind: snapshot.KindPage, Sum: snapshot.Short{0xff, 1}},
			{Kind: snapshot.KindSegment, After: 0, Upto: 5, Sum: snapshot.Short{9}}, {Kind: snapshot.KindSegment, After: 5, Upto: 5, Sum: snapshot.Short{9}}, {Kind: snapshot.KindSegment, After: 5, Upto: 5, Sum: snapshot.Short{9, 1}}, {Kind: snapshot.KindSegment, After: 5, Upto: tid.Max},
			{Kind: snapshot.KindRun, Rest: "1-2"}, {Kind: snapshot.KindRun, Rest: "1-2-3"}, {Kind: snapshot.KindBlob, Rest: "ab/cd"}, {Kind: snapshot.KindProof, Time: at, Upto: 3}, {Kind: snapshot.KindProof, Time: at, Upto: 4},
		} {
			k.Lineage = id
			keys = append(keys, k.String())
		}
	}
	slices.Sort(keys)
	return keys
}

// A listing finds each object again, and none that is not there.
func TestListing(t *testing.T) {
	l := newListing()
	keys := someKeys()
	for i, key := range append(slices.Clone(keys), "zebra") {
		if err := l.add(store.Info{Key: key, Size: int64(i), Modified: time.Unix(int64(i), 0)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.foreign) != 1 || l.objects != int64(len(keys)+1) {
		t.Errorf("%d objects, foreign: %v", l.objects, l.foreign)
	}
	for i, key := range keys {
		k, err := snapshot.ParseKey(key)
		if err != nil {
			t.Fatal(err)
		}
		o := l.find(k)
		if o == nil || o.size != int64(i) || o.modified != int64(i)*1e9 {
			t.Errorf("%s: %+v", key, o)
		}
		if k.N > 0 {
			k.N = 0x777
			if k.Kind == snapshot.KindWrap {
				k.Wrap++
			}
			if l.find(k) != nil {
				t.Errorf("%v is found", k)
			}
		}
	}
	var all []string
	for _, g := range l.order {
		for o := range l.groups[g].all() {
			all = append(all, l.key(g, o).String())
		}
	}
	slices.Sort(all)
	if !slices.Equal(all, keys) {
		t.Errorf("%v, want %v", all, keys)
	}
	for _, key := range []string{"zebra", "neobackup"} {
		if err := l.add(store.Info{Key: key}); !errors.Is(err, store.ErrLied) {
			t.Errorf("%s out of order: %v", key, err)
		}
	}
}

// What a store says nothing of the age of is never old.
func TestUnknownAge(t *testing.T) {
	l := newListing()
	id := snapshot.ID{1}
	if err := l.add(store.Info{Key: snapshot.TailKey(id, 1)}); err != nil {
		t.Fatal(err)
	}
	f := facts{now: time.Now(), policy: &snapshot.Policy{KeepLineagesDays: 1}, lineages: []*lineage{{note: &snapshot.Lineage{K: 1, Lineage: id}, kept: true}}}
	f.judge(l)
	if o := l.column(id, snapshot.KindTail).at(0); o.reason != young {
		t.Errorf("it is %v", o.reason)
	}
}

// An object takes at most 100 bytes of memory.
func TestMemory(t *testing.T) {
	const n = 300_000
	before := heap()
	l := newListing()
	id := snapshot.ID{1}
	for i := range n {
		if err := l.add(store.Info{Key: snapshot.TailKey(id, int64(i+1)), Size: 1, ETag: fmt.Sprint(i), Modified: time.Unix(1, 0)}); err != nil {
			t.Fatal(err)
		}
	}
	if per := (heap() - before) / n; per > 100 {
		t.Errorf("%d bytes for each object", per)
	}
	runtime.KeepAlive(l)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Lineages are kept until the policy, proofs and holds let them go.
func TestRetain(t *testing.T) {
	now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	ago := func(days int) time.Time { return now.AddDate(0, 0, -days) }
	proof := func(days int, stands bool) *proven {
		return &proven{key: fmt.Sprintf("p%03d", days), manifest: snapshot.Sum(fmt.Append(nil, days)), modified: ago(days), stands: stands}
	}
	for _, c := range []struct {
		name      string
		keep      int64
		proofs    [3][]*proven // of lineages 1 to 3, the newest first
		hold      int
		forgotten int
		want      [3]bool
	}{
		{name: "no proof", want: [3]bool{true, true, true}},
		{name: "a proof of the old one only", proofs: [3][]*proven{{proof(1, true)}}, want: [3]bool{true, true, true}},
		{name: "proved lately", proofs: [3][]*proven{2: {proof(34, true)}}, want: [3]bool{true, true, true}},
		{name: "proved long ago, and since", proofs: [3][]*proven{2: {proof(2, true), proof(35, true)}}, want: [3]bool{false, false, true}},
		{name: "the same at another policy", keep: 60, proofs: [3][]*proven{2: {proof(2, true), proof(35, true)}}, want: [3]bool{true, true, true}},
		{name: "stale: not proved since", proofs: [3][]*proven{2: {proof(36, true)}}, want: [3]bool{true, true, true}},
		{name: "just not stale", proofs: [3][]*proven{2: {proof(35, true)}}, want: [3]bool{false, false, true}},
		{name: "what was proved is gone", proofs: [3][]*proven{2: {proof(2, false), proof(35, false)}}, want: [3]bool{true, true, true}},
		{name: "only the middle one was proved", proofs: [3][]*proven{1: {proof(2, true), proof(40, true)}}, want: [3]bool{false, true, true}},
		{name: "the newest proof is of the first", proofs: [3][]*proven{0: {proof(1, true)}, 2: {proof(2, true), proof(40, true)}}, want: [3]bool{true, false, true}},
		{name: "the second newest on another manifest", proofs: [3][]*proven{0: {proof(3, true)}, 2: {proof(2, true), proof(40, true)}}, want: [3]bool{true, false, true}},
		{name: "the third newest", proofs: [3][]*proven{0: {proof(4, true)}, 2: {proof(2, true), proof(3, true), proof(40, true)}}, want: [3]bool{false, false, true}},
		{name: "hold", hold: 1, proofs: [3][]*proven{2: {proof(1, true), proof(2, true), proof(40, true)}}, want: [3]bool{true, false, true}},
		{name: "forgotten", forgotten: 1, proofs: [3][]*proven{2: {proof(1, true), proof(2, true)}}, want: [3]bool{false, true, true}},
		{name: "forgotten without proof", forgotten: 1, want: [3]bool{true, true, true}},
		{name: "forgotten with a hold", forgotten: 1, hold: 1, proofs: [3][]*proven{2: {proof(1, true), proof(2, true)}}, want: [3]bool{true, true, true}},
		{name: "the current one was forgotten", forgotten: 3, want: [3]bool{true, true, true}},
		{name: "absurd policy", keep: 1 << 50, proofs: [3][]*proven{2: {proof(1, true), proof(2, true), proof(400, true)}}, want: [3]bool{true, true, true}},
	} {
		f := facts{now: now, policy: &snapshot.Policy{KeepLineagesDays: max(c.keep, 35)}}
		for i, list := range c.proofs {
			l := &lineage{note: &snapshot.Lineage{K: int64(i + 1), Lineage: snapshot.ID{byte(i + 1)}}, proofs: list, forgotten: c.forgotten == i+1}
			f.lineages = append(f.lineages, l)
			if c.hold == i+1 {
				f.policy.Holds = []snapshot.Hold{{Lineage: l.note.Lineage, TID: 1, Label: "release"}}
			}
		}
		f.retain()
		for i, l := range f.lineages {
			if l.kept != c.want[i] {
				t.Errorf("%s: lineage %d is kept: %v (%s)", c.name, i+1, l.kept, l.why)
			}
			if l.why == "" {
				t.Errorf("%s: lineage %d: no reason", c.name, i+1)
			}
		}
	}
}
