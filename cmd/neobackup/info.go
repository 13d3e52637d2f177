package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type infoOptions struct {
	common
	lineage string
	fail    bool
}

func newInfoCommand(env *cli.Env) *cobra.Command {
	var o infoOptions
	cmd := &cobra.Command{
		Use:   "info [options]",
		Short: "Say what is in a repository, and how old that is",
		Long: `Say what a repository is: its newest transaction (head), what can be restored, since when the
writer has known of nothing newer (up to date), the writer, until when a drill has proved that it can be
restored, whether a drill failed since, and sizes. With a [schedule NAME] it says what the daemon of this host
has done, and what is due; what one on another host does is not known here.

With --fail, exit status 9 says that nothing was backed up yet, that the backup is older than max_rpo and
heartbeat allow together, or that the last proof is older than proof_max_age: for monitoring, from any host.` + exitStatus,
		Example: "  neobackup info\n  neobackup info --fail -q || mail -s 'backup is late' ops@example.org < /dev/null",
		Args:    cobra.NoArgs,
		RunE: o.command(env, o.with(env, func(ctx context.Context, s *session) error {
			return runInfo(ctx, env, &o, s)
		})),
	}
	cli.Text(cmd.Flags(), &o.lineage, "lineage", "", "", "another lineage than the current one: its number or the beginning of its id")
	cli.Flag(cmd.Flags(), &o.fail, "fail", "", "exit status 9 if the backup or its proof is too old, or there is none")
	o.addFlags(cmd)
	return cmd
}

// point is a transaction in a document.
type point struct {
	TID        tid.TID   `json:"tid"`
	Time       time.Time `json:"time"`
	AgeSeconds int64     `json:"age_seconds"`
}

func pointOf(t tid.TID, now time.Time) *point {
	if t == tid.Zero {
		return nil
	}
	return &point{t, t.Time(), int64(now.Sub(t.Time()).Seconds())}
}

// span is a range of exact TIDs, both included.
type span struct {
	From tid.TID `json:"from"`
	To   tid.TID `json:"to"`
}

// summary is the document of a lineage.
type summary struct {
	V          int    `json:"v"`
	Repository string `json:"repository"`
	ID         string `json:"id"`
	URL        string `json:"url"`
	Encryption string `json:"encryption"`

	Lineage string    `json:"lineage"`
	K       int64     `json:"k"`
	Current bool      `json:"current"`
	Created time.Time `json:"created"`
	Why     string    `json:"why"`

	Status string `json:"status"` // ok, empty, late, unproven (no proof, an old one, or a drill failed since), older or broken
	Text   string `json:"text"`
	Doomed string `json:"doomed,omitempty"` // doom list that announces the deletion of the lineage

	Head       *point     `json:"head,omitempty"`
	UpToDate   *time.Time `json:"up_to_date,omitempty"` // the source had nothing beyond head then
	RPOSeconds *int64     `json:"rpo_seconds,omitempty"`
	Exact      []span     `json:"exact,omitempty"`
	Writer     string     `json:"writer"`
	Proof      *proof     `json:"proof,omitempty"`         // the newest that says ok and still counts
	Further    *proof     `json:"further_proof,omitempty"` // an earlier one of a later moment, if there is one
	Failed     *proof     `json:"failed_drill,omitempty"`  // the last drill that failed since

	Source      snapshot.Source `json:"source"`
	SourceBytes int64           `json:"source_bytes,omitempty"` // of a file on this host
	Txns        int64           `json:"transactions"`
	Records     int64           `json:"records"`
	TextBytes   int64           `json:"text_bytes"`
	StoredBytes int64           `json:"stored_bytes"`
	Objects     int64           `json:"objects"`
	DayBytes    int64           `json:"stored_bytes_per_day"` // in the last week
	Manifest    int64           `json:"manifest"`
	Tail        int64           `json:"tail"`

	Next   []next      `json:"next,omitempty"`   // by the schedule, which a daemon has to carry out
	Daemon *daemonSeen `json:"daemon,omitempty"` // of this host
	Probed *time.Time  `json:"probed,omitempty"`
}

