package config

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/tid"
)

// Keys of the first section and of the others. Any other key of a source is a mount point.
var (
	destinationKeys = []string{"adapter", "database", "engine", "wait", "compress", "writeback"}
	sourceKeys      = []string{"storage", "oid", "database-name"}

	adapters = []string{"MySQL", "MySQLdb", "PyMySQL", "SQLite"}
	engines  = []string{"InnoDB", "RocksDB"}
)

// maxWait is the longest wait for the destination that is not one without end.
const maxWait = 365 * 24 * time.Hour

// ReadFile reads a configuration file. A leading ~ in the path is expanded.
func ReadFile(path string) (Import, error) {
	f, err := conf.ReadFile(path)
	if err != nil {
		if isDataFS(path) {
			err = fmt.Errorf("%s is a Data.fs: want the file that says what is imported and where to; `neomigrate plan %s --output importer.conf` writes one", path, path)
		}
		return Import{}, err
	}
	return read(f)
}

// isDataFS reports whether a file begins as a Data.fs does.
func isDataFS(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() // it was only read
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && (string(magic[:]) == "FS30" || string(magic[:]) == "FS21")
}

// Parse reads a configuration file. path is where it is. What is wrong with the text
// is a [*conf.SyntaxError], or tells its file and line in another way.
func Parse(r io.Reader, path string) (Import, error) {
	f, err := conf.Parse(r, path)
	if err != nil {
		return Import{}, err
	}
	return read(f)
}

func read(f *conf.File) (Import, error) {
	r := reader{file: f, sections: map[string]*conf.Section{}}
	r.imp.Path = f.Name()
	if err := r.read(); err != nil {
		return Import{}, err
	}
	return r.imp, nil
}

// reader makes an Import of a file.
type reader struct {
	file     *conf.File
	sections map[string]*conf.Section
	imp      Import
	readOnly int // line of a source that is not to be written to; 0: none
}

func (r *reader) errorf(line int, format string, args ...any) error {
	return &conf.SyntaxError{File: r.file.Name(), Line: line, Msg: fmt.Sprintf(format, args...)}
}

func (r *reader) warnf(line int, format string, args ...any) {
	r.imp.Warnings = append(r.imp.Warnings, r.errorf(line, format, args...).Error())
}

func (r *reader) read() error {
	names := r.file.Sections()
	if len(names) == 0 {
		return r.errorf(1, "there is no [section]: the first one says where the data go, each other one is a source")
	}
	if d, err := r.file.Section("DEFAULT"); err != nil {
		return err
	} else if keys := byLine(d); len(keys) > 0 {
		return r.errorf(d.KeyLine(keys[0]), "[DEFAULT] gives its keys to every section, and in a source they would be mount points: write %q into the sections that need it", keys[0])
	}
	for _, name := range names {
		s, err := r.file.Section(name)
		if err != nil {
			return err
		}
		if !utf8.ValidString(name) {
			return r.errorf(s.Line(), "the name of section [%q] is not UTF-8", name)
		}
		r.sections[name] = s
	}
	if err := r.destination(r.sections[names[0]], names[0]); err != nil {
		return err
	}
	if len(names) == 1 {
		return r.errorf(r.sections[names[0]].Line(), "there is no source: each section after [%s] is one", names[0])
	}
	for _, name := range names[1:] {
		if err := r.source(name); err != nil {
			return err
		}
	}
	if d := r.imp.Destination; d.WriteBack {
		line := r.sections[d.Section].KeyLine("writeback")
		if len(r.imp.Sources) > 1 {
			return r.errorf(line, "can not forward new transactions to splitted DB: writeback is possible with a single source, and there are %d", len(r.imp.Sources))
		}
		if s := r.imp.Sources[0].Storage; s.Backup != nil {
			return r.errorf(line, "writeback to the %v is not possible: only neobackup adds to a repository, and what follows this cluster may go on with it. Set writeback to false", s)
		} else if s.File == nil {
			return r.errorf(line, "writeback to the %v is not possible: only a Data.fs can be kept from all other writers for as long as new transactions are written to it. "+
				"Stop the server and name its file in a <filestorage>, or set writeback to false", s)
		}
		if r.readOnly > 0 {
			return r.errorf(r.readOnly, "with writeback (line %d) the source is written to: it can not be read-only", line)
		}
	}
	if err := r.unique(); err != nil {
		return err
	}
	return r.graph()
}

// byLine returns the keys of a section in the order of the file.
func byLine(s *conf.Section) []string {
	return slices.SortedFunc(slices.Values(s.Keys()), func(a, b string) int { return s.KeyLine(a) - s.KeyLine(b) })
}

// get returns a value of one line.
func (r *reader) get(s *conf.Section, key string) (value string, ok bool, err error) {
	value, ok, err = s.Get(key)
	if err == nil && strings.Contains(value, "\n") {
		err = r.errorf(s.KeyLine(key), "%s has several lines: a line that is indented continues the one above it", key)
	}
	return value, ok, err
}

