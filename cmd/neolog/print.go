package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ncruces/go-strftime"
	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// printer writes entries as lines.
type printer struct {
	*options
	w        *bufio.Writer
	notes    io.Writer    // stderr
	noted    map[int]bool // versions of the protocol that we do not know
	hideNode bool
	line     []byte
}

// colors of records by severity, as terminals know them.
var colors = map[int]string{10: "\x1b[34m", 20: "\x1b[32m", 30: "\x1b[33m", 40: "\x1b[31m", 50: "\x1b[31;01m"}

const colorEnd = "\x1b[39;49;0m"

// column returns what the column of the node shows.
func (p *printer) column(file string, e *nodelog.Entry) string {
	node := e.Name
	if e.NodeID != 0 && !p.noNID {
		node = proto.NodeID(e.NodeID).String()
	}
	if node == "" {
		return file
	}
	if p.cluster && e.Cluster != "" {
		return e.Cluster + "/" + node
	}
	return node
}

// packetName returns the name of the packet of an entry.
func packetName(e *nodelog.Entry) string {
	if name, ok := proto.LookupCode(e.Packet.Code); ok && readable(e) {
		return name
	}
	return unknownPacket(e.Packet.Code)
}

// readable reports whether a packet is of a protocol that we know.
func readable(e *nodelog.Entry) bool { return e.Protocol == 0 || e.Protocol == proto.Version }

func unknownPacket(code uint16) string { return fmt.Sprintf("UnknownPacket[%d]", code) }

// entry shows an entry if it is wanted.
func (p *printer) entry(f *filter, file string, e *nodelog.Entry) error {
	node := p.column(file, e)
	if !f.wants(node, e) {
		return nil
	}
	if v := e.Protocol; !readable(e) && !p.noted[v] {
		p.noted[v] = true
		fmt.Fprintf(p.notes, "%s: packets of version %d of the protocol are shown without names and arguments: this neolog knows version %d\n", file, v, proto.Version)
	}
	var pkt proto.Packet
	var err error
	if m := e.Packet; m != nil && m.Body != nil {
		_, known := proto.LookupCode(m.Code)
		if known && readable(e) && (p.all || p.decompress || f.byID() || shownAlways(m.Code)) {
			pkt, err = proto.DecodeArgs(m.Code, m.Body)
		}
	}
	if f.byID() && !f.mentions(e, pkt) {
		return nil
	}
	if p.json {
		return p.object(node, e, pkt, err)
	}
	start := p.start(node, e)
	if e.Packet == nil {
		for _, l := range splitLines(e.Msg) {
			p.writeLine(start, l, e.Level)
		}
		return p.flushIfBroken()
	}
	for _, l := range p.packetLines(e, pkt, err) {
		p.writeLine(start, l, 0)
	}
	return p.flushIfBroken()
}

// flushIfBroken returns the error of what was written so far.
func (p *printer) flushIfBroken() error {
	_, err := p.w.Write(nil)
	return err
}

// shownAlways reports whether a packet is shown with what it tells in any case.
func shownAlways(code uint16) bool {
	return code == (*proto.Error)(nil).Code() || code == (*proto.NotifyNodeInformation)(nil).Code()
}

// start returns what each line of an entry begins with.
func (p *printer) start(node string, e *nodelog.Entry) string {
	var s strings.Builder
	if p.date != "" {
		sec, frac := math.Modf(e.Date)
		s.WriteString(strftime.Format(p.date, time.Unix(int64(sec), 0)))
		fmt.Fprintf(&s, ".%04d ", int(frac*1e4))
	}
	if !p.color {
		severity := "PACKET"
		if e.Packet == nil {
			severity = nodelog.LevelName(e.Level)
		}
		fmt.Fprintf(&s, "%-9s ", severity)
	}
	if !p.hideNode {
		fmt.Fprintf(&s, "%-10s ", node)
	}
	return s.String()
}

