package proctest

import "syscall"

// childAttr makes programs end with the test, however it ends.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
