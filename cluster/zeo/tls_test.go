package zeo_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// issuer is a certificate authority for a test.
type issuer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newIssuer(t *testing.T, name string) *issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key, next: 1}
	i.cert = i.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, key)
	return i
}

func (i *issuer) sign(c, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	c.SerialNumber = big.NewInt(i.next)
	i.next++
	c.NotBefore = time.Now().Add(-time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return signed
}

func (i *issuer) leaf(name string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	c := i.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}, i.cert, key)
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

func (i *issuer) revocations(until time.Time, revoked ...tls.Certificate) []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: until}
	for _, r := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: r.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, i.cert, i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func TestTLS(t *testing.T) {
	ca, other := newIssuer(t, "ca"), newIssuer(t, "other")
	dir := t.TempDir()
	write := func(name string, parts ...[]byte) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		var all []byte
		for _, p := range parts {
			all = append(all, p...)
		}
		if err := os.WriteFile(path, all, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	server := ca.leaf("zodb.org")
	der, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	both := write("server.pem", certPEM(server.Leaf), key)
	good, bad := ca.leaf("good"), ca.leaf("bad")
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	authorities := map[string]string{
		"file":      write("ca.pem", certPEM(ca.cert)),
		"revoked":   write("crl.pem", certPEM(ca.cert), ca.revocations(soon, bad)),
		"outdated":  write("old.pem", certPEM(ca.cert), ca.revocations(past)),
		"directory": filepath.Dir(write("dir/a.pem", certPEM(ca.cert))),
		"nobody":    "DYNAMIC",
	}
	write("dir/b.pem", certPEM(other.cert))

	for _, tt := range []struct {
		authority string
		client    *tls.Certificate
		ok        bool
	}{
		{"file", &good, true},
		{"file", nil, false}, // no certificate
		{"file", new(other.leaf("stranger")), false},
		{"directory", new(other.leaf("stranger")), true},
		{"revoked", &good, true},
		{"revoked", &bad, false},
		{"outdated", &good, false},
		{"nobody", &good, false},
	} {
		cfg, err := zeo.LoadTLS(authorities[tt.authority], both, "")
		if err != nil {
			t.Fatal(err)
		}
		s := serve(t, zeotest.NewMemory(), func(c *zeo.Config) { c.TLS = cfg })
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)
		client := &tls.Config{RootCAs: roots, ServerName: "zodb.org"}
		if tt.client != nil {
			client.Certificates = []tls.Certificate{*tt.client}
		}
		nc, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := zeotest.Hello(tls.Client(nc, client), false)
		if err == nil {
			_, err = c.Call("register", "1", false)
			c.Close()
		}
		if (err == nil) != tt.ok {
			t.Errorf("authority %s, certificate %v: %v, want success %v", tt.authority, tt.client != nil, err, tt.ok)
		}
	}
	for _, tt := range [][3]string{
		{"", both, both},
		{authorities["file"], "", both},
		{authorities["file"], filepath.Join(dir, "none.pem"), ""},
		{filepath.Join(dir, "none.pem"), both, ""},
		{write("empty.pem"), both, ""},
	} {
		if _, err := zeo.LoadTLS(tt[0], tt[1], tt[2]); err == nil {
			t.Errorf("LoadTLS%q succeeds", tt)
		}
	}
}

// A client that does not speak TLS disturbs nobody.
func TestPlainClientOnTLS(t *testing.T) {
	ca := newIssuer(t, "ca")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	s := serve(t, zeotest.NewMemory(), func(c *zeo.Config) {
		c.TLS = &tls.Config{Certificates: []tls.Certificate{ca.leaf("zodb.org")}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	})
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Write([]byte("\x00\x00\x00\x02Z5")); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(nc)
	if strings.Contains(string(b), "Z5") {
		t.Errorf("a plain client is answered %q, %v", b, err)
	}
}

// The server says whom it refuses and why, once for many attempts.
func TestRefusalsAreLogged(t *testing.T) {
	ca, other := newIssuer(t, "ca"), newIssuer(t, "other")
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	server := &tls.Config{Certificates: []tls.Certificate{ca.leaf("zodb.org")}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	expired := ca.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "old"}, NotAfter: time.Now().Add(-time.Minute)}, ca.cert, key)
	client := func(c tls.Certificate, roots *x509.CertPool) *tls.Config {
		return &tls.Config{RootCAs: roots, ServerName: "zodb.org", // shown whatever the server asks for
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }}
	}
	for name, tt := range map[string]struct {
		server, client *tls.Config
		want           string
	}{
		"plain client":         {server, nil, "does not use TLS"},
		"plain server":         {nil, client(ca.leaf("good"), roots), "speaks TLS, this server does not"},
		"another authority":    {server, client(other.leaf("stranger"), roots), "unknown authority"},
		"expired":              {server, client(tls.Certificate{Certificate: [][]byte{expired.Raw}, PrivateKey: key}, roots), "certificate has expired"},
		"server is a stranger": {server, client(ca.leaf("good"), x509.NewCertPool()), "refuses our certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, zeotest.NewMemory(), func(c *zeo.Config) { c.TLS = tt.server })
			for range 3 {
				nc, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Fatal(err)
				}
				if tt.client != nil {
					nc = tls.Client(nc, tt.client)
					if err := nc.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := nc.Write([]byte("\x00\x00\x00\x02Z5")); err == nil {
					_, err = io.ReadAll(nc)
					if err == nil && tt.client != nil {
						t.Error("connected")
					}
				}
				nc.Close()
			}
			for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(s.log.String(), "level=WARN"); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nothing is logged")
				}
			}
			if log := s.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, `msg="client refused" addr=127.0.0.1:`) || !strings.Contains(log, tt.want) {
				t.Errorf("logged %s\nwant %s", log, tt.want)
			}
		})
	}
}
