// Package sqldbtest checks that a dialect of package sqldb does what sqldb needs,
// where backendtest cannot see it: connections that fail or are lost, readers beside the writer, and
// what another program finds in the tables.
package sqldbtest

import (
	"crypto/sha1"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

// Place is where a database is kept.
type Place interface {
	// Dialect returns the dialect to open the database with, once: it is closed with
	// the database.
	Dialect() (sqldb.Dialect, error)
	// Crash ends the use of db as the death of its process would: what was committed is
	// there at the next Dialect.
	Crash(db *sqldb.DB) error
	// Query runs a query as another program does, also while the database is in use. It
	// returns the rows, as the values of their columns with spaces between them.
	Query(query string) ([]string, error)
	// Exec runs statements as another program does, while the database is not in use.
	Exec(statements ...string) error
}

// Run checks a dialect. fresh makes a new, empty database.
func Run(t *testing.T, fresh func(t *testing.T) Place) {
	alone := func(f func(t *testing.T, p Place)) func(t *testing.T) {
		return func(t *testing.T) { f(t, fresh(t)) }
	}
	t.Run("EveryStatementFailsOnce", func(t *testing.T) { testEveryStatementFailsOnce(t, fresh) })
	t.Run("EveryStatementPanicsOnce", func(t *testing.T) { testEveryStatementPanicsOnce(t, fresh) })
	t.Run("LostReaders", alone(testLostReaders))
	t.Run("LostWriter", alone(testLostWriter))
	t.Run("WriterGoesOn", func(t *testing.T) { testWriterGoesOn(t, fresh) })
	t.Run("WriterReadsAgain", alone(testWriterReadsAgain))
	t.Run("ReadsEndWithContext", alone(testReadsEndWithContext))
	t.Run("LoadsSeeEveryCommit", alone(testLoadsSeeEveryCommit))
	t.Run("ReadsOfWhatIsDiscarded", func(t *testing.T) { testReadsOfWhatIsDiscarded(t, fresh) })
	t.Run("VotesLeaveWhatIsReplicated", func(t *testing.T) { testVotesLeaveWhatIsReplicated(t, fresh) })
	t.Run("Parking", alone(testParking))
	t.Run("ParkedDataIsShared", alone(testParkedDataIsShared))
	t.Run("ParkedDataOfKilledProcess", alone(testParkedDataOfKilledProcess))
	t.Run("NotParked", alone(testNotParked))
	t.Run("ParkingAtRandom", alone(testParkingAtRandom))
	t.Run("BigValues", func(t *testing.T) { testBigValues(t, fresh) })
	t.Run("ToDelIsDrained", alone(testToDelIsDrained))
}

var none proto.Opt[tid.TID]

func sha(s string) proto.Hash { return sha1.Sum([]byte(s)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, p Place) *sqldb.DB {
	t.Helper()
	d, err := p.Dialect()
	must(t, err)
	db, err := sqldb.Open(t.Context(), d, sqldb.Options{})
	must(t, err)
	return db
}
