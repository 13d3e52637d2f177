package zeo

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// LoadTLS returns the configuration of an encrypted server: clients must show a
// certificate signed by an authority in the PEM file authenticate, or in one of
// the files if it is a directory. DYNAMIC names no authority: nobody can connect.
//
// As soon as the files hold a revocation list, the issuer of a client must have a
// valid one there: an outdated list would let revoked clients in again. The names
// in certificates of clients do not matter.
func LoadTLS(authenticate, certificate, key string) (*tls.Config, error) {
	if certificate == "" || authenticate == "" {
		return nil, errors.New("encryption needs a certificate and what to authenticate clients with")
	}
	if key == "" {
		key = certificate
	}
	cert, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", certificate, key, err)
	}
	a := authority{pool: x509.NewCertPool()}
	if authenticate != "DYNAMIC" {
		if err := a.load(authenticate); err != nil {
			return nil, fmt.Errorf("authority of clients: %w", err)
		}
	}
	return &tls.Config{
		MinVersion:       tls.VersionTLS12,
		Certificates:     []tls.Certificate{cert},
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ClientCAs:        a.pool,
		VerifyConnection: a.verify,
	}, nil
}

// authority is what certificates of clients are checked with.
type authority struct {
	pool  *x509.CertPool
	lists []*x509.RevocationList
}

func (a *authority) load(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	files := []string{path}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		files = files[:0]
		for _, e := range entries {
			if !e.IsDir() {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	certificates := 0
	for _, f := range files {
		n, err := a.loadFile(f)
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		certificates += n
	}
	if certificates == 0 {
		return fmt.Errorf("%s: no certificate", path)
	}
	return nil
}

func (a *authority) loadFile(path string) (certificates int, err error) {
	rest, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certificates, nil
		}
		switch block.Type {
		case "CERTIFICATE", "TRUSTED CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return certificates, err
			}
			a.pool.AddCert(c)
			certificates++
		case "X509 CRL":
			l, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return certificates, err
			}
			a.lists = append(a.lists, l)
		}
	}
}

// verify refuses revoked certificates.
func (a *authority) verify(s tls.ConnectionState) error {
	if len(a.lists) == 0 {
		return nil
	}
	var last error
	for _, chain := range s.VerifiedChains {
		if last = a.checkRevoked(chain, time.Now()); last == nil {
			return nil
		}
	}
	return last
}

func (a *authority) checkRevoked(chain []*x509.Certificate, now time.Time) error {
	leaf := chain[0]
	issuer := chain[min(1, len(chain)-1)]
	for _, l := range a.lists {
		if l.CheckSignatureFrom(issuer) != nil || !l.NextUpdate.IsZero() && now.After(l.NextUpdate) {
			continue
		}
		for _, r := range l.RevokedCertificateEntries {
			if r.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
				return fmt.Errorf("certificate %v is revoked", leaf.SerialNumber)
			}
		}
		return nil
	}
	return fmt.Errorf("no valid revocation list of %v", issuer.Subject)
}

// refusedError tells why a client is refused before it has said anything.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// explainTLS says what a failed TLS handshake means. A peer that hangs up says
// nothing.
func explainTLS(err error) error {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return &refusedError{fmt.Errorf("the client does not use TLS, this server requires it: %w", err)}
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" {
		return &refusedError{fmt.Errorf("the client refuses our certificate or TLS version: %w", err)}
	}
	if err == io.EOF || errors.Is(err, net.ErrClosed) {
		return err
	}
	return &refusedError{fmt.Errorf("TLS handshake: %w", err)}
}

// host returns the host of an address, all of it if it has none.
func host(a net.Addr) string {
	if h, _, err := net.SplitHostPort(a.String()); err == nil {
		return h
	}
	return a.String()
}
