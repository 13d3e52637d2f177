package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// ProbePrefix is where [Probe] puts its objects.
const ProbePrefix = "probe/"

// Limits of the difference between the clock of this host and that of the store.
const (
	ClockWarning = 5 * time.Minute
	ClockError   = 15 * time.Minute
)

// probeRacers create one key at the same time, probeRaces times.
const (
	probeRacers = 16
	probeRaces  = 3
)

// ProbeOptions say what a repository needs of its store.
type ProbeOptions struct {
	// Lock is the mode of object lock that is configured; "" if none is.
	Lock Mode
	// Now is the clock of this host; default: time.Now.
	Now func() time.Time
}

// Severity says what follows from a finding.
type Severity string

// The severities of findings.
const (
	OK      Severity = "ok"
	Warning Severity = "warning"
	Missing Severity = "missing" // a repository cannot be kept there
)

// Finding is the result of one check.
type Finding struct {
	Check    string   `json:"check"` // such as "create-once"
	Severity Severity `json:"severity"`
	Detail   string   `json:"detail,omitempty"`
}

// Report is what [Probe] found.
type Report struct {
	Time     time.Time     `json:"time"`   // of this host
	Offset   time.Duration `json:"offset"` // of the store's clock from that of this host
	Findings []Finding     `json:"findings"`
	Left     []string      `json:"left,omitempty"` // probe objects that could not be deleted
}

// UnsuitableError reports a store that lacks what a repository needs.
type UnsuitableError struct {
	Store   string
	Missing []Finding
}

func (e *UnsuitableError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is not suitable for a repository:", e.Store)
	for i, f := range e.Missing {
		if i > 0 {
			b.WriteByte(';')
		}
		fmt.Fprintf(&b, " %s: %s", f.Check, f.Detail)
	}
	return b.String()
}

// Err returns an *[UnsuitableError] that names what is missing, or nil.
func (r *Report) Err(name string) error {
	var missing []Finding
	for _, f := range r.Findings {
		if f.Severity == Missing {
			missing = append(missing, f)
		}
	}
	if missing == nil {
		return nil
	}
	return &UnsuitableError{Store: name, Missing: missing}
}

// probe is one run.
type probe struct {
	s   Store
	o   ProbeOptions
	id  string
	rep *Report

	mu   sync.Mutex
	keys []string // of all objects that may be there
}

// Probe tries on a store what a repository needs, under new keys, and deletes them
// again if it may. The error is one that kept it from trying, such as an
// unreachable or forbidden store, or a *[TemporaryError]: s should be one that
// repeats. What the store lacks is in the report.
func Probe(ctx context.Context, s Store, o ProbeOptions) (*Report, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	id := make([]byte, 8)
	rand.Read(id)
	p := &probe{s: s, o: o, id: ProbePrefix + hex.EncodeToString(id), rep: &Report{Time: o.Now().UTC()}}
	err := p.run(ctx)
	p.remove(ctx)
	return p.rep, err
}

// find adds a finding: OK if problem is empty.
func (p *probe) find(check string, s Severity, problem string) {
	if problem == "" {
		s = OK
	}
	p.rep.Findings = append(p.rep.Findings, Finding{check, s, problem})
}

// content is what an object of the probe has: different for each name.
func content(name string, size int) []byte {
	b := make([]byte, 0, size+sha256.Size)
	for i := 0; len(b) < size; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, i))
		b = append(b, sum[:]...)
	}
	return b[:size]
}

func (p *probe) put(ctx context.Context, key string, b []byte, o PutOptions) error {
	p.mu.Lock()
	p.keys = append(p.keys, key)
	p.mu.Unlock()
	o.SHA256 = sha256.Sum256(b)
	return p.s.Put(ctx, key, bytes.NewReader(b), int64(len(b)), o)
}

// get returns a range, with its problem if it is not want.
func (p *probe) get(ctx context.Context, key string, off, n int64, want []byte, size int) (problem string, err error) {
	r, info, err := p.s.Get(ctx, key, off, n)
	var got []byte
	if err == nil {
		got, err = io.ReadAll(io.LimitReader(r, int64(size)+1))
		r.Close()
	}
	switch {
	case errors.Is(err, ErrLied) || errors.Is(err, ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF) && !Temporary(err):
		return err.Error(), nil
	case err != nil:
		return "", err
	case info.Size != int64(size):
		return fmt.Sprintf("an object of %d bytes is said to have %d", size, info.Size), nil
	case !bytes.Equal(got, want):
		return fmt.Sprintf("%d bytes at %d: other bytes than those stored", n, off), nil
	}
	return "", nil
}

