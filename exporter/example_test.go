package exporter_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

// A Data.fs is copied into another one in two steps: the second call appends what the
// first one has left out. A client.Client is a source as well, and so is any other
// txn.History.
func ExampleToFile() {
	ctx := context.Background()
	src, err := fsformat.Open("../testdata/fs/04-deleted.fs", fsformat.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "copy.fs")

	last, err := exporter.ToFile(ctx, src, path, exporter.FileOptions{UpTo: 0x03f7aa0003333333})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("copied up to", last)

	last, err = exporter.ToFile(ctx, src, path, exporter.FileOptions{
		Opened: func(after, upTo tid.TID) { fmt.Printf("going on after %v, up to %v\n", after, upTo) },
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("copied up to", last)

	dst, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer dst.Close()
	differences := 0
	for d, err := range exporter.Compare(ctx, src, dst, tid.Zero, last, exporter.CompareOptions{}, nil) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(d)
		differences++
	}
	fmt.Println(differences, "differences")
	// Output:
	// copied up to 03f7aa0003333333
	// going on after 03f7aa0003333333, up to 03f7aa0006666666
	// copied up to 03f7aa0006666666
	// 0 differences
}
