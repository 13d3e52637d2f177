package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/mail"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/storeurl"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/following"
)

// value is the text of a key.
type value struct {
	text  string
	lines []int // of the file, for each line of text; nil without a file
}

// lineError is an error of one line of a value.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// one returns a value of one line.
func (v value) one() (string, error) {
	text := strings.TrimSpace(v.text)
	switch {
	case text == "":
		return "", errors.New("no value")
	case strings.Contains(text, "\n"):
		return "", errors.New("the value has several lines: a line that is indented continues the one above it")
	}
	return text, nil
}

// each calls do with each line that is not empty; there must be one.
func (v value) each(do func(text string) error) error {
	n := 0
	for i, text := range strings.Split(v.text, "\n") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		n++
		if err := do(text); err != nil {
			if i < len(v.lines) {
				return &lineError{v.lines[i], err}
			}
			return err
		}
	}
	if n == 0 {
		return errors.New("no value")
	}
	return nil
}

// words calls do with each word of each line.
func (v value) words(do func(word string) error) error {
	return v.each(func(text string) error {
		for _, w := range strings.Fields(text) {
			if err := do(w); err != nil {
				return err
			}
		}
		return nil
	})
}

// Values of on_pack.
const (
	onPackStop   = "stop"
	onPackRebase = "rebase"
)

// setting is a key of a repository.
type setting struct {
	key string
	set func(r *Repository, v value) error
}

// settings are the keys of a repository, in the order in which they are written.
var settings = []setting{
	{"url", one(func(r *Repository, s string) (err error) { r.URL = s; return storeurl.Check(s) })},
	{"s3_credentials", path(func(r *Repository) *string { return &r.S3Credentials })},
	{"recipients", func(r *Repository, v value) error {
		r.Recipients = nil
		return v.words(func(w string) error {
			to, err := snapshot.ParseRecipient(w)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(r.Recipients, func(x snapshot.Recipient) bool { return x.String() == to.String() }) {
				return fmt.Errorf("%s is there twice", to)
			}
			r.Recipients = append(r.Recipients, to)
			return nil
		})
	}},
	{"require_recipients", number(1, 1000, func(r *Repository, n int64) { r.RequireRecipients = int(n) })},
	{"sign_key", path(func(r *Repository) *string { return &r.SignKey })},
	{"keeper_key", path(func(r *Repository) *string { return &r.KeeperKey })},
	{"verify_keys", func(r *Repository, v value) error {
		r.VerifyKeys = nil
		return v.words(func(w string) error {
			if _, err := snapshot.NewVerifiers(w); err != nil {
				return err
			}
			r.VerifyKeys = append(r.VerifyKeys, w)
			return nil
		})
	}},
	{"source", one(func(r *Repository, s string) (err error) { r.Source, err = ParseSource(s); return err })},
	{"ca", path(func(r *Repository) *string { return &r.CA })},
	{"cert", path(func(r *Repository) *string { return &r.Cert })},
	{"key", path(func(r *Repository) *string { return &r.Key })},
	{"state_dir", path(func(r *Repository) *string { return &r.StateDir })},
	{"interval", duration(100*time.Millisecond, time.Hour, func(r *Repository) *time.Duration { return &r.Interval })},
	{"heartbeat", duration(time.Second, 24*time.Hour, func(r *Repository) *time.Duration { return &r.Heartbeat })},
	{"segment_size", size(16<<20, store.MaxObject, func(r *Repository) *int64 { return &r.SegmentSize })},
	{"level", one(func(r *Repository, s string) error {
		r.Level = snapshot.Level(s)
		return oneOf(s, string(snapshot.Fastest), string(snapshot.Default), string(snapshot.Better))
	})},
	{"limit_upload", rate(func(r *Repository) *int64 { return &r.LimitUpload })},
	{"limit_download", rate(func(r *Repository) *int64 { return &r.LimitDownload })},
	{"on_pack", one(func(r *Repository, s string) error {
		r.RebaseOnPack = s == onPackRebase
		return oneOf(s, onPackStop, onPackRebase)
	})},
	{"keep_lineages_days", number(1, 36500, func(r *Repository, n int64) { r.KeepLineagesDays = n })},
	{"prune_grace", duration(24*time.Hour, 365*24*time.Hour, func(r *Repository) *time.Duration { return &r.PruneGrace })},
	{"hold", func(r *Repository, v value) error {
		r.Holds = nil
		return v.each(func(text string) error {
			h, err := parseHold(text)
			r.Holds = append(r.Holds, h)
			return err
		})
	}},
	{"lock", one(func(r *Repository, s string) error {
		r.Lock = store.Mode(s)
		return oneOf(s, string(store.Governance), string(store.Compliance))
	})},
	{"lock_days", number(1, 36500, func(r *Repository, n int64) { r.LockDays = n })},
	{"lock_short_days", number(1, 36500, func(r *Repository, n int64) { r.LockShortDays = n })},
	{"max_rpo", duration(time.Second, 365*24*time.Hour, func(r *Repository) *time.Duration { return &r.MaxRPO })},
	{"proof_max_age", duration(time.Hour, 3650*24*time.Hour, func(r *Repository) *time.Duration { return &r.ProofMaxAge })},
}

