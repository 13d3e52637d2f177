package conf

import (
	"fmt"
	"os"
	"os/user"
	"strings"
)

// ParseBool reads a flag as configuration files spell it: yes/no, on/off,
// true/false, 1/0, in any case.
func ParseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "yes", "true", "on":
		return true, nil
	case "0", "no", "false", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is not a flag: want yes or no", s)
}

// ExpandUser replaces a leading ~ or ~user by that user's home directory.
func ExpandUser(path string) (string, error) {
	if !strings.HasPrefix(path, "~") {
		return path, nil
	}
	name, rest, _ := strings.Cut(path[1:], "/")
	var home string
	if name == "" {
		var err error
		if home, err = os.UserHomeDir(); err != nil {
			return "", fmt.Errorf("path %q: %w", path, err)
		}
	} else {
		u, err := user.Lookup(name)
		if err != nil {
			return "", fmt.Errorf("path %q: %w", path, err)
		}
		home = u.HomeDir
	}
	if rest == "" {
		return home, nil
	}
	return strings.TrimRight(home, "/") + "/" + rest, nil
}
