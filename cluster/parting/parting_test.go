package parting

import (
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/internal/messagetest"
	"github.com/neozodb/neo/cluster/proto"
)

var messages = messagetest.Kind[Message]{Extension: Extension, Parse: Parse, Packet: (*Message).Packet, Samples: []Message{{}, {"disk full"}}}

// A message arrives as it was sent, and one that makes no sense is refused.
func TestMessage(t *testing.T) { messages.Test(t) }

func FuzzParse(f *testing.F) { messages.Fuzz(f, func(*Message) {}) }

// What is told fits in a line of a log and in a refusal.
func TestLine(t *testing.T) {
	long := strings.Repeat("ä", most)
	for in, want := range map[string]string{
		"internal error: x\ngoroutine 1\n": "internal error: x",
		" a\tb\x7f\xff":                    "a b ?",
		long:                               long[:most],
		"x" + long:                         "x" + long[:most-2],
	} {
		m, ok, err := Parse((&Message{in}).Packet())
		if !ok || err != nil || m.Reason != want {
			t.Errorf("%q: %q, %v, want %q", in, m.Reason, err, want)
		}
	}
}

// Only who says so understands the message.
func TestUnderstands(t *testing.T) {
	for _, tt := range []struct {
		extra map[string]proto.Value
		want  bool
	}{
		{nil, false},
		{map[string]proto.Value{Extension: int64(1)}, true},
		{map[string]proto.Value{Extension: true}, false},
	} {
		if Understands(tt.extra) != tt.want {
			t.Errorf("%v: %v", tt.extra, !tt.want)
		}
	}
}