var repositoryKeys = func() (keys []string) {
	for _, s := range settings {
		keys = append(keys, s.key)
	}
	return keys
}()

func one(set func(r *Repository, s string) error) func(*Repository, value) error {
	return func(r *Repository, v value) error {
		s, err := v.one()
		if err != nil {
			return err
		}
		return set(r, s)
	}
}

func path(of func(r *Repository) *string) func(*Repository, value) error {
	return one(func(r *Repository, s string) (err error) {
		*of(r), err = conf.ExpandUser(s)
		return err
	})
}

func number(from, to int64, set func(r *Repository, n int64)) func(*Repository, value) error {
	return one(func(r *Repository, s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < from || n > to {
			return fmt.Errorf("%q is not a number from %d to %d", s, from, to)
		}
		set(r, n)
		return nil
	})
}

func duration(from, to time.Duration, of func(r *Repository) *time.Duration) func(*Repository, value) error {
	return one(func(r *Repository, s string) (err error) {
		*of(r), err = parseDuration(s, from, to)
		return err
	})
}

// parseDuration reads 30s, 5m, 1h30m or 7d.
func parseDuration(s string, from, to time.Duration) (time.Duration, error) {
	d, err := following.ParseDelay(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is not a duration: want a number with a unit, such as 30s, 5m, 12h or 7d", s)
	case d < from || d > to:
		return 0, fmt.Errorf("%q is not from %s to %s", s, FormatDuration(from), FormatDuration(to))
	}
	return d, nil
}

// FormatDuration writes a duration as a configuration has it: 1s, 90m, 7d.
func FormatDuration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d == 0:
		return "0s"
	case d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

func size(from, to int64, of func(r *Repository) *int64) func(*Repository, value) error {
	return one(func(r *Repository, s string) (err error) {
		if *of(r), err = parseSize(s); err == nil && (*of(r) < from || *of(r) > to) {
			err = fmt.Errorf("%q is not from %d MiB to %d MiB", s, from>>20, to>>20)
		}
		return err
	})
}

// parseSize reads 512KiB, 128MiB or 1GiB.
func parseSize(s string) (int64, error) {
	for i, unit := range []string{"KiB", "MiB", "GiB"} {
		digits, ok := strings.CutSuffix(s, unit)
		if !ok {
			continue
		}
		shift := 10 * (i + 1)
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64>>shift {
			break
		}
		return n << shift, nil
	}
	return 0, fmt.Errorf("%q is not a size: want a number with KiB, MiB or GiB", s)
}

func rate(of func(r *Repository) *int64) func(*Repository, value) error {
	return one(func(r *Repository, s string) (err error) {
		*of(r), err = following.ParseRate(s)
		return err
	})
}

