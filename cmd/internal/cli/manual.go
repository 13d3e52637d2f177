package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manualCommand is the hidden command of all programs that writes the manual pages and the
// completion of shells into a directory, for packages.
const manualCommand = "__manual"

// Programs are all programs that are installed.
var Programs = []string{"neoadmin", "neobackup", "neobench", "neoctl", "neoexport", "neofs", "neolog", "neomaster", "neomigrate", "neosimple", "neostorage", "neozeo"}

// usualFiles are the files that are where packages put them: paths and what they are.
var usualFiles = map[string][][2]string{
	"neomaster":  {nodeFile},
	"neostorage": {nodeFile, {"/etc/neo/importer.conf.example", "example of the configuration of an import"}, {"/var/lib/neo", "state directory of the service"}},
	"neoadmin":   {nodeFile},
	"neozeo":     {nodeFile},
	"neosimple":  {{"/etc/default/neosimple", "options of the service"}, {"/var/lib/neo/simple", "databases of the service"}},
	"neoctl":     {{"/etc/neo/tls", "certificates that tls init makes"}},
	"neobackup":  {{"/etc/neo/neobackup.conf", "configuration; an example is beside it"}, {"/var/lib/neobackup", "state directory of the service"}},
}

var nodeFile = [2]string{"/etc/neo/neo.conf", "configuration of the services; an example is beside it"}

// writeManual writes man1/PROGRAM.1 and one page for each subcommand, and the completion as
// bash, zsh and fish look for it.
//
// date is when the program was made, a day, or empty.
func writeManual(root *cobra.Command, dir, date string) error {
	root.InitDefaultHelpFlag()
	root.InitDefaultVersionFlag()
	var err error
	write := func(name string, text []byte) {
		path := filepath.Join(dir, name)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err == nil {
			err = os.WriteFile(path, text, 0o644)
		}
	}
	forEachCommand(root, func(c *cobra.Command) {
		if !c.Hidden && !c.IsAdditionalHelpTopicCommand() && c.Name() != "help" {
			c.InitDefaultHelpFlag()
			write("man1/"+pageName(c)+".1", manualPage(c, date))
		}
	})
	for name, generate := range map[string]func(*bytes.Buffer) error{
		"bash/" + root.Name():           func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) },
		"zsh/_" + root.Name():           func(b *bytes.Buffer) error { return root.GenZshCompletion(b) },
		"fish/" + root.Name() + ".fish": func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) },
	} {
		var b bytes.Buffer
		if err := generate(&b); err != nil {
			return err
		}
		write(name, b.Bytes())
	}
	return err
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manualPage returns the page of a command, from its help: its last paragraph tells the exit status.
func manualPage(c *cobra.Command, date string) []byte {
	var b bytes.Buffer
	name, root := pageName(c), c.Root()
	fmt.Fprintf(&b, ".TH %s 1 \"%s\" \"%s\" \"NEO\"\n", strings.ToUpper(roff(name)), date, roff(root.Name()+" "+root.Version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(strings.TrimSuffix(c.Short, ".")))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n\\fB%s\\fR", roff(c.CommandPath()))
	if _, rest, found := strings.Cut(strings.TrimPrefix(c.UseLine(), c.CommandPath()), " "); found {
		fmt.Fprintf(&b, " %s", roff(rest))
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n.br\n\\fB%s\\fR COMMAND [options]", roff(c.CommandPath()))
	}
	description, status := strings.TrimSpace(cmp.Or(c.Long, c.Short)), ""
	if i := strings.LastIndex(description, "\nExit status: "); i >= 0 {
		description, status = description[:i], strings.TrimPrefix(description[i:], "\nExit status: ")
	}
	b.WriteString("\n.SH DESCRIPTION\n")
	writeText(&b, description)
	if c.HasAvailableSubCommands() {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() && sub.Name() != "help" {
				fmt.Fprintf(&b, ".TP\n\\fB%s\\fR(1)\n%s\n", roff(pageName(sub)), line(sub.Short))
			}
		}
	}
	b.WriteString(".SH OPTIONS\n")
	c.LocalFlags().VisitAll(func(f *pflag.Flag) { writeOption(&b, f) })
	c.InheritedFlags().VisitAll(func(f *pflag.Flag) { writeOption(&b, f) })
	if status != "" {
		b.WriteString(".SH EXIT STATUS\n")
		code := false
		for _, s := range strings.Split(strings.TrimSuffix(strings.Join(strings.Fields(status), " "), "."), "; ") {
			number, meaning, found := strings.Cut(s, " ")
			if found && strings.Trim(number, "0123456789") == "" {
				code = true
				fmt.Fprintf(&b, ".TP\n\\fB%s\\fR\n%s\n", number, line(meaning))
			} else if code {
				fmt.Fprintf(&b, "; %s\n", roff(s)) // goes on
			} else {
				fmt.Fprintf(&b, "%s\n", line(s))
			}
		}
	}
	if files := usualFiles[root.Name()]; files != nil {
		b.WriteString(".SH FILES\n")
		for _, f := range files {
			fmt.Fprintf(&b, ".TP\n\\fI%s\\fR\n%s\n", roff(f[0]), line(f[1]))
		}
	}
	var others []string
	if c.HasParent() {
		others = append(others, pageName(c.Parent()))
	}
	for _, p := range Programs {
		if p != root.Name() && p != name {
			others = append(others, p)
		}
	}
	slices.Sort(others)
	b.WriteString(".SH SEE ALSO\n")
	for i, o := range others {
		comma := ","
		if i == len(others)-1 {
			comma = ""
		}
		fmt.Fprintf(&b, ".BR %s (1)%s\n", roff(o), comma)
	}
	b.WriteString(".PP\nThe documentation is in /usr/share/doc/neozodb, and at https://github.com/neozodb/neo.\n")
	return b.Bytes()
}