// run checks one promise after the other. It stops when the store cannot be used.
func (p *probe) run(ctx context.Context) error {
	const size = 100_000
	key := p.id + "-a"
	first := content(key, size)
	if err := p.put(ctx, key, first, PutOptions{Create: true}); err != nil {
		return fmt.Errorf("store a probe object: %w", err)
	}
	p.clock()
	if err := p.ranges(ctx, key, first); err != nil {
		return err
	}
	if err := p.lists(ctx); err != nil {
		return err
	}
	if err := p.create(ctx); err != nil {
		return err
	}
	if err := p.race(ctx); err != nil {
		return err
	}
	if p.o.Lock != "" {
		if err := p.lock(ctx); err != nil {
			return err
		}
	}
	p.rep.Findings = append(p.rep.Findings, probeStore(ctx, p.s, key)...)
	return nil
}

// clock compares the clocks.
func (p *probe) clock() {
	date := Date(p.s)
	if date.IsZero() {
		p.find("clock", Warning, "the store does not tell its time")
		return
	}
	// The time of a store has seconds.
	p.rep.Offset = date.Sub(p.o.Now()).Round(time.Second)
	off := p.rep.Offset.Abs()
	problem, severity := "", Warning
	if off > ClockWarning {
		problem = fmt.Sprintf("the clock of the store is at %s, that of this host %v apart", date.UTC().Format(time.RFC3339), off)
	}
	if off > ClockError {
		severity = Missing
	}
	p.find("clock", severity, problem)
}

// create tries to create an object again.
func (p *probe) create(ctx context.Context) error {
	key := p.id + "-once"
	first := content(key, 2000)
	if err := p.put(ctx, key, first, PutOptions{Create: true}); err != nil {
		return fmt.Errorf("store a probe object: %w", err)
	}
	problem := ""
	err := p.put(ctx, key, content("again", 1000), PutOptions{Create: true})
	switch {
	case err == nil:
		problem = "an object that exists can be created again (If-None-Match is ignored): two writers would overwrite each other"
	case errors.Is(err, errors.ErrUnsupported):
		problem = err.Error()
	case !errors.Is(err, ErrExists):
		return fmt.Errorf("create an object again: %w", err)
	}
	if problem == "" {
		var err error
		if problem, err = p.get(ctx, key, 0, All, first, len(first)); err != nil {
			return err
		}
	}
	p.find("create-once", Missing, problem)
	return nil
}

// ranges reads parts of an object.
func (p *probe) ranges(ctx context.Context, key string, b []byte) error {
	size := int64(len(b))
	problem := ""
	for _, r := range [][2]int64{{0, All}, {0, 1}, {70_000, 10_000}, {size - 1, All}, {size - 5, 50}, {168, -1}, {2 * size, -1}, {size, 10}, {0, 0}} {
		from, to := Span(r[0], r[1], size)
		var err error
		if problem, err = p.get(ctx, key, r[0], r[1], b[from:to], len(b)); err != nil {
			return fmt.Errorf("read a probe object: %w", err)
		}
		if problem != "" {
			break
		}
	}
	p.find("ranges", Missing, problem)
	_, _, err := p.s.Get(ctx, p.id+"-none", 0, All)
	switch {
	case err == nil:
		p.find("not-found", Missing, "an object that does not exist is read")
	case errors.Is(err, ErrNotFound):
		p.find("not-found", Missing, "")
	case errors.Is(err, ErrDenied):
		p.find("not-found", Missing, "permission to list the bucket is missing: without it the store does not tell a missing object from a forbidden one")
	default:
		return fmt.Errorf("read a missing object: %w", err)
	}
	return nil
}

// lists stores objects and lists them at once.
func (p *probe) lists(ctx context.Context) error {
	// "-" < "." < "/" < "0": a store that sorts by directories has another order.
	keys := []string{p.id + "-b", p.id + ".b", p.id + "/b", p.id + "0"}
	for _, key := range slices.Backward(keys) {
		if err := p.put(ctx, key, content(key, 10), PutOptions{Create: true}); err != nil {
			return fmt.Errorf("store a probe object: %w", err)
		}
	}
	all := append([]string{p.id + "-a"}, keys...)
	problem := ""
	for i, after := range append([]string{""}, all...) {
		var got []string
		for info, err := range p.s.List(ctx, p.id, after) {
			if errors.Is(err, ErrLied) {
				problem = err.Error()
				break
			} else if err != nil {
				return fmt.Errorf("list the probe objects: %w", err)
			}
			got = append(got, info.Key)
		}
		if problem == "" && !slices.Equal(got, all[i:]) {
			problem = fmt.Sprintf("objects just stored, listed after %q, in order: %q, want %q", after, got, all[i:])
		}
		if problem != "" {
			break
		}
	}
	p.find("list", Missing, problem)
	return nil
}

// race lets several writers create one key.
func (p *probe) race(ctx context.Context) error {
	problem := ""
	for round := 0; round < probeRaces && problem == ""; round++ {
		key := fmt.Sprintf("%s-race%d", p.id, round)
		errs := make([]error, probeRacers)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				errs[i] = p.put(ctx, key, content(fmt.Sprint(i), 1000), PutOptions{Create: true})
			})
		}
		wg.Wait()
		var winners []int
		for i, err := range errs {
			if err == nil {
				winners = append(winners, i)
			} else if !errors.Is(err, ErrExists) {
				return fmt.Errorf("create an object at the same time: %w", err)
			}
		}
		if len(winners) != 1 {
			problem = fmt.Sprintf("of %d writers that create one object at the same time %d succeed", probeRacers, len(winners))
			break
		}
		var err error
		if problem, err = p.get(ctx, key, 0, All, content(fmt.Sprint(winners[0]), 1000), 1000); err != nil {
			return err
		}
	}
	p.find("create-race", Missing, problem)
	return nil
}

// lock tries to delete an object that is locked for a minute.
func (p *probe) lock(ctx context.Context) error {
	key := p.id + "-locked"
	b := content(key, 1000)
	now := Date(p.s)
	if now.IsZero() {
		now = p.o.Now()
	}
	until := now.Add(time.Minute).Truncate(time.Second)
	err := p.put(ctx, key, b, PutOptions{Create: true, Retain: Retention{p.o.Lock, until}})
	if err != nil {
		if Temporary(err) || ctx.Err() != nil {
			return err
		}
		p.find("object-lock", Missing, err.Error())
		return nil
	}
	r, err := GetRetention(ctx, p.s, key, "")
	switch {
	case errors.Is(err, ErrDenied): // a writer need not have this permission
	case err != nil:
		if Temporary(err) {
			return err
		}
		p.find("object-lock", Missing, err.Error())
		return nil
	case !r.IsZero() && (r.Mode != p.o.Lock || r.Until.Before(until)): // zero: perhaps not allowed to see it
		p.find("object-lock", Missing, fmt.Sprintf("an object locked (%s) until %s is said to be locked (%s) until %s", p.o.Lock, until.Format(time.RFC3339), r.Mode, r.Until.Format(time.RFC3339)))
		return nil
	}
	_, info, err := p.s.Get(ctx, key, 0, 0)
	if err != nil {
		return err
	}
	err = DeleteVersions(ctx, p.s, []Version{{Info: info}})
	if Temporary(err) {
		return err
	}
	problem, err := p.getVersion(ctx, info, b)
	if err != nil {
		return err
	}
	if problem != "" {
		problem = "a locked object can be deleted: " + problem
	}
	p.find("object-lock", Missing, problem)
	return nil
}

// getVersion is get of a whole version.
func (p *probe) getVersion(ctx context.Context, info Info, want []byte) (problem string, err error) {
	r, _, err := GetVersion(ctx, p.s, info.Key, info.Version, 0, All)
	if err == nil {
		defer r.Close()
		var got []byte
		if got, err = io.ReadAll(r); err == nil && !bytes.Equal(got, want) {
			return "other bytes than those stored", nil
		}
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrLied) {
		return err.Error(), nil
	}
	return "", err
}

// remove deletes what the probe stored, if that is allowed: a writer need not have the
// permission. What is left, locked objects for one, prune deletes.
func (p *probe) remove(ctx context.Context) {
	p.mu.Lock()
	keys := slices.Compact(slices.Sorted(slices.Values(p.keys)))
	p.mu.Unlock()
	err := p.s.Delete(ctx, keys)
	if err == nil {
		p.find("delete", Warning, "")
		return
	}
	p.rep.Left = keys
	if errors.Is(err, ErrDenied) {
		p.rep.Findings = append(p.rep.Findings, Finding{"delete", OK, "may not be deleted from this host"})
		return
	}
	p.find("delete", Warning, err.Error())
}
