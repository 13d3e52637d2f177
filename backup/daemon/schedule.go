package daemon

import "time"

// Times is when something is to be done. The first moment after t is the next one.
type Times interface{ Next(t time.Time) time.Time }

// clockBack is how far a noted time may be in the future without the clock having gone back.
const clockBack = time.Minute

// missedAfter is how late a run may begin without having been missed: a restart takes a moment.
const missedAfter = 10 * time.Minute

// maxTries is how often a run that ended with the process is begun again.
const maxTries = 3

// plan returns when the next run is due after the last one, and what last is taken for: the
// present if there was none, or if it is in the future, since the clock has gone back.
func plan(times Times, last, now time.Time) (next, from time.Time) {
	if last.IsZero() || last.After(now.Add(clockBack)) {
		last = now
	}
	return times.Next(last), last
}

// pauses are those before a command that follows a source is run again.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
	// goodRun is how long it must have run for its pauses to begin anew.
	goodRun = 10 * time.Minute
)

// nextPause returns the pause after one, for a command that ran for so long.
func nextPause(pause, ran time.Duration) time.Duration {
	if pause == 0 || ran >= goodRun {
		return firstPause
	}
	return min(2*pause, lastPause)
}
