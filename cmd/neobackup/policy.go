package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/keeper"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type policyOptions struct {
	common
	publish bool
	iam     string
	bucket  bool
}

func newPolicyCommand(env *cli.Env) *cobra.Command {
	var o policyOptions
	cmd := &cobra.Command{
		Use:   "policy [options]",
		Short: "Say what is kept for how long, and which permissions that needs",
		Long: `Print the policy in force: a signed note in the repository that all keepers obey, however each is
configured. There is none until --publish makes the first one; without one, prune deletes nothing.

With --publish, the keeper makes its configuration the next policy, if something differs: keep_lineages_days,
prune_grace, lock_days and hold. A new hold pins the newest lineage that can restore the moment exactly, as long as
its line stays.

With --iam ROLE, print the permissions that a role needs at least, as AWS and MinIO read them. The writer may not
delete or overwrite. With --bucket, print the lifecycle rule for a bucket that keeps versions.` + exitStatus,
		Example: `  neobackup policy
  neobackup policy --publish
  neobackup policy --iam writer > writer.json
  neobackup policy --bucket > lifecycle.json
  aws s3api put-bucket-lifecycle-configuration --bucket backups --lifecycle-configuration file://lifecycle.json`,
		Args: cobra.NoArgs,
		RunE: o.command(env, func(ctx context.Context, _ []string) error {
			if o.iam != "" || o.bucket {
				return runPermissions(env, &o)
			}
			return o.use(ctx, env, attempts, func(s *session) error { return runPolicy(ctx, env, &o, s) })
		}),
	}
	fs := cmd.Flags()
	cli.Flag(fs, &o.publish, "publish", "", "make the configuration the next policy")
	cli.Text(fs, &o.iam, "iam", "", "", "print the permissions of a role: writer, keeper, reader or drill")
	cli.Flag(fs, &o.bucket, "bucket", "", "print the lifecycle rule of a bucket that keeps versions")
	o.addFlags(cmd)
	return cmd
}

func runPolicy(ctx context.Context, env *cli.Env, o *policyOptions, s *session) error {
	k, err := s.keeper()
	if err != nil {
		return err
	}
	f, err := k.Policy(ctx)
	if err != nil {
		return err
	}
	differences := k.Differences(f.Policy)
	published := false
	p := f.Policy
	if o.publish {
		if p, published, err = k.Publish(ctx); err != nil {
			return err
		}
	}
	if o.json {
		return o.line(env.Stdout, map[string]any{"v": 1, "repository": s.Marker.Name, "policy": p, "published": published, "differences": differences, "ignored_policies": f.Ignored})
	}
	if o.quiet {
		return nil
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	if p == nil {
		fmt.Fprintf(w, "policy\tnone is in force: prune deletes nothing. neobackup policy --publish makes the configuration the policy:\n")
	} else {
		fmt.Fprintf(w, "policy\t%d, of %s\n", p.K, p.Created.Format("2006-01-02 15:04"))
		fmt.Fprintf(w, "old lineages\t%d days from the first proof of a later one\n", p.KeepLineagesDays)
		fmt.Fprintf(w, "grace\t%d hours between the announcement and the deletion\n", p.PruneGraceHours)
		if p.LockDays > 0 {
			fmt.Fprintf(w, "locks\t%d days\n", p.LockDays)
		}
		for _, h := range p.Holds {
			fmt.Fprintf(w, "hold\t%v (%s) %s: lineage %v\n", h.TID, when(h.TID), h.Label, h.Lineage)
		}
	}
	for _, i := range f.Ignored {
		fmt.Fprintf(w, "warning\t%s is ignored: %s\n", i.Key, i.Err)
	}
	for _, d := range differences {
		switch {
		case published:
			fmt.Fprintf(w, "changed\t%s: %s → %s\n", d.Setting, orNone(d.InForce), orNone(d.Configured))
		case p == nil && d.Configured != "":
			fmt.Fprintf(w, "configured\t%s: %s\n", d.Setting, d.Configured)
		case p != nil:
			fmt.Fprintf(w, "warning\t%s\n", differenceText(d))
		}
	}
	if o.publish && !published {
		fmt.Fprintf(w, "Nothing differs: no policy was published.\n")
	}
	return w.Flush()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// bucketOf returns the bucket of the URL of a repository.
func bucketOf(set *config.Repository) (keeper.Bucket, error) {
	u, err := url.Parse(set.URL)
	if err != nil || u.Scheme != "s3" {
		return keeper.Bucket{}, cli.Usagef("%s is no bucket: permissions of a directory are those of the file system (one user for the writer, who owns it)", set.URL)
	}
	b := keeper.Bucket{Name: u.Host, Prefix: strings.Trim(u.Path, "/"), Lock: set.Lock != ""}
	if b.Prefix != "" {
		b.Prefix += "/"
	}
	endpoint := u.Query().Get("endpoint")
	b.AWS = endpoint == "" || strings.HasSuffix(strings.Split(endpoint, ":")[0], ".amazonaws.com")
	return b, nil
}

// runPermissions prints what the administrator of a store needs. It asks no store.
func runPermissions(env *cli.Env, o *policyOptions) error {
	if o.publish || o.iam != "" && o.bucket {
		return cli.Usagef("one of --publish, --iam and --bucket")
	}
	set, err := o.settings(env)
	if err != nil {
		return err
	}
	b, err := bucketOf(set)
	if err != nil {
		return err
	}
	var doc any = b.Lifecycle(max(set.KeepLineagesDays, set.LockDays))
	if o.iam != "" {
		a, err := b.Permissions(keeper.Role(o.iam))
		if err != nil {
			var names []string
			for _, r := range keeper.Roles {
				names = append(names, string(r))
			}
			return cli.Usagef("--iam %s: want one of %s%s", o.iam, strings.Join(names, ", "), conf.DidYouMean(o.iam, names))
		}
		doc = a
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(env.Stdout, "%s\n", text)
	return err
}
