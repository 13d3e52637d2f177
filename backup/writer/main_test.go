package writer

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/txn"
)

// The coders of zstd have channels, which are made at their first use: outside of the bubbles of
// synctest, so that all can use them.
func TestMain(m *testing.M) {
	flag.Parse()
	for _, level := range []snapshot.Level{snapshot.Fastest, snapshot.Default} {
		if err := warmUp(level); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func warmUp(level snapshot.Level) error {
	var b snapshot.Buffer
	s, err := snapshot.NewSegmentWriter(&b, snapshot.Header{}, snapshot.WriterOptions{Level: level, Concurrency: 1})
	if err != nil {
		return err
	}
	if err := s.Begin(&txn.Transaction{TID: 1, Status: txn.Committed}); err != nil {
		return err
	}
	if err := s.Record(snapshot.Record{OID: 1, TID: 1, Data: []byte("data")}); err != nil {
		return err
	}
	if err := s.End(); err != nil {
		return err
	}
	w, err := s.Close(1, 0)
	if err != nil {
		return err
	}
	r, err := snapshot.NewReader(bytes.NewReader(b.Bytes()), w.Size, "warm-up")
	if err != nil {
		return err
	}
	return r.Check(nil)
}
