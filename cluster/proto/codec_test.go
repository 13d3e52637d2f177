package proto

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

type vector struct {
	name string
	id   uint32
	b    []byte
}

// vectors returns the packets in testdata/wire.
func vectors(t testing.TB) []vector {
	files, err := filepath.Glob("../../testdata/wire/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no packets in testdata/wire: %v", err)
	}
	var list []vector
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if line == "" || line[0] == '#' {
				continue
			}
			f := strings.Fields(line)
			if len(f) != 3 {
				t.Fatalf("%s:%d: want name, id and bytes", file, i+1)
			}
			id, err := strconv.ParseUint(f[1], 10, 32)
			if err != nil {
				t.Fatalf("%s:%d: %v", file, i+1, err)
			}
			b, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatalf("%s:%d: %v", file, i+1, err)
			}
			list = append(list, vector{f[0], uint32(id), b})
		}
	}
	return list
}

const (
	ttid    = tid.TID(0x040d265c1b884b00)
	aTID    = tid.TID(0x040d265c1b8a5b88)
	s1      = NodeID(1)
	s2      = NodeID(2)
	m1      = NodeID(-0x0fffffff)
	c1      = NodeID(-0x1fffffff)
	anOID   = tid.OID(42)
	helloSH = "2aae6c35c94fcfb415dbe95f408b9ce91ee846ed"
)

func hello() ObjectData {
	o := ObjectData{Data: []byte("hello world")}
	b, _ := hex.DecodeString(helloSH)
	copy(o.Checksum[:], b)
	return o
}

// want holds what each packet of testdata/wire/python.txt means.
var want = map[string]Packet{
	"RequestIdentification-client-to-master": &RequestIdentification{Type: Client, Cluster: "test1", Extra: map[string]Value{}},
	"RequestIdentification-client-to-storage": &RequestIdentification{Type: Client, ID: c1, Cluster: "test1",
		IDTimestamp: Some(1700000000.5), Extra: map[string]Value{}},
	"RequestIdentification-storage-to-master": &RequestIdentification{Type: Storage, ID: s1, Addr: Address{"10.0.0.5", 24010}, Cluster: "test1",
		Extra: map[string]Value{"devpath": []Value{[]byte("host1"), []byte("65024")}, "new_nid": []Value{}}},
	"AcceptIdentification": &AcceptIdentification{Master, m1, c1},
	"NotPrimaryMaster":     &NotPrimaryMaster{Some(1), []Address{{"10.0.0.1", 10000}, {"10.0.0.2", 10000}}},
	"NotifyNodeInformation": &NotifyNodeInformation{1700000000.75, []Node{
		{Storage, Address{"10.0.0.5", 24010}, s1, NodeRunning, Some(1700000000.25)},
		{Master, Address{"10.0.0.1", 10000}, m1, NodeRunning, Opt[float64]{}}}},
	"SendPartitionTable":         &SendPartitionTable{Some[uint64](7), 1, [][]Cell{{{s1, UpToDate}, {s2, OutOfDate}}, {{s2, Feeding}}}},
	"NotifyPartitionChanges":     &NotifyPartitionChanges{8, 1, []CellChange{{0, s2, UpToDate}, {1, s1, Discarded}}},
	"NotifyClusterInformation":   &NotifyClusterInformation{Running},
	"Ping":                       &Ping{},
	"Pong":                       &Pong{},
	"Error-oid-not-found":        &Error{OIDNotFound, "000000000000002a"},
	"Error-ack":                  &Error{Ack, "state changed"},
	"AskBeginTransaction":        &AskBeginTransaction{},
	"AnswerBeginTransaction":     &AnswerBeginTransaction{ttid},
	"AskStoreObject":             &AskStoreObject{OID: anOID, ObjectData: hello(), TTID: ttid},
	"AskStoreObject-deletion":    &AskStoreObject{OID: anOID, Serial: aTID, ObjectData: ObjectData{Data: []byte{}}, TTID: ttid},
	"AnswerStoreObject-locked":   &AnswerStoreObject{},
	"AnswerStoreObject-lockless": &AnswerStoreObject{Some(tid.Zero)},
	"AskStoreTransaction": &AskStoreTransaction{TTID: ttid, User: []byte("joe"), Description: []byte("test"),
		Extension: []byte{}, OIDs: []tid.OID{anOID}},
	"AskFinishTransaction":      &AskFinishTransaction{TTID: ttid, OIDs: []tid.OID{anOID}, Checked: []int{3}},
	"AskLockInformation":        &AskLockInformation{ttid, aTID, false},
	"AnswerTransactionFinished": &AnswerTransactionFinished{ttid, aTID},
	"InvalidateObjects":         &InvalidateObjects{aTID, []tid.OID{anOID}},
	"AskObject":                 &AskObject{OID: anOID, Before: Some(aTID + 1)},
	"AnswerObject":              &AnswerObject{OID: anOID, Serial: aTID, ObjectData: hello()},
	"AnswerObjectUndoSerial":    &AnswerObjectUndoSerial{map[tid.OID]UndoSerial{anOID: {aTID, Opt[tid.TID]{}, true}}},
	"AskFetchObjects": &AskFetchObjects{Partition: 0, Length: 1000, Max: aTID,
		Have: map[tid.TID][]tid.OID{aTID: {anOID}}},
	"Replicate": &Replicate{aTID, "up", map[int]Address{0: {"10.0.0.9", 24010}, 300: {}}},
	"NotifyMonitorInformation": &NotifyMonitorInformation{map[string]Value{
		"cluster_state": BackingUp, "down": int64(0), "pt_summary": map[CellState]int{UpToDate: 12}}},
	"AnswerPackOrders": &AnswerPackOrders{[]PackOrder{{aTID, Some(true), false, nil, ttid}}},
	"AskTIDs":          &AskTIDs{0, 20, InvalidPartition},
}

