package config

import (
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/moment"
	"github.com/neozodb/neo/cluster/tid"
)

// keyRule is what is known of a key of a kind of section.
type keyRule struct {
	check func(string) error // nil: any text
	// unused is why an import does nothing with it, "" if it does.
	unused string
	many   bool // it may be repeated
}

// kinds of sections that are understood.
var kinds = map[string]map[string]keyRule{
	"filestorage": {
		"path":          {check: notEmpty},
		"blob-dir":      {check: notEmpty},
		"create":        {check: flag},
		"read-only":     {check: flag},
		"quota":         {check: size, unused: notWritten},
		"packer":        {unused: notPacked},
		"pack-gc":       {check: flag, unused: notPacked},
		"pack-keep-old": {check: flag, unused: notPacked},
	},
	"blobstorage": {
		"blob-dir": {check: notEmpty},
	},
	"zeoclient":     zeoKeys,
	"clientstorage": zeoKeys,
	"ssl": {
		"certificate":       {check: notEmpty},
		"key":               {check: notEmpty},
		"password-function": {},
		"authenticate":      {check: notEmpty},
		"check-hostname":    {check: flag},
		"server-hostname":   {check: notEmpty},
	},
	"neostorage": {
		"master_nodes":          {check: notEmpty},
		"name":                  {check: notEmpty},
		"ca":                    {check: notEmpty},
		"cert":                  {check: notEmpty},
		"key":                   {check: notEmpty},
		"read-only":             {check: flag},
		"compress":              {unused: notWritten},
		"cache-size":            {check: size, unused: noCache},
		"logfile":               {unused: "the node has its own log"},
		"dynamic_master_list":   {unused: "master_nodes must have all masters"},
		"ignore-wrong-checksum": {check: flag, unused: "a damaged record is reported, and left out only by order"},
	},
	"neobackup": {
		"url":           {check: notEmpty},
		"verify-keys":   {check: notEmpty},
		"identity-file": {check: notEmpty},
		"lineage":       {check: lineage},
		"at":            {check: aMoment},
		"state-dir":     {check: notEmpty},
		"cache-size":    {check: size},
	},
}

// zeoKeys are those of both kinds of ZEO clients.
var zeoKeys = map[string]keyRule{
	"server":                   {check: notEmpty, many: true},
	"storage":                  {check: notEmpty},
	"wait":                     {check: flag},
	"wait-timeout":             {check: integer},
	"read-only":                {check: flag},
	"name":                     {unused: "it is for logs of Python"},
	"client-label":             {unused: "it is for logs of Python"},
	"cache-size":               {check: size, unused: noCache},
	"cache-path":               {unused: noCache},
	"client":                   {unused: noCache},
	"var":                      {unused: noCache},
	"drop-cache-rather-verify": {check: flag, unused: noCache},
	"min-disconnect-poll":      {check: integer, unused: ownPace},
	"max-disconnect-poll":      {check: integer, unused: ownPace},
	"read-only-fallback":       {check: flag, unused: "every server that is listed is read from"},
	"server-sync":              {check: flag, unused: "what is imported is known at the start"},
	"blob-dir":                 {check: notEmpty},
	"shared-blob-dir":          {check: flag, unused: noBlobs},
	"blob-cache-size":          {check: size, unused: noBlobs},
	"blob-cache-size-check":    {check: integer, unused: noBlobs},
	"username":                 {unused: noPassword},
	"password":                 {unused: noPassword},
	"realm":                    {unused: noPassword},
}

// waitTimeout is how long a ZEO client waits for a server unless told otherwise.
const waitTimeout = 30 * time.Second

const (
	notWritten = "an import only reads the source, or writes it back as it is"
	notPacked  = "an import does not pack the source"
	noCache    = "an import has no cache of it"
	ownPace    = "the node has its own pace"
	noBlobs    = "blobs are not supported"
	noPassword = "ZEO has no passwords since version 5; <ssl> has taken their place"
)

// others are kinds of storages that are not supported, with the way to import them.
var others = map[string]string{
	"demostorage":    "serve it with a ZEO server (runzeo), and import that as <zeoclient>",
	"relstorage":     "copy it to a Data.fs (zodbconvert) and import that, or serve it with a ZEO server (runzeo) and import that as <zeoclient>",
	"mappingstorage": "it is in the memory of one process, so there is nothing to import",
	"zlibstorage":    "write the storage that is in it alone, if the applications keep <zlibstorage> around their storage, or serve it with a ZEO server (runzeo) and import that as <zeoclient>",
	"zodb":           "write only the storage that is in it; its database-name is a key of the source, beside storage",
	"zodb_db":        "write only the storage that is in it; its database-name is a key of the source, beside storage",
}

