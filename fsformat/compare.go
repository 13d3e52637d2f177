package fsformat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Comparison says what counts as a difference. The zero value is that of zodbtools:
// all but the order of the records in a transaction.
type Comparison struct {
	// Content leaves out what a copy through NEO's packets may lose: status, which
	// records share the data of another, and all but the last record of an object in
	// a transaction.
	Content bool
}

// digest is what is kept of a record.
type digest struct {
	absent  bool
	size    int
	sum     [sha256.Size]byte
	dataTID tid.TID
}

// Diff returns what differs between two transactions, "" if nothing does. It reads
// the records of both.
func (c Comparison) Diff(a, b *txn.Transaction) (string, error) {
	switch {
	case a.TID != b.TID:
		return fmt.Sprintf("transaction %v, not %v", b.TID, a.TID), nil
	case a.Status != b.Status && !c.Content:
		return fmt.Sprintf("status %q, not %q", b.Status, a.Status), nil
	case !bytes.Equal(a.User, b.User):
		return fmt.Sprintf("user %q, not %q", b.User, a.User), nil
	case !bytes.Equal(a.Description, b.Description):
		return fmt.Sprintf("description %q, not %q", b.Description, a.Description), nil
	case !bytes.Equal(a.Extension, b.Extension):
		return fmt.Sprintf("extension %q, not %q", b.Extension, a.Extension), nil
	}
	first, inFirst, err := c.records(a)
	if err != nil {
		return "", err
	}
	second, inSecond, err := c.records(b)
	if err != nil {
		return "", err
	}
	for _, k := range inSecond {
		got := second[k]
		want, ok := first[k]
		switch {
		case !ok:
			return fmt.Sprintf("object %v is only in the second", k.oid), nil
		case got == want:
		case got.absent != want.absent:
			return fmt.Sprintf("object %v is absent in one of them only", k.oid), nil
		case got.dataTID != want.dataTID:
			return fmt.Sprintf("object %v has the data of transaction %v, not %v", k.oid, got.dataTID, want.dataTID), nil
		default:
			return fmt.Sprintf("object %v: its %d bytes of data differ from the %d of the first", k.oid, got.size, want.size), nil
		}
	}
	for _, k := range inFirst {
		if _, ok := second[k]; !ok {
			return fmt.Sprintf("object %v is only in the first", k.oid), nil
		}
	}
	return "", nil
}

// An object may be in a transaction twice: its records count in their order, or
// only the last one.
type recordKey struct {
	oid tid.OID
	n   int
}

// records reads the records of a transaction, and in which order they are.
func (c Comparison) records(t *txn.Transaction) (map[recordKey]digest, []recordKey, error) {
	records := make(map[recordKey]digest)
	var order []recordKey
	count := make(map[tid.OID]int)
	for rec, err := range recordsOf(t) {
		if err != nil {
			return nil, nil, err
		}
		k := recordKey{oid: rec.OID}
		if !c.Content {
			k.n = count[rec.OID]
			count[rec.OID]++
		}
		if _, again := records[k]; !again {
			order = append(order, k)
		}
		records[k] = c.digest(rec)
	}
	return records, order, nil
}

func recordsOf(t *txn.Transaction) iter.Seq2[*txn.Record, error] {
	if t.Records == nil {
		return txn.Slice(nil)
	}
	return t.Records
}

func (c Comparison) digest(rec *txn.Record) digest {
	d := digest{absent: rec.Data == nil, size: len(rec.Data), sum: sha256.Sum256(rec.Data), dataTID: rec.DataTID}
	if c.Content {
		d.dataTID = 0
	}
	return d
}

// Histories compares the transactions of two histories in (after, upTo] and
// reports each one that differs, until report returns false. It returns how many
// transactions are in both.
func (c Comparison) Histories(ctx context.Context, a, b txn.History, after, upTo tid.TID, report func(at tid.TID, difference string) bool) (int64, error) {
	nextA, stopA := iter.Pull2(a.Transactions(ctx, after, upTo))
	defer stopA()
	nextB, stopB := iter.Pull2(b.Transactions(ctx, after, upTo))
	defer stopB()
	ta, err, okA := nextA()
	tb, errB, okB := nextB()
	both := int64(0)
	for okA || okB {
		if okA && err != nil {
			return both, err
		}
		if okB && errB != nil {
			return both, errB
		}
		moveA := okA && (!okB || ta.TID <= tb.TID)
		moveB := okB && (!okA || tb.TID <= ta.TID)
		at, difference := tid.TID(0), ""
		switch {
		case moveA && moveB:
			both++
			at = ta.TID
			if difference, err = c.Diff(ta, tb); err != nil {
				return both, err
			}
		case moveA:
			at, difference = ta.TID, "only in the first"
		default:
			at, difference = tb.TID, "only in the second"
		}
		if difference != "" && !report(at, difference) {
			return both, nil
		}
		if moveA {
			ta, err, okA = nextA()
		}
		if moveB {
			tb, errB, okB = nextB()
		}
	}
	return both, nil
}
