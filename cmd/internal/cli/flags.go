package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/spf13/pflag"
)

// Text defines an option whose value is a text that is not empty.
func Text(fs *pflag.FlagSet, p *string, name, short, def, usage string) {
	*p = def
	fs.VarP((*text)(p), name, short, usage)
}

// Path defines an option whose value is a path: ~ and ~user are expanded.
func Path(fs *pflag.FlagSet, p *string, name, short, def, usage string) {
	*p = def
	fs.VarP((*path)(p), name, short, usage)
}

// Flag defines an option without value. In a file it is yes or no.
func Flag(fs *pflag.FlagSet, p *bool, name, short string, usage string) {
	fs.BoolVarP(p, name, short, false, usage)
}

// Texts defines an option that may be repeated. In a file its values are the
// lines; those of the command line are added.
func Texts(fs *pflag.FlagSet, p *[]string, name, short, usage string) {
	fs.StringArrayVarP(p, name, short, nil, usage)
}

type text string

func (t *text) Set(s string) error {
	if s == "" {
		return errors.New("value is empty")
	}
	*t = text(s)
	return nil
}
func (t *text) String() string { return string(*t) }
func (t *text) Type() string   { return "text" }

type path string

func (p *path) Set(s string) error {
	if s == "" {
		return errors.New("value is empty")
	}
	expanded, err := conf.ExpandUser(s)
	*p = path(expanded)
	return err
}
func (p *path) String() string { return string(*p) }
func (p *path) Type() string   { return "path" }

const (
	requiredKey    = "required"
	commandLineKey = "only on the command line"
	inFullKey      = "not abbreviated"
)

// Required marks options that must be given, on the command line or in the file.
func Required(fs *pflag.FlagSet, names ...string) { annotate(fs, requiredKey, names) }

// CommandLineOnly marks options that a configuration file must not set.
func CommandLineOnly(fs *pflag.FlagSet, names ...string) { annotate(fs, commandLineKey, names) }

// InFull marks options that must be spelt out, so that the abbreviations of others,
// which are in scripts, stay unambiguous.
func InFull(fs *pflag.FlagSet, names ...string) { annotate(fs, inFullKey, names) }

func annotate(fs *pflag.FlagSet, key string, names []string) {
	for _, n := range names {
		if err := fs.SetAnnotation(n, key, []string{"yes"}); err != nil {
			panic(fmt.Sprintf("cli: %v", err)) // an option we did not define
		}
	}
}

// MergeFile gives the options that were not on the command line the values that
// a section of a configuration file has for them, and checks that the required
// ones have got a value. An empty path means no file. The key of an option is its
// long name with _ for -. Keys of other programs are ignored, since one file serves all
// of them; those that none of them has are refused. Errors say where the value came from.
func MergeFile(fs *pflag.FlagSet, file, section string) error {
	_, err := mergeFile(fs, file, section)
	return err
}

// mergeFile is [MergeFile], and returns the keys of the section that are for other programs.
func mergeFile(fs *pflag.FlagSet, file, section string) (unused []string, err error) {
	if file != "" {
		s, others, err := readSection(fs, file, section)
		if err != nil {
			return nil, err
		}
		unused = others
		if err := mergeSection(fs, s, file, section); err != nil {
			return nil, &badConfig{err}
		}
	} else if f := fs.Lookup("section"); f != nil && f.Changed {
		return nil, Usagef("--section %s is the section of a configuration file, and none is given", section)
	}
	var missing []string
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Annotations[requiredKey] != nil && !f.Changed {
			missing = append(missing, "--"+f.Name)
		}
	})
	if missing != nil {
		return nil, Usagef("required and neither on the command line nor in a configuration file: %s", strings.Join(missing, ", "))
	}
	return unused, nil
}

