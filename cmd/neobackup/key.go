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
		Short: "Make identities, and try them",
		Long:  "Make identities of operators, and try whether they open a repository." + exitStatus,
	}
	cmd.AddCommand(newKeyGenerateCommand(env), newKeyCheckCommand(env), newKeySignCommand(env))
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

func newKeyCheckCommand(env *cli.Env) *cobra.Command {
	var o struct {
		common
		identityOptions
	}
	cmd := &cobra.Command{
		Use:   "check [options]",
		Short: "Try whether identities open the repository",
		Long: `Try whether the identities given open each epoch of the repository: the key of an epoch decrypts what was
stored with it.` + exitStatus,
		Example: "  neobackup key check --identity operator.txt",
		Args:    cobra.NoArgs,
		RunE: o.command(env, o.with(env, func(ctx context.Context, s *session) error {
			return runKeyCheck(ctx, env, &o.common, &o.identityOptions, s)
		})),
	}
	o.identityOptions.addFlags(cmd)
	o.common.addFlags(cmd)
	return cmd
}

func runKeyCheck(ctx context.Context, env *cli.Env, o *common, ids *identityOptions, s *session) error {
	keys, err := s.unlock(ids)
	if err != nil {
		return err
	}
	epochs, err := s.Epochs(ctx)
	if err != nil {
		return err
	}
	if !s.Encrypted() {
		if o.json {
			return o.line(env.Stdout, map[string]any{"v": 1, "encryption": s.Marker.Encryption, "epochs": []any{}})
		}
		_, err := fmt.Fprintln(env.Stdout, "The repository is not encrypted.")
		return err
	}
	type result struct {
		KID        string    `json:"kid"`
		Created    time.Time `json:"created"`
		Recipients []string  `json:"recipients"`
		Opens      bool      `json:"opens"`
	}
	var list []result
	var errs []error
	for _, e := range epochs {
		_, err := keys.Epoch(ctx, e.KID)
		if err != nil {
			errs = append(errs, err)
		}
		list = append(list, result{e.KID.String(), e.Created, e.Recipients, err == nil})
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if o.json {
		return o.line(env.Stdout, map[string]any{"v": 1, "encryption": s.Marker.Encryption, "epochs": list})
	}
	for _, e := range list {
		if _, err := fmt.Fprintf(env.Stdout, "epoch %s of %s: opened; %d recipients\n", e.KID, e.Created.Format("2006-01-02"), len(e.Recipients)); err != nil {
			return err
		}
	}
	return nil
}
