package s3store_test

import (
	"testing"

	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/s3store"
	"github.com/neozodb/neo/backup/store/storetest"
)

// open returns a prefix of a bucket.
func open(t *testing.T, server *storetest.Server, bucket, prefix string) *s3store.Store {
	t.Helper()
	c, err := s3store.Parse(server.URL(bucket, prefix))
	if err != nil {
		t.Fatal(err)
	}
	c.Credentials.AccessKey, c.Credentials.SecretKey = server.AccessKey, server.SecretKey
	s, err := s3store.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// suite runs the suite on a server, in a plain bucket and in one with object lock.
func suite(t *testing.T, server *storetest.Server, lock, lockIgnored bool) {
	for _, locked := range []bool{false, true} {
		if locked && !lock {
			continue
		}
		t.Run(map[bool]string{false: "plain", true: "locked"}[locked], func(t *testing.T) {
			storetest.Suite{
				Open: func(t *testing.T) store.Store { return open(t, server, server.Bucket(t, locked), "some/prefix") },
				Reopen: func(t *testing.T, s store.Store) store.Store {
					c, err := s3store.Parse(s.(*s3store.Store).String())
					if err != nil {
						t.Fatal(err)
					}
					return open(t, server, c.Bucket, c.Prefix)
				},
				Lock: locked, Versioned: locked, LockIgnored: lockIgnored,
			}.Run(t)
		})
	}
}

func TestMinIO(t *testing.T)     { suite(t, storetest.MinIO(t), true, false) }
func TestVersityGW(t *testing.T) { suite(t, storetest.VersityGW(t), true, true) }
func TestMoto(t *testing.T)      { suite(t, storetest.Moto(t), true, false) }
func TestGoFakeS3(t *testing.T)  { suite(t, storetest.GoFakeS3(t), false, true) }