func writeOption(b *bytes.Buffer, f *pflag.Flag) {
	if f.Hidden {
		return
	}
	value, usage := pflag.UnquoteUsage(f)
	b.WriteString(".TP\n")
	if f.Shorthand != "" {
		fmt.Fprintf(b, "\\fB\\-%s\\fR, ", f.Shorthand)
	}
	fmt.Fprintf(b, "\\fB\\-\\-%s\\fR", roff(f.Name))
	if value != "" {
		fmt.Fprintf(b, " \\fI%s\\fR", roff(value))
	}
	if !slices.Contains([]string{"", "0", "false", "[]"}, f.DefValue) {
		usage += fmt.Sprintf(" (default %s)", f.DefValue)
	}
	fmt.Fprintf(b, "\n%s\n", line(usage))
}

// writeText writes a help text: lines that are indented stay as they are, others are filled.
func writeText(b *bytes.Buffer, text string) {
	literal, gap := false, false
	set := func(to bool) {
		if literal != to {
			b.WriteString(map[bool]string{true: ".PP\n.nf\n", false: ".fi\n"}[to])
			literal = to
			gap = gap && !to
		}
	}
	for _, l := range strings.Split(text, "\n") {
		if strings.TrimSpace(l) == "" {
			gap = true
			continue
		}
		indented := l[0] == ' ' || l[0] == '\t'
		was := literal
		set(indented)
		switch {
		case gap && indented:
			b.WriteString("\n")
		case gap || was && !indented:
			b.WriteString(".PP\n")
		}
		gap = false
		fmt.Fprintf(b, "%s\n", line(strings.TrimRight(l, " ")))
	}
	set(false)
}

// roff returns a text as troff prints it.
func roff(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "\t", "        ").Replace(s)
}

// line is roff of what begins a line, where some characters would make it a request.
func line(s string) string {
	s = roff(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		return `\&` + s
	}
	return s
}