// next is when the daemon does something.
type next struct {
	Command string    `json:"command"`
	Time    time.Time `json:"time"`
}

// proof is what a drill has proved, or why it failed.
type proof struct {
	TID        tid.TID   `json:"tid"`
	Time       time.Time `json:"time"`
	AgeSeconds int64     `json:"age_seconds"`
	Mode       string    `json:"mode"`
	Source     string    `json:"source"` // digest, or none if it was not compared with that
	Key        string    `json:"key"`
	Reason     string    `json:"reason,omitempty"` // why it failed
}

// summarize reads all that info says of a lineage.
func (s *session) summarize(ctx context.Context, p *place, current bool) (*summary, error) {
	now := s.o.now()
	m := p.state.Manifest
	sum := &summary{
		V: 1, Repository: s.Marker.Name, ID: s.Marker.ID.String(), URL: s.set.URL, Encryption: s.Marker.Encryption,
		Lineage: p.lineage.Lineage.String(), K: p.lineage.K, Current: current, Created: p.lineage.Created, Why: p.lineage.Why,
		Head: pointOf(p.state.Head(), now), Exact: exactSpans(p.state), Writer: m.Writer, Source: m.Source, Manifest: m.Seq, Tail: p.state.Chain().N,
	}
	if n := len(p.state.Tails); n > 0 {
		sum.Writer = p.state.Tails[n-1].Writer
	}
	if at := p.asof(); !at.IsZero() {
		sum.UpToDate = &at
		age := int64(now.Sub(at).Seconds())
		sum.RPOSeconds = &age
	}
	week := tid.FromTime(now.AddDate(0, 0, -7))
	var recent int64
	for part, err := range s.Parts(ctx, p.state, tid.Zero, p.state.Head()) {
		if err != nil {
			return nil, err
		}
		if l := part.Segment; l != nil {
			sum.Objects++
			sum.Txns += l.Txns
			sum.Records += l.Records
			sum.TextBytes += l.Text
			sum.StoredBytes += l.Bytes
			if l.After >= week {
				recent += l.Bytes
			}
		}
	}
	sum.DayBytes = recent / 7
	if f := s.set.Source.File; f != "" {
		if st, err := os.Stat(f); err == nil {
			sum.SourceBytes = st.Size()
		}
	}
	if err := s.drills(ctx, sum, p.lineage.Lineage, now); err != nil {
		return nil, err
	}
	if sch := s.set.Schedule; sch != nil && current {
		for _, j := range sch.Jobs {
			sum.Next = append(sum.Next, next{j.Command, j.Times.Next(now)})
		}
	}
	if current && s.set.Name != "" {
		sum.Daemon = s.seenDaemon(now)
	}
	sum.Status, sum.Text = s.status(p, sum, now)
	if p.doomed != "" {
		sum.Doomed = p.doomed
		sum.Text = strings.TrimPrefix(sum.Text+"; ", "ok; ") + p.doomedText()
	}
	return sum, nil
}

// status returns the code and the text of how a lineage is.
func (s *session) status(p *place, sum *summary, now time.Time) (code, text string) {
	set := s.set
	switch {
	case p.broken != nil:
		return "broken", p.broken.Error()
	case p.older != nil:
		return "older", "newer objects were removed, or the store shows an old state: " + p.older.Error()
	case sum.Head == nil && sum.UpToDate == nil:
		return "empty", "nothing was backed up yet"
	case set.MaxRPO > 0 && (sum.UpToDate == nil || now.Sub(*sum.UpToDate) > set.MaxRPO+set.Heartbeat):
		if sum.UpToDate == nil {
			return "late", fmt.Sprintf("the first backup is not complete, max_rpo is %s", config.FormatDuration(set.MaxRPO))
		}
		return "late", fmt.Sprintf("up to date until %s, max_rpo is %s", sum.UpToDate.Format(time.RFC3339), config.FormatDuration(set.MaxRPO))
	case sum.Failed != nil:
		return "unproven", fmt.Sprintf("the drill of %s failed: %s", sum.Failed.Time.Format(time.RFC3339), sum.Failed.Reason)
	case set.ProofMaxAge > 0 && sum.Proof == nil:
		return "unproven", "no drill has proved a restore yet"
	case set.ProofMaxAge > 0 && time.Duration(sum.Proof.AgeSeconds)*time.Second > set.ProofMaxAge:
		return "unproven", fmt.Sprintf("the last proof is of %s, proof_max_age is %s", sum.Proof.Time.Format(time.RFC3339), config.FormatDuration(set.ProofMaxAge))
	}
	return "ok", "ok"
}

