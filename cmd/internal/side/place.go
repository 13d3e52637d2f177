package side

import (
	"context"
	"fmt"
	"strings"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// ofFile is how a side is written that is the cluster of --file.
const ofFile = "neo://"

// ClusterHelp is what the help of a command says about the side that is a cluster.
const ClusterHelp = `
A cluster is the list of its masters, separated by spaces, with its name given by -c;
or neo://CLUSTER@HOST:PORT,HOST:PORT?ca=FILE&cert=FILE&key=FILE, the options being for
TLS; or neo:// alone, which is the one of the configuration file given by -f.`

// IsURI reports whether a side is written as the URI of a cluster.
func IsURI(name string) bool {
	return strings.HasPrefix(name, "neo://") || strings.HasPrefix(name, "neos://")
}

// complete takes from the configuration file, section DEFAULT, what was not on the command
// line, and from a side that is a URI what it says. It returns the masters of the cluster
// that name stands for.
func (o *Options) complete(env *cli.Env, name string) (masters string, err error) {
	if IsURI(name) && name != ofFile {
		uri, err := client.ParseURI(name, env.Getenv)
		if err != nil {
			return "", cli.Usagef("%w", err)
		}
		if o.Cluster != "" && o.Cluster != uri.Cluster {
			return "", cli.Usagef("%q is cluster %s, and -c says %s", name, uri.Cluster, o.Cluster)
		}
		if len(uri.Database) > 0 {
			for key := range uri.Database {
				return "", cli.Usagef("%q: option %s is not known here", name, key)
			}
		}
		for key, value := range uri.Storage {
			switch key {
			case "ca":
				o.CA = value
			case "cert":
				o.Cert = value
			case "key":
				o.Key = value
			default:
				return "", cli.Usagef("%q: option %s is not known here", name, key)
			}
		}
		o.Cluster = uri.Cluster
		return uri.Masters, nil
	}
	if o.File == "" {
		if name == ofFile {
			return "", cli.Usagef("%s stands for the cluster of a configuration file: give one with -f, or write neo://CLUSTER@HOST:PORT,HOST:PORT", ofFile)
		}
		return name, nil
	}
	s, err := cli.ReadSection(o.File, "DEFAULT")
	if err != nil {
		return "", err
	}
	var listed string
	for _, p := range []struct {
		key   string
		value *string
		path  bool
	}{{"cluster", &o.Cluster, false}, {"masters", &listed, false}, {"ca", &o.CA, true}, {"cert", &o.Cert, true}, {"key", &o.Key, true}} {
		if *p.value != "" { // on the command line
			continue
		}
		v, _, err := s.Get(p.key)
		if err == nil && p.path && v != "" {
			v, err = conf.ExpandUser(v)
		}
		if err != nil {
			return "", cli.BadConfig(fmt.Errorf("%s: section DEFAULT: %s: %w", o.File, p.key, err))
		}
		*p.value = v
	}
	if name != ofFile {
		return name, nil
	}
	if listed == "" {
		return "", cli.BadConfig(fmt.Errorf("%s: section DEFAULT has no masters", o.File))
	}
	return listed, nil
}

// masters returns the addresses of the masters that name stands for, resolved, and sets the
// other options of the cluster.
func (o *Options) masters(ctx context.Context, env *cli.Env, name string) ([]conf.Address, error) {
	list, err := o.complete(env, name)
	if err != nil {
		return nil, err
	}
	if o.Cluster == "" {
		return nil, cli.Usagef("%q is not a file, so it must be the masters of a cluster: its name is missing (-c)", name)
	}
	masters, err := conf.ParseMasters(list)
	switch {
	case err != nil && strings.Contains(name, "/") && !IsURI(name):
		return nil, fmt.Errorf("%q is neither an existing file nor a list of masters: %w", name, err)
	case err != nil && name == list:
		return nil, cli.Usagef("%q is neither an existing file nor a list of masters: %w", name, err)
	case err != nil:
		return nil, cli.Usagef("masters of %s: %w", name, err)
	case len(masters) == 0:
		return nil, cli.Usagef("empty list of masters")
	}
	if masters, err = conf.ResolveAll(ctx, masters); err != nil && name == list {
		err = fmt.Errorf("%q is neither an existing file nor a list of masters: %w", name, err)
	}
	return masters, err
}