// ReadSection reads a section of a configuration file, for a command that takes single keys
// of it. It refuses the keys that [MergeFile] refuses.
func ReadSection(file, section string) (*conf.Section, error) {
	s, _, err := readSection(pflag.NewFlagSet("", pflag.ContinueOnError), file, section)
	return s, err
}

// readSection is [ReadSection] for a command with options of its own, and returns the keys
// that are for other programs.
func readSection(fs *pflag.FlagSet, file, section string) (s *conf.Section, unused []string, err error) {
	f, err := conf.ReadFile(file)
	if err != nil {
		return nil, nil, badFile(err)
	}
	if s, err = f.Section(section); err == nil {
		unused, err = checkKeys(fs, f, s)
	}
	if err != nil {
		return nil, nil, &badConfig{err}
	}
	return s, unused, nil
}

// BadConfig makes an error one about what a configuration file says: exit code 2.
func BadConfig(err error) error { return &badConfig{err} }

// badConfig is what is wrong with a configuration file: exit code 2, without the usage of
// the command line, which is not at fault.
type badConfig struct{ err error }

func (e *badConfig) Error() string { return e.err.Error() }
func (e *badConfig) Unwrap() error { return e.err }

// badFile tells a file that cannot be understood, or is not there, from one that cannot be read.
func badFile(err error) error {
	if _, ok := errors.AsType[*conf.SyntaxError](err); ok || errors.Is(err, os.ErrNotExist) {
		return &badConfig{err}
	}
	return err
}

// flagError says in plain words why pflag refuses a value.
func flagError(err error) error {
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		if e := valueError(invalid.Unwrap(), invalid.GetFlag().Value.Type(), invalid.GetValue()); e != nil {
			return fmt.Errorf("--%s: %w", invalid.GetFlag().Name, e)
		}
		if cause := invalid.Unwrap(); cause != nil && invalid.GetFlag().Value.Type() != "bool" {
			return fmt.Errorf("--%s: %w", invalid.GetFlag().Name, cause)
		}
	}
	return err
}

// valueError returns a plain error for a value of a numeric option that cannot be
// read, and nil for any other error.
func valueError(err error, typ, value string) error {
	e, ok := errors.AsType[*strconv.NumError](err)
	switch {
	case !ok:
		return nil
	case errors.Is(e.Err, strconv.ErrRange):
		return fmt.Errorf("%q is too large or too small", value)
	case typ == "int":
		return fmt.Errorf("%q is not a whole number", value)
	case typ == "float64":
		return fmt.Errorf("%q is not a number", value)
	}
	return nil
}

func mergeSection(fs *pflag.FlagSet, s *conf.Section, file, section string) error {
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) {
		key := keyOf(f)
		if !s.Has(key) {
			return
		}
		given := f.Changed
		if err := mergeOption(f, s, key); err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: section %q: key %q: %w", file, s.KeyLine(key), section, key, err))
		}
		if !given && !s.Own(key) {
			annotate(fs, fromDefaultKey, []string{f.Name})
		}
	})
	return errors.Join(errs...)
}

func mergeOption(f *pflag.Flag, s *conf.Section, key string) error {
	if f.Annotations[commandLineKey] != nil {
		return errors.New("only allowed on the command line")
	}
	if list, ok := f.Value.(pflag.SliceValue); ok {
		lines, err := s.List(key)
		if err != nil {
			return err
		}
		if f.Changed {
			lines = append(lines, list.GetSlice()...)
		}
		f.Changed = true
		return list.Replace(slices.Clip(lines))
	}
	if f.Changed {
		return nil
	}
	value, _, err := s.Get(key)
	if err != nil {
		return err
	}
	if f.Value.Type() == "bool" {
		b, err := conf.ParseBool(value)
		if err != nil {
			return err
		}
		value = fmt.Sprint(b)
	}
	if err := f.Value.Set(value); err != nil {
		if e := valueError(err, f.Value.Type(), value); e != nil {
			return e
		}
		return err
	}
	f.Changed = true
	return nil
}
