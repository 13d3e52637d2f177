package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type keySignOptions struct {
	common
	name string
}

func newKeySignCommand(env *cli.Env) *cobra.Command {
	var o keySignOptions
	cmd := &cobra.Command{
		Use:   "sign [options] keeper|drill|writer FILE",
		Short: "Make a key with which a keeper, a drill or a writer signs",
		Long: `Make a key with which a role signs what it stores, in a file that only its owner can read, and print the
key that verifies it. That belongs into verify_keys on every host of the repository: what a key signed that is
not there is not trusted. The file stays on the host of the role:

  keeper   keeper_key in [repository NAME]: policies and doom lists (prune, policy, forget)
  drill    sign_key in [drill NAME]: proofs
  writer   sign_key in [repository NAME]: in place of the one that init made` + exitStatus,
		Example: "  neobackup key sign keeper /etc/neo/prod-keeper.key\n  neobackup key sign drill /etc/neo/prod-drill.key",
		Args:    cobra.ExactArgs(2),
		RunE:    o.command(env, func(_ context.Context, args []string) error { return runKeySign(env, &o, args[0], args[1]) }),
	}
	cli.Text(cmd.Flags(), &o.name, "name", "", "", "name of the repository (default: as in its other keys)")
	o.addFlags(cmd)
	return cmd
}

func runKeySign(env *cli.Env, o *keySignOptions, role, path string) error {
	r := snapshot.Role(role)
	if r != snapshot.Keeper && r != snapshot.Driver && r != snapshot.Writer {
		return cli.Usagef("%q is no role: want keeper, drill or writer", role)
	}
	name := o.name
	if name == "" {
		set, err := o.settings(env)
		if err != nil {
			return err
		}
		trusted, err := set.Trusted()
		if err != nil {
			return cli.Usagef("what is the name of the repository? Give --name")
		}
		name, _, _ = strings.Cut(trusted[0].Name(), "/")
	}
	private, verifier, err := snapshot.GenerateKey(name, r)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	text := fmt.Sprintf("# Key with which the %s of the repository %s signs. It verifies with\n# %s\n%s\n", r, name, verifier, private)
	err = writeFile(path, []byte(text), 0o600, false)
	if errors.Is(err, fs.ErrExist) {
		return hint(fmt.Errorf("%s exists", path), "a key is never overwritten: give another name")
	}
	if err != nil {
		return err
	}
	if o.json {
		return o.line(env.Stdout, map[string]any{"v": 1, "file": path, "verify_key": verifier})
	}
	if !o.quiet {
		o.say(env, "Add this to verify_keys on every host of the repository:")
	}
	_, err = fmt.Fprintln(env.Stdout, verifier)
	return err
}
