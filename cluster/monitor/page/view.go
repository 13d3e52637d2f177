package page

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
)

// view is what the page shows: texts, in the order in which they stand there.
type view struct {
	Title    string
	Cluster  string
	State    string
	Health   string // ok, degraded, down
	Mark     string // the same, as a sign
	Verdict  string // the same, in words
	Reasons  []string
	More     int // reasons that are left out
	Now      moment
	Interval int // seconds
	Version  string
	Admin    string

	Facts   []fact
	Work    []work
	Nodes   []node
	Clients string // "" if there are none
	Map     *partitions
}

// fact is a number with its name.
type fact struct {
	Name, Value, Note string
	Time              *moment // instead of Note
	Chart             *chart
	Bad               bool
}

// work is something that goes on, or has ended.
type work struct {
	Name  string
	Bad   bool
	Text  string
	Lines []string
	// Done of Total is drawn as a bar; there is none if Total is 0.
	Done, Total float64
	Percent     string
}

type node struct {
	ID, Type, State, Host, Database, Address, Version string
	Since                                             *moment
	Primary, Bad                                      bool
	Commits, Loads                                    string // per second
	Cells                                             string
}

// partitions is the map of the partitions.
type partitions struct {
	Text  string
	Cells []string // states that occur beside UP_TO_DATE, for the legend
	List  []partition
	Wide  bool // the numbers have more than two digits
}

type partition struct {
	Number int
	Class  string // "", few, lost
	Title  string
	Cells  []cell
}

type cell struct {
	Node, Class, Letter, Title string
}

// moment is a time in words.
type moment struct {
	ISO, Text, Ago string
}

func momentOf(t, now time.Time) moment {
	t = t.UTC()
	return moment{t.Format(time.RFC3339), t.Format("2006-01-02 15:04:05") + " UTC", ago(now.Sub(t))}
}

// ago says how long something is ago, roughly.
func ago(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < 2*time.Second:
		return "now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", d.Round(time.Minute)/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", d.Round(time.Hour)/time.Hour)
	}
	return fmt.Sprintf("%d days ago", d.Round(24*time.Hour)/(24*time.Hour))
}

// duration says how long something takes, roughly.
func duration(s float64) string {
	d := seconds(s)
	if d < 2*time.Second {
		return "less than 2 s"
	}
	return strings.TrimSuffix(ago(d), " ago")
}

// seconds makes a duration of a number of seconds, which may be any.
func seconds(s float64) time.Duration {
	const most = 100 * 365 * 24 * 3600
	if math.IsNaN(s) {
		return 0
	}
	return time.Duration(max(-most, min(most, s)) * float64(time.Second))
}

// maxReasons is how many reasons are shown.
const maxReasons = 12

func newView(s *status.Status, cfg Config, commits, loads []point, repositories []repository) *view {
	h := s.Health()
	v := &view{
		Cluster: cmp.Or(s.Cluster, "unknown"), State: cmp.Or(s.State, "state unknown"), Health: h.Level.String(), Reasons: h.Reasons,
		Now: momentOf(s.Time, s.Time), Interval: max(1, int(cfg.Interval/time.Second)), Version: cfg.Version, Admin: s.Admin,
	}
	switch {
	case s.Unknown != "":
		v.Mark, v.Verdict = "✕", "Not known: the cluster cannot be asked"
	case h.Level == status.OK:
		v.Mark, v.Verdict = "✓", "Healthy: nothing needs attention"
	case h.Level == status.Degraded:
		v.Mark, v.Verdict = "!", "Degraded: it serves, but needs attention"
	default:
		v.Mark, v.Verdict = "✕", "Down: clients cannot read or write everything"
	}
	if len(v.Reasons) > maxReasons {
		v.Reasons, v.More = v.Reasons[:maxReasons], len(v.Reasons)-maxReasons
	}
	v.Title = fmt.Sprintf("%s %s: %s", v.Mark, v.Cluster, h.Level)
	v.partitions(s)
	v.facts(s, commits, loads)
	v.work(s)
	for i := range repositories {
		v.Work = append(v.Work, repositoryWork(&repositories[i], s.Time))
	}
	v.nodes(s)
	return v
}

// number writes a rate.
func number(f *float64) string {
	switch {
	case f == nil || math.IsNaN(*f):
		return "–"
	case *f < 10 && *f != math.Trunc(*f):
		return fmt.Sprintf("%.1f", *f)
	}
	return humanize.Comma(int64(math.Round(*f)))
}

