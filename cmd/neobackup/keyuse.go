package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// epoch is an epoch in a document.
type epoch struct {
	KID        string    `json:"kid"`
	Created    time.Time `json:"created"`
	Recipients []string  `json:"recipients"` // when it began
	Wraps      int       `json:"wraps"`
	Segments   int64     `json:"segments"`
	Stored     int64     `json:"stored_bytes"`
	Newest     bool      `json:"newest"`

	Opens   *bool  `json:"opens,omitempty"`   // by the identities that were given
	Wrap    string `json:"wrap,omitempty"`    // that was made
	Already bool   `json:"already,omitempty"` // there is nothing to do
}

// epochs returns all epochs of a repository; with keys, whether they open each, and the errors of those
// that they do not.
func (s *session) epochs(ctx context.Context, keys *backup.Keys) (list []epoch, refused []error, err error) {
	uses, err := s.EpochUses(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i, u := range uses {
		e := epoch{KID: u.KID.String(), Created: u.Created, Recipients: u.Recipients, Wraps: len(u.Wraps), Segments: u.Segments, Stored: u.Stored, Newest: i == len(uses)-1}
		if keys != nil {
			_, err := keys.Epoch(ctx, u.KID)
			opens := err == nil
			if e.Opens = &opens; err != nil {
				refused = append(refused, err)
			}
		}
		list = append(list, e)
	}
	return list, refused, nil
}

// print prints what is written.
func (s *session) print(w *strings.Builder) error {
	_, err := io.WriteString(s.env.Stdout, w.String())
	return err
}

// plain tells of a repository that is not encrypted.
func (s *session) plain() error {
	if s.o.json {
		return s.o.line(s.env.Stdout, map[string]any{"v": 1, "encryption": s.Marker.Encryption, "epochs": []any{}})
	}
	_, err := fmt.Fprintln(s.env.Stdout, "The repository is not encrypted.")
	return err
}

// endKeys ends a command that has told of epochs, some of which are refused.
func (s *session) endKeys(ctx context.Context, refused []error) error {
	if len(refused) == 0 {
		return nil
	}
	err := errors.Join(refused...)
	if s.o.json {
		return &cli.Exit{Code: classify(ctx, err).Exit} // the document says it
	}
	return err
}

func (e *epoch) String() string {
	return fmt.Sprintf("epoch %s of %s: %d segments, %s", e.KID, e.Created.Format("2006-01-02"), e.Segments, size(e.Stored))
}

func newKeyListCommand(env *cli.Env) *cobra.Command {
	var o common
	cmd := &cobra.Command{
		Use:   "list [options]",
		Short: "Say for whom the repository is encrypted",
		Long: `List the epochs of the repository: since when each is used, the recipients to whom its key was encrypted then, how
often it was encrypted to others since ("wraps", by key rotate), and what is encrypted with it. An epoch begins with the
repository, and when the writer finds other recipients in its configuration.` + exitStatus,
		Example: "  neobackup key list",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, o.with(env, func(ctx context.Context, s *session) error { return runKeyList(ctx, s) })),
	}
	o.addFlags(cmd)
	return cmd
}

