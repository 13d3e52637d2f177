package main

import "testing"

// A state directory that cannot be written keeps nothing from being restored.
func TestStateDirectoryReadOnly(t *testing.T) {
	const dir = "/proc/self" // not writable for root either
	w := newWorld(t)
	w.prepare("site.fs")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	w.want(0, "snapshot")
	for _, args := range [][]string{{"info"}, {"restore", w.path("x.fs")}} {
		_, stderr := w.want(0, append(args, "--set", "state_dir="+dir)...)
		w.says(stderr, `WARNING .*what was seen is not kept for the next time .*/proc/self`)
	}
}
