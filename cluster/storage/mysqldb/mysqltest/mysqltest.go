// Package mysqltest runs a database server for the tests of a package: a private one,
// with a socket and a data directory of its own, that starts when it is first needed and ends with the
// process of the tests, however that ends.
//
// # Where it comes from
//
// The programs mariadbd and mariadb-install-db are found by PATH, and below /usr/sbin. On Debian
// they are in package mariadb-server, and RocksDB in mariadb-plugin-rocksdb.
package mysqltest

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Server is a running database server.
type Server struct {
	Socket string
	Wrap   []string // program with arguments that is to run the server, as of another network
	dir    string
	data   string   // directory of the data
	more   []string // options of each start
	m      sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{} // the process of cmd has
	count  atomic.Int64
}

// config is what all servers have. Nothing is flushed to the disk. A server that is to be killed needs
// rocksdb_flush_log_at_trx_commit = 1: else RocksDB keeps what is committed in the memory of its process.
const config = `[mysqld]
skip-networking
skip-log-bin
skip-name-resolve
character-set-server = utf8mb4
max_allowed_packet = 64M
max_connections = 2000
performance_schema = OFF
innodb_buffer_pool_size = 128M
innodb_log_file_size = 96M
innodb_flush_log_at_trx_commit = 2
innodb_flush_method = nosync
innodb_doublewrite = OFF
innodb_stats_persistent = OFF
innodb_file_per_table = OFF
sync_frm = OFF
debug_no_sync = ON
plugin-load-add = ha_rocksdb.so
rocksdb_flush_log_at_trx_commit = 2
rocksdb_block_cache_size = 64M
rocksdb_max_background_jobs = 2
`

var shared struct {
	once sync.Once
	s    *Server
	err  error
}

// Missing ends a test for which the machine lacks something. Where all tests must
// run, with CI or NEO_TEST_PEERS=required in the environment, the test has failed;
// elsewhere it is left out.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" || os.Getenv("NEO_TEST_PEERS") == "required" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// errMissing reports that the programs are not installed.
var errMissing = errors.New("no database server (make install-database-server, or on Debian: apt-get install mariadb-server mariadb-plugin-rocksdb)")

// Get returns the server that the tests of a package share. [Main] ends it. A test that
// stops it starts it again, and does not run beside others.
func Get(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() { shared.s, shared.err = newServer("") })
	return made(t, shared.s, shared.err)
}

func made(t testing.TB, s *Server, err error) *Server {
	t.Helper()
	if errors.Is(err, errMissing) {
		Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// New returns a server that a test has for itself, with more options for each of its starts, and its data in
// dir, which is empty; "": in a directory of the server.
func New(t testing.TB, dir string, options ...string) *Server {
	t.Helper()
	s, err := newServer(dir, options...)
	s = made(t, s, err)
	t.Cleanup(s.close)
	return s
}

// Main runs the tests of a package and ends the server that they have shared. It returns
// the status to exit with.
func Main(m *testing.M) int {
	status := m.Run()
	if shared.s != nil {
		shared.s.close()
	}
	return status
}

func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: %v", errMissing, err)
	}
	return path, nil
}

func newServer(data string, options ...string) (s *Server, err error) {
	install, err := program("mariadb-install-db")
	if err != nil {
		return nil, err
	}
	if err := removeLeft(); err != nil {
		return nil, err
	}
	// The name has the process, so that the next one sees when it is left over.
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		return nil, err
	}
	s = &Server{dir: dir, Socket: filepath.Join(dir, "s"), data: data, more: options}
	if data == "" {
		s.data = filepath.Join(dir, "data")
	}
	made := s // s is nil when an error is returned
	defer func() {
		if err != nil {
			made.close()
		}
	}()
	if err := os.WriteFile(s.conf(), []byte(config), 0o600); err != nil {
		return nil, err
	}
	out, err := exec.Command(install, append(append(s.args(), options...), "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mariadb-install-db: %w\n%s", err, out)
	}
	return s, s.Start()
}

// prefix begins the names of the directories of servers.
const prefix = "mysqltest-"

