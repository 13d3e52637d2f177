//go:build !linux

package cli

// toJournal reports whether stderr is read by the journal of systemd, which other systems
// do not have.
func toJournal(*Env) bool { return false }
