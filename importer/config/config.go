// Package config reads importer.conf, which says what is imported into what.
package config

import (
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// Import is a configuration file, complete and valid.
type Import struct {
	Path        string // of the file; "" if there is none
	Destination Destination
	Sources     []Source // in the order of the file; exactly one is the root: its OID is 0
}

// Destination is the first section: the database of the node.
type Destination struct {
	Section   string
	Adapter   string // SQLite, MySQL, MySQLdb, PyMySQL
	Database  string
	Engine    string
	Wait      time.Duration // negative: without end
	Compress  int           // zlib level, -1: its default; see NoCompression
	WriteBack bool
}

// NoCompression is a [Destination.Compress].
const NoCompression = -2

// Source is one of the other sections.
type Source struct {
	Section string
	// DatabaseName is the name under which other databases refer to this one.
	// Default: Section.
	DatabaseName string
	OID          tid.OID // what mount points lead to
	Mounts       []Mount // in the order of the file
	Storage      Storage
}

// Mount is a mount point of a source.
type Mount struct {
	Section string  // of what is mounted
	OID     tid.OID // of the mount point
}

// Storage is a ZConfig storage section. One of the fields is set.
type Storage struct {
	Text string // as in the file
	File *File
	ZEO  *ZEO
	NEO  *NEO
}

// File is <filestorage>.
type File struct {
	Path    string
	BlobDir string
}

// ZEO is <zeoclient> or <clientstorage>.
type ZEO struct {
	Servers       []string // host:port, or the path of a socket
	Storage       string
	Wait          bool
	WaitTimeout   time.Duration
	CA, Cert, Key string // <ssl>
}

// NEO is <NEOStorage>.
type NEO struct {
	Name          string
	Masters       string
	CA, Cert, Key string
}
