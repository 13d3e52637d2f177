package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
)

// Outcome is how a command ended.
type Outcome struct {
	Exit    int
	Code    string // of the error, as commands print it; "": none
	Message string // of the error
	Hint    string // what to do about it
	Damage  int64  // findings of damage
	// LockLeft is the least time for which an object that is needed is still locked; nil: not known.
	LockLeft *time.Duration
}

// Exit codes of commands.
const (
	exitUsage   = 2
	exitDamage  = 3
	exitKeys    = 4
	exitWriter  = 6
	exitDiffers = 7
)

// Codes of errors that may end by themselves, although their exit status is one of those that do not.
const (
	busy         = "busy"          // another process has the state directory
	absent       = "absent"        // the directory of the repository is not there: a disk is not mounted
	noRepository = "no_repository" // or it is the empty one below it
)

// Fatal reports whether a source cannot be followed until an operator has done something: a wrong configuration,
// keys, another writer, another source.
func (o *Outcome) Fatal() bool {
	switch o.Code {
	case busy, absent, noRepository:
		return false
	}
	switch o.Exit {
	case exitUsage, exitKeys, exitWriter, exitDiffers:
		return true
	}
	return false
}

// Names of commands.
const (
	cmdFollow   = "follow"
	cmdSnapshot = "snapshot"
	cmdVerify   = "verify"
	cmdDrill    = "drill"
	cmdPrune    = "prune"
	cmdLocks    = "extend-locks"
)

// Repository is a repository as the daemon looks after it. Settings and Run are required.
type Repository struct {
	Settings *config.Repository
	// Run runs a command on the repository, and returns how it ended. It ends soon after ctx.
	Run func(ctx context.Context, command string, options []string) Outcome
	// Open opens the repository. It is called again after an error.
	Open func(ctx context.Context) (*backup.Repository, error)
	// StateFile is where the daemon keeps what it has to remember.
	StateFile string

	// Writer returns what the writer of the command follow says of itself; false: there is none now.
	Writer func() (writer.Stats, bool)
	// Requests returns what was asked of the store by all commands since the start.
	Requests func() store.Stats
	// Cost returns about what the repository costs in a month, in USD.
	Cost func(ctx context.Context, repo *backup.Repository) (float64, error)
}

// Every how often something is looked at.
const (
	tickEvery = 5 * time.Second // at most
	tickLeast = time.Second
	// lookEvery is how often a repository without writer on this host is looked at, at most.
	lookEvery = time.Minute
	// slowEvery is how often proofs and costs are looked at.
	slowEvery = time.Hour
	// lookTimeout bounds a look.
	lookTimeout = 5 * time.Minute
	// stuckLook is when a look counts as one that has failed although it has not ended.
	stuckLook = lookTimeout + time.Minute
	// holdRPO is how long the RPO must be exceeded.
	holdRPO = time.Minute
	// lockSoon is when the end of a lock is an alarm.
	lockSoon = 3 * 24 * time.Hour
	// followPatience is how long following may fail before that is an alarm.
	followPatience = time.Minute
	// blindAfter is how long a store may fail to answer looks before that is an alarm, where no RPO is found
	// by them.
	blindAfter = time.Hour
)

// A lane is a sequence of commands that do not run at the same time.
const (
	laneWrite = iota // those that add what the source has: they need the lock of the state directory
	laneRead         // all others
	lanes
)

// job is a job of the schedule.
type job struct {
	*config.Job
	lane    int
	rounds  int       // runs that read everything
	queued  time.Time // since when it waits or runs; zero: it does not
	running bool
	next    time.Time
	derive  bool // when it ran last is not known: the repository may tell
	begun   time.Time
}

