// Package authority keeps the certificates of a cluster in a directory: those of an authority of its own,
// and those that it has signed, for nodes, ZEO servers and clients alike.
//
// # Invariant
//
// What is there is never overwritten, but by a renewal, which keeps the private key and takes the place
// of the certificate at once: a reader of the files finds a certificate and its key at any time. Keys are
// for their owner alone.
//
// Certificates are what the strictest peers demand (VERIFY_X509_STRICT, which is the default of
// Python 3.13): key usages and constraints that are critical, key identifiers, and host names as
// alternative names.
package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// CA is the name of the certificate of the authority: ca.crt and ca.key.
const CA = "ca"

const (
	certificateExt = ".crt"
	keyExt         = ".key"
)

// early is how long before it is made a certificate is valid, for clocks that are late.
const early = time.Hour

// Authority is a directory with the certificates of an authority.
type Authority struct {
	Dir string
	Now func() time.Time // default: time.Now
}

func (a *Authority) now() time.Time {
	if a.Now != nil {
		return a.Now()
	}
	return time.Now()
}

// CertificatePath and KeyPath are where the files of a certificate are.
func (a *Authority) CertificatePath(name string) string {
	return filepath.Join(a.Dir, name+certificateExt)
}

func (a *Authority) KeyPath(name string) string { return filepath.Join(a.Dir, name+keyExt) }

// CheckName refuses what cannot be the name of a certificate and its files.
func CheckName(name string) error {
	if name == "" || len(name) > 60 || strings.ContainsAny(name, "/\\\x00\n") || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "-") {
		return fmt.Errorf("%q cannot be the name of a certificate: up to 60 characters, without /, not beginning with . or -", name)
	}
	return nil
}

// Init makes the directory, if need be, and the authority in it: cn is its name for people.
func (a *Authority) Init(cn string, valid time.Duration) error {
	if err := os.MkdirAll(a.Dir, 0o755); err != nil {
		return err
	}
	return a.create(CA, func(pub *ecdsa.PublicKey) (*x509.Certificate, error) {
		id, err := keyID(pub)
		return &x509.Certificate{
			Subject:               pkix.Name{Organization: []string{"NEO"}, CommonName: cn},
			NotAfter:              a.now().Add(valid),
			IsCA:                  true,
			BasicConstraintsValid: true,
			MaxPathLenZero:        true,
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			SubjectKeyId:          id,
		}, err
	})
}

// Add makes a certificate and its key. Hosts are names and addresses under which peers that look at them, as
// ZEO clients do, reach the one who shows it.
func (a *Authority) Add(name string, hosts []string, valid time.Duration) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if name == CA {
		return fmt.Errorf("%s is the name of the authority", CA)
	}
	return a.create(name, func(pub *ecdsa.PublicKey) (*x509.Certificate, error) {
		id, err := keyID(pub)
		c := &x509.Certificate{
			Subject:               pkix.Name{Organization: []string{"NEO"}, CommonName: name},
			NotAfter:              a.now().Add(valid),
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageDigitalSignature,
			// A node is the server of some connections and the client of others.
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			SubjectKeyId: id,
		}
		for _, h := range hosts {
			if ip := net.ParseIP(strings.Trim(h, "[]")); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else if strings.ContainsAny(h, ":/ @") || h == "" {
				return nil, fmt.Errorf("%q is neither the name nor the address of a host", h)
			} else {
				c.DNSNames = append(c.DNSNames, h)
			}
		}
		return c, err
	})
}

// create makes a key, and the certificate that a template describes. Neither may be there yet.
func (a *Authority) create(name string, template func(*ecdsa.PublicKey) (*x509.Certificate, error)) error {
	for _, path := range []string{a.CertificatePath(name), a.KeyPath(name)} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				err = fmt.Errorf("%s is there already: nothing is overwritten", path)
			}
			return err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	c, err := template(&key.PublicKey)
	if err != nil {
		return err
	}
	issuer, signer := c, crypto.Signer(key)
	if name != CA {
		if issuer, signer, err = a.signer(); err != nil {
			return err
		}
	}
	der, err := a.sign(c, issuer, &key.PublicKey, signer)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// The key comes first: a certificate without one is of no use.
	if err := writeNew(a.KeyPath(name), "PRIVATE KEY", secret, 0o600); err != nil {
		return err
	}
	return writeNew(a.CertificatePath(name), "CERTIFICATE", der, 0o644)
}

