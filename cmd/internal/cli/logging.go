package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/spf13/pflag"
)

// Logging is the option group of whatever can keep a log.
type Logging struct {
	LogFile string // -l
	LogSize int    // in MB; 0: no limit

	level   logLevel
	format  string
	service bool   // says when it ends
	notes   []note // to be logged when the log is open
}

// note is a record of level INFO.
type note struct {
	text  string
	attrs []any
}

// AddFlags defines -l, --logfile-size, --log-level and --log-format. What is written to
// stderr are warnings, unless [Logging.Informs] is called.
func (o *Logging) AddFlags(fs *pflag.FlagSet) {
	Path(fs, &o.LogFile, "logfile", "l", "", "keep a log in this SQLite database")
	fs.IntVar(&o.LogSize, "logfile-size", nodelog.DefaultMaxSize>>20,
		"size in MB at which the log is renamed to NAME.old, in place of the one before, and a new one begun; 0: never")
	o.level = logLevel(slog.LevelWarn)
	fs.Var(&o.level, logLevelOption, "what is written to stderr, at least: "+strings.Join(levelNames, ", "))
	o.format = "text"
	fs.Var((*logFormat)(&o.format), "log-format", "how it is written to stderr: text, or json with an object in each line")
	InFull(fs, "logfile-size", logLevelOption, "log-format")
}

const logLevelOption = "log-level"

// Informs makes INFO the level of what is written to stderr by default, for a command that
// runs as a service. It comes after [Logging.AddFlags].
func (o *Logging) Informs(fs *pflag.FlagSet) {
	o.level, o.service = logLevel(slog.LevelInfo), true
	fs.Lookup(logLevelOption).DefValue = o.level.String()
}

// Quiet makes a command that informs write warnings alone, unless the level was given.
func (o *Logging) Quiet(fs *pflag.FlagSet) {
	if !fs.Changed(logLevelOption) {
		o.level = logLevel(slog.LevelWarn)
	}
}

// note logs something once the log is open.
func (o *Logging) note(text string, attrs ...any) { o.notes = append(o.notes, note{text, attrs}) }

// levelNames are the values of --log-level.
var levelNames = []string{"debug", "info", "warning", "error"}

var levels = []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}

// logLevel is the value of --log-level.
type logLevel slog.Level

func (l *logLevel) Set(s string) error {
	i := slices.Index(levelNames, strings.ToLower(s))
	if i < 0 {
		return fmt.Errorf("%q is none of %s%s", s, strings.Join(levelNames, ", "), conf.DidYouMean(s, levelNames))
	}
	*l = logLevel(levels[i])
	return nil
}

func (l *logLevel) String() string {
	if i := slices.Index(levels, slog.Level(*l)); i >= 0 {
		return levelNames[i]
	}
	return slog.Level(*l).String()
}
func (l *logLevel) Type() string { return "level" }

// logFormat is the value of --log-format.
type logFormat string

func (f *logFormat) Set(s string) error {
	switch s = strings.ToLower(s); s {
	case "text", "json":
		*f = logFormat(s)
		return nil
	}
	return fmt.Errorf("%q is neither text nor json", s)
}
func (f *logFormat) String() string { return string(*f) }
func (f *logFormat) Type() string   { return "format" }

// maxBody is the size in bytes of the arguments of a packet above which they are
// left out of the log: lists of thousands of objects tell nothing.
const maxBody = 64 << 10

// Log is where a command logs: to stderr from some level on, and everything to the log
// database if there is one.
type Log struct {
	*slog.Logger
	File *nodelog.Log  // nil without log database
	Node *nodelog.Node // of File, nil without: takes packets and the node's identity

	end *slog.Logger // told how the command ends; nil: nothing
}

// OpenLog opens the log of a command. Close it at the end.
func (o *Logging) OpenLog(env *Env) (*Log, error) {
	return o.openLog(env, nodelog.Config{Path: o.LogFile})
}

// OpenUnbufferedLog is OpenLog for a short command: everything is written at once.
func (o *Logging) OpenUnbufferedLog(env *Env) (*Log, error) {
	return o.openLog(env, nodelog.Config{Path: o.LogFile, Backlog: -1})
}

func (o *Logging) openLog(env *Env, cfg nodelog.Config) (*Log, error) {
	if o.LogSize < 0 {
		return nil, Usagef("--logfile-size must be 0 MB or more")
	}
	log, err := o.open(o.stderr(env), cfg)
	if err != nil {
		return nil, err
	}
	for _, n := range o.notes {
		log.Info(n.text, n.attrs...)
	}
	o.notes = nil
	if o.service {
		// Why a command fails is written to stderr as its error.
		ends := []slog.Handler{slog.DiscardHandler}
		if log.Node != nil {
			ends = append(ends, log.Node.Handler())
		}
		if o.format == "json" {
			ends = append(ends, o.stderr(env))
		}
		log.end = slog.New(slog.NewMultiHandler(ends...))
	}
	return log, nil
}

// stderr returns what writes to stderr.
func (o *Logging) stderr(env *Env) slog.Handler {
	level := slog.Level(o.level)
	if o.format == "json" {
		return nodelog.NewJSONHandler(env.Stderr, level)
	}
	if toJournal(env) {
		return nodelog.NewJournalHandler(env.Stderr, level)
	}
	return nodelog.NewTextHandler(env.Stderr, level)
}

