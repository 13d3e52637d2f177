package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/mail"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/daemon"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/systemd"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type daemonOptions struct{ common }

func newDaemonCommand(env *cli.Env) *cobra.Command {
	var o daemonOptions
	cmd := &cobra.Command{
		Use:   "daemon [options]",
		Short: "Do all that the configuration file wants, as a service",
		Long: `Follow all sources of the configuration file, run the jobs of its sections [schedule NAME] at their times
(UTC), watch how old each backup and its last proof is (max_rpo, proof_max_age), and tell by webhook or mail
([notify]) when something is wrong, once a day while it is, and when it is over. Until SIGINT or SIGTERM; what was
committed until then is stored first. It may be killed at any time.

A job is the command of its name, with the options behind its times; "prune" is confirmed by being in the
schedule. A job does not overlap itself, and those of one repository run one after the other, beside "follow".
A run that was missed since no daemon ran is made up for at the next start, once.

A source that cannot be followed until something is done about it (exit status 2, 4, 6 or 7 of "follow") is left
alone with an alarm, and all else goes on; every other error is tried again. The daemon ends, with that
exit status, only when nothing is left to do. Settings are read when it starts.

On a host without "follow", the same alarms are raised from what the store shows: a writer that is dead is
noticed within two heartbeats. That costs 2 LIST and up to 1 GET in each minute, about 0.45 USD a month.

[metrics] listen serves /metrics for Prometheus and /healthz. Under systemd, use the units in contrib/systemd.` + exitStatus,
		Example: "  neobackup daemon -f /etc/neo/neobackup.conf\n  systemctl enable --now neobackup",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runDaemon(ctx, env, &o) }),
	}
	o.addFlags(cmd)
	o.Informs(cmd.Flags())
	return cmd
}

// manager returns what tells a service manager that a command is ready.
func manager(env *cli.Env) *systemd.Manager { return systemd.NewManager(env.Getenv(systemd.Socket)) }

func runDaemon(ctx context.Context, env *cli.Env, o *daemonOptions) (err error) {
	if isURL(o.repo) {
		return cli.Usagef("-r %s: the daemon needs a configuration file: -f FILE, and the name of one of its repositories, or none for all", o.repo)
	}
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	defer log.Crashed()
	f, err := o.file(env)
	if err != nil {
		return err
	}
	if f == nil {
		return cli.Usagef("there is no %s: give -f FILE", defaultConfig)
	}
	sets := f.Repositories
	if o.repo != "" {
		set, err := f.Repository(o.repo)
		if err != nil {
			return wrong(err)
		}
		sets = []*config.Repository{set}
	}
	cfg := daemon.Config{Manager: manager(env), Log: log.Logger, Flushes: daemon.NewFlushes()}
	if cfg.Host, err = os.Hostname(); err != nil {
		return err
	}
	if cfg.Notifiers, err = notifiers(env, f); err != nil {
		return err
	}
	todo := false
	for _, set := range sets {
		if err := o.apply(set, ""); err != nil {
			return err
		}
		todo = todo || set.MaxRPO > 0 || set.ProofMaxAge > 0 || set.Schedule != nil && (set.Schedule.Follow || len(set.Schedule.Jobs) > 0)
		r, err := o.repository(env, f, set, log, cfg)
		if err != nil {
			return err
		}
		cfg.Repositories = append(cfg.Repositories, *r)
	}
	if !todo {
		return wrong(fmt.Errorf("%s: there is nothing to do: write a [schedule NAME] with follow: yes, or max_rpo or proof_max_age to watch a repository", f.Path))
	}
	if addr := f.Metrics.Listen; addr != "" {
		if cfg.Listener, err = new(net.ListenConfig).Listen(ctx, "tcp", addr); err != nil {
			return fmt.Errorf("[metrics] listen: %w", err)
		}
	}
	signals, stop := context.WithCancel(ctx)
	wait := log.HandleSignals(signals, func(io.Writer) {})
	defer wait()
	defer stop()
	defer ignoreHangup(log)()
	for _, set := range sets {
		o.announce(env, set)
	}
	return daemon.Run(ctx, cfg)
}