// repo is a repository under way. Its goroutine is run; the mutex is for what looks at it.
type repo struct {
	Repository
	d    *daemon
	name string
	log  *slog.Logger
	lock interface{ Close() error } // of the state file

	events chan func(now time.Time)
	ctx    context.Context
	work   int // goroutines under way

	mu     sync.Mutex
	st     *Status
	alarms alarms
	jobs   []*job
	lanes  [lanes][]*job // waiting, the first one running

	follows     bool // the command follow is wanted
	following   bool // it runs
	stopped     *Outcome
	followBegan time.Time
	followAt    time.Time // when it is run again
	pause       time.Duration
	failing     time.Time // since when it fails; zero: it does not
	failure     Outcome
	apart       time.Time // since when it runs without an answer of the source; zero: it has one

	writer     writer.Stats // last known
	writerLive bool
	overSince  time.Time // the RPO is exceeded since

	repository *backup.Repository
	watcher    *watcher
	proofs     *proofs
	looking    bool
	lookBegan  time.Time
	lookAt     time.Time
	slowAt     time.Time
	sight      *Sight
	sightErr   error
	sightFrom  time.Time           // since when nothing was seen: the start, or the last look that saw something
	blindFrom  time.Time           // when the first of the looks was that have failed since then; zero: none has
	proof      *backup.StoredProof // newest that stands
	unproof    *backup.StoredProof // of a drill that has failed since
	proofKnown bool
	cost       float64

	damage   int64
	errors   map[string]int64
	lockLeft *time.Duration
	lockSeen time.Time

	saved   time.Time
	dirty   bool
	saveErr bool
	ticked  time.Time
}

func newRepo(d *daemon, set Repository, now time.Time) (*repo, error) {
	r := &repo{
		Repository: set, d: d, name: set.Settings.Name, log: d.log.With("repository", set.Settings.Name),
		events: make(chan func(time.Time)), alarms: alarms{}, errors: map[string]int64{}, sightFrom: now,
	}
	lock, err := writer.LockFile(set.StateFile+".lock", ErrBusy)
	switch {
	case errors.Is(err, ErrBusy):
		return nil, err
	case err != nil: // a full disk, or one that is not mounted, must not end the backup of others
		r.log.Error("what the daemon has to remember cannot be written; it goes on without", "err", err)
		r.lock = noLock{}
	default:
		r.lock = lock
	}
	r.st, err = ReadStatus(set.StateFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		// It may be lost: that costs a missed run, which must not keep a backup from being made.
		r.log.Warn("what the daemon has noted cannot be read, and is begun anew", "err", err)
	case r.st.Repository != r.name:
		r.log.Warn("what the daemon has noted is of another repository, and is begun anew", "file", set.StateFile, "other", r.st.Repository)
		err = fs.ErrNotExist
	}
	if err != nil {
		r.st = &Status{V: 1, Repository: r.name}
	}
	r.st.Host, r.st.Stopped, r.dirty = d.Host, false, true
	if r.st.Jobs == nil {
		r.st.Jobs = map[string]*JobRun{}
	}
	if r.st.Alarms != nil {
		r.alarms = r.st.Alarms
	}
	r.st.Alarms = r.alarms
	if sch := set.Settings.Schedule; sch != nil {
		r.follows = sch.Follow
		for i := range sch.Jobs {
			r.addJob(&sch.Jobs[i], now)
		}
	}
	for key, a := range r.alarms {
		if !r.wanted(a) {
			r.log.Warn("an alarm is given up: the configuration does not ask for it any more", "alarm", key, "text", a.Text)
			delete(r.alarms, key)
		}
	}
	return r, nil
}

// noLock stands for a lock that could not be taken.
type noLock struct{}

func (noLock) Close() error { return nil }

// wanted reports whether the configuration asks for what an alarm is about. If it does not, nothing
// would find that it is over.
func (r *repo) wanted(a *Alarm) bool {
	switch a.Kind {
	case Follow, Fenced, Diverged:
		return r.follows
	case RPO:
		return r.Settings.MaxRPO > 0
	case Proof:
		return r.Settings.ProofMaxAge > 0
	case Lock:
		return r.scheduled(cmdLocks)
	}
	switch a.Job {
	case "", jobLook:
		return true
	case cmdFollow:
		return r.follows
	}
	return r.scheduled(a.Job)
}

// scheduled reports whether a command is a job of the schedule.
func (r *repo) scheduled(command string) bool {
	return slices.ContainsFunc(r.jobs, func(j *job) bool { return j.Command == command })
}

