package keeper

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
)

const (
	day = 24 * time.Hour
	// minAge is how old an object is at least before a doom list may name it, and before one
	// that a list names is deleted.
	minAge = day
	// noteless is how long nothing was added to a lineage without note before it goes.
	noteless = 7 * day
	// freshProof is how old the newest proof of a later lineage may be, at least, for an old lineage to go.
	freshProof = 35 * day
	// DefaultShare is which part of the stored bytes may go by one plan, see [PruneOptions].
	DefaultShare = 0.5
)

// reason says why an object stays, or goes.
type reason uint8

const (
	unjudged reason = iota
	// These stay.
	needed  // §10.1
	young   // added less than a day ago
	kept    // small notes, and kinds that this version does not judge
	inGap   // lies where the newest manifest has a gap: what is lost there may be in it
	undated // the lineage has no note yet, and something was added lately
	deleted // by this run
	// These go.
	superseded   // by the newest manifest of the lineage
	unreferenced // stored, and named by nothing
	expired      // the lineage is old and a later one was proved
	forgotten    // the same, before its time
	abandoned    // the lineage never got a note
	carriedOut   // a doom list
	void         // of a doom list
	probe
	oldWrap // of an epoch that has a newer one
)

var reasons = [...]string{
	unjudged: "not judged", needed: "needed", young: "added less than a day ago", kept: "notes, which stay", inGap: "in a gap of the newest manifest, where it may help",
	deleted: "deleted", undated: "of a lineage that is being filled", superseded: "superseded by the newest manifest", unreferenced: "stored, but named by no tail or manifest",
	expired: "of an old lineage, kept as long as the policy says", forgotten: "of an old lineage that was forgotten", abandoned: "of a lineage that was never completed",
	carriedOut: "a doom list that was carried out", void: "a doom list that is void", probe: "left by a probe of the store", oldWrap: "a wrap of a key that has a newer one",
}

func (r reason) String() string { return reasons[r] }
func (r reason) goes() bool     { return r >= superseded }

// listed says what doom lists have of an object.
type listed uint8

const (
	unlisted listed = iota
	waiting         // named, the grace is not over
	ripe            // named, the grace is over
)

// forgotPrefix is how the reason begins for which a doom list names the note of a lineage that was forgotten.
const forgotPrefix = "forgotten"

// proven is a proof that says ok.
type proven struct {
	key      string
	seq      int64
	tail     int64
	manifest snapshot.Hash
	modified time.Time
	stands   bool // what it proved is there
	needs    []*object
}

// lineage is what a plan has to know of a lineage with a note.
type lineage struct {
	note   *snapshot.Lineage
	proofs []*proven // the newest first

	forgotten bool
	kept      bool
	why       string    // it is kept, or goes
	until     time.Time // it is kept at least; zero: not known

	// Of one that is kept.
	seq  int64  // of the newest manifest
	head uint64 // TID with which it ends
	gaps []snapshot.Gap
}

// facts are what a plan depends on, beside the objects that are there.
type facts struct {
	now       time.Time // of the store
	policy    *snapshot.Policy
	lineages  []*lineage      // k ascending: the last one is current
	done      map[string]bool // doom lists that were carried out, by key
	voids     map[string]bool // doom lists that are void, by key
	dropWraps map[int64]int64 // epochs of which older wraps may go, with the wrap that opens
}

