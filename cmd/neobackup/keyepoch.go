package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// program is the path of this program, "" where what runs is another one: a test.
var program string

// madeKey is what the process that makes the key of an epoch says.
type madeKey struct {
	Recipient string `json:"recipient"`
	Wrap      []byte `json:"wrap"`
}

// newKeyEpochCommand makes the key of an epoch, for a writer, which starts it as a process of its own. It is not
// for people.
func newKeyEpochCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use:    "epoch RECIPIENT...",
		Short:  "Make the key of an epoch, for a writer",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var to []snapshot.Recipient
			for _, text := range args {
				r, err := snapshot.ParseRecipient(text)
				if err != nil {
					return cli.Usagef("%w", err)
				}
				to = append(to, r)
			}
			recipient, wrap, err := snapshot.NewEpochKey(to)
			if err != nil {
				return err
			}
			return json.NewEncoder(env.Stdout).Encode(madeKey{recipient, wrap})
		},
	}
}

// epochKey returns what makes the keys of epochs: another process, which ends with all that was in its
// memory. Go keeps copies of what it has freed. Where none can be started, a backup is worth more.
func epochKey(log *cli.Log) func(context.Context, []snapshot.Recipient) (string, []byte, error) {
	if program == "" {
		return nil
	}
	return func(ctx context.Context, recipients []snapshot.Recipient) (string, []byte, error) {
		recipient, wrap, err := keyOfChild(ctx, recipients)
		if err == nil || ctx.Err() != nil {
			return recipient, wrap, err
		}
		log.Warn("the key of the new epoch is made in this process, whose memory may have it until the process ends: no other one could make it", "err", err)
		return snapshot.NewEpochKey(recipients)
	}
}

// keyOfChild lets another process make the key of an epoch.
func keyOfChild(ctx context.Context, recipients []snapshot.Recipient) (string, []byte, error) {
	args := []string{"key", "epoch"}
	for _, r := range recipients {
		args = append(args, r.String())
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{} // it needs no secrets
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", nil, fmt.Errorf("%s key epoch: %w: %s", program, err, bytes.TrimSpace(stderr.Bytes()))
	}
	var k madeKey
	if err := json.Unmarshal(out, &k); err != nil {
		return "", nil, fmt.Errorf("%s key epoch: %w", program, err)
	}
	if _, err := snapshot.ParseRecipient(k.Recipient); err != nil {
		return "", nil, fmt.Errorf("%s key epoch: %w", program, err)
	}
	if len(k.Wrap) == 0 {
		return "", nil, fmt.Errorf("%s key epoch: it made no key", program)
	}
	return k.Recipient, k.Wrap, nil
}
