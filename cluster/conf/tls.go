package conf

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// TLS names the three PEM files with which the links of a cluster are encrypted.
type TLS struct {
	CA   string // certificates that sign those of the nodes, and revocation lists
	Cert string // of this node
	Key  string // of Cert
}

// Enabled reports whether a file is named.
func (t TLS) Enabled() bool { return t != TLS{} }

// Config loads the files, for both ends of a link, and checks them by a
// handshake of the node with itself. It returns nil if no file is named, an
// error if only some are.
//
// Every certificate signed by the authority is accepted from either end, on
// purpose without regard to host names: a node is known by the link, not by DNS.
func (t TLS) Config() (*tls.Config, error) {
	if !t.Enabled() {
		return nil, nil
	}
	if t.CA == "" || t.Cert == "" || t.Key == "" {
		return nil, errors.New("to enable encryption, 3 files must be provided: the CA certificate, and the certificate of this node with its private key")
	}
	var paths [3]string
	for i, p := range []string{t.CA, t.Cert, t.Key} {
		var err error
		if paths[i], err = ExpandUser(p); err != nil {
			return nil, err
		}
	}
	caPEM, err := os.ReadFile(paths[0])
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	authority, err := parseAuthority(caPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate %s: %w", paths[0], err)
	}
	cert, err := tls.LoadX509KeyPair(paths[1], paths[2])
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", paths[1], paths[2], err)
	}
	cfg := &tls.Config{
		Certificates:       []tls.Certificate{cert},
		MinVersion:         tls.VersionTLS12,
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // no host names: authority.verify does the rest
		VerifyConnection:   authority.verify,
	}
	if err := selfCheck(cfg); err != nil {
		return nil, fmt.Errorf("certificate %s does not work with CA certificate %s: %w", paths[1], paths[0], err)
	}
	return cfg, nil
}

// authority decides which certificates are accepted.
type authority struct {
	roots   *x509.CertPool
	revoked []*x509.RevocationList // signed by the authority
}

func parseAuthority(pemData []byte) (*authority, error) {
	a := &authority{roots: x509.NewCertPool()}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, pemData = pem.Decode(pemData); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE", "TRUSTED CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, err
			}
			certs = append(certs, c)
			a.roots.AddCert(c)
		case "X509 CRL":
			l, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return nil, err
			}
			a.revoked = append(a.revoked, l)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM form")
	}
	for i, l := range a.revoked {
		signed := false
		for _, c := range certs {
			signed = signed || l.CheckSignatureFrom(c) == nil
		}
		if !signed {
			return nil, fmt.Errorf("revocation list %d is not signed by a certificate of the file", i+1)
		}
	}
	return a, nil
}

// verify is the VerifyConnection of both ends.
func (a *authority) verify(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("peer has no certificate")
	}
	leaf := s.PeerCertificates[0]
	opts := x509.VerifyOptions{
		Roots:         a.roots,
		Intermediates: x509.NewCertPool(),
		// Certificates made for NEO do not say what they are for.
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	return a.checkRevoked(leaf, time.Now())
}

// checkRevoked wants, as soon as there is a revocation list at all, a valid one
// of the issuer: an outdated list would let revoked nodes in again.
func (a *authority) checkRevoked(leaf *x509.Certificate, now time.Time) error {
	if len(a.revoked) == 0 {
		return nil
	}
	found := false
	for _, l := range a.revoked {
		if l.Issuer.String() != leaf.Issuer.String() {
			continue
		}
		if !l.NextUpdate.IsZero() && now.After(l.NextUpdate) {
			return fmt.Errorf("revocation list of %v is outdated since %v", l.Issuer, l.NextUpdate)
		}
		found = true
		for _, e := range l.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
				return fmt.Errorf("certificate %v of %v was revoked on %v", leaf.SerialNumber, leaf.Subject, e.RevocationTime)
			}
		}
	}
	if !found {
		return fmt.Errorf("no revocation list of %v", leaf.Issuer)
	}
	return nil
}

// selfCheck lets the node talk to itself on the loopback interface.
func selfCheck(cfg *tls.Config) error {
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return err
	}
	server := make(chan error, 1)
	go func() { server <- acceptOne(l, cfg) }()
	dialer := &net.Dialer{Timeout: selfCheckTimeout}
	conn, err := tls.DialWithDialer(dialer, "tcp", l.Addr().String(), cfg)
	if err == nil {
		// Takes what the server still writes, and ends when it closes: whether it
		// accepted the client is for the server to say.
		conn.Read(make([]byte, 1))
		conn.Close()
	}
	err = errors.Join(err, l.Close())
	if serverErr := <-server; err == nil {
		err = serverErr
	}
	return err
}

const selfCheckTimeout = 10 * time.Second

// acceptOne is the server of selfCheck.
func acceptOne(l net.Listener, cfg *tls.Config) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(selfCheckTimeout)); err != nil {
		return err
	}
	return tls.Server(c, cfg).Handshake()
}
