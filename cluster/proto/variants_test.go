package proto

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

var update = flag.Bool("update", false, "rewrite testdata/wire/go.txt")

// packets returns one of each.
func packets() []Packet {
	var list []Packet
	for code := range 1 << 16 {
		var d decoder
		if p := decodeArgs(uint16(code), &d); p != nil {
			list = append(list, p)
		}
	}
	return list
}

// filler fills packets. Sparse ones have nothing that may be absent.
type filler struct {
	rand   *rand.Rand
	sparse bool
}

// mayBeNone are the fields whose zero value is nil on the wire.
var mayBeNone = map[string]bool{
	"RequestIdentification.ID": true, "RequestIdentification.Addr": true, "AcceptIdentification.ID": true, "AcceptIdentification.YourID": true,
	"AnswerPrimary.ID": true, "AskPartitionList.ID": true, "CheckPartition.Source": true, "Node.Addr": true, "Node.ID": true,
}

func (f *filler) packet(p Packet) {
	f.fill(reflect.ValueOf(p).Elem(), "")
}

func (f *filler) fill(v reflect.Value, field string) {
	if f.sparse && mayBeNone[field] {
		return
	}
	switch x := v.Addr().Interface().(type) {
	case *CellState:
		*x = CellState(f.rand.IntN(int(Discarded) + 1))
		return
	case *ClusterState:
		*x = ClusterState(f.rand.IntN(int(StoppingBackup) + 1))
		return
	case *NodeState:
		*x = NodeState(f.rand.IntN(int(NodePending) + 1))
		return
	case *NodeType:
		*x = NodeType(f.rand.IntN(int(Admin) + 1))
		return
	case *NodeID:
		*x = NodeID(1 + f.rand.IntN(300))
		if f.rand.IntN(2) == 0 {
			*x = -*x << 22
		}
		return
	case *Address:
		*x = Address{fmt.Sprintf("10.0.0.%d", f.rand.IntN(256)), uint16(f.rand.Uint32())}
		return
	case *map[string]Value:
		*x = map[string]Value{}
		if f.sparse {
			return
		}
		for i, v := range []Value{[]byte("x"), nil, true, int64(-5), 1.5, []Value{[]byte("y"), int64(3)}, BackingUp,
			map[CellState]int{UpToDate: 3, Feeding: 1}, map[string]Value{"k": int64(1)}, Raw("\xa3str")} {
			(*x)[fmt.Sprintf("key%d", i)] = v
		}
		return
	case **PackRequest:
		if !f.sparse {
			*x = &PackRequest{OIDs: []tid.OID{1, 2}, Time: 5}
			if f.rand.IntN(2) == 0 {
				(*x).OIDs = nil
			}
		}
		return
	case *PackOrder:
		f.fill(reflect.ValueOf(&x.ID).Elem(), "")
		x.Partial = !f.sparse
		f.fill(reflect.ValueOf(&x.Approved).Elem(), "")
		f.fill(reflect.ValueOf(&x.OIDs).Elem(), "")
		return
	case **PackState:
		if !f.sparse {
			*x = &PackState{Partial: true, OIDs: []tid.OID{8}, Time: 9}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if ok := v.FieldByName("OK"); ok.IsValid() { // Opt
			if f.sparse {
				return
			}
			ok.SetBool(true)
			f.fill(v.FieldByName("V"), "")
			return
		}
		for i := range v.NumField() {
			f.fill(v.Field(i), v.Type().Name()+"."+v.Type().Field(i).Name)
		}
	case reflect.Pointer:
		if !f.sparse {
			v.Set(reflect.New(v.Type().Elem()))
			f.fill(v.Elem(), "")
		}
	case reflect.Slice:
		n := 1 + f.rand.IntN(3)
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b := make([]byte, n)
			if f.sparse {
				b = b[:0]
			}
			v.SetBytes(b)
			return
		}
		if f.sparse {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			f.fill(v.Index(i), "")
		}
	case reflect.Map:
		if f.sparse {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for range 3 {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(k, "")
			f.fill(e, "")
			v.SetMapIndex(k, e)
		}
	case reflect.Bool:
		v.SetBool(f.rand.IntN(2) == 0)
	case reflect.String:
		v.SetString(strings.Repeat("ü", f.rand.IntN(200)))
	case reflect.Float64:
		v.SetFloat(f.rand.NormFloat64())
	case reflect.Int:
		v.SetInt(f.rand.Int64() >> f.rand.IntN(63))
	case reflect.Uint8:
		v.SetUint(uint64(f.rand.IntN(14)))
	case reflect.Uint32, reflect.Uint64:
		n := f.rand.Uint64() >> f.rand.IntN(64)
		if v.Kind() == reflect.Uint32 {
			n &= 1<<32 - 1
		}
		v.SetUint(n)
	case reflect.Array: // Hash
		for i := range v.Len() {
			v.Index(i).SetUint(f.rand.Uint64() & 0xff)
		}
	default:
		panic(v.Type())
	}
}

func TestEveryPacketSurvivesARoundTrip(t *testing.T) {
	f := filler{rand: rand.New(rand.NewPCG(1, 2))}
	for round := range 50 {
		f.sparse = round%5 == 0
		for _, p := range packets() {
			f.packet(p)
			b := Append([]byte("before"), uint32(round), p)[6:]
			id, got, n, err := Decode(append(b, "after"...))
			if err != nil || n != len(b) || id != uint32(round) {
				t.Fatalf("%T %+v: %x: id %d, %d bytes, %v", p, p, b, id, n, err)
			}
			if diff := cmp.Diff(p, got); diff != "" {
				t.Errorf("%T (-want +got):\n%s", p, diff)
			}
			for i := range b {
				if _, _, _, err := Decode(b[:i]); err != ErrShort {
					t.Fatalf("%T: the first %d of %d bytes: %v", p, i, n, err)
				}
			}
		}
	}
}

// All packets, full and sparse, in a fixed form: other implementations, and other
// versions of this one, read these bytes.
func TestGolden(t *testing.T) {
	var s strings.Builder
	s.WriteString("# Every packet with all it can hold, and with as little as possible: name, id, bytes in hex.\n\n")
	for i, p := range packets() {
		name := CodeName(p.Code())
		for _, sparse := range []bool{false, true} {
			p := reflect.New(reflect.TypeOf(p).Elem()).Interface().(Packet)
			f := filler{rand.New(rand.NewPCG(uint64(i), 7)), sparse}
			f.packet(p)
			suffix := "-full"
			if sparse {
				suffix = "-sparse"
			}
			fmt.Fprintf(&s, "%s%s %d %x\n", name, suffix, i, Append(nil, uint32(i), p))
		}
	}
	const file = "../../testdata/wire/go.txt"
	if *update {
		if err := os.WriteFile(file, []byte(s.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), s.String()); diff != "" {
		t.Errorf("wire bytes changed (-want +got):\n%s", diff)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOtherEncodings(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     Packet
	}{
		{"long integers", "dc0003 cd0007 cd000d dc0000", &StopOperation{}},
		{"long array and bin", "dd00000003 00 12 91 c50008 040d265c1b884b00", &AskBeginTransaction{TID: Some(ttid)}},
		{"long extension", "93 00 2d 91 c70101 02", &NotifyClusterInformation{Running}},
		{"long integer in an extension", "93 00 2d 91 d501 cc02", &NotifyClusterInformation{Running}},
		{"oids of a pack order in one piece",
			"9311 cd8033 91 91 95 c408040d265c1b8a5b88 c0 c3 c410 0000000000000001 0000000000000002 c408040d265c1b884b00",
			&AnswerPackOrders{[]PackOrder{{ID: aTID, Partial: true, OIDs: []tid.OID{1, 2}, Time: ttid}}}},
		{"no compression for an absent object",
			"930d cd8020 97 c408000000000000002a c408040d265c1b8a5b88 c0 c0 c414 0000000000000000000000000000000000000000 c400 c0",
			&AnswerObject{OID: anOID, Serial: aTID, ObjectData: ObjectData{Data: []byte{}}}},
		{"whole number as float", "93 00 06 92 01 90", &NotifyNodeInformation{Timestamp: 1}},
		{"unknown extra keys are kept", "930001 96 d40402 c0 c0 c400 c0 84 c40161 a173 c40162 d46301 c40163 81a16b01 c40164 cfffffffffffffffff",
			&RequestIdentification{Type: Client, Extra: map[string]Value{
				"a": Raw("\xa1s"), "b": Raw("\xd4\x63\x01"), "c": Raw("\x81\xa1k\x01"), "d": Raw("\xcf\xff\xff\xff\xff\xff\xff\xff\xff")}}},
		{"error code is an integer", "9300cd800092 07 c400", &Error{ErrCode: ReplicationError}},
		{"negative node id", "930013 92 c408040d265c1b884b00 91 d2f0000001", &FailedVote{ttid, []NodeID{m1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.in)
			_, p, n, err := Decode(b)
			if err != nil || n != len(b) {
				t.Fatalf("%d of %d bytes, %v", n, len(b), err)
			}
			if diff := cmp.Diff(tt.want, p); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMalformedPackets(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"not an array", "80", "map instead of array"},
		{"two elements", "920002", "array of 2 elements instead of 3"},
		{"negative id", "93ff0290", "negative"},
		{"id beyond 32 bits", "93cf00000001000000000290", "exceeds 4294967295"},
		{"code beyond 16 bits", "9300ce0001000090", "exceeds 65535"},
		{"unknown code", "93004a90", "unknown packet code 0x004a"},
		{"answer without request", "9300cd800390", "unknown packet code 0x8003"},
		{"too many arguments", "93000291c0", "Ping: byte 4: array of 1 elements instead of 0"},
		{"too few arguments", "93002d90", "array of 0 elements instead of 1"},
		{"plain integer for an enumeration", "93002d9102", "int instead of ext"},
		{"another enumeration", "93002d91d40002", "extension 0 instead of 1"},
		{"enumeration out of range", "93002d91d40107", "not one of its 7 values"},
		{"negative enumeration", "93002d91d401ff", "not one of its 7 values"},
		{"empty enumeration", "93002d91c70001", "not one of its 7 values"},
		{"text for bytes", "9300cd80009200a2686f", "str instead of bin"},
		{"nil for bytes", "9300cd80009200c0", "nil instead of bin"},
		{"tid of 7 bytes", "93001091c40700000000000000", "7 bytes instead of 8"},
		{"tid of 9 bytes", "93001091c409000000000000000000", "9 bytes instead of 8"},
		{"nil for a tid", "93001091c0", "nil instead of bin"},
		{"node id 0", "930026920 0d40301", "node id 0 out of range"},
		{"node id beyond 32 bits", "93002692cf0000000100000000d40301", "out of range"},
		{"negative partition", "93003a92ff90", "negative"},
		{"address without port", "9300499191c400", "array of 1 elements instead of 2"},
		{"port beyond 16 bits", "93004991 92c401 61 ce00010000", "exceeds 65535"},
		{"true for 1", "93002991c3", "bool instead of int"},
		{"elements of a list are too small", "9300cd8021 91 93 010203", "count that exceeds"},
		{"pack of nothing", "93001e96 c4080000000000000000 c400 c400 c400 90 9290c4080000000000000000", "partial pack of no object"},
		{"partial pack without oids", "9300cd8033 91 91 95 c408040d265c1b8a5b88 c0 c3 c0 c408040d265c1b884b00", "partial pack true, list of oids false"},
		{"oids in one piece, cut", "9300cd8033 91 91 95 c408040d265c1b8a5b88 c0 c3 c403000000 c408040d265c1b884b00", "not a multiple of 8"},
		{"reserved byte", "930002c1", "invalid byte"},
		{"large element", "9300cd80009200c604000001", "67108865 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, p, _, err := Decode(unhex(t, tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Decode = %+v, %v, want %q", p, err, tt.want)
			}
		})
	}
}

func TestDeepNesting(t *testing.T) {
	b := unhex(t, "930001 96 d40402 c0 c0 c400 c0 81 c40161")
	b = append(append(b, bytes.Repeat([]byte{0x91}, 1<<20)...), 0xc0)
	_, p, n, err := Decode(b)
	if err != nil || n != len(b) {
		t.Fatalf("%d of %d bytes, %v", n, len(b), err)
	}
	if got := Append(nil, 0, p); !bytes.Equal(got, b) {
		t.Errorf("%d bytes become %d", len(b), len(got))
	}
}

func TestArgs(t *testing.T) {
	for _, tt := range []struct {
		p    Packet
		want string
	}{
		{&Ping{}, ""},
		{&AskObject{OID: anOID, Before: Some(aTID)}, "OID=000000000000002a At=None Before=040d265c1b8a5b88"},
		{&AnswerNewOIDs{make([]tid.OID, 10)}, "OIDs=[" + strings.Repeat("0000000000000000 ", 8) + "+2]"},
		{&Error{Denied, "no\n"}, `ErrCode=DENIED Message="no\n"`},
		{&NotifyPartitionChanges{3, 0, []CellChange{{0, s1, Feeding}}}, "PTID=3 Replicas=0 Cells=[(Partition=0 ID=S1 State=FEEDING)]"},
		{&AddObject{ObjectData: hello()}, "OID=0000000000000000 Serial=0000000000000000 Compression=0 Checksum=" + helloSH + " Data=(11 bytes) DataSerial=None"},
		{want["NotifyMonitorInformation"], "Info={\"cluster_state\":BACKINGUP \"down\":0 \"pt_summary\":{UP_TO_DATE:12}}"},
		{&Replicate{1, "up", map[int]Address{0: {}, 1: {"h", 2}}}, "TID=0000000000000001 Upstream=\"up\" Sources={0:None 1:h:2}"},
		{&AnswerRelockObject{}, "Conflict=None"},
	} {
		if got := Args(tt.p); got != tt.want {
			t.Errorf("Args(%T) = %s, want %s", tt.p, got, tt.want)
		}
	}
	f := filler{rand: rand.New(rand.NewPCG(1, 2))}
	for _, p := range packets() {
		f.packet(p)
		if s := Args(p); reflect.TypeOf(p).Elem().NumField() > 0 && s == "" {
			t.Errorf("Args(%T) is empty", p)
		}
	}
}
