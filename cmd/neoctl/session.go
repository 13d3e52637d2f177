package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cmd/internal/cli"
	"golang.org/x/term"
)

// session is the link to an admin, with what an order may need beside it.
type session struct {
	*ctl.Client
	env  *cli.Env
	o    *options
	link link.Config
	sure bool // what is erased need not be confirmed any more
	json bool // print JSON
}

// jsonText is a value as JSON for people and programs: one line.
func jsonText(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return b.String(), nil
}

// erasure is what an order would erase. It was not carried out.
type erasure struct {
	loss string // in sentences
	how  string // the command that does it without question
}

func (e *erasure) Error() string { return "not confirmed: " + e.loss }

// erasing makes an order wait for a confirmation of what it erases, which question tells
// in sentences; "" needs none, as where the master is going to refuse the order.
func erasing(o order, how string, question func(context.Context, *session) (string, error)) order {
	return func(ctx context.Context, c *session) (string, error) {
		if !c.sure {
			loss, err := question(ctx, c)
			if err != nil {
				return "", err
			}
			if loss != "" {
				return "", &erasure{loss, how}
			}
		}
		return o(ctx, c)
	}
}

// confirmErasure tells what would be erased, and asks whether it is wanted. Without a
// terminal it is not.
func confirmErasure(env *cli.Env, e *erasure) bool {
	w := env.Stderr
	fmt.Fprintf(w, "*** THIS ERASES DATA FOR GOOD ***\n\n%s\n\n", e.loss)
	if !interactive(env) {
		fmt.Fprintf(w, "Nothing was done. To go on: neoctl %s --yes\n", e.how)
		return false
	}
	fmt.Fprintf(w, "To go on, type \"yes\": ")
	line, err := bufio.NewReader(env.Stdin).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "yes" {
		fmt.Fprintln(w, "Nothing was done.")
		return false
	}
	return true
}

// interactive reports whether a person can answer.
func interactive(env *cli.Env) bool {
	if env.Stdin == nil {
		return false
	}
	f, ok := env.Stdin.(*os.File)
	return !ok || term.IsTerminal(int(f.Fd()))
}

// terminal reports whether a writer is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// loadFile takes what a section of neo.conf says where the command line says nothing: the address
// of the admin, the certificates, and the cluster and its masters, which an order to pack needs.
func (o *options) loadFile(given func(option string) bool) error {
	if o.file == "" {
		if given("section") {
			return cli.Usagef("--section needs --file")
		}
		return nil
	}
	s, err := cli.ReadSection(o.file, o.section)
	if err != nil {
		return err
	}
	for _, k := range []struct {
		key, option string
		to          *string
		path        bool
	}{
		{"bind", "address", &o.address, false}, {"cluster", "", &o.cluster, false}, {"masters", "", &o.masters, false},
		{"ca", "ca", &o.CA, true}, {"cert", "cert", &o.Cert, true}, {"key", "key", &o.Key, true},
	} {
		if !s.Has(k.key) || k.option != "" && given(k.option) {
			continue
		}
		v, _, err := s.Get(k.key)
		if err == nil && k.path {
			v, err = conf.ExpandUser(v)
		}
		if err != nil {
			return cli.BadConfig(fmt.Errorf("%s: section %q: key %q: %w", o.file, o.section, k.key, err))
		}
		*k.to = v
		if k.key == "bind" {
			if *k.to, err = reachable(v); err != nil {
				return cli.BadConfig(fmt.Errorf("%s: section %q: key %q: %w", o.file, o.section, k.key, err))
			}
		}
	}
	return nil
}

// reachable returns where what listens on an address is reached from this machine.
func reachable(bind string) (string, error) {
	a, err := conf.ParseAddress(bind, conf.AdminPort)
	if err != nil {
		return "", err
	}
	if a.Port == 0 {
		return "", errors.New("the admin listens on any free port, which only its log tells: give --address")
	}
	switch a.Host {
	case "0.0.0.0":
		a.Host = "127.0.0.1"
	case "::":
		a.Host = "::1"
	}
	return a.String(), nil
}

// nodeNames returns a function that names nodes as people know them: S2 (db2, /var/lib/neo/s2.sqlite).
func nodeNames(ctx context.Context, c *session) (func(proto.NodeID) string, error) {
	nodes, err := namedNodes(ctx, c, proto.Opt[proto.NodeType]{})
	if err != nil {
		return nil, err
	}
	return func(id proto.NodeID) string {
		for i := range nodes {
			if nodes[i].ID == id.String() {
				return nodes[i].Name()
			}
		}
		return id.String()
	}, nil
}

// namedNodes returns the nodes with what they tell of themselves.
func namedNodes(ctx context.Context, c *session, typ proto.Opt[proto.NodeType]) ([]status.Node, error) {
	list, err := c.Nodes(ctx, typ)
	if err != nil {
		return nil, err
	}
	v, err := c.Vitals(ctx)
	if err != nil {
		return nil, err
	}
	return status.NamedNodes(list, v), nil
}
