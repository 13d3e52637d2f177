package backuptest

import (
	"bytes"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/txn"
)

// WarmUp uses the coders of zstd once. They have channels, which are made at the first use: a package whose
// tests run in bubbles of synctest calls it in TestMain, outside of them, so that all can use the coders.
func WarmUp() error {
	for _, level := range []snapshot.Level{snapshot.Fastest, snapshot.Default} {
		if err := warmUp(level); err != nil {
			return err
		}
	}
	return nil
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
