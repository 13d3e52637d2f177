package link

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

	"github.com/neozodb/neo/cluster/proto"
)

// authority signs certificates for tests.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          []byte(name),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, dir: t.TempDir(), cert: cert, key: key, last: 1}
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (a *authority) ca() string { return filepath.Join(a.dir, "ca.pem") }

// issue returns the files of a new certificate: CN=node, nothing else, valid for
// the given time.
func (a *authority) issue(valid time.Duration) (cert, key string, serial int64) {
	a.t.Helper()
	a.last++
	priv := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(a.last),
		Subject:      pkix.Name{CommonName: "node"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(valid),
	}, a.cert, &priv.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write("node.pem", "CERTIFICATE", der), a.write("node.key", "PRIVATE KEY", pkcs), a.last
}

// revoke returns a CA file that also has a revocation list.
func (a *authority) revoke(next time.Time, serials ...int64) string {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: next}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	path := filepath.Join(a.dir, "crl.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (a *authority) config() *tls.Config {
	a.t.Helper()
	cert, key, _ := a.issue(time.Hour)
	return mustLoad(a.t, a.ca(), cert, key)
}

func mustLoad(t testing.TB, ca, cert, key string) *tls.Config {
	t.Helper()
	cfg, err := LoadTLS(ca, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestTLSVersions(t *testing.T) {
	ca := newAuthority(t, "ca")
	for _, version := range []uint16{tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			client := ca.config()
			client.MinVersion, client.MaxVersion = version, version
			err := try(t, Config{TLS: client}, Config{TLS: ca.config()})
			if ok := version >= tls.VersionTLS12; ok != (err == nil) {
				t.Errorf("%v", err)
			}
		})
	}
}

// try makes one call over TCP and returns what the client finds wrong.
func try(t *testing.T, client, server Config) error {
	t.Helper()
	err, _ := tryBoth(t, client, server)
	return err
}

// tryBoth also returns how the server's connection ended.
func tryBoth(t *testing.T, client, server Config) (clientErr, serverErr error) {
	t.Helper()
	checkGoroutines(t)
	ended := make(chan error, 1)
	server.Deliver = func(ev Event) {
		if ev.End() {
			ended <- ev.Err
			return
		}
		HandleBase(ev)
	}
	l, err := Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, server, func(*Conn) {})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(t.Context(), l.Addr(), client)
	if err == nil {
		_, err = c.Call(t.Context(), &proto.Ping{})
		c.Close()
		<-c.Done()
	}
	return err, <-ended
}

func TestTLSMistakes(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other ca")
	anonymous := ca.config()
	anonymous.Certificates = nil
	stranger := ca.config()
	stranger.Certificates = other.config().Certificates
	for name, tt := range map[string]struct {
		client, server         *tls.Config
		clientWant, serverWant string
	}{
		"plain client":         {nil, ca.config(), "", "node without TLS"},
		"plain server":         {ca.config(), nil, "node without TLS", "speaks TLS"},
		"client of another CA": {stranger, ca.config(), "", "certificate of the peer: x509: certificate signed by unknown authority"},
		"server of another CA": {ca.config(), other.config(), "certificate of the peer: x509: certificate signed by unknown authority", "peer refuses our TLS"},
		"no certificate":       {anonymous, ca.config(), "peer refuses our TLS", "didn't provide a certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			cerr, serr := tryBoth(t, Config{TLS: tt.client}, Config{TLS: tt.server})
			if cerr == nil || !strings.Contains(cerr.Error(), tt.clientWant) {
				t.Errorf("client: %v, want %q", cerr, tt.clientWant)
			}
			if serr == nil || !strings.Contains(serr.Error(), tt.serverWant) {
				t.Errorf("server: %v, want %q", serr, tt.serverWant)
			}
		})
	}
}

