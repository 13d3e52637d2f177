package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
)

// serverConfig is that of a server for databases of the size of a benchmark. What is committed is durable.
const serverConfig = `[mysqld]
skip-networking
skip-log-bin
skip-name-resolve
character-set-server = binary
max_allowed_packet = 64M
innodb_buffer_pool_size = 256M
innodb_log_file_size = 256M
innodb_flush_log_at_trx_commit = 1
innodb_file_per_table = 1
plugin-load-add = ha_rocksdb.so
rocksdb_flush_log_at_trx_commit = 1
rocksdb_block_cache_size = 256M
rocksdb_max_background_jobs = 2
`

// databaseServer is a private MariaDB server, with its socket and data in a directory of its own.
type databaseServer struct {
	cmd         *exec.Cmd
	socket, dir string
	db          *sql.DB
	databases   int
}

// mariadb returns the path of one of the programs of MariaDB.
func mariadb(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no database server: %w (on Debian: apt-get install mariadb-server mariadb-plugin-rocksdb)", err)
	}
	return path, nil
}

// startServer starts a server with new, empty data.
func startServer(ctx context.Context, dir string) (s *databaseServer, err error) {
	install, err := mariadb("mariadb-install-db")
	if err != nil {
		return nil, err
	}
	daemon, err := mariadb("mariadbd")
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	s = &databaseServer{socket: filepath.Join(dir, "s"), dir: filepath.Join(dir, "data")}
	conf, log := filepath.Join(dir, "my.cnf"), filepath.Join(dir, "log")
	if err := os.WriteFile(conf, []byte(serverConfig), 0o600); err != nil {
		return nil, err
	}
	// --defaults-file, the first one, keeps the programs from reading the configuration of the machine.
	args := []string{"--defaults-file=" + conf, "--datadir=" + s.dir}
	if os.Getuid() == 0 {
		args = append(args, "--user=root") // or it refuses to run
	}
	if err := quiet(exec.CommandContext(ctx, install, append(args, "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")...)); err != nil {
		return nil, err
	}
	s.cmd = exec.CommandContext(ctx, daemon, append(args, "--socket="+s.socket, "--pid-file="+filepath.Join(dir, "pid"), "--log-error="+log)...)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			text, _ := os.ReadFile(log) // it only explains
			err = fmt.Errorf("mariadbd: %w\n%s", err, text)
			s.stop()
		}
	}()
	c := mysql.NewConfig()
	c.User, c.Net, c.Addr, c.Collation, c.Logger = "root", "unix", s.socket, "binary", &mysql.NopLogger{}
	c.MaxAllowedPacket = 0 // that of the server
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return s, err
	}
	s.db = sql.OpenDB(connector)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := s.db.PingContext(ctx); err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return s, err
		}
	}
}

func (s *databaseServer) stop() {
	if s.db != nil {
		s.db.Close() // the server ends
	}
	s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	s.cmd.Wait()                          // its status is of no interest
}

// create makes an empty database and returns its name.
func (s *databaseServer) create(ctx context.Context) (string, error) {
	s.databases++
	name := fmt.Sprint("neo", s.databases)
	_, err := s.db.ExecContext(ctx, "CREATE DATABASE "+name)
	return name, err
}

// url returns the database string of a database.
func (s *databaseServer) url(name string) string { return "root@" + name + s.socket }

// roundTrip returns the median time of SELECT 1 on one connection.
func (s *databaseServer) roundTrip(ctx context.Context) (median time.Duration, err error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stmt, err := conn.PrepareContext(ctx, "SELECT 1")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	var f figures
	for range 3000 {
		begun, one := time.Now(), 0
		if err := stmt.QueryRowContext(ctx).Scan(&one); err != nil {
			return 0, err
		}
		f.latencies = append(f.latencies, time.Since(begun))
	}
	return f.quantile(.5), nil
}

// Rows of the floor of an engine: so many of 2 kB in each statement, which is committed.
const (
	floorRows       = 256
	floorStatements = 40
)

// inserts returns how many rows of 2 kB an engine takes per second in statements of many
// rows, and the median time of one row and a COMMIT.
func (s *databaseServer) inserts(ctx context.Context, engine string) (rate float64, one time.Duration, err error) {
	name, err := s.create(ctx)
	if err != nil {
		return 0, 0, err
	}
	table := name + ".floor"
	text := "CREATE TABLE " + table + " (id BIGINT UNSIGNED NOT NULL PRIMARY KEY, value MEDIUMBLOB NOT NULL) ENGINE = " + engine
	if _, err := s.db.ExecContext(ctx, text); err != nil {
		return 0, 0, err
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	id := 0
	insert := func(rows int) (func() error, error) {
		stmt, err := conn.PrepareContext(ctx, "INSERT INTO "+table+" VALUES (?,?)"+strings.Repeat(",(?,?)", rows-1))
		if err != nil {
			return nil, err
		}
		return func() error {
			args := make([]any, 0, 2*rows)
			for range rows {
				id++
				args = append(args, id, body(2000, id%16))
			}
			_, err := stmt.ExecContext(ctx, args...)
			return err
		}, nil
	}
	many, err := insert(floorRows)
	if err != nil {
		return 0, 0, err
	}
	var took time.Duration
	for range floorStatements {
		begun := time.Now()
		if err := many(); err != nil {
			return 0, 0, err
		}
		took += time.Since(begun)
	}
	single, err := insert(1)
	if err != nil {
		return 0, 0, err
	}
	var f figures
	for range 200 {
		begun := time.Now()
		if err := single(); err != nil {
			return 0, 0, err
		}
		f.latencies = append(f.latencies, time.Since(begun))
	}
	_, err = s.db.ExecContext(ctx, "DROP DATABASE "+name)
	return floorRows * floorStatements / took.Seconds(), f.quantile(.5), err
}

// compact makes RocksDB write all that it has in memory, and drop what is gone.
func (s *databaseServer) compact(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, "SET GLOBAL rocksdb_force_flush_memtable_now = 1"); err != nil {
		return err
	}
	rows, err := s.db.QueryContext(ctx, "SELECT DISTINCT cf_name FROM information_schema.rocksdb_cf_options WHERE cf_name != '__system__'")
	if err != nil {
		return err
	}
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return errors.Join(err, rows.Close())
		}
		names = append(names, name)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := s.db.ExecContext(ctx, "SET GLOBAL rocksdb_compact_cf = '"+name+"'"); err != nil {
			return err
		}
	}
	return nil
}

// diskUse returns the bytes of all files below a directory whose names end with suffix.
func diskUse(dir, suffix string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, suffix) {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil // RocksDB removes what it has compacted
		}
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
