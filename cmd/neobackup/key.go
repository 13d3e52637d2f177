package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
)

func newKeyCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make keys, try them, and change who can read a backup",
		Long: `Make identities of operators and keys that sign, say for whom a repository is encrypted, try whether identities
open it, and encrypt its keys to other operators.` + exitStatus,
	}
	cmd.AddCommand(
		newKeyGenerateCommand(env),
		newKeyCheckCommand(env),
		newKeySignCommand(env),
		newKeyListCommand(env),
		newKeyRotateCommand(env),
		newKeyEpochCommand(env),
	)
	return cmd
}

func newKeyGenerateCommand(env *cli.Env) *cobra.Command {
	var o common
	cmd := &cobra.Command{
		Use:   "generate FILE",
		Short: "Make an identity, as age-keygen does",
		Long: `Make an identity of age, as age-keygen does, in a file that only its owner can read, and
print its recipient. The recipient is what init takes; the identity opens the backup. Keep
it offline, and not on the host of the writer, which does not need it.` + exitStatus,
		Example: "  neobackup key generate operator.txt",
		Args:    cobra.ExactArgs(1),
		RunE:    o.command(env, func(_ context.Context, args []string) error { return runKeyGenerate(env, &o, args[0]) }),
	}
	cli.Flag(cmd.Flags(), &o.json, "json", "", "print JSON")
	return cmd
}

func runKeyGenerate(env *cli.Env, o *common, path string) error {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("# created: %s\n# public key: %s\n%s\n", o.now().UTC().Format(time.RFC3339), id.Recipient(), id)
	err = writeFile(path, []byte(text), 0o600, false)
	if errors.Is(err, fs.ErrExist) {
		return hint(fmt.Errorf("%s exists", path), "an identity is never overwritten: give another name")
	}
	if err != nil {
		return err
	}
	if o.json {
		return o.line(env.Stdout, map[string]any{"v": 1, "file": path, "recipient": id.Recipient().String()})
	}
	_, err = fmt.Fprintln(env.Stdout, id.Recipient())
	return err
}
