package proctest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// manual has the programs write their manual pages and completion.
func manual(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv("MANUAL_DATE", "2026-11-29")
	for _, program := range installed(t) {
		if out, errOut, status := Run(t, program, "__manual", dir); status != 0 || out != "" {
			t.Fatalf("%s __manual: %s%s", program, out, errOut)
		}
	}
	return dir
}

// installed returns the names of all programs that there are.
func installed(t *testing.T) (names []string) {
	t.Helper()
	mains, err := filepath.Glob("../../*/main.go")
	if err != nil || len(mains) < 11 {
		t.Fatalf("%d programs, %v", len(mains), err)
	}
	for _, m := range mains {
		names = append(names, filepath.Base(filepath.Dir(m)))
	}
	return names
}

// Each program and each of its commands has a manual page, which man formats without a warning, and completion that shells can read.
func TestManual(t *testing.T) {
	dir := manual(t)
	for _, program := range installed(t) {
		page := string(read(t, filepath.Join(dir, "man1", program+".1")))
		for _, section := range []string{"NAME\n" + program + ` \- `, "SYNOPSIS\n", "DESCRIPTION\n", "OPTIONS\n", "EXIT STATUS\n.TP\n\\fB0\\fR\ndone\n", "SEE ALSO\n"} {
			if !strings.Contains(page, "\n.SH "+section) {
				t.Errorf("%s(1) has no %q", program, section)
			}
		}
		for _, other := range installed(t) {
			if other != program && !strings.Contains(page, "\n.BR "+other+" (1)") {
				t.Errorf("%s(1) does not name %s(1): cli.Programs", program, other)
			}
		}
		script := filepath.Join(dir, "bash", program)
		if out, err := exec.CommandContext(t.Context(), "bash", "-c", `. "$1"; complete -p "$2"`, "bash", script, program).CombinedOutput(); err != nil || !strings.Contains(string(out), "__start_"+program) {
			t.Errorf("completion of %s: %v\n%s", program, err, out)
		}
		for _, name := range []string{"zsh/_" + program, "fish/" + program + ".fish"} {
			if text := string(read(t, filepath.Join(dir, name))); !strings.Contains(text, program) {
				t.Errorf("%s has nothing about %s", name, program)
			}
		}
	}
	pages, err := filepath.Glob(filepath.Join(dir, "man1", "*.1"))
	if err != nil || len(pages) < 60 {
		t.Errorf("%d pages, %v", len(pages), err)
	}
	t.Run("mandoc", func(t *testing.T) {
		args := append([]string{"-Tlint", "-Wwarning"}, pages...)
		if out, err := exec.CommandContext(t.Context(), tool(t, "mandoc"), args...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("man", func(t *testing.T) {
		man := tool(t, "man")
		for _, name := range []string{"neostorage", "neoctl", "neobackup", "neobackup-restore", "neoctl-tls-init"} {
			cmd := exec.CommandContext(t.Context(), man, "--warnings=all", "-l", filepath.Join(dir, "man1", name+".1"))
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=100", "MANPAGER=cat")
			var warnings strings.Builder
			cmd.Stderr = &warnings
			if out, err := cmd.Output(); err != nil || warnings.Len() > 0 || !strings.Contains(string(out), "SEE ALSO") {
				t.Errorf("man %s: %v\n%s", name, err, warnings.String())
			}
		}
	})
}

// tool returns where a program is that the tests of packages need.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		zeotest.Missing(t, "%s is not installed: make install-monitoring-tools", name)
	}
	return path
}

// An archive and a Debian package have the files of contrib that the pages name, and manual pages
// name the directory of the documentation that the package has.
func TestPackagesHaveWhatDocsName(t *testing.T) {
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil || len(pages) < 15 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	build, deb := string(read(t, "../../../contrib/release/build")), string(read(t, "../../../contrib/deb/build"))
	shipped := strings.Fields(between(t, build, "for extra in ", ";"))
	shipped = append(shipped, "systemd")
	for _, page := range pages {
		for _, m := range regexp.MustCompile(`\]\(\.\./contrib/([a-z]+)[/)]`).FindAllStringSubmatch(string(read(t, page)), -1) {
			if !slices.Contains(shipped, m[1]) {
				t.Errorf("%s links to contrib/%s, which contrib/release/build leaves out", page, m[1])
			}
			if m[1] != "systemd" && !regexp.MustCompile(`contrib/[^"\n]*\b`+m[1]+`\b`).MatchString(deb) {
				t.Errorf("%s links to contrib/%s, which contrib/deb/build leaves out", page, m[1])
			}
		}
	}
	documentation := "/" + between(t, deb, "doc=$root/", "\n")
	if page := string(read(t, filepath.Join(manual(t), "man1", "neoctl.1"))); !strings.Contains(page, "\nThe documentation is in "+documentation+",") {
		t.Errorf("neoctl(1) does not name %s", documentation)
	}
}

// between returns what is between two texts for the first time.
func between(t testing.TB, s, begin, end string) string {
	t.Helper()
	_, s, ok := strings.Cut(s, begin)
	s, _, ends := strings.Cut(s, end)
	if !ok || !ends {
		t.Fatalf("no %q before a %q", begin, end)
	}
	return s
}

// The commands of docs/install.md install the programs from an archive, and serve a Data.fs with what neosimple.service starts.
func TestInstallGuide(t *testing.T) {
	const name = "neo-1.3.0-linux-amd64"
	archive, dir := t.TempDir(), t.TempDir()
	tree := filepath.Join(archive, name)
	script := `set -eu
mkdir -p "$1/bin" "$1/share/completion"
for p in "${@:4}"; do ln "$2/$p" "$1/bin/" || cp "$2/$p" "$1/bin/"; done
cp -R "$3/man1" "$1/share/"
cp -R "$3/bash" "$3/zsh" "$3/fish" "$1/share/completion/"
cp -R ../../../contrib/systemd ../../../*.conf.example "$1/"
tar -C "$1/.." -cf "$1.tar.gz" "$(basename "$1")"
rm -r "$1"`
	bin := filepath.Dir(Bin(t, "neoctl"))
	args := append([]string{"-c", script, "bash", tree, bin, manual(t)}, installed(t)...)
	if out, err := exec.CommandContext(t.Context(), "bash", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sums := fmt.Sprintf("%x  %s.tar.gz\n", sha256.Sum256(read(t, tree+".tar.gz")), name)
	if err := os.WriteFile(filepath.Join(archive, "SHA256SUMS"), []byte(sums), 0o600); err != nil {
		t.Fatal(err)
	}
	g := guide{
		file: "install.md", addrs: []string{"127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:8100"}, admin: "127.0.0.1:9999",
		replace: []string{"sha256sum --check", "cp " + archive + "/* . && sha256sum --check", "/usr/local", dir + "/usr/local", "/etc/neo", dir + "/etc/neo"},
	}
	out := g.follow(t)
	says(t, "the guide", out, name+`\.tar\.gz: OK`, `(?m)^neoctl \S+$`, `\+.* neosimple -q -d `, `no difference|compared`)
	for _, path := range []string{"usr/local/bin/neostorage", "usr/local/share/man/man1/neoctl.1", "usr/local/share/bash-completion/completions/neofs", "etc/neo/neo.conf.example"} {
		if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
			t.Error(err)
		}
	}
}

// The commands of docs/tls.md make certificates with which nodes, tools and the strictest ZEO clients work, renewed ones too.
func TestTLSGuide(t *testing.T) {
	t.Parallel()
	python := zeotest.Python(t)
	g := guide{
		file: "tls.md", addrs: []string{"127.0.0.1:10000"},
		replace: []string{"python3 application.py", python + " application.py", "neoctl $tls", "neoctl -a $admin $tls", "bind: 127.0.0.1:9999", "bind: $admin", "/etc/neo/tls", t.TempDir() + "/tls"},
	}
	zeo := FreePort(t)
	admin := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	for i := range g.replace {
		g.replace[i] = strings.ReplaceAll(g.replace[i], "$admin", admin)
	}
	g.replace = append(g.replace, "127.0.0.1:8100", fmt.Sprintf("127.0.0.1:%d", zeo), "'localhost', 8100", fmt.Sprintf("'localhost', %d", zeo))
	out := g.follow(t)
	says(t, "the guide", out, `(?m)^ca +20\d\d-.*\(authority\)$`, `(?m)^node +.*localhost zeo1\.example\.com 127\.0\.0\.1 ::1 10\.0\.0\.1$`, `(?m)^zope1: valid until`)
	if n := strings.Count(out, "objects of the root: ["); n != 2 {
		t.Errorf("the application has read %d times\n%s", n, tail(out, 3000))
	}
}

// The commands of docs/upgrade.md restart a cluster node by node.
func TestUpgradeGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "upgrade.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:10001", "127.0.0.1:9999", "127.0.0.1:8100")
	says(t, "the guide", out, `12 partitions compared: no difference found`)
}