func TestPythonPackets(t *testing.T) {
	seen := 0
	for _, v := range vectors(t) {
		want, ok := want[v.name]
		if !ok {
			continue
		}
		seen++
		t.Run(v.name, func(t *testing.T) {
			id, p, n, err := Decode(v.b)
			if err != nil || id != v.id || n != len(v.b) {
				t.Fatalf("Decode = id %d, %d bytes, %v; want id %d, %d bytes", id, n, err, v.id, len(v.b))
			}
			if diff := cmp.Diff(want, p); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			if got := Append(nil, id, want); !bytes.Equal(got, v.b) {
				t.Errorf("encoded\n%x, want\n%x", got, v.b)
			}
			for i := range v.b {
				if _, _, _, err := Decode(v.b[:i]); err != ErrShort {
					t.Errorf("Decode of the first %d bytes: %v, want %v", i, err, ErrShort)
				}
			}
		})
	}
	if seen != len(want) {
		t.Errorf("%d packets tested, want %d", seen, len(want))
	}
}

func TestEveryCodeHasAPacket(t *testing.T) {
	total := 0
	for code := range 1 << 16 {
		var d decoder
		p := decodeArgs(uint16(code), &d)
		name := CodeName(uint16(code))
		if p == nil {
			if !strings.HasPrefix(name, "packet 0x") {
				t.Errorf("code 0x%04x is named %s but is not decoded", code, name)
			}
			continue
		}
		total++
		if int(p.Code()) != code || name != reflect.TypeOf(p).Elem().Name() {
			t.Errorf("code 0x%04x: %s decodes as %T with code 0x%04x", code, name, p, p.Code())
		}
		if r, ok := p.(Request); ok && r.AnswerCode() != codeError && int(r.AnswerCode()) != code|AnswerBit {
			t.Errorf("%s is answered by code 0x%04x", name, r.AnswerCode())
		}
	}
	if total != 111 {
		t.Errorf("%d packets, want 111", total)
	}
}
