package cli

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Each signal of NEO reaches the process, SIGRTMIN too, and what it asks for can
// then be read from the log file.
func TestSignals(t *testing.T) {
	o := Logging{LogFile: filepath.Join(t.TempDir(), "node.log"), level: logLevel(slog.LevelWarn)}
	var stderr bytes.Buffer
	log, err := o.OpenLog(&Env{Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	wait := log.HandleSignals(ctx, func(w io.Writer) { io.WriteString(w, "partition table: UU") })

	log.Debug("first of all")
	for _, step := range []struct {
		sig  syscall.Signal
		want string
	}{
		{sigFlush, "first of all"},
		{sigDump, "partition table: UU"},
		{sigDebug, "goroutine "},
		{sigReopen, "partition table: UU"},
		{sigFlush, "first of all"}, // still, after another one
	} {
		if err := syscall.Kill(syscall.Getpid(), step.sig); err != nil {
			t.Fatal(err)
		}
		waitFor(t, o.LogFile, step.want)
	}
	cancel()
	wait()
	log.End(&err)
	if stderr.Len() > 0 {
		t.Errorf("stderr: %s", stderr.String())
	}
}

func waitFor(t *testing.T, file, text string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		for e, err := range nodelog.Read(t.Context(), file, time.Time{}) {
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(e.Msg, text) {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no record with %q in the log", text)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestWarningsGoToStderr(t *testing.T) {
	var stderr bytes.Buffer
	var o Logging
	o.AddFlags(pflag.NewFlagSet("", pflag.ContinueOnError))
	log, err := o.OpenLog(&Env{Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("disk full", "path", "/data with space", "free", 0)
	got := stderr.String()
	if strings.Contains(got, "quiet") || !strings.Contains(got, ` WARNING  disk full `) ||
		!strings.HasSuffix(got, ` disk full path="/data with space" free=0`+"\n") {
		t.Errorf("stderr: %q", got)
	}
	log.End(&err)
}

// What is recorded of a packet is what neolog reads: the array of arguments alone.
func TestRecordedPackets(t *testing.T) {
	o := Logging{LogFile: filepath.Join(t.TempDir(), "node.log")}
	log, err := o.OpenLog(&Env{Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	record := log.LinkConfig(nil).Record
	for _, id := range []uint32{0, 127, 128, 255, 256, 65535, 65536, 1<<32 - 1} {
		record(true, "M1 (127.0.0.1:10000)", id, &proto.SetNumReplicas{Replicas: 2})
		record(false, "M1 (127.0.0.1:10000)", id, &proto.Error{Message: "x"})
	}
	log.FlushFile()
	log.End(&err)
	want := []string{"91" + "02", "92" + "00" + "c4" + "01" + "78"}
	n := 0
	for e, err := range nodelog.Read(t.Context(), o.LogFile, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(e.Packet.Body); got != want[n%2] {
			t.Errorf("%s: body %s, want %s", proto.CodeName(e.Packet.Code), got, want[n%2])
		}
		n++
	}
	if n != 16 {
		t.Errorf("%d packets, want 16", n)
	}
}

func TestTLSWantsThreeFiles(t *testing.T) {
	if cfg, err := (&TLS{}).TLSConfig(); cfg != nil || err != nil {
		t.Errorf("without files: %v, %v", cfg, err)
	}
	if _, err := (&TLS{CA: "a", Cert: "b"}).TLSConfig(); err == nil || !strings.Contains(err.Error(), "3 files must be provided") {
		t.Errorf("with two files: %v", err)
	}
}

// A log has no data of objects, and no endless lists.
func TestRecordedPacketsHaveNoData(t *testing.T) {
	o := Logging{LogFile: filepath.Join(t.TempDir(), "node.log")}
	log, err := o.OpenLog(&Env{Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	secret := proto.ObjectData{Checksum: proto.Hash{1}, Data: []byte("the data of an object")}
	record := log.LinkConfig(nil).Record
	packets := []proto.Packet{
		&proto.AskStoreObject{OID: 1, ObjectData: secret},
		&proto.AnswerObject{OID: 1, ObjectData: secret},
		&proto.AddObject{OID: 1, ObjectData: secret},
		&proto.AnswerRelockObject{Conflict: &proto.RelockConflict{Data: &secret}},
		&proto.AnswerRelockObject{},
	}
	for _, p := range packets {
		record(true, "S1", 0, p)
	}
	record(true, "S1", 0, &proto.InvalidateObjects{OIDs: make([]tid.OID, 10000)})
	log.FlushFile()
	log.End(&err)
	n := 0
	for e, err := range nodelog.Read(t.Context(), o.LogFile, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(e.Packet.Body, secret.Data) || (len(e.Packet.Body) == 0) != (n == len(packets)) {
			t.Errorf("%s: body %q", proto.CodeName(e.Packet.Code), e.Packet.Body)
		}
		n++
	}
	if n != len(packets)+1 || len(secret.Data) == 0 {
		t.Errorf("%d packets", n)
	}
}

// What goes to stderr has the level and the form that were asked for: text for people, JSON
// for programs, and what the journal of systemd understands.
func TestLogFormats(t *testing.T) {
	build := func(env *Env) *cobra.Command {
		var o Logging
		cmd := &cobra.Command{Use: "neox", RunE: func(*cobra.Command, []string) (err error) {
			log, err := o.OpenLog(env)
			if err != nil {
				return err
			}
			defer log.End(&err)
			log.Debug("a detail")
			log.Info("listening on", "addr", "127.0.0.1:1")
			log.Warn("lost", "tid", tid.TID(255), "took", 1500*time.Millisecond, "err", errors.New("no disk"), "n", 3)
			return nil
		}}
		o.AddFlags(cmd.Flags())
		o.Informs(cmd.Flags())
		return cmd
	}
	for _, tt := range []struct{ args, want string }{
		{"", `^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO     listening on addr=127\.0\.0\.1:1\n.* WARNING  lost tid=00000000000000ff took=1\.5s err="no disk" n=3\n.* INFO     stopped\n$`},
		{"--log-level warning", `^\S+ \S+ WARNING  lost .*\n$`},
		{"--log-level Debug", `^\S+ \S+ DEBUG    a detail\n`},
		{"--log-format json", `^\{"time":"[^"]+","level":"INFO","msg":"listening on","addr":"127\.0\.0\.1:1"\}\n\{"time":"[^"]+","level":"WARNING","msg":"lost","tid":"00000000000000ff","took":"1\.5s","err":"no disk","n":3\}\n`},
	} {
		_, _, stderr := run(t, build, strings.Fields(tt.args)...)
		if !regexp.MustCompile(tt.want).MatchString(stderr) {
			t.Errorf("%s: got\n%swant %s", tt.args, stderr, tt.want)
		}
	}

	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || runtime.GOOS != "linux" {
		t.Skip("there is no journal")
	}
	stream := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	Run(t.Context(), &Env{Stderr: f, Getenv: func(string) string { return stream }}, build)
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if want := "<6>INFO     listening on addr=127.0.0.1:1\n<4>WARNING  lost "; !strings.HasPrefix(string(got), want) {
		t.Errorf("to the journal: %s", got)
	}
}
