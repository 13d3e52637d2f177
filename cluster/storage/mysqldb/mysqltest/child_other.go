//go:build !linux

package mysqltest

import "syscall"

const terminate = syscall.SIGTERM

func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
