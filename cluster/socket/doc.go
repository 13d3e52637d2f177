// Package socket writes to sockets without waiting for whoever reads, which saves
// the switch to a goroutine that may wait.
package socket
