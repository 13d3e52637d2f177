// Package page is the status page of a cluster: what an admin knows of it, as a web page
// for people. It needs nothing but a browser, with or without scripts, and changes nothing.
//
// # Invariant
//
// The page never shows what is old for new: it says when it was collected, and when the
// cluster or the admin cannot be asked, it says that and why. Whatever nodes call themselves is
// text: it is escaped, and the policy of the page forbids what is not its own.
package page
