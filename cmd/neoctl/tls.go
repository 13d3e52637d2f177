package main

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/neozodb/neo/cmd/internal/authority"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// tlsOptions are the options of the commands about certificates.
type tlsOptions struct {
	dir    string
	name   string
	hosts  []string
	days   int
	caDays int
	within int
}

const (
	defaultTLSDir = "/etc/neo/tls"
	day           = 24 * time.Hour
	maxDays       = 36500
)

// addTLSCommand adds the commands about certificates. Everything else, help too, stays a word for an admin.
func addTLSCommand(root *cobra.Command, env *cli.Env) {
	root.AddCommand(newTLSCommand(env))
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
}

// newTLSCommand returns the commands that make the certificates of a cluster. They need no admin.
func newTLSCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tls",
		Short: "Make, show and renew the certificates of a cluster",
		Long: `Make, show and renew the certificates of a cluster, in a directory with an authority of its own. No openssl is needed.

  neoctl tls init --host neo1.example.com      authority, and certificates "node" and "client"
  neoctl tls add zope1                         one more certificate
  neoctl tls show                              what there is, and how long it is valid
  neoctl tls renew                             all but the authority, for the same keys

All nodes of a cluster trust each certificate of the authority: ca.key is the key to all data. Keep the directory
off the network, and give each machine ca.crt, its certificate and its key. A certificate that got into wrong hands
is shut out by a new authority, or by a revocation list in ca.crt.` + cli.ExitStatus,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, words []string) error {
			if len(words) > 0 {
				return cli.Usagef("unknown command %q: it is init, add, show or renew", words[0])
			}
			return cmd.Help()
		},
	}
	cmd.SetFlagErrorFunc(notOfTLS)
	cmd.AddCommand(newTLSInit(env), newTLSAdd(env), newTLSShow(env), newTLSRenew(env))
	return cmd
}

// notOfTLS says of an option of neoctl itself that it has no meaning for certificates.
func notOfTLS(c *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name, options := e.GetSpecifiedName(), c.Root().Flags()
		switch {
		case options.Lookup(name) != nil:
			return cli.Usagef("--%s is for commands that ask an admin: tls asks none, and has options of its own", name)
		case len(name) == 1 && options.ShorthandLookup(name) != nil:
			return cli.Usagef("-%s is for commands that ask an admin: tls asks none, and has options of its own", name)
		}
	}
	return c.Root().FlagErrorFunc()(c, err)
}

func (o *tlsOptions) dirFlag(c *cobra.Command) {
	cli.Path(c.Flags(), &o.dir, "dir", "", defaultTLSDir, "directory of the authority")
}

func (o *tlsOptions) daysFlag(c *cobra.Command) {
	c.Flags().IntVar(&o.days, "days", 825, "how long certificates are valid")
}

func (o *tlsOptions) caDaysFlag(c *cobra.Command) {
	c.Flags().IntVar(&o.caDays, "ca-days", 3650, "how long the authority is valid")
}

func (o *tlsOptions) hostFlag(c *cobra.Command) {
	cli.Texts(c.Flags(), &o.hosts, "host", "", "name or address of a host that shows the certificate; repeatable; ZEO clients look at it")
}

func (o *tlsOptions) check() error {
	if o.days < 1 || o.days > maxDays {
		return cli.Usagef("--days %d is not in 1..%d", o.days, maxDays)
	}
	if o.caDays < 1 || o.caDays > maxDays {
		return cli.Usagef("--ca-days %d is not in 1..%d", o.caDays, maxDays)
	}
	for _, h := range o.hosts {
		if err := authority.CheckHost(h); err != nil {
			return cli.Usagef("--host: %w", err)
		}
	}
	return nil
}

func (o *tlsOptions) authority() *authority.Authority { return &authority.Authority{Dir: o.dir} }

func days(n int) time.Duration { return time.Duration(n) * day }

// local are the names under which programs of the same machine reach a node.
var local = []string{"localhost", "127.0.0.1", "::1"}

func newTLSInit(env *cli.Env) *cobra.Command {
	var o tlsOptions
	cmd := &cobra.Command{
		Use:   "init [options]",
		Short: "Make an authority, and certificates for nodes and clients",
		Long: `Make an authority (ca.crt, ca.key), a certificate for all nodes and ZEO servers (node.crt, node.key), and one for
applications (client.crt, client.key). Nothing is overwritten. Keys are for their owner alone (0600): the services
run as the user neo, which needs node.key.

Hosts are the names and addresses of all machines with a ZEO server, as clients are configured with them; localhost is
always among them. Nodes do not look at them.` + cli.ExitStatus,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := o.check(); err != nil {
				return err
			}
			a := o.authority()
			// All or nothing: what is there already is told before anything is made.
			for _, name := range []string{authority.CA, "node", "client"} {
				if err := a.Free(name); err != nil {
					return fmt.Errorf("%w; see tls show, tls add and tls renew", err)
				}
			}
			if err := a.Init(o.name, days(o.caDays)); err != nil {
				return err
			}
			if err := a.Add("node", append(local[:len(local):len(local)], o.hosts...), days(o.days)); err != nil {
				return err
			}
			if err := a.Add("client", nil, days(o.days)); err != nil {
				return err
			}
			_, err := fmt.Fprintf(env.Stdout, "%s: an authority, and certificates node and client. For nodes:\n  --ca %s --cert %s --key %s\n",
				o.dir, a.CertificatePath(authority.CA), a.CertificatePath("node"), a.KeyPath("node"))
			return err
		},
	}
	o.dirFlag(cmd)
	cli.Text(cmd.Flags(), &o.name, "name", "", "NEO authority", "name of the authority, for people")
	o.hostFlag(cmd)
	o.daysFlag(cmd)
	o.caDaysFlag(cmd)
	return cmd
}

