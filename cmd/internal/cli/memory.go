package cli

import (
	"os"
	"runtime/debug"
)

// importGC is the GOGC of a process that imports: the copy makes garbage all the time, beside an
// index of the source that stays, and most of its processor time goes elsewhere.
const importGC = 40

// SpareMemory makes a process that imports keep less garbage, unless GOGC says otherwise.
func SpareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(importGC)
	}
}