func notEmpty(v string) error {
	if v == "" {
		return fmt.Errorf("no value")
	}
	return nil
}

func flag(v string) error {
	_, err := parseFlag(v)
	return err
}

func parseFlag(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "yes", "true", "on":
		return true, nil
	case "no", "false", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", v)
}

func integer(v string) error {
	if _, err := strconv.ParseInt(v, 10, 32); err != nil {
		return fmt.Errorf("%q is not a whole number", v)
	}
	return nil
}

// size checks a number of bytes like 20MB.
func size(v string) error {
	_, err := parseSize(v)
	return err
}

func parseSize(v string) (int64, error) {
	digits, shift := strings.ToLower(v), 0
	for i, suffix := range []string{"kb", "mb", "gb"} {
		if d, ok := strings.CutSuffix(digits, suffix); ok {
			digits, shift = strings.TrimSpace(d), 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a size like 20MB", v)
	}
	return n << shift, nil
}

// lineage checks the id of a lineage of a backup repository.
func lineage(v string) error {
	if b, err := hex.DecodeString(v); err != nil || len(b) != 16 || strings.ToLower(v) != v {
		return fmt.Errorf("%q is not the id of a lineage: want 32 hexadecimal digits, as \"neobackup list --lineages\" shows them", v)
	}
	return nil
}

func aMoment(v string) error {
	_, err := parseMoment(v)
	return err
}

// parseMoment reads a TID, or a time: the greatest TID that is not after it. A time that
// depends on the clock would be another one at each start.
func parseMoment(v string) (tid.TID, error) {
	m, err := moment.Parse(v, time.Now())
	switch {
	case err != nil:
		return 0, err
	case m.Latest || m.Relative:
		return 0, fmt.Errorf("%q is another transaction at each start: give a TID, or a time such as 2026-11-20T10:00:00Z", v)
	}
	return m.TID, nil
}

// values are the settings of a section, checked.
type values struct {
	z *zparser
	s *zsection
	m map[string][]setting
}

// values checks the settings of a section against those that its kind has.
func (z *zparser) values(s *zsection) (values, error) {
	v := values{z, s, map[string][]setting{}}
	rules := kinds[s.kind]
	for _, set := range s.settings {
		rule, ok := rules[set.key]
		if !ok {
			return v, z.errorf(set.line, "unknown key %q in <%s>%s", set.key, s.written, didYouMean(set.key, slices.Sorted(maps.Keys(rules))))
		}
		if first := v.m[set.key]; len(first) > 0 && !rule.many {
			return v, z.errorf(set.line, "%s is already set in line %d", set.key, first[0].line)
		}
		if rule.check != nil {
			if err := rule.check(set.value); err != nil {
				return v, z.errorf(set.line, "%s: %v", set.key, err)
			}
		}
		if rule.unused != "" {
			z.warnf(set.line, "%s of <%s> is ignored: %s", set.key, s.written, rule.unused)
		}
		v.m[set.key] = append(v.m[set.key], set)
	}
	return v, nil
}

// get returns the value and the line of a key; line 0 if it is not set.
func (v values) get(key string) (value string, line int) {
	if list := v.m[key]; len(list) > 0 {
		return list[0].value, list[0].line
	}
	return "", 0
}

// need is get of a key that must be set.
func (v values) need(key string) (string, error) {
	value, line := v.get(key)
	if line == 0 {
		return "", v.z.errorf(v.s.line, "<%s> has no %s", v.s.written, key)
	}
	return value, nil
}

// flag returns the value of a flag, or what it is if it is not set.
func (v values) flag(key string, unset bool) (on bool, line int) {
	value, line := v.get(key)
	if line == 0 {
		return unset, 0
	}
	on, _ = parseFlag(value) // checked
	return on, line
}

// path returns the value of a key with its ~ expanded, "" if it is not set.
func (v values) path(key string) (string, error) {
	value, line := v.get(key)
	path, err := conf.ExpandUser(value)
	if err != nil {
		return "", v.z.errorf(line, "%s: %v", key, err)
	}
	return path, nil
}

// paths is path of several keys.
func (v values) paths(into map[string]*string) error {
	for _, key := range slices.Sorted(maps.Keys(into)) {
		var err error
		if *into[key], err = v.path(key); err != nil {
			return err
		}
	}
	return nil
}

// readOnly returns the line of read-only, 0 if it is not set, or off.
func (v values) readOnly() int {
	if on, line := v.flag("read-only", false); on {
		return line
	}
	return 0
}

// blobs warns of files that stay where they are.
func (v values) blobs() (dir string, err error) {
	dir, err = v.path("blob-dir")
	if _, line := v.get("blob-dir"); line > 0 && err == nil {
		v.z.warnf(line, "blobs are not supported: the records of blobs are imported, the files in blob-dir %s are not", dir)
	}
	return dir, err
}

// leaf returns the values of a section that has no sections.
func (z *zparser) leaf(s *zsection) (values, error) {
	v, err := z.values(s)
	if err != nil {
		return v, err
	}
	return v, z.only(s, "")
}

// only refuses sections in a section, except those of a kind.
func (z *zparser) only(s *zsection, kind string) error {
	for _, inner := range s.sections {
		if inner.kind != kind {
			return z.errorf(inner.line, "<%s> can not be in <%s>", inner.written, s.written)
		}
	}
	return nil
}

// storage makes a Storage of a section. readOnly is the line that forbids to write to
// it, 0 if there is none.
func (z *zparser) storage(s *zsection) (st Storage, readOnly int, err error) {
	switch s.kind {
	case "filestorage":
		return z.file(s)
	case "blobstorage":
		return z.blobStorage(s)
	case "zeoclient", "clientstorage":
		return z.zeo(s)
	case "neostorage":
		return z.neo(s)
	case "neobackup":
		return z.backup(s)
	}
	const supported = "<filestorage>, <blobstorage> around one, <zeoclient>, <clientstorage>, <NEOStorage> and <neobackup> are"
	way, known := others[s.kind]
	if hint := didYouMean(s.kind, []string{"filestorage", "blobstorage", "zeoclient", "clientstorage", "NEOStorage", "neobackup"}); !known && hint != "" {
		return Storage{}, 0, z.errorf(s.line, "<%s> is not known: %s%s", s.written, supported, hint)
	}
	if !known {
		way = "copy it to a Data.fs and import that, or serve it with a ZEO server (runzeo) and import that as <zeoclient>"
	}
	return Storage{}, 0, z.errorf(s.line, "<%s> is not supported, %s: %s", s.written, supported, way)
}

func (z *zparser) file(s *zsection) (Storage, int, error) {
	none := func(err error) (Storage, int, error) { return Storage{}, 0, err }
	v, err := z.leaf(s)
	if err != nil {
		return none(err)
	}
	if _, err := v.need("path"); err != nil {
		return none(err)
	}
	if on, line := v.flag("create", false); on {
		return none(z.errorf(line, "create true would empty the file that is to be imported: remove it"))
	}
	f := &File{}
	if f.Path, err = v.path("path"); err != nil {
		return none(err)
	}
	if f.BlobDir, err = v.blobs(); err != nil {
		return none(err)
	}
	return Storage{File: f}, v.readOnly(), nil
}

func (z *zparser) blobStorage(s *zsection) (Storage, int, error) {
	none := func(err error) (Storage, int, error) { return Storage{}, 0, err }
	v, err := z.values(s)
	if err != nil {
		return none(err)
	}
	if len(s.sections) != 1 {
		return none(z.errorf(s.line, "<%s> has %d storages in it, want 1", s.written, len(s.sections)))
	}
	if inner := s.sections[0]; inner.kind == s.kind {
		return none(z.errorf(inner.line, "<%s> can not be in <%s>", inner.written, s.written))
	}
	if _, err := v.need("blob-dir"); err != nil {
		return none(err)
	}
	dir, err := v.blobs()
	if err != nil {
		return none(err)
	}
	st, readOnly, err := z.storage(s.sections[0])
	if err == nil && st.File != nil && st.File.BlobDir == "" {
		st.File.BlobDir = dir
	}
	return st, readOnly, err
}

func (z *zparser) zeo(s *zsection) (Storage, int, error) {
	none := func(err error) (Storage, int, error) { return Storage{}, 0, err }
	v, err := z.values(s)
	if err != nil {
		return none(err)
	}
	if err := z.only(s, "ssl"); err != nil {
		return none(err)
	}
	if _, err := v.need("server"); err != nil {
		return none(err)
	}
	c := &ZEO{Storage: "1", WaitTimeout: waitTimeout}
	for _, set := range v.m["server"] {
		server, err := parseServer(set.value)
		if err != nil {
			return none(z.errorf(set.line, "server: %v", err))
		}
		if slices.Contains(c.Servers, server) {
			return none(z.errorf(set.line, "server %s is already there", server))
		}
		c.Servers = append(c.Servers, server)
	}
	if name, line := v.get("storage"); line > 0 {
		c.Storage = name
	}
	c.Wait, _ = v.flag("wait", true)
	if text, line := v.get("wait-timeout"); line > 0 {
		n, _ := strconv.ParseInt(text, 10, 32) // checked
		if n < 0 {
			return none(z.errorf(line, "wait-timeout: %d is less than 0", n))
		}
		c.WaitTimeout = time.Duration(n) * time.Second
	}
	if _, err := v.blobs(); err != nil {
		return none(err)
	}
	switch len(s.sections) {
	case 0:
	case 1:
		if err := z.ssl(s.sections[0], c); err != nil {
			return none(err)
		}
	default:
		return none(z.errorf(s.sections[1].line, "<ssl> is already there in line %d", s.sections[0].line))
	}
	return Storage{ZEO: c}, v.readOnly(), nil
}

func (z *zparser) ssl(s *zsection, c *ZEO) error {
	v, err := z.leaf(s)
	if err != nil {
		return err
	}
	if _, err := v.need("certificate"); err != nil {
		return err
	}
	if _, line := v.get("password-function"); line > 0 {
		return z.errorf(line, "password-function is code in Python: give a key without a password (openssl pkey -in KEY -out FILE), that only the node can read")
	}
	if err := v.paths(map[string]*string{"certificate": &c.Cert, "key": &c.Key, "authenticate": &c.CA}); err != nil {
		return err
	}
	c.ServerName, _ = v.get("server-hostname")
	check, _ := v.flag("check-hostname", true)
	c.AnyName = !check
	return nil
}

func (z *zparser) neo(s *zsection) (Storage, int, error) {
	none := func(err error) (Storage, int, error) { return Storage{}, 0, err }
	v, err := z.leaf(s)
	if err != nil {
		return none(err)
	}
	n := &NEO{}
	if n.Name, err = v.need("name"); err != nil {
		return none(err)
	}
	if n.Masters, err = v.need("master_nodes"); err != nil {
		return none(err)
	}
	if _, err := conf.ParseMasters(n.Masters); err != nil {
		_, line := v.get("master_nodes")
		return none(z.errorf(line, "master_nodes: %v", err))
	}
	n.Masters = strings.Join(strings.Fields(n.Masters), " ")
	if err := v.paths(map[string]*string{"ca": &n.CA, "cert": &n.Cert, "key": &n.Key}); err != nil {
		return none(err)
	}
	if n.CA != "" || n.Cert != "" || n.Key != "" {
		for _, key := range []string{"ca", "cert", "key"} {
			if _, err := v.need(key); err != nil {
				return none(z.errorf(s.line, "<%s> has no %s: an encrypted connection needs ca, cert and key", s.written, key))
			}
		}
	}
	return Storage{NEO: n}, v.readOnly(), nil
}

func (z *zparser) backup(s *zsection) (Storage, int, error) {
	none := func(err error) (Storage, int, error) { return Storage{}, 0, err }
	v, err := z.leaf(s)
	if err != nil {
		return none(err)
	}
	b := &Backup{}
	if b.URL, err = v.need("url"); err != nil {
		return none(err)
	}
	keys, err := v.need("verify-keys")
	if err != nil {
		return none(err)
	}
	b.VerifyKeys = strings.Fields(keys)
	if err := v.paths(map[string]*string{"identity-file": &b.IdentityFile, "state-dir": &b.StateDir}); err != nil {
		return none(err)
	}
	b.Lineage, _ = v.get("lineage")
	if at, line := v.get("at"); line > 0 {
		b.At, _ = parseMoment(at) // checked
	}
	if text, line := v.get("cache-size"); line > 0 {
		if b.CacheSize, _ = parseSize(text); b.CacheSize <= 0 {
			return none(z.errorf(line, "cache-size: %q is no size", text))
		}
	}
	return Storage{Backup: b}, 0, nil
}

// parseServer reads the address of a ZEO server: host:port, a port alone, or the path
// of a socket, which has a slash.
func parseServer(text string) (string, error) {
	if strings.Contains(text, "/") {
		return conf.ExpandUser(text)
	}
	if n, err := strconv.ParseUint(text, 10, 16); err == nil && n > 0 {
		return net.JoinHostPort("127.0.0.1", strconv.FormatUint(n, 10)), nil
	}
	if port, ok := strings.CutPrefix(text, ":"); ok {
		text = net.JoinHostPort("127.0.0.1", port)
	}
	a, err := conf.ParseAddress(text, 0)
	if err != nil {
		return "", err
	}
	if a.Port == 0 {
		return "", fmt.Errorf("address %q: a ZEO server needs a port", text)
	}
	return a.String(), nil
}
