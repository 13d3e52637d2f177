package cli

import (
	"fmt"
	"os"
	"syscall"
)

// toJournal reports whether stderr is read by the journal of systemd, which adds the time of
// each line itself, and takes its priority from the beginning of it.
func toJournal(env *Env) bool {
	f, ok := env.Stderr.(*os.File)
	if !ok || env.Getenv == nil {
		return false
	}
	stream := env.Getenv("JOURNAL_STREAM")
	if stream == "" {
		return false
	}
	fi, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
