package conf

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Ports that nodes listen on unless told otherwise.
const (
	MasterPort = 10000
	AdminPort  = 9999
)

// Address is where a node listens: a host name or numeric IP, and a port. It has
// the fields of an address on the wire, to be converted to one once resolved.
type Address struct {
	Host string
	Port uint16
}

// String returns host:port, IPv6 hosts in brackets.
func (a Address) String() string { return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port))) }

// ParseAddress reads host, host:port or [v6]:port; an IPv6 address without port
// may do without brackets. Names are not resolved.
func ParseAddress(s string, defaultPort uint16) (Address, error) {
	host, port, err := splitAddress(s)
	if err != nil {
		return Address{}, fmt.Errorf("address %q: %w", s, err)
	}
	a := Address{host, defaultPort}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return Address{}, fmt.Errorf("address %q: port %q is not a number from 0 to 65535", s, port)
		}
		a.Port = uint16(n)
	}
	return a, nil
}

// splitAddress returns port "" if there is none.
func splitAddress(s string) (host, port string, err error) {
	switch {
	case strings.HasPrefix(s, "["):
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", fmt.Errorf("no ] after [")
		}
		host, port = s[1:end], s[end+1:]
		if port != "" && (len(port) == 1 || port[0] != ':') {
			return "", "", fmt.Errorf("want [host]:port")
		}
		port = strings.TrimPrefix(port, ":")
		if !strings.Contains(host, ":") {
			return "", "", fmt.Errorf("only an IPv6 address goes in brackets")
		}
	case strings.Count(s, ":") > 1:
		host = s
	default:
		var found bool
		host, port, found = strings.Cut(s, ":")
		if found && port == "" {
			return "", "", fmt.Errorf("no port after the colon")
		}
	}
	if strings.Contains(host, ":") && net.ParseIP(strings.SplitN(host, "%", 2)[0]) == nil {
		return "", "", fmt.Errorf("%q is not an IPv6 address", host)
	}
	if host == "" {
		return "", "", fmt.Errorf("no host")
	}
	if i := strings.IndexFunc(host, func(r rune) bool { return r <= ' ' || strings.ContainsRune("[]/@,;", r) }); i >= 0 {
		return "", "", fmt.Errorf("character %q is not part of a host name", host[i])
	}
	return host, port, nil
}

// Resolve returns the address with its name replaced by the first numeric IP it
// resolves to.
func (a Address) Resolve(ctx context.Context) (Address, error) {
	if net.ParseIP(a.Host) != nil {
		return a, nil
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, a.Host)
	if err != nil {
		return Address{}, fmt.Errorf("address %v: %w", a, err)
	}
	if len(ips) == 0 {
		return Address{}, fmt.Errorf("address %v: name has no address", a)
	}
	return Address{ips[0].String(), a.Port}, nil
}

// resolveTimeout bounds how long the masters of a list may take to resolve.
const resolveTimeout = 30 * time.Second

// ParseMasters reads a list of master addresses separated by spaces; port 10000
// may be left out. A list may be empty; an address in it twice counts once.
func ParseMasters(s string) ([]Address, error) {
	var list []Address
	seen := map[Address]bool{}
	for field := range strings.FieldsSeq(s) {
		a, err := ParseAddress(field, MasterPort)
		if err != nil {
			return nil, err
		}
		if a.Port == 0 {
			return nil, fmt.Errorf("address %q: a master needs a port that others know", field)
		}
		if !seen[a] {
			seen[a] = true
			list = append(list, a)
		}
	}
	return list, nil
}

// ResolveAll resolves every address of a list, giving up after 30 s in all.
func ResolveAll(ctx context.Context, list []Address) ([]Address, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	out := make([]Address, len(list))
	for i, a := range list {
		var err error
		if out[i], err = a.Resolve(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}
