package exporter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// CompareOptions say which differences do not count.
type CompareOptions struct {
	// AnyStatus: a packed transaction may be an ordinary one on the other side. No
	// client can give a cluster the status.
	AnyStatus bool

	// AnyOrder: the records of a transaction may be in another order. Of several
	// records of one object only the last one counts.
	AnyOrder bool

	// EachRecord, with AnyOrder: several records of one object all count, in their
	// order.
	EachRecord bool

	// AnyLink: records may link to different earlier records with their data, or to
	// none.
	AnyLink bool

	// FullData: a record may hold its data instead of the link to an earlier
	// record with the same data.
	FullData bool

	// Packed, with AnyOrder: a record may be missing in the second history, which was
	// packed since it was copied from the first.
	Packed bool
}

// What of a [Difference] about a transaction or a record that one history lacks.
const (
	MissingInFirst  = "missing in the first"
	MissingInSecond = "missing in the second"
)

// Difference is something that two histories do not have in common.
type Difference struct {
	TID    tid.TID
	Record bool // about the object OID; else about the transaction
	OID    tid.OID
	What   string

	First, Second *Digest // of a record that both have and that differs; else nil
}

func (d Difference) String() string {
	if d.Record {
		return fmt.Sprintf("transaction %v: object %v: %s", d.TID, d.OID, d.What)
	}
	return fmt.Sprintf("transaction %v: %s", d.TID, d.What)
}

// Compare reads two histories in (after, upTo] side by side, record by record,
// and yields their differences. Memory does not depend on their size, except
// that AnyOrder keeps digests of the records of one transaction. progress, which
// may be nil, is told of what both have.
func Compare(ctx context.Context, a, b Source, after, upTo tid.TID, opt CompareOptions, progress Progress) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		nextA, stopA := iter.Pull2(a.Transactions(ctx, after, upTo))
		defer stopA()
		nextB, stopB := iter.Pull2(b.Transactions(ctx, after, upTo))
		defer stopB()
		var transactions, records, size int64
		ta, okA, err := step(nextA)
		if err != nil {
			yield(Difference{}, fmt.Errorf("compare: first history: %w", err))
			return
		}
		tb, okB, err := step(nextB)
		if err != nil {
			yield(Difference{}, fmt.Errorf("compare: second history: %w", err))
			return
		}
		for okA || okB {
			both := okA && okB && ta.TID == tb.TID
			switch {
			case both:
				for d, err := range compareOne(ta, tb, opt, &records, &size) {
					if !yield(d, err) || err != nil {
						return
					}
				}
				transactions++
				if progress != nil {
					progress(ta.TID, transactions, records, size)
				}
			case okA && (!okB || ta.TID < tb.TID):
				if !yield(Difference{TID: ta.TID, What: MissingInSecond}, nil) {
					return
				}
			default:
				if !yield(Difference{TID: tb.TID, What: MissingInFirst}, nil) {
					return
				}
			}
			stepA, stepB := both, both
			if !both {
				stepA = okA && (!okB || ta.TID < tb.TID)
				stepB = !stepA
			}
			if stepA {
				if ta, okA, err = step(nextA); err != nil {
					yield(Difference{}, fmt.Errorf("compare: first history: %w", err))
					return
				}
			}
			if stepB {
				if tb, okB, err = step(nextB); err != nil {
					yield(Difference{}, fmt.Errorf("compare: second history: %w", err))
					return
				}
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Difference{}, err)
		}
	}
}

func step(next func() (*txn.Transaction, error, bool)) (*txn.Transaction, bool, error) {
	t, err, ok := next()
	return t, ok, err
}

