//go:build unix

package source

import "syscall"

// errReadOnlyFS is the error of making a file where nothing can be written.
var errReadOnlyFS error = syscall.EROFS
