package s3store

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/neozodb/neo/backup/store"
)

// Config says where a store is. Bucket is required; a zero field takes the
// documented default.
type Config struct {
	Endpoint string // host or host:port; default: that of AWS for Region
	Bucket   string
	Prefix   string // of all keys, without slashes at its ends
	Region   string // default: us-east-1; required without Endpoint
	Insecure bool   // HTTP instead of HTTPS
	Lookup   string // "path" or "dns": where requests name the bucket; default: path if Endpoint has a port

	Credentials Credentials

	// Timeout is how long the server may be silent in the middle of a call;
	// default: 1 min.
	Timeout time.Duration
	// TLS is for servers that the system does not trust; default: the system's
	// authorities and those of SSL_CERT_FILE.
	TLS *tls.Config
}

// Credentials are what the server knows this host by. They are never part of a URL.
type Credentials struct {
	AccessKey    string
	SecretKey    string
	SessionToken string
	// File is a file as ~/.aws/credentials, for its owner alone, read again when
	// what it says expires; used without AccessKey.
	File string
	// Instance asks the metadata service of the machine; used without AccessKey
	// and File.
	Instance bool
}

// The environment variables of credentials.
const (
	EnvAccessKey    = "NEOBACKUP_S3_ACCESS_KEY"
	EnvSecretKey    = "NEOBACKUP_S3_SECRET_KEY"
	EnvSessionToken = "NEOBACKUP_S3_SESSION_TOKEN"
	EnvFile         = "NEOBACKUP_S3_CREDENTIALS_FILE"
)

// FromEnv returns the credentials in the environment variables; getenv is as os.Getenv.
func FromEnv(getenv func(string) string) Credentials {
	return Credentials{
		AccessKey: getenv(EnvAccessKey), SecretKey: getenv(EnvSecretKey), SessionToken: getenv(EnvSessionToken),
		File: getenv(EnvFile),
	}
}

// provider returns the credentials for minio-go.
func (c Credentials) provider() (*credentials.Credentials, error) {
	switch {
	case c.AccessKey != "" && c.SecretKey != "":
		return credentials.NewStatic(c.AccessKey, c.SecretKey, c.SessionToken, credentials.SignatureV4), nil
	case c.AccessKey != "" || c.SecretKey != "":
		return nil, fmt.Errorf("S3 credentials: %s and %s belong together, one of them is missing", EnvAccessKey, EnvSecretKey)
	case c.File != "":
		fi, err := os.Stat(c.File)
		if err != nil {
			return nil, fmt.Errorf("S3 credentials: %w", err)
		}
		if mode := fi.Mode().Perm(); mode&0o077 != 0 {
			return nil, fmt.Errorf("S3 credentials: %s can be read by others (mode %04o): chmod 600 %s", c.File, mode, c.File)
		}
		creds := credentials.NewFileAWSCredentials(c.File, "")
		if _, err := creds.GetWithContext(nil); err != nil {
			return nil, fmt.Errorf("S3 credentials: %s: %w", c.File, err)
		}
		return creds, nil
	case c.Instance:
		return credentials.NewIAM(""), nil
	}
	return nil, fmt.Errorf("no S3 credentials: set %s and %s, or %s, or add credentials=instance to the URL for those of the machine", EnvAccessKey, EnvSecretKey, EnvFile)
}

// parameters are those of the URL.
var parameters = []string{"endpoint", "region", "insecure", "lookup", "credentials"}