// compareOne compares two transactions of the same id.
func compareOne(a, b *txn.Transaction, opt CompareOptions, records, size *int64) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		of := func(format string, args ...any) bool {
			return yield(Difference{TID: a.TID, What: fmt.Sprintf(format, args...)}, nil)
		}
		sa, sb := status(a), status(b)
		switch {
		case sa != sb && !opt.AnyStatus && !of("status %q, not %q", sb, sa),
			!bytes.Equal(a.User, b.User) && !of("user %q, not %q", b.User, a.User),
			!bytes.Equal(a.Description, b.Description) && !of("description %q, not %q", b.Description, a.Description),
			!bytes.Equal(a.Extension, b.Extension) && !of("extension %q, not %q", b.Extension, a.Extension):
			return
		}
		if opt.AnyOrder {
			compareSets(a, b, opt, records, size, yield)
			return
		}
		nextA, stopA := iter.Pull2(all(a))
		defer stopA()
		nextB, stopB := iter.Pull2(all(b))
		defer stopB()
		for {
			ra, errA, okA := nextA()
			rb, errB, okB := nextB()
			switch {
			case errA != nil:
				yield(Difference{}, fmt.Errorf("compare: transaction %v of the first history: %w", a.TID, errA))
				return
			case errB != nil:
				yield(Difference{}, fmt.Errorf("compare: transaction %v of the second history: %w", a.TID, errB))
				return
			case !okA && !okB:
				return
			case !okB:
				if !yield(Difference{TID: a.TID, Record: true, OID: ra.OID, What: MissingInSecond}, nil) {
					return
				}
				continue
			case !okA:
				if !yield(Difference{TID: a.TID, Record: true, OID: rb.OID, What: MissingInFirst}, nil) {
					return
				}
				continue
			case ra.OID != rb.OID:
				// What follows cannot be matched any more.
				yield(Difference{TID: a.TID, Record: true, OID: ra.OID, What: fmt.Sprintf("object %v in its place", rb.OID)}, nil)
				return
			}
			*records++
			*size += int64(len(ra.Data))
			d := Difference{TID: a.TID, Record: true, OID: ra.OID, First: digest(ra, opt), Second: digest(rb, opt)}
			if d.compare(opt, bytes.Equal(ra.Data, rb.Data)) && !yield(d, nil) {
				return
			}
		}
	}
}

func status(t *txn.Transaction) byte {
	if t.Status == 0 {
		return txn.Committed
	}
	return t.Status
}

func all(t *txn.Transaction) iter.Seq2[*txn.Record, error] {
	if t.Records == nil {
		return func(func(*txn.Record, error) bool) {}
	}
	return t.Records
}

// Digest is what a comparison keeps of a record.
type Digest struct {
	Absent  bool              // the object does not exist at this revision
	Size    int               // bytes of data
	DataTID tid.TID           // as in [txn.Record]; zero with AnyLink
	sum     [sha256.Size]byte // only in sets
}

func digest(r *txn.Record, opt CompareOptions) *Digest {
	d := &Digest{Absent: r.Data == nil, Size: len(r.Data), DataTID: r.DataTID}
	if opt.AnyLink {
		d.DataTID = tid.Zero
	}
	return d
}

// compare says how the second record differs from the first, if it does. same: their
// data are equal.
func (d *Difference) compare(opt CompareOptions, same bool) bool {
	a, b := d.First, d.Second
	switch {
	case a.Absent != b.Absent && b.Absent:
		d.What = "no data in the second"
	case a.Absent != b.Absent:
		d.What = "no data in the first"
	case !same && a.Size != b.Size:
		d.What = fmt.Sprintf("%d bytes of data, not %d", b.Size, a.Size)
	case !same:
		d.What = fmt.Sprintf("other data of %d bytes", a.Size)
	case a.DataTID != b.DataTID && !(opt.FullData && (a.DataTID == tid.Zero || b.DataTID == tid.Zero)):
		d.What = fmt.Sprintf("data of transaction %v, not %v", b.DataTID, a.DataTID)
	}
	return d.What != ""
}

// recordKey is a record of a transaction, whatever its place. An object may have
// several.
type recordKey struct {
	oid tid.OID
	n   int // how many the object has before
}

