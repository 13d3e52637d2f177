package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type initOptions struct {
	common
	name       string
	source     string
	recipients []string
	signKey    string
	single     bool
	plain      bool
}

func newInitCommand(env *cli.Env) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init [options] URL|NAME",
		Short: "Make a repository",
		Long: `Make a repository in an empty directory or prefix of a bucket. URL is where; NAME is a
[repository NAME] of the configuration file that says it.

First the store is tried: it must create objects once only, list them in order, and so on.
Then a key is made with which the writer signs what it stores, and a key pair that
encrypts, which only the recipients can open: what one operator loses must not be
the loss of the backup, so there are at least two. In the end, init prints what to keep where.

With -f, a configuration file that does not exist is written, with what was given here.

An init that was interrupted can be run again.` + exitStatus,
		Example: `  neobackup init file:///srv/backup -f neobackup.conf --source file:///var/lib/zope/Data.fs \
    --recipient age1... --recipient age1...
  neobackup init "s3://backups/prod?endpoint=s3.example.org&region=eu-1" --recipient age1... --recipient age1...
  neobackup init -f /etc/neo/neobackup.conf prod`,
		Args: cobra.ExactArgs(1),
		RunE: o.command(env, func(ctx context.Context, args []string) error { return runInit(ctx, env, &o, args[0]) }),
	}
	fs := cmd.Flags()
	cli.Text(fs, &o.name, "name", "", "", "name of the repository, 1 to 32 of a-z, 0-9 and - (default: that of the section, or the last part of URL)")
	cli.Text(fs, &o.source, "source", "", "", "what is backed up: file:///path/Data.fs or neo://CLUSTER@MASTER:PORT")
	cli.Texts(fs, &o.recipients, "recipient", "", "age1...: an operator to whom the backup is encrypted; repeatable")
	cli.Path(fs, &o.signKey, "sign-key", "", "", "file of the key of the writer, made if it does not exist (default: NAME-writer.key beside the configuration file)")
	cli.Flag(fs, &o.single, "single-recipient", "", "one recipient is enough: if its identity is lost, so is the backup")
	cli.Flag(fs, &o.plain, "no-encryption", "", "store everything as it is, for stores that only the operators can read")
	o.addFlags(cmd)
	return cmd
}

// initSettings returns the settings of the new repository. file is the configuration file that is to
// be written, "" if none.
func initSettings(env *cli.Env, o *initOptions, arg string) (set *config.Repository, file string, err error) {
	if o.repo != "" {
		return nil, "", cli.Usagef("init takes the repository as its argument, without -r")
	}
	if isURL(arg) {
		set = config.New()
		if o.config != "" {
			if _, err := os.Stat(o.config); err == nil {
				return nil, "", cli.Usagef("%s exists: write a [repository NAME] with url: %s into it, and run neobackup init -f %s NAME", o.config, arg, o.config)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, "", err
			}
			file = o.config
		}
		if err := set.Set("url", arg); err != nil {
			return nil, "", cli.Usagef("%w", err)
		}
	} else {
		f, err := o.file(env)
		if err != nil {
			return nil, "", err
		}
		if f == nil {
			return nil, "", cli.Usagef("%s is no URL, and there is no configuration file: give -f FILE, or file:///directory or s3://bucket/prefix", arg)
		}
		if set, err = f.Repository(arg); err != nil {
			return nil, "", wrong(err)
		}
	}
	for key, text := range map[string]string{"source": o.source, "recipients": strings.Join(o.recipients, "\n"), "sign_key": o.signKey} {
		if text != "" {
			if err := set.Set(key, text); err != nil {
				return nil, "", cli.Usagef("%w", err)
			}
		}
	}
	return set, file, o.apply(set, "")
}

var (
	nameForm = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	notName  = regexp.MustCompile(`[^a-z0-9]+`)
)

// nameOf returns the name of a repository that was given no other.
func nameOf(set *config.Repository) string {
	if set.Name != "" {
		return set.Name
	}
	url, _, _ := strings.Cut(set.URL, "?")
	_, path, _ := strings.Cut(url, "//")
	name := strings.Trim(notName.ReplaceAllString(strings.ToLower(filepath.Base(path)), "-"), "-")
	if len(name) > 32 {
		name = strings.Trim(name[:32], "-")
	}
	return name
}

