package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// The shape of a large production database (ERP5): sizes of records and numbers
// of records in a transaction follow log-normal laws with these parameters.
const (
	sizeMu, sizeSigma   = 6.04237779991, 1.55811487853
	countMu, countSigma = 1.04108991045, 0.906703192546
	newRatio            = 0.810080409164 // records that create their object
)

var classes = [][]byte{
	[]byte("\x80\x03cproducts.document\nPerson\nq\x00."),
	[]byte("\x80\x03cBTrees.OOBTree\nOOBucket\nq\x00."),
	[]byte("\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00."),
}

// generate writes a Data.fs of about size bytes, the same for the same seed. Its
// records are valid ZODB pickles with persistent references; their contents
// compress to about a third.
func generate(path string, size int64, seed uint64) (err error) {
	w, err := fsformat.Create(path, fsformat.WriterOptions{NoSync: true})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.Abort() // err is the reason to give up
		}
	}()
	r := rand.New(rand.NewPCG(seed, 0))
	noise := make([]byte, 4<<20)
	for i := range noise {
		noise[i] = byte(int(r.NormFloat64() * .8))
	}
	lognormal := func(mu, sigma float64) int { return int(math.Round(math.Exp(mu + sigma*r.NormFloat64()))) }
	next := tid.OID(0)
	t := tid.TID(0x03d6000000000000)
	for n := 0; w.Size() < size; n++ {
		t += tid.TID(1<<20 + r.Uint64N(1<<26-1<<20))
		var records []txn.Record
		seen := map[tid.OID]bool{}
		for range max(1, lognormal(countMu, countSigma)) {
			oid := next
			if next > 0 && r.Float64() >= newRatio {
				oid = tid.OID(r.Uint64N(uint64(next)))
			}
			if seen[oid] {
				continue
			}
			seen[oid] = true
			next = max(next, oid+1)
			records = append(records, txn.Record{OID: oid, TID: t, Data: record(r, noise, oid, next, max(100, lognormal(sizeMu, sizeSigma)))})
		}
		if err := w.Append(&txn.Transaction{
			TID: t, Status: txn.Committed,
			User:        fmt.Appendf(nil, "u%d", n%50),
			Description: fmt.Appendf(nil, "/erp5/person_module/%d/edit", n),
			Records:     txn.Slice(records),
		}); err != nil {
			return err
		}
	}
	return w.Close()
}

func record(r *rand.Rand, noise []byte, oid, known tid.OID, size int) []byte {
	size = max(1, size-80)
	b := append([]byte(nil), classes[oid%tid.OID(len(classes))]...)
	b = append(b, "\x80\x03}q\x00(X\x04\x00\x00\x00dataq\x01B"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	for size > 0 {
		n := min(size, len(noise)/2)
		at := r.IntN(len(noise) - n)
		b = append(b, noise[at:at+n]...)
		size -= n
	}
	b = append(b, "q\x02X\x03\x00\x00\x00refq\x03C\x08"...)
	b = tid.OID(r.Uint64N(uint64(known))).Append(b)
	return append(b, "q\x04c__builtin__\nobject\nq\x05\x86q\x06Qu."...)
}
