package proctest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// certificates makes an authority and a certificate of its own for one node, and
// returns the options for them.
func certificates(t testing.TB) (options []string) {
	t.Helper()
	dir := t.TempDir()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write := func(name, kind string, der []byte, err error) string {
		t.Helper()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	caKey, nodeKey := key(), key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	node := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	options = append(options, "--ca", write("ca.pem", "CERTIFICATE", der, err))
	der, err = x509.CreateCertificate(rand.Reader, node, ca, &nodeKey.PublicKey, caKey)
	options = append(options, "--cert", write("node.pem", "CERTIFICATE", der, err))
	der, err = x509.MarshalPKCS8PrivateKey(nodeKey)
	return append(options, "--key", write("node.key", "PRIVATE KEY", der, err))
}

// A cluster with certificates does all that one without does, and nobody without
// a certificate of the same authority gets anywhere.
func TestTLS(t *testing.T) {
	t.Parallel()
	file := filepath.Join(samples, "site.fs")
	own, foreign := certificates(t), certificates(t)
	c := StartCluster(t, Options{Storages: 2, Replicas: 1, Extra: own})
	with := func(options []string, args ...string) []string {
		return append(append([]string{}, options...), args...)
	}
	must(t, "neomigrate", with(own, "-q", "-c", c.Name, file, c.Masters)...)
	back := func() {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out.fs")
		must(t, "neoexport", with(own, "-q", "-c", c.Name, c.Masters, out)...)
		sameBytes(t, out, read(t, file))
	}
	back()
	if out, errOut, status := c.Ctl(t, "print", "node", "storage"); status != 0 || strings.Count(out, "RUNNING") != 2 {
		t.Errorf("neoctl print node storage: %s%s, exit status %d", out, errOut, status)
	}

	// Who is told that the other side wants something else says so and ends, or
	// goes on looking for a master and says why.
	refused(t, 1, []string{`^ERROR: `, `(?i)tls|certificate|encrypt`}, "neoctl", "-a", c.Admin, "print", "cluster")
	refused(t, 1, []string{`^ERROR: `, `(?i)tls|certificate`}, "neoctl", with(foreign, "-a", c.Admin, "print", "cluster")...)
	reason := regexp.MustCompile(`(?i)\btls\b|certificate|encrypt`) // after what a node says first
	for name, options := range map[string][]string{"plain": nil, "with foreign certificates": foreign} {
		for _, args := range [][]string{
			{"neoexport", "-c", c.Name, c.Masters, filepath.Join(t.TempDir(), "stolen.fs")},
			{"neostorage", "-c", c.Name, "-m", c.Masters, "-a", "SQLite", "-d", filepath.Join(t.TempDir(), "s.sqlite")},
			{"neoadmin", "-c", c.Name, "-m", c.Masters, "-b", "127.0.0.1:0"},
		} {
			p := Start(t, args[0], with(options, args[1:]...)...)
			for deadline := time.Now().Add(patience); p.Running() && !reason.MatchString(p.Output()) && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			p.Kill()
			t.Logf("%s %s: %s", args[0], name, p.Output())
			says(t, args[0]+" "+name, p.Output(), `127\.0\.0\.1:`, reason.String())
			if args[0] == "neoexport" && size(args[4]) != 0 {
				t.Error("the database was exported")
			}
		}
	}
	// The nodes that refuse say so as well.
	for _, why := range []string{`node without TLS`, `unknown authority|peer refuses our TLS`} {
		said := regexp.MustCompile(`peer refused addr=127\.0\.0\.1:\d+ err=.*(` + why + `)`)
		for _, p := range []*Process{c.Master, c.AdminP} {
			waitFor(t, p.Name+" says "+why, func() bool { return said.MatchString(p.Output()) })
		}
	}
	conn, err := tls.Dial("tcp", c.Masters, &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		// TLS 1.3 tells of the missing certificate with the first data.
		conn.SetDeadline(time.Now().Add(patience))
		if _, err = conn.Read(make([]byte, 1)); err == nil {
			t.Error("somebody without certificate is served")
		}
		conn.Close()
	}
	plain, err := net.Dial("tcp", c.Masters)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close() // says nothing, and keeps nobody out
	back()

	if _, errOut, status := c.Ctl(t, "set", "cluster", "stopping"); status != 0 {
		t.Errorf("set cluster stopping: %s", errOut)
	}
	for _, p := range c.Nodes() {
		if err := p.Wait(t, patience); err != nil {
			t.Errorf("%s ended with %v", p.Name, err)
		}
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	c.WaitState(t, "RUNNING", patience)
	back()
}

// Certificates that cannot work are told at once, and which file is at fault.
func TestTLSOptions(t *testing.T) {
	t.Parallel()
	own, foreign := certificates(t), certificates(t)
	incomplete := []string{`(?m)^neo[a-z]+: error: to enable encryption, 3 files must be provided`}
	garbage := write(t, "garbage.pem", []byte("no certificate"))
	for _, command := range [][]string{
		{"neomaster", "-c", "test", "-b", "127.0.0.1:0"},
		{"neostorage", "-c", "test", "-a", "SQLite", "-d", filepath.Join(t.TempDir(), "s.sqlite")},
		{"neoadmin", "-c", "test", "-b", "127.0.0.1:0"},
		{"neomigrate", "-c", "test", filepath.Join(samples, "02-undo.fs"), "127.0.0.1:1"},
		{"neoexport", "-c", "test", "127.0.0.1:1", filepath.Join(t.TempDir(), "out.fs")},
		{"neosimple", "-q"},
		{"neoctl"},
	} {
		run := func(status int, patterns []string, options ...string) {
			t.Helper()
			args := append(append([]string{}, options...), command[1:]...)
			if command[0] == "neoctl" {
				args = append(args, "print", "cluster")
			}
			refused(t, status, patterns, command[0], args...)
		}
		run(2, incomplete, own[:2]...)
		run(2, incomplete, own[:4]...)
		run(2, incomplete, own[2:]...)
		run(1, []string{`/missing\.pem: no such file`}, "--ca", "/missing.pem", own[2], own[3], own[4], own[5])
		run(1, []string{`garbage\.pem`}, own[0], own[1], "--cert", garbage, own[4], own[5])
		run(1, []string{`garbage\.pem`}, "--ca", garbage, own[2], own[3], own[4], own[5])
		run(1, []string{`(?i)certificate|private key`}, own[0], own[1], own[2], own[3], foreign[4], foreign[5])
		run(1, []string{`(?i)certificate`}, foreign[0], foreign[1], own[2], own[3], own[4], own[5])
	}
}
