package link

import (
	"crypto/tls"
	"regexp"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/testlog"
)

// Both sides say why there is no connection between them, once for many attempts.
func TestRefusalsAreLogged(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other ca")
	expired := ca.config()
	cert, key, _ := ca.issue(-time.Minute)
	old, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	expired.Certificates = []tls.Certificate{old}
	const from, to = `msg="peer refused" addr=127\.0\.0\.1:\d+ err=.*`, `msg="no agreement with a peer" addr=127\.0\.0\.1:\d+ err=.*`
	for name, tt := range map[string]struct {
		client, server Config
		// What the two say; a plain client cannot tell a refusal from a node that
		// ends, and tells what it is at a loss for in its own words.
		clientWant, serverWant string
	}{
		"plain client":         {Config{}, Config{TLS: ca.config()}, ``, from + `node without TLS`},
		"plain server":         {Config{TLS: ca.config()}, Config{}, to + `node without TLS`, from + `speaks TLS`},
		"server of another CA": {Config{TLS: ca.config()}, Config{TLS: other.config()}, to + `unknown authority`, from + `peer refuses our TLS version or certificate`},
		"client of another CA": {Config{TLS: other.config()}, Config{TLS: ca.config()}, to + `unknown authority`, from + `peer refuses our TLS`},
		"expired client":       {Config{TLS: expired}, Config{TLS: ca.config()}, to, from + `certificate has expired`},
		"expired server":       {Config{TLS: ca.config()}, Config{TLS: expired}, to + `certificate has expired`, from + `peer refuses our TLS`},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			var client, server testlog.Buffer
			tt.client.Log, tt.server.Log = client.Logger(), server.Logger()
			tt.server.Deliver = func(Event) {}
			var conns []*Conn
			l, err := Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, tt.server, func(c *Conn) { conns = append(conns, c) })
			if err != nil {
				t.Fatal(err)
			}
			var d Dialer
			for range 3 {
				d.Forget(l.Addr())
				c, err := d.Dial(t.Context(), l.Addr(), tt.client)
				if err != nil {
					continue
				}
				if _, err := c.Call(t.Context(), &proto.Ping{}); err == nil {
					t.Error("connected")
				}
				c.Close()
				<-c.Done()
			}
			l.Close()
			for _, c := range conns {
				<-c.Done()
			}
			for side, x := range map[string]struct {
				log  *testlog.Buffer
				want string
			}{"client": {&client, tt.clientWant}, "server": {&server, tt.serverWant}} {
				n := len(regexp.MustCompile(`level=WARN`).FindAllString(x.log.String(), -1))
				switch {
				case x.want == "" && n > 0, x.want != "" && n != 1, !regexp.MustCompile(x.want).MatchString(x.log.String()):
					t.Errorf("the %s says\n%swant %s", side, x.log, x.want)
				}
			}
		})
	}
}

// A look at an open port is of no interest.
func TestPortScanIsNotLogged(t *testing.T) {
	for name, cfg := range map[string]Config{"plain": {}, "TLS": {TLS: newAuthority(t, "ca").config()}} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			var log testlog.Buffer
			cfg.Log = log.Logger()
			ended := make(chan error, 1)
			cfg.Deliver = func(ev Event) { ended <- ev.Err }
			l, err := Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, cfg, func(*Conn) {})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			nc, err := tcp{}.Dial(t.Context(), l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			nc.Close()
			<-ended
			if log.String() != "" {
				t.Errorf("logged %s", log.String())
			}
		})
	}
}
