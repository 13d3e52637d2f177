package client

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// URI is what neo://NAME@MASTER1,MASTER2?OPTIONS or neos://... names: the place
// of a cluster and how to use it. Format: the Python implementation's resolver
// for zodburi.
type URI struct {
	Cluster string
	Masters string // separated by spaces, as on a command line
	// Storage are the options of the storage, under their names with dashes, in
	// text form; Database all others, which are about the database on top of it.
	Storage, Database map[string]string
}

// storageOptions are the names of options of a storage.
var storageOptions = []string{
	"compress", "read-only", "cache-size", "logfile", "dynamic_master_list", "ignore-wrong-checksum", "ca", "cert", "key",
}

// ParseURI reads a URI. getenv gives the certificates that neos needs and the URI
// does not name: NEO_CA, NEO_CERT and NEO_KEY.
func ParseURI(s string, getenv func(string) string) (*URI, error) {
	fail := func(format string, args ...any) (*URI, error) {
		return nil, fmt.Errorf("uri %q: %s", s, fmt.Sprintf(format, args...))
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme != "neo" && scheme != "neos" {
		return fail("the scheme must be neo or neos")
	}
	if strings.Contains(rest, "#") {
		return fail("there must be no fragment")
	}
	place, query, _ := strings.Cut(rest, "?")
	if strings.Contains(place, "/") {
		return fail("there must be no path")
	}
	name, masters, ok := strings.Cut(place, "@")
	if !ok {
		return fail("want NAME@MASTERS")
	}
	name, err := url.PathUnescape(name)
	if err != nil {
		return fail("%v", err)
	}
	u := &URI{Cluster: name, Masters: strings.Join(strings.Split(masters, ","), " "), Storage: map[string]string{}, Database: map[string]string{}}
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if value == "" { // blank values are left out
			continue
		}
		if key, err = url.QueryUnescape(key); err == nil {
			value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return fail("%v", err)
		}
		dashed := strings.ReplaceAll(key, "_", "-")
		switch {
		case key == "name" || key == "master_nodes" || dashed == "master-nodes":
			return fail("%s is not an option", key)
		case slices.Contains(storageOptions, key):
			u.Storage[key] = value
		case slices.Contains(storageOptions, dashed):
			u.Storage[dashed] = value
		default:
			u.Database[key] = value
		}
	}
	if scheme == "neos" {
		for _, key := range []string{"ca", "cert", "key"} {
			if u.Storage[key] != "" {
				continue
			}
			if u.Storage[key] = getenv("NEO_" + strings.ToUpper(key)); u.Storage[key] == "" {
				return fail("neos needs %s, or NEO_%s", key, strings.ToUpper(key))
			}
		}
	}
	return u, nil
}

// Apply sets those fields of a Config that options of the storage are about. It
// returns the options that are left: files, which are for the caller to open.
func (u *URI) Apply(cfg *Config) (left map[string]string, err error) {
	left = maps.Clone(u.Storage)
	cfg.Cluster = u.Cluster
	for key, value := range u.Storage {
		switch key {
		case "compress":
			cfg.Level, err = ParseCompress(value)
		case "read-only":
			cfg.ReadOnly, err = parseBool(value)
		case "ignore-wrong-checksum":
			cfg.IgnoreWrongChecksum, err = parseBool(value)
		case "cache-size":
			cfg.CacheSize, err = ParseSize(value)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", key, err)
		}
		delete(left, key)
	}
	return left, nil
}

// ParseCompress reads the compress option: a boolean, zlib, or zlib=1 to zlib=9.
// It returns a value for Config.Level.
func ParseCompress(s string) (level int, err error) {
	switch algorithm, text, ok := strings.Cut(s, "="); {
	case algorithm != "zlib":
		on, err := parseBool(s)
		if err != nil || on {
			return 0, err
		}
		return NoCompression, nil
	case !ok:
		return 0, nil
	case len(text) == 1 && '1' <= text[0] && text[0] <= '9':
		return int(text[0] - '0'), nil
	}
	return 0, fmt.Errorf("%q: want a boolean, zlib, or zlib=1 to zlib=9", s)
}

// parseBool reads a boolean of ZConfig.
func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "yes", "on", "true":
		return true, nil
	case "no", "off", "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is not a boolean: want true or false", s)
}

// ParseSize returns the bytes that a text means: a positive number, or one with KB,
// MB or GB, which are powers of 1024, as in the configuration of ZODB.
func ParseSize(s string) (int, error) {
	digits, shift := strings.ToLower(s), 0
	for i, unit := range []string{"kb", "mb", "gb"} {
		if d, ok := strings.CutSuffix(digits, unit); ok {
			digits, shift = strings.TrimSpace(d), 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is not a size: want a number, or one with KB, MB or GB", s)
	}
	return int(n << shift), nil
}