// exactSpans returns the ranges of TIDs that can be restored.
func exactSpans(st *backup.State) []span {
	head := st.Head()
	if head == tid.Zero {
		return nil
	}
	var list []span
	from := tid.TID(1)
	for _, h := range st.Holes() {
		if h.From >= from {
			list = append(list, span{from, min(h.From, head)})
		}
		from = h.To
	}
	if from <= head {
		list = append(list, span{from, head})
	}
	return slices.DeleteFunc(list, func(s span) bool { return s.From > s.To })
}

// drills reads what the drills of a lineage have proved.
func (s *session) drills(ctx context.Context, sum *summary, lineage snapshot.ID, now time.Time) error {
	list, err := s.Proofs(ctx, lineage)
	if err != nil {
		return err
	}
	proven, err := s.ProvenBy(ctx, list)
	if err != nil {
		return err
	}
	if proven != nil {
		sum.Proof = proofOf(proven, now)
		// Every second drill restores an earlier moment: what was proven before that still is.
		further, err := s.ProvenBy(ctx, slices.DeleteFunc(slices.Clone(list), func(p *backup.StoredProof) bool { return p.TID <= proven.TID }))
		if err != nil {
			return err
		}
		if further != nil {
			sum.Further = proofOf(further, now)
		}
	}
	for _, p := range list { // the newest first
		if proven != nil && p.Key == proven.Key {
			break
		}
		if p.Result == snapshot.ResultFailed {
			sum.Failed = proofOf(p, now)
			break
		}
	}
	return nil
}

func proofOf(p *backup.StoredProof, now time.Time) *proof {
	return &proof{TID: p.TID, Time: p.Time, AgeSeconds: int64(p.Age(now).Seconds()), Mode: p.Mode, Source: p.Compared.Source, Key: p.Key, Reason: p.Reason}
}

func runInfo(ctx context.Context, env *cli.Env, o *infoOptions, s *session) error {
	if o.fail && s.set.MaxRPO == 0 && s.set.ProofMaxAge == 0 {
		return cli.Usagef("--fail needs max_rpo or proof_max_age: give --set max_rpo=1m, or write it into the configuration file")
	}
	p, err := s.place(ctx, o.lineage)
	if err != nil {
		return err
	}
	current, err := s.Current(ctx)
	if err != nil {
		return err
	}
	sum, err := s.summarize(ctx, p, current.K == p.lineage.K)
	if err != nil {
		return err
	}
	if dir, err := s.stateDir(); err == nil {
		if last := lastProbe(dir, s.set); last != nil {
			sum.Probed = &last.Report.Time
		}
	}
	if o.json {
		if err := o.line(env.Stdout, sum); err != nil {
			return err
		}
	} else if !o.quiet {
		if err := printInfo(env, sum); err != nil {
			return err
		}
	}
	switch {
	case p.damaged() && o.quiet && !o.json:
		return fmt.Errorf("%s: %w: %s", sum.Repository, errDamage, sum.Text)
	case p.damaged():
		return &cli.Exit{Code: classify(ctx, errDamage).Exit}
	case o.fail && (sum.Status == "late" || sum.Status == "unproven" || sum.Status == "empty"):
		if o.json {
			return &cli.Exit{Code: classify(ctx, errOld).Exit}
		}
		return fmt.Errorf("%s: %w: %s", sum.Repository, errOld, sum.Text)
	}
	return nil
}

func size(n int64) string { return humanize.Bytes(uint64(max(n, 0))) }

