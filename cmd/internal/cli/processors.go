package cli

import (
	"os"
	"runtime"
	"time"
)

// UseProcessors bounds how many processors run the program at once, unless the
// environment does (GOMAXPROCS). Each packet of a node is little work: to wake a
// second processor for it costs more than it saves.
func UseProcessors(n int) {
	if !ownProcessors() {
		runtime.GOMAXPROCS(min(max(n, 1), runtime.GOMAXPROCS(0)))
	}
}

// ownProcessors reports that the environment says how many processors to use.
func ownProcessors() bool { return os.Getenv("GOMAXPROCS") != "" }

// UseProcessorsAsNeeded lets the program run on one processor while that is
// enough, and else on all. It is for programs that mostly do one thing at a time,
// and sometimes many.
func UseProcessorsAsNeeded() {
	if ownProcessors() || runtime.GOMAXPROCS(0) == 1 {
		return
	}
	last, ok := cpuTime()
	if !ok {
		return
	}
	runtime.GOMAXPROCS(1)
	go func() {
		p, wide := pace{}, false
		for begin := time.Now(); ; {
			time.Sleep(p.next())
			now, _ := cpuTime()
			end := time.Now()
			if want := p.wide(wide, now-last, end.Sub(begin)); want != wide {
				if wide = want; wide {
					runtime.SetDefaultGOMAXPROCS()
				} else {
					runtime.GOMAXPROCS(1)
				}
			}
			last, begin = now, end
		}
	}()
}

const (
	// One processor is not enough from this share of its time on, and all are too
	// many below the other.
	busyShare  = 0.85
	quietShare = 0.60
	// The use of processors is looked at so often, and less often while the program
	// does nothing.
	busyPeriod = 50 * time.Millisecond
	idlePeriod = time.Second
	idleShare  = 0.02
)

// pace decides when to look again, and what to use then.
type pace struct{ idle bool }

func (p *pace) next() time.Duration {
	if p.idle {
		return idlePeriod
	}
	return busyPeriod
}

// wide reports whether to use all processors, given what was used before.
func (p *pace) wide(wide bool, used, passed time.Duration) bool {
	share := float64(used) / float64(max(passed, 1))
	p.idle = share < idleShare
	if wide {
		return share >= quietShare
	}
	return share >= busyShare
}
