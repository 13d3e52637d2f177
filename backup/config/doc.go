// Package config reads neobackup.conf: which repositories there are, what is backed up
// into each, and with which keys.
//
//	[repository prod]       one section for each
//	[schedule prod]         when the daemon does what
//	[drill prod]            how restores are tried
//	[notify] [metrics]      of the daemon, once
//
// The syntax is that of the other configuration files (cluster/conf). The keys of
// [DEFAULT] go for every section that knows them.
//
// # Invariant
//
// Whatever is not understood is refused with file and line: a key that is not spelt
// right must not turn encryption off. The file holds no secret, only where secrets are;
// a file of secrets that others than its owner can read is refused.
package config
