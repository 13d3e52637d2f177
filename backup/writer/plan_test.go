package writer

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// parsePieces reads pieces: t is a tail, a digit a tier, both with the bytes after a colon
// (default 1), in parentheses what is not open, and a number before * repeats.
func parsePieces(t *testing.T, s string) (list []piece) {
	t.Helper()
	for f := range strings.FieldsSeq(s) {
		n := 1
		if c, rest, ok := strings.Cut(f, "*"); ok {
			n, _ = strconv.Atoi(c)
			f = rest
		}
		p := piece{bytes: 1, open: true}
		if strings.HasPrefix(f, "(") {
			f = strings.Trim(f, "()")
			p.open = false
		}
		what, size, sized := strings.Cut(f, ":")
		if sized {
			b, err := strconv.Atoi(size)
			if err != nil {
				t.Fatal(err)
			}
			p.bytes = int64(b)
		}
		if p.tail = what == "t"; !p.tail {
			p.tier, _ = strconv.Atoi(what)
		}
		list = append(list, slices.Repeat([]piece{p}, n)...)
	}
	return list
}

// formatRuns writes runs: from-to, then the tier or S for sealed, = for what is not copied.
func formatRuns(p []piece, list []run) string {
	var b strings.Builder
	for _, r := range list {
		fmt.Fprintf(&b, " %d", r.from)
		if r.to-r.from > 1 {
			fmt.Fprintf(&b, "-%d", r.to-1)
		}
		if !r.copied(p) {
			b.WriteByte('=')
		}
		if r.sealed {
			b.WriteByte('S')
		} else {
			b.WriteString(strconv.Itoa(r.tier))
		}
	}
	return strings.TrimSpace(b.String())
}

func TestMerges(t *testing.T) {
	for _, tt := range []struct{ why, in, want string }{
		{"nothing", "", ""},
		{"a tail is copied, so that it can go", "t", "01"},
		{"tails become one", "64*t", "0-631"},
		{"what was merged stays until there are enough", "1 1 3*t", "0=1 1=1 2-41"},
		{"enough become one of the next tier, with the tails, in one copy", "2 63*1 64*t", "0=2 1-1272"},
		{"two tiers at once", "63*2 63*1 t", "0-1263"},
		{"a tail in the manifest, of a time without room, goes with the next", "1 t t", "0=1 1-21"},
		{"a listed segment between tails", "t t 1 t", "0-11 2=1 31"},
		{"small ones before greater ones go with them", "1 64*2 1 64*1", "0-1293"},
		{"and wait for that", "1 2 2 1", "0=1 1=2 2=2 3=1"},
		{"sealed when all reach the size", "2:80 1:60 t:60", "0-2S"},
		{"as much as fits is sealed", "2:80 1:100 t:10 t:60", "0-2S 31"},
		{"one that is large enough needs no copy", "1:190 t:15 t:6", "0=S 1-21"},
		{"one that is too large", "1:300 t:100 t:120", "0=S 1S 21"},
		{"several are sealed", "1:120 1:120 1:120 1:120", "0=S 1=S 2=S 3=1"},
		{"what is not open stays, and ends the reach of merges", "1:10 1:10 (t) 1:10 t:10", "0-1S 2=S 3=1 41"},
		{"also many before it, cut to size", "1:120 1:120 t:100 (2:200) t", "0=S 1=S 2S 3=S 41"},
		{"nothing is open", "(t) (1) (2)", "0=S 1=S 2=S"},
	} {
		in := parsePieces(t, tt.in)
		if got := formatRuns(in, usual.merges(in, 200)); got != tt.want {
			t.Errorf("%s: %q becomes %q, want %q", tt.why, tt.in, got, tt.want)
		}
	}
}

func TestPages(t *testing.T) {
	for _, tt := range []struct {
		lines string // p: may be in a page, c: and continues a transaction
		want  [][2]int
	}{
		{"ppp", nil},
		{"pppp", [][2]int{{0, 4}}},
		{"ppppppppp", [][2]int{{0, 4}, {4, 8}}},
		{"pp-pppp", [][2]int{{3, 7}}},
		{"-ppppp", [][2]int{{1, 5}}},
		{"pppccc", [][2]int{{0, 2}, {2, 6}}},
		{"ppppccp", [][2]int{{0, 3}, {3, 7}}},
		{"pccccppppp", [][2]int{{5, 9}}},
		{"ppppp-c", [][2]int{{0, 4}}},
	} {
		lines := make([]placed, len(tt.lines))
		for i := range lines {
			lines[i] = placed{tt.lines[i] != '-', tt.lines[i] == 'c'}
		}
		if got := pages(lines, 4); !slices.Equal(got, tt.want) {
			t.Errorf("pages of %s are %v, want %v", tt.lines, got, tt.want)
		}
	}
}

