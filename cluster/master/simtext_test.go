package master

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// This file is the text form of packets in scenarios: NAME Field=value. A list is
// [a b], a map {k:v}, an absent value nil. TTIDs are t1, t2, …, in the order in
// which they are given, and the TID of t1 is T1.

var packetTypes = func() map[string]reflect.Type {
	types := map[string]reflect.Type{}
	for _, p := range []proto.Packet{
		&proto.Error{}, &proto.Ping{}, &proto.CloseClient{}, &proto.NotPrimaryMaster{}, &proto.AcceptIdentification{},
		&proto.NotifyNodeInformation{}, &proto.NotifyClusterInformation{},
		&proto.AnswerRecovery{}, &proto.AnswerLastIDs{}, &proto.AnswerPartitionTable{}, &proto.AnswerLockedTransactions{},
		&proto.AnswerFinalTID{}, &proto.AnswerPackOrders{}, &proto.AnswerInformationLocked{}, &proto.NotifyReady{},
		&proto.NotifyPackCompleted{}, &proto.NotifyReplicationDone{}, &proto.AskUnfinishedTransactions{}, &proto.AskPackOrders{},
		&proto.AskBeginTransaction{}, &proto.FailedVote{}, &proto.AskFinishTransaction{}, &proto.AbortTransaction{},
		&proto.AskFinalTID{}, &proto.AskNewOIDs{}, &proto.WaitForPack{}, &proto.AskLastIDs{}, &proto.AskLastTransaction{},
		&proto.AskRecovery{}, &proto.AskClusterState{}, &proto.SetClusterState{}, &proto.SetNodeState{}, &proto.AddPendingNodes{},
		&proto.TweakPartitionTable{}, &proto.SetNumReplicas{}, &proto.Repair{}, &proto.CheckReplicas{}, &proto.Truncate{},
		&proto.FlushLog{}, &proto.StartOperation{}, &proto.NotifyPartitionCorrupted{},
		&proto.SendPartitionTable{}, &proto.InvalidatePartitions{}, &proto.NotifyPackSigned{}, &proto.AnswerLastTransaction{}, &proto.AnswerCheckTIDRange{}, &proto.AnswerCheckSerialRange{},
	} {
		t := reflect.TypeOf(p).Elem()
		types[t.Name()] = t
	}
	return types
}()

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// splitWords splits at spaces outside brackets.
func splitWords(s string) []string {
	var words []string
	depth, word := 0, ""
	for _, r := range s {
		switch {
		case strings.ContainsRune("[{", r):
			depth++
		case strings.ContainsRune("]}", r):
			depth--
		}
		if r == ' ' && depth == 0 {
			if word != "" {
				words = append(words, word)
			}
			word = ""
			continue
		}
		word += string(r)
	}
	if word != "" {
		words = append(words, word)
	}
	return words
}

func (s *sim) parsePacket(name string, fields []string) proto.Packet {
	s.t.Helper()
	typ, ok := packetTypes[name]
	if !ok {
		s.t.Fatalf("unknown packet %q", name)
	}
	v := reflect.New(typ)
	for _, f := range fields {
		k, text, _ := strings.Cut(f, "=")
		field := v.Elem().FieldByName(k)
		if !field.IsValid() {
			s.t.Fatalf("%s has no field %q", name, k)
		}
		s.parse(field, text)
	}
	return v.Interface().(proto.Packet)
}

func parseNodeID(t *testing.T, text string) proto.NodeID {
	types := map[byte]proto.NodeType{'M': proto.Master, 'S': proto.Storage, 'C': proto.Client, 'A': proto.Admin}
	n, err := strconv.Atoi(text[1:])
	typ, ok := types[text[0]]
	if err != nil || !ok {
		t.Fatalf("%q is not a node", text)
	}
	return typ.ID(n)
}