func (r *reader) destination(s *conf.Section, name string) error {
	d := Destination{Section: name, Adapter: "MySQL", Compress: -1}
	for _, key := range byLine(s) {
		line := s.KeyLine(key)
		if !slices.Contains(destinationKeys, key) {
			if slices.Contains(sourceKeys, key) {
				return r.errorf(line, "%q is a key of a source, but the first section, [%s], says where the data go", key, name)
			}
			return r.errorf(line, "unknown key %q in [%s]%s", key, name, didYouMean(key, destinationKeys))
		}
		v, _, err := r.get(s, key)
		if err != nil {
			return err
		}
		switch key {
		case "adapter":
			if v == "Importer" {
				return r.errorf(line, "adapter %q is for the node: here is the one that receives the data, one of %s", v, strings.Join(adapters, ", "))
			}
			d.Adapter, err = v, oneOf(v, adapters)
		case "database":
			if d.Database = v; v == "" {
				err = fmt.Errorf("no value")
			}
		case "engine":
			d.Engine, err = v, oneOf(v, engines)
		case "wait":
			d.Wait, err = parseWait(v)
		case "compress":
			d.Compress, err = parseCompress(v)
		case "writeback":
			if d.WriteBack = v == "true"; v != "true" && v != "false" {
				err = fmt.Errorf("%q is neither true nor false", v)
			}
		}
		if err != nil {
			return r.errorf(line, "%s: %v", key, err)
		}
	}
	if d.Database == "" {
		return r.errorf(s.Line(), "[%s] has no database: it says where the data go", name)
	}
	if d.Engine != "" && d.Adapter == "SQLite" {
		return r.errorf(s.KeyLine("engine"), "engine is for MySQL: SQLite has none")
	}
	r.imp.Destination = d
	return nil
}

func oneOf(v string, list []string) error {
	if slices.Contains(list, v) {
		return nil
	}
	return fmt.Errorf("%q is none of %s%s", v, strings.Join(list, ", "), didYouMean(v, list))
}

// parseWait reads seconds. It keeps milliseconds.
func parseWait(v string) (time.Duration, error) {
	f, err := strconv.ParseFloat(v, 64)
	switch {
	case err != nil || math.IsNaN(f):
		return 0, fmt.Errorf("%q is not a number of seconds", v)
	case f < 0:
		return -time.Second, nil
	case f > maxWait.Seconds():
		return 0, fmt.Errorf("%q is more than a year: -1 is without end", v)
	}
	return time.Duration(math.Round(f*1000)) * time.Millisecond, nil
}

func parseCompress(v string) (int, error) {
	switch v {
	case "true", "zlib":
		return -1, nil
	case "false":
		return NoCompression, nil
	}
	level, ok := strings.CutPrefix(v, "zlib=")
	switch {
	case !ok:
		return 0, fmt.Errorf("%q is not a valid 'compress' option: want true, false, zlib or zlib=1 to zlib=9%s", v, didYouMean(v, []string{"true", "false", "zlib"}))
	case len(level) != 1 || level < "1" || level > "9":
		return 0, fmt.Errorf("%q: invalid compression level: want 1 to 9", v)
	}
	return int(level[0] - '0'), nil
}

// parseOID reads a decimal object id.
func parseOID(v string) (tid.OID, error) {
	n, err := strconv.ParseUint(v, 10, 64)
	if err == nil && n <= uint64(tid.MaxOID) && v[0] != '+' {
		return tid.OID(n), nil
	}
	hint := ""
	if n, err := strconv.ParseUint(v, 0, 64); err == nil && n <= uint64(tid.MaxOID) && v[0] != '+' {
		hint = fmt.Sprintf(": that is %d", n)
	}
	return 0, fmt.Errorf("%q is not the number of an object in decimal%s", v, hint)
}

func (r *reader) source(name string) error {
	s := r.sections[name]
	src := Source{Section: name, DatabaseName: name}
	points := map[tid.OID]string{}
	for _, key := range byLine(s) {
		line := s.KeyLine(key)
		if key == "storage" {
			var err error
			if src.Storage, err = r.storage(s, name); err != nil {
				return err
			}
			continue
		}
		if !slices.Contains(sourceKeys, key) {
			if err := r.checkMount(name, key, line); err != nil {
				return err
			}
		}
		v, _, err := r.get(s, key)
		if err != nil {
			return err
		}
		switch key {
		case "oid":
			if src.OID, err = parseOID(v); err != nil {
				return r.errorf(line, "oid: %v", err)
			}
		case "database-name":
			if src.DatabaseName = v; v == "" || !utf8.ValidString(v) {
				return r.errorf(line, "database-name: %q is no name", v)
			}
		default:
			m := Mount{Section: key}
			if m.OID, err = parseOID(v); err != nil {
				return r.errorf(line, "mount point of [%s]: %v", key, err)
			}
			if other, dup := points[m.OID]; dup {
				return r.errorf(line, "object %d of [%s] is already the mount point of [%s] (line %d)", m.OID, name, other, s.KeyLine(other))
			}
			points[m.OID] = key
			src.Mounts = append(src.Mounts, m)
		}
	}
	if !s.Has("storage") {
		return r.errorf(s.Line(), "[%s] has no storage: each section after the first one is a source", name)
	}
	r.imp.Sources = append(r.imp.Sources, src)
	return nil
}

