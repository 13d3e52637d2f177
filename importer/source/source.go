// Package source opens what is imported: a Data.fs, a storage of a ZEO server, another
// cluster.
package source