// The image of the container has all that the Containerfile copies, and starts what there is.
func TestContainer(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "../../../contrib/container/build", filepath.Dir(Bin(t, "neoctl")), dir)
	certificates := write(t, "certificates.crt", []byte("certificates\n"))
	cmd.Env = append(os.Environ(), "CERTIFICATES="+certificates)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var start string
	for line := range strings.Lines(string(read(t, filepath.Join(dir, "Containerfile")))) {
		words := strings.Fields(line)
		switch {
		case len(words) > 2 && words[0] == "COPY":
			if _, err := os.Stat(filepath.Join(dir, words[len(words)-2])); err != nil {
				t.Error(err)
			}
		case len(words) > 1 && words[0] == "CMD":
			start = strings.NewReplacer("[", "", "]", "", `"`, "", ",", "").Replace(strings.Join(words[1:], " "))
		}
	}
	for _, program := range installed(t) {
		if info, err := os.Stat(filepath.Join(dir, "root/usr/bin", program)); err != nil || info.Mode().Perm()&0o111 == 0 {
			t.Errorf("%s: %v", program, err)
		}
	}
	words := strings.Fields(start)
	if len(words) == 0 {
		t.Fatal("the image starts nothing")
	}
	if out, errOut, status := Run(t, words[0], append(words[1:], "--version")...); status != 0 {
		t.Errorf("%s: %s%s", start, out, errOut)
	}
}
