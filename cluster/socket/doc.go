// Package socket reads and writes sockets at the least cost: without waiting for
// whoever reads at the other end, which saves the switch to a goroutine that may
// wait, and without what Go does around system calls that may block. It also has what
// keeps logs of connections short: [Refusals] and [Waiting].
package socket
