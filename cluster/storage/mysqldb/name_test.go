package mysqldb

import (
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// The forms and meanings are those of the Python implementation, and one of ours.
func TestNames(t *testing.T) {
	for in, want := range map[string]name{
		"neo1":                      {database: "neo1"},
		"neo:neo@neo1":              {user: "neo", password: "neo", hasPassword: true, database: "neo1"},
		"user@db":                   {user: "user", database: "db"},
		"u:@db":                     {user: "u", hasPassword: true, database: "db"},
		"db/run/x.sock":             {database: "db", socket: "/run/x.sock"},
		"u:p@ss@db~/run/s":          {user: "u", password: "p@ss", hasPassword: true, database: "db", socket: "~/run/s"},
		"u:p:q@d./x":                {user: "u", password: "p:q", hasPassword: true, database: "d", socket: "./x"},
		"u:p@db/run/a@b":            {user: "u", password: "p@db/run/a", hasPassword: true, database: "b"},
		"u:p@db/run/a@/b":           {user: "u", password: "p", hasPassword: true, database: "db", socket: "/run/a@/b"},
		"my-db":                     {database: "my-db"},
		"//h/db":                    {database: "db", addr: "h:3306"},
		"//h:33/db?user=u&tls=true": {user: "u", database: "db", addr: "h:33", tls: "true"},
		"//[::1]:33/d%2eb?user=u%40v&password=a%26b": {user: "u@v", password: "a&b", hasPassword: true, database: "d.b", addr: "[::1]:33"},
	} {
		if n, err := parseName(in); err != nil || n != want {
			t.Errorf("parseName(%q) = %+v, %v, want %+v", in, n, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                             "not of the form",
		"/run/s":                       "not of the form",
		"~/x":                          "not of the form",
		"db/":                          "not of the form",
		"//h":                          "no database",
		"//h/a/b":                      "no database",
		"///db":                        "no host",
		"//h/db?user=a&user=b":         "given twice",
		"//h/db?host=a":                "unknown parameter host",
		"//h/db?tls=maybe":             "tls is to be",
		"//h/db?password=secret#1":     "# is to be written",
		"//h/db?password=secret&u@/":   "@ as %40",
		"//h/db?user=u&password=sec@t": "@ as %40",
		"//h:1/db?password=sec@t":      "@ as %40",
		"//u:secret@h/db":              "@ as %40",
		"//h:port/db?password=secret":  "invalid port",
		"//h/db?user=u&password=%zsec": "parameters cannot be read",
	} {
		if _, err := parseName(in); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sec") {
			t.Errorf("parseName(%q): %v, want an error that says %q without the password", in, err, want)
		}
	}
}

// Messages name a database without its password.
func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"neo:secret@neo1/run/s":             "neo@neo1/run/s",
		"//h/db?user=u&password=secret":     "//h:3306/db?user=u",
		"neo1":                              "neo1",
		"//h/db?user=u&password=secret&x=y": "(not a database string)",
		"//h/db?user=u&password=sec@ret":    "(not a database string)",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestDefaults(t *testing.T) {
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("MYSQL_UNIX_PORT", "/x/y")
	for in, want := range map[string]string{"db": "/x/y", "db~/s": filepath.Join(home, "s"), "db./s": "./s"} {
		d, err := newDialect(in, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if d.cfg.Addr != want || d.cfg.User != u.Username {
			t.Errorf("%q is at %q of user %q, want %q, %q", in, d.cfg.Addr, d.cfg.User, want, u.Username)
		}
	}
	t.Setenv("MYSQL_UNIX_PORT", "")
	if d, err := newDialect("db", Options{}); err != nil || !filepath.IsAbs(d.cfg.Addr) {
		t.Errorf("socket %v, %v", d, err)
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"", "a", "u:p@d/s", "u@d", "//h:1/d?user=a", "@", "a@b@c~d", ":", "//[::1]/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseName(s)
		if err != nil {
			return
		}
		if n.database == "" {
			t.Errorf("%q has no database", s)
		}
		if strings.HasPrefix(n.user, "//") {
			t.Errorf("%q has user %q", s, n.user)
		}
		if _, ok := parseLocal(s); ok && n.addr != "" {
			t.Errorf("%q, which the Python implementation accepts, is taken for a host", s)
		}
	})
}
