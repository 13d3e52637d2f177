package source_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

// certificate makes a PEM file with a key and a certificate for 127.0.0.1 that signs
// itself.
func certificate(t *testing.T, dir, name string) (path string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: b}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	path = filepath.Join(dir, name+".pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A server is reached with TLS by address and by path, and only with the certificates of
// the configuration.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	own, server, other := certificate(t, dir, "client"), certificate(t, dir, "server"), certificate(t, dir, "other")
	authorities := filepath.Join(dir, "authorities")
	if err := os.MkdirAll(filepath.Join(authorities, "old"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(server, filepath.Join(authorities, "a.pem")); err != nil {
		t.Fatal(err)
	}
	cfg, err := zeo.LoadTLS(own, server, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "unix"} {
		addr := map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(dir, "socket")}[network]
		s, err := zeo.New(t.Context(), zeo.Config{Storages: map[string]zeo.Storage{"1": zeo.NewReader(txntest.Small(), zeo.ReaderConfig{Name: "memory"})}, TLS: cfg})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		t.Cleanup(func() {
			s.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		for _, tt := range []struct {
			name, ca, cert, serverName string
			anyName                    bool
			want                       string
		}{
			{"File", server, own, "", false, ""},
			{"Directory", authorities, own, "", false, ""},
			{"Name", server, own, "127.0.0.1", false, ""},
			{"OtherName", server, own, "example.org", false, "certificate"},
			{"AnyName", server, own, "example.org", true, ""},
			{"AnyNameOfUnknown", other, own, "", true, "certificate"},
			{"UnknownServer", other, own, "", false, "certificate"},
			{"UnknownClient", server, other, "", false, "source main"},
			{"NoFile", filepath.Join(dir, "absent"), own, "", false, "no such file"},
			{"NoCertificate", filepath.Join(authorities, "old"), own, "", false, "no certificate"},
		} {
			t.Run(network+tt.name, func(t *testing.T) {
				o := &origin{storage: config.Storage{ZEO: &config.ZEO{Servers: []string{l.Addr().String()}, CA: tt.ca, Cert: tt.cert, ServerName: tt.serverName, AnyName: tt.anyName}}}
				if tt.want != "" {
					s, err := source.Open(t.Context(), "main", o.storage, source.Options{})
					if err == nil {
						s.Close()
					}
					if err == nil || !strings.Contains(err.Error(), tt.want) {
						t.Errorf("opened: %v", err)
					}
					return
				}
				s := open(t, o, source.Options{})
				if r, err := s.LoadBefore(t.Context(), 0, tid.Max); string(r.Data) != "root again" || err != nil {
					t.Errorf("load: %q, %v", r.Data, err)
				}
			})
		}
	}
}
