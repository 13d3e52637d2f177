package mysqldb

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/user"
	"strings"

	"github.com/neozodb/neo/cluster/conf"
)

// name is a parsed database string: [user[:password]@]database[socket], or
// //host[:port]/database[?user=…&password=…&tls=…].
type name struct {
	user        string // "": that of the operating system
	password    string
	hasPassword bool
	database    string
	socket      string // path, "~" not expanded; "" unless given
	addr        string // host:port, "" for a socket
	tls         string // as the driver calls it
}

const tcpForm = "//HOST[:PORT]/DATABASE[?user=USER&password=PASSWORD&tls=true]"

// CheckName returns an error for a string that is not the value of option --database.
func CheckName(s string) error {
	_, err := parseName(s)
	return err
}

// parseName parses the value of option --database.
func parseName(s string) (name, error) {
	// A password with an @ that is not written as %40 would make it the other form, with a user
	// that begins with // and may have the password: no user does.
	if strings.HasPrefix(s, "//") {
		return parseTCP(s)
	}
	if n, ok := parseLocal(s); ok {
		return n, nil
	}
	return name{}, fmt.Errorf("the database string is not of the form [USER[:PASSWORD]@]DATABASE[SOCKET] or %s", tcpForm)
}

// parseLocal parses the form that the Python implementation knows. The longest beginning
// that ends in @ and leaves a valid rest is the credentials.
func parseLocal(s string) (name, bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] != '@' {
			continue
		}
		who, password, has := strings.Cut(s[:i], ":")
		if database, socket, ok := splitSocket(s[i+1:]); ok && who != "" {
			return name{user: who, password: password, hasPassword: has, database: database, socket: socket}, true
		}
	}
	database, socket, ok := splitSocket(s)
	return name{database: database, socket: socket}, ok
}

// splitSocket splits what follows the credentials. A database has no "~", "." or "/".
func splitSocket(s string) (database, socket string, ok bool) {
	i := strings.IndexAny(s, "~./")
	if i < 0 {
		i = len(s)
	}
	// A path is more than its first character.
	return s[:i], s[i:], i > 0 && len(s)-i != 1
}

// parseTCP parses the form that parseLocal does not accept. Messages do not repeat it,
// since it may have a password.
func parseTCP(s string) (name, error) {
	bad := func(format string, args ...any) (name, error) {
		return name{}, fmt.Errorf("the database string is not of the form "+tcpForm+": "+format, args...)
	}
	u, err := url.Parse(s)
	if err != nil {
		// The error quotes the string.
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return bad("%w", err)
	}
	if u.User != nil || strings.Contains(s, "@") {
		return bad("user and password are parameters, with @ as %%40")
	}
	n := name{database: strings.TrimPrefix(u.Path, "/")}
	switch {
	case u.Hostname() == "":
		return bad("no host")
	case n.database == "" || strings.Contains(n.database, "/"):
		return bad("no database")
	case u.Fragment != "":
		return bad("# is to be written as %%23")
	}
	n.addr = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "3306"))
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("its parameters cannot be read")
	}
	for k, v := range values {
		if len(v) != 1 {
			return bad("%s is given twice", k)
		}
		switch k {
		case "user":
			n.user = v[0]
		case "password":
			n.password, n.hasPassword = v[0], true
		case "tls":
			switch v[0] {
			case "true", "false", "skip-verify", "preferred":
				n.tls = v[0]
			default:
				return bad("tls is to be true, false, preferred or skip-verify")
			}
		default:
			return bad("unknown parameter %s", k)
		}
	}
	return n, nil
}

// String returns the name without the password.
func (n name) String() string {
	s := n.database
	if n.addr != "" {
		s = "//" + n.addr + "/" + s
		if n.user != "" {
			s += "?user=" + n.user
		}
		return s
	}
	if n.user != "" {
		s = n.user + "@" + s
	}
	return s + n.socket
}

// Redact returns a database string as messages may show it: without a password.
func Redact(database string) string {
	n, err := parseName(database)
	if err != nil {
		return "(not a database string)"
	}
	return n.String()
}

// sockets are where servers are usually found.
var sockets = []string{"/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/run/mysql/mysql.sock", "/tmp/mysql.sock"}

// path returns the path of the socket.
func (n name) path() (string, error) {
	if n.socket != "" {
		return conf.ExpandUser(n.socket)
	}
	if s := os.Getenv("MYSQL_UNIX_PORT"); s != "" {
		return s, nil
	}
	for _, s := range sockets {
		if _, err := os.Stat(s); !errors.Is(err, fs.ErrNotExist) {
			return s, nil
		}
	}
	return sockets[0], nil
}

// login returns the user's name.
func (n name) login() (string, error) {
	if n.user != "" {
		return n.user, nil
	}
	u, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("no user is given, and that of this process is unknown: %w", err)
	}
	return u.Username, nil
}

// quoteName quotes a name as statements need it.
func quoteName(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }
