package nodelog

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
)

// record is a row of table log.
type record struct {
	level int
	path  string // relative to the module
	line  int
	msg   string
}

// Levels as Python's logging has them.
const (
	levelDebug    = 10
	levelInfo     = 20
	levelWarning  = 30
	levelError    = 40
	levelCritical = 50
)

func pythonLevel(l slog.Level) int {
	switch {
	case l < slog.LevelInfo:
		return levelDebug
	case l < slog.LevelWarn:
		return levelInfo
	case l < slog.LevelError:
		return levelWarning
	case l < slog.LevelError+4:
		return levelError
	}
	return levelCritical
}

// LevelName returns the name of a level of table log.
func LevelName(level int) string {
	switch level {
	case levelDebug:
		return "DEBUG"
	case levelInfo:
		return "INFO"
	case levelWarning:
		return "WARNING"
	case levelError:
		return "ERROR"
	case levelCritical:
		return "CRITICAL"
	}
	return "Level " + strconv.Itoa(level)
}

func newRecord(r slog.Record, group, attrs string) *record {
	rec := &record{level: pythonLevel(r.Level)}
	if src := source(r); src != nil {
		rec.path, rec.line = src.File, src.Line
	}
	rec.msg = message(r, group, attrs)
	return rec
}

// message returns the text of a record, with its attributes as key=value.
func message(r slog.Record, group, attrs string) string {
	b := append([]byte(r.Message), attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, group, a)
		return true
	})
	return string(b)
}

// appendAttr appends " key=value", the value quoted if needed.
func appendAttr(b []byte, group string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return b
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range v.Group() {
			b = appendAttr(b, group, inner)
		}
		return b
	}
	b = append(b, ' ')
	b = append(b, group...)
	b = append(b, a.Key...)
	b = append(b, '=')
	s := v.String()
	if s == "" || strings.ContainsAny(s, " =\"\n\t") {
		return strconv.AppendQuote(b, s)
	}
	return append(b, s...)
}

// modulePath is what packages of this module start with.
const modulePath = "github.com/neozodb/neo/"

type place struct {
	File string // relative to the module
	Line int
}

// source returns where a record was made, or nil.
func source(r slog.Record) *place {
	if r.PC == 0 {
		return nil
	}
	f, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
	// The function tells the package whatever directory the source was in.
	pkg, _, _ := strings.Cut(path.Base(f.Function), ".")
	pkg = path.Join(path.Dir(f.Function), pkg)
	return &place{path.Join(strings.TrimPrefix(pkg, modulePath), path.Base(f.File)), f.Line}
}

// NewTextHandler returns a handler that writes records of at least some level as
// text, for people:
//
//	2026-11-20 20:08:06.849 WARNING  message key=value
//
// in local time, with the same start on each line of a message of several.
func NewTextHandler(w io.Writer, min slog.Leveler) slog.Handler {
	return &textHandler{w: w, min: min, mu: &sync.Mutex{}}
}

// NewJournalHandler is [NewTextHandler] for the journal of systemd, which knows the time:
// a line begins with its priority instead, as syslog has them.
//
//	<4>WARNING  message key=value
func NewJournalHandler(w io.Writer, min slog.Leveler) slog.Handler {
	return &textHandler{w: w, min: min, mu: &sync.Mutex{}, journal: true}
}

// priority returns the priority of syslog that a level has.
func priority(l slog.Level) int {
	switch {
	case l < slog.LevelInfo:
		return 7
	case l < slog.LevelWarn:
		return 6
	case l < slog.LevelError:
		return 4
	}
	return 3
}

// NewJSONHandler returns a handler that writes records of at least some level as JSON, an
// object in each line with time, level and msg. What has a text form, as durations,
// transaction ids and addresses have, is written as that text.
func NewJSONHandler(w io.Writer, min slog.Leveler) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: min, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch v := a.Value; v.Kind() {
		case slog.KindDuration:
			a.Value = slog.StringValue(v.Duration().String())
		case slog.KindAny:
			switch x := v.Any().(type) {
			case slog.Level:
				a.Value = slog.StringValue(LevelName(pythonLevel(x)))
			case error, json.Marshaler: // errors are written as their text
			default:
				a.Value = slog.StringValue(fmt.Sprint(x))
			}
		}
		return a
	}})
}

type textHandler struct {
	w            io.Writer
	min          slog.Leveler
	mu           *sync.Mutex // of w
	attrs, group string
	journal      bool
}

func (h *textHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.min.Level() }

func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	start := fmt.Sprintf("%s %-8s ", r.Time.Format("2006-01-02 15:04:05.000"), LevelName(pythonLevel(r.Level)))
	if h.journal {
		start = fmt.Sprintf("<%d>%-8s ", priority(r.Level), LevelName(pythonLevel(r.Level)))
	}
	var b bytes.Buffer
	for l := range strings.SplitSeq(message(r, h.group, h.attrs), "\n") {
		b.WriteString(start)
		b.WriteString(l)
		b.WriteByte('\n')
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b.Bytes())
	return err
}

func (h *textHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	for _, a := range attrs {
		c.attrs = string(appendAttr([]byte(c.attrs), c.group, a))
	}
	return &c
}

func (h *textHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}
