package writer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/keeper"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
)

var moreSwitches = flag.Int("switches", 0, "how many times more the orders of two writers' calls may change between them; -1: all orders")

// Two actors work on one repository. Each of their calls to the store waits until the schedule lets it
// happen; all schedules are tried, depth first. What an actor does depends only on the answers that it
// got, so two schedules after which the store has the same objects, and both actors have had the same
// answers, have the same future: one of them is followed.
//
// The longer they work the more orders there are. Only those are tried in which a limited number of times a
// call has to wait although its actor is at work.
//
// orders counts what was tried.
type orders struct {
	switches int // how often a call may be made to wait, -1: without limit
	losses   int // answers that get lost
	passes   int // times that a day passes, before a keeper starts or deletes

	runs    int // schedules that were begun
	ended   int // those that were followed to their end
	states  map[string]bool
	errs    map[string]int // how actors ended
	waiting [][]int        // beginnings of schedules
}

// choice is one thing that may happen next.
type choice struct {
	call *gated // of an actor; nil: time passes
	lost bool   // the call has its effect, but no answer

	preempts bool // another call was to be next
}

// gated is a call that waits.
type gated struct {
	who  int
	name string
	put  bool
	at   int       // how many calls had been let go when it came
	let  chan bool // true: the answer gets lost
}

// gate lets the calls of all actors to a store happen one at a time.
type gate struct {
	store *memstore.Store

	mu       sync.Mutex
	ended    <-chan struct{} // when the run ends
	free     bool            // calls do not wait
	done     int             // calls that were let go
	days     int             // that have passed
	waiting  []*gated
	objects  map[string]string // what is stored: its origin, by key
	history  [2]uint64         // of the answers that each actor got, in whatever order
	lineages map[string]string // how they are called, by id
	origins  map[string]int    // how many objects of a kind an actor has stored
}

// actorStore is the way of one actor to the store.
type actorStore struct {
	store.Wrapped
	g   *gate
	who int
}

// normal is a key without the hash and the id in it, which are others in each run.
func (g *gate) normal(who int, key string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.normalLocked(who, key)
}

func (g *gate) normalLocked(who int, key string) string {
	lineage := ""
	if k, err := snapshot.ParseKey(key); err == nil {
		k.Sum, k.Rest = snapshot.Short{}, ""
		key = k.String()
	}
	if id, rest, ok := strings.Cut(key, "/"); ok && len(id) == 32 {
		if lineage = g.lineages[id]; lineage == "" { // of an actor's own
			lineage = fmt.Sprintf("%d.%d", who, len(g.lineages))
			g.lineages[id] = lineage
		}
		key = lineage + "/" + rest
	}
	return key
}

// call waits until a call may happen, and does it. do returns what makes its answer different from
// other answers.
func (s *actorStore) call(ctx context.Context, op, key string, do func() (string, error)) error {
	c := &gated{who: s.who, name: op + " " + s.g.normal(s.who, key), put: op != "get" && op != "list", let: make(chan bool)}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	var lost bool
	if !s.g.free {
		c.at = s.g.done
		s.g.waiting = append(s.g.waiting, c)
		s.g.mu.Unlock()
		var err error
		select {
		case lost = <-c.let:
		case <-ctx.Done():
			err = ctx.Err()
		case <-s.g.ended:
			err = context.Canceled
		}
		s.g.mu.Lock()
		if err != nil {
			s.g.waiting = slices.DeleteFunc(s.g.waiting, func(o *gated) bool { return o == c })
			return err
		}
	}
	answer, err := do()
	if lost {
		answer, err = "lost", storetest.Temporary
	}
	what := "ok"
	switch {
	case errors.Is(err, store.ErrExists):
		what = "exists"
	case errors.Is(err, store.ErrNotFound):
		what = "not found"
	case err != nil:
		what = "error"
	}
	// Several goroutines of an actor may have calls: in which order they got their answers does not matter.
	sum := sha256.Sum256([]byte(strings.Join([]string{c.name, what, answer, fmt.Sprint(s.g.days)}, "\x00")))
	s.g.history[s.who] += binary.BigEndian.Uint64(sum[:])
	return err
}

