package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/following"
)

// File is a configuration file.
type File struct {
	Path         string
	Repositories []*Repository // in the order of the file
	Notify       Notify
	Metrics      Metrics
}

// Repository is a section [repository NAME], or what the command line says instead.
type Repository struct {
	Name string // of the section; "" without one
	Line int    // of its header; 0 without a file

	URL               string // of the store; no secrets
	S3Credentials     string // file as ~/.aws/credentials; "" : the environment
	Recipients        []snapshot.Recipient
	RequireRecipients int    // how many there must be at least
	SignKey           string // file
	KeeperKey         string // file with the key of the role keeper; "": SignKey may be it
	VerifyKeys        []string
	Source            Source
	CA, Cert, Key     string // PEM files for the links to a cluster, or none
	StateDir          string

	Interval      time.Duration // between two flushes
	Heartbeat     time.Duration // between two tails of an idle source
	SegmentSize   int64         // bytes
	Level         snapshot.Level
	LimitUpload   int64 // bytes per second; 0: none
	LimitDownload int64

	// RebaseOnPack begins a new lineage when a Data.fs was packed, instead of stopping; it is
	// the default, so that a file that is packed every week goes on being backed up.
	RebaseOnPack bool

	KeepLineagesDays int64
	PruneGrace       time.Duration
	Holds            []Hold
	Lock             store.Mode
	LockDays         int64
	LockShortDays    int64

	MaxRPO      time.Duration // 0: not watched
	ProofMaxAge time.Duration // 0: not watched

	Schedule *Schedule // nil: none
	Drill    *Drill    // nil: none

	file   string
	values map[string]value // as they were set
}

// Source is what is backed up: a Data.fs or a cluster.
type Source struct {
	File    string
	Cluster string
	Masters []conf.Address
}

// IsZero reports whether no source is set.
func (s Source) IsZero() bool { return s.File == "" && s.Cluster == "" }

// String returns the form that a configuration has.
func (s Source) String() string {
	switch {
	case s.File != "":
		return "file://" + s.File
	case s.Cluster == "":
		return ""
	}
	var list []string
	for _, a := range s.Masters {
		list = append(list, a.String())
	}
	return "neo://" + s.Cluster + "@" + strings.Join(list, " ")
}

// Hold is a moment that must remain restorable.
type Hold struct {
	At    Moment
	Label string
}

// Schedule is a section [schedule NAME].
type Schedule struct {
	Follow bool
	Jobs   []Job // in the order of the file
}

// Job is something that the daemon does at times.
type Job struct {
	Command string              // as on the command line
	Options []string            // --name or --name=value
	Times   *following.Schedule // UTC
	Line    int
}

// Drill is a section [drill NAME].
type Drill struct {
	Identity string // file
	SignKey  string // file with the key of the role drill
	Scratch  string // directory
	Mode     string // file, cluster or read

	file  string
	lines map[string]int
}

// Notify is the section [notify]: where notices go.
type Notify struct {
	Webhook string
	Email   []string
	SMTP    string // host or host:port
}

// Metrics is the section [metrics].
type Metrics struct {
	Listen string // host:port; "" : none
}

// New returns a repository without section, with all defaults.
func New() *Repository {
	return &Repository{
		Interval: time.Second, Heartbeat: 5 * time.Minute, SegmentSize: 128 << 20, RebaseOnPack: true,
		KeepLineagesDays: 35, PruneGrace: 24 * time.Hour, LockShortDays: 7, values: map[string]value{},
	}
}

// Clone returns a copy: a change of one with Set leaves the other as it is.
func (r *Repository) Clone() *Repository {
	c := *r
	c.values = maps.Clone(r.values)
	return &c
}

// ReadFile reads a configuration file. A leading ~ in the path is expanded.
func ReadFile(path string) (*File, error) {
	f, err := conf.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return read(f)
}

// Parse reads a configuration file. path is where it is. What is wrong with the text
// is a [*conf.SyntaxError], or tells its file and line in another way.
func Parse(r io.Reader, path string) (*File, error) {
	f, err := conf.Parse(r, path)
	if err != nil {
		return nil, err
	}
	return read(f)
}