func (s *sim) parse(v reflect.Value, text string) {
	number := func() uint64 {
		if n, err := strconv.ParseUint(text, 0, 64); err == nil {
			return n
		}
		n, err := strconv.ParseInt(text, 0, 64)
		if err != nil {
			s.t.Fatalf("%q: %v", text, err)
		}
		return uint64(n)
	}
	list := func() []string { return splitWords(strings.Trim(text, "[]{}")) }
	enum := func(n int, name func(int) string) {
		for i := range n {
			if name(i) == text {
				v.SetUint(uint64(i))
				return
			}
		}
		s.t.Fatalf("%q is not a %v", text, v.Type())
	}
	switch v.Interface().(type) {
	case tid.TID:
		v.SetUint(uint64(s.parseTID(text)))
		return
	case proto.NodeID:
		v.SetInt(int64(parseNodeID(s.t, text)))
		return
	case proto.NodeType:
		if text == proto.Master.String() {
			v.SetUint(uint64(proto.Master))
			return
		}
	case proto.ClusterState:
		enum(7, func(i int) string { return proto.ClusterState(i).String() })
		return
	case proto.NodeState:
		enum(4, func(i int) string { return proto.NodeState(i).String() })
		return
	case proto.ErrorCode:
		enum(14, func(i int) string { return proto.ErrorCode(i).String() })
		return
	case [][]proto.Cell:
		v.Set(reflect.ValueOf(s.parseRows(text)))
		return
	case proto.Address:
		v.Set(reflect.ValueOf(simAddr(int(number()))))
		return
	case proto.Node: // S1:101, which runs at that port
		id, port, _ := strings.Cut(text, ":")
		n, err := strconv.Atoi(port)
		if err != nil {
			s.t.Fatalf("%q is not a node", text)
		}
		nid := parseNodeID(s.t, id)
		v.Set(reflect.ValueOf(proto.Node{Type: proto.Storage, ID: nid, Addr: simAddr(n), State: proto.NodeRunning}))
		return
	case *proto.PackRequest: // time, or time/1,2 for these objects
		at, oids, _ := strings.Cut(text, "/")
		v.Set(reflect.ValueOf(&proto.PackRequest{Time: s.parseTID(at), OIDs: s.parseOIDs(oids)}))
		return
	case proto.PackOrder: // id/approved/time, or id/approved/time/partial/1,2
		parts := strings.Split(text, "/")
		o := proto.PackOrder{ID: s.parseTID(parts[0]), Time: s.parseTID(parts[2])}
		if parts[1] != "nil" {
			o.Approved = proto.Some(parts[1] == "true")
		}
		if len(parts) == 5 && parts[3] == "partial" {
			o.Partial, o.OIDs = true, s.parseOIDs(parts[4])
		} else if len(parts) != 3 {
			s.t.Fatalf("%q is not a pack order", text)
		}
		v.Set(reflect.ValueOf(o))
		return
	}
	switch v.Kind() {
	case reflect.Struct: // Opt
		if text != "nil" {
			v.FieldByName("OK").SetBool(true)
			s.parse(v.FieldByName("V"), text)
		}
	case reflect.Slice:
		for _, w := range list() {
			e := reflect.New(v.Type().Elem()).Elem()
			s.parse(e, w)
			v.Set(reflect.Append(v, e))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for _, w := range list() {
			key, val, _ := strings.Cut(w, ":")
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			s.parse(k, key)
			s.parse(e, val)
			v.SetMapIndex(k, e)
		}
	case reflect.Bool:
		v.SetBool(text == "true")
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(number()))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(number())
	case reflect.String:
		v.SetString(text)
	default:
		s.t.Fatalf("cannot read a %v", v.Type())
	}
}

func (s *sim) parseTID(text string) tid.TID {
	for t, name := range s.names {
		if name == text {
			return t
		}
	}
	switch {
	case text == "MAX":
		return tid.Max
	case strings.HasPrefix(text, "now"):
		n, _ := strconv.Atoi(strings.TrimPrefix(text, "now+"))
		return tid.FromTime(s.now) + tid.TID(n)
	}
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil {
		s.t.Fatalf("%q is not a transaction id", text)
	}
	return tid.TID(n)
}

// parseOIDs reads 1,2.
func (s *sim) parseOIDs(text string) []tid.OID {
	var oids []tid.OID
	for w := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' }) {
		n, err := strconv.ParseUint(w, 0, 64)
		if err != nil {
			s.t.Fatalf("%q is not an object id", w)
		}
		oids = append(oids, tid.OID(n))
	}
	return oids
}

