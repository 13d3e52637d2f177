// Package config reads importer.conf, which says what is imported into what.
//
// # Invariant
//
// An [Import] is complete and makes sense: each source is reached from the one that is
// the root, and each key of the file was understood. What is wrong is refused with file and
// line. What is right but does nothing here is in [Import.Warnings].
package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// Import is a configuration file, complete and valid.
type Import struct {
	Path        string // of the file; "" if there is none
	Destination Destination
	Sources     []Source // in the order of the file; exactly one is the root: its OID is 0
	// Warnings are sentences about what the file says and an import does not do, with
	// file and line, for the log.
	Warnings []string
}

// Root returns the source that is the root.
func (i *Import) Root() *Source {
	for n := range i.Sources {
		if i.Sources[n].OID == 0 {
			return &i.Sources[n]
		}
	}
	return nil
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

// Storage is a ZConfig storage section. One of File, ZEO, NEO and Backup is set.
type Storage struct {
	Text   string // as in the file, without comments
	File   *File
	ZEO    *ZEO
	NEO    *NEO
	Backup *Backup
}

// String says in a few words what the storage is, without secrets.
func (s Storage) String() string {
	switch {
	case s.File != nil:
		return "Data.fs " + s.File.Path
	case s.ZEO != nil:
		return fmt.Sprintf("storage %s of the ZEO server %s", s.ZEO.Storage, strings.Join(s.ZEO.Servers, " "))
	case s.NEO != nil:
		return fmt.Sprintf("cluster %s of the masters %s", s.NEO.Name, s.NEO.Masters)
	case s.Backup != nil:
		return "backup repository " + s.Backup.URL
	}
	return "no storage"
}

// File is <filestorage>.
type File struct {
	Path    string // ~ is expanded; it may be relative to the working directory
	BlobDir string // of <filestorage> or of <blobstorage> around it; ~ is expanded
}

// ZEO is <zeoclient> or <clientstorage>.
type ZEO struct {
	Servers     []string // host:port, or the path of a socket
	Storage     string
	Wait        bool
	WaitTimeout time.Duration
	// <ssl>, if Cert is set; ~ is expanded. CA is a file or a directory of certificates,
	// "" for those of the system. Key is "" if it is in the file Cert.
	CA, Cert, Key string
	ServerName    string // that the certificate of the server is for; "": the host
	AnyName       bool   // the name in the certificate of the server does not matter
}

// NEO is <NEOStorage>.
type NEO struct {
	Name          string
	Masters       string // separated by spaces
	CA, Cert, Key string // all or none; ~ is expanded
}

// Backup is <neobackup>: a backup repository.
type Backup struct {
	URL          string
	VerifyKeys   []string // that are trusted
	IdentityFile string   // "": the repository is not encrypted; ~ is expanded
	Lineage      string   // 32 hexadecimal digits; "": the current one
	At           tid.TID  // the last transaction; 0: the last one that is there
	StateDir     string   // for the index; "": in memory; ~ is expanded
	CacheSize    int64    // bytes; 0: the default
}
