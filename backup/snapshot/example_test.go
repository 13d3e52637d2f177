package snapshot_test

import (
	"bytes"
	"fmt"
	"log"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// One step of a log: a segment, encrypted, behind the note of a tail; and back.
func Example() {
	repo, lineage := snapshot.NewID(), snapshot.NewID()
	private, public, err := snapshot.GenerateKey("prod", snapshot.Writer)
	check(err)
	signer, err := snapshot.NewSigner(private)
	check(err)
	identity, recipient, err := snapshot.GenerateEpoch(nil)
	check(err)

	// The segment.
	t := txn.Transaction{TID: 0x10, Status: txn.Committed, Description: []byte("hello")}
	var plaintext snapshot.Buffer
	w, err := snapshot.NewSegmentWriter(&plaintext, snapshot.Header{Repo: repo, Lineage: lineage}, snapshot.WriterOptions{})
	check(err)
	check(w.Begin(&t))
	check(w.Record(snapshot.RecordOf(&txn.Record{OID: 1, TID: t.TID, Data: []byte("one")}, true)))
	check(w.End())
	written, err := w.Close(t.TID, 0)
	check(err)
	var sealed bytes.Buffer
	stored, err := snapshot.Seal(&sealed, bytes.NewReader(plaintext.Bytes()), recipient, 1)
	check(err)

	// The tail.
	tail := snapshot.Tail{Repo: repo, Lineage: lineage, N: 1, Writer: "host/1/a", Asof: time.Now(), Tip: snapshot.Tip(&t)}
	tail.SetSegment(written, stored)
	note, err := tail.Sign(signer)
	check(err)
	object := append(note, sealed.Bytes()...)

	// A reader has the object, the key that is trusted, and the identity.
	trusted, err := snapshot.NewVerifiers(public)
	check(err)
	key := snapshot.TailKey(lineage, 1)
	read, err := snapshot.OpenTail(object, key, repo, trusted)
	check(err)
	check(read.Follows(snapshot.Chain{}))
	sealedPart := object[read.NoteSize():]
	if snapshot.Sum(sealedPart) != read.SHA256 {
		log.Fatal("another segment")
	}
	header, err := snapshot.HeaderOf(bytes.NewReader(sealedPart), key)
	check(err)
	fileKey, err := snapshot.FileKey(header, key, identity)
	check(err)
	file := snapshot.Sealed{Key: key, Size: read.Bytes, Header: header, FileKey: fileKey}
	p, size, err := file.Open(bytes.NewReader(sealedPart))
	check(err)
	segment, err := snapshot.NewReader(p, size, key)
	check(err)
	entry, err := segment.Find(1, tid.Max)
	check(err)
	record, err := segment.Load(entry)
	check(err)
	fmt.Printf("%v %v %s\n", record.OID, record.TID, record.Data)
	// Output: 0000000000000001 0000000000000010 one
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