func runKeyList(ctx context.Context, s *session) error {
	if !s.Encrypted() {
		return s.plain()
	}
	list, _, err := s.epochs(ctx, nil)
	if err != nil {
		return err
	}
	if s.o.json {
		return s.o.line(s.env.Stdout, map[string]any{"v": 1, "encryption": s.Marker.Encryption, "epochs": list})
	}
	var w strings.Builder
	for i := range list {
		e := &list[i]
		use := ""
		if e.Newest {
			use = "; in use"
		}
		fmt.Fprintf(&w, "%v; %d wraps of its key%s\n", e, e.Wraps, use)
		for _, r := range e.Recipients {
			fmt.Fprintf(&w, "  %s\n", r)
		}
	}
	return s.print(&w)
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
stored with it. Those that they do not open are named, and the exit status is 4.` + exitStatus,
		Example: "  neobackup key check --identity operator.txt",
		Args:    cobra.NoArgs,
		RunE: o.command(env, o.with(env, func(ctx context.Context, s *session) error {
			return runKeyCheck(ctx, &o.identityOptions, s)
		})),
	}
	o.identityOptions.addFlags(cmd)
	o.common.addFlags(cmd)
	return cmd
}

func runKeyCheck(ctx context.Context, ids *identityOptions, s *session) error {
	if !s.Encrypted() {
		return s.plain()
	}
	keys, err := s.unlock(ids)
	if err != nil {
		return err
	}
	list, refused, err := s.epochs(ctx, keys)
	if err != nil {
		return err
	}
	if s.o.json {
		err := s.o.line(s.env.Stdout, map[string]any{"v": 1, "encryption": s.Marker.Encryption, "epochs": list})
		return errors.Join(err, s.endKeys(ctx, refused))
	}
	var w strings.Builder
	for i := range list {
		e := &list[i]
		opened := "opened"
		if !*e.Opens {
			opened = "NOT opened"
		}
		fmt.Fprintf(&w, "epoch %s of %s: %s; %d recipients, %d segments, %s\n", e.KID, e.Created.Format("2006-01-02"), opened, len(e.Recipients), e.Segments, size(e.Stored))
	}
	return errors.Join(s.print(&w), s.endKeys(ctx, refused))
}

type keyRotateOptions struct {
	common
	identityOptions
	recipients []string
	test       []string
	untested   bool
	single     bool
	confirm    bool
}

func newKeyRotateCommand(env *cli.Env) *cobra.Command {
	var o keyRotateOptions
	cmd := &cobra.Command{
		Use:   "rotate [options]",
		Short: "Let other operators read the backup",
		Long: `Encrypt the key of each epoch to other recipients as well: when an operator comes or goes, or has lost an identity. An
identity that opens the epochs is needed, on a host that is not the writer's. What was
stored stays as it is: for each epoch one small object is added. It can be run again, after an interruption too.

The recipients are those of --recipient, without it those of the configuration. Each --test FILE is an identity of
one of them, which has to open what was made, before it is stored and again when it is read; an --identity that is of one of
them is tried as well.

What is stored from now on is encrypted as before, until the recipients in the configuration of the writer are
changed and the writer is started again: that begins a new epoch, for which nothing is to be rotated.

The old wraps stay until a keeper removes them. An old identity still opens every copy of the repository that
was made before, also in the hands of a former operator or of a thief.

Without --confirm, the command says what it would do.` + exitStatus,
		Example: `  neobackup key rotate --identity alice.txt --recipient age1... --recipient age1... --test carol.txt
  neobackup key rotate --identity alice.txt --recipient age1... --recipient age1... --test carol.txt --confirm`,
		Args: cobra.NoArgs,
		RunE: o.command(env, o.with(env, func(ctx context.Context, s *session) error { return runKeyRotate(ctx, env, &o, s) })),
	}
	fs := cmd.Flags()
	cli.Texts(fs, &o.recipients, "recipient", "", "age1...: an operator who shall read the backup; repeatable (default: those of the configuration)")
	cli.Texts(fs, &o.test, "test", "", "file with an identity of one of the recipients, with which is tried what was made; repeatable")
	cli.Flag(fs, &o.untested, "untested", "", "without trying any identity of the recipients")
	cli.Flag(fs, &o.single, "single-recipient", "", "one recipient is enough: if its identity is lost, so is the backup")
	cli.Flag(fs, &o.confirm, "confirm", "", "do it")
	o.identityOptions.addFlags(cmd)
	o.common.addFlags(cmd)
	return cmd
}

// recipientOf returns the recipient of an identity, "" if it has none of its own.
func recipientOf(id age.Identity) string {
	switch id := id.(type) {
	case *age.X25519Identity:
		return id.Recipient().String()
	case *age.HybridIdentity:
		return id.Recipient().String()
	}
	return ""
}

// to returns the new recipients and the identities to try.
func (o *keyRotateOptions) to(env *cli.Env, s *session) (r backup.Rotation, err error) {
	r.Recipients = s.set.Recipients
	if len(o.recipients) > 0 {
		r.Recipients = nil
		for _, text := range o.recipients {
			to, err := snapshot.ParseRecipient(text)
			if err != nil {
				return r, cli.Usagef("--recipient: %w", err)
			}
			if !slices.ContainsFunc(r.Recipients, func(x snapshot.Recipient) bool { return x.String() == to.String() }) {
				r.Recipients = append(r.Recipients, to)
			}
		}
	}
	switch n := len(r.Recipients); {
	case n == 0:
		return r, cli.Usagef("for whom? Give --recipient for each operator who shall read the backup")
	case n == 1 && !o.single:
		return r, cli.Usagef("one recipient: if that identity is lost, so is the backup. Give a second --recipient, or --single-recipient")
	}
	is := func(id age.Identity) bool {
		return slices.ContainsFunc(r.Recipients, func(x snapshot.Recipient) bool { return x.String() == recipientOf(id) })
	}
	for _, file := range o.test {
		list, err := config.ReadIdentities(file)
		if err != nil {
			return r, wrong(fmt.Errorf("--test: %w", err))
		}
		for _, id := range list {
			if !is(id) {
				return r, cli.Usagef("--test %s: %s is none of the recipients", file, recipientOf(id))
			}
		}
		r.Test = append(r.Test, list...)
	}
	old, err := o.identities(env, s.set)
	if err != nil {
		return r, err
	}
	for _, id := range old {
		if is(id) {
			r.Test = append(r.Test, id)
		}
	}
	if len(r.Test) == 0 && !o.untested {
		return r, cli.Usagef("no identity of a recipient is here to try what is made: give --test FILE, or --untested")
	}
	if s.set.Lock != "" {
		now := store.Date(s.Store)
		if now.IsZero() {
			now = o.now()
		}
		r.Retain = store.Retention{Mode: s.set.Lock, Until: now.Add(time.Duration(s.set.LockDays) * 24 * time.Hour)}
	}
	return r, nil
}

func runKeyRotate(ctx context.Context, env *cli.Env, o *keyRotateOptions, s *session) error {
	if !s.Encrypted() {
		return s.plain()
	}
	to, err := o.to(env, s)
	if err != nil {
		return err
	}
	keys, err := s.unlock(&o.identityOptions)
	if err != nil {
		return err
	}
	list, refused, err := s.epochs(ctx, keys)
	if err != nil {
		return err
	}
	if len(refused) == len(list) {
		return errors.Join(refused...)
	}
	if o.confirm {
		for i := range list {
			e := &list[i]
			if !*e.Opens {
				continue
			}
			kid, err := parseKID(e.KID)
			if err != nil {
				return err
			}
			if e.Wrap, err = keys.Rotate(ctx, kid, to); err != nil {
				return err
			}
			e.Already = e.Wrap == ""
		}
	}
	return errors.Join(s.printRotated(o, list, to), s.endKeys(ctx, refused))
}

func parseKID(s string) (snapshot.KID, error) {
	k, err := snapshot.ParseKey("keys/" + s + ".pub")
	return snapshot.KID(k.N), err
}

func (s *session) printRotated(o *keyRotateOptions, list []epoch, to backup.Rotation) error {
	var recipients []string
	for _, r := range to.Recipients {
		recipients = append(recipients, r.String())
	}
	newest := list[len(list)-1]
	writer := !sameTexts(newest.Recipients, recipients) // its configuration is to be changed
	if s.o.json {
		return s.o.line(s.env.Stdout, map[string]any{
			"v": 1, "repository": s.Marker.Name, "epochs": list, "recipients": recipients, "tested": len(to.Test), "confirmed": o.confirm, "writer_to_be_changed": writer,
		})
	}
	var w strings.Builder
	for i := range list {
		e := &list[i]
		var what string
		switch {
		case !*e.Opens:
			what = "NOT opened by the identity: it stays as it is"
		case !o.confirm:
			what = fmt.Sprintf("its key would be encrypted to %d recipients", len(recipients))
		case e.Already:
			what = "its key is for these recipients already"
		default:
			what = fmt.Sprintf("its key is encrypted to %d recipients in %s, and was opened by %d of their identities", len(recipients), e.Wrap, len(to.Test))
		}
		fmt.Fprintf(&w, "%v; %s\n", e, what)
	}
	if !o.confirm {
		fmt.Fprintf(&w, "The recipients:\n  %s\nNothing was done: --confirm does it.\n", strings.Join(recipients, "\n  "))
	} else if writer {
		fmt.Fprintf(&w, `No data were written again. What is stored from now on is encrypted as before, until the writer
has these recipients in its configuration, and is started again:

recipients:
  %s
`, strings.Join(recipients, "\n  "))
	}
	return s.print(&w)
}

// sameTexts reports whether two lists have the same elements.
func sameTexts(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
