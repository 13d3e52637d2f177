package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// The certificates of a cluster are made, listed and renewed without an admin; what is wrong is refused.
func TestTLS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	run := func(want int, pattern string, args ...string) {
		t.Helper()
		args = append([]string{"tls"}, args...)
		if args[1] != "frob" && args[1] != "init" || len(args) > 2 {
			args = append(args, "--dir", dir)
		}
		stdout, stderr, code := runCtl(t, args...)
		if code != want || !strings.Contains(stdout+stderr, pattern) {
			t.Errorf("neoctl %s: exit %d, want %d with %q:\n%s%s", strings.Join(args, " "), code, want, pattern, stdout, stderr)
		}
	}
	run(2, `unknown command "frob"`, "frob")
	for _, options := range [][]string{{"-a", "127.0.0.1:1"}, {"--json"}, {"-f", "neo.conf"}} {
		for _, words := range [][]string{{"tls"}, {"tls", "show"}} {
			if _, stderr, code := runCtl(t, append(options[:len(options):len(options)], words...)...); code != 2 || !strings.Contains(stderr, options[0]+" is for commands that ask an admin") {
				t.Errorf("neoctl %v %v: exit %d, %s", options, words, code, stderr)
			}
		}
	}
	run(2, "unknown flag: --hots", "add", "zope1", "--hots", "x")
	run(1, "no such file", "show")
	run(1, "no authority in", "add", "zope1")
	// Nothing is made of a half: the second attempt is as good as the first.
	run(2, `--host: "neo1:8100" is neither`, "init", "--host", "neo1:8100")
	run(2, `--host: "bücher.example" is neither`, "init", "--host", "bücher.example")
	run(0, "an authority, and certificates node and client", "init", "--host", "neo1.example.com", "--days", "20", "--ca-days", "100")
	run(1, "ca.crt is there already: nothing is overwritten", "init", "--host", "x")
	run(0, "--cert "+dir+"/zope1.crt", "add", "zope1")
	run(2, "cannot be the name of a certificate", "add", "../zope1")
	run(2, "--days 40000 is not in 1..36500", "add", "x", "--days", "40000")
	run(1, "valid for less than 30 days: client, node: see neoctl tls renew", "show")
	run(0, "localhost neo1.example.com 127.0.0.1 ::1", "show", "--within", "5")
	run(0, "node: valid until ", "renew")
	run(0, ": the authority ends then, see tls renew ca\n", "renew", "node")
	run(0, "\nnode: valid until ", "renew", "client", "node", "--days", "50")
	run(0, "(authority)", "show")
	run(0, "ca: valid until ", "renew", "ca")
	run(1, "nobody.crt: no such file", "renew", "nobody", "node")
}