// announce says what is done with a repository.
func (o *daemonOptions) announce(env *cli.Env, set *config.Repository) {
	var list []string
	if sch := set.Schedule; sch != nil {
		if sch.Follow {
			list = append(list, "follow "+set.Source.String())
		}
		for _, j := range sch.Jobs {
			list = append(list, fmt.Sprintf("%s (next %s)", j.Command, j.Times.Next(o.now()).Format("2006-01-02 15:04")))
		}
	}
	if set.MaxRPO > 0 {
		list = append(list, "watch the age of the backup")
	}
	if set.ProofMaxAge > 0 {
		list = append(list, "watch the age of the proof")
	}
	if len(list) == 0 {
		list = append(list, "nothing")
	}
	o.say(env, "%s: %s", set.Name, strings.Join(list, ", "))
}

// ignoreHangup lets the daemon live when it is asked to read its configuration again, which it does not: to
// be ended by that would end the backup.
func ignoreHangup(log *cli.Log) (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range c {
			log.Warn("SIGHUP: the configuration is read at the start only: start the daemon again (systemctl restart neobackup)")
		}
	}()
	return func() {
		signal.Stop(c)
		close(c)
		<-done
	}
}

// daemonState returns where the daemon of this host notes what it has done for a repository.
func daemonState(env *cli.Env, set *config.Repository) (string, error) {
	if set.StateDir != "" {
		return filepath.Join(set.StateDir, "daemon.json"), nil
	}
	dir, err := defaultStateDir(env)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, set.Name+".daemon.json"), nil
}

// repository returns how the daemon looks after a repository.
func (o *daemonOptions) repository(env *cli.Env, f *config.File, set *config.Repository, log *cli.Log, cfg daemon.Config) (*daemon.Repository, error) {
	state, err := daemonState(env, set)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(state), 0o700); err != nil { // a disk of one repository must not end the backup of others
		log.Error("there is no state directory", "repository", set.Name, "err", err)
	}
	var mu sync.Mutex
	var w *writer.Writer
	all := &meter{}
	flushes := cfg.Flushes.WithLabelValues(daemon.Label(set.Name))
	hooks := func(job string, m *meter) *hooks {
		h := &hooks{file: f, log: &cli.Log{Logger: log.With("repository", set.Name, "job", job)}, meter: m}
		h.flush = func(took time.Duration) { flushes.Observe(took.Seconds()) }
		if job == "follow" {
			h.write = func(now *writer.Writer) {
				mu.Lock()
				defer mu.Unlock()
				w = now
			}
		}
		return h
	}
	return &daemon.Repository{
		Settings:  set,
		StateFile: state,
		Run: func(ctx context.Context, command string, options []string) daemon.Outcome {
			m := &meter{up: all}
			defer all.end(m)
			args := append([]string{command, "-r", set.Name, "--json", "-q"}, options...)
			return runInDaemon(withHooks(ctx, hooks(command, m)), env, args)
		},
		Open: func(ctx context.Context) (*backup.Repository, error) {
			m := &meter{up: all}
			o := &common{now: o.now, hooks: hooks("look", m)}
			s, err := o.openSettings(ctx, env, set.Clone(), o.hooks.log, lookAttempts)
			if err != nil {
				all.end(m) // it is tried again each minute
				return nil, err
			}
			return s.Repository, nil
		},
		Writer: func() (writer.Stats, bool) {
			mu.Lock()
			defer mu.Unlock()
			if w == nil {
				return writer.Stats{}, false
			}
			return w.Stats(), true
		},
		Requests: func() store.Stats { return all.stats() },
		Cost:     o.monthly(set),
	}, nil
}

// lookAttempts is how often the daemon tries a call when it looks at a repository: it looks again.
const lookAttempts = 3

