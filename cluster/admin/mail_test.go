package admin

import (
	"bufio"
	"net"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serveMail is an SMTP server for one mail; it returns what it was told. Lines
// that begin with refuse are refused.
func serveMail(t *testing.T, refuse string) (addr string, got <-chan []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := make(chan []string, 1)
	go func() {
		var lines []string
		defer func() { c <- lines }()
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		say := func(s string) { conn.Write([]byte(s + "\r\n")) }
		say("220 ready")
		data := false
		for s := bufio.NewScanner(conn); s.Scan(); {
			line := s.Text()
			lines = append(lines, line)
			switch {
			case data && line != ".":
			case data:
				data = false
				say("250 taken")
			case refuse != "" && strings.HasPrefix(line, refuse):
				say("550 no such user")
			case line == "DATA":
				data = true
				say("354 go on")
			case line == "QUIT":
				say("221 bye")
				return
			default:
				say("250 ok")
			}
		}
	}()
	return l.Addr().String(), c
}

func TestMailer(t *testing.T) {
	addr, got := serveMail(t, "")
	m := &Mailer{Server: addr, From: mail.Address{Name: "NEO main", Address: "neo@example.com"}, To: []string{"a@example.com", "b@example.com"}}
	if err := m.Send(t.Context(), "NEO monitoring: OK", "RUNNING; lag=ε\n.\nend\n"); err != nil {
		t.Fatal(err)
	}
	lines := <-got
	var date string
	for i, line := range lines {
		if strings.HasPrefix(line, "Date: ") {
			date, lines[i] = line[6:], "Date: …"
		}
	}
	if when, err := mail.ParseDate(date); err != nil || time.Since(when) > time.Hour {
		t.Errorf("date %q: %v", date, err)
	}
	want := `EHLO localhost
MAIL FROM:<neo@example.com>
RCPT TO:<a@example.com>
RCPT TO:<b@example.com>
DATA
From: "NEO main" <neo@example.com>
To: a@example.com, b@example.com
Subject: NEO monitoring: OK
Date: …
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

RUNNING; lag=ε
..
end
.
QUIT`
	if diff := cmp.Diff(want, strings.Join(lines, "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMailerErrors(t *testing.T) {
	refusing, _ := serveMail(t, "RCPT TO:<b@")
	plain, _ := serveMail(t, "STARTTLS")
	for name, m := range map[string]*Mailer{
		"no such user": {Server: refusing, To: []string{"a@example.com", "b@example.com"}},
		"550":          {Server: plain, StartTLS: true, To: []string{"a@example.com"}},
		"refused":      {Server: "127.0.0.1:1"},
	} {
		if err := m.Send(t.Context(), "s", "b"); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), m.Server) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
