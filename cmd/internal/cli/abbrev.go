package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const firstWordKey = "first word ends options"

// StopAtFirstWord makes everything from the first word on, options too, the
// arguments of the command.
func StopAtFirstWord(c *cobra.Command) {
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations[firstWordKey] = "yes"
}

func stopsAtFirstWord(c *cobra.Command) bool { return c.Annotations[firstWordKey] != "" }

// expandOptions replaces unambiguous prefixes of long options by the options.
func expandOptions(root *cobra.Command, args []string) ([]string, error) {
	cmd, _, err := root.Find(args)
	if err != nil {
		return args, nil // cobra says the same again, to the user
	}
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		return args, nil
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.AddFlagSet(cmd.Flags())
	flags.AddFlagSet(cmd.PersistentFlags())
	flags.AddFlagSet(cmd.InheritedFlags())

	out := slices.Clone(args)
	for i := 0; i < len(out); i++ {
		arg := out[i]
		switch {
		case arg == "--":
			return out, nil
		case strings.HasPrefix(arg, "--"):
			name, value, hasValue := strings.Cut(arg[2:], "=")
			f, err := findFlag(flags, name)
			if err != nil {
				return nil, err
			}
			if f == nil {
				continue // unknown: for pflag to refuse
			}
			out[i] = "--" + f.Name
			if hasValue {
				out[i] += "=" + value
			} else if f.NoOptDefVal == "" {
				i++
			}
		case len(arg) > 1 && arg[0] == '-':
			if takesNext(flags, arg[1:]) {
				i++
			}
		case stopsAtFirstWord(cmd):
			return out, nil
		}
	}
	return out, nil
}

// findFlag returns the option of that name, or the only one it is a prefix of.
func findFlag(flags *pflag.FlagSet, name string) (*pflag.Flag, error) {
	if f := flags.Lookup(name); f != nil {
		return f, nil
	}
	var found []*pflag.Flag
	flags.VisitAll(func(f *pflag.Flag) {
		if strings.HasPrefix(f.Name, name) && !f.Hidden && f.Annotations[inFullKey] == nil {
			found = append(found, f)
		}
	})
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return found[0], nil
	}
	names := make([]string, len(found))
	for i, f := range found {
		names[i] = "--" + f.Name
	}
	return nil, Usagef("ambiguous option: --%s could match %s", name, strings.Join(names, ", "))
}

// takesNext reports whether a group of short options ends in one whose value is
// the next argument.
func takesNext(flags *pflag.FlagSet, group string) bool {
	for i := range len(group) {
		f := flags.ShorthandLookup(group[i : i+1])
		if f == nil {
			return false
		}
		if f.NoOptDefVal == "" {
			return i == len(group)-1
		}
	}
	return false
}