func oneOf(s string, list ...string) error {
	if slices.Contains(list, s) {
		return nil
	}
	return fmt.Errorf("%q is none of %s%s", s, strings.Join(list, ", "), conf.DidYouMean(s, list))
}

// ParseSource reads neo://CLUSTER@MASTER MASTER, file:///path or an absolute path.
func ParseSource(s string) (Source, error) {
	if rest, ok := strings.CutPrefix(s, "neo://"); ok {
		cluster, masters, ok := strings.Cut(rest, "@")
		if !ok || cluster == "" || strings.ContainsAny(cluster, " /?#") {
			return Source{}, fmt.Errorf("%q: want neo://CLUSTER@HOST:PORT with all masters, separated by spaces", s)
		}
		list, err := conf.ParseMasters(strings.ReplaceAll(masters, ",", " "))
		if err != nil {
			return Source{}, fmt.Errorf("%q: %w", s, err)
		}
		if len(list) == 0 {
			return Source{}, fmt.Errorf("%q names no master: want neo://CLUSTER@HOST:PORT", s)
		}
		return Source{Cluster: cluster, Masters: list}, nil
	}
	file := s
	if rest, ok := strings.CutPrefix(s, "file:"); ok {
		if file, ok = strings.CutPrefix(rest, "//"); !ok {
			file = rest
		}
	}
	file, err := conf.ExpandUser(file)
	switch {
	case err != nil:
		return Source{}, err
	case strings.Contains(s, "://") && !strings.HasPrefix(s, "file://"):
		return Source{}, fmt.Errorf("%q: a source is neo://CLUSTER@HOST:PORT or file:///path/Data.fs", s)
	case !filepath.IsAbs(file):
		return Source{}, fmt.Errorf("%q is not an absolute path: want file:///path/Data.fs or neo://CLUSTER@HOST:PORT", s)
	}
	return Source{File: filepath.Clean(file)}, nil
}

func parseHold(text string) (Hold, error) {
	at, label, _ := strings.Cut(text, " ")
	label = strings.TrimSpace(label)
	m, err := ParseMoment(at, time.Time{})
	switch {
	case err != nil:
		return Hold{}, err
	case m.Latest || m.Relative:
		return Hold{}, fmt.Errorf("%q is another moment at each start: want a TID or a time", at)
	case label == "":
		return Hold{}, errors.New("a hold needs a label behind the TID or time: it says why")
	case strings.ContainsFunc(label, func(r rune) bool { return r < ' ' }):
		return Hold{}, fmt.Errorf("label %q has control characters", label)
	}
	return Hold{m, label}, nil
}

