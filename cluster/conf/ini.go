package conf

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode"
)

// defaultSection is the section whose keys every other one inherits.
const defaultSection = "DEFAULT"

// maxLine is the longest line of a configuration file, in bytes.
const maxLine = 1 << 20

// maxDepth is how often the text put in place of %(key)s may contain %(key)s
// itself, as in Python's ConfigParser.
const maxDepth = 10

// A File is a configuration file in the dialect of Python's ConfigParser:
//
//	[section]
//	key = value      or   key: value
//	list = first     an indented line continues the value
//	    second
//	# comment        also ;  (only as a line of its own)
//	path = %(dir)s/x puts the value of another key of the section
//	literal = 50%%
//
// Keys are not case-sensitive, sections are. The keys of [DEFAULT] are visible
// in every section.
type File struct {
	name     string
	order    []string
	sections map[string]map[string]entry
	lines    map[string]int // of the headers
}

// entry is what is set under a key.
type entry struct {
	raw   string
	lines []int // of the file, for each line of raw
}

// A SyntaxError tells where a configuration file cannot be understood.
type SyntaxError struct {
	File string
	Line int // from 1
	Msg  string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg) }

// ReadFile reads a configuration file. A leading ~ in the path is expanded.
func ReadFile(path string) (*File, error) {
	path, err := ExpandUser(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close() // only read
	return Parse(f, path)
}

// Parse reads a configuration file. name is for the error messages, which are
// of type [*SyntaxError] unless reading fails.
func Parse(r io.Reader, name string) (*File, error) {
	p := parser{file: &File{name: name, sections: map[string]map[string]entry{}, lines: map[string]int{}}}
	p.file.sections[defaultSection] = map[string]entry{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		p.line++
		if err := p.add(s.Text()); err != nil {
			return nil, err
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, p.line+1, err)
	}
	p.endValue()
	return p.file, nil
}

// parser holds what a line means depends on.
type parser struct {
	file    *File
	line    int
	section map[string]entry // nil before the first header
	header  string
	key     string   // being read, "" if none
	value   []string // its lines so far
	lines   []int    // where they are
	indent  int      // of the line of the key
}

func (p *parser) errorf(format string, args ...any) error {
	return &SyntaxError{p.file.name, p.line, fmt.Sprintf(format, args...)}
}

func (p *parser) add(line string) error {
	text := strings.TrimSpace(line)
	switch {
	case text == "":
		if p.key != "" {
			p.extend("")
		}
		return nil
	case text[0] == '#' || text[0] == ';':
		return nil
	}
	indent := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsSpace(r) })
	if p.key != "" && indent > p.indent {
		p.extend(text)
		return nil
	}
	p.indent = indent
	if name, ok := sectionHeader(text); ok {
		return p.startSection(name)
	}
	if p.section == nil {
		return p.errorf("%q comes before any [section]", text)
	}
	i := strings.IndexAny(text, "=:")
	if i < 0 {
		return p.errorf("%q is neither a [section] nor key = value", text)
	}
	key := strings.ToLower(strings.TrimSpace(text[:i]))
	if key == "" {
		return p.errorf("no key before %q", text)
	}
	p.endValue()
	if _, dup := p.section[key]; dup {
		return p.errorf("key %q is already set in section %q", key, p.header)
	}
	p.section[key] = entry{}
	p.key = key
	p.extend(strings.TrimSpace(text[i+1:]))
	return nil
}

// extend adds a line to the value that is being read.
func (p *parser) extend(text string) {
	p.value = append(p.value, text)
	p.lines = append(p.lines, p.line)
}

// sectionHeader recognizes [name], whatever follows it.
func sectionHeader(text string) (string, bool) {
	end := strings.LastIndexByte(text, ']')
	if text[0] != '[' || end < 2 {
		return "", false
	}
	return text[1:end], true
}

func (p *parser) startSection(name string) error {
	p.endValue()
	p.header = name
	if name == defaultSection {
		p.section = p.file.sections[name]
		return nil
	}
	if _, dup := p.file.sections[name]; dup {
		return p.errorf("section %q is already there", name)
	}
	p.section = map[string]entry{}
	p.file.lines[name] = p.line
	p.file.sections[name] = p.section
	p.file.order = append(p.file.order, name)
	return nil
}

func (p *parser) endValue() {
	if p.key != "" {
		raw := strings.TrimRightFunc(strings.Join(p.value, "\n"), unicode.IsSpace)
		p.section[p.key] = entry{raw: raw, lines: p.lines[:strings.Count(raw, "\n")+1]}
		p.key, p.value, p.lines = "", nil, nil
	}
}

// Name returns the name the file was read under.
func (f *File) Name() string { return f.name }

// Sections returns the names of the sections in file order, without DEFAULT.
func (f *File) Sections() []string { return slices.Clone(f.order) }