func newTLSAdd(env *cli.Env) *cobra.Command {
	o := tlsOptions{caDays: 1} // not used
	cmd := &cobra.Command{
		Use:   "add [options] NAME",
		Short: "Make one more certificate",
		Long:  "Make a certificate NAME.crt and its key NAME.key, for a node, a ZEO server or a client. Nothing is overwritten." + cli.ExitStatus,
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if err := authority.CheckName(args[0]); err != nil {
				return cli.Usagef("%w", err)
			}
			a := o.authority()
			if err := a.Add(args[0], o.hosts, days(o.days)); err != nil {
				return err
			}
			_, err := fmt.Fprintf(env.Stdout, "--ca %s --cert %s --key %s\n", a.CertificatePath(authority.CA), a.CertificatePath(args[0]), a.KeyPath(args[0]))
			return err
		},
	}
	o.dirFlag(cmd)
	o.hostFlag(cmd)
	o.daysFlag(cmd)
	return cmd
}

// soon is the exit code of tls show if a certificate ends soon.
const soon = 1

func newTLSShow(env *cli.Env) *cobra.Command {
	var o tlsOptions
	cmd := &cobra.Command{
		Use:   "show [options]",
		Short: "List certificates and how long they are valid",
		Long: `List the certificates in the directory, which need not have the keys, with the days that they are still valid.

Exit status: 0 done; 1 a certificate ends within the days of --within, or failed, the reason is on stderr; 2 wrong usage.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			list, err := o.authority().List()
			if err != nil {
				return err
			}
			now, ending := time.Now(), []string{}
			w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tVALID UNTIL\tDAYS LEFT\tHOSTS")
			for _, c := range list {
				left := int(math.Floor(c.NotAfter.Sub(now).Hours() / 24))
				hosts := strings.Join(c.Hosts(), " ")
				if c.IsCA {
					hosts = "(authority)"
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", c.Name, c.NotAfter.UTC().Format(time.RFC3339), left, hosts)
				if left < o.within {
					ending = append(ending, c.Name)
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if len(ending) > 0 {
				return &cli.Exit{Code: soon, Err: fmt.Errorf("valid for less than %d days: %s: see neoctl tls renew", o.within, strings.Join(ending, ", "))}
			}
			return nil
		},
	}
	o.dirFlag(cmd)
	cmd.Flags().IntVar(&o.within, "within", 30, "days below which a certificate ends soon")
	return cmd
}

func newTLSRenew(env *cli.Env) *cobra.Command {
	var o tlsOptions
	cmd := &cobra.Command{
		Use:   "renew [options] [NAME...]",
		Short: "Sign certificates again, for the same keys",
		Long: `Sign certificates again: those that are named, or all but the authority. Keys and hosts stay as they are, so that a
certificate takes the place of the one before at once. Programs read it when they start: restart them one after the other.

"neoctl tls renew ca" renews the authority. Certificates that it has signed stay valid; give each machine the new ca.crt.` + cli.ExitStatus,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, names []string) error {
			if err := o.check(); err != nil {
				return err
			}
			a := o.authority()
			if len(names) == 0 {
				list, err := a.List()
				if err != nil {
					return err
				}
				for _, c := range list {
					if !c.IsCA {
						names = append(names, c.Name)
					}
				}
			}
			var errs []error
			for _, name := range names {
				valid := days(o.days)
				if name == authority.CA {
					valid = days(o.caDays)
				}
				before, after, err := a.Renew(name, valid)
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", name, err))
					continue
				}
				limit := ""
				if after.NotAfter.Before(time.Now().Add(valid - time.Hour)) {
					limit = ": the authority ends then, see tls renew ca"
				}
				fmt.Fprintf(env.Stdout, "%s: valid until %s, before until %s%s\n", name, after.NotAfter.UTC().Format(time.DateOnly), before.NotAfter.UTC().Format(time.DateOnly), limit)
			}
			return errors.Join(errs...)
		},
	}
	o.dirFlag(cmd)
	o.daysFlag(cmd)
	o.caDaysFlag(cmd)
	return cmd
}
