package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cmd/internal/cli"
)

func neostorage(ctx context.Context, args ...string) (code int, stderr string) {
	var out, errOut bytes.Buffer
	env := &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errOut, Getenv: func(string) string { return "" }}
	code = cli.Run(ctx, env, newCommand)
	return code, errOut.String()
}

// Whatever prevents a start is told on stderr, in words, with the exit code 1;
// 2 is for wrong usage.
func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	locked, err := sqlitedb.Open(context.Background(), file("locked"), sqlitedb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	other, err := sqlitedb.Open(context.Background(), file("other"), sqlitedb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.SetName("other"); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("text"), bytes.Repeat([]byte("not a database "), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := file("neo.conf")
	if err := os.WriteFile(conf, []byte("[storage]\ncluster = test\nadapter = SQLite\ndatabase = "+file("conf.sqlite")+"\nreset = yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, args string
		code       int
		want       string
	}{
		{"no cluster", "-a SQLite -d " + file("a"), 2, "--cluster"},
		{"no database", "-c test", 2, "--database"},
		{"unknown adapter", "-c test -a DB2 -d x", 2, "unknown adapter"},
		{"default adapter", "-c test -d neo1" + file("none"), 1, "is the server running?"},
		{"MySQLdb", "-c test -a MySQLdb -d me:secret@neo1" + file("none"), 1, "open me@neo1/"},
		{"Importer", "-c test -a Importer -d x.conf", 1, "open x.conf: no such file"},
		{"another id", "-c test -a Importer --new-nid -d x.conf", 2, "--new-nid does not go with --adapter Importer"},
		{"no import to extend", "-c test -a SQLite --extend-import -d " + file("a"), 2, "--extend-import is for --adapter Importer"},
		{"extended and erased", "-c test -a Importer --reset --extend-import -d x.conf", 2, "neither with --reset"},
		{"engine of MySQL", "-c test -a MySQL -e TokuDB -d neo1", 2, "unsupported engine TokuDB: MariaDB has removed it"},
		{"engine of SQLite", "-c test -a SQLite -e InnoDB -d " + file("a"), 2, "--engine InnoDB is for MySQL"},
		{"engine of an import", "-c test -a Importer -e InnoDB -d x.conf", 2, "a key of x.conf"},
		{"erased and cloned", "-c test -a SQLite --reset --new-nid -d " + file("a"), 2, "--reset does not go with --new-nid"},
		{"two ids", "-c test -a SQLite --nid 3 --new-nid -d " + file("a"), 2, "--new-nid does not go with --nid"},
		{"locked", "-c test -a SQLite -d " + file("locked"), 1, "error: database is locked\n" + file("locked") + " is used by another process"},
		{"other cluster", "-c test -a SQLite -d " + file("other"), 1, `cluster "other", not "test"`},
		{"not a database", "-c test -a SQLite -d " + file("text"), 1, "text"},
		{"no directory", "-c test -a SQLite -d " + file("none/a"), 1, "no such file or directory"},
		{"port in use", "-c test -a SQLite -d " + file("b") + " -b " + busy.Addr().String(), 1, "address already in use"},
		{"clone of nothing", "-c test -a SQLite --new-nid -d " + file("c"), 1, "database is empty"},
		{"reset in a file", "-f " + conf, 2, "only allowed on the command line"},
		{"bad master", "-c test -a SQLite -m 1.2.3.4:x -d " + file("d"), 2, "1.2.3.4:x"},
		{"no share", "-c test -a SQLite --replication-share 0 -d " + file("f"), 2, "--replication-share 0 is not above 0 and up to 100"},
		{"share of more than all", "-c test -a SQLite --replication-share 101 -d " + file("f"), 2, "--replication-share 101"},
		{"rate without number", "-c test -a SQLite --replication-rate fast -d " + file("f"), 2, "--replication-rate"},
		{"TLS in part", "-c test -a SQLite --ca x -d " + file("e"), 2, "3 files"},
		{"bad database option", "-c test -a SQLite -d file:" + file("f") + "?x=1", 2, "unknown parameter x"},
		{"no database of MySQL", "-c test -a MySQL -d /neo1", 2, "not of the form [USER[:PASSWORD]@]DATABASE[SOCKET]"},
		{"unknown adapter with an engine", "-c test -a DB2 -e InnoDB -d x", 2, "unknown adapter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stderr := neostorage(t.Context(), strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit %d, stderr %q; want %d, %q", code, stderr, tt.code, tt.want)
			}
		})
	}
}

