package proctest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// deb makes a package of a tree like that of a release, with programs that do nothing.
func deb(t *testing.T, umask string) (path string) {
	t.Helper()
	tool(t, "dpkg-deb")
	script := `set -eu
umask "$1"
tree=$(mktemp -d -p "$2") out=$(mktemp -d -p "$2")
cd ../../..
mkdir -p "$tree/bin" "$tree"/share/man1 "$tree"/share/completion/{bash,zsh,fish} "$tree/contrib" "$tree/licenses/std"
for p in neoctl neostorage; do
	printf '#!/bin/sh\n' >"$tree/bin/$p"
	for f in man1/$p.1 completion/bash/$p completion/zsh/_$p completion/fish/$p.fish; do echo "$p" >"$tree/share/$f"; done
done
chmod 755 "$tree"/bin/*
echo licence >"$tree/licenses/std/LICENSE"
cp -R docs contrib/systemd "$tree/"
for extra in $(sed -n 's/.*for extra in \(.*\); do/\1/p' contrib/release/build); do cp -R "contrib/$extra" "$tree/contrib/"; done
cp ./*.conf.example README.md CHANGELOG.md "$tree/"
SOURCE_DATE_EPOCH=1795975200 contrib/deb/build "$tree" v1.10.0-0.20261129-abc+dirty amd64 "$out"
echo "$out"/*.deb`
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script, "bash", umask, t.TempDir())
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// The Debian package is the same each time, owns what it is to own, and nothing below /var.
func TestPackage(t *testing.T) {
	t.Parallel()
	path := deb(t, "022")
	if again := deb(t, "077"); !bytes.Equal(read(t, path), read(t, again)) {
		t.Error("the package is another one when it is made again, with another umask")
	}
	if got, want := filepath.Base(path), "neozodb_1.10.0~0.20261129~abc+dirty_amd64.deb"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	root := t.TempDir()
	list := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), tool(t, "dpkg-deb"), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("dpkg-deb %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	contents := list("--contents", path)
	if bad := regexp.MustCompile(`(?m)^.*(\./var|\./run|\./tmp).*$|^.{10} (?:[^r]|r[^o]).*$|^.....w.*$|^........w.*$`).FindString(contents); bad != "" {
		t.Errorf("the package has %s", bad)
	}
	for _, name := range []string{
		"./usr/bin/neostorage", "./usr/lib/systemd/system/neostorage@.service", "./usr/share/man/man1/neoctl.1.gz", "./etc/neo/neo.conf.example", "./etc/default/neosimple",
		"./usr/share/doc/neozodb/docs/install.md", "./usr/share/doc/neozodb/examples/logrotate/neo", "./usr/share/doc/neozodb/examples/prometheus/neo.rules.yml",
		"./usr/share/doc/neozodb/examples/grafana/neo.json", "./usr/share/doc/neozodb/examples/backup/rejoin.sh", "./usr/share/zsh/vendor-completions/_neoctl",
	} {
		if !strings.Contains(contents, " "+name+"\n") {
			t.Errorf("the package has no %s", name)
		}
	}
	list("--raw-extract", path, root)
	if size := list("--field", path, "Installed-Size"); !regexp.MustCompile(`^[1-9][0-9]*\n$`).MatchString(size) {
		t.Errorf("Installed-Size: %q", size)
	}
	for line := range strings.Lines(string(read(t, filepath.Join(root, "DEBIAN/conffiles")))) {
		if _, err := os.Stat(filepath.Join(root, strings.TrimSpace(line))); err != nil {
			t.Error(err)
		}
	}
	if unit := string(read(t, filepath.Join(root, "usr/lib/systemd/system/neostorage@.service"))); !strings.Contains(unit, "\nExecStart=/usr/bin/neostorage ") {
		t.Errorf("the unit starts something else:\n%s", unit)
	}
}

// What dpkg runs makes the users, with the groups that there are, and stops nothing in an upgrade.
func TestPackageScripts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	stub := "#!/bin/sh\nprintf '%s %s\\n' \"${0##*/}\" \"$*\" >>" + log + "\n"
	for name, more := range map[string]string{
		"systemctl": "", "useradd": "", "groupadd": "", "install": "", "rmdir": "", "rm": "",
		"getent": `case "$*" in "passwd neobackup" | "group neo") exit 0 ;; *) exit 2 ;; esac` + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(stub+more), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(script string, args ...string) []string {
		t.Helper()
		if err := os.WriteFile(log, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "sh", append([]string{"../../../contrib/deb/" + script}, args...)...)
		cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s %q: %v\n%s", script, args, err, out)
		}
		return slices.DeleteFunc(strings.Split(string(read(t, log)), "\n"), func(call string) bool { return call == "" || strings.HasPrefix(call, "getent ") })
	}
	added := slices.DeleteFunc(run("postinst", "configure", ""), func(call string) bool { return !strings.Contains(call, "add ") })
	if want := "useradd --system --gid neo --home-dir /var/lib/neo --no-create-home --shell /usr/sbin/nologin neo"; len(added) != 1 || added[0] != want {
		t.Errorf("with the group neo and the user neobackup, %q, want %q", added, want)
	}
	for _, x := range [][]string{{"prerm", "upgrade", "1.10.0"}, {"postrm", "upgrade", "1.10.0"}, {"postinst", "abort-upgrade", "1.9.0"}} {
		if calls := run(x[0], x[1:]...); len(calls) > 0 {
			t.Errorf("%q calls %q", x, calls)
		}
	}
	for _, x := range [][]string{{"prerm", "remove"}, {"postrm", "remove"}, {"postrm", "purge"}} {
		for _, call := range run(x[0], x[1:]...) {
			if strings.HasPrefix(call, "rm") && call != "rmdir --ignore-fail-on-non-empty /etc/neo" {
				t.Errorf("%q calls %q", x, call)
			}
		}
	}
}
