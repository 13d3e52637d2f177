package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// options is a daemon with an option of each kind.
type options struct {
	Daemon
	partitions int
	backup     bool
	dangerous  bool
	mails      []string
}

// sample is a command that prints its options as it understood them.
func sample(env *Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "neosample", Args: cobra.NoArgs, Long: "Tests options." + ExitStatus,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Load(cmd.Flags()); err != nil {
				return err
			}
			fmt.Fprintf(env.Stdout, "%s %s %s %d %v %v %s", o.Cluster, o.MasterList, o.BindTo, o.partitions, o.backup, o.mails, o.LogFile)
			return nil
		},
	}
	fs := cmd.Flags()
	o.AddFlags(fs, Storage)
	fs.IntVarP(&o.partitions, "partitions", "p", 100, "")
	Flag(fs, &o.backup, "backup", "B", "")
	Flag(fs, &o.dangerous, "reset", "", "")
	CommandLineOnly(fs, "reset")
	Texts(fs, &o.mails, "monitor-email", "", "")
	return cmd
}

func run(t *testing.T, build func(*Env) *cobra.Command, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	env := &Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err, Getenv: func(string) string { return "" }}
	code = Run(t.Context(), env, build)
	return code, out.String(), err.String()
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "neo.conf")
	content := `[DEFAULT]
cluster: test
masters: 10.0.0.1:1 10.0.0.2:2
dir = /var/lib/neo
replicas = 1
[storage]
partitions = 12
backup = on
monitor_email = a@x
   b@x
[s2]
logfile = %(dir)s/%(cluster)s.log
[bad]
partitions = many
[erase]
reset = yes
[empty]
cluster =
[typo]
replica = 1
upstream-cluster = x
owner = %%(nobody)s
`
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args       string
		want       string
		code       int
		wantStderr string
	}{
		{args: "-c x", want: "x 127.0.0.1:10000 127.0.0.1 100 false [] "},
		{args: "", code: 2, wantStderr: "--cluster"},
		{args: "-f FILE", want: "test 10.0.0.1:1 10.0.0.2:2 127.0.0.1 12 true [a@x b@x] "},
		{args: "-fFILE --part=3 --monitor-email c@x -c y", want: "y 10.0.0.1:1 10.0.0.2:2 127.0.0.1 3 true [a@x b@x c@x] "},
		{args: "-f FILE -s s2 -Bp7", want: "test 10.0.0.1:1 10.0.0.2:2 127.0.0.1 7 true [] /var/lib/neo/test.log"},
		{args: "-f FILE --section bad", code: 2, wantStderr: `FILE:14: section "bad": key "partitions"`},
		{args: "-f FILE -s erase", code: 2, wantStderr: "only allowed on the command line"},
		{args: "-f FILE -s empty", code: 2, wantStderr: "value is empty"},
		{args: "-f FILE -s nowhere", code: 2, wantStderr: `no section "nowhere": the file has [storage], [s2]`},
		{args: "-f FILE -s storge", code: 2, wantStderr: `no section "storge"; did you mean "storage"?`},
		{args: "-f FILE -s typo", code: 2, wantStderr: `FILE:20: unknown key "replica"; did you mean "replicas"?`},
		{args: "-f FILE -s typo", code: 2, wantStderr: `FILE:21: unknown key "upstream-cluster": keys are written with _, as in "upstream_cluster"`},
		{args: "-f FILE -s typo", code: 2, wantStderr: "FILE:22: unknown key \"owner\"\n"},
		{args: "-c x -s storage", code: 2, wantStderr: "none is given"},
		{args: "-c x --log-level warnin", code: 2, wantStderr: `--log-level: "warnin" is none of debug, info, warning, error; did you mean "warning"?`},
		{args: "-c x --log-format xml", code: 2, wantStderr: `"xml" is neither text nor json`},
		{args: "-f FILE.none", code: 2, wantStderr: "no such file"},
		{args: "--c x", code: 2, wantStderr: "ambiguous option: --c could match --ca, --cert, --cluster"},
		{args: "--cl x --log l", want: "x 127.0.0.1:10000 127.0.0.1 100 false [] l"},
		{args: "-c --part", want: "--part 127.0.0.1:10000 127.0.0.1 100 false [] "}, // a value, not an option
		{args: "-c x word", code: 2, wantStderr: "usage: neosample"},
		{args: "--nothing", code: 2, wantStderr: "unknown flag"},
		{args: "-c x -p many", code: 2, wantStderr: `: "many" is not a whole number`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			code, stdout, stderr := run(t, sample, strings.Fields(strings.ReplaceAll(tt.args, "FILE", file))...)
			if code != tt.code || stdout != tt.want || !strings.Contains(stderr, strings.ReplaceAll(tt.wantStderr, "FILE", file)) {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout, stderr, tt.code, tt.want, tt.wantStderr)
			}
		})
	}
}