func (v *view) facts(s *status.Status, commits, loads []point) {
	last := fact{Name: "Last transaction", Value: "–", Note: "not known"}
	if s.Last != nil {
		m := momentOf(s.Last.Time, s.Time)
		last.Value, last.Time, last.Note = m.Ago, &m, s.Last.TID.String()
	}
	v.Facts = append(v.Facts, last)
	if s.Backup != nil {
		m := momentOf(s.Backup.Time, s.Time)
		v.Facts = append(v.Facts, fact{Name: "Complete up to", Value: m.Ago, Time: &m, Note: s.Backup.TID.String()})
	}
	v.Facts = append(v.Facts, rate("Commits", s.CommitsPerSecond, commits, v.Interval), rate("Loads", s.LoadsPerSecond, loads, v.Interval))
	for _, typ := range []proto.NodeType{proto.Storage, proto.Master, proto.Client} {
		running, all := 0, 0
		for i := range s.Nodes {
			if n := &s.Nodes[i]; n.Type == typ.String() {
				all++
				if n.Running() {
					running++
				}
			}
		}
		f := fact{Name: title(typ.String()) + "s", Value: fmt.Sprint(running), Note: "connected"}
		if typ != proto.Client {
			f.Value, f.Note, f.Bad = fmt.Sprintf("%d of %d", running, all), "running", running < all
		}
		v.Facts = append(v.Facts, f)
	}
}

func rate(name string, now *float64, points []point, interval int) fact {
	f := fact{Name: name, Value: number(now), Note: "per second"}
	if now == nil {
		f.Note = "per second, not known"
	}
	if f.Chart = newChart(points); f.Chart != nil {
		f.Note = fmt.Sprintf("per second; at most %s in %s", number(&f.Chart.Max), duration(float64(len(points)*interval)))
	}
	return f
}

// title writes a word in capitals as a title: MASTER is Master.
func title(s string) string {
	if s == "" {
		return ""
	}
	return s[:1] + strings.ToLower(s[1:])
}

func percent(done, total float64) string {
	if !(total > 0) {
		return ""
	}
	return fmt.Sprintf("%.0f %%", math.Floor(100*min(1, max(0, done/total))))
}

func (v *view) work(s *status.Status) {
	v.replication(s)
	for _, i := range s.Imports {
		v.Work = append(v.Work, importWork(s, &i))
	}
	for _, b := range s.Backups {
		v.Work = append(v.Work, backupWork(s, &b))
	}
	if c := s.Check; c != nil {
		v.Work = append(v.Work, checkWork(s, c))
	}
	if p := s.Pack; p != nil {
		v.Work = append(v.Work, packWork(s, p))
	}
}

func (v *view) replication(s *status.Status) {
	if len(s.Replication) == 0 {
		return
	}
	w := work{Name: "Replication"}
	byNode := map[string]int{}
	var nodes []string
	for _, r := range s.Replication {
		if byNode[r.Node]++; byNode[r.Node] == 1 {
			nodes = append(nodes, r.Node)
		}
		if !r.Active {
			continue
		}
		line := fmt.Sprintf("%s copies partition %d", r.Node, r.Partition)
		switch {
		case r.Reached != nil && r.End != nil:
			line += fmt.Sprintf(": it has all up to %s, of %s", momentOf(r.Reached.Time, s.Time).Text, momentOf(r.End.Time, s.Time).Text)
		case r.End != nil:
			line += fmt.Sprintf(": transactions up to %s first, then records", momentOf(r.End.Time, s.Time).Text)
		}
		w.Lines = append(w.Lines, line)
	}
	slices.Sort(nodes)
	for i, id := range nodes {
		n := s.Node(id)
		nodes[i] = fmt.Sprintf("%s (%d)", id, byNode[id])
		if n == nil || !n.Running() {
			nodes[i] += ", which does not run"
		}
	}
	w.Text = fmt.Sprintf("%s to be copied: %s", count(len(s.Replication), "cell"), strings.Join(nodes, ", "))
	v.Work = append(v.Work, w)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return humanize.Comma(int64(n)) + " " + what + "s"
}

