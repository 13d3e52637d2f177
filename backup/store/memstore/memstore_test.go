package memstore_test

import (
	"testing"

	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
)

func TestStore(t *testing.T) {
	for _, versioned := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "versioned"}[versioned], func(t *testing.T) {
			storetest.Suite{
				Open:      func(*testing.T) store.Store { return memstore.New(memstore.Options{Versioned: versioned}) },
				Lock:      true,
				Versioned: versioned,
			}.Run(t)
		})
	}
}
