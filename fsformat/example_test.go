package fsformat_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// All transactions of a file, in order, with their records. A file that ends in the
// middle of a transaction is read up to it; Tail says what follows.
func ExampleReader_Transactions() {
	ctx := context.Background()
	r, err := fsformat.Open("../testdata/fs/04-deleted.fs", fsformat.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()

	for t, err := range r.Transactions(ctx, tid.Zero, tid.Max) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%v %s\n", t.TID, t.Description)
		for rec, err := range t.Records {
			if err != nil {
				log.Fatal(err)
			}
			if rec.Data == nil {
				fmt.Printf("  %v: deleted\n", rec.OID)
			} else {
				fmt.Printf("  %v: %d bytes\n", rec.OID, len(rec.Data))
			}
		}
	}
	tail, err := r.Tail(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("bytes after the last transaction:", tail.Ignored)
	// Output:
	// 03f7aa0002222222 T1
	//   0000000000000000: 64 bytes
	//   0000000000000001: 75 bytes
	//   0000000000000002: 75 bytes
	//   0000000000000003: 75 bytes
	// 03f7aa0003333333 T2
	//   0000000000000001: 75 bytes
	// 03f7aa0004444444 T3 delete 1 and 2
	//   0000000000000001: deleted
	//   0000000000000002: deleted
	// 03f7aa0005555555 T4 store 1 again
	//   0000000000000001: 75 bytes
	// 03f7aa0006666666 T5 delete 3
	//   0000000000000003: deleted
	// bytes after the last transaction: 0
}

// Loads need an index. UseIndex reads the one that ZODB has written beside the file, or
// makes one.
func ExampleReader_LoadBefore() {
	ctx := context.Background()
	const path = "../testdata/fs/04-deleted.fs"
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	unusable, err := r.UseIndex(ctx, path+".index", nil)
	if err != nil {
		log.Fatal(err)
	}
	if unusable != nil {
		fmt.Println("made a new index:", unusable)
	}

	last, err := r.LastTID(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for oid := range tid.OID(3) {
		rev, err := r.LoadBefore(ctx, oid, last+1)
		switch {
		case errors.Is(err, txn.ErrNoSuchObject):
			fmt.Printf("object %v does not exist any more\n", oid)
		case err != nil:
			log.Fatal(err)
		default:
			fmt.Printf("object %v: %d bytes of transaction %v\n", oid, len(rev.Data), rev.Serial)
		}
	}
	// Output:
	// object 0000000000000000: 64 bytes of transaction 03f7aa0002222222
	// object 0000000000000001: 75 bytes of transaction 03f7aa0005555555
	// object 0000000000000002 does not exist any more
}
