package authority

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

const year = 365 * 24 * time.Hour

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	a := &Authority{Dir: t.TempDir() + "/tls"}
	if err := a.Init("test", 10*year); err != nil {
		t.Fatal(err)
	}
	if err := a.Add("node", []string{"neo1.example.com", "10.0.0.1", "[::1]"}, year); err != nil {
		t.Fatal(err)
	}
	return a
}

func get(t *testing.T, a *Authority, name string) *x509.Certificate {
	t.Helper()
	c, err := readCertificate(a.CertificatePath(name))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// verify checks a certificate as servers and as clients do.
func verify(t *testing.T, ca, c *x509.Certificate, host string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(err)
		}
	}
}

// Certificates are what the strictest peers want; openssl agrees.
func TestCertificates(t *testing.T) {
	a := newAuthority(t)
	ca, node := get(t, a, CA), get(t, a, "node")
	for _, host := range []string{"neo1.example.com", "10.0.0.1", "::1"} {
		verify(t, ca, node, host)
	}
	if !ca.IsCA || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || len(ca.SubjectKeyId) != 20 || !ca.MaxPathLenZero {
		t.Errorf("authority: %v, %v, %x", ca.IsCA, ca.KeyUsage, ca.SubjectKeyId)
	}
	if node.IsCA || node.KeyUsage != x509.KeyUsageDigitalSignature || !bytes.Equal(node.AuthorityKeyId, ca.SubjectKeyId) {
		t.Errorf("node: %v, %v, %x", node.IsCA, node.KeyUsage, node.AuthorityKeyId)
	}
	for _, c := range []*x509.Certificate{ca, node} {
		for _, e := range c.Extensions {
			if id := e.Id.String(); (id == "2.5.29.15" || id == "2.5.29.19") != e.Critical { // key usage, basic constraints
				t.Errorf("%s: extension %s: critical is %v", c.Subject, id, e.Critical)
			}
		}
		if c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 159 || time.Since(c.NotBefore) < time.Minute {
			t.Errorf("%s: serial number %v, valid from %v", c.Subject, c.SerialNumber, c.NotBefore)
		}
	}
	for name, mode := range map[string]os.FileMode{"ca.key": 0o600, "node.key": 0o600, "ca.crt": 0o644, "node.crt": 0o644} {
		if info, err := os.Stat(a.Dir + "/" + name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	t.Run("openssl", func(t *testing.T) {
		openssl, err := exec.LookPath("openssl")
		if err != nil {
			zeotest.Missing(t, "openssl is not installed: make install-monitoring-tools")
		}
		if out, err := exec.Command(openssl, "verify", "-x509_strict", "-CAfile", a.CertificatePath(CA), a.CertificatePath(CA), a.CertificatePath("node")).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// Nothing is overwritten: not by another authority, not by a certificate of the same name, not half of one.
func TestNotOverwritten(t *testing.T) {
	a := newAuthority(t)
	before := files(t, a.Dir)
	for what, err := range map[string]error{"init": a.Init("other", year), "add": a.Add("node", nil, year)} {
		if err == nil || !strings.Contains(err.Error(), "is there already") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, name := range []string{CA, "", "../x", ".x", "-x", "a/b", strings.Repeat("x", 61)} {
		if err := a.Add(name, nil, year); err == nil {
			t.Errorf("a certificate named %q", name)
		}
	}
	for _, host := range []string{"", "a b", "http://x", "neo1:8100", "bücher.example", "a\nb"} {
		if err := a.Add("x", []string{host}, year); err == nil {
			t.Errorf("a certificate for host %q", host)
		}
	}
	if after := files(t, a.Dir); !slices.Equal(before, after) {
		t.Errorf("before %q, after %q", before, after)
	}
	if err := os.Remove(a.CertificatePath("node")); err != nil {
		t.Fatal(err)
	}
	if err := a.Add("node", nil, year); err == nil || !strings.Contains(err.Error(), "node.key is there already: nothing is overwritten; there is no node.crt") {
		t.Errorf("a key was overwritten: %v", err)
	}
}

func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(dir + "/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Name()+" "+string(text))
	}
	return all
}

// A renewed certificate has the key and the hosts of the one before; with a renewed authority, old and new ones are valid.
func TestRenew(t *testing.T) {
	a := newAuthority(t)
	ca, node := get(t, a, CA), get(t, a, "node")
	a.Now = func() time.Time { return time.Now().Add(year / 2) }
	if _, _, err := a.Renew("node", year); err != nil {
		t.Fatal(err)
	}
	renewed := get(t, a, "node")
	if !renewed.NotAfter.After(node.NotAfter) || renewed.SerialNumber.Cmp(node.SerialNumber) == 0 {
		t.Errorf("until %v, before %v", renewed.NotAfter, node.NotAfter)
	}
	if _, err := tls.LoadX509KeyPair(a.CertificatePath("node"), a.KeyPath("node")); err != nil {
		t.Error(err)
	}
	a.Now = nil
	if _, _, err := a.Renew("node", year); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Renew(CA, 20*year); err != nil {
		t.Fatal(err)
	}
	newCA := get(t, a, CA)
	if !newCA.NotAfter.After(ca.NotAfter) || !newCA.IsCA || newCA.KeyUsage != ca.KeyUsage {
		t.Errorf("the renewed authority: %v, %v", newCA.NotAfter, newCA.KeyUsage)
	}
	verify(t, newCA, get(t, a, "node"), "neo1.example.com")
	verify(t, newCA, node, "10.0.0.1")
	verify(t, ca, get(t, a, "node"), "::1")

	foreign := newAuthority(t)
	if err := os.Rename(foreign.CertificatePath("node"), a.CertificatePath("foreign")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Renew("foreign", year); err == nil || !strings.Contains(err.Error(), "is not of the authority") {
		t.Errorf("a certificate of another authority is renewed: %v", err)
	}
	if err := os.Rename(foreign.KeyPath(CA), a.KeyPath(CA)); err != nil {
		t.Fatal(err)
	}
	if err := a.Add("x", nil, year); err == nil || !strings.Contains(err.Error(), "is not the key of") {
		t.Errorf("signed with the key of another authority: %v", err)
	}
}

// A renewal keeps what else is in a file: a revocation list and a second authority in ca.crt, wherever they are.
func TestRenewKeepsOthers(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	ca, key, err := a.signer()
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(year),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: get(t, a, "node").SerialNumber, RevocationTime: time.Now()}},
	}, ca, key)
	if err != nil {
		t.Fatal(err)
	}
	revoked, second := encode("X509 CRL", list), encode("CERTIFICATE", get(t, other, CA).Raw)
	own, err := os.ReadFile(a.CertificatePath(CA))
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string][]byte{
		"after it": slices.Concat(own, revoked, []byte("the second authority\n"), second), "before it": slices.Concat(revoked, []byte("text\n"), own, second),
	} {
		if err := os.WriteFile(a.CertificatePath(CA), text, 0o644); err != nil {
			t.Fatal(err)
		}
		before, after, err := a.Renew(CA, 20*year)
		if err != nil {
			t.Fatal(what, err)
		}
		got, err := os.ReadFile(a.CertificatePath(CA))
		if err != nil || !before.Equal(ca) || !bytes.Contains(got, revoked) || !bytes.Contains(got, second) ||
			!bytes.Contains(got, encode("CERTIFICATE", after.Raw)) || bytes.Contains(got, own) {
			t.Errorf("%s: %v\n%s", what, err, got)
		}
		if err := a.Add("with the list "+what, nil, year); err != nil {
			t.Error(err)
		}
	}
}

// A certificate does not outlive its authority, and one that has ended signs nothing.
func TestEnd(t *testing.T) {
	a := newAuthority(t)
	if err := a.Add("long", nil, 100*year); err != nil {
		t.Fatal(err)
	}
	if ca, long := get(t, a, CA), get(t, a, "long"); long.NotAfter.After(ca.NotAfter) {
		t.Errorf("valid until %v, the authority until %v", long.NotAfter, ca.NotAfter)
	}
	a.Now = func() time.Time { return time.Now().Add(11 * year) }
	if err := a.Add("late", nil, year); err == nil || !strings.Contains(err.Error(), "tls renew ca") {
		t.Errorf("an authority that has ended has signed: %v", err)
	}
	if _, _, err := a.Renew(CA, 10*year); err != nil {
		t.Fatal(err)
	}
	if err := a.Add("late", nil, year); err != nil {
		t.Error(err)
	}
}