// Set sets a key, as a line of the section would: lines of a value are separated by
// LF.
func (r *Repository) Set(key, text string) error {
	key = strings.ReplaceAll(key, "-", "_")
	if !slices.Contains(repositoryKeys, key) {
		return fmt.Errorf("unknown key %q%s", key, conf.DidYouMean(key, repositoryKeys))
	}
	if err := r.set(key, value{text: text}); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func (r *Repository) set(key string, v value) error {
	for _, s := range settings {
		if s.key == key {
			r.values[key] = v
			return s.set(r, v)
		}
	}
	panic("config: no setting " + key)
}

// Check returns what is wrong with the settings as a whole, and completes defaults that depend
// on others.
func (r *Repository) Check() error {
	_, err := r.check()
	return err
}

// check returns the key that is to blame too.
func (r *Repository) check() (string, error) {
	if _, set := r.values["lock_short_days"]; r.Lock != "" && !set {
		r.LockShortDays = min(r.LockShortDays, r.LockDays)
	}
	tls := 0
	for _, file := range []string{r.CA, r.Cert, r.Key} {
		if file != "" {
			tls++
		}
	}
	switch {
	case r.Lock != "" && r.LockDays == 0:
		return "lock", errors.New("lock needs lock_days: how long nothing can be deleted")
	case r.Lock == "" && r.LockDays != 0:
		return "lock_days", errors.New("lock_days needs lock: governance or compliance")
	case r.Lock != "" && r.LockShortDays > r.LockDays:
		return "lock_short_days", fmt.Errorf("lock_short_days (%d) is more than lock_days (%d)", r.LockShortDays, r.LockDays)
	case r.RequireRecipients > len(r.Recipients):
		return "require_recipients", fmt.Errorf("%d recipients, and require_recipients is %d", len(r.Recipients), r.RequireRecipients)
	case r.Heartbeat < r.Interval:
		return "heartbeat", fmt.Errorf("heartbeat (%s) is less than interval (%s)", FormatDuration(r.Heartbeat), FormatDuration(r.Interval))
	case tls != 0 && tls != 3:
		return "ca", errors.New("ca, cert and key belong together: all three or none")
	case tls != 0 && r.Source.File != "":
		return "ca", errors.New("ca, cert and key are for the links to a cluster, and the source is a file")
	}
	return "", nil
}

// Section returns the section that says what was set, with this name.
func (r *Repository) Section(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[repository %s]\n", name)
	for _, key := range repositoryKeys {
		v, ok := r.values[key]
		if !ok {
			continue
		}
		text := strings.ReplaceAll(v.text, "%", "%%")
		lines := conf.Lines(text)
		if len(lines) == 1 {
			fmt.Fprintf(&b, "%s: %s\n", key, lines[0])
			continue
		}
		fmt.Fprintf(&b, "%s:\n", key)
		for _, l := range lines {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	return b.String()
}

// Keys of the other sections.
var (
	drillKeys   = []string{"identity", "sign_key", "scratch", "mode"}
	notifyKeys  = []string{"webhook", "email", "smtp"}
	metricsKeys = []string{"listen"}
)

func (r *reader) drill(s *conf.Section, header string, repo *Repository) error {
	d := &Drill{Mode: "file", file: r.f.Name(), lines: map[string]int{}}
	repo.Drill = d
	return r.each(s, header, drillKeys, func(key string, v value) error {
		text, err := v.one()
		if err != nil {
			return err
		}
		d.lines[key] = s.KeyLine(key)
		switch key {
		case "identity":
			d.Identity, err = conf.ExpandUser(text)
		case "sign_key":
			d.SignKey, err = conf.ExpandUser(text)
		case "scratch":
			d.Scratch, err = conf.ExpandUser(text)
		case "mode":
			d.Mode, err = text, oneOf(text, "file", "cluster", "read")
		}
		return err
	})
}

func (r *reader) notify(s *conf.Section, header string) error {
	n := &r.out.Notify
	return r.each(s, header, notifyKeys, func(key string, v value) error {
		switch key {
		case "webhook":
			text, err := v.one()
			if err != nil {
				return err
			}
			u, err := url.Parse(text)
			if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
				return errors.New("not a URL that begins with https://") // it may have a secret
			}
			n.Webhook = text
			return nil
		case "email":
			return v.words(func(w string) error {
				if a, err := mail.ParseAddress(w); err != nil || a.Address != w {
					return fmt.Errorf("%q is not an address", w)
				}
				n.Email = append(n.Email, w)
				return nil
			})
		default:
			text, err := v.one()
			if err != nil {
				return err
			}
			_, err = conf.ParseAddress(text, 25)
			n.SMTP = text
			return err
		}
	})
}

func (r *reader) metrics(s *conf.Section, header string) error {
	return r.each(s, header, metricsKeys, func(_ string, v value) error {
		text, err := v.one()
		if err != nil {
			return err
		}
		if _, port, err := net.SplitHostPort(text); err != nil || port == "" {
			return fmt.Errorf("%q: want host:port", text)
		}
		if _, err := conf.ParseAddress(text, 0); err != nil {
			return err
		}
		r.out.Metrics.Listen = text
		return nil
	})
}