// parseRows reads S1:U,S2:O|S2:U.
func (s *sim) parseRows(text string) [][]proto.Cell {
	var rows [][]proto.Cell
	for r := range strings.SplitSeq(text, "|") {
		var row []proto.Cell
		for c := range strings.SplitSeq(r, ",") {
			node, letter, _ := strings.Cut(c, ":")
			for _, st := range []proto.CellState{proto.OutOfDate, proto.UpToDate, proto.Feeding, proto.Corrupted} {
				if letter == string(parttab.Letter(st)) {
					row = append(row, proto.Cell{ID: parseNodeID(s.t, node), State: st})
				}
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// learnTIDs names the transactions that the master numbers.
func (s *sim) learnTIDs(pkt proto.Packet) {
	switch pkt := pkt.(type) {
	case *proto.AnswerBeginTransaction:
		n := 1
		for _, name := range s.names {
			if name[0] == 't' {
				n++
			}
		}
		s.names[pkt.TTID] = fmt.Sprintf("t%d", n)
	case *proto.AskLockInformation:
		if name := s.names[pkt.TTID]; name != "" && s.names[pkt.TID] == "" {
			s.names[pkt.TID] = "T" + name[1:]
		}
	}
}

func opt[T any](o proto.Opt[T]) string {
	if !o.OK {
		return "nil"
	}
	return fmt.Sprint(o.V)
}

// parseReport reads a report of a check.
func (s *sim) parseReport(id int64, opts map[string]string) *check.Report {
	r := &check.Report{Check: id, Partition: check.None, Max: tid.Max}
	for k, v := range opts {
		n, err := strconv.Atoi(v)
		switch k {
		case "partition":
			r.Partition = n
		case "rows":
			r.Rows = n
		case "total":
			r.Total = n
		case "state":
			for r.State = check.Begun; r.State.String() != v; r.State++ {
			}
			err = nil
		case "reference":
			r.Reference, err = parseNodeID(s.t, v), nil
		case "nodes", "stuck":
			for _, w := range strings.Split(v, ",") {
				id := parseNodeID(s.t, w)
				if k == "stuck" {
					r.Stuck = append(r.Stuck, id)
				} else {
					r.Nodes = append(r.Nodes, id)
				}
			}
			err = nil
		case "note":
			r.Note, err = v, nil
		default:
			err = nil
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return r
}

var importTopics = []string{"wanted", "reported", "gone", "known", "ordered", "answered"}

// parseImport reads a message about an import.
func (s *sim) parseImport(topic string, opts map[string]string) *importing.Message {
	m := &importing.Message{Topic: importing.Topic(slices.Index(importTopics, topic))}
	for k, v := range opts {
		switch k {
		case "node":
			m.Node = parseNodeID(s.t, v)
		case "number":
			n, err := strconv.Atoi(v)
			if err != nil {
				s.t.Fatal(err)
			}
			m.Number = int64(n)
		case "state":
			for m.Report.State.String() != v {
				m.Report.State++
			}
		case "order":
			for m.Order.Kind.String() != v {
				m.Order.Kind++
			}
		case "end":
			m.Report.End = s.parseTID(v)
		case "back":
			m.Report.WriteBack = s.parseTID(v)
		case "note":
			m.Report.Note = v
		case "text":
			m.Text = v
		}
	}
	return m
}

func formatImport(m *importing.Message) string {
	out := "Import " + importTopics[m.Topic]
	for _, f := range []struct {
		name string
		v    any
		skip bool
	}{
		{"node", m.Node, m.Node == 0}, {"number", m.Number, m.Number == 0},
		{"report", fmt.Sprintf("%q", &m.Report), m.Topic != importing.Reported}, {"order", &m.Order, m.Topic != importing.Ordered},
		{"text", fmt.Sprintf("%q", m.Text), m.Topic != importing.Answered},
	} {
		if !f.skip {
			out += fmt.Sprintf(" %s=%v", f.name, f.v)
		}
	}
	return out
}

func (s *sim) formatReport(r *check.Report) string {
	n := slices.Index(s.checks, r.Check)
	if n < 0 {
		n = len(s.checks)
		s.checks = append(s.checks, r.Check)
	}
	out := fmt.Sprintf("Report K%d %v", n+1, r.State)
	if r.Partition != check.None {
		out += fmt.Sprintf(" partition=%d", r.Partition)
	}
	for _, f := range []struct {
		name string
		v    any
		skip bool
	}{
		{"partitions", r.Partitions, len(r.Partitions) == 0}, {"reference", r.Reference, r.Reference == 0},
		{"rows", r.Rows, r.Rows == 0}, {"total", r.Total, r.Total == 0}, {"nodes", r.Nodes, len(r.Nodes) == 0},
		{"stuck", r.Stuck, len(r.Stuck) == 0}, {"note", fmt.Sprintf("%q", r.Note), r.Note == ""},
	} {
		if !f.skip {
			out += fmt.Sprintf(" %s=%v", f.name, f.v)
		}
	}
	return out
}

func (s *sim) formatFollowing(m *following.Message) string {
	id := func(t tid.TID) string { return fmt.Sprintf("%x", uint64(t)) }
	hold := "no hold"
	if h := m.Terms.Hold; h.OK {
		hold = "hold " + id(h.V)
	}
	switch m.Topic {
	case following.Agreed:
		packs := ""
		if p := m.Terms.Packs; p > 0 {
			packs = " packs=" + id(p)
		}
		return fmt.Sprintf("Terms %s rate=%d paused=%v%s", hold, m.Terms.Rate, m.Terms.Paused, packs)
	case following.Answered:
		return fmt.Sprintf("Backup answered number=%d text=%q", m.Number, m.Text)
	case following.Reported:
		r := &m.Report
		return fmt.Sprintf("Backup reported kept=%s readable=%s wanted=%s upstream=%s report=%q", id(r.Backup), id(r.Readable), id(r.Bound), id(r.Upstream), r)
	}
	return fmt.Sprintf("Backup topic=%d", m.Topic)
}

func (s *sim) format(p proto.Packet) string {
	if m, ok := p.(*proto.NotifyMonitorInformation); ok {
		msg, ok, err := importing.Parse(m)
		if err != nil {
			s.t.Error(err)
		}
		if ok {
			return formatImport(msg)
		}
		follow, ok, err := following.Parse(m)
		if err != nil {
			s.t.Error(err)
		}
		if ok {
			return s.formatFollowing(follow)
		}
		r, _, err := check.Parse(m)
		if err != nil {
			s.t.Error(err)
		}
		return s.formatReport(r)
	}
	if e, ok := p.(*proto.Error); ok && strings.HasPrefix(e.Message, check.Started) {
		return fmt.Sprintf("Error ErrCode=%v (started)", e.ErrCode)
	}
	v := reflect.ValueOf(p).Elem()
	out := v.Type().Name()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Name == "Timestamp" || f.Name == "Message" || f.Name == "Extra" || f.Name == "Cluster" {
			continue
		}
		out += " " + f.Name + "=" + s.text(v.Field(i))
	}
	return out
}

func (s *sim) text(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case tid.TID:
		switch {
		case s.names[x] != "":
			return s.names[x]
		case x == tid.Max:
			return "MAX"
		case x < 1<<32:
			return fmt.Sprint(uint64(x))
		}
		return x.String()
	case tid.OID:
		return fmt.Sprint(uint64(x))
	case proto.Node:
		if x.Addr.IsZero() || x.ID != 0 {
			return fmt.Sprintf("%v:%v", x.ID, x.State)
		}
		return fmt.Sprintf("%d:%v", x.Addr.Port, x.State)
	case proto.CellChange:
		return fmt.Sprintf("%d:%v:%c", x.Partition, x.ID, parttab.Letter(x.State))
	case [][]proto.Cell:
		return s.rows(x)
	case proto.Address:
		if x.IsZero() {
			return "nil"
		}
		return fmt.Sprint(x.Port)
	case *proto.PackRequest:
		return "nil"
	case proto.PackOrder:
		text := fmt.Sprintf("%s/%s/%s", s.text(reflect.ValueOf(x.ID)), opt(x.Approved), s.text(reflect.ValueOf(x.Time)))
		if x.Partial {
			text += "/partial"
		}
		for i, oid := range x.OIDs {
			text += string("/,"[min(i, 1)]) + fmt.Sprint(uint64(oid))
		}
		return text
	case fmt.Stringer:
		return x.String()
	}
	switch v.Kind() {
	case reflect.Struct:
		if ok := v.FieldByName("OK"); ok.IsValid() {
			if !ok.Bool() {
				return "nil"
			}
			return s.text(v.FieldByName("V"))
		}
	case reflect.Slice:
		var list []string
		for i := range v.Len() {
			list = append(list, s.text(v.Index(i)))
		}
		return "[" + strings.Join(list, " ") + "]"
	}
	return fmt.Sprint(v.Interface())
}

func (s *sim) rows(rows [][]proto.Cell) string {
	var words []string
	for _, row := range rows {
		var cells []string
		for _, c := range row {
			cells = append(cells, fmt.Sprintf("%v:%c", c.ID, parttab.Letter(c.State)))
		}
		words = append(words, strings.Join(cells, ","))
	}
	return strings.Join(words, "|")
}