// Repository returns the section with that name. Without a name it is the only one.
func (f *File) Repository(name string) (*Repository, error) {
	var names []string
	for _, r := range f.Repositories {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	switch {
	case name != "":
		return nil, fmt.Errorf("%s: there is no [repository %s]%s", f.Path, name, conf.DidYouMean(name, names))
	case len(names) == 1:
		return f.Repositories[0], nil
	case len(names) == 0:
		return nil, fmt.Errorf("%s: there is no [repository NAME]", f.Path)
	}
	return nil, fmt.Errorf("%s has %d repositories: name one of %s with -r", f.Path, len(names), strings.Join(names, ", "))
}

// sectionKinds are the first words of the headers.
var sectionKinds = []string{"repository", "schedule", "drill", "notify", "metrics"}

func read(f *conf.File) (*File, error) {
	r := reader{f: f, out: &File{Path: f.Name()}}
	if err := r.read(); err != nil {
		return nil, err
	}
	return r.out, nil
}

// reader makes a File of sections.
type reader struct {
	f   *conf.File
	out *File
}

func (r *reader) errorf(line int, format string, args ...any) error {
	return &conf.SyntaxError{File: r.f.Name(), Line: line, Msg: fmt.Sprintf(format, args...)}
}

func (r *reader) read() error {
	if err := r.defaults(); err != nil {
		return err
	}
	var later []func() error // what refers to repositories
	for _, header := range r.f.Sections() {
		s, err := r.f.Section(header)
		if err != nil {
			return err
		}
		kind, name, _ := strings.Cut(header, " ")
		name = strings.TrimSpace(name)
		switch kind {
		case "repository":
			err = r.repository(s, header, name)
		case "schedule", "drill":
			later = append(later, func() error {
				i := slices.IndexFunc(r.out.Repositories, func(x *Repository) bool { return x.Name == name })
				if i < 0 {
					var names []string
					for _, x := range r.out.Repositories {
						names = append(names, x.Name)
					}
					return r.errorf(s.Line(), "[%s] is about no [repository %s]%s", header, name, conf.DidYouMean(name, names))
				}
				if x := r.out.Repositories[i]; kind == "drill" && x.Drill != nil || kind == "schedule" && x.Schedule != nil {
					return r.errorf(s.Line(), "[%s]: there is a section [%s %s] already", header, kind, name)
				}
				if kind == "drill" {
					return r.drill(s, header, r.out.Repositories[i])
				}
				return r.schedule(s, header, r.out.Repositories[i])
			})
		case "notify", "metrics":
			if name != "" {
				return r.errorf(s.Line(), "[%s]: there is one section [%s], for all repositories", header, kind)
			}
			if kind == "notify" {
				err = r.notify(s, header)
			} else {
				err = r.metrics(s, header)
			}
		default:
			err = r.errorf(s.Line(), "unknown section [%s]: the sections are [repository NAME], [schedule NAME], [drill NAME], [notify] and [metrics]%s", header, conf.DidYouMean(kind, sectionKinds))
		}
		if err != nil {
			return err
		}
	}
	for _, do := range later {
		if err := do(); err != nil {
			return err
		}
	}
	if len(r.out.Repositories) == 0 {
		return r.errorf(1, "there is no [repository NAME]")
	}
	return nil
}

// defaults refuses keys that no section knows.
func (r *reader) defaults() error {
	s, err := r.f.Section("DEFAULT")
	if err != nil {
		return err
	}
	var all []string
	for _, keys := range [][]string{repositoryKeys, scheduleKeys, drillKeys, notifyKeys, metricsKeys} {
		all = append(all, keys...)
	}
	for _, key := range byLine(s) {
		if !slices.Contains(all, key) {
			return r.errorf(s.KeyLine(key), "unknown key %q in [DEFAULT]%s", key, conf.DidYouMean(key, all))
		}
	}
	return nil
}

// byLine returns the keys of a section in the order of the file.
func byLine(s *conf.Section) []string {
	return slices.SortedFunc(slices.Values(s.Keys()), func(a, b string) int { return s.KeyLine(a) - s.KeyLine(b) })
}

// each calls set with every key of a section and its value.
func (r *reader) each(s *conf.Section, header string, known []string, set func(key string, v value) error) error {
	defaults, err := r.f.Section("DEFAULT")
	if err != nil {
		return err
	}
	for _, key := range byLine(s) {
		line := s.KeyLine(key)
		if !slices.Contains(known, key) {
			if defaults.KeyLine(key) == line {
				continue // it is for other sections
			}
			return r.errorf(line, "unknown key %q in [%s]%s", key, header, conf.DidYouMean(key, known))
		}
		text, _, err := s.Get(key)
		if err != nil && (key == "webhook" || key == "url") {
			return r.errorf(line, "%s: a %% is written %%%%", key) // err shows a part of it, which may be a secret
		}
		if err != nil {
			return err
		}
		v := value{text: text, lines: s.ValueLines(key)}
		if err := set(key, v); err != nil {
			if at, ok := errors.AsType[*lineError](err); ok {
				line, err = at.line, at.err
			}
			return r.errorf(line, "%s: %v", key, err)
		}
	}
	return nil
}

func (r *reader) repository(s *conf.Section, header, name string) error {
	repo := New()
	repo.Name, repo.Line, repo.file = name, s.Line(), r.f.Name()
	if name == "" || strings.ContainsAny(name, "/:") {
		return r.errorf(s.Line(), "[%s]: a repository has a name, as in [repository prod], without / and :", header)
	}
	if slices.ContainsFunc(r.out.Repositories, func(x *Repository) bool { return x.Name == name }) {
		return r.errorf(s.Line(), "[%s]: there is a section [repository %s] already", header, name)
	}
	if err := r.each(s, header, repositoryKeys, repo.set); err != nil {
		return err
	}
	if repo.URL == "" {
		return r.errorf(s.Line(), "[%s] has no url: it says where the backup is kept", header)
	}
	if key, err := repo.check(); err != nil {
		return r.errorf(max(s.KeyLine(key), s.Line()), "%v", err)
	}
	r.out.Repositories = append(r.out.Repositories, repo)
	return nil
}
