package link

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// LoadTLS reads PEM files and returns the configuration for both sides of every
// connection of a cluster: TLS 1.2 or 1.3, and any certificate that the CA has
// signed. Nodes are known by their certificates alone, so neither host names nor
// key usages are looked at. If the CA file also has revocation lists, the peer's
// certificate must be covered by one and not be in it.
//
// It returns an error if our own certificate would not be accepted.
func LoadTLS(ca, cert, key string) (*tls.Config, error) {
	text, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("reading CA certificates: %w", err)
	}
	v := &verifier{roots: x509.NewCertPool()}
	if err := v.add(text); err != nil {
		return nil, fmt.Errorf("reading CA certificates from %s: %w", ca, err)
	}
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("reading certificate %s and key %s: %w", cert, key, err)
	}
	var chain []*x509.Certificate
	for _, der := range own.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %s: %w", cert, err)
		}
		chain = append(chain, c)
	}
	if err := v.verify(chain); err != nil {
		return nil, fmt.Errorf("checking our certificate %s against %s: %w", cert, ca, err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{own},
		MinVersion:   tls.VersionTLS12,
		ClientAuth:   tls.RequireAnyClientCert,
		// The chain is verified by VerifyConnection, on both sides.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := v.verify(s.PeerCertificates); err != nil {
				return &peerCertError{err}
			}
			return nil
		},
	}, nil
}

// verifier checks certificates against a CA.
type verifier struct {
	roots *x509.CertPool
	crls  []*x509.RevocationList
}

func (v *verifier) add(text []byte) error {
	found := false
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE", "TRUSTED CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return err
			}
			v.roots.AddCert(c)
			found = true
		case "X509 CRL":
			l, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return err
			}
			v.crls = append(v.crls, l)
		}
	}
	if !found {
		return errors.New("no certificate in PEM form")
	}
	return nil
}

// verify checks a chain whose first certificate is the one to be checked.
func (v *verifier) verify(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	opts := x509.VerifyOptions{
		Roots:         v.roots,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	paths, err := chain[0].Verify(opts)
	if err != nil {
		return err
	}
	if len(v.crls) == 0 {
		return nil
	}
	for _, path := range paths {
		issuer := path[min(1, len(path)-1)] // a root may stand for itself
		if err = v.checkRevocation(chain[0], issuer); err == nil {
			return nil
		}
	}
	return err
}

func (v *verifier) checkRevocation(c, issuer *x509.Certificate) error {
	err := fmt.Errorf("no revocation list of %q", issuer.Subject)
	for _, l := range v.crls {
		if !bytes.Equal(l.RawIssuer, issuer.RawSubject) || l.CheckSignatureFrom(issuer) != nil {
			continue
		}
		if !l.NextUpdate.IsZero() && time.Now().After(l.NextUpdate) {
			err = fmt.Errorf("revocation list of %q has expired on %v", issuer.Subject, l.NextUpdate)
			continue
		}
		for _, e := range l.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return fmt.Errorf("certificate %q (serial number %v) is revoked", c.Subject, c.SerialNumber)
			}
		}
		return nil
	}
	return err
}

// peerCertError is our refusal of the peer's certificate.
type peerCertError struct{ err error }

func (e *peerCertError) Error() string { return "certificate of the peer: " + e.err.Error() }
func (e *peerCertError) Unwrap() error { return e.err }

// explainTLS says what a failed TLS handshake means for a cluster. Other errors
// are returned as they are.
func explainTLS(err error) error {
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if bytes.HasPrefix(e.RecordHeader[:], proto.Handshake[:5]) {
			return fmt.Errorf("peer is a node without TLS, this node requires it: %w", err)
		}
		return fmt.Errorf("peer does not speak TLS: first bytes % x: %w", e.RecordHeader, err)
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" {
		return fmt.Errorf("peer refuses our TLS version or certificate: %w", err)
	}
	return err
}
