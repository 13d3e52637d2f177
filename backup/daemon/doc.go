// Package daemon runs all that a configuration file wants of its repositories: it follows
// sources, does jobs at their times, watches how old each backup is and when a restore of it
// was last proved, and tells when something is wrong and when it is over.
//
// What is done are commands, as on the command line: a [Repository] says how they are run.
// The daemon decides when. Decisions are functions of values and of the time (schedule.go,
// alarm.go); one goroutine for each repository carries them out, and none waits for that of
// another.
//
// # Invariant
//
// Nothing that fails here stops a backup: not another job, not another repository, not a notice
// that cannot be delivered, not a state file that cannot be written. What is wrong is an
// alarm until it is known to be over, across restarts.
package daemon