func (s *actorStore) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	return s.call(ctx, "put", key, func() (string, error) {
		err := s.g.store.Put(context.WithoutCancel(ctx), key, body, size, o)
		if err == nil {
			kind := fmt.Sprint(s.who)
			if k, err := snapshot.ParseKey(key); err == nil {
				kind = fmt.Sprint(s.who, " ", k.Kind)
			}
			s.g.origins[kind]++
			s.g.objects[key] = fmt.Sprint(kind, " ", s.g.origins[kind], " ", s.g.days)
		}
		return "", err
	})
}

func (s *actorStore) Get(ctx context.Context, key string, off, n int64) (r io.ReadCloser, info store.Info, err error) {
	err = s.call(ctx, "get", key, func() (string, error) {
		r, info, err = s.g.store.Get(context.WithoutCancel(ctx), key, off, n)
		return s.g.objects[key], err
	})
	return r, info, err
}

func (s *actorStore) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		var list []store.Info
		err := s.call(ctx, "list", prefix, func() (string, error) {
			var b strings.Builder
			for info, err := range s.g.store.List(context.WithoutCancel(ctx), prefix, after) {
				if err != nil {
					return "", err
				}
				list = append(list, info)
				b.WriteString(s.g.normalLocked(s.who, info.Key) + s.g.objects[info.Key])
			}
			return b.String(), nil
		})
		if err != nil {
			yield(store.Info{}, err)
			return
		}
		for _, info := range list {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (s *actorStore) Delete(ctx context.Context, keys []string) error {
	return s.call(ctx, "delete", strings.Join(keys, " "), func() (string, error) {
		err := s.g.store.Delete(context.WithoutCancel(ctx), keys)
		for _, k := range keys {
			delete(s.g.objects, k)
		}
		return "", err
	})
}

// state is all that the future depends on.
func (g *gate) state(more string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []string
	for k, origin := range g.objects {
		list = append(list, g.normalLocked(-1, k)+" "+origin)
	}
	slices.Sort(list)
	return strings.Join(append(list, fmt.Sprint(g.history), more), "\n")
}

// actor does steps, one after the other, until one has an error.
type actor struct {
	steps []step
	w     *Writer // unless it is no writer, or has not opened

	done atomic.Int64 // steps that were done
	err  error
}

type step func(context.Context) error

// stage is what a schedule plays on.
type stage struct {
	*world
	gate    *gate
	acks    []ack
	pruned  bool // objects may have been deleted
	deleted int64
	mu      sync.Mutex
}

// ack is a tail that a writer has taken for acknowledged.
type ack struct {
	who     int
	lineage snapshot.ID
	end     snapshot.Chain
}

// acked notes what a writer says is stored.
func (s *stage) acked(who int, w *Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acks = append(s.acks, ack{who, w.chain.id, w.chain.end})
}

// writer returns a writer as an actor. Its steps are open, flush (one more transaction), new (commit one, and flush all), merge (begin to
// publish, which goes on beside what follows), wait (for that), snapshot (all), rebase.
func (s *stage) writer(who int, dir string, script string) *actor {
	a := &actor{}
	way := store.Retry(&actorStore{store.Wrapped{Store: s.gate.store}, s.gate, who}, store.RetryOptions{})
	for name := range strings.FieldsSeq(script) {
		a.steps = append(a.steps, func(ctx context.Context) (err error) {
			if name == "open" {
				if a.w, err = s.open(ctx, way, dir); err != nil {
					return err
				}
				a.w.name = fmt.Sprintf("host%d/1/0", who)
				a.w.marks[a.w.chain.id.String()], err = s.feed.Mark(ctx, 0) // else a file is written
				return err
			}
			w := a.w
			c := w.chain
			switch name {
			case "flush":
				err = c.flush(ctx, s.after(c.end.Head), time.Now(), false)
			case "new":
				s.feed.Put(1, "new")
				err = c.flush(ctx, s.last(), time.Now(), true)
			case "beat":
				err = c.heartbeat(ctx, time.Now())
			case "merge":
				err = c.publishIfDue(ctx)
			case "wait":
				err = c.quiesce()
			case "snapshot":
				err = w.Snapshot(ctx, 0, "")
			case "rebase":
				err = w.Rebase(ctx)
			default:
				err = errors.New(name)
			}
			s.acked(who, w)
			return err
		})
	}
	return a
}

// keeper returns a keeper as an actor, who prunes a few times.
func (s *stage) keeper(who, times int) *actor {
	a := &actor{}
	direct := &actorStore{store.Wrapped{Store: s.gate.store}, s.gate, who}
	way := store.Retry(direct, store.RetryOptions{})
	var k *keeper.Keeper
	a.steps = append(a.steps, func(ctx context.Context) error {
		repo, err := backup.Open(ctx, backup.Config{Store: way, Trusted: s.repo.Trusted})
		if err != nil {
			return err
		}
		k = keeper.New(keeper.Options{Repo: repo, Signer: s.repo.Keeper, Settings: keeper.Settings{KeepLineagesDays: 35, PruneGraceHours: 24}})
		_, _, err = k.Publish(ctx)
		return err
	})
	for range times {
		a.steps = append(a.steps, func(ctx context.Context) error {
			if err := direct.call(ctx, "start", "", func() (string, error) { return "", nil }); err != nil {
				return err
			}
			r, err := k.Prune(ctx, keeper.PruneOptions{Confirm: true, ForceShare: 1})
			if err == nil {
				s.mu.Lock()
				s.deleted += r.Deleted.Objects
				s.mu.Unlock()
			}
			return err
		})
	}
	return a
}

// after is the first transaction after one, or the last.
func (s *stage) after(t tid.TID) tid.TID {
	for _, at := range tids(s.t, s.feed.Full()) {
		if at > t {
			return at
		}
	}
	return s.last()
}

// template is a repository that each schedule begins with a copy of.
type template struct {
	repo    *backuptest.Repo
	objects map[string][]byte
}

// commits fills the source.
func commits(m *feedtest.Memory) {
	for i := range 9 {
		m.Put(tid.OID(i%3), fmt.Sprint("data ", i))
	}
}

// newTemplate makes a repository with some tails and merged segments.
func newTemplate(t *testing.T) *template {
	m := memstore.New(memstore.Options{})
	w := newWorldIn(t, 1, false, m)
	w.store = m
	commits(w.feed)
	wr := w.must()
	all := tids(t, w.feed.Full())
	for i := range 3 {
		if err := wr.chain.flush(t.Context(), all[i], time.Now(), false); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			if err := wr.chain.publishNow(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := wr.Close(); err != nil {
		t.Fatal(err)
	}
	tpl := &template{repo: w.repo, objects: map[string][]byte{}}
	for info, err := range m.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := store.ReadAll(t.Context(), m, info.Key, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		tpl.objects[info.Key] = b
	}
	return tpl
}

// schedule plays one schedule that begins with some choices, and returns the choices that there were
// beyond them, as beginnings of other schedules. It ends early where all has been seen.
func (o *orders) schedule(t *testing.T, begin []int, tpl *template, cast func(*stage) [2]*actor, after func(*stage, [2]*actor)) {
	o.runs++
	m := memstore.New(memstore.Options{})
	dir, err := os.MkdirTemp("", "orders-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s := &stage{world: &world{t: t, store: m, rnd: newRand(1, 1), feed: feedtest.New("prod"), size: 4 << 10, dir: dir, log: slog.New(slog.DiscardHandler)}}
	s.gate = &gate{store: m, objects: map[string]string{}, origins: map[string]int{}, lineages: map[string]string{tpl.repo.Lineage.String(): "first"}}
	for k, b := range tpl.objects {
		if err := m.Put(t.Context(), k, bytes.NewReader(b), int64(len(b)), store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		s.gate.objects[k] = "first"
	}
	repo := *tpl.repo
	if repo.Repository, err = backup.Open(t.Context(), backup.Config{Store: m, Trusted: tpl.repo.Trusted}); err != nil {
		t.Fatal(err)
	}
	s.repo = &repo
	commits(s.feed)
	s.setup = func(o *Options) {
		o.limits.tails = 1
		o.Feed = s.feed // Reopen is not for two at a time
	}

	if o.passes > 0 {
		time.Sleep(30 * time.Hour) // what is there may be deleted
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.gate.ended = ctx.Done()
	actors := cast(s)
	var group sync.WaitGroup
	for _, a := range actors {
		group.Go(func() {
			for _, f := range a.steps {
				if a.err = f(ctx); a.err != nil {
					break
				}
				a.done.Add(1)
			}
		})
	}
	over := make(chan struct{})
	go func() { group.Wait(); close(over) }()
	seen, last := false, -1
	switches, losses, passes := o.switches, o.losses, o.passes
	for n, idle := 0, 0; !seen; {
		synctest.Wait()
		select {
		case <-over:
			goto end
		default:
		}
		list := s.gate.choices(last, switches, losses, passes)
		if len(list) == 0 { // all sleep
			if idle++; idle > 10000 {
				t.Fatal("nothing goes on")
			}
			time.Sleep(time.Second)
			continue
		}
		pick := 0
		if n < len(begin) {
			if pick = begin[n]; pick >= len(list) {
				t.Fatalf("the same schedule has another course: %v", begin)
			}
		} else {
			state := s.gate.state(fmt.Sprint(last, switches, losses, passes, actors[0].done.Load(), actors[1].done.Load()))
			if seen = o.states[state]; seen {
				break
			}
			o.states[state] = true
			for i := 1; i < len(list); i++ {
				o.waiting = append(o.waiting, append(slices.Clone(begin), i))
			}
			begin = append(begin, 0)
		}
		n++
		switch c := list[pick]; {
		case c.call == nil:
			passes--
			s.gate.mu.Lock()
			s.gate.days++
			s.gate.mu.Unlock()
			time.Sleep(30 * time.Hour)
		default:
			if c.lost {
				losses--
			}
			if c.preempts {
				switches--
			}
			s.gate.done = n
			last = c.call.who
			s.gate.mu.Lock()
			s.gate.waiting = slices.DeleteFunc(s.gate.waiting, func(g *gated) bool { return g == c.call })
			s.gate.mu.Unlock()
			c.call.let <- c.lost
		}
	}
end:
	defer func() {
		cancel()
		<-over
		for _, a := range actors {
			if a.w != nil {
				a.w.chain.quiesce()
				a.w.Close()
			}
		}
	}()
	if seen {
		return
	}
	o.ended++
	for i, a := range actors {
		what := "goes on"
		if a.err != nil {
			what = "is refused"
		}
		o.errs[fmt.Sprintf("%d %s", i+1, what)]++
	}
	s.gate.free = true
	after(s, actors)
}

// all plays all schedules.
func (o *orders) all(t *testing.T, tpl *template, cast func(*stage) [2]*actor, after func(*stage, [2]*actor)) {
	o.states, o.errs, o.waiting = map[string]bool{}, map[string]int{}, [][]int{nil}
	if o.switches += *moreSwitches; *moreSwitches < 0 {
		o.switches = -1
	}
	for len(o.waiting) > 0 && !t.Failed() {
		n := len(o.waiting) - 1
		begin := o.waiting[n]
		o.waiting = o.waiting[:n]
		synctest.Test(t, func(t *testing.T) {
			o.schedule(t, begin, tpl, cast, after)
			if t.Failed() {
				t.Logf("schedule %v", begin)
			}
		})
	}
	t.Logf("%d states, %d schedules, %d of them to their end: %v", len(o.states), o.runs, o.ended, o.errs)
}

// choices are what may happen next, in an order that is the same in each run.
func (g *gate) choices(last, switches, losses, passes int) (list []choice) {
	g.mu.Lock()
	defer g.mu.Unlock()
	slices.SortFunc(g.waiting, func(a, b *gated) int {
		return cmp.Or(cmp.Compare(a.who, b.who), cmp.Compare(a.at, b.at), cmp.Compare(a.name, b.name))
	})
	// The oldest call of the actor that is at work is next, or if it has none of any one.
	goesOn := slices.ContainsFunc(g.waiting, func(c *gated) bool { return c.who == last })
	for _, lost := range []bool{false, true} {
		for i, c := range g.waiting {
			oldest := i == 0 || g.waiting[i-1].who != c.who
			preempts := !oldest || goesOn && c.who != last
			if (!preempts || switches != 0) && (!lost || losses > 0 && c.put) {
				list = append(list, choice{c, lost, preempts})
			}
		}
	}
	if passes > 0 && slices.ContainsFunc(g.waiting, func(c *gated) bool {
		return strings.HasPrefix(c.name, "start") || strings.HasPrefix(c.name, "delete")
	}) {
		list = append(list, choice{})
	}
	return list
}

// settled verifies what came of a schedule: what was acknowledged is there, the chain holds, and at most
// one of the writers can add to it.
func (s *stage) settled(actors [2]*actor) {
	t := s.t
	for i, a := range actors {
		// A writer that was stopped for days may miss what it knew, and what it has begun may be too old.
		stalled := s.pruned && isAny(a.err, store.ErrNotFound, context.DeadlineExceeded)
		if a.err != nil && !isAny(a.err, ErrFenced, ErrDiverged) && !stalled {
			t.Errorf("actor %d: %v", i+1, a.err)
		}
	}
	var head tid.TID
	for _, a := range s.acks {
		head = max(head, a.end.Head)
		if a.end.N == 0 {
			continue
		}
		tail, err := s.repo.Repository.Tail(t.Context(), a.lineage, a.end.N)
		if errors.Is(err, store.ErrNotFound) && s.pruned {
			continue
		}
		if err != nil {
			t.Errorf("writer %d has acknowledged tail %d: %v", a.who+1, a.end.N, err)
		} else if tail.Chain() != a.end {
			t.Errorf("writer %d has acknowledged tail %d up to %v; it is that of %s up to %v", a.who+1, a.end.N, a.end.Head, tail.Writer, tail.Upto)
		}
	}
	s.sound(head)
	ahead := 0
	for _, a := range actors {
		if a.w == nil || a.err != nil {
			continue
		}
		switch err := a.w.chain.heartbeat(t.Context(), time.Now()); {
		case err == nil:
			ahead++
		case !isAny(err, ErrFenced, ErrDiverged):
			t.Errorf("a tail more: %v", err)
		}
	}
	if ahead > 1 {
		t.Errorf("both writers go on")
	}
	w, err := s.open(t.Context(), s.store, s.dir+"/last")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	s.sound(s.last())
}

// sound verifies the repository, which must have everything up to a TID.
func (s *stage) sound(head tid.TID) {
	t := s.t
	t.Helper()
	s.check(head)
	sum, err := verify.Check(t.Context(), s.repo.Config, verify.CheckOptions{Report: func(f verify.Finding) {
		if !f.Warning {
			t.Errorf("%v", f)
		}
	}})
	if err != nil || sum.Damage > 0 {
		t.Errorf("check: %+v, %v", sum, err)
	}
}

// Two writers: all orders of their calls to the store, also with an answer that is lost, and with a
// lineage that takes the place of theirs.
func TestOrders(t *testing.T) {
	tpl := newTemplate(t)
	for _, tt := range []struct {
		a, b             string
		switches, losses int
	}{
		{"open flush merge flush wait", "open flush merge flush wait", 1, 0},
		{"open flush flush", "open flush flush", 1, 0},
		{"open flush merge wait", "open flush", 1, 1},
		{"open new new", "open rebase", 1, 0},
		{"open rebase new", "open rebase", 1, 0},
	} {
		t.Run(fmt.Sprintf("%s, %s, %d", tt.a, tt.b, tt.losses), func(t *testing.T) {
			o := &orders{switches: tt.switches, losses: tt.losses}
			o.all(t, tpl, func(s *stage) [2]*actor {
				return [2]*actor{s.writer(0, s.dir+"/a", tt.a), s.writer(1, s.dir+"/b", tt.b)}
			}, (*stage).settled)
		})
	}
}

// A writer that is stopped at each of its calls, while a keeper announces what it will delete, and then
// deletes it.
func TestOrdersOfPrune(t *testing.T) {
	tpl := newTemplate(t)
	for script, switches := range map[string]int{"open flush merge wait flush": 1, "open rebase": 0} {
		t.Run(script, func(t *testing.T) {
			var deleted int64
			o := &orders{passes: 1, switches: switches}
			o.all(t, tpl, func(s *stage) [2]*actor {
				s.pruned = true
				return [2]*actor{s.writer(0, s.dir+"/a", script), s.keeper(1, 2)}
			}, func(s *stage, actors [2]*actor) {
				s.settled(actors)
				deleted += s.deleted
			})
			if deleted == 0 {
				t.Error("nothing was ever deleted")
			}
		})
	}
}