func TestDue(t *testing.T) {
	for _, tt := range []struct {
		tails int
		bytes int64
		age   time.Duration
		want  bool
	}{
		{0, 0, 100 * time.Hour, false},
		{1, 1, 23 * time.Hour, false},
		{1, 0, 24 * time.Hour, true},
		{63, 8 << 20, time.Hour, false},
		{64, 0, time.Hour, true},
		{1, 8<<20 + 1, time.Second, true},
	} {
		if got := usual.due(tt.tails, tt.bytes, tt.age); got != tt.want {
			t.Errorf("due(%d, %d, %v) = %v", tt.tails, tt.bytes, tt.age, got)
		}
	}
}

func TestPace(t *testing.T) {
	p := pace{time.Second, 5 * time.Minute}
	start := time.Date(2026, 11, 20, 20, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		why           string
		now           time.Duration
		pending       bool
		flushed, tail time.Duration
		want          action
		at            time.Duration
	}{
		{"at once after idleness", 100 * time.Second, true, 0, 0, flush, 100 * time.Second},
		{"too early", 1500 * time.Millisecond, true, time.Second, time.Second, early, 2 * time.Second},
		{"after the interval", 2 * time.Second, true, time.Second, time.Second, flush, 2 * time.Second},
		{"nothing new", 2 * time.Second, false, time.Second, time.Second, wait, 301 * time.Second},
		{"nothing new for long", 301 * time.Second, false, time.Second, time.Second, beat, 301 * time.Second},
		{"what is new goes before a heartbeat", 400 * time.Second, true, time.Second, time.Second, flush, 400 * time.Second},
	} {
		got, at := p.next(start.Add(tt.now), tt.pending, start.Add(tt.flushed), start.Add(tt.tail))
		if got != tt.want || !at.Equal(start.Add(tt.at)) {
			t.Errorf("%s: action %d at %v, want %d at %v", tt.why, got, at.Sub(start), tt.want, tt.at)
		}
	}
}

func TestStalled(t *testing.T) {
	now := time.Now()
	shift := func(wall, store time.Duration) mark { // the monotonic clock stands still
		return mark{now.Round(0).Add(wall), now.Round(0).Add(store)}
	}
	for _, tt := range []struct {
		why  string
		from mark
		to   mark
		want bool
	}{
		{"soon", mark{now, now}, mark{now.Add(time.Minute), now.Add(time.Minute)}, false},
		{"monotonic", mark{at: now}, mark{at: now.Add(10 * time.Minute)}, true},
		{"the wall clock alone", shift(0, 0), shift(10*time.Minute, 0), true},
		{"the clock of the store alone", shift(0, 0), shift(time.Second, 10*time.Minute), true},
		{"the clock of the store became known", mark{at: now}, mark{now, now.Add(time.Hour)}, false},
		{"the wall clock went back", shift(0, 0), shift(-time.Hour, time.Second), false},
	} {
		if got := tt.from.stalled(tt.to); got != tt.want {
			t.Errorf("%s: stalled = %v", tt.why, got)
		}
	}
}

// sizes are those of manifests as they are encoded.
type sizes struct{ first, line, page int64 }

func manifestSizes(t *testing.T) sizes {
	t.Helper()
	private, _, err := snapshot.GenerateKey("prod", snapshot.Writer)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := snapshot.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	lineage := snapshot.NewID()
	list := make([]snapshot.Segment, snapshot.PageSegments)
	for i := range list {
		s := snapshot.Segment{After: 0x0401_0000_0000_0000 + tid.TID(i), Upto: 0x0401_0000_0000_0001 + tid.TID(i), Bytes: 123 << 20, Raw: snapshot.Sum([]byte{1}), SHA256: snapshot.Sum([]byte{2}),
			Text: 400 << 20, Txns: 12345, Records: 67890, MaxOID: 0x1234567, Meta: 65432, KID: 1, Header: make([]byte, 184)}
		if i == 0 {
			s.After = 0
		}
		s.Key = snapshot.SegmentKey(lineage, s.After, s.Upto, s.SHA256)
		list[i] = s
	}
	encode := func(items []snapshot.Item) int64 {
		m := &snapshot.Manifest{Repo: snapshot.NewID(), Lineage: lineage, Seq: 2, Prev: snapshot.Sum(nil), Tail: 64, Chain: snapshot.Sum(nil), Created: time.Now(), Writer: "backup.example.org/12345/0123abcd",
			Source: snapshot.Source{Kind: "cluster", Name: "prod", NP: 12}, Asof: time.Now(), Tip: snapshot.Sum(nil), Items: items}
		m.SumUp()
		b, err := m.Sign(signer)
		if err != nil {
			t.Fatal(err)
		}
		return int64(len(b))
	}
	one, two := encode([]snapshot.Item{{Segment: &list[0]}}), encode([]snapshot.Item{{Segment: &list[0]}, {Segment: &list[1]}})
	_, page, err := snapshot.NewPage(lineage, list)
	if err != nil {
		t.Fatal(err)
	}
	line := two - one
	return sizes{one - line, line, encode([]snapshot.Item{{Page: &page}}) - one + line}
}