// Section returns a section. DEFAULT may be asked for too.
func (f *File) Section(name string) (*Section, error) {
	keys, ok := f.sections[name]
	if !ok {
		hint := DidYouMean(name, f.order)
		if hint == "" && len(f.order) > 0 {
			hint = ": the file has [" + strings.Join(f.order, "], [") + "]"
		}
		return nil, fmt.Errorf("%s: no section %q%s", f.name, name, hint)
	}
	all := maps.Clone(f.sections[defaultSection])
	maps.Copy(all, keys)
	return &Section{f.name, name, f.lines[name], all, keys}, nil
}

// Referenced reports whether the value of a key, of any section, refers to this one by
// %(key)s.
func (f *File) Referenced(key string) bool {
	ref := "%(" + strings.ToLower(key) + ")s"
	for _, entries := range f.sections {
		for _, e := range entries {
			// What is doubled is no reference.
			if strings.Contains(strings.ToLower(strings.ReplaceAll(e.raw, "%%", "")), ref) {
				return true
			}
		}
	}
	return false
}

// A Section is the keys of one section, with those of [DEFAULT] under them.
type Section struct {
	file, name string
	line       int
	entries    map[string]entry
	own        map[string]entry // without those of DEFAULT
}

// Keys returns the keys that are set, sorted.
func (s *Section) Keys() []string { return slices.Sorted(maps.Keys(s.entries)) }

// Has reports whether a key is set.
func (s *Section) Has(key string) bool {
	_, ok := s.entries[strings.ToLower(key)]
	return ok
}

// Own reports whether a key is set in the section itself, and not only in DEFAULT.
func (s *Section) Own(key string) bool {
	_, ok := s.own[strings.ToLower(key)]
	return ok
}

// Line returns the line of the file that the header of the section is on, from 1.
// It is 0 for DEFAULT, of which there may be several.
func (s *Section) Line() int { return s.line }

// KeyLine returns the line of the file that a key is on, from 1; 0 if it is not set.
func (s *Section) KeyLine(key string) int {
	e, ok := s.entries[strings.ToLower(key)]
	if !ok {
		return 0
	}
	return e.lines[0]
}

// ValueLines returns for each line of the value of a key, the first of which is beside
// the key, the line of the file it is on. Comments between them are not part of the value, and
// what the text of a reference adds in lines is not counted.
func (s *Section) ValueLines(key string) []int {
	return slices.Clone(s.entries[strings.ToLower(key)].lines)
}

// Get returns the value of a key, its references to other keys replaced, and
// whether it is set.
func (s *Section) Get(key string) (value string, ok bool, err error) {
	key = strings.ToLower(key)
	e, ok := s.entries[key]
	if !ok {
		return "", false, nil
	}
	budget := maxLine
	value, err = s.interpolate(e.raw, 1, &budget)
	if err != nil {
		return "", true, fmt.Errorf("%s:%d: section %q: key %q: %w", s.file, e.lines[0], s.name, key, err)
	}
	return value, true, nil
}

// List returns the lines of a value, without the empty ones: how an option that
// may be repeated is written in a file.
func (s *Section) List(key string) ([]string, error) {
	v, _, err := s.Get(key)
	if err != nil {
		return nil, err
	}
	return Lines(v), nil
}

// Lines splits a value of several lines, leaving out empty ones.
func Lines(value string) []string {
	var list []string
	for line := range strings.SplitSeq(value, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}
	return list
}

// interpolate replaces %% and %(key)s. budget bounds the bytes produced:
// ten levels of doubling references would fill any memory.
func (s *Section) interpolate(raw string, depth int, budget *int) (string, error) {
	if depth > maxDepth {
		return "", fmt.Errorf("more than %d references inside each other", maxDepth)
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(raw, '%')
		if i < 0 {
			i = len(raw)
		}
		b.WriteString(raw[:i])
		if *budget -= i + 1; *budget < 0 {
			return "", fmt.Errorf("value longer than %d bytes", maxLine)
		}
		raw = raw[i:]
		switch {
		case raw == "":
			return b.String(), nil
		case strings.HasPrefix(raw, "%%"):
			b.WriteByte('%')
			raw = raw[2:]
		case strings.HasPrefix(raw, "%("):
			end := strings.Index(raw, ")s")
			if end < 0 {
				return "", fmt.Errorf("%q is not a reference like %%(key)s", raw)
			}
			key := strings.ToLower(raw[2:end])
			inner, ok := s.entries[key]
			if !ok {
				return "", fmt.Errorf("refers to key %q, which is not set", key)
			}
			v, err := s.interpolate(inner.raw, depth+1, budget)
			if err != nil {
				return "", err
			}
			b.WriteString(v)
			raw = raw[end+2:]
		default:
			return "", fmt.Errorf("%% must be doubled or followed by (key)s: %q", raw)
		}
	}
}