func TestVersionAndHelp(t *testing.T) {
	code, stdout, _ := run(t, sample, "--version")
	if code != 0 || !strings.HasPrefix(stdout, "neosample ") {
		t.Errorf("--version: exit %d, %q", code, stdout)
	}
	code, stdout, _ = run(t, sample, "--help")
	if code != 0 || !strings.Contains(stdout, "Exit status: 0 done") || !strings.Contains(stdout, "--dynamic-master-list") {
		t.Errorf("--help: exit %d, %q", code, stdout)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err    error
		code   int
		stderr string
	}{
		{nil, 0, ""},
		{errors.New("database is locked"), 1, "error: database is locked\n"},
		{&Exit{3, errors.New("a difference")}, 3, "error: a difference\n"},
		{&Exit{Code: 1}, 1, ""},
		{fmt.Errorf("wrapped: %w", Usagef("two words")), 2, "usage: neox [flags]\nneox: error: wrapped: two words\nSee neox --help.\n"},
	} {
		code, _, stderr := run(t, func(*Env) *cobra.Command {
			cmd := &cobra.Command{Use: "neox", RunE: func(*cobra.Command, []string) error { return tt.err }}
			cmd.Flags().Bool("x", false, "")
			return cmd
		})
		if code != tt.code || stderr != tt.stderr {
			t.Errorf("%v: exit %d, stderr %q; want %d, %q", tt.err, code, stderr, tt.code, tt.stderr)
		}
	}
}

// From the first word on everything belongs to the command of neoctl.
func TestStopAtFirstWord(t *testing.T) {
	var got []string
	build := func(*Env) *cobra.Command {
		cmd := &cobra.Command{Use: "neoctl", Args: cobra.ArbitraryArgs, RunE: func(_ *cobra.Command, args []string) error { got = args; return nil }}
		cmd.Flags().StringP("address", "a", "", "")
		StopAtFirstWord(cmd)
		return cmd
	}
	if code, _, stderr := run(t, build, "--addr", "h:1", "tweak", "-n", "--addr", "S1"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if diff := cmp.Diff([]string{"tweak", "-n", "--addr", "S1"}, got); diff != "" {
		t.Errorf("words (-want +got):\n%s", diff)
	}
}

// A daemon that was told to stop is done; a piece of work is interrupted.
func TestInterrupted(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		ctx, cancel := context.WithCancelCause(t.Context())
		var stderr bytes.Buffer
		env := &Env{Stderr: &stderr}
		code := Run(ctx, env, func(*Env) *cobra.Command {
			return &cobra.Command{Use: "neox", RunE: func(cmd *cobra.Command, _ []string) error {
				cancel(errInterrupted)
				<-cmd.Context().Done()
				err := fmt.Errorf("link: %w", cmd.Context().Err())
				if daemon {
					err = Stopped(cmd.Context(), err)
				}
				return err
			}}
		})
		want, wantText := 1, "interrupted\n"
		if daemon {
			want, wantText = 0, ""
		}
		if code != want || stderr.String() != wantText {
			t.Errorf("daemon %v: exit %d, %q", daemon, code, stderr.String())
		}
	}
}