// monthly returns a function that forecasts what a repository costs in a month.
func (o *daemonOptions) monthly(set *config.Repository) func(context.Context, *backup.Repository) (float64, error) {
	return func(ctx context.Context, repo *backup.Repository) (float64, error) {
		p, err := readPrices("")
		if err != nil {
			return 0, err
		}
		l, err := repo.Current(ctx)
		if err != nil {
			return 0, err
		}
		state, err := repo.State(ctx, l.Lineage, nil)
		if err != nil {
			return 0, err
		}
		lately, stored, objects, _, err := lately(ctx, repo, state, o.now())
		if err != nil {
			return 0, err
		}
		f := estimate(lately, set, stored, objects, p)
		return f.RequestsUSD + f.StorageUSD, nil
	}
}

// maxDocument is how much of what a command prints is read.
const maxDocument = 64 << 20

// document is what a daemon reads of what a command prints with --json.
type document struct {
	Error    *failure        `json:"error"`
	Damage   json.RawMessage `json:"damage"` // how many findings, or what they are
	Findings []struct {
		Kind    string `json:"kind"`
		Warning bool   `json:"warning"`
		Key     string `json:"key"`
		Text    string `json:"text"`
	} `json:"findings"`
	Least   *float64 `json:"least_seconds"` // of extend-locks
	Refused []string `json:"refused"`       // of prune: why nothing may be deleted
}

// runInDaemon runs a command of the daemon, and returns how it ended.
func runInDaemon(ctx context.Context, env *cli.Env, args []string) daemon.Outcome {
	log := hooksOf(ctx).log
	out := &limited{n: maxDocument}
	errs := &lines{log: log.Logger}
	code := cli.Run(ctx, &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: out, Stderr: errs, Getenv: env.Getenv}, newCommand)
	errs.flush()
	return outcome(args[0], code, out.Bytes(), errs)
}

// outcome returns how a command ended, by what it has printed.
func outcome(command string, code int, out []byte, errs *lines) daemon.Outcome {
	o := daemon.Outcome{Exit: code}
	if code != 0 {
		o.Code = "failed"
	}
	for line := range bytes.Lines(out) {
		var d document
		if err := json.Unmarshal(line, &d); err != nil {
			errs.log.Warn("what the command prints is not understood", "err", err)
			continue
		}
		if n, err := strconv.ParseInt(string(d.Damage), 10, 64); err == nil {
			o.Damage += n
		}
		var damage []string
		if json.Unmarshal(d.Damage, &damage) == nil && code == 3 {
			o.Message = strings.Join(damage, "; ")
		}
		var found []string
		for _, f := range d.Findings {
			if !f.Warning {
				found = append(found, cmp.Or(f.Text, f.Kind+" "+f.Key))
			}
		}
		if n := len(found); n > 0 {
			o.Message = found[0]
			if n > 1 {
				o.Message += fmt.Sprintf(" (and %d more)", n-1)
			}
		}
		if e := d.Error; e != nil {
			o.Code, o.Hint = e.Code, e.Hint
			if o.Message == "" || e.Exit != 3 {
				o.Message = e.Message
			}
		}
		if d.Least != nil {
			left := time.Duration(*d.Least * float64(time.Second))
			o.LockLeft = &left
		}
		if len(d.Refused) > 0 && o.Exit == 0 {
			o.Exit, o.Code, o.Message = 1, "refused", "nothing may be deleted: "+strings.Join(d.Refused, "; ")
		}
	}
	if code == 3 {
		o.Code, o.Damage = "damage", max(o.Damage, 1)
	}
	if o.Exit != 0 && o.Message == "" {
		o.Message = cmp.Or(errs.last, fmt.Sprintf("neobackup %s ended with exit status %d", command, code))
	}
	return o
}

// limited is a buffer that keeps n bytes and drops what is more.
type limited struct {
	bytes.Buffer
	n int
}

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(l.n-l.Len(), 0))])
	return len(p), nil
}

