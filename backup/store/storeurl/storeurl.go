// Package storeurl opens stores by their URLs:
//
//	s3://bucket/prefix?endpoint=host:port&region=…&insecure=1&lookup=path
//	file:///path
//
// Credentials come from the environment, never from the URL.
package storeurl

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/filestore"
	"github.com/neozodb/neo/backup/store/s3store"
)

// Open opens the store of a URL. getenv is as os.Getenv; it gives the credentials.
// The store has no wrappers yet.
func Open(text string, getenv func(string) string) (store.Store, error) {
	scheme, _, _ := strings.Cut(text, ":")
	switch scheme {
	case "s3":
		c, err := s3store.Parse(text)
		if err != nil {
			return nil, err
		}
		instance := c.Credentials.Instance
		c.Credentials = s3store.FromEnv(getenv)
		c.Credentials.Instance = instance
		return opened(s3store.New(c))
	case "file":
		dir, err := directory(text)
		if err != nil {
			return nil, err
		}
		return opened(filestore.Open(dir))
	}
	return nil, errForm
}

// Check returns what is wrong with a URL, without opening anything.
func Check(text string) (err error) {
	switch scheme, _, _ := strings.Cut(text, ":"); scheme {
	case "s3":
		_, err = s3store.Parse(text)
	case "file":
		_, err = directory(text)
	default:
		err = errForm
	}
	return err
}

// errForm has not the text: it may have a password.
var errForm = errors.New("URL of a store: it begins with s3://bucket/prefix or file:///path")

// opened avoids a store that is not nil but has no value.
func opened[S store.Store](s S, err error) (store.Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// directory returns the path of a file URL.
func directory(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", fmt.Errorf("URL of a store: %w", err)
	}
	if u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !strings.HasPrefix(u.Path, "/") {
		return "", fmt.Errorf("URL of a store %q: the form is file:///path", u.Redacted())
	}
	return u.Path, nil
}