// retain decides which lineages are kept.
func (f *facts) retain() {
	days := times(f.policy.KeepLineagesDays, day)
	for i := len(f.lineages) - 1; i >= 0; i-- {
		l := f.lineages[i]
		l.kept, l.until = true, time.Time{}
		if i == len(f.lineages)-1 {
			l.why = "current"
			continue
		}
		if label, held := f.held(l.note.Lineage); held {
			l.why = "hold: " + label
			continue
		}
		if f.newestProofs()[l.note.Lineage] {
			l.why = "the newest proof needs it"
			continue
		}
		// The first proof of a later lineage that is kept, and the newest one of them that stands.
		var first, newest time.Time
		for _, later := range f.lineages[i+1:] {
			if !later.kept {
				continue
			}
			for _, p := range later.proofs {
				if first.IsZero() || p.modified.Before(first) {
					first = p.modified
				}
				if p.stands && p.modified.After(newest) {
					newest = p.modified
				}
			}
		}
		switch {
		case first.IsZero():
			l.why = "no drill has proved a later lineage yet"
		case newest.IsZero():
			l.why = "what drills proved of later lineages is not stored any more"
		case f.now.Sub(newest) > max(days, freshProof):
			l.why = fmt.Sprintf("the last drill that proved a later lineage was %s", newest.UTC().Format(time.DateOnly))
		case l.forgotten:
			l.kept, l.why = false, "forgotten"
		case f.now.Before(first.Add(days)):
			l.until = first.Add(days)
			l.why = fmt.Sprintf("a later lineage was proved %s, kept for %d days from then", first.UTC().Format(time.DateOnly), f.policy.KeepLineagesDays)
		default:
			l.kept, l.why = false, fmt.Sprintf("a later lineage was proved %s, more than %d days ago", first.UTC().Format(time.DateOnly), f.policy.KeepLineagesDays)
		}
	}
}

// times returns n units, at most some 250 years: more does not fit.
func times(n int64, unit time.Duration) time.Duration {
	return time.Duration(min(n, int64(90_000*day/unit))) * unit
}

// grace is how long after a doom list what it names may be deleted.
func (f *facts) grace() time.Duration { return max(minAge, times(f.policy.PruneGraceHours, time.Hour)) }

// held returns the label of a hold of the policy on a lineage.
func (f *facts) held(id snapshot.ID) (string, bool) {
	for _, h := range f.policy.Holds {
		if h.Lineage == id {
			return h.Label, true
		}
	}
	return "", false
}

