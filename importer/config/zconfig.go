package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

const (
	maxDepth = 8       // of sections in each other: storages have three levels
	maxValue = 1 << 16 // bytes of a value after substitution
)

// zsection is a section of ZConfig: <kind name> … </kind>.
type zsection struct {
	kind     string // in lower case
	written  string // as it stands there
	line     int
	settings []setting
	sections []*zsection
}

// setting is a line with a key.
type setting struct {
	key   string // in lower case
	value string
	line  int
}

// zparser reads the syntax of ZConfig.
type zparser struct {
	errorf  func(line int, format string, args ...any) error
	warnf   func(line int, format string, args ...any)
	line    func(i int) int // of the file, for a line of the text
	defines map[string]string
}

var (
	header  = regexp.MustCompile(`^([^\s()]+)(?:\s+[^\s()]+)?$`)
	keyed   = regexp.MustCompile(`^([^\s()]+)\s*(\S.*)?$`)
	isName  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	isValue = regexp.MustCompile(`^\$(?:\$|\{([a-zA-Z_][a-zA-Z0-9_]*)\}|\(([a-zA-Z_][a-zA-Z0-9_]*)\)|([a-zA-Z_][a-zA-Z0-9_]*))`)
)

// parse returns the sections of a text of nothing but sections.
func (z *zparser) parse(lines []string) ([]*zsection, error) {
	open := []*zsection{{}} // the text itself, then those inside each other
	for i, text := range lines {
		line := z.line(i)
		top := open[len(open)-1]
		text = strings.TrimSpace(text)
		switch {
		case text == "" || text[0] == '#':
		case strings.HasPrefix(text, "</"):
			kind, ok := strings.CutSuffix(text[2:], ">")
			kind = strings.TrimSpace(kind)
			if !ok || len(open) == 1 || strings.ToLower(kind) != top.kind {
				want := "no section is open"
				if len(open) > 1 {
					want = fmt.Sprintf("want </%s>, the end of line %d", top.written, top.line)
				}
				return nil, z.errorf(line, "%q: %s", text, want)
			}
			open = open[:len(open)-1]
		case text[0] == '<':
			s, empty, err := z.header(text, line)
			if err != nil {
				return nil, err
			}
			top.sections = append(top.sections, s)
			if empty {
				continue
			}
			if open = append(open, s); len(open) > maxDepth {
				return nil, z.errorf(line, "more than %d sections inside each other", maxDepth-1)
			}
		case text[0] == '%':
			if err := z.directive(text[1:], line); err != nil {
				return nil, err
			}
		default:
			m := keyed.FindStringSubmatch(text)
			if m == nil {
				return nil, z.errorf(line, "%q is neither a section nor a key and its value", text)
			}
			if len(open) == 1 {
				return nil, z.errorf(line, "%q is outside of a section like <filestorage>", text)
			}
			value, err := z.substitute(m[2], line)
			if err != nil {
				return nil, err
			}
			top.settings = append(top.settings, setting{strings.ToLower(m[1]), value, line})
		}
	}
	if s := open[len(open)-1]; len(open) > 1 {
		return nil, z.errorf(s.line, "<%s> has no </%s>", s.written, s.written)
	}
	return open[0].sections, nil
}

// header reads <kind>, <kind name> or <kind/>, which is empty.
func (z *zparser) header(text string, line int) (s *zsection, empty bool, err error) {
	inner, ok := strings.CutSuffix(text[1:], ">")
	inner, empty = strings.CutSuffix(inner, "/")
	m := header.FindStringSubmatch(strings.TrimSpace(inner))
	if !ok || m == nil {
		return nil, false, z.errorf(line, "%q is no section like <filestorage>", text)
	}
	return &zsection{kind: strings.ToLower(m[1]), written: m[1], line: line}, empty, nil
}

// directive reads what follows %.
func (z *zparser) directive(text string, line int) error {
	m := keyed.FindStringSubmatch(text)
	switch {
	case m == nil || m[1] != "define" && m[1] != "import" && m[1] != "include":
		return z.errorf(line, "%q is none of %%define and %%import", "%"+text)
	case m[2] == "":
		return z.errorf(line, "nothing follows %%%s", m[1])
	}
	switch m[1] {
	case "include":
		return z.errorf(line, "%%include is not supported: write the text of %s in its place", m[2])
	case "import":
		// It makes kinds of sections known, and we know ours.
		if m[2] != "ZEO" && m[2] != "neo.client" {
			z.warnf(line, "%%import %s is ignored: <filestorage>, <blobstorage>, <zeoclient>, <clientstorage> and <NEOStorage> are known without it, and no other storages", m[2])
		}
		return nil
	}
	name, value := m[2], ""
	if i := strings.IndexAny(m[2], " \t"); i >= 0 {
		name, value = m[2][:i], strings.TrimSpace(m[2][i:])
	}
	if !isName.MatchString(name) {
		return z.errorf(line, "%%define %s: a name has letters, digits and _", name)
	}
	name = strings.ToLower(name)
	value, err := z.substitute(value, line)
	if err != nil {
		return err
	}
	if old, dup := z.defines[name]; dup && old != value {
		return z.errorf(line, "%%define %s: it is already %q", name, old)
	}
	z.defines[name] = value
	return nil
}

// substitute replaces $name and ${name} by what %define says, $(NAME) by the variable
// of the environment, and $$ by $.
func (z *zparser) substitute(text string, line int) (string, error) {
	var b strings.Builder
	for {
		i := strings.IndexByte(text, '$')
		if i < 0 {
			i = len(text)
		}
		b.WriteString(text[:i])
		if b.Len() > maxValue {
			return "", z.errorf(line, "the value is longer than %d bytes", maxValue)
		}
		if text = text[i:]; text == "" {
			return b.String(), nil
		}
		m := isValue.FindStringSubmatch(text)
		if m == nil {
			return "", z.errorf(line, "%q: $ begins the name of a %%define, and is written $$ else", text)
		}
		text = text[len(m[0]):]
		switch {
		case m[0] == "$$":
			b.WriteByte('$')
		case m[2] != "":
			v, ok := os.LookupEnv(m[2])
			if !ok {
				return "", z.errorf(line, "the environment has no %s", m[2])
			}
			b.WriteString(v)
		default:
			v, ok := z.defines[strings.ToLower(m[1]+m[3])]
			if !ok {
				return "", z.errorf(line, "no %%define above has the name %s; a $ alone is written $$", m[1]+m[3])
			}
			b.WriteString(v)
		}
	}
}