// ago writes how long ago something was.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "in the future"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

func printInfo(env *cli.Env, sum *summary) error {
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	seconds := func(n int64) string { return ago(time.Duration(n) * time.Second) }
	encrypted := "encrypted"
	if sum.Encryption == snapshot.EncryptionNone {
		encrypted = "NOT encrypted"
	}
	line("repository", "%s, %s, %s", sum.Repository, encrypted, sum.URL)
	line("status", "%s", sum.Text)
	if sum.Head == nil {
		line("head", "none")
	} else {
		line("head", "%v  %s, %s", sum.Head.TID, when(sum.Head.TID), seconds(sum.Head.AgeSeconds))
	}
	if sum.UpToDate != nil {
		line("up to date", "%s, %s", sum.UpToDate.Format("2006-01-02 15:04:05"), seconds(*sum.RPOSeconds))
	}
	for i, e := range sum.Exact {
		name := ""
		if i == 0 {
			name = "restorable"
		}
		if e.From == 1 {
			line(name, "everything up to %v", e.To)
		} else {
			line(name, "%v  %s  to  %v  %s", e.From, when(e.From), e.To, when(e.To))
		}
	}
	name, until := "proven", "until"
	for _, p := range []*proof{sum.Further, sum.Proof} {
		if p != nil {
			line(name, "%s %v  %s, by the drill of %s, %s (%s)", until, p.TID, when(p.TID), p.Time.Format("2006-01-02 15:04"), seconds(p.AgeSeconds), p.Mode)
			name, until = "", "and at"
		}
	}
	if sum.Proof == nil {
		line("proven", "by no drill yet")
	}
	if p := sum.Failed; p != nil {
		line("drill failed", "%s, %s: %s", p.Time.Format("2006-01-02 15:04"), seconds(p.AgeSeconds), p.Reason)
	}
	line("writer", "%s", sum.Writer)
	source := fmt.Sprintf("%s %s", sum.Source.Kind, sum.Source.Name)
	if sum.SourceBytes > 0 {
		source += ", " + size(sum.SourceBytes)
	}
	line("source", "%s", source)
	line("contents", "%d transactions, %d records, %s of text", sum.Txns, sum.Records, size(sum.TextBytes))
	line("stored", "%s in %d objects, %s a day in the last week", size(sum.StoredBytes), sum.Objects, size(sum.DayBytes))
	which := "current"
	if !sum.Current {
		which = "old"
	}
	line("lineage", "%d (%s) %s, of %s, %s", sum.K, which, sum.Lineage, sum.Created.Format("2006-01-02"), sum.Why)
	printDaemon(sum, line)
	if sum.Probed != nil {
		line("store tried", "%s", sum.Probed.Format("2006-01-02 15:04"))
	}
	return w.Flush()
}

// printDaemon says what the schedule wants and what the daemon of this host has done. What one on another host does is
// not known here, but for what the repository tells.
func printDaemon(sum *summary, line func(name, format string, args ...any)) {
	const form = "2006-01-02 15:04"
	d := sum.Daemon
	switch {
	case d == nil && len(sum.Next) == 0:
		return
	case d == nil:
		line("daemon", "none has run on this host: the schedule needs neobackup daemon, here or on another host")
	case d.Error != "":
		line("daemon", "what one has done on this host cannot be read: %s", d.Error)
	case d.Running:
		line("daemon", "runs on this host")
	default:
		line("daemon", "does not run on this host; it did until %s UTC", d.Seen.Format(form))
	}
	if d != nil {
		for _, a := range d.Alarms {
			line("alarm", "since %s UTC: %s", a.Since.Format(form), a.Text)
		}
		for _, j := range d.Jobs {
			how := "ok"
			if j.Exit != 0 {
				how = fmt.Sprintf("exit status %d: %s", j.Exit, j.Text)
			}
			line("last "+j.Command, "%s UTC, %s", j.Time.Format(form), how)
		}
	}
	for _, n := range sum.Next {
		if d != nil && d.Running {
			line("next "+n.Command, "%s UTC", n.Time.Format(form))
		} else {
			line("due "+n.Command, "%s UTC, if a daemon runs then", n.Time.Format(form))
		}
	}
}