// newestProofs returns the lineages of the newest proof that stands and of the newest one on
// another manifest.
func (f *facts) newestProofs() map[snapshot.ID]bool {
	type at struct {
		*proven
		id snapshot.ID
	}
	var all []at
	for _, l := range f.lineages {
		for _, p := range l.proofs {
			if p.stands {
				all = append(all, at{p, l.note.Lineage})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b at) int { return cmp.Or(b.modified.Compare(a.modified), cmp.Compare(b.key, a.key)) })
	ids := map[snapshot.ID]bool{}
	for _, p := range all {
		if p == all[0] {
			ids[p.id] = true
		} else if p.manifest != all[0].manifest {
			ids[p.id] = true
			break
		}
	}
	return ids
}

// judge says of each object why it stays or goes. What is needed is marked already.
func (f *facts) judge(l *listing) {
	at := map[snapshot.ID]*lineage{}
	for _, lin := range f.lineages {
		at[lin.note.Lineage] = lin
	}
	old := f.now.Add(-minAge).UnixNano()
	for _, g := range l.order {
		lin := at[g.lineage]
		var stays bool
		if g.lineage != (snapshot.ID{}) && lin == nil {
			stays = l.newest(g.lineage) > f.now.Add(-noteless).UnixNano()
		}
		for o := range l.groups[g].all() {
			if o.reason != unjudged {
				continue
			}
			switch {
			case g.lineage == (snapshot.ID{}):
				o.reason = f.judgeNote(l, l.key(g, o))
			case lin == nil && stays:
				o.reason = undated
			case lin == nil:
				o.reason = abandoned
			case !lin.kept && lin.forgotten:
				o.reason = forgotten
			case !lin.kept:
				o.reason = expired
			default:
				o.reason = lin.judge(g.kind, o)
			}
			if o.reason.goes() && o.modified > old {
				o.reason = young
			}
		}
	}
}

// judgeNote judges what is in no lineage.
func (f *facts) judgeNote(l *listing, k snapshot.Key) reason {
	switch k.Kind {
	case snapshot.KindLineage:
		for _, l := range f.lineages {
			if l.note.K == k.N && !l.kept {
				if l.forgotten {
					return forgotten
				}
				return expired
			}
		}
	case snapshot.KindWrap:
		if opens, ok := f.dropWraps[k.N]; ok && k.Wrap < opens {
			return oldWrap
		}
	case snapshot.KindDoom:
		if f.voids[k.String()] {
			return void
		}
		if f.done[k.String()] {
			return carriedOut
		}
	case snapshot.KindVoid:
		// It goes after its list, which it would not cancel any more.
		list := k
		list.Kind = snapshot.KindDoom
		if l.find(list) == nil {
			return void
		}
	case snapshot.KindProbe:
		return probe
	}
	return kept
}

// judge judges an object of a lineage that is kept, and that nothing needs.
func (l *lineage) judge(kind snapshot.Kind, o *object) reason {
	switch kind {
	case snapshot.KindManifest:
		return superseded // the newest one is needed
	case snapshot.KindTail:
		return superseded // those that no manifest sums up are needed
	case snapshot.KindPage:
		return superseded
	case snapshot.KindSegment:
		for _, g := range l.gaps {
			if o.b > uint64(g.After) && o.a < uint64(g.Upto) {
				return inGap
			}
		}
		if o.b <= l.head {
			return superseded // a larger one has what it has
		}
		return unreferenced
	}
	return kept
}

// Group is how many objects stay or go for a reason.
type Group struct {
	Why     string `json:"why"`
	Goes    bool   `json:"goes"`
	Objects int64  `json:"objects"`
	Bytes   int64  `json:"bytes"`

	reason reason
}

// groups sums up what is judged.
func (l *listing) sums() []Group {
	var sums [len(reasons)]Group
	for _, c := range l.groups {
		for o := range c.all() {
			sums[o.reason].Objects++
			sums[o.reason].Bytes += o.size
		}
	}
	var list []Group
	for r, g := range sums {
		if g.Objects > 0 {
			g.reason = reason(r)
			g.Why, g.Goes = g.reason.String(), g.reason.goes()
			list = append(list, g)
		}
	}
	return list
}

// share returns which part of the stored bytes would go. Expired lineages and what the newest manifest
// supersedes do not count; nor does what a doom list names already of a lineage without note,
// which may be the rest of an expired one.
func (l *listing) share() float64 {
	var goes int64
	for _, c := range l.groups {
		for o := range c.all() {
			if o.reason == unreferenced || o.reason == abandoned && o.listed == unlisted {
				goes += o.size
			}
		}
	}
	return float64(goes) / float64(max(1, l.bytes))
}

// doomed is an object that goes.
type doomed struct {
	*object
	key snapshot.Key
}

// phases are the kinds of objects in the order in which they go: a note before what it leads to,
// so that no reader is led to what is gone; a doom list before its void, which would cancel it no more.
var phases = []snapshot.Kind{
	snapshot.KindLineage, snapshot.KindManifest, snapshot.KindProof, snapshot.KindTail, snapshot.KindPage, snapshot.KindSegment, snapshot.KindRun, snapshot.KindBlob,
	snapshot.KindWrap, snapshot.KindProbe, snapshot.KindDoom, snapshot.KindVoid,
}

// going yields what goes, in the order in which it is deleted: notes of lineages, manifests, the
// oldest first, data after.
func (l *listing) going() iter.Seq[doomed] {
	return func(yield func(doomed) bool) {
		for _, kind := range phases {
			for _, g := range l.order {
				if g.kind != kind {
					continue
				}
				all := l.groups[g].all()
				if kind == snapshot.KindManifest {
					all = l.groups[g].backward() // the newest has the least key
				}
				for o := range all {
					if o.reason.goes() && !yield(doomed{o, l.key(g, o)}) {
						return
					}
				}
			}
		}
	}
}