func (r *repo) addJob(c *config.Job, now time.Time) {
	j := &job{Job: c, lane: laneRead, rounds: rounds(c)}
	if c.Command == cmdSnapshot {
		j.lane = laneWrite
	}
	r.jobs = append(r.jobs, j)
	run := r.st.Jobs[c.Command]
	if run == nil {
		run = &JobRun{}
		r.st.Jobs[c.Command] = run
	}
	if run.Tries >= maxTries {
		r.alarms.raise(now, Failed, c.Command, fmt.Sprintf("%s was begun %d times, and each time the daemon ended before it did", c.Command, run.Tries),
			fmt.Sprintf("look in the log of the system why neobackup daemon was killed, for instance for want of memory, and run neobackup %s -r %s by hand", c.Command, r.name))
		run.From, run.Tries, run.Started = run.Started, 0, time.Time{}
	}
	if run.From.IsZero() && (c.Command == cmdDrill || c.Command == cmdPrune) {
		j.derive = true // the next is planned when the repository has told
		return
	}
	r.plan(j, run, now)
}

// plan plans the next run of a job, and raises an alarm if one was missed.
func (r *repo) plan(j *job, run *JobRun, now time.Time) {
	last := run.From
	j.next, run.From = plan(j.Times, run.From, now)
	if j.next.IsZero() || now.Sub(j.next) < missedAfter {
		return
	}
	r.raise(now, Missed, j.Command, fmt.Sprintf("%s was due at %s, and the daemon did not run then (the last run began at %s)", j.Command, moment(j.next), moment(last)),
		fmt.Sprintf("it runs now, once. Look why neobackup daemon was not running on %s: systemctl status neobackup", r.d.Host))
}

// moment writes a time for people.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// nothing reports whether there is nothing left to do: nothing to follow, to run or to watch.
func (r *repo) nothing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return (!r.follows || r.stopped != nil) && len(r.jobs) == 0 && !r.watches()
}

// watches reports whether the age of the backup or of its proof is watched.
func (r *repo) watches() bool { return r.Settings.MaxRPO > 0 || r.Settings.ProofMaxAge > 0 }

