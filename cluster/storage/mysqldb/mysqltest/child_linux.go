package mysqltest

import "syscall"

const terminate = syscall.SIGTERM

// childAttr makes a child end when this process does, even if that is killed.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