// Parse returns the configuration that a URL describes, without credentials:
//
//	s3://bucket/prefix?endpoint=host:port&region=eu-1&insecure=1&lookup=path&credentials=instance
func Parse(text string) (Config, error) {
	u, err := url.Parse(text)
	if err != nil {
		// Its message has the text, which may have a password.
		return Config{}, errors.New("S3 URL: not a URL; the form is s3://bucket/prefix?endpoint=host:port&region=…")
	}
	if u.User != nil {
		return Config{}, fmt.Errorf("S3 URL of bucket %s: credentials do not belong into a URL, which is stored and shown: set %s and %s", u.Host, EnvAccessKey, EnvSecretKey)
	}
	if u.Scheme != "s3" || u.Opaque != "" || u.Fragment != "" {
		return Config{}, fmt.Errorf("S3 URL %q: the form is s3://bucket/prefix?endpoint=host:port&region=…", u.Redacted())
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, fmt.Errorf("S3 URL of bucket %s: %w", u.Host, err)
	}
	for name, values := range q {
		if !slices.Contains(parameters, name) {
			// Not its value: it may be a secret.
			return Config{}, fmt.Errorf("S3 URL of bucket %s: unknown parameter %q, known are %s", u.Host, name, strings.Join(parameters, ", "))
		}
		if len(values) > 1 {
			return Config{}, fmt.Errorf("S3 URL of bucket %s: parameter %q is given %d times", u.Host, name, len(values))
		}
	}
	c := Config{
		Endpoint: q.Get("endpoint"), Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"),
		Region: q.Get("region"), Lookup: q.Get("lookup"),
	}
	switch v := q.Get("insecure"); v {
	case "", "0":
	case "1":
		c.Insecure = true
	default:
		return Config{}, fmt.Errorf("S3 URL of bucket %s: insecure=%q, want 1 or 0", u.Host, v)
	}
	switch v := q.Get("credentials"); v {
	case "":
	case "instance":
		c.Credentials.Instance = true
	default:
		return Config{}, fmt.Errorf("S3 URL of bucket %s: credentials can only be \"instance\"", u.Host)
	}
	return c, c.check()
}

// String returns the URL of c, without credentials.
func (c Config) String() string {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set("endpoint", c.Endpoint)
	set("region", c.Region)
	set("lookup", c.Lookup)
	if c.Insecure {
		set("insecure", "1")
	}
	if c.Credentials.Instance {
		set("credentials", "instance")
	}
	u := url.URL{Scheme: "s3", Host: c.Bucket, Path: "/" + c.Prefix, RawQuery: q.Encode()}
	if c.Prefix == "" {
		u.Path = ""
	}
	return u.String()
}

// check reports what is missing or wrong, and completes c.
func (c *Config) check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("S3 bucket %q: %s", c.Bucket, fmt.Sprintf(format, args...))
	}
	if err := s3utils.CheckValidBucketNameStrict(c.Bucket); err != nil {
		return fail("%v", err)
	}
	if len(c.Prefix) > store.MaxPath-store.MaxKey {
		return fail("prefix %q is longer than %d bytes", c.Prefix, store.MaxPath-store.MaxKey)
	}
	for element := range strings.SplitSeq(c.Prefix, "/") {
		if c.Prefix != "" && (element == "" || element == "." || element == "..") {
			return fail("prefix %q", c.Prefix)
		}
	}
	if strings.ContainsFunc(c.Prefix, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._/", r)
	}) {
		return fail("prefix %q: letters, digits and - . _ / are allowed", c.Prefix)
	}
	if c.Endpoint == "" && c.Region == "" {
		return fail("neither endpoint nor region is given")
	}
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	if c.Endpoint == "" {
		c.Endpoint = "s3." + c.Region + ".amazonaws.com"
	}
	if strings.Contains(c.Endpoint, "/") || strings.Contains(c.Endpoint, "@") {
		return fail("the endpoint is host or host:port, with insecure=1 for HTTP")
	}
	switch c.Lookup {
	case "", "path", "dns":
	default:
		return fail("lookup %q, want path or dns", c.Lookup)
	}
	return nil
}

// lookup returns where requests name the bucket.
func (c Config) lookup() minio.BucketLookupType {
	_, _, err := net.SplitHostPort(c.Endpoint)
	switch {
	case c.Lookup == "dns":
		return minio.BucketLookupDNS
	case c.Lookup == "path" || err == nil:
		return minio.BucketLookupPath
	}
	return minio.BucketLookupAuto
}

// transport returns what sends requests: HTTP/1.1, which gives each its own
// connection, and bodies as they are.
func (c Config) transport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true
	t.ForceAttemptHTTP2 = false
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 256, 256
	t.TLSClientConfig = c.TLS
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return t
}
