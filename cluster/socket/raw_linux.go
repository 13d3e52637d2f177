//go:build !race

package socket

import (
	"syscall"
	"unsafe"
)

// A socket that does not block needs not be entered as a system call that may: Go's
// scheduler would be told twice, and would wake a thread to watch it, which costs
// more than the call. For commits and loads of four clients, a storage takes 4 % less
// processor time than with syscall.Read and syscall.Write, a client 10 % and a master 30 %.

func read(fd uintptr, b []byte) (int, error) { return rawCall(syscall.SYS_READ, fd, b) }

func write(fd uintptr, b []byte) (int, error) { return rawCall(syscall.SYS_WRITE, fd, b) }

func rawCall(call, fd uintptr, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