func (p *printer) writeLine(start, text string, level int) {
	color := ""
	if p.color {
		color = colors[level]
	}
	p.line = append(p.line[:0], color...)
	p.line = append(p.line, start...)
	p.line = appendPrintable(p.line, text)
	if color != "" {
		p.line = append(p.line, colorEnd...)
	}
	p.line = append(p.line, '\n')
	_, _ = p.w.Write(p.line) // the error stays in w
}

// appendPrintable appends text without control characters, with which a log could
// change what a terminal shows.
func appendPrintable(b []byte, text string) []byte {
	for _, r := range text {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			b = fmt.Appendf(b, `\x%02x`, r)
			continue
		}
		b = append(b, string(r)...)
	}
	return b
}

// packetLines returns the lines of a packet. pkt is nil if it was not decoded, or err
// says why it could not be.
func (p *printer) packetLines(e *nodelog.Entry, pkt proto.Packet, err error) []string {
	m := e.Packet
	if err != nil {
		return []string{"Can't decode packet " + packetName(e) + ": " + err.Error()}
	}
	direction := "<"
	if m.Sent {
		direction = ">"
	}
	head := fmt.Sprintf("#0x%04x %-30s %s %s", m.MsgID, packetName(e), direction, m.Peer)
	switch pkt := pkt.(type) {
	case nil:
		return []string{head}
	case *proto.Error:
		return []string{head, fmt.Sprintf("%v (%s)", pkt.ErrCode, pkt.Message)}
	case *proto.NotifyNodeInformation:
		if p.all || p.decompress {
			head += " \t| Timestamp=" + dateText(pkt.Timestamp)
		}
		return append([]string{head}, nodeLines(pkt.Nodes)...)
	}
	if p.all || p.decompress {
		if args := proto.AllArgs(pkt, p.objectData); args != "" {
			head += " \t| " + args
		}
	}
	return []string{head}
}

// objectData shows the data of an object.
func (p *printer) objectData(o *proto.ObjectData) string {
	if p.decompress && o.Data != nil {
		data, err := deflate.Unpack(o)
		if err != nil {
			return fmt.Sprintf("Data=(%v)", err)
		}
		return fmt.Sprintf("Data=(%d, %q)", len(data), data)
	}
	return fmt.Sprintf("Compression=%d Checksum=%x Data=%q", o.Compression, o.Checksum, o.Data)
}

// nodeLines returns the lines of nodes, sorted, their columns aligned.
func nodeLines(nodes []proto.Node) []string {
	rows := make([][5]string, len(nodes))
	var width [4]int
	for i, n := range nodes {
		since := "None"
		if n.IDTimestamp.OK {
			since = dateText(n.IDTimestamp.V)
		}
		rows[i] = [5]string{n.ID.String(), n.Type.String(), n.Addr.String(), n.State.String(), since}
		for j := range width {
			width[j] = max(width[j], len(rows[i][j]))
		}
	}
	slices.SortFunc(rows, func(a, b [5]string) int { return slices.Compare(a[:], b[:]) })
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = fmt.Sprintf(" ! %-*s | %-*s | %-*s | %-*s | %s", width[0], r[0], width[1], r[1], width[2], r[2], width[3], r[3], r[4])
	}
	return lines
}