// sign completes a template and signs it. A certificate does not outlive the authority.
func (a *Authority) sign(c, issuer *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	c.SerialNumber = serial.Add(serial, big.NewInt(1))
	c.NotBefore = a.now().Add(-early)
	if c != issuer && !c.IsCA && c.NotAfter.After(issuer.NotAfter) {
		c.NotAfter = issuer.NotAfter
	}
	if !c.NotAfter.After(a.now()) {
		return nil, fmt.Errorf("the authority is valid until %s: renew it first (tls renew %s)", issuer.NotAfter.UTC().Format(time.DateOnly), CA)
	}
	return x509.CreateCertificate(rand.Reader, c, issuer, pub, signer)
}

// keyID returns the identifier of a key (RFC 7093, method 1).
func keyID(pub *ecdsa.PublicKey) ([]byte, error) {
	b, err := pub.Bytes()
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(b)
	return h[:20], nil
}

func (a *Authority) signer() (*x509.Certificate, crypto.Signer, error) {
	c, err := readCertificate(a.CertificatePath(CA))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("no authority in %s: make one with tls init: %w", a.Dir, err)
	}
	if err != nil {
		return nil, nil, err
	}
	key, err := a.key(CA, c)
	return c, key, err
}

// key reads the key of a certificate.
func (a *Authority) key(name string, c *x509.Certificate) (crypto.Signer, error) {
	path := a.KeyPath(name)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no key in PEM form", path)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := any.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a key of type %T cannot sign", path, any)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(c.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", path, a.CertificatePath(name))
	}
	return key, nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: no certificate in PEM form", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// writeNew makes a file that must not be there.
func writeNew(path, kind string, der []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Renew signs a certificate again, for the same key and hosts. The key of a node need not be there, only its
// certificate. An authority that is renewed remains that of all certificates that it has signed, if each node
// gets its new certificate.
func (a *Authority) Renew(name string, valid time.Duration) (before, after *x509.Certificate, err error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	path := a.CertificatePath(name)
	if before, err = readCertificate(path); err != nil {
		return nil, nil, err
	}
	issuer, key, err := a.signer()
	if err != nil {
		return nil, nil, err
	}
	if name != CA {
		if err := before.CheckSignatureFrom(issuer); err != nil {
			return nil, nil, fmt.Errorf("%s is not of the authority in %s: %w", path, a.Dir, err)
		}
	}
	c := &x509.Certificate{
		RawSubject: before.RawSubject, NotAfter: a.now().Add(valid), SubjectKeyId: before.SubjectKeyId,
		IsCA: before.IsCA, BasicConstraintsValid: true, MaxPathLen: before.MaxPathLen, MaxPathLenZero: before.MaxPathLenZero,
		KeyUsage: before.KeyUsage, ExtKeyUsage: before.ExtKeyUsage, DNSNames: before.DNSNames, IPAddresses: before.IPAddresses,
	}
	der, err := a.sign(c, issuer, before.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	if after, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, err
	}
	temporary := path + ".new"
	// What an interrupted renewal has left.
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if err := writeNew(temporary, "CERTIFICATE", der, 0o644); err != nil {
		return nil, nil, err
	}
	return before, after, os.Rename(temporary, path)
}

// Certificate is one that is in the directory.
type Certificate struct {
	Name string
	*x509.Certificate
}

// Hosts returns the names and addresses that it is for.
func (c Certificate) Hosts() []string {
	hosts := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// List returns the certificates in the directory, the authority first.
func (a *Authority) List() ([]Certificate, error) {
	entries, err := os.ReadDir(a.Dir)
	if err != nil {
		return nil, err
	}
	var all []Certificate
	for _, e := range entries {
		name, found := strings.CutSuffix(e.Name(), certificateExt)
		if !found {
			continue
		}
		c, err := readCertificate(filepath.Join(a.Dir, e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, Certificate{name, c})
	}
	slices.SortStableFunc(all, func(a, b Certificate) int {
		switch {
		case a.Name == CA && b.Name != CA:
			return -1
		case b.Name == CA && a.Name != CA:
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	if len(all) == 0 {
		return nil, fmt.Errorf("no certificate in %s", a.Dir)
	}
	return all, nil
}