func importWork(s *status.Status, i *status.Import) work {
	w := work{Name: "Import of " + i.Node, Bad: i.Bad, Text: i.State}
	if i.Size != nil && i.Position != nil {
		w.Done, w.Total = float64(*i.Position), float64(*i.Size)
		w.Percent = percent(w.Done, w.Total)
		w.Text += fmt.Sprintf(", %s of %s", humanize.IBytes(uint64(max(0, *i.Position))), humanize.IBytes(uint64(max(0, *i.Size))))
	}
	if i.Rate > 0 && i.Left != nil {
		w.Text += fmt.Sprintf(", %s a second, %s left", humanize.IBytes(uint64(i.Rate)), duration(*i.Left))
	}
	if i.ComparedAt != nil && i.Differences != nil {
		w.Lines = append(w.Lines, fmt.Sprintf("compared with its sources %s: %s", momentOf(*i.ComparedAt, s.Time).Ago, count(int(*i.Differences), "difference")))
	}
	if i.Skipped > 0 {
		w.Lines = append(w.Lines, count(int(i.Skipped), "record")+" left out by order")
	}
	if i.Behind != nil && *i.Behind > 0 {
		w.Lines = append(w.Lines, count(int(*i.Behind), "transaction")+" still to be written back to the source")
	}
	if i.Note != "" {
		w.Lines = append(w.Lines, i.Note)
	}
	return w
}

func backupWork(s *status.Status, b *status.Backup) work {
	w := work{Name: "Backup cluster " + b.Cluster, Bad: !b.Linked}
	if b.Cluster == "" {
		w.Name = "Following the upstream cluster"
	}
	switch {
	case !b.Linked:
		w.Text = "not connected"
	case b.Due != nil && b.Behind:
		w.Text = duration(*b.Due) + " late"
	case b.Behind:
		w.Text = "behind"
	default:
		w.Text = "it has all that it is to have"
	}
	w.Lines = append(w.Lines, "it can be read up to "+b.ReadableTID.String())
	if b.Delay > 0 {
		w.Lines = append(w.Lines, "delayed by "+duration(b.Delay))
	}
	if b.HoldTID != nil {
		w.Lines = append(w.Lines, "held before "+b.HoldTID.String())
	}
	if b.Closed {
		line := "outside its times of work"
		if b.Opens != nil {
			line += ", which begin again at " + momentOf(*b.Opens, s.Time).Text
		}
		w.Lines = append(w.Lines, line)
	}
	if b.Note != "" {
		w.Lines = append(w.Lines, b.Note)
	}
	return w
}

func checkWork(s *status.Status, c *status.Check) work {
	w := work{Name: "Last check of replicas", Bad: len(c.Reasons()) > 0}
	switch {
	case c.Ended == nil:
		w.Name, w.Text = "Check of replicas", "goes on"
		if c.Begun != nil {
			w.Text += ", begun " + momentOf(*c.Begun, s.Time).Ago
		}
	case c.Complete:
		w.Text = "all compared, ended " + momentOf(*c.Ended, s.Time).Ago
	default:
		w.Text = "not all could be compared, ended " + momentOf(*c.Ended, s.Time).Ago
	}
	w.Lines = append(w.Lines, fmt.Sprintf("%s, %s, %s", count(c.Partitions, "partition"), count(c.Rows, "row"), count(c.Differences, "difference")))
	if len(c.Nodes) > 0 {
		w.Lines = append(w.Lines, "nodes that differ: "+strings.Join(c.Nodes, ", "))
	}
	if len(c.Differ) > 0 {
		w.Lines = append(w.Lines, "differences in "+status.PartitionNames(c.Differ))
	}
	return w
}

func packWork(s *status.Status, p *status.Pack) work {
	w := work{Name: "Last pack"}
	switch {
	case p.Done:
		w.Text = "done"
	case !p.Signed:
		w.Text = "waits for an earlier order"
	default:
		w.Text = "goes on: " + strings.Join(p.Waiting, ", ")
	}
	w.Text += ", ordered " + momentOf(p.Order.Time, s.Time).Ago
	if p.UpTo != nil {
		what := "history"
		if p.Partial {
			what = "the history of some objects"
		}
		w.Lines = append(w.Lines, what+" before "+momentOf(p.UpTo.Time, s.Time).Text)
	}
	return w
}