// dateText writes the UNIX time of a packet, UTC, to the microsecond.
func dateText(seconds float64) string {
	if math.IsNaN(seconds) || math.Abs(seconds) > 1e11 {
		return strconv.FormatFloat(seconds, 'g', -1, 64)
	}
	t := unixTime(seconds)
	if t.Nanosecond() == 0 {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("2006-01-02 15:04:05.000000")
}

// unixTime returns a UNIX time, UTC, rounded to microseconds.
func unixTime(seconds float64) time.Time {
	sec, frac := math.Modf(seconds)
	return time.Unix(int64(sec), int64(math.RoundToEven(frac*1e6))*1000).UTC()
}

// jsonEntry is an entry for programs.
type jsonEntry struct {
	Date    string `json:"date"`
	Node    string `json:"node"`
	Cluster string `json:"cluster,omitempty"`
	Level   string `json:"level,omitempty"`
	Path    string `json:"path,omitempty"`
	Line    int    `json:"line,omitempty"`
	Msg     string `json:"msg,omitempty"`

	Packet string `json:"packet,omitempty"`
	Code   uint16 `json:"code,omitempty"`
	MsgID  *int64 `json:"msg_id,omitempty"`
	Sent   *bool  `json:"sent,omitempty"`
	Peer   string `json:"peer,omitempty"`
	Args   any    `json:"args,omitempty"`
	Err    string `json:"err,omitempty"` // why the packet cannot be decoded
}

func (p *printer) object(node string, e *nodelog.Entry, pkt proto.Packet, err error) error {
	j := jsonEntry{Date: unixTime(e.Date).Format("2006-01-02T15:04:05.000000Z"), Node: node, Cluster: e.Cluster}
	if m := e.Packet; m == nil {
		j.Level, j.Path, j.Line, j.Msg = nodelog.LevelName(e.Level), e.Path, e.Line, e.Msg
	} else {
		id := int64(m.MsgID)
		j.Packet, j.Code, j.MsgID, j.Sent, j.Peer = packetName(e), m.Code, &id, &m.Sent, m.Peer
		if pkt != nil {
			j.Args = p.value(reflect.ValueOf(pkt).Elem())
		}
		if err != nil {
			j.Err = err.Error()
		}
	}
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	_, err = p.w.Write(append(b, '\n'))
	return err
}

// value returns a value of a packet for JSON: ids and checksums are hexadecimal, texts
// of bytes are strings, data are base64.
func (p *printer) value(v reflect.Value) any {
	if !v.IsValid() {
		return nil
	}
	switch x := v.Interface().(type) {
	case proto.Address:
		if x.IsZero() {
			return nil
		}
		return x.String()
	case proto.NodeID:
		if x == 0 {
			return nil
		}
		return x.String()
	case tid.TID, tid.OID:
		return fmt.Sprint(x)
	case fmt.Stringer: // states
		return x.String()
	case proto.Hash:
		return fmt.Sprintf("%x", x[:])
	case proto.ObjectData:
		if p.decompress && x.Data != nil {
			data, err := deflate.Unpack(&x)
			if err != nil {
				return map[string]any{"err": err.Error()}
			}
			return map[string]any{"data": data}
		}
		return map[string]any{"compression": x.Compression, "checksum": fmt.Sprintf("%x", x.Checksum[:]), "data": x.Data}
	case proto.Raw:
		return fmt.Sprintf("%x", []byte(x))
	case []byte:
		return string(x)
	case float64:
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return fmt.Sprint(x)
		}
		return x
	}
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return p.value(v.Elem())
	case reflect.Struct:
		if ok := v.FieldByName("OK"); ok.IsValid() && v.NumField() == 2 { // Opt
			if !ok.Bool() {
				return nil
			}
			return p.value(v.Field(0))
		}
		m := map[string]any{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			value := p.value(v.Field(i))
			if inner, ok := value.(map[string]any); ok && f.Anonymous {
				for k, x := range inner {
					m[k] = x
				}
				continue
			}
			m[snake(f.Name)] = value
		}
		return m
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = p.value(v.Index(i))
		}
		return list
	case reflect.Map:
		m := map[string]any{}
		for it := v.MapRange(); it.Next(); {
			m[fmt.Sprint(it.Key())] = p.value(it.Value())
		}
		return m
	}
	return v.Interface()
}

// snake writes a name of Go as JSON has it: YourID is your_id, OIDs is oids.
func snake(s string) string {
	var b strings.Builder
	for i, r := range s {
		upper := r >= 'A' && r <= 'Z'
		if upper && i > 0 && s[i-1] >= 'a' && s[i-1] <= 'z' {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(string(r)))
	}
	return b.String()
}