// removeLeft removes what processes have left that were killed.
func removeLeft() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*-*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		pid, err := strconv.Atoi(number)
		if err != nil || pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue // it runs, or is none of ours
		}
		info, err := os.Lstat(dir)
		if err != nil {
			continue // another process removes it
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Getuid() {
			continue // another user's, who removes it
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) conf() string { return filepath.Join(s.dir, "my.cnf") }

// args are the options of all programs. --defaults-file, the first one, keeps them from
// reading the configuration of the machine.
func (s *Server) args() []string {
	args := []string{"--defaults-file=" + s.conf(), "--datadir=" + s.data}
	if os.Getuid() == 0 {
		args = append(args, "--user=root") // or it refuses to run
	}
	return args
}

// Start starts the server, with more options, after Kill or Stop. It returns when the server
// answers.
func (s *Server) Start(options ...string) error {
	path, err := program("mariadbd")
	if err != nil {
		return err
	}
	log := filepath.Join(s.dir, "log.err") // the server adds .err to a name without
	words := slices.Concat(s.Wrap, []string{path}, s.args(), s.more, []string{"--socket=" + s.Socket, "--pid-file=" + filepath.Join(s.dir, "pid"), "--log-error=" + log}, options)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.SysProcAttr = childAttr()
	ended := make(chan struct{})
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait() // tests kill it
		close(ended)
	}()
	s.m.Lock()
	s.cmd, s.ended = cmd, ended
	s.m.Unlock()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		dc, err := s.connect("")
		if err == nil {
			return dc.Close()
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log)
			return fmt.Errorf("mariadbd has ended: %v\n%s", cmd.ProcessState, text)
		default:
		}
		if time.Since(begin) > 5*time.Minute {
			return fmt.Errorf("mariadbd does not answer: %w", err)
		}
	}
}

// Kill ends the process of the server as a crash does.
func (s *Server) Kill() { s.end(os.Kill) }

// Stop ends the server in order.
func (s *Server) Stop() { s.end(os.Interrupt) }

func (s *Server) end(sig os.Signal) {
	s.m.Lock()
	defer s.m.Unlock()
	if s.cmd == nil {
		return
	}
	if sig == os.Interrupt {
		sig = terminate
	}
	_ = s.cmd.Process.Signal(sig) // it may have ended
	<-s.ended
	s.cmd = nil
}

func (s *Server) close() {
	s.Kill()
	if err := os.RemoveAll(s.dir); err != nil {
		fmt.Fprintln(os.Stderr, "mysqltest:", err)
	}
}

func (s *Server) connect(database string) (driver.Conn, error) {
	c := mysql.NewConfig()
	c.User, c.Net, c.Addr, c.DBName, c.Logger = "root", "unix", s.Socket, database, &mysql.NopLogger{}
	c.Collation, c.MultiStatements = "utf8mb4_general_ci", true
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return connector.Connect(context.Background())
}

// Database makes an empty database, which is dropped when the test ends. It returns its name.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprint("neo", s.count.Add(1))
	s.Exec(t, "", "CREATE DATABASE "+name)
	t.Cleanup(func() {
		s.Disconnect(t, name)
		s.Exec(t, "", "DROP DATABASE "+name)
	})
	return name
}

// Log returns what the server has logged.
func (s *Server) Log() string {
	text, err := os.ReadFile(filepath.Join(s.dir, "log.err"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Running reports that the process of the server has not ended.
func (s *Server) Running() bool {
	s.m.Lock()
	defer s.m.Unlock()
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// String returns the database string of a database.
func (s *Server) String(database string) string { return "root@" + database + s.Socket }

// Exec runs statements, separated by semicolons.
func (s *Server) Exec(t testing.TB, database, statements string) {
	t.Helper()
	dc, err := s.connect(database)
	if err == nil {
		_, err = dc.(driver.ExecerContext).ExecContext(context.Background(), statements, nil)
		err = errors.Join(err, dc.Close())
	}
	if err != nil {
		t.Fatalf("%.300s: %v", statements, err)
	}
}

// Query returns the rows of a query, as the values of their columns with spaces between them,
// NULL as "<nil>".
func (s *Server) Query(t testing.TB, database, query string) []string {
	t.Helper()
	lines, err := s.query(database, query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return lines
}

func (s *Server) query(database, query string) (lines []string, err error) {
	dc, err := s.connect(database)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dc.Close()) }()
	rows, err := dc.(driver.QueryerContext).QueryContext(context.Background(), query, nil)
	if err != nil {
		return nil, err
	}
	values := make([]driver.Value, len(rows.Columns()))
	for {
		if err := rows.Next(values); err == io.EOF {
			return lines, rows.Close()
		} else if err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		var texts []string
		for _, v := range values {
			if b, ok := v.([]byte); ok {
				v = string(b)
			}
			texts = append(texts, fmt.Sprint(v))
		}
		lines = append(lines, strings.Join(texts, " "))
	}
}

// Disconnect ends all connections to a database and waits until the server has forgotten them.
func (s *Server) Disconnect(t testing.TB, database string) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		ids := s.Query(t, "", "SELECT id FROM information_schema.processlist WHERE db = '"+database+"'")
		if len(ids) == 0 {
			return
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("connections %v do not end", ids)
		}
		for _, id := range ids {
			_, err := s.query("", "KILL "+id)
			if e, ok := errors.AsType[*mysql.MySQLError](err); err != nil && (!ok || e.Number != 1094) { // it has ended
				t.Fatal(err)
			}
		}
	}
}
