package sqlitedb

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/neozodb/neo/cluster/conf"
)

// name is a parsed database string: a path, :memory:, or file:path?key=value.
type name struct {
	path    string // "" in memory
	pragmas [][2]string
}

// CheckName returns an error for a string that is not the value of option --database.
func CheckName(s string) error {
	_, err := parseName(s)
	return err
}

// parseName parses the value of option --database. Of the parameters of a URI
// only cache_size, journal_mode, synchronous and cksumvfs are known, each once.
func parseName(s string) (name, error) {
	if s == "" {
		return name{}, fmt.Errorf("database name is empty")
	}
	if s == ":memory:" {
		return name{}, nil
	}
	uri, ok := strings.CutPrefix(s, "file:")
	if !ok {
		path, err := conf.ExpandUser(s)
		return name{path: path}, err
	}
	path, query, _ := strings.Cut(uri, "?")
	if rest, ok := strings.CutPrefix(path, "//"); ok {
		i := strings.IndexByte(rest, '/')
		if i < 0 || rest[:i] != "" && rest[:i] != "localhost" {
			return name{}, fmt.Errorf("database %q: cannot name a file of another host", s)
		}
		path = rest[i:]
	}
	if path == "" {
		return name{}, fmt.Errorf("database %q: no path", s)
	}
	n := name{path: path}
	if path == ":memory:" {
		n.path = ""
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return name{}, fmt.Errorf("database %q: %w", s, err)
	}
	for k, v := range values {
		switch k {
		case "cache_size", "journal_mode", "synchronous", "cksumvfs":
		default:
			return name{}, fmt.Errorf("database %q: unknown parameter %s", s, k)
		}
		if len(v) != 1 {
			return name{}, fmt.Errorf("database %q: %s is given twice", s, k)
		}
		if k != "cksumvfs" {
			if !isWord(v[0]) {
				return name{}, fmt.Errorf("database %q: %q is not a value for %s", s, v[0], k)
			}
			n.pragmas = append(n.pragmas, [2]string{k, v[0]})
			continue
		}
		switch v[0] {
		case "0":
		case "1":
			return name{}, fmt.Errorf("database %q: cksumvfs is an extension of the C library, which this program cannot load", s)
		default:
			return name{}, fmt.Errorf("database %q: cksumvfs must be 0 or 1", s)
		}
	}
	return n, nil
}

func isWord(s string) bool {
	for i, r := range s {
		if !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_' || r == '-' && i == 0) {
			return false
		}
	}
	return s != ""
}

// dsn returns what the driver is to open. The path is escaped, so that nothing
// in it is taken for a parameter.
func (n name) dsn() string {
	if n.path == "" {
		return ":memory:"
	}
	prefix := "file:"
	if strings.HasPrefix(n.path, "//") {
		prefix = "file://" // no host
	}
	return prefix + strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(n.path)
}
