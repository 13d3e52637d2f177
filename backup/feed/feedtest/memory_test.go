package feedtest_test

import (
	"testing"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/cluster/tid"
)

type memory struct{ *feedtest.Memory }

func (m memory) Append(_ *testing.T, list ...feedtest.Transaction) { m.Memory.Commit(list...) }

func (m memory) Pack(_ *testing.T, upTo tid.TID) (tid.TID, string) {
	m.Memory.Pack(upTo)
	return tid.Zero, ""
}

func (m memory) Open(*testing.T) feed.Feed { return m.Reopen() }

func TestMemory(t *testing.T) {
	feedtest.Run(t, feedtest.Options{Seeds: 100}, func(*testing.T) feedtest.Database { return memory{feedtest.New("memory")} })
}