// run looks after the repository until ctx ends, or nothing is left to do.
func (r *repo) run(ctx context.Context) {
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	r.ctx = working
	tick := time.NewTicker(min(tickEvery, max(tickLeast, r.Settings.Heartbeat/10)))
	defer tick.Stop()
	r.step(r.d.now())
	for ctx.Err() == nil && (!r.nothing() || r.work > 0) { // notices are sent first
		select {
		case <-ctx.Done():
		case do := <-r.events:
			r.locked(do)
		case <-tick.C:
		}
		if ctx.Err() == nil {
			r.step(r.d.now())
		}
	}
	// What runs is ended, and what it has done is noted.
	cancel()
	for r.work > 0 {
		r.locked(<-r.events)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.st.Stopped = true
	for _, run := range r.st.Jobs {
		if !run.Started.IsZero() { // it was ended in order, by a stop of the daemon
			run.Tries--
		}
	}
	r.save(r.d.now(), true)
}

func (r *repo) locked(do func(now time.Time)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	do(r.d.now())
}

// start runs f in a goroutine, and then what it returns in that of run. The caller holds the lock.
func (r *repo) start(f func(ctx context.Context) func(now time.Time)) {
	r.work++
	go func() {
		do := f(r.ctx)
		r.events <- func(now time.Time) {
			r.work--
			do(now)
		}
	}()
}

// step does what is due.
func (r *repo) step(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ticked.IsZero() && now.Before(r.ticked.Add(-clockBack)) {
		r.clockWentBack(now)
	}
	r.ticked = now
	r.stepFollow(now)
	r.stepJobs(now)
	r.stepLook(now)
	r.stepAlarms(now)
	r.tell(now)
	r.save(now, false)
}

// clockWentBack moves what was planned by a clock that was wrong.
func (r *repo) clockWentBack(now time.Time) {
	r.log.Warn("the clock of this host has gone back", "from", r.ticked, "to", now)
	for _, at := range []*time.Time{&r.followAt, &r.lookAt, &r.slowAt, &r.saved, &r.lookBegan, &r.sightFrom, &r.blindFrom, &r.overSince, &r.failing, &r.apart} {
		if at.After(now) {
			*at = now
		}
	}
}

// stepFollow starts the command follow, and looks at its writer.
func (r *repo) stepFollow(now time.Time) {
	r.seeWriter()
	if r.following {
		ran := now.Sub(r.followBegan)
		switch {
		case r.writerLive && r.writer.Connected:
			r.apart = time.Time{}
		case r.apart.IsZero():
			r.apart = now
		}
		switch {
		case !r.apart.IsZero() && now.Sub(r.apart) >= blindAfter && r.Settings.MaxRPO == 0: // else that alarm tells, and earlier
			r.raise(now, Follow, "", fmt.Sprintf("the source is not followed since %s: it or the store does not answer", moment(r.apart)),
				"it is tried again by itself. Look at the log of the daemon: journalctl -u neobackup")
		// One that fails again and again has to run for longer than one that failed once: its alarm would begin and end each time.
		case r.writerLive && (ran >= goodRun || r.pause <= followPatience && (r.writer.Waiting || ran >= followPatience)):
			r.followed(now)
		}
		return
	}
	if !r.follows || r.stopped != nil || now.Before(r.followAt) {
		return
	}
	r.following, r.followBegan = true, now
	r.start(func(ctx context.Context) func(time.Time) {
		out := r.Run(ctx, cmdFollow, nil)
		return func(now time.Time) { r.followEnded(out, now) }
	})
}

// seeWriter takes over what the writer of follow says of itself.
func (r *repo) seeWriter() {
	r.writerLive = false
	if r.following {
		if st, ok := r.Writer(); ok {
			r.writer, r.writerLive = st, true
		}
	}
}

// followed notes that the source is followed.
func (r *repo) followed(now time.Time) {
	r.failing = time.Time{}
	for _, k := range []Kind{Follow, Fenced, Diverged} {
		r.clear(now, k, "")
	}
	r.clear(now, Damage, cmdFollow)
}

// followEnded decides what becomes of the command follow.
func (r *repo) followEnded(out Outcome, now time.Time) {
	r.following = false
	if r.ctx.Err() != nil {
		return
	}
	if out.Exit == 0 { // it does not end without an error
		out = Outcome{Exit: 1, Code: "failed", Message: "follow has ended by itself"}
	}
	r.count(out)
	if out.Fatal() {
		r.stopped, r.failing = &out, time.Time{}
		r.log.Error("the source is not followed any more", "exit", out.Exit, "err", out.Message)
		kind := Follow
		switch {
		case out.Exit == exitWriter:
			kind = Fenced
		case out.Exit == exitDiffers:
			kind = Diverged
		}
		hint := "then start the daemon again: systemctl restart neobackup"
		if out.Hint != "" {
			hint = out.Hint + "; " + hint
		}
		for _, k := range []Kind{Follow, Fenced, Diverged} {
			if k != kind {
				r.clear(now, k, "")
			}
		}
		r.raise(now, kind, "", "the source is not followed any more: "+out.Message, hint)
		return
	}
	r.pause = nextPause(r.pause, now.Sub(r.followBegan))
	r.followAt = now.Add(r.pause)
	r.failure = out
	if r.failing.IsZero() {
		r.failing = now
	}
	r.log.Warn("follow has ended, and is started again", "pause", r.pause, "err", out.Message)
	if out.Exit == exitDamage {
		r.raise(now, Damage, cmdFollow, out.Message, out.Hint)
	}
}

// count counts an error.
func (r *repo) count(out Outcome) {
	if out.Exit != 0 {
		r.errors[cmp.Or(out.Code, "failed")]++
	}
}

// stepJobs starts what is due.
func (r *repo) stepJobs(now time.Time) {
	for _, j := range r.jobs {
		if j.derive {
			continue
		}
		run := r.st.Jobs[j.Command]
		if !j.queued.IsZero() {
			next, from := plan(j.Times, j.queued, now)
			if next.IsZero() || next.After(now) {
				j.queued = from
				continue
			}
			what := "was still running"
			if !j.running {
				what = "was still waiting for other jobs of the repository"
			}
			r.raise(now, Missed, j.Command, fmt.Sprintf("%s was due at %s, and the run before it %s", j.Command, moment(next), what),
				fmt.Sprintf("run it less often, or see why it takes so long: [schedule %s] in the configuration, and the log", r.name))
			j.queued = now
			continue
		}
		j.next, run.From = plan(j.Times, run.From, now)
		if j.next.IsZero() || j.next.After(now) {
			continue
		}
		j.queued = now
		r.lanes[j.lane] = append(r.lanes[j.lane], j)
	}
	for l := range r.lanes {
		if list := r.lanes[l]; len(list) > 0 && !list[0].running {
			r.startJob(list[0], now)
		}
	}
}

func (r *repo) startJob(j *job, now time.Time) {
	j.running, j.begun = true, now
	run := r.st.Jobs[j.Command]
	run.Started = now
	run.Tries++
	options := slices.Clone(j.Options)
	if j.Command == cmdPrune && !slices.Contains(options, "--confirm") {
		options = append(options, "--confirm") // that it is in the schedule is the confirmation
	}
	r.log.Info("a job begins", "job", j.Command, "options", options)
	r.save(now, true) // so that one that brings the process down is not begun without end
	r.start(func(ctx context.Context) func(time.Time) {
		out := r.Run(ctx, j.Command, options)
		return func(now time.Time) { r.jobEnded(j, out, now) }
	})
}

// jobEnded notes how a job ended.
func (r *repo) jobEnded(j *job, out Outcome, now time.Time) {
	due := j.queued // or the last one that was dropped
	j.running, j.queued = false, time.Time{}
	r.lanes[j.lane] = r.lanes[j.lane][1:]
	if r.ctx.Err() != nil && out.Exit != 0 {
		return // it was interrupted, and is run at the next start
	}
	run := r.st.Jobs[j.Command]
	*run = JobRun{From: due, Last: j.begun, Exit: out.Exit, Text: out.Message, Good: run.Good, Clean: run.Clean}
	r.count(out)
	r.damage += out.Damage
	if out.LockLeft != nil {
		r.lockLeft, r.lockSeen = out.LockLeft, now
	}
	if j.Command == cmdDrill {
		r.slowAt = now // there may be another proof
	}
	command := fmt.Sprintf("neobackup %s -r %s", j.Command, r.name)
	r.clear(now, Missed, j.Command) // it has run
	switch out.Exit {
	case 0:
		run.Good = j.begun
		r.log.Info("a job is done", "job", j.Command, "took", now.Sub(j.begun).Round(time.Second))
		r.clear(now, Failed, j.Command)
		if run.Clean++; run.Clean >= j.rounds {
			r.clear(now, Damage, j.Command)
		}
	case exitDamage:
		run.Clean = 0
		r.log.Error("a job has found damage", "job", j.Command, "err", out.Message)
		r.clear(now, Failed, j.Command)
		r.raise(now, Damage, j.Command, fmt.Sprintf("%s has found damage: %s", j.Command, out.Message),
			joined(out.Hint, fmt.Sprintf("%s names all that is damaged; neobackup repair -r %s says what can be done about it. What is not damaged can be restored", command, r.name)))
	default:
		r.log.Error("a job has failed", "job", j.Command, "exit", out.Exit, "err", out.Message)
		r.raise(now, Failed, j.Command, fmt.Sprintf("%s has failed: %s", j.Command, out.Message), joined(out.Hint, command+" tries it again now"))
	}
	r.save(now, true)
}

// rounds returns how many runs of a job without damage show that what one found is mended: each may read a share.
func rounds(c *config.Job) int {
	for _, o := range c.Options {
		share, ok := strings.CutPrefix(o, "--read-data=")
		if !ok || c.Command != cmdVerify {
			continue
		}
		if of, ok := strings.CutPrefix(share, "rotate/"); ok {
			if n, err := strconv.Atoi(of); err == nil {
				return n
			}
		}
		if p, ok := strings.CutSuffix(share, "%"); ok {
			if v, err := strconv.ParseFloat(p, 64); err == nil && v > 0 {
				return int(math.Ceil(300 / v)) // at random: it has read 95 % of all then
			}
		}
	}
	return 1
}

// joined joins two hints.
func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// stepLook looks at the repository.
func (r *repo) stepLook(now time.Time) {
	slow := !now.Before(r.slowAt)
	fast := !now.Before(r.lookAt) && r.needsSight()
	if r.looking && now.Sub(r.lookBegan) >= stuckLook {
		r.blind(errHangs, r.lookBegan) // no look ends before this one
	}
	if r.looking || !slow && !fast {
		return
	}
	r.looking, r.lookBegan = true, now
	derive := slices.ContainsFunc(r.jobs, func(j *job) bool { return j.derive })
	r.start(func(ctx context.Context) func(time.Time) {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		begin := r.d.now()
		sight, err := r.look(ctx)
		var doom time.Time
		var proof, unproof *backup.StoredProof
		var cost float64
		if err == nil && slow {
			proof, unproof, err = r.proofs.look(ctx, sight.Lineage)
			if err == nil && derive {
				doom, err = lastDoom(ctx, r.repository)
			}
			if err == nil && r.Cost != nil {
				if cost, err = r.Cost(ctx, r.repository); err != nil {
					r.log.Info("what the repository costs is not known", "err", err)
					err = nil
				}
			}
		}
		return func(now time.Time) {
			r.looking = false
			if r.ctx.Err() != nil {
				return
			}
			r.lookAt = now.Add(r.lookPause())
			if err != nil {
				r.notSeen(err, now)
				return
			}
			r.sight, r.sightErr, r.sightFrom, r.blindFrom = sight, nil, now, time.Time{}
			r.clear(now, Damage, jobLook)
			if slow {
				r.proof, r.unproof, r.proofKnown, r.cost = proof, unproof, true, cost
				r.slowAt = now.Add(slowEvery)
				r.derive(proof, doom, sight.Skew, now)
			}
			r.log.Debug("looked at the repository", "took", now.Sub(begin))
		}
	})
}

// jobLook stands for the look at a repository, in alarms.
const jobLook = "look"

// look looks at the repository, in a goroutine of its own: one at a time.
func (r *repo) look(ctx context.Context) (*Sight, error) {
	if r.repository == nil {
		repo, err := r.Open(ctx)
		if err != nil {
			return nil, err
		}
		r.repository = repo
		r.watcher = &watcher{repo: repo, quiet: r.Settings.Heartbeat + r.hold()/2, now: r.d.now}
		r.proofs = &proofs{repo: repo}
	}
	return r.watcher.look(ctx)
}

// notSeen notes that a look has seen nothing.
func (r *repo) notSeen(err error, now time.Time) {
	r.blind(err, now)
	r.slowAt = max2(r.slowAt, now.Add(lookEvery)) // not each second
	r.log.Warn("the repository cannot be looked at", "err", err)
	if is(err, errOlder, snapshot.ErrCorrupt, snapshot.ErrUntrusted, backup.ErrIncomplete) {
		r.raise(now, Damage, jobLook, err.Error(), fmt.Sprintf("neobackup check -r %s says more; find out how that came, and bring back what is gone, for instance from older versions of the bucket", r.name))
	}
}

// errHangs reports a store that does not even let a look be given up, as a directory of a server that is away.
var errHangs = errors.New("the store does not answer")

// blind notes why nothing is seen, and since when.
func (r *repo) blind(err error, since time.Time) {
	r.sightErr = err
	if r.blindFrom.IsZero() {
		r.blindFrom = since
	}
}

func max2(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func is(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
}

// needsSight reports whether how old the backup is has to be found in the store.
func (r *repo) needsSight() bool {
	return r.Settings.MaxRPO > 0 && (!r.follows || r.stopped != nil)
}

// lookPause returns the time between two looks: short enough for an alarm within two heartbeats.
func (r *repo) lookPause() time.Duration {
	return min(lookEvery, max(r.Settings.Heartbeat/4, tickLeast))
}

// derive plans the jobs whose last run only the repository knows.
func (r *repo) derive(proof *backup.StoredProof, doom time.Time, skew time.Duration, now time.Time) {
	for _, j := range r.jobs {
		if !j.derive {
			continue
		}
		j.derive = false
		run := r.st.Jobs[j.Command]
		switch {
		case j.Command == cmdDrill && proof != nil:
			run.From = proof.Modified.Add(-skew)
		case j.Command == cmdPrune && !doom.IsZero():
			run.From = doom.Add(-skew)
		}
		r.plan(j, run, now)
	}
}

// age returns how old what is not stored may be, or is; false: not known.
func (r *repo) age(now time.Time) (time.Duration, bool) {
	switch {
	case r.writerLive && r.writer.Waiting:
		return 0, true
	case r.follows && r.stopped == nil && !r.writer.Asof.IsZero():
		return max(now.Sub(r.writer.Asof), 0), true
	case r.sight != nil && !r.sight.Asof.IsZero():
		return max(now.Add(r.sight.Skew).Sub(r.sight.Asof), 0), true
	}
	return 0, false
}

// sightLimit returns how old what a store tells may be: an idle writer is silent for a heartbeat.
func (r *repo) sightLimit() time.Duration {
	return max(r.Settings.MaxRPO, r.Settings.Heartbeat) + r.hold()
}

// hold is for how long that must be exceeded. Halfway, another lineage is looked for.
func (r *repo) hold() time.Duration { return min(holdRPO, r.Settings.Heartbeat/2) }

// stepAlarms raises and clears the alarms about what the time brings.
func (r *repo) stepAlarms(now time.Time) {
	r.stepRPO(now)
	r.stepBlind(now)
	r.stepProof(now)
	if !r.failing.IsZero() && now.Sub(r.failing) >= followPatience {
		hint := "it is tried again by itself. Look at the log of the daemon: journalctl -u neobackup"
		r.raise(now, Follow, "", "the source is not followed: "+r.failure.Message, joined(r.failure.Hint, hint))
	}
	if r.lockLeft != nil {
		if left := *r.lockLeft - now.Sub(r.lockSeen); left < lockSoon {
			r.raise(now, Lock, "", fmt.Sprintf("the lock of an object that is needed ends in %s", span(left)), fmt.Sprintf("neobackup extend-locks -r %s, with the permission to extend retention; is extend_locks in [schedule %s]?", r.name, r.name))
		} else {
			r.clear(now, Lock, "")
		}
	}
	if r.sight != nil {
		if off := r.sight.Skew.Abs(); off > store.ClockWarning {
			r.raise(now, Clock, "", fmt.Sprintf("the clocks of %s and of the store differ by %s", r.d.Host, span(off)), "set the clock of the host (ntp), or tell the operator of the store; a writer stops at 15 minutes")
		} else {
			r.clear(now, Clock, "")
		}
	}
}

// span writes a duration for people.
func span(d time.Duration) string {
	switch {
	case d <= 0:
		return "no time"
	case d < 2*time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// stepBlind tells that proofs, clocks and when jobs were done last cannot be looked at. Where the age of the backup is found by looks, its
// alarm says so, and earlier.
func (r *repo) stepBlind(now time.Time) {
	switch {
	case r.needsSight(), r.blindFrom.IsZero() && r.sight != nil:
		r.clear(now, Failed, jobLook)
	case r.blindFrom.IsZero(): // the first look has not ended
	case now.Sub(r.blindFrom) >= blindAfter:
		r.raise(now, Failed, jobLook, fmt.Sprintf("the repository could not be read since %s: %v", moment(r.blindFrom), r.sightErr), fmt.Sprintf("neobackup info -r %s on %s says more", r.name, r.d.Host))
	}
}

func (r *repo) stepRPO(now time.Time) {
	set := r.Settings
	if set.MaxRPO == 0 {
		return
	}
	age, known := r.age(now)
	here := r.follows && r.stopped == nil
	if here {
		if !known {
			age = now.Sub(r.sightFrom)
		}
		if age <= set.MaxRPO {
			r.overSince = time.Time{}
			if known {
				r.clear(now, RPO, "")
			}
			return
		}
		if r.overSince.IsZero() {
			r.overSince = now
		}
		if now.Sub(r.overSince) < holdRPO {
			return
		}
		text := fmt.Sprintf("what was committed in the last %s may not be stored; max_rpo is %s", span(age), config.FormatDuration(set.MaxRPO))
		if !known {
			text = fmt.Sprintf("no complete backup is known, %s after the daemon began to look", span(age))
		} else if r.writerLive && !r.writer.Connected {
			text += "; the source cannot be reached"
		}
		r.raise(now, RPO, "", text, fmt.Sprintf("does this host reach the source and the store? journalctl -u neobackup tells what is tried; neobackup info -r %s says what is stored", r.name))
		return
	}
	limit := r.sightLimit()
	if r.sightErr == nil && r.sight != nil { // what was not looked at since may have changed
		age -= now.Sub(r.sightFrom)
	}
	var text string
	switch {
	case !known && now.Sub(r.sightFrom) > limit && r.sightErr != nil:
		text = fmt.Sprintf("the repository could not be read since %s: %v", moment(r.sightFrom), r.sightErr)
	case r.sight == nil:
		return
	case !known && r.sightFrom.Add(r.sight.Skew).Sub(r.sight.Newest) > limit:
		text = "the first backup is not complete, and nothing was stored lately"
	case known && age > limit:
		text = fmt.Sprintf("the backup is up to date until %s, %s ago; max_rpo is %s", moment(r.sight.Asof), span(age), config.FormatDuration(set.MaxRPO))
		if r.sightErr != nil {
			text += fmt.Sprintf("; the store cannot be read: %v", r.sightErr)
		}
	default:
		r.clear(now, RPO, "")
		return
	}
	host := "the host of the writer"
	if r.sight != nil && r.sight.Writer != "" {
		host += ", " + r.sight.Writer
	}
	r.raise(now, RPO, "", text, fmt.Sprintf("look on %s: does neobackup run there, and reach source and store? systemctl status neobackup; neobackup info -r %s", host, r.name))
}

func (r *repo) stepProof(now time.Time) {
	limit := r.Settings.ProofMaxAge
	if limit == 0 || !r.proofKnown || r.sight == nil {
		return
	}
	there := now.Add(r.sight.Skew)
	hint := fmt.Sprintf("neobackup drill -r %s, where the identity of the drill is, and read what it says", r.name)
	switch {
	case r.unproof != nil && !r.scheduled(cmdDrill): // here the job itself tells
		r.raise(now, Proof, "", fmt.Sprintf("the drill of %s has failed: %s", moment(r.unproof.Time), r.unproof.Reason), hint)
		return
	case r.proof == nil && there.Sub(r.sight.Created) <= limit:
		// It may still come in time.
	case r.proof == nil:
		r.raise(now, Proof, "", fmt.Sprintf("no restore was proved since the lineage began at %s; proof_max_age is %s", moment(r.sight.Created), config.FormatDuration(limit)), hint)
		return
	case r.proof.Age(there) > limit:
		r.raise(now, Proof, "", fmt.Sprintf("the last restore was proved at %s, until transaction %v; proof_max_age is %s", moment(there.Add(-r.proof.Age(there))), r.proof.TID, config.FormatDuration(limit)), hint)
		return
	}
	r.clear(now, Proof, "")
}

func (r *repo) raise(now time.Time, kind Kind, job, text, hint string) {
	if r.alarms.raise(now, kind, job, text, hint) {
		r.dirty = true
		r.log.Warn("alarm: "+text, "alarm", alarmKey(kind, job), "hint", hint)
	}
}

func (r *repo) clear(now time.Time, kind Kind, job string) {
	if r.alarms.clear(now, kind, job) {
		r.dirty = true
		r.log.Warn("an alarm is over", "alarm", alarmKey(kind, job))
	}
}

// tell has the notices sent that are due.
func (r *repo) tell(now time.Time) {
	for key, n := range r.alarms.due(now) {
		n.Host, n.Repository = r.d.Host, r.name
		if len(r.d.Notifiers) == 0 {
			r.alarms.told(now, key, n, true) // the log has it
			r.dirty = true
			continue
		}
		r.start(func(ctx context.Context) func(time.Time) {
			ok := r.d.send(ctx, n)
			return func(now time.Time) {
				r.alarms.told(now, key, n, ok)
				r.dirty = true
			}
		})
	}
}

// save writes what is to be remembered: at once, or if something changed or the last time is a while ago.
func (r *repo) save(now time.Time, force bool) {
	if !force && !r.dirty && now.Sub(r.saved) < seenEvery {
		return
	}
	changed := force || r.dirty || r.saveErr // what a full disk did not take
	r.saved, r.dirty = now, false
	r.st.Seen = now
	err := fs.ErrNotExist
	if !changed { // that the daemon runs is all there is to say
		err = os.Chtimes(r.StateFile, now, now)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = r.st.write(r.StateFile)
	}
	if err != nil && !r.saveErr {
		r.log.Warn("what the daemon has to remember cannot be written; it goes on without", "err", err)
	}
	r.saveErr = err != nil
}

// brief returns how the repository is, in a few words.
func (r *repo) brief() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seeWriter()
	list := r.alarms.inForce()
	switch {
	case len(list) > 0:
		return fmt.Sprintf("%s: %s", r.name, list[0].Text)
	case r.writerLive && r.writer.Head != tid.Zero:
		return fmt.Sprintf("%s: stored up to %s", r.name, moment(r.writer.Head.Time()))
	}
	return r.name + ": ok"
}
