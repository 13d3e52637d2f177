package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/drill"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/keeper"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

var monthSeed = flag.Uint64("month-seed", 1, "seed of TestMonth")

// month is a source, its repository, and the hosts that work on it, for a month.
type month struct {
	t     *testing.T
	rnd   *rand.Rand
	feed  *feedtest.Memory
	store *memstore.Store
	repo  *backuptest.Repo
	set   *config.Repository
	begin time.Time
	last  tid.TID

	clock atomic.Int64 // how far the clock of the store is ahead
	out   atomic.Bool  // the store does not answer

	ids    []age.Identity
	to     []snapshot.Recipient
	dir    string // of the writer
	w      *writer.Writer
	end    func() error
	writes *store.Counted // of all writers
	away   time.Duration  // that nothing followed
	left   time.Time
	acked  tid.TID
	drills int
	pruned keeper.Count
}

// way is the way of a host to the store, and its requests that got there.
func (m *month) way(counted *store.Counted) store.Store {
	faulty := storetest.NewFaulty(counted, func(context.Context, storetest.Call) storetest.Fault {
		if m.out.Load() {
			return storetest.Fault{Err: storetest.Temporary}
		}
		return storetest.Fault{}
	})
	return store.Retry(faulty, store.RetryOptions{})
}

func (m *month) open(counted *store.Counted) *backup.Repository {
	m.t.Helper()
	repo, err := backup.Open(m.t.Context(), backup.Config{Store: m.way(counted), Trusted: m.repo.Trusted})
	if err != nil {
		m.t.Fatal(err)
	}
	return repo
}

// writer opens a writer.
func (m *month) writer() (*writer.Writer, error) {
	return writer.Open(m.t.Context(), writer.Options{
		Repo: m.open(m.writes), Signer: m.repo.Signer, Feed: m.feed.Reopen(), StateDir: m.dir, Recipients: m.to,
		Interval: m.set.Interval, Heartbeat: m.set.Heartbeat, SegmentSize: m.set.SegmentSize,
	})
}

// start begins to follow; first, if set, is done before.
func (m *month) start(first func(*writer.Writer) error) {
	m.t.Helper()
	w, err := m.writer()
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() {
		if first != nil {
			if err := first(w); err != nil {
				done <- err
				return
			}
		}
		done <- w.Follow(ctx)
	}()
	m.away += time.Since(m.left)
	m.w = w
	m.end = func() error {
		cancel()
		err := <-done
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		return errors.Join(err, w.Close())
	}
}

func (m *month) stop() {
	m.t.Helper()
	m.acked = max(m.acked, m.w.Stats().Head)
	if err := m.end(); err != nil {
		m.t.Fatal(err)
	}
	m.left = time.Now()
}