func TestRevocation(t *testing.T) {
	ca := newAuthority(t, "ca")
	soon := time.Now().Add(time.Hour)
	cert, key, _ := ca.issue(time.Hour)
	server := Config{TLS: mustLoad(t, ca.revoke(soon, 1000), cert, key)}
	if err := try(t, Config{TLS: ca.config()}, server); err != nil {
		t.Errorf("a certificate that is not revoked: %v", err)
	}
	clientCert, clientKey, clientSerial := ca.issue(time.Hour)
	client := mustLoad(t, ca.ca(), clientCert, clientKey)
	ownCert, ownKey, _ := ca.issue(time.Hour)
	server.TLS = mustLoad(t, ca.revoke(soon, clientSerial), ownCert, ownKey)
	if _, err := tryBoth(t, Config{TLS: client}, server); err == nil || !strings.Contains(err.Error(), "is revoked") {
		t.Errorf("a revoked certificate: %v", err)
	}

	cert, key, serial := ca.issue(time.Hour)
	if _, err := LoadTLS(ca.revoke(soon, serial), cert, key); err == nil || !strings.Contains(err.Error(), "is revoked") {
		t.Errorf("our certificate is revoked: %v", err)
	}
	if _, err := LoadTLS(ca.revoke(time.Now().Add(-time.Hour)), cert, key); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("an old list: %v", err)
	}
	// A list of somebody else covers nothing.
	text, err := os.ReadFile(newAuthority(t, "ca").revoke(soon))
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(ca.ca())
	if err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(t.TempDir(), "both.pem")
	if err := os.WriteFile(both, append(own, text...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadTLS(both, cert, key); err == nil || !strings.Contains(err.Error(), "no revocation list") {
		t.Errorf("a list of another authority: %v", err)
	}
}

func TestLoadTLSChecksOurCertificate(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	cert, key, _ := ca.issue(time.Hour)
	otherCert, otherKey, _ := other.issue(time.Hour)
	oldCA := newAuthority(t, "old")
	oldCert, oldKey, _ := oldCA.issue(-time.Minute)
	for name, tt := range map[string]struct{ ca, cert, key, want string }{
		"good":             {ca.ca(), cert, key, ""},
		"another CA":       {ca.ca(), otherCert, otherKey, "unknown authority"},
		"expired":          {oldCA.ca(), oldCert, oldKey, "expired"},
		"another key":      {ca.ca(), cert, otherKey, "private key does not match"},
		"no CA file":       {ca.ca() + "x", cert, key, "no such file"},
		"key as CA":        {key, cert, key, "no certificate in PEM form"},
		"no key file":      {ca.ca(), cert, key + "x", "no such file"},
		"cert is not PEM":  {ca.ca(), os.DevNull, key, "find"},
		"self signed node": {ca.ca(), other.ca(), otherKey, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadTLS(tt.ca, tt.cert, tt.key)
			switch {
			case name == "good":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), tt.want):
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestStressTLS(t *testing.T) {
	ca := newAuthority(t, "ca")
	stress(t, Config{TLS: ca.config()}, Config{TLS: ca.config()})
}

// Somebody who connects to a TLS port and sends anything does no harm.
func TestHostileBytesToTLS(t *testing.T) {
	checkGoroutines(t)
	ca := newAuthority(t, "ca")
	for _, b := range []string{"\x16\x03\x01\xff\xff", "\x16\x03\x01\x00\x05hello", "GET / HTTP/1.0\r\n\r\n", "\x00"} {
		ended := make(chan error, 1)
		l, err := Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, Config{TLS: ca.config(), Deliver: func(ev Event) { ended <- ev.Err }}, func(*Conn) {})
		if err != nil {
			t.Fatal(err)
		}
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		send(t, nc, []byte(b))
		if err := nc.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Errorf("%q was accepted", b)
		}
		nc.Close()
		l.Close()
	}
}

// An abort does not wait for a peer that connected and says nothing.
func TestAbortDuringTLSHandshake(t *testing.T) {
	checkGoroutines(t)
	accepted := make(chan *Conn, 1)
	l, err := Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, Config{TLS: newAuthority(t, "ca").config(), Deliver: func(Event) {}},
		func(c *Conn) { accepted <- c })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := <-accepted
	time.Sleep(20 * time.Millisecond) // the handshake has begun
	c.Abort()
	select {
	case <-c.Done():
	case <-time.After(handshakeTimeout / 2):
		t.Error("the connection has not ended")
		c.Close()
		<-c.Done()
	}
}

// A peer that requires TLS may reset the connection of one that does not use it.
func TestResetBeforeHandshake(t *testing.T) {
	checkGoroutines(t)
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	ended := make(chan error, 1)
	c, err := Dial(t.Context(), address(nl.Addr()), Config{Deliver: func(ev Event) {
		if ev.End() {
			ended <- ev.Err
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nl.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if err := <-ended; !strings.Contains(err.Error(), "may require TLS") {
		t.Errorf("ended with %v", err)
	}
	<-c.Done()
}