type listOptions struct {
	common
	lineages bool
}

func newListCommand(env *cli.Env) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:   "list [options]",
		Short: "List repositories, or the lineages of one",
		Long: `List the repositories of the configuration file, or the one that -r names, one on each
line: name, status, the time of the newest transaction, since when nothing newer is known, the time until which
a drill has proved that it can be restored, stored bytes, place.

With --lineages, the lineages of one repository. A lineage is a history that only grows; a
source that was truncated or packed begins another one.` + exitStatus,
		Example: "  neobackup list\n  neobackup list --lineages -r prod",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runList(ctx, env, &o) }),
	}
	cli.Flag(cmd.Flags(), &o.lineages, "lineages", "", "list the lineages of one repository")
	o.addFlags(cmd)
	return cmd
}

func runList(ctx context.Context, env *cli.Env, o *listOptions) (err error) {
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	var sets []*config.Repository
	if o.repo == "" && !o.lineages {
		f, err := o.file(env)
		if err != nil {
			return err
		}
		if f == nil {
			return cli.Usagef("which repositories? There is no %s: give -f FILE, or -r URL", defaultConfig)
		}
		for _, set := range f.Repositories {
			if err := o.apply(set, ""); err != nil {
				return err
			}
			sets = append(sets, set)
		}
	} else {
		set, err := o.settings(env)
		if err != nil {
			return err
		}
		sets = append(sets, set)
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	row := func(name string, sum *summary) error {
		if o.json {
			return o.line(env.Stdout, sum)
		}
		head, fresh, proven := "-", "-", "-"
		if sum.Head != nil {
			head = when(sum.Head.TID)
		}
		if sum.RPOSeconds != nil {
			fresh = ago(time.Duration(*sum.RPOSeconds) * time.Second)
		}
		if p := cmp.Or(sum.Further, sum.Proof); p != nil {
			proven = when(p.TID)
		}
		_, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, sum.Status, head, fresh, proven, size(sum.StoredBytes), sum.URL)
		return err
	}
	var errs []error
	for _, set := range sets {
		err := o.listOne(ctx, env, set, log, row)
		if err != nil && len(sets) > 1 && !errors.Is(err, errDamage) { // one that cannot be reached must not hide the others
			f := classify(ctx, err)
			if o.json {
				o.line(env.Stdout, map[string]any{"v": 1, "repository": set.Name, "url": set.URL, "error": f})
			} else {
				fmt.Fprintf(w, "%s\t%s\t-\t-\t-\t-\t%s\n", set.Name, f.Code, set.URL)
			}
		}
		if err != nil && len(sets) > 1 {
			err = fmt.Errorf("%s: %w", set.Name, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(append([]error{w.Flush()}, errs...)...)
}

func (o *listOptions) listOne(ctx context.Context, env *cli.Env, set *config.Repository, log *cli.Log, row func(string, *summary) error) error {
	s, err := o.openSettings(ctx, env, set, log, attempts)
	if err != nil {
		return err
	}
	lineages, err := s.Lineages(ctx)
	if err != nil {
		return err
	}
	current := lineages[len(lineages)-1]
	if !o.lineages {
		lineages = []*snapshot.Lineage{current}
	}
	var errs []error
	for _, l := range lineages {
		p, err := s.place(ctx, fmt.Sprint(l.K))
		if err != nil {
			return err
		}
		sum, err := s.summarize(ctx, p, l.K == current.K)
		if err != nil {
			return err
		}
		name := s.Marker.Name
		if o.lineages {
			name = fmt.Sprintf("%d %s %s", l.K, l.Lineage, l.Why)
		} else if set.Name != "" {
			name = set.Name
		}
		if err := row(name, sum); err != nil {
			return err
		}
		if p.damaged() {
			errs = append(errs, fmt.Errorf("%w: lineage %d: %s", errDamage, l.K, sum.Text))
		}
	}
	return errors.Join(errs...)
}