// data is a record as ZODB has them, part of which can be compressed.
func (m *month) data() []byte {
	noise := make([]byte, 1000+m.rnd.IntN(3000))
	for i := range noise {
		noise[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[m.rnd.IntN(36)]
	}
	text := string(noise) + strings.Repeat("the same words again ", m.rnd.IntN(40))
	b := []byte("\x80\x03cm\nC\nq\x00.\x80\x03X")
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(append(b, text...), '.')
}

const monthObjects = 300

// commit commits a transaction at the present time.
func (m *month) commit() {
	t := feedtest.Transaction{TID: max(m.last+1, tid.FromTime(time.Now())), User: "user", Description: fmt.Sprint("change ", m.rnd.IntN(1e6))}
	for range 1 + m.rnd.IntN(2) {
		oid := tid.OID(m.rnd.IntN(monthObjects))
		if slices.ContainsFunc(t.Records, func(r txn.Record) bool { return r.OID == oid }) {
			continue
		}
		r := txn.Record{OID: oid, Data: m.data()}
		switch m.rnd.IntN(30) {
		case 0:
			if oid != 0 {
				r.Data = nil
			}
		case 1: // undone to what packs have left
			var left []tid.TID
			for tr, err := range m.feed.Left().Transactions(m.t.Context(), 0, tid.Max) {
				if err != nil {
					m.t.Fatal(err)
				}
				for rec := range tr.Records {
					if rec.OID == oid && rec.Data != nil {
						left = append(left, tr.TID)
					}
				}
			}
			if len(left) > 1 {
				r.DataTID = left[m.rnd.IntN(len(left))]
			}
		}
		t.Records = append(t.Records, r)
	}
	if m.rnd.IntN(10) == 0 {
		t.Checked = append(t.Checked, monthObjects)
	}
	m.last = m.feed.Commit(t)
}

const commitsPerDay = 120

// pass lets time pass, with commits.
func (m *month) pass(d time.Duration) {
	end := time.Now().Add(d)
	for {
		pause := time.Duration(m.rnd.ExpFloat64() / commitsPerDay * float64(24*time.Hour))
		if left := time.Until(end); pause >= left {
			time.Sleep(left)
			return
		}
		time.Sleep(pause)
		m.commit()
	}
}

// until lets time pass to an hour of a day of the month, from 0.
func (m *month) until(day, hour int) {
	m.pass(time.Until(m.begin.AddDate(0, 0, day).Add(time.Duration(hour) * time.Hour)))
}

// prune is a run of a keeper on another host.
func (m *month) prune(now func() time.Time) (*keeper.PruneReport, error) {
	m.t.Helper()
	k := keeper.New(keeper.Options{Repo: m.open(store.Count(m.store)), Signer: m.repo.Keeper, Now: now, Settings: keeper.Settings{KeepLineagesDays: 3, PruneGraceHours: 24}})
	if _, _, err := k.Publish(m.t.Context()); err != nil {
		return nil, err
	}
	return k.Prune(m.t.Context(), keeper.PruneOptions{Confirm: true})
}

func (m *month) daily(day int) {
	m.t.Helper()
	m.until(day, 6)
	r, err := m.prune(nil)
	if err != nil || len(r.Refused) > 0 || r.Damaged {
		m.t.Fatalf("day %d: prune: %+v, %v", day, r, err)
	}
	m.pruned.Objects += r.Deleted.Objects
	m.pruned.Bytes += r.Deleted.Bytes
	if day%7 == 5 {
		m.drill(day)
	}
}

func (m *month) drill(day int) {
	m.t.Helper()
	res, err := drill.Run(m.t.Context(), drill.Options{
		Store: m.way(store.Count(m.store)), Trusted: m.repo.Trusted, Identities: m.ids, Signer: m.repo.Driver, Scratch: m.t.TempDir(), Sample: 50, Rand: m.rnd,
	})
	if err != nil {
		m.t.Fatalf("day %d: drill: %v", day, err)
	}
	m.drills++
	if p, err := m.repo.Proven(m.t.Context(), res.Proof.Lineage); err != nil || p == nil || p.TID != res.Proof.TID {
		m.t.Errorf("day %d: what was proved is %+v, %v", day, p, err)
	}
}

// lineage returns the current lineage and its state.
func (m *month) lineage() (*snapshot.Lineage, *backup.State) {
	m.t.Helper()
	l, err := m.repo.Current(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	s, err := m.repo.State(m.t.Context(), l.Lineage, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	return l, s
}

// forecast is what the command cost says now.
func (m *month) forecast() forecast {
	m.t.Helper()
	_, s := m.lineage()
	l, stored, objects, _, err := lately(m.t.Context(), m.repo.Repository, s, time.Now())
	if err != nil {
		m.t.Fatal(err)
	}
	return estimate(l, m.set, stored, objects, prices{})
}

// within reports a number that is not within 10 % of what was forecast.
func (m *month) within(what string, got, want float64) {
	m.t.Helper()
	m.t.Logf("%s: %.0f, forecast %.0f (%+.1f %%)", what, got, want, 100*(got/want-1))
	if got < want*0.9 || got > want*1.1 {
		m.t.Errorf("%s is not within 10 %% of what was forecast", what)
	}
}

// A month of a source and its backup: it is followed, packed with and without a writer at work, and read
// into new lineages; a keeper prunes daily, by a clock that is wrong for a time; drills prove what is
// there; keys change; the store is away for a day; the writer's host is lost. At the end each point
// that is kept restores as it was committed, and all that the writers asked of the store is what
// the command cost had forecast.
func TestMonth(t *testing.T) {
	// The coders of zstd have channels, which are made at their first use: outside of the bubble.
	for _, level := range []snapshot.Level{snapshot.Fastest, snapshot.Default} {
		repo := backuptest.New(t, memstore.New(memstore.Options{}), true)
		m := feedtest.New("prod")
		m.Put(0, "data")
		w, err := writer.Open(t.Context(), writer.Options{Repo: repo.Repository, Signer: repo.Signer, Feed: m, StateDir: t.TempDir(), Level: level})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Snapshot(t.Context(), 0, ""), w.Close()); err != nil {
			t.Fatal(err)
		}
		s := repo.Now()
		for _, err := range repo.Transactions(t.Context(), repo.Keys, s, 0, s.Head(), backup.FetchOptions{}, nil) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	synctest.Test(t, aMonth)
}

func aMonth(t *testing.T) {
	m := &month{t: t, rnd: rand.New(rand.NewPCG(*monthSeed, 1)), feed: feedtest.New("prod"), begin: time.Now(), dir: t.TempDir(), set: config.New()}
	m.store = memstore.New(memstore.Options{Now: func() time.Time { return time.Now().Add(time.Duration(m.clock.Load())) }})
	m.repo = backuptest.New(t, m.store, true)
	m.ids = []age.Identity{m.repo.Identity}
	m.to = []snapshot.Recipient{m.repo.Identity.(*age.X25519Identity).Recipient()}
	m.writes = store.Count(m.store)
	m.set.Interval, m.set.Heartbeat, m.set.SegmentSize = 8*time.Minute, 8*time.Minute, 256<<10
	m.left = m.begin
	rotate := func() { // new operators
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		m.ids = append(m.ids, id)
		m.to = []snapshot.Recipient{id.Recipient()}
	}
	var total forecast // sums, up to the present
	var since float64
	count := func(f forecast) {
		days := (time.Since(m.begin) - m.away).Hours() / 24
		total.PutsPerDay += (days - since) * f.PutsPerDay
		total.UploadPerDay += (days - since) * f.UploadPerDay
		since = days
	}
	var rebased store.Stats
	rebase := func(f forecast) {
		m.stop()
		count(f)
		before := m.writes.Stats()
		done := make(chan struct{})
		var after store.Stats
		m.start(func(w *writer.Writer) error {
			defer close(done)
			err := w.Rebase(t.Context())
			after = m.writes.Stats() // before the source is followed
			return err
		})
		<-done
		puts, sent := after.Puts-before.Puts, after.Sent-before.Sent
		rebased.Puts, rebased.Sent = rebased.Puts+puts, rebased.Sent+sent
		t.Logf("a rebase: %d PUTs of %d bytes, forecast %.0f of %d at most", puts, sent, f.RebasePuts, f.RebaseBytes)
		if float64(puts) > f.RebasePuts*1.1 || float64(sent) > float64(f.RebaseBytes)*1.1 {
			t.Error("a rebase cost more than what was forecast")
		}
	}
	m.start(nil)

	var f forecast
	for day := range 30 {
		m.daily(day)
		switch day {
		case 2:
			m.feed.Pack(m.last) // all of it is stored, or nearly
		case 4:
			m.stop()
			rotate()
			m.start(nil)
		case 8:
			f = m.forecast()
			m.until(9, 0)
			m.out.Store(true)
			m.until(10, 0)
			m.away += 24 * time.Hour
			m.out.Store(false)
			m.pass(time.Hour)
		case 11: // the host is lost; the new one has nothing
			m.stop()
			m.dir = t.TempDir()
			m.start(nil)
		case 13: // packed while the writer is down
			m.stop()
			m.pass(2 * time.Hour)
			m.feed.Pack(m.last - 30<<32)
			m.pass(time.Hour)
			m.start(nil)
		case 15, 26:
			r := m.forecast()
			r.PutsPerDay, r.UploadPerDay = f.PutsPerDay, f.UploadPerDay
			m.feed.Pack(m.last - 24*60<<32)
			rebase(r)
			m.pass(2 * time.Hour)
			m.drill(day)
		case 16, 27: // there is something of the new lineage to conclude from
			count(f)
			f = m.forecast()
		case 18: // clocks are wrong
			for _, years := range []int{1, -1} {
				before := m.store.Date()
				if r, err := m.prune(func() time.Time { return time.Now().AddDate(years, 0, 0) }); err == nil && r.Deleted.Objects > 0 {
					t.Errorf("a keeper whose clock is %d years off deleted %+v, at %v", years, r.Deleted, before)
				} else {
					t.Logf("a keeper whose clock is %d years off: %v", years, err)
				}
			}
			m.stop()
			m.clock.Store(int64(20 * time.Minute))
			if w, err := m.writer(); !errors.Is(err, writer.ErrClock) {
				t.Errorf("a writer whose clock is 20 minutes off: %v, %v", w, err)
			}
			m.clock.Store(0)
			m.start(nil)
		case 20:
			m.stop()
			rotate()
			m.start(nil)
		}
		m.until(day+1, 0)
	}
	m.pass(2 * m.set.Interval)
	time.Sleep(m.set.Interval)
	count(f)
	m.stop()
	if m.acked != m.last {
		t.Errorf("%v is acknowledged, want %v", m.acked, m.last)
	}
	if m.drills < 6 || m.pruned.Objects == 0 {
		t.Errorf("%d drills, %+v pruned", m.drills, m.pruned)
	}

	// What it has cost.
	stats := m.writes.Stats()
	m.within("PUTs", float64(stats.Puts-rebased.Puts), total.PutsPerDay)
	m.within("bytes", float64(stats.Sent-rebased.Sent), total.UploadPerDay)
	t.Logf("%d GETs, %d LISTs of writers", stats.Gets, stats.Lists)
	last := m.forecast()
	reads := store.Count(m.store)
	l, _ := m.lineage()
	s, err := m.open(reads).State(t.Context(), l.Lineage, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.restore(s, m.last, reads)
	m.within("GETs of a restore", float64(reads.Stats().Gets), last.RestoreGets)
	m.within("bytes of a restore", float64(reads.Stats().Received), float64(last.RestoreBytes))

	m.compare()
}

// restore restores to a file and returns the objects in it.
func (m *month) restore(s *backup.State, at tid.TID, counted *store.Counted) map[tid.OID]string {
	t := m.t
	t.Helper()
	dir, err := os.MkdirTemp("", "month-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "out.fs")
	repo := m.open(counted)
	if _, err := (&restore.Source{Repo: repo, Keys: repo.Unlock(m.ids...), State: s, At: at}).ToFile(t.Context(), path, restore.FileOptions{}); err != nil {
		t.Fatalf("restore at %v: %v", at, err)
	}
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.UseIndex(t.Context(), path+".index", nil); err != nil {
		t.Fatal(err)
	}
	state := map[tid.OID]string{}
	for oid := range tid.OID(monthObjects) {
		rev, err := r.LoadBefore(t.Context(), oid, at+1)
		switch {
		case err == nil:
			state[oid] = string(rev.Data)
		case !errors.Is(err, txn.ErrNoSuchObject) && !errors.Is(err, txn.ErrNotFound):
			t.Fatal(err)
		}
	}
	return state
}

// compare compares all that is kept with what was ever committed.
func (m *month) compare() {
	t := m.t
	t.Helper()
	sum, err := verify.Check(t.Context(), m.repo.Config, verify.CheckOptions{Report: func(f verify.Finding) {
		if !f.Warning {
			t.Error(f)
		}
	}})
	if err != nil || sum.Damage > 0 {
		t.Errorf("check: %+v, %v", sum, err)
	}
	notes, err := m.repo.Lineages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys := m.repo.Unlock(m.ids...)
	exact, restored := 0, 0
	for _, l := range notes {
		s, err := m.repo.State(t.Context(), l.Lineage, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify.Read(t.Context(), verify.ReadOptions{Repo: m.repo.Repository, Keys: keys, State: s, Scratch: t.TempDir(), Report: func(f verify.Finding) { t.Error(f) }}); err != nil {
			t.Fatal(err)
		}
		// Both histories, one transaction after the other.
		var got, want states
		history := m.feed.Full()
		var points []tid.TID
		for tr, err := range m.repo.Transactions(t.Context(), keys, s, 0, s.Head(), backup.FetchOptions{Scratch: t.TempDir()}, nil) {
			if err != nil {
				t.Fatal(err)
			}
			got.add(t, tr)
			for ref, err := range history.Transactions(t.Context(), tr.TID-1, tr.TID) {
				if err != nil {
					t.Fatal(err)
				}
				want.add(t, ref)
			}
			if s.Exact(tr.TID) != nil {
				continue
			}
			exact++
			if !maps.Equal(got.now, want.now) {
				t.Fatalf("lineage %d at %v is not what was committed", l.K, tr.TID)
			}
			if m.rnd.IntN(100) == 0 || tr.TID == s.Head() {
				points = append(points, tr.TID)
			}
		}
		if n, w := got.n, want.n; n != w {
			t.Errorf("lineage %d has %d transactions, want %d", l.K, n, w)
		}
		for _, at := range points {
			var ref states
			for tr, err := range history.Transactions(t.Context(), 0, at) {
				if err != nil {
					t.Fatal(err)
				}
				ref.add(t, tr)
			}
			if !maps.Equal(m.restore(s, at, store.Count(m.store)), ref.now) {
				t.Errorf("lineage %d restored at %v is not what was committed", l.K, at)
			}
			restored++
		}
		t.Logf("lineage %d: %d transactions, head %v, holes %v, manifest %d, tail %d", l.K, got.n, s.Head(), s.Holes(), s.Manifest.Seq, s.Chain().N)
	}
	t.Logf("%d lineages of 3, %d drills, %d objects pruned; at %d times the history is what was committed, %d of them were restored", len(notes), m.drills, m.pruned.Objects, exact, restored)
	if len(notes) != 2 || restored < 10 {
		t.Errorf("%d lineages are kept, %d times were restored", len(notes), restored)
	}
}

// states is what a history makes of objects.
type states struct {
	n    int
	now  map[tid.OID]string
	past map[tid.OID]map[tid.TID]string
}

func (s *states) add(t *testing.T, tr *txn.Transaction) {
	t.Helper()
	if s.now == nil {
		s.now, s.past = map[tid.OID]string{}, map[tid.OID]map[tid.TID]string{}
	}
	s.n++
	for r, err := range tr.Records {
		if err != nil {
			t.Fatal(err)
		}
		if s.past[r.OID] == nil {
			s.past[r.OID] = map[tid.TID]string{}
		}
		data, ok := string(r.Data), r.Data != nil
		if r.DataTID != 0 {
			data, ok = s.past[r.OID][r.DataTID]
		}
		if !ok {
			delete(s.now, r.OID)
			continue
		}
		s.now[r.OID] = data
		s.past[r.OID][tr.TID] = data
	}
}