// checkMount returns why a key is not the name of a section that can be mounted into
// the one named.
func (r *reader) checkMount(name, key string, line int) error {
	known := slices.Clone(sourceKeys)
	for _, section := range r.file.Sections()[1:] {
		if section == key && key != name {
			return nil
		}
		if section != key && strings.ToLower(section) == key {
			return r.errorf(line, "[%s] (line %d) can not be mounted: write its name in lower case, since keys are read in lower case", section, r.sections[section].Line())
		}
		if section != name {
			known = append(known, section)
		}
	}
	switch {
	case key == name:
		return r.errorf(line, "[%s] can not be mounted into itself", name)
	case slices.Contains(r.file.Sections(), key):
		return r.errorf(line, "[%s] says where the data go: it can not be mounted", key)
	case slices.Contains(destinationKeys, key):
		return r.errorf(line, "%q is a key of the first section, [%s]", key, r.imp.Destination.Section)
	}
	return r.errorf(line, "%q is neither a key of a source nor a section, whose mount point it would be%s", key, didYouMean(key, known))
}

// storage reads the ZConfig text of a source.
func (r *reader) storage(s *conf.Section, name string) (Storage, error) {
	text, _, err := s.Get("storage")
	if err != nil {
		return Storage{}, err
	}
	lines := strings.Split(text, "\n")
	at := s.ValueLines("storage")
	z := zparser{errorf: r.errorf, warnf: r.warnf, defines: map[string]string{}, line: func(i int) int {
		if len(at) != len(lines) { // text of references
			return s.KeyLine("storage")
		}
		return at[i]
	}}
	sections, err := z.parse(lines)
	if err != nil {
		return Storage{}, err
	}
	switch len(sections) {
	case 0:
		return Storage{}, r.errorf(s.KeyLine("storage"), "[%s] has no storage section, like <filestorage>, in its storage", name)
	case 1:
	default:
		return Storage{}, r.errorf(sections[1].line, "[%s] has two storages: each needs a section of its own", name)
	}
	storage, readOnly, err := z.storage(sections[0])
	if err != nil {
		return Storage{}, err
	}
	if readOnly > 0 {
		r.readOnly = readOnly
	}
	storage.Text = strings.TrimSpace(text)
	return storage, nil
}

// unique refuses what two sources can not share.
func (r *reader) unique() error {
	names, files := map[string]string{}, map[string]string{}
	for _, src := range r.imp.Sources {
		s := r.sections[src.Section]
		if other, dup := names[src.DatabaseName]; dup {
			line := s.KeyLine("database-name")
			if line == 0 {
				line = s.Line()
			}
			return r.errorf(line, "database-name %q is that of [%s] too; it is the name of the section unless given", src.DatabaseName, other)
		}
		names[src.DatabaseName] = src.Section
		if src.Storage.File == nil {
			continue
		}
		path := filepath.Clean(src.Storage.File.Path)
		if other, dup := files[path]; dup {
			return r.errorf(s.KeyLine("storage"), "[%s] and [%s] are the same file %s", other, src.Section, path)
		}
		files[path] = src.Section
	}
	return nil
}

// graph refuses sources without a place in the merged database, and warns of circles.
func (r *reader) graph() error {
	byName := map[string]*Source{}
	for i := range r.imp.Sources {
		src := &r.imp.Sources[i]
		byName[src.Section] = src
		if root := r.imp.Root(); src.OID == 0 && src != root {
			return r.errorf(r.sections[src.Section].Line(), "[%s] and [%s] both have oid 0, but only one can be the root: each other source needs the key oid, the object that its mount point leads to", root.Section, src.Section)
		}
	}
	root := r.imp.Root()
	if root == nil {
		first := r.sections[r.imp.Sources[0].Section]
		return r.errorf(first.KeyLine("oid"), "no source is the root: exactly one must have no oid, or 0")
	}
	seen := map[string]bool{}
	var path []string // from the root
	var visit func(src *Source)
	visit = func(src *Source) {
		seen[src.Section] = true
		path = append(path, src.Section)
		for _, m := range src.Mounts {
			if i := slices.Index(path, m.Section); i >= 0 {
				r.warnf(r.sections[src.Section].KeyLine(m.Section), "the mount points form a circle, %s -> %s: that is possible, but make sure it is meant", strings.Join(path[i:], " -> "), m.Section)
			}
			if !seen[m.Section] {
				visit(byName[m.Section])
			}
		}
		path = path[:len(path)-1]
	}
	visit(root)
	for _, src := range r.imp.Sources {
		if !seen[src.Section] {
			hint := ""
			if lower := strings.ToLower(src.Section); lower != src.Section {
				hint = fmt.Sprintf(" (and the section must be named [%s], since keys are read in lower case)", lower)
			}
			return r.errorf(r.sections[src.Section].Line(), "[%s] can not be reached from the root, [%s]: the database that it is mounted into needs a key %q with the oid of the mount point%s", src.Section, root.Section, strings.ToLower(src.Section), hint)
		}
	}
	return nil
}