func (v *view) nodes(s *status.Status) {
	var clients []string
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.Type == proto.Client.String() {
			clients = append(clients, n.ID)
			continue
		}
		o := node{
			ID: cmp.Or(n.ID, "–"), Type: title(n.Type), State: n.State, Host: n.Host, Database: n.Database, Address: n.Address, Version: n.Version,
			Primary: n.ID == s.Primary && n.ID != "", Bad: !n.Running(),
		}
		if n.Adapter != "" {
			o.Database = n.Adapter + " " + n.Database
		}
		since := n.Since
		if since == nil && n.Running() {
			since = n.Started
		}
		if since != nil {
			m := momentOf(*since, s.Time)
			o.Since = &m
		}
		if n.CommitsPerSecond != nil {
			o.Commits = number(n.CommitsPerSecond)
		}
		if n.LoadsPerSecond != nil {
			o.Loads = number(n.LoadsPerSecond)
		}
		if n.Type == proto.Storage.String() {
			o.Cells = cellsText(n.Cells)
		}
		v.Nodes = append(v.Nodes, o)
	}
	slices.SortStableFunc(v.Nodes, func(a, b node) int {
		order := func(n node) int {
			return slices.Index([]string{"Master", "Storage", "Admin"}, n.Type)
		}
		return cmp.Compare(order(a), order(b))
	})
	if len(clients) > 0 {
		const most = 40
		more := ""
		if len(clients) > most {
			more = fmt.Sprintf(" and %d more", len(clients)-most)
			clients = clients[:most]
		}
		v.Clients = strings.Join(clients, ", ") + more
	}
}

// states of cells, with the letters that neoctl has for them.
var states = []struct{ state, letter, text string }{
	{proto.UpToDate.String(), "U", "up to date"},
	{proto.OutOfDate.String(), "O", "out of date"},
	{proto.Feeding.String(), "F", "feeding"},
	{proto.Corrupted.String(), "C", "corrupted"},
}

func cellsText(cells map[string]int) string {
	var parts []string
	for _, s := range states {
		if n := cells[s.state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s.text))
		}
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func (v *view) partitions(s *status.Status) {
	if len(s.Partitions.Rows) == 0 {
		return
	}
	m := &partitions{}
	wanted := s.Partitions.Replicas + 1
	few, lost := 0, 0
	seen := map[string]bool{}
	for i, row := range s.Partitions.Rows {
		p := partition{Number: i}
		readable := 0
		var texts []string
		for j := range row {
			c := &row[j]
			o := cell{Node: c.Node, Class: "x", Letter: "?", Title: c.State}
			for _, known := range states {
				if c.State == known.state {
					o.Class, o.Letter, o.Title = strings.ToLower(known.letter), known.letter, known.text
				}
			}
			n := s.Node(c.Node)
			if n == nil || !n.Running() {
				o.Class, o.Title = "d", o.Title+", and its node does not run"
				o.Letter = "✕"
			} else if c.Readable() {
				readable++
			}
			if o.Letter == "U" {
				o.Letter = "" // as most are
			} else {
				seen[o.Class] = true
			}
			texts = append(texts, c.Node+" "+o.Title)
			p.Cells = append(p.Cells, o)
		}
		switch {
		case readable == 0:
			p.Class = "lost"
			lost++
		case readable < wanted:
			p.Class = "few"
			few++
		}
		p.Title = fmt.Sprintf("Partition %d: %s", i, cmp.Or(strings.Join(texts, "; "), "no cell"))
		m.List = append(m.List, p)
	}
	for _, l := range []struct{ class, text string }{{"o", "O out of date"}, {"f", "F feeding"}, {"c", "C corrupted"}, {"d", "✕ its node does not run"}, {"x", "? unknown"}} {
		if seen[l.class] {
			m.Cells = append(m.Cells, l.text)
		}
	}
	m.Wide = len(m.List) > 100
	all := len(m.List)
	m.Text = fmt.Sprintf("%s, %s wanted of each.", count(all, "partition"), map[bool]string{true: "one copy", false: fmt.Sprintf("%d copies", wanted)}[wanted == 1])
	switch {
	case lost == 0 && few == 0:
		m.Text += " All have them."
	default:
		if lost > 0 {
			m.Text += fmt.Sprintf(" %d cannot be read.", lost)
		}
		if few > 0 {
			m.Text += fmt.Sprintf(" %d can be read, but %s copies.", few, map[bool]string{true: "lacks", false: "lack"}[few == 1])
		}
	}
	v.Map = m
}
