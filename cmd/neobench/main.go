// Neobench measures clusters and Data.fs files, and compares them with their
// counterparts in Python in the same run.
package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/spf13/cobra"
)

func main() { cli.Main(newCommand) }

func newCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "neobench",
		Short: "Measure a cluster, or compare everything with the Python implementations",
		Long: `Measure a cluster, or compare everything with the Python implementations.

  neobench generate big.fs --size 1GB       a Data.fs shaped like a production database
  neobench run -c NAME -m MASTERS           commits and loads on a running cluster: it
                                            ADDS OBJECTS, so never use one that matters
  neobench compare --bin bin                start clusters, measure all, print ratios
  neobench replication --bin bin            start clusters, measure commits during replication
  neobench backup --bin bin                 start clusters, measure a backup cluster and what it costs
  neobench import --bin bin                 start clusters, measure an import and reads during it
  neobench memory --bin bin                 start clusters, measure their peak memory
  neobench backends --bin bin               start clusters on SQLite, InnoDB and RocksDB, measure all

Exit status: 0 done; 1 failed; 2 usage.`,
	}
	cmd.AddCommand(newGenerate(env), newRun(env), newCompare(env), newReplication(env), newBackup(env), newSnapshot(env), newServing(env), newFollowing(env), newImport(env), newMemory(env), newBackends(env), newEcho(env))
	return cmd
}

func newGenerate(env *cli.Env) *cobra.Command {
	size, seed := "100MB", uint64(1)
	cmd := &cobra.Command{
		Use:   "generate FILE",
		Short: "Write a Data.fs shaped like a production database",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := parseSize(size)
			if err != nil {
				return cli.Usagef("--size: %w", err)
			}
			return generate(args[0], n, seed)
		},
	}
	cmd.Flags().StringVar(&size, "size", size, "size of the file, such as 100MB or 2GB")
	cmd.Flags().Uint64Var(&seed, "seed", seed, "the same seed gives the same bytes")
	return cmd
}

func newRun(env *cli.Env) *cobra.Command {
	var cluster cli.Cluster
	clients, txns, objects, size, hot, loads := []int{1, 4, 16}, 500, 10, 2000, 0, 20000
	cmd := &cobra.Command{
		Use:   "run -c NAME [-m MASTERS]",
		Short: "Measure commits and loads of a running cluster (adds objects to it)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if cluster.Name == "" {
				return cli.Usagef("-c is required")
			}
			masters, err := cluster.Masters(ctx)
			if err != nil {
				return err
			}
			tls, err := cluster.TLSConfig()
			if err != nil {
				return err
			}
			g := target{client.Config{Cluster: cluster.Name, Masters: cli.WireAddresses(masters), TLS: tls}}
			for _, n := range clients {
				f, err := g.commits(ctx, n, max(1, txns/n), objects, size, hot)
				if err != nil {
					return err
				}
				fmt.Fprintln(env.Stdout, f)
			}
			oids, err := g.someOIDs(ctx, 50000)
			if err != nil {
				return err
			}
			for _, n := range clients {
				f, err := g.loads(ctx, n, max(1, loads/n), oids)
				if err != nil {
					return err
				}
				fmt.Fprintln(env.Stdout, f)
			}
			return nil
		},
	}
	cluster.AddFlags(cmd.Flags())
	cmd.Flags().IntSliceVar(&clients, "clients", clients, "numbers of clients")
	cmd.Flags().IntVar(&txns, "transactions", txns, "transactions, all clients together")
	cmd.Flags().IntVar(&objects, "objects", objects, "objects in a transaction")
	cmd.Flags().IntVar(&size, "size", size, "bytes of an object")
	cmd.Flags().IntVar(&hot, "hot", hot, "objects that all transactions compete for; 0: no conflicts")
	cmd.Flags().IntVar(&loads, "loads", loads, "loads, all clients together")
	return cmd
}

// parseSize reads a number of bytes with an optional unit kB, MB or GB.
func parseSize(s string) (int64, error) {
	unit := int64(1)
	for suffix, u := range map[string]int64{"kB": 1e3, "MB": 1e6, "GB": 1e9} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = rest, u
			break
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a number of bytes", s)
	}
	return n * unit, nil
}
