// Package parting is what a storage node that ends by an error tells the master, so that
// clients which wait for it learn why: a full disk, a damaged file. It travels in
// NotifyMonitorInformation, and only to a master that has asked for it; masters ask only
// storages that understand it.
//
// # Invariant
//
// It is one short line that explains: nothing that a node decides depends on it.
package parting

import (
	"strings"
	"unicode/utf8"

	"github.com/neozodb/neo/cluster/proto"
)

// Extension is the key by which a storage says in its identification that it understands
// the message. Nodes of the Python implementation ignore it.
const Extension = "last_words"

// Understands reports whether a storage that identified itself understands the message.
func Understands(extra map[string]proto.Value) bool {
	v, _ := extra[Extension].(int64)
	return v >= 1
}

// most is how many bytes of a reason are told.
const most = 500

// Message is what a storage says last. From a master, which asks for it, it is empty.
type Message struct{ Reason string }

// Packet returns the packet that carries a message: the first line of the reason.
func (m *Message) Packet() *proto.NotifyMonitorInformation {
	return &proto.NotifyMonitorInformation{Info: map[string]proto.Value{Extension: []byte(line(m.Reason))}}
}

// Parse returns the message that a packet carries; ok is false if it carries none.
func Parse(p *proto.NotifyMonitorInformation) (m *Message, ok bool, err error) {
	if _, ok := p.Info[Extension]; !ok {
		return nil, false, nil
	}
	d := proto.NewFields("last words of a storage", p.Info)
	return &Message{line(d.Text(Extension))}, true, d.Err()
}

// line returns the first line of a text, as far as it is worth to be shown.
func line(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	s = strings.ToValidUTF8(s, "?")
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s))
	if len(s) <= most {
		return s
	}
	end := most
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.TrimSpace(s[:end])
}