// What a forecast takes for the sizes of notes and segments is how long they are.
func TestCostSizes(t *testing.T) {
	about := func(what string, got, want int64) {
		t.Helper()
		t.Logf("%s: %d bytes", what, got)
		if got < want*9/10 || got > want*11/10 {
			t.Errorf("%s has %d bytes, the forecast says %d", what, got, want)
		}
	}
	sz := manifestSizes(t)
	about("a manifest", sz.first, costManifest)
	about("a line", sz.line, costLine)
	about("the line of a page", sz.page, costPage)
	w := newWorld(t, 1, true)
	w.setup = func(o *Options) { o.limits = usual }
	wr := w.must()
	defer wr.Close()
	tail := func(n int) (note, segment int64) {
		t.Helper()
		for range n {
			data := make([]byte, 3000)
			for i := range data {
				data[i] = byte(w.rnd.Uint32())
			}
			w.feed.Commit(feedtest.Transaction{User: "admin", Description: "change", Records: []txn.Record{{OID: 1, Data: data}}})
		}
		if err := wr.chain.flush(t.Context(), w.last(), time.Now(), true); err != nil {
			t.Fatal(err)
		}
		last := wr.chain.tails[len(wr.chain.tails)-1]
		return last.NoteSize(), last.Bytes
	}
	note, one := tail(1)
	_, two := tail(2)
	about("the note of a tail", note, costNote)
	about("a segment", 2*one-two, costSegment)
}

// TestCosts simulates what the plan costs. With -v it
// prints the table that is in DESIGN.md.
func TestCosts(t *testing.T) {
	const day = 24 * 3600
	for _, tt := range []struct {
		interval time.Duration
		commits  string
		perDay   float64
		days     int
	}{
		{time.Second, "5/s", 5 * day, 4},
		{time.Second, "3/min", day / 20, 40},
		{10 * time.Second, "5/s", 5 * day, 10},
		{10 * time.Second, "3/min", day / 20, 40},
		{time.Minute, "5/s", 5 * day, 20},
		{time.Minute, "3/min", day / 20, 40},
		{time.Second, "idle", 0, 40},
	} {
		o := CostOptions{Interval: tt.interval, Heartbeat: 5 * time.Minute, SegmentSize: 128 << 20, Commits: tt.perDay, Merged: 4400}
		small := usual.simulate(o, tt.days, 1)
		o.Sealed = 8000
		large := usual.simulate(o, tt.days, 1)
		perDay := func(n int64) int64 { return n / int64(tt.days) }
		t.Logf("| %v | %s | %d | %d | %.2f | %.2f | %.2f | %d |", tt.interval, tt.commits, perDay(small.puts), perDay(small.manifests), float64(perDay(small.puts))*30*5/1e6,
			amplification(small), amplification(large), small.open)
		// After a flush comes the interval, and if nothing came meanwhile the time until the
		// next commit, with a heartbeat for each 5 minutes without a tail.
		tails, manifests := 288.0, 4.5
		if rate := tt.perDay / day; rate > 0 {
			i := tt.interval.Seconds()
			tails = day / (i + math.Exp(-rate*i)/rate)
			manifests = max(tails/64, float64(small.fresh)/float64(tt.days)/(8<<20)*0.93) // a tail more than the limit
		}
		if got := float64(perDay(small.manifests)); got < manifests*0.9-1 || got > manifests*1.1+1 {
			t.Errorf("interval %v, %s: %.0f manifests a day, want %.0f", tt.interval, tt.commits, got, manifests)
		}
		// Each manifest comes with one merge, and few more.
		if got := float64(perDay(small.puts)); got < tails || got > tails*1.03+2.2*manifests {
			t.Errorf("interval %v, %s: %.0f PUTs a day, want %.0f for tails and %.0f for manifests", tt.interval, tt.commits, got, tails, 2*manifests)
		}
		if small.open > 127 || large.open > 127 {
			t.Errorf("interval %v, %s: %d open segments", tt.interval, tt.commits, small.open)
		}
		for _, p := range small.publications {
			if p.tails < 64 && p.bytes <= 8<<20 && p.age < 24*time.Hour {
				t.Fatalf("a manifest after %+v", p)
			}
		}
	}
}

func amplification(c *costs) float64 {
	if c.fresh == 0 {
		return 0
	}
	return float64(c.uploaded) / float64(c.fresh)
}
