package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// pythonLines are the lines that a reader is to paste into Python.
var pythonLines = regexp.MustCompile(`(?m)^  (.*import ZEO; .*)\n  (print\(.*)$`)

// paste runs the lines that were printed, with more after them, in a real Python.
func (p *process) paste(more string) string {
	p.t.Helper()
	m := pythonLines.FindStringSubmatch(p.stderr.String())
	if m == nil {
		p.t.Fatalf("no lines of Python in\n%s", p.stderr.String())
	}
	var stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := zeotest.Command(ctx, p.t, zeotest.Python(p.t), "-c", m[1]+"\n"+m[2]+"\n"+more)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.t.Errorf("python: %v\n%s\n%s%s", err, m[0], out, stderr.String())
	}
	return string(out)
}

// siteRoot is what the lines show of the sample database.
const siteRoot = "['site', 'catalog', 'log']\n"

// What is printed to be pasted into Python works, with what was imported and with
// what an application adds.
func TestZEO(t *testing.T) {
	site := sample(t, "site.fs")
	dir := filepath.Join(t.TempDir(), "db")
	p := start(t, "--dir", dir, "--import", site)
	p.ready()
	root := p.paste(`
import transaction
db.open().root()['pasted'] = 1
transaction.commit()`)
	if root != siteRoot {
		t.Errorf("the root has %s", root)
	}
	p.stop()
	p = start(t, "--dir", dir, "--import", site)
	_, masters, _, _ := p.ready()
	if got, want := p.paste(""), "['site', 'catalog', 'log', 'pasted']\n"; got != want {
		t.Errorf("after a restart the root has %s, want %s", got, want)
	}
	if text := p.stderr.String(); !strings.Contains(text, "neoexport -c neo "+masters+" copy.fs\n") {
		t.Errorf("no export in\n%s", text)
	}
	p.stop()
}

// A new cluster is an empty database.
func TestZEOOfNewCluster(t *testing.T) {
	p := start(t)
	p.ready()
	if root := p.paste(""); root != "[]\n" {
		t.Errorf("the root has %s", root)
	}
	p.stop()
}

func TestWithoutZEO(t *testing.T) {
	p := start(t, "--zeo", "none")
	if _, _, _, zeo := p.ready(); zeo != "" {
		t.Errorf("ZEO clients are served at %s", zeo)
	}
	if text := p.stderr.String(); strings.Contains(text, "ZEO") {
		t.Errorf("it speaks of ZEO:\n%s", text)
	}
	p.stop()
}

// A client that stays connected does not hold up the end, and what was answered
// is there at the next start.
func TestStopWithClients(t *testing.T) {
	var dir string
	var last tid.TID
	for n := 0; ; n++ {
		dir = t.TempDir()
		p := start(t, "--dir", dir, "--zeo", "localhost:0")
		_, _, _, zeo := p.ready()
		var clients []*zeotest.Client
		for i := range 3 {
			c, err := zeotest.Register(zeo, i == 1)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			clients = append(clients, c)
			if last, err = c.Commit(zeotest.Store{OID: tid.OID(i + 1), Data: []byte("x")}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := clients[0].Vote(1, zeotest.Store{OID: 7, Data: []byte("never finished")}); err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		p.stop()
		d := time.Since(started)
		if text := p.stderr.String(); !strings.Contains(text, "\nStopped.\n") || strings.Contains(text, "ERROR") {
			t.Errorf("stderr:\n%s", text)
		}
		if d <= 4*time.Second {
			break
		}
		if n == 5 { // a busy machine takes its time once, and not each time
			t.Fatalf("the end took %v", d)
		}
	}
	p := start(t, "--dir", dir, "-q")
	_, _, _, zeo := p.ready()
	c, err := zeotest.Register(zeo, true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, serial, _, err := c.LoadBefore(3, tid.Max); serial != last || err != nil {
		t.Errorf("after a restart the object is of %v, %v; committed at %v", serial, err, last)
	}
	if _, _, _, err := c.LoadBefore(7, tid.Max); err == nil {
		t.Error("a transaction that was not finished is there")
	}
	p.stop()
}

// certificates makes an authority and a certificate of its own, and returns the
// options for them.
func certificates(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte, err error) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err == nil {
			err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	node := *ca
	node.SerialNumber, node.Subject, node.IsCA = big.NewInt(2), pkix.Name{CommonName: "node"}, false
	node.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	options := []string{"--ca", write("it's ca.pem", "CERTIFICATE", der, err)}
	der, err = x509.CreateCertificate(rand.Reader, &node, ca, &key.PublicKey, key)
	options = append(options, "--cert", write("node.pem", "CERTIFICATE", der, err))
	der, err = x509.MarshalPKCS8PrivateKey(key)
	return append(options, "--key", write("node.key", "PRIVATE KEY", der, err))
}

// A cluster with certificates asks ZEO clients for theirs.
func TestZEOWithTLS(t *testing.T) {
	site := sample(t, "site.fs")
	p := start(t, append(certificates(t), "--import", site)...)
	_, _, _, zeo := p.ready()
	if root := p.paste(""); root != siteRoot {
		t.Errorf("the root has %s", root)
	}
	nc, err := tls.Dial("tcp", zeo, &tls.Config{InsecureSkipVerify: true}) // who the server is does not matter
	if err == nil {
		if _, err = zeotest.Hello(nc, true); err == nil {
			t.Error("a client without certificate got in")
		}
		nc.Close()
	}
	p.stop()
}
