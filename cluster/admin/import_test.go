package admin

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// follower is an operator that is told of imports.
type follower struct {
	*link.Conn
	t        *testing.T
	messages chan *importing.Message
}

func follow(t *testing.T, n *Node) *follower {
	t.Helper()
	f := &follower{t: t, messages: make(chan *importing.Message, 100)}
	var err error
	f.Conn, err = link.Dial(t.Context(), n.Addr(), link.Config{Deliver: func(ev link.Event) {
		if p, ok := ev.Packet.(*proto.NotifyMonitorInformation); ok {
			m, ok, err := importing.Parse(p)
			if err != nil || !ok {
				t.Error(ok, err)
			}
			f.messages <- m
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(); <-f.Done() })
	return f
}

func (f *follower) next(topic importing.Topic) *importing.Message {
	f.t.Helper()
	m := <-f.messages
	if m.Topic != topic {
		f.t.Fatalf("got %+v, want topic %d", m, topic)
	}
	return m
}

func answerLast(p proto.Packet) proto.Packet {
	if _, ok := p.(*proto.AskLastTransaction); ok {
		return &proto.AnswerLastTransaction{TID: 5}
	}
	return nil
}

// ordered returns the orders that the master was given.
func (m *fakeMaster) ordered() (list []*importing.Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.got {
		if p, ok := p.(*proto.NotifyMonitorInformation); ok {
			if msg, ok, err := importing.Parse(p); ok && err == nil {
				list = append(list, msg)
			}
		}
	}
	return list
}

// An import is in the summary, operators that ask are told of it, and orders get one
// answer each, whatever becomes of the master.
func TestImport(t *testing.T) {
	m := newMaster(t, answerLast)
	n, _ := start(t, m, nil)
	c := dial(t, n)
	summary := func() *proto.AnswerMonitorInformation {
		return call[*proto.AnswerMonitorInformation](t, c, &proto.AskMonitorInformation{})
	}
	before := summary()
	f := follow(t, n)
	pause := importing.Order{Kind: importing.Pause}
	f.Send(pause.Packet(0, 1))
	if a := f.next(importing.Answered); a.Number != 1 || a.Text != "no storage reports an import" {
		t.Errorf("%+v", a)
	}
	r := importing.Report{State: importing.Copying, Position: 1234e6, Size: 2730e6, Rate: 34e6, Left: 41 * time.Second}
	m.send(r.Packet(1))
	until(t, "the summary tells of the import", func() bool {
		p := summary()
		return p.Summary == before.Summary+"\nimport: storage S1: copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left" && len(p.Problem) == len(before.Problem)
	})

	f.Send((&importing.Message{Topic: importing.Wanted}).Packet())
	if got := f.next(importing.Reported); got.Node != 1 || got.Report != r {
		t.Errorf("%+v", got)
	}
	f.next(importing.Known)
	r.State, r.Note = importing.Failed, "record x is damaged:\nskip it"
	m.send(r.Packet(1))
	if got := f.next(importing.Reported); got.Report != r {
		t.Errorf("%+v", got)
	}
	until(t, "the summary warns", func() bool {
		p := summary()
		return len(p.Warning) == 1 && strings.HasSuffix(p.Summary, "\nimport: storage S1: FAILED: 45.2 % (1.2 of 2.7 GB), record x is damaged: skip it")
	})

	// Which storage is meant.
	other := importing.Report{State: importing.Done}
	m.send(other.Packet(2))
	f.next(importing.Reported)
	f.Send(pause.Packet(0, 2))
	f.Send(pause.Packet(2, 3))
	until(t, "the orders are passed on", func() bool { return len(m.ordered()) == 2 })
	if o := m.ordered(); o[0].Node != 1 || o[1].Node != 2 || o[0].Order != pause {
		t.Errorf("%+v %+v", o[0], o[1])
	}
	f.Send(pause.Packet(7, 4))
	if a := f.next(importing.Answered); a.Number != 4 || a.Text != "S7 reports no import" {
		t.Errorf("%+v", a)
	}
	m.send((&importing.Message{Topic: importing.Answered, Number: m.ordered()[1].Number, Text: "no"}).Packet())
	if a := f.next(importing.Answered); a.Number != 3 || a.Text != "no" {
		t.Errorf("%+v", a)
	}
	other.State = importing.Different
	m.send(other.Packet(2))
	f.next(importing.Reported)
	f.Send(pause.Packet(0, 5))
	if a := f.next(importing.Answered); a.Number != 5 || a.Text != "S1 and S2 import: the order does not say which is meant" {
		t.Errorf("%+v", a)
	}
	m.send((&importing.Message{Topic: importing.Gone, Node: 2}).Packet())
	if g := f.next(importing.Gone); g.Node != 2 {
		t.Errorf("%+v", g)
	}

	m.hangUp()
	if a := f.next(importing.Answered); a.Number != 2 || !strings.HasPrefix(a.Text, "the primary master was lost") {
		t.Errorf("%+v", a)
	}
	f.next(importing.Gone)
	c = dial(t, n)
	until(t, "nothing is known of the import", func() bool { return summary().Summary == before.Summary })

	// What no operator may say ends the link.
	f.Send(r.Packet(1))
	<-f.Done()
}

// The end of an import, good or bad, is worth one mail; its progress is not.
func TestImportMail(t *testing.T) {
	m := newMaster(t, answerLast)
	var mu sync.Mutex
	var mails []string
	n, _ := start(t, m, func(cfg *Config) {
		cfg.MailInterval = time.Millisecond
		cfg.Mail = func(_ context.Context, subject, body string) error {
			mu.Lock()
			defer mu.Unlock()
			mails = append(mails, subject+"\n"+body)
			return nil
		}
	})
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(mails)
	}
	last := func() string {
		mu.Lock()
		defer mu.Unlock()
		return mails[len(mails)-1]
	}
	c := dial(t, n)
	m.send(&proto.NotifyPartitionChanges{PTID: 8, Replicas: 1, Cells: []proto.CellChange{{Partition: 1, ID: 2, State: proto.UpToDate}}})
	until(t, "all is well", func() bool { return count() > 0 && strings.HasPrefix(last(), "NEO monitoring: OK") })
	// settled is called when a change was seen: that no mail follows is seen at the next one.
	want := count()
	r := importing.Report{State: importing.Copying, Size: 100}
	step := func(state importing.State, note string, mail string) {
		t.Helper()
		for range 5 {
			r.State, r.Note = state, note
			r.Position++
			m.send(r.Packet(1))
			at := r.String()
			until(t, "the summary tells "+at, func() bool {
				return strings.Contains(call[*proto.AnswerMonitorInformation](t, c, &proto.AskMonitorInformation{}).Summary, at)
			})
		}
		if mail == "" {
			return
		}
		want++
		until(t, "a mail about "+note, func() bool { return count() >= want })
		if got := last(); count() != want || !strings.HasPrefix(got, "NEO monitoring: "+mail) || !strings.Contains(got, note) {
			t.Errorf("%d mails, want %d; the last one: %s", count(), want, got)
		}
	}
	step(importing.Copying, "", "")
	step(importing.Failed, "a record is damaged", "WARNING (main)")
	step(importing.Copying, "", "OK")
	step(importing.Comparing, "", "")
	step(importing.Different, "one object", "WARNING (main)")
	step(importing.Failed, "the source is gone", "WARNING")
	step(importing.Comparing, "", "OK")
	step(importing.Done, "switch now", "OK")
}
