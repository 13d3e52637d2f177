package main

import (
	"context"
	"errors"
	"fmt"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/copier"
	"github.com/neozodb/neo/backup/daemon"
	"github.com/neozodb/neo/backup/drill"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/keeper"
	"github.com/neozodb/neo/backup/repair"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/exporter"
)

// failure is what an error means to a script and to an operator.
type failure struct {
	Code    string `json:"code"`
	Exit    int    `json:"exit"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// hinted is an error that knows what to do next.
type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// errEncryption reports a repository that is encrypted and should not be, or the reverse.
var errEncryption = errors.New("encryption is not as configured")

// errOld reports a backup or a proof that is too old.
var errOld = errors.New("too old")

// errDamage is the end of a command that has printed what is damaged.
var errDamage = errors.New("damage was found")

// is returns whether an error is one of these.
func is(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// strange reports a source that is not known to have the head of the repository.
func strange(err error) bool {
	d, ok := errors.AsType[*writer.DivergedError](err)
	return ok && d.Common != d.Head
}

// classify returns what an error means. It is the only place that knows exit codes.
func classify(ctx context.Context, err error) failure {
	f := failure{Code: "failed", Exit: 1, Message: err.Error()}
	set := func(code string, exit int, hint string) { f.Code, f.Exit, f.Hint = code, exit, hint }
	exit, isExit := errors.AsType[*cli.Exit](err)
	stopped, isStopped := errors.AsType[*daemon.StoppedError](err)
	switch {
	case isStopped:
		set(stopped.Outcome.Code, stopped.Outcome.Exit, stopped.Outcome.Hint)
	case errors.Is(err, daemon.ErrBusy):
		set("busy", 6, "one daemon on a host looks after a repository: stop the other one")
	case isExit && exit.Code == 2:
		set("usage", 2, "")
	case isExit:
		set("failed", exit.Code, "")
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		set("interrupted", 1, "")
	case as[*absentError](err):
		set("absent", 2, "")
	case as[*conf.SyntaxError](err), as[*wrongError](err), is(err, config.ErrSecret, drill.ErrSetup):
		set("configuration", 2, "")
	case is(err, backup.ErrNoRepository):
		set("no_repository", 2, "check the URL; neobackup init URL makes a repository")
	case is(err, backup.ErrRepository):
		set("repository_exists", 2, "give another URL, or use the repository: neobackup info -r URL")
	case as[*backup.NotEmptyError](err):
		set("not_empty", 2, "a repository has a prefix or a directory of its own: give another URL")
	case is(err, snapshot.ErrVersion):
		set("version", 2, "use a newer neobackup; nothing was written")
	case is(err, backup.ErrNotExact):
		set("not_exact", 8, notExactHint(err))
	case is(err, errEncryption):
		set("encryption", 4, "encryption is fixed for the life of a repository: change recipients in the configuration, or make another repository")
	case is(err, backup.ErrTest):
		set("keys", 4, "give the file with the identity of the recipient; nothing is used that it does not open")
	case is(err, backup.ErrKeys), as[*age.NoIdentityMatchError](err):
		set("keys", 4, "give the identity of one of the recipients: --identity FILE or NEOBACKUP_IDENTITY")
	case is(err, snapshot.ErrUntrusted):
		set("untrusted", 4, "trust a key only if you know whose it is: verify_keys in the configuration, or --verify-key; init has printed it")
	case is(err, writer.ErrFenced):
		set("fenced", 6, "one writer at a time: stop the other one, then start this again; nothing that was acknowledged is lost")
	case is(err, writer.ErrBusy):
		set("busy", 6, "another neobackup of this host has the state directory: stop it, or let it do its work")
	case is(err, feed.ErrPacked, feed.ErrReplaced) && strange(err):
		set("diverged", 7, "if it is the same database all the same, run this again with --assume-same-history, once; if not, init makes another repository for it, and this one stays restorable")
	case is(err, feed.ErrPacked, feed.ErrReplaced):
		set("diverged", 7, "if the file is the right one, neobackup rebase --confirm reads it into a new lineage; so does the next run unless on_pack is stop in the configuration")
	case is(err, copier.ErrOther):
		set("repository_exists", 2, "a copy has a prefix or a directory of its own: give another TO")
	case is(err, copier.ErrUnknown):
		set("diverged", 7, "copy more often than FROM is pruned. If no writer has ever added to TO, run this again with --assume-same-history, once")
	case is(err, copier.ErrDiverged):
		set("diverged", 7, "a writer has added to TO: it has a history of its own. Give another TO, or copy the other way round, if TO is the one to go on with")
	case is(err, copier.ErrDoomed):
		set("doomed", 1, "run neobackup prune --undo for TO, then this again")
	case is(err, copier.ErrConflict):
		set("damage", 3, "neobackup check and verify list what is damaged in TO; repair mends it from FROM")
	case is(err, writer.ErrNothingToFork):
		set("nothing_to_fork", 1, "to begin a lineage at an earlier moment all the same: --at T --no-source")
	case is(err, writer.ErrNotCommon):
		set("diverged", 7, "--identity FILE finds the last transaction that both have; --at T --no-source takes another one")
	case is(err, writer.ErrGivenUp):
		set("doomed", 1, "run this again: it begins anew; the lineage before is as it was")
	case is(err, writer.ErrDoomed):
		set("doomed", 1, "run neobackup prune --undo where the keeper is, then this again")
	case is(err, writer.ErrDiverged, feed.ErrChanged):
		set("diverged", 7, divergedHint(err))
	case is(err, repair.ErrNoManifest):
		set("damage", 3, "neobackup recover puts the history together from what is stored; if only the keys are wrong, verify_keys in the configuration is the cause")
	case is(err, repair.ErrNotNeeded):
		set("not_needed", 1, "neobackup repair mends what the newest manifest names")
	case is(err, repair.ErrRefused):
		set("damage", 3, "more means may help: --from another copy of the repository, --against the source; --accept-gaps gives up what is left")
	case is(err, repair.ErrDiverged):
		set("diverged", 7, "only the source that was backed up can help")
	case is(err, repair.ErrDoomed):
		set("doomed", 1, "neobackup prune --undo cancels the newest doom list")
	case is(err, repair.ErrChanged):
		set("changed", 1, "run it again: it makes another plan")
	case is(err, errDamage):
		set("damage", 3, "what is listed cannot be relied on; moments before it can be restored still")
	case is(err, snapshot.ErrCorrupt, backup.ErrIncomplete, store.ErrChecksum), as[*backup.BrokenError](err), is(err, restore.ErrDifferent, drill.ErrDamaged):
		set("damage", 3, "neobackup check lists what is missing, neobackup verify reads everything; moments before the damage can be restored still")
	case as[*store.UnsuitableError](err):
		set("unsuitable", 5, "backups need a store with these guarantees: docs/backup.md says which servers have them")
	case is(err, store.ErrDenied), as[*store.LockedError](err):
		set("denied", 5, "check the credentials, and give them the permission: a writer puts, gets and lists below the prefix")
	case is(err, keeper.ErrNoKey):
		set("configuration", 2, "neobackup key sign keeper FILE makes one; keeper_key in the configuration names it, and verify_keys on every host has the key that it prints")
	case is(err, keeper.ErrRefused):
		set("refused", 1, "neobackup prune says of each lineage why it stays")
	case is(err, keeper.ErrCancelled):
		set("cancelled", 1, "neobackup prune shows what is announced now")
	case is(err, keeper.ErrNoLocks), is(err, errors.ErrUnsupported):
		set("no_locks", 5, "lock and lock_days in the configuration ask for locks, in a bucket that was made with object lock")
	case is(err, writer.ErrClock, keeper.ErrClock):
		set("clock", 5, "set the clock of this host (ntp), or tell the operator of the store")
	case is(err, store.ErrLied):
		set("unsuitable", 5, "the store must not be trusted: neobackup check --store says more")
	case is(err, errOld):
		set("old", 9, "neobackup info says since when; is the writer running, and does it reach source and store?")
	case is(err, restore.ErrNotEmpty):
		set("target", 1, "")
	case is(err, restore.ErrForeign):
		set("target", 1, "another restore has begun there: go on with that one, or discard what it left with --restart")
	case as[*exporter.NotPrefixError](err):
		set("target", 1, "--append is for the beginning of the same history: restore to another target")
	case is(err, restore.ErrSpace):
		set("space", 1, "free some, or restore elsewhere; --scratch names a directory for what is being read")
	case as[*exporter.InterruptedError](err):
		set("interrupted", 1, "run it again with --append: it goes on after what is there")
	case store.Temporary(err):
		set("store", 1, "the store does not answer: check the URL and the network, then run it again")
	}
	if h, ok := errors.AsType[*hinted](err); ok {
		f.Hint = h.hint
	}
	return f
}

func divergedHint(err error) string {
	d, ok := errors.AsType[*writer.DivergedError](err)
	switch {
	case ok && d.Common != 0 && d.Common < d.Head:
		return fmt.Sprintf("check that the source is the right one; if it is, neobackup fork --at %v begins a lineage that goes on from there, or, with --identity FILE, from the last transaction that both have; what the repository has beyond stays restorable", d.Common)
	case ok && d.Common == 0:
		return "check that the source is the right one; if it was restored from this repository, neobackup fork --identity FILE finds what both have; if it is another database, init makes another repository for it, and this one stays restorable"
	}
	return "check that the source is the right one; if it is, start the writer again: neobackup fork then begins a lineage that goes on from what both have"
}

func notExactHint(err error) string {
	e, ok := errors.AsType[*backup.NotExactError](err)
	if !ok {
		return ""
	}
	switch {
	case e.Before != 0 && e.After != 0 && e.After <= e.Head:
		return fmt.Sprintf("the nearest moments that are: %v (%s) and %v (%s)", e.Before, when(e.Before), e.After, when(e.After))
	case e.Before != 0:
		return fmt.Sprintf("the nearest moment that is: %v (%s), or --at latest", e.Before, when(e.Before))
	case e.After != 0 && e.After <= e.Head:
		return fmt.Sprintf("the nearest moment that is: %v (%s)", e.After, when(e.After))
	}
	return "nothing is restorable yet: the first backup is not complete"
}

// report tells an error and returns one with its exit code.
func (o *common) report(ctx context.Context, env *cli.Env, err error) error {
	if err == nil {
		return nil
	}
	if exit, ok := errors.AsType[*cli.Exit](err); ok && exit.Err == nil {
		return err // all is said
	}
	f := classify(ctx, err)
	if o.json {
		o.line(env.Stdout, map[string]any{"v": 1, "error": f})
		return &cli.Exit{Code: f.Exit}
	}
	if f.Code == "usage" || f.Code == "interrupted" {
		return err // cli tells them
	}
	fmt.Fprintf(env.Stderr, "error: %s\n", f.Message)
	if f.Hint != "" {
		fmt.Fprintf(env.Stderr, "hint: %s\n", f.Hint)
	}
	return &cli.Exit{Code: f.Exit}
}
