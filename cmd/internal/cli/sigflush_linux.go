//go:build linux && (amd64 || arm64)

package cli

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// SIGRTMIN is the one signal that os/signal cannot deliver: the Go runtime leaves
// number 34 to a C library (the flags of its table lack _SigNotify, so that signal.Notify
// has no effect), and it would kill the process. Operators and
// neolog --flush send it, therefore we install a handler of our own. It only
// writes a byte to a pipe; a goroutine does the rest. A process has one handler
// per signal, hence the package variables.
var (
	flushOnce sync.Once
	flushPipe *os.File // where handler's bytes are read
	flushErr  error
	//lint:ignore U1000 read by the handler: the other end
	flushFD int32
	//lint:ignore U1000 read by the handler
	flushByte byte
	flushTo   struct {
		sync.Mutex
		c chan<- os.Signal // nil: nobody wants it
	}
)

// flushHandlerPC returns the address of the handler, which is no Go function: it
// is entered by the kernel on the signal stack of any thread.
func flushHandlerPC() uintptr

// flushRestorerPC returns the address of what the handler returns to, or 0 if the
// kernel knows.
func flushRestorerPC() uintptr

// sigactiont is struct sigaction of the kernel.
type sigactiont struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const (
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
)

// notifyFlush sends SIGRTMIN to c until the result is called.
func notifyFlush(c chan<- os.Signal) (stop func(), err error) {
	flushOnce.Do(func() { flushErr = catchFlush() })
	if flushErr != nil {
		return func() {}, flushErr
	}
	set := func(c chan<- os.Signal) {
		flushTo.Lock()
		defer flushTo.Unlock()
		flushTo.c = c
	}
	set(c)
	return func() { set(nil) }, nil
}

func catchFlush() error {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
		return fmt.Errorf("pipe for signal %d: %w", sigFlush, err)
	}
	flushPipe, flushFD = os.NewFile(uintptr(fds[0]), "SIGRTMIN"), int32(fds[1])
	action := sigactiont{handler: flushHandlerPC(), flags: saOnStack | saRestart}
	if action.restorer = flushRestorerPC(); action.restorer != 0 {
		action.flags |= saRestorer
	}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sigFlush),
		uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(action.mask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("handler of signal %d: %w", sigFlush, errno)
	}
	go forwardFlush() // ends with the process, as the handler does
	return nil
}

func forwardFlush() {
	b := make([]byte, 64)
	for {
		if _, err := flushPipe.Read(b); err != nil {
			return
		}
		flushTo.Lock()
		if flushTo.c != nil {
			select {
			case flushTo.c <- sigFlush:
			default: // signals are waiting already
			}
		}
		flushTo.Unlock()
	}
}
