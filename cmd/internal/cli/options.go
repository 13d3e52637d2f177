package cli

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/spf13/pflag"
)

// TLS is the option group for encrypted links: three PEM files, or none.
type TLS struct {
	CA   string // certificates that sign those of the nodes, and revocation lists
	Cert string // of this node
	Key  string // of Cert
}

// AddFlags defines --ca, --cert and --key.
func (o *TLS) AddFlags(fs *pflag.FlagSet) {
	Path(fs, &o.CA, "ca", "", "", "(PEM) certificate authority of the cluster; enables TLS, with --cert and --key")
	Path(fs, &o.Cert, "cert", "", "", "(PEM) certificate of this node")
	Path(fs, &o.Key, "key", "", "", "(PEM) private key of this node")
}

// TLSConfig loads and checks the certificates. It returns nil without TLS.
func (o *TLS) TLSConfig() (*tls.Config, error) {
	switch {
	case *o == TLS{}:
		return nil, nil
	case o.CA == "" || o.Cert == "" || o.Key == "":
		return nil, Usagef("to enable encryption, 3 files must be provided: the CA certificate, and the certificate of this node with its private key")
	}
	return link.LoadTLS(o.CA, o.Cert, o.Key)
}

// PeerTimeout is the option of how long another node may give no sign of life.
type PeerTimeout struct{ seconds float64 }

// AddFlags defines --peer-timeout.
func (o *PeerTimeout) AddFlags(fs *pflag.FlagSet) {
	fs.Float64Var(&o.seconds, "peer-timeout", link.DefaultPeerTimeout.Seconds(),
		"seconds without a sign of life after which another node is given up, which a busy one is not; a Python node has 12 times as long; 0: never")
}

// Limit returns the option as the nodes take it, or a usage error.
func (o *PeerTimeout) Limit() (time.Duration, error) {
	if o.seconds == 0 {
		return -1, nil
	}
	d := time.Duration(o.seconds * float64(time.Second))
	if least := link.MinPeerTimeout; d < least || o.seconds > maxPeerTimeout {
		return 0, Usagef("--peer-timeout must be between %v and %d seconds, or 0 for no limit", least.Seconds(), int(maxPeerTimeout))
	}
	return d, nil
}

// maxPeerTimeout is a day in seconds.
const maxPeerTimeout = 86400

// Cluster is the option group of a client of a cluster.
type Cluster struct {
	Logging
	TLS
	Name       string // -c
	MasterList string // -m
}

// AddFlags defines -c, -m, -l, --ca, --cert and --key.
func (o *Cluster) AddFlags(fs *pflag.FlagSet) {
	Text(fs, &o.Name, "cluster", "c", "", "name of the cluster")
	Text(fs, &o.MasterList, "masters", "m", defaultMasters, "addresses of the masters, separated by spaces")
	o.Logging.AddFlags(fs)
	o.TLS.AddFlags(fs)
}

// Masters returns the addresses of the masters, resolved.
func (o *Cluster) Masters(ctx context.Context) ([]conf.Address, error) {
	return resolveMasters(ctx, o.MasterList)
}

// WireAddresses returns resolved addresses as links and nodes take them.
func WireAddresses(list []conf.Address) []proto.Address {
	wire := make([]proto.Address, len(list))
	for i, a := range list {
		wire[i] = proto.Address(a)
	}
	return wire
}

func resolveMasters(ctx context.Context, list string) ([]conf.Address, error) {
	masters, err := conf.ParseMasters(list)
	if err != nil {
		return nil, Usagef("--masters: %w", err)
	}
	if len(masters) == 0 {
		return nil, Usagef("no master address given")
	}
	return conf.ResolveAll(ctx, masters)
}

const defaultMasters = "127.0.0.1:10000"

// Role is the kind of a node, which is the default name of its section too.
type Role string

const (
	Master  Role = "master"
	Storage Role = "storage"
	Admin   Role = "admin"
)

// Daemon is the option group of the nodes of a cluster.
type Daemon struct {
	Logging
	TLS
	PeerTimeout
	File, Section string // -f, -s
	Cluster       string // -c
	MasterList    string // -m
	BindTo        string // -b
	DynamicList   string // -D
	NodeID        int    // -i; 0: not forced

	role Role
}

// AddFlags defines the options of a daemon. Call [Daemon.Load] once they are parsed.
func (o *Daemon) AddFlags(fs *pflag.FlagSet, role Role) {
	o.role = role
	masters, bind := defaultMasters, "127.0.0.1"
	switch role {
	case Master:
		masters, bind = "", "127.0.0.1:10000"
	case Admin:
		bind = "127.0.0.1:9999"
	}
	Path(fs, &o.File, "file", "f", "", "configuration file")
	Text(fs, &o.Section, "section", "s", string(role), "section of the configuration file")
	Text(fs, &o.Cluster, "cluster", "c", "", "name of the cluster (required)")
	o.MasterList = masters
	fs.StringVarP(&o.MasterList, "masters", "m", masters, "addresses of all masters, separated by spaces")
	Text(fs, &o.BindTo, "bind", "b", bind, "listening address; a free port if none is given")
	Path(fs, &o.DynamicList, "dynamic-master-list", "D", "", "file where to keep the list of masters (JSON)")
	o.Logging.AddFlags(fs)
	o.Logging.Informs(fs)
	o.TLS.AddFlags(fs)
	o.PeerTimeout.AddFlags(fs)
	fs.IntVarP(&o.NodeID, "nid", "i", 0, "force the id of this node (for tests)")
	Required(fs, "cluster")
	CommandLineOnly(fs, "file", "section")
}

// Load completes the options with those of the configuration file. fs is the
// flag set of the command, with the options of its own.
func (o *Daemon) Load(fs *pflag.FlagSet) error {
	unused, err := mergeFile(fs, o.File, o.Section)
	if len(unused) > 0 {
		o.Logging.note("keys of the section are for other programs, and not used here", "file", o.File, "section", o.Section, "keys", strings.Join(unused, " "))
	}
	return err
}

// Masters returns the addresses of the masters, resolved, and those of the
// dynamic master list, which is nil if there is none. The list of a master may be
// empty.
func (o *Daemon) Masters(ctx context.Context) ([]conf.Address, *conf.MasterList, error) {
	masters, err := conf.ParseMasters(o.MasterList)
	if err != nil {
		return nil, nil, Usagef("--masters: %w", err)
	}
	if masters, err = conf.ResolveAll(ctx, masters); err != nil {
		return nil, nil, err
	}
	var dynamic *conf.MasterList
	if o.DynamicList != "" {
		var more []conf.Address
		if dynamic, more, err = conf.OpenMasterList(o.DynamicList); err != nil {
			return nil, nil, err
		}
		for _, a := range more {
			if !slices.Contains(masters, a) {
				masters = append(masters, a)
			}
		}
	}
	if len(masters) == 0 && o.role != Master {
		return nil, nil, Usagef("no master address given")
	}
	return masters, dynamic, nil
}

// Bind returns the address to listen on, resolved; port 0 means any.
func (o *Daemon) Bind(ctx context.Context) (conf.Address, error) {
	a, err := conf.ParseAddress(o.BindTo, 0)
	if err != nil {
		return a, Usagef("--bind: %w", err)
	}
	return a.Resolve(ctx)
}