// lines logs what is written, line by line.
type lines struct {
	log  *slog.Logger
	mu   sync.Mutex
	part []byte
	last string // of an error, or of all
	told bool   // last is of an error
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for {
		line, rest, ok := bytes.Cut(l.part, []byte{'\n'})
		if !ok {
			return len(p), nil
		}
		l.tell(string(line))
		l.part = rest
	}
}

func (l *lines) tell(line string) {
	if line = strings.TrimSpace(line); line != "" {
		if _, text, ok := strings.Cut(line, "error: "); ok {
			l.last, l.told = text, true
		} else if !l.told {
			l.last = line
		}
		l.log.Warn(line)
	}
}

func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tell(string(l.part))
	l.part = nil
}

// notifiers returns where notices go.
func notifiers(env *cli.Env, f *config.File) ([]daemon.Notifier, error) {
	var list []daemon.Notifier
	if f.Notify.Webhook != "" {
		list = append(list, &daemon.Webhook{URL: f.Notify.Webhook})
	}
	if len(f.Notify.Email) == 0 {
		return list, nil
	}
	server, err := conf.ParseAddress(cmp.Or(f.Notify.SMTP, "localhost"), 25)
	if err != nil {
		return nil, wrong(fmt.Errorf("%s: [notify] smtp: %w", f.Path, err))
	}
	from := mail.Address{Name: "NEO backup", Address: env.Getenv("EMAIL")}
	if from.Address == "" {
		name := "neobackup"
		if u, err := user.Current(); err == nil { // a service may run as a user without name
			name = u.Username
		}
		host, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		from.Address = name + "@" + host
	}
	return append(list, mailer{&admin.Mailer{Server: server.String(), From: from, To: f.Notify.Email}}), nil
}

// mailer delivers notices by mail.
type mailer struct{ *admin.Mailer }

// Name implements [daemon.Notifier].
func (mailer) Name() string { return "email" }

// Notify implements [daemon.Notifier].
func (m mailer) Notify(ctx context.Context, n *daemon.Notice) error {
	return m.Send(ctx, n.Subject(), n.Body())
}

// daemonSeen is what info says of the daemon of this host.
type daemonSeen struct {
	Host    string    `json:"host"`
	Running bool      `json:"running"`
	Seen    time.Time `json:"seen,omitzero"`   // it ran then
	Error   string    `json:"error,omitempty"` // why nothing is known
	Jobs    []lastRun `json:"jobs,omitempty"`
	Alarms  []alarmed `json:"alarms,omitempty"`
}

// lastRun is the last run of a job.
type lastRun struct {
	Command string    `json:"command"`
	Time    time.Time `json:"time"`
	Exit    int       `json:"exit"`
	Text    string    `json:"text,omitempty"` // of its error
}

// alarmed is an alarm in force.
type alarmed struct {
	Alarm string    `json:"alarm"`
	Job   string    `json:"job,omitempty"`
	Since time.Time `json:"since"`
	Text  string    `json:"text"`
}

// seenDaemon returns what the daemon of this host has noted of the repository; nil: nothing.
func (s *session) seenDaemon(now time.Time) *daemonSeen {
	path, err := daemonState(s.env, s.set)
	if err != nil {
		return &daemonSeen{Error: err.Error()}
	}
	st, err := daemon.ReadStatus(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil: // it may be that of another user
		return &daemonSeen{Error: err.Error()}
	case st.Repository != s.set.Name:
		return nil
	}
	d := &daemonSeen{Host: st.Host, Running: st.Runs(now), Seen: st.Seen}
	for _, command := range slices.Sorted(maps.Keys(st.Jobs)) {
		if j := st.Jobs[command]; !j.Last.IsZero() {
			d.Jobs = append(d.Jobs, lastRun{command, j.Last, j.Exit, j.Text})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(st.Alarms)) {
		if a := st.Alarms[key]; a.Ended.IsZero() {
			d.Alarms = append(d.Alarms, alarmed{string(a.Kind), a.Job, a.Since, a.Text})
		}
	}
	return d
}