func runInit(ctx context.Context, env *cli.Env, o *initOptions, arg string) (err error) {
	set, file, err := initSettings(env, o, arg)
	if err != nil {
		return err
	}
	name := o.name
	if name == "" {
		name = nameOf(set)
	}
	if !nameForm.MatchString(name) {
		return cli.Usagef("%q cannot be the name of a repository: give --name, 1 to 32 of a-z, 0-9 and -", name)
	}
	switch n := len(set.Recipients); {
	case n > 0 && o.plain:
		return cli.Usagef("either recipients or --no-encryption")
	case n == 0 && !o.plain:
		return cli.Usagef("for whom is the backup to be encrypted? Give --recipient for each operator (neobackup key generate FILE makes an identity and prints its recipient), or --no-encryption")
	case n == 1 && !o.single:
		return cli.Usagef("one recipient: if that identity is lost, so is the backup. Give a second --recipient, the identity of which is kept elsewhere, or --single-recipient")
	}
	var lacking []string // keys that the section should have
	if set.SignKey == "" {
		lacking = append(lacking, "sign_key")
	}
	if len(set.VerifyKeys) == 0 {
		lacking = append(lacking, "verify_keys")
	}
	if set.SignKey != "" && !filepath.IsAbs(set.SignKey) {
		// The configuration is for other directories too.
		path, err := filepath.Abs(set.SignKey)
		if err == nil {
			err = set.Set("sign_key", path)
		}
		if err != nil {
			return err
		}
	}
	if set.SignKey == "" {
		dir := "."
		if path := file; path != "" || set.Name != "" && o.config != "" {
			if path == "" {
				path = o.config
			}
			dir = filepath.Dir(path)
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
		if err := set.Set("sign_key", filepath.Join(dir, name+"-writer.key")); err != nil {
			return err
		}
	}
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	s, _, err := o.openStore(env, set, log, attempts)
	if err != nil {
		return err
	}
	made := false
	err = checkEmpty(ctx, s)
	if errors.Is(err, backup.ErrRepository) {
		made, err = justMade(ctx, s, set, name, log)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", set.URL, err)
	}
	rep, err := o.probe(ctx, s, set, "")
	if err != nil {
		return err
	}
	for _, f := range rep.Findings {
		if f.Severity == store.Warning {
			fmt.Fprintf(env.Stderr, "warning: %s: %s\n", f.Check, f.Detail)
		}
	}
	// What could fail after the repository is there is tried before.
	if above := set.StateDir; above == "" {
		above, err = defaultStateDir(env)
		if err == nil {
			err = os.MkdirAll(above, 0o700)
		}
		if err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	signer, verifier, keyMade, err := writerKey(set, name)
	if err != nil {
		return err
	}
	trusted, err := set.Trusted()
	if err != nil {
		return wrong(err)
	}
	cfg := backup.Config{Store: s, Trusted: trusted, Log: log.Logger}
	var r *backup.Repository
	if made {
		r, err = backup.Open(ctx, cfg)
	} else {
		r, err = backup.Init(ctx, cfg, backup.InitOptions{
			Name: name, Signer: signer, Sign: signKeys(verifier, set.VerifyKeys), Recipients: set.Recipients, Source: describe(set.Source), Writer: backup.WriterName(),
		})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", set.URL, err)
	}
	dir, err := stateDir(env, set, r.Marker.ID)
	if err != nil {
		return err
	}
	if set.StateDir == "" {
		if err := set.Set("state_dir", dir); err != nil {
			return err
		}
	}
	if len(set.VerifyKeys) == 0 {
		if err := set.Set("verify_keys", verifier); err != nil {
			return err
		}
	}
	section := set.Section(name)
	if file != "" {
		if err := writeFile(file, []byte(section), 0o644, false); err != nil {
			return fmt.Errorf("the repository is ready, but its configuration was not written: %w; it is\n%s", err, section)
		}
	}
	if set.Name != "" {
		section = ""
		for _, key := range lacking {
			section += key + ": " + map[string]string{"sign_key": set.SignKey, "verify_keys": verifier}[key] + "\n"
		}
	}
	return printInit(env, o, set, r, rep, verifier, keyMade, section, file)
}

// justMade reports whether a repository is the one that this init was to make: an earlier run ended
// before it had told what was made. The key of the writer on this host has signed it, it has the name and the
// recipients that are wanted now, and nothing was stored. If not, the error is [backup.ErrRepository].
func justMade(ctx context.Context, s store.Store, set *config.Repository, name string, log *cli.Log) (bool, error) {
	if _, err := os.Lstat(set.SignKey); err != nil {
		return false, backup.ErrRepository
	}
	_, verifier, _, err := writerKey(set, name)
	if err != nil {
		return false, errors.Join(backup.ErrRepository, err)
	}
	trusted, err := snapshot.NewVerifiers(verifier)
	if err != nil {
		return false, err
	}
	r, err := backup.Open(ctx, backup.Config{Store: s, Trusted: trusted, Log: log.Logger})
	switch {
	case errors.Is(err, snapshot.ErrUntrusted):
		return false, backup.ErrRepository
	case err != nil:
		return false, err
	case r.Marker.Name != name, r.Encrypted() != (len(set.Recipients) > 0):
		return false, backup.ErrRepository
	}
	if r.Encrypted() {
		epochs, err := r.Epochs(ctx)
		if err != nil {
			return false, err
		}
		if len(epochs) != 1 || !backup.SameRecipients(epochs[0], set.Recipients) {
			return false, backup.ErrRepository
		}
	}
	l, err := r.Current(ctx)
	if err != nil {
		return false, err
	}
	state, err := r.State(ctx, l.Lineage, nil)
	if err != nil {
		return false, err
	}
	if l.K != 1 || state.Manifest.Seq != 1 || len(state.Tails) > 0 {
		return false, backup.ErrRepository
	}
	return true, nil
}

// signKeys returns the keys for the marker, each once.
func signKeys(verifier string, others []string) []string {
	keys := []string{verifier}
	for _, k := range others {
		if k != verifier {
			keys = append(keys, k)
		}
	}
	return keys
}

// checkEmpty refuses a place with objects of others, before anything is written to it.
func checkEmpty(ctx context.Context, s store.Store) error {
	var foreign []string
	for info, err := range s.List(ctx, "", "") {
		if err != nil {
			return err
		}
		k, err := snapshot.ParseKey(info.Key)
		switch {
		case err == nil && k.Kind == snapshot.KindMarker:
			return backup.ErrRepository
		case err != nil:
			foreign = append(foreign, info.Key)
		}
		if len(foreign) == 3 {
			break
		}
	}
	if len(foreign) > 0 {
		return &backup.NotEmptyError{Keys: foreign}
	}
	return nil
}

// writerKey reads the key of the writer, or makes it.
func writerKey(set *config.Repository, name string) (s *snapshot.Signer, verifier string, made bool, err error) {
	if _, err := os.Lstat(set.SignKey); errors.Is(err, fs.ErrNotExist) {
		private, verifier, err := snapshot.GenerateKey(name, snapshot.Writer)
		if err != nil {
			return nil, "", false, err
		}
		text := fmt.Sprintf("# Key with which the writer of the repository %s signs. It verifies with\n# %s\n%s\n", name, verifier, private)
		if err := writeFile(set.SignKey, []byte(text), 0o600, false); err != nil {
			return nil, "", false, fmt.Errorf("key of the writer: %w", err)
		}
		made = true
	}
	s, verifier, err = set.Signer(snapshot.Writer)
	if err != nil {
		return nil, "", false, wrong(err)
	}
	if want := name + "/" + string(snapshot.Writer); s.Name() != want {
		return nil, "", false, wrong(fmt.Errorf("sign_key: %s has the key %s, want %s: give --name or another --sign-key", set.SignKey, s.Name(), want))
	}
	return s, verifier, made, nil
}

// describe returns a source as notes name it.
func describe(s config.Source) snapshot.Source {
	switch {
	case s.File != "":
		return snapshot.Source{Kind: "file", Name: s.File}
	case s.Cluster != "":
		return snapshot.Source{Kind: "cluster", Name: s.Cluster}
	}
	return snapshot.Source{Kind: "file", Name: "none"}
}

func printInit(env *cli.Env, o *initOptions, set *config.Repository, r *backup.Repository, rep *store.Report, verifier string, made bool, section, file string) error {
	m := r.Marker
	var recipients []string
	for _, to := range set.Recipients {
		recipients = append(recipients, to.String())
	}
	if o.json {
		return o.line(env.Stdout, map[string]any{
			"v": 1, "id": m.ID.String(), "name": m.Name, "url": set.URL, "encryption": m.Encryption, "recipients": recipients,
			"sign_key": set.SignKey, "sign_key_made": made, "verify_key": verifier, "state_dir": set.StateDir, "probe": rep, "configuration": section, "file": file,
		})
	}
	w := env.Stdout
	fmt.Fprintf(w, "The store passed %d checks. Repository %s is ready.\n\n", len(rep.Findings), m.Name)
	fmt.Fprintf(w, "Keep, and not only on this machine:\n\n")
	for i, to := range recipients {
		if i == 0 {
			fmt.Fprintf(w, "  The identities of the recipients, offline, each with its operator. Without one of them\n  the backup cannot be read. The writer does not need them: none belongs on this host.\n")
		}
		fmt.Fprintf(w, "    %s\n", to)
	}
	if len(recipients) == 0 {
		fmt.Fprintf(w, "  Not encrypted: all that can read the store can read the backup.\n")
	}
	fmt.Fprintf(w, "  The key of the writer, on this host; without it nothing can be added, and a thief of it\n  can sign false backups:\n    %s\n", set.SignKey)
	fmt.Fprintf(w, "  The key that verifies, which is no secret, on every host that restores:\n    %s\n", verifier)
	fmt.Fprintf(w, "  The URL and the credentials of the store:\n    %s\n\n", set.URL)
	if file != "" {
		fmt.Fprintf(w, "The configuration is in %s.\n", file)
	} else if set.Name == "" {
		fmt.Fprintf(w, "For the configuration file:\n\n%s\n", section)
	} else if section != "" {
		fmt.Fprintf(w, "Write into [repository %s]:\n\n%s\n", set.Name, section)
	}
	next := "neobackup snapshot"
	switch {
	case file != "":
		next += " -f " + file
	case o.config != "":
		next += " -f " + o.config + " -r " + set.Name
	case set.Name == "":
		next += " -r '" + set.URL + "' --set sign_key=" + set.SignKey
		if set.Source.IsZero() {
			next += " --source SOURCE"
		} else {
			next += " --source '" + set.Source.String() + "'"
		}
	}
	_, err := fmt.Fprintf(w, "Next: %s\n", next)
	return err
}
