package conf

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
	"strings"
	"testing"
	"time"
)

// ca signs certificates that say CN=node and nothing more.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA " + t.Name()},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := &ca{cert, key, t.TempDir()}
	writePEM(t, c.path("ca.pem"), &pem.Block{Type: "CERTIFICATE", Bytes: der})
	return c
}

func (c *ca) path(name string) string { return filepath.Join(c.dir, name) }

func writePEM(t *testing.T, path string, blocks ...*pem.Block) {
	t.Helper()
	var b []byte
	for _, block := range blocks {
		b = append(b, pem.EncodeToMemory(block)...)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// node makes the certificate of a node, with this serial number.
func (c *ca) node(t *testing.T, serial int64) TLS {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := TLS{c.path("ca.pem"), c.path("cert.pem"), c.path("key.pem")}
	writePEM(t, files.Cert, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	writePEM(t, files.Key, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return files
}

// handshake returns the errors of both ends.
func handshake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			conn := tls.Server(c, server)
			if err = conn.Handshake(); err == nil {
				_, err = conn.Write([]byte("x"))
			}
		}
		done <- err
	}()
	conn, clientErr := tls.Dial("tcp", l.Addr().String(), client)
	if clientErr == nil {
		_, clientErr = conn.Read(make([]byte, 1))
		conn.Close()
	}
	l.Close()
	return clientErr, <-done
}

func TestTLS(t *testing.T) {
	ours := newCA(t)
	cfg, err := ours.node(t, 2).Config()
	if err != nil {
		t.Fatal(err)
	}
	old := cfg.Clone()
	old.MaxVersion = tls.VersionTLS12 // all that the Python implementation speaks
	for _, peer := range []*tls.Config{cfg, old} {
		if c, s := handshake(t, peer, cfg); c != nil || s != nil {
			t.Errorf("two nodes of a cluster: %v, %v", c, s)
		}
	}

	others := newCA(t)
	stranger, err := others.node(t, 2).Config()
	if err != nil {
		t.Fatal(err)
	}
	if c, s := handshake(t, stranger, cfg); c == nil || s == nil {
		t.Errorf("node of another authority accepted: %v, %v", c, s)
	}
	careless := &tls.Config{InsecureSkipVerify: true}
	if _, s := handshake(t, careless, cfg); s == nil {
		t.Error("client without certificate accepted")
	}
	careless.Certificates = stranger.Certificates
	if _, s := handshake(t, careless, cfg); s == nil {
		t.Error("client of another authority accepted")
	}
}

func TestTLSRevocation(t *testing.T) {
	c := newCA(t)
	crl := func(next time.Time, serials ...int64) *pem.Block {
		l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: next}
		for _, s := range serials {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: time.Now()})
		}
		der, err := x509.CreateRevocationList(rand.Reader, l, c.cert, c.key)
		if err != nil {
			t.Fatal(err)
		}
		return &pem.Block{Type: "X509 CRL", Bytes: der}
	}
	files := c.node(t, 7)
	later := time.Now().Add(time.Hour)
	caBlock := &pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw}
	for _, tt := range []struct {
		crl  *pem.Block
		want string
	}{
		{crl(later, 6), ""},
		{crl(later, 6, 7), "revoked"},
		{crl(time.Now().Add(-time.Hour)), "outdated"},
	} {
		writePEM(t, files.CA, caBlock, tt.crl)
		_, err := files.Config()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

func TestTLSFiles(t *testing.T) {
	if cfg, err := (TLS{}).Config(); cfg != nil || err != nil {
		t.Errorf("without files: %v, %v", cfg, err)
	}
	c := newCA(t)
	files := c.node(t, 2)
	other := newCA(t).node(t, 2)
	for name, tt := range map[string]struct {
		files TLS
		want  string
	}{
		"only two":          {TLS{files.CA, files.Cert, ""}, "to enable encryption, 3 files must be provided"},
		"missing":           {TLS{files.CA + "x", files.Cert, files.Key}, "ca.pemx"},
		"key of another":    {TLS{files.CA, files.Cert, other.Key}, "private key does not match"},
		"CA of another":     {TLS{other.CA, files.Cert, files.Key}, "does not work with CA certificate"},
		"key instead of CA": {TLS{files.Key, files.Cert, files.Key}, "no certificate in PEM form"},
	} {
		if _, err := tt.files.Config(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