// A database in a directory that cannot be written to is refused at the start.
func TestReadOnlyDirectory(t *testing.T) {
	// /proc refuses new files to everybody, root included.
	code, stderr := neostorage(t.Context(), "-c", "test", "-a", "SQLite", "-d", "/proc/neo.sqlite")
	if code != 1 || !strings.Contains(stderr, "/proc/neo.sqlite") {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
}

func TestReset(t *testing.T) {
	path := filepath.Join(t.TempDir(), "neo.sqlite")
	db, err := sqlitedb.Open(context.Background(), path, sqlitedb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.SetName("other"); err != nil {
		t.Fatal(err)
	}
	if err := db.SetImportState(proto.Some(`{"root": {"oid": 0, "ltid": 9, "mapping": {}, "shift_oid": 0, "next_oid": 1}}`)); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if code, stderr := neostorage(t.Context(), "-c", "other", "-a", "SQLite", "-d", path); code != 1 || !strings.Contains(stderr, "the import into this database is not finished") {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
	if code, stderr := neostorage(t.Context(), "-c", "test", "-a", "SQLite", "-d", path, "--reset"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if db, err = sqlitedb.Open(context.Background(), path, sqlitedb.Options{}); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if c, err := db.Config(); err != nil || c.Name != "" {
		t.Errorf("configuration after --reset: %+v, %v", c, err)
	}
}

// The command identifies itself as the protocol wants, keeps a log if asked to,
// and ends in order when it is told to, or when the master says so.
func TestRunAndStop(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprintf("down=%v", down), func(t *testing.T) {
			asked := make(chan *proto.RequestIdentification, 1)
			master, err := link.Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, link.Config{Deliver: func(ev link.Event) {
				p, ok := ev.Packet.(*proto.RequestIdentification)
				if !ok {
					return
				}
				ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: 7})
				state := proto.NodePending
				if down {
					state = proto.NodeDown
				}
				ev.Conn.Send(&proto.NotifyNodeInformation{Timestamp: 1, Nodes: []proto.Node{{Type: proto.Storage, ID: 7, Addr: p.Addr, State: state, IDTimestamp: proto.Some(1.0)}}})
				asked <- p
			}}, func(*link.Conn) {})
			if err != nil {
				t.Fatal(err)
			}
			defer master.Close()
			dir := t.TempDir()
			conf := filepath.Join(dir, "neo.conf")
			text := fmt.Sprintf("[DEFAULT]\ncluster: test\nmasters: %v\n[s1]\nadapter: SQLite\ndatabase: %s\nlogfile: %s\ndynamic_master_list: %s\n",
				master.Addr(), filepath.Join(dir, "neo.sqlite"), filepath.Join(dir, "s1.log"), filepath.Join(dir, "masters.json"))
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			type result struct {
				code   int
				stderr string
			}
			ended := make(chan result, 1)
			go func() {
				code, stderr := neostorage(ctx, "-f", conf, "-s", "s1")
				ended <- result{code, stderr}
			}()
			select {
			case p := <-asked:
				if p.Type != proto.Storage || p.Cluster != "test" || p.Addr.Port == 0 || p.ID != 0 {
					t.Errorf("identification: %+v", p)
				}
				if path, ok := p.Extra["devpath"].([]proto.Value); !ok || len(path) != 2 {
					t.Errorf("devpath: %+v", p.Extra["devpath"])
				}
			case r := <-ended:
				t.Fatalf("exit %d: %s", r.code, r.stderr)
			case <-time.After(time.Minute):
				t.Fatal("the node does not identify itself")
			}
			if !down {
				cancel()
			}
			select {
			case r := <-ended:
				if r.code != 0 {
					t.Errorf("exit %d: %s", r.code, r.stderr)
				}
			case <-time.After(time.Minute):
				t.Fatal("the node does not end")
			}
			if info, err := os.Stat(filepath.Join(dir, "s1.log")); err != nil || info.Size() == 0 {
				t.Errorf("log: %v", err)
			}
		})
	}
}