func (o *Logging) open(stderr slog.Handler, cfg nodelog.Config) (*Log, error) {
	if o.LogFile == "" {
		return &Log{Logger: slog.New(stderr)}, nil
	}
	cfg.MaxBody = maxBody
	cfg.Trouble = slog.New(stderr)
	cfg.MaxSize = int64(o.LogSize) << 20
	if o.LogSize == 0 {
		cfg.MaxSize = -1
	}
	file, err := nodelog.Open(cfg)
	if err != nil {
		return nil, err
	}
	node := file.Node("")
	return &Log{Logger: slog.New(slog.NewMultiHandler(stderr, node.Handler())), File: file, Node: node}, nil
}

// LinkConfig returns what the links of a node have in common: they log here, and
// record their packets.
func (l *Log) LinkConfig(tls *tls.Config) link.Config {
	cfg := link.Config{TLS: tls, Log: l.Logger, PeerTimeout: link.DefaultPeerTimeout}
	if l.Node != nil {
		cfg.Record = l.record
	}
	return cfg
}

// record records a packet.
func (l *Log) record(sent bool, peer string, id uint32, p proto.Packet) {
	b := proto.Append(nil, id, withoutData(p))
	l.Node.Packet(nodelog.Packet{Sent: sent, Peer: peer, MsgID: id, Code: p.Code(), Body: arguments(b)})
}

// withoutData returns a packet without the data of its object: the log tells which
// object went where, its checksum tells which data, and the data are not for
// everyone who may see a log.
func withoutData(p proto.Packet) proto.Packet {
	switch p := p.(type) {
	case *proto.AskStoreObject:
		q := *p
		q.Data = nil
		return &q
	case *proto.AnswerObject:
		q := *p
		q.Data = nil
		return &q
	case *proto.AddObject:
		q := *p
		q.Data = nil
		return &q
	case *proto.AnswerRelockObject:
		if p.Conflict != nil && p.Conflict.Data != nil {
			q, c, d := *p, *p.Conflict, *p.Conflict.Data
			d.Data = nil
			c.Data, q.Conflict = &d, &c
			return &q
		}
	}
	return p
}

// arguments returns the third element of a message, an array of three.
func arguments(msg []byte) []byte {
	i := 1
	for range 2 { // unsigned integers: message id and code
		switch msg[i] {
		case 0xcc:
			i += 2
		case 0xcd:
			i += 3
		case 0xce:
			i += 5
		default:
			i++
		}
	}
	return msg[i:]
}

// FlushFile has what is still in memory written to the log database, if there is
// one. It does not wait for it.
func (l *Log) FlushFile() { l.File.FlushSoon() }

// End closes the log at the end of a command, which has failed if *err is not nil:
// its packets are written then. A log that cannot be written has said so on stderr,
// and makes no command fail.
func (l *Log) End(err *error) {
	if l.end != nil && *err == nil {
		l.Info("stopped")
	} else if l.end != nil {
		l.end.Error("ended", "err", *err)
	}
	if *err != nil {
		l.File.FlushSoon()
	}
	_ = l.File.Close()
}

// Crashed is to be deferred before the work of a command: it writes the backlog
// when the goroutine panics, which goes on.
func (l *Log) Crashed() {
	if v := recover(); v != nil {
		l.Error("crash, pre-mortem data follow", "panic", v, "goroutines", goroutines())
		_ = l.File.Flush() // what fails is told where it fails
		panic(v)
	}
}

// HandleSignals obeys the signals of NEO until ctx ends: SIGRTMIN writes the log
// backlog, +1 reopens the log file, +2 logs the state of the node as dump writes
// it, +3 logs what all goroutines do. dump may be nil. The result waits for the end.
func (l *Log) HandleSignals(ctx context.Context, dump func(io.Writer)) (wait func()) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, sigReopen, sigDump, sigDebug)
	stopFlush, err := notifyFlush(c)
	if err != nil {
		l.Error("SIGRTMIN is not obeyed", "err", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer stopFlush()
		defer signal.Stop(c)
		for {
			select {
			case <-ctx.Done():
				return
			case sig := <-c:
				if err := l.obey(sig, dump); err != nil {
					l.Error("signal not obeyed", "signal", sig, "err", err)
				}
			}
		}
	}()
	return func() { <-done }
}

// The signals of NEO, from SIGRTMIN as the C library has it.
const (
	sigFlush  = syscall.Signal(34)
	sigReopen = syscall.Signal(35)
	sigDump   = syscall.Signal(36)
	sigDebug  = syscall.Signal(37)
)

func (l *Log) obey(sig os.Signal, dump func(io.Writer)) error {
	switch sig {
	case sigFlush:
		return l.File.Flush()
	case sigReopen:
		return l.File.Reopen()
	case sigDump:
		if dump == nil {
			return errors.New("this command has no state to show")
		}
		var b strings.Builder
		dump(&b)
		l.Info("state\n" + b.String())
	case sigDebug:
		l.Info("goroutines\n" + goroutines())
	}
	return l.File.Flush()
}

func goroutines() string {
	var b strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&b, 2); err != nil {
		return err.Error()
	}
	return b.String()
}
