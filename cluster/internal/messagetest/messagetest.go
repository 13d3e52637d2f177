// Package messagetest tests messages that travel in NotifyMonitorInformation: packages check,
// importing and following have each their own.
package messagetest

import (
	"math"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/proto"
)

// Kind is a kind of messages, of type M.
type Kind[M any] struct {
	Extension string // the key of all of them
	Parse     func(*proto.NotifyMonitorInformation) (m *M, ok bool, err error)
	Packet    func(*M) *proto.NotifyMonitorInformation
	Optional  []string // keys that may be missing
	Samples   []M      // with all keys
}

// Wire returns what a receiver gets of a packet.
func Wire(t testing.TB, p *proto.NotifyMonitorInformation) *proto.NotifyMonitorInformation {
	t.Helper()
	_, got, _, err := proto.Decode(proto.Append(nil, 1, p))
	if err != nil {
		t.Fatal(err)
	}
	return got.(*proto.NotifyMonitorInformation)
}

// strange are values that make no sense for most keys.
var strange = []proto.Value{
	nil, "text", true, int64(math.MaxInt64), int64(math.MinInt64), []byte("x"), []byte("\xff\xff\xff\xff\xff\xff\xff\xff"),
	1.5, -1.5, math.NaN(), math.Inf(1), []proto.Value{int64(1)}, []proto.Value{[]byte("x")}, []proto.Value{[]proto.Value{int64(1)}},
}

// Test checks that a message arrives as it was sent; that one with a value of a type that no sample
// has is refused, and one with another value too, or it arrives as the receiver has understood it;
// that no key may be missing; and that messages of another kind are not taken for one.
func (k *Kind[M]) Test(t *testing.T) {
	types := map[string][]reflect.Type{}
	for i := range k.Samples {
		for key, v := range k.Packet(&k.Samples[i]).Info {
			types[key] = append(types[key], reflect.TypeOf(v))
		}
	}
	for i := range k.Samples {
		want := &k.Samples[i]
		got, ok, err := k.Parse(Wire(t, k.Packet(want)))
		if !ok || err != nil {
			t.Fatalf("%+v: %v, %v", want, ok, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for key := range k.Packet(want).Info {
			for _, bad := range strange {
				p := k.Packet(want)
				p.Info[key] = bad
				m, ok, err := k.Parse(p)
				switch accepted := ok && err == nil; {
				case accepted && slices.Contains(types[key], reflect.TypeOf(bad)):
					k.again(t, m)
				case accepted && !(bad == nil && slices.Contains(k.Optional, key)):
					t.Errorf("a message with %s %#v is accepted: %+v", key, bad, m)
				}
			}
			p := k.Packet(want)
			delete(p.Info, key)
			if m, ok, err := k.Parse(p); key != k.Extension && !slices.Contains(k.Optional, key) && (!ok || err == nil) {
				t.Errorf("a message without %s is accepted: %+v", key, m)
			}
		}
	}
	for _, other := range []string{"check", "import", "following", "ltid"} {
		if _, ok, err := k.Parse(&proto.NotifyMonitorInformation{Info: map[string]proto.Value{other: int64(1)}}); other != k.Extension && (ok || err != nil) {
			t.Errorf("a message with %s is taken for one with %s: %v", other, k.Extension, err)
		}
	}
}

// again sends what was accepted: it must not become something else.
func (k *Kind[M]) again(t *testing.T, m *M) {
	t.Helper()
	again, ok, err := k.Parse(Wire(t, k.Packet(m)))
	if !ok || err != nil || !cmp.Equal(m, again) {
		t.Errorf("%+v is accepted and becomes something else: %v, %v (-first +second):\n%s", m, ok, err, cmp.Diff(m, again))
	}
}

// Fuzz checks that whatever packet is accepted is accepted again as the same. look uses what
// was accepted.
func (k *Kind[M]) Fuzz(f *testing.F, look func(*M)) {
	for i := range k.Samples {
		f.Add(proto.Append(nil, 1, k.Packet(&k.Samples[i])))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, got, _, err := proto.Decode(b)
		if err != nil {
			return
		}
		p, ok := got.(*proto.NotifyMonitorInformation)
		if !ok {
			return
		}
		if m, ok, err := k.Parse(p); ok && err == nil {
			look(m)
			k.again(t, m)
		}
	})
}