// compareSets compares records whatever their order.
func compareSets(a, b *txn.Transaction, opt CompareOptions, records, size *int64, yield func(Difference, error) bool) {
	var sets [2]map[recordKey]*Digest
	var order [2][]recordKey
	for i, t := range []*txn.Transaction{a, b} {
		sets[i] = map[recordKey]*Digest{}
		count := map[tid.OID]int{}
		for r, err := range all(t) {
			if err != nil {
				yield(Difference{}, fmt.Errorf("compare: transaction %v: %w", a.TID, err))
				return
			}
			s := digest(r, opt)
			s.sum = sha256.Sum256(r.Data)
			k := recordKey{oid: r.OID}
			if opt.EachRecord {
				k.n = count[r.OID]
				count[r.OID]++
			}
			if sets[i][k] == nil {
				order[i] = append(order[i], k)
			}
			sets[i][k] = s
			if i == 0 {
				*records++
				*size += int64(len(r.Data))
			}
		}
	}
	for _, k := range order[0] {
		d := Difference{TID: a.TID, Record: true, OID: k.oid, First: sets[0][k], Second: sets[1][k]}
		switch {
		case d.Second != nil:
			if !d.compare(opt, d.First.sum == d.Second.sum) {
				continue
			}
		case opt.Packed:
			continue
		default:
			d.What, d.First = MissingInSecond, nil
		}
		if !yield(d, nil) {
			return
		}
	}
	for _, k := range order[1] {
		if sets[0][k] == nil && !yield(Difference{TID: a.TID, Record: true, OID: k.oid, What: MissingInFirst}, nil) {
			return
		}
	}
}

// NotPrefixError reports a destination that does not hold the beginning of the
// source: to go on copying would give a database that never was.
type NotPrefixError struct {
	Last  tid.TID // of the destination
	First Difference
	Why   string // what may have happened
}

func (e *NotPrefixError) Error() string {
	return fmt.Sprintf("the destination, which ends with transaction %v, is not the beginning of the source: %v; %s", e.Last, e.First, e.Why)
}

// MissingInDestination is the What of a transaction that only the source has.
const MissingInDestination = "missing in the destination"

// What may have happened to a destination that is not the beginning of its source.
const (
	whyPacked  = "the source was packed after the destination was copied from it, or the two are different databases"
	whyThinned = "the destination was packed after it was copied from the source, or one of its storages was lost meanwhile (then truncate " +
		"it to before this transaction, and copy again), or the two are different databases"
	whyAhead = "the source was restored from an older copy, less of it is to be copied than before, or something else was written to the destination"
	whyOther = "the two are different databases, or one of them was changed"
)

// orderChecker is a source that can tell, before anything is copied, whether all it
// has after a transaction can be.
type orderChecker interface {
	CheckOrder(ctx context.Context, after tid.TID) error
}

// Follows verifies that dst, from the transaction after the given one to its
// last, holds exactly what src has there. The error is a [NotPrefixError] if not.
// If src can tell, as a Data.fs can, it also verifies that all after the given
// transaction can be copied.
func Follows(ctx context.Context, src, dst Source, after, last tid.TID, opt CompareOptions) error {
	c, ok := src.(orderChecker)
	if ok {
		if err := c.CheckOrder(ctx, after); err != nil {
			return err
		}
	}
	if last == tid.Zero {
		return nil
	}
	for d, err := range Compare(ctx, src, dst, after, last, opt, nil) {
		if err != nil {
			return err
		}
		why := whyOther
		switch d.What {
		case MissingInSecond:
			d.What, why = MissingInDestination, whyThinned
		case MissingInFirst:
			d.What, why = "missing in the source", whyPacked
		}
		if ok && after > tid.Zero {
			// The ids before may explain it.
			if err := c.CheckOrder(ctx, tid.Zero); err != nil {
				return err
			}
		}
		return &NotPrefixError{last, d, why}
	}
	return nil
}
