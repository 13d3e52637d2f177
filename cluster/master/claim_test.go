package master

import (
	"math"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
)

// Whatever a storage says of its database is either understood or not there.
func FuzzClaim(f *testing.F) {
	f.Add(int64(5), int64(1), []byte("12345678"), []byte("12345678"), uint8(0))
	f.Add(int64(-1), int64(-1), []byte("1"), []byte(nil), uint8(1))
	f.Add(int64(0), int64(math.MaxInt64), []byte("12345678"), []byte("12345678"), uint8(2))
	f.Fuzz(func(t *testing.T, mark, partition int64, a, b []byte, shape uint8) {
		var row proto.Value = []proto.Value{partition, a, b}
		switch shape % 4 {
		case 1:
			row = []proto.Value{partition, a}
		case 2:
			row = []proto.Value{a, partition, b}
		case 3:
			row = a
		}
		c := parseClaim(map[string]proto.Value{
			"confirmed_ptid": mark,
			"last_tids":      []proto.Value{row},
			"unfinished":     []proto.Value{[]proto.Value{a, b}},
		})
		sound := mark >= 0 && partition >= 0 && partition <= math.MaxInt32 && len(a) == 8 && len(b) == 8 && shape%4 == 0
		if (c != nil) != sound {
			t.Fatalf("mark %d, partition %d, %q, %q, shape %d: %+v", mark, partition, a, b, shape, c)
		}
		if c != nil && (len(c.last) != 1 || len(c.unfinished) != 1 || c.confirmed != uint64(mark)) {
			t.Fatalf("%+v", c)
		}
	})
}
