package proctest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/tid"
)

var (
	snapshotRounds = flag.Int("snapshot-rounds", 6, "writers killed by TestFollowKilled")
	snapshotSeed   = flag.Uint64("snapshot-seed", 0, "seed of TestFollowKilled; 0 chooses one")
)

// repository is a backup repository with its configuration file and the identity that opens it.
type repository struct {
	dir, conf, identity string
}

// newRepository makes a repository of a source; at a URL, or in a directory if that is empty.
func newRepository(t testing.TB, source, url string, options ...string) *repository {
	t.Helper()
	dir := t.TempDir()
	r := &repository{filepath.Join(dir, "repository"), filepath.Join(dir, "neobackup.conf"), filepath.Join(dir, "operator.txt")}
	if url == "" {
		if err := os.Mkdir(r.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		url = "file://" + r.dir
	}
	recipient, _ := must(t, "neobackup", "key", "generate", r.identity)
	must(t, "neobackup", append([]string{
		"init", url, "-f", r.conf, "--name", "test", "--source", source, "--recipient", strings.TrimSpace(recipient), "--single-recipient", "--set", "state_dir=" + filepath.Join(dir, "state"),
	}, options...)...)
	return r
}

// run runs neobackup on the repository.
func (r *repository) run(t testing.TB, args ...string) string {
	t.Helper()
	out, _ := must(t, "neobackup", append(args, "-f", r.conf)...)
	return out
}

// restore restores a Data.fs and returns its path.
func (r *repository) restore(t testing.TB, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored.fs")
	r.run(t, append([]string{"restore", "--identity", r.identity, path}, args...)...)
	return path
}

// head returns what the repository has.
func (r *repository) head(t testing.TB) tid.TID {
	t.Helper()
	var info struct{ Head struct{ TID string } }
	if err := json.Unmarshal([]byte(r.run(t, "info", "--json")), &info); err != nil {
		t.Fatal(err)
	}
	if info.Head.TID == "" {
		return tid.Zero
	}
	at, err := tid.Parse(info.Head.TID)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func first(a, _ string) string { return a }

// A restored Data.fs is what an export of the source is, whatever is in it.
func TestSnapshotOfFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(samples + "/*.fs")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			source := write(t, "Data.fs", read(t, file))
			want := filepath.Join(t.TempDir(), "export.fs")
			must(t, "neoexport", "-q", source, want)
			r := newRepository(t, "file://"+source, "")
			r.run(t, "snapshot")
			if r.head(t) == tid.Zero {
				return // there is nothing to restore
			}
			sameFiles(t, r.restore(t, "--magic", string(read(t, source)[:4])), want)
			r.run(t, "verify", "--identity", r.identity)
			r.run(t, "verify", "--against", "--identity", r.identity)
			r.run(t, "check")
		})
	}
}

// A writer that follows a cluster in which clients commit is killed again and again. What it
// has acknowledged stays, and in the end all is there, once.
func TestFollowKilled(t *testing.T) {
	seed := *snapshotSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-snapshot-seed=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := StartCluster(t, Options{Storages: 2, Partitions: 6})
	r := newRepository(t, "neo://"+c.Name+"@"+c.Masters, "", "--set", "interval=100ms")
	w := startWorkload(t, c, 3)
	p := Start(t, "neobackup", "follow", "-f", r.conf)
	var head tid.TID
	for round := range *snapshotRounds {
		time.Sleep(time.Duration(rnd.IntN(800)) * time.Millisecond)
		if !p.Running() {
			t.Fatalf("round %d: follow has ended by itself", round)
		}
		at := r.head(t)
		if at < head {
			t.Fatalf("round %d: the repository ends with %v, it had %v", round, at, head)
		}
		head = at
		p.Kill()
		if at := r.head(t); at < head {
			t.Fatalf("round %d: after the kill, the repository ends with %v, it had %v", round, at, head)
		}
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	w.finish(t)
	last := w.lastAcknowledged()
	for deadline := time.Now().Add(patience); r.head(t) < last; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) || !p.Running() {
			t.Fatalf("the repository ends with %v, the cluster with %v", r.head(t), last)
		}
	}
	if err := p.Stop(t); err != nil {
		t.Errorf("follow, told to stop, ended with %v", err)
	}
	export := filepath.Join(t.TempDir(), "export.fs")
	c.export(t, export)
	sameFiles(t, r.restore(t), export)
	r.run(t, "verify", "--identity", r.identity)
	r.run(t, "check")
	// And the cluster can be followed again from where it is.
	says(t, "snapshot", r.run(t, "snapshot"), `: 0 transactions more`)
	t.Logf("%d rounds, %d transactions", *snapshotRounds, w.acknowledged())
}

// A cluster with TLS is backed up, and restored into another one while that runs.
func TestSnapshotOfCluster(t *testing.T) {
	t.Parallel()
	tls := certificates(t)
	c := StartCluster(t, Options{Storages: 2, Replicas: 1, TLS: tls})
	must(t, "neomigrate", append([]string{"-q", "-c", c.Name, samples + "/site.fs", c.Masters}, tls...)...)
	r := newRepository(t, "neo://"+c.Name+"@"+c.Masters, "", "--set", "ca="+tls[1], "--set", "cert="+tls[3], "--set", "key="+tls[5])
	says(t, "snapshot", r.run(t, "snapshot", "--json"), `"transactions":334`)
	says(t, "verify", r.run(t, "verify", "--against", "--identity", r.identity), `334 transactions compared`, `found: 0 faults`)
	sameBytes(t, r.restore(t), read(t, samples+"/site.fs"))

	to := StartCluster(t, Options{Name: "restored", Storages: 2, Partitions: 6})
	target := "neo://" + to.Name + "@" + to.Masters
	r.run(t, "restore", "--at", "2026-01-15", "--identity", r.identity, target)
	refused(t, 1, []string{`not empty`}, "neobackup", "restore", "-f", r.conf, "--identity", r.identity, target)
	r.run(t, "restore", "--append", "--identity", r.identity, target)
	out := filepath.Join(t.TempDir(), "out.fs")
	to.export(t, out)
	sameBytes(t, out, read(t, samples+"/site.fs"))
	// The restored cluster is a source of the same repository.
	conf := write(t, "plain.conf", regexp.MustCompile(`(?m)^(ca|cert|key): .*\n`).ReplaceAll(read(t, r.conf), nil))
	says(t, "snapshot", first(must(t, "neobackup", "snapshot", "-f", conf, "--source", target)), `: 0 transactions more`)
}

// Of two writers one goes on, wherever they run.
func TestTwoWriters(t *testing.T) {
	t.Parallel()
	source := write(t, "Data.fs", read(t, samples+"/site.fs"))
	r := newRepository(t, "file://"+source, "")
	p := Start(t, "neobackup", "follow", "-f", r.conf, "--set", "heartbeat=1s")
	for deadline := time.Now().Add(patience); r.head(t) == tid.Zero; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is stored")
		}
	}
	// On the same host the state directory tells.
	refused(t, 6, []string{`another process uses this state directory`, `hint: another neobackup of this host`}, "neobackup", "snapshot", "-f", r.conf)
	// On another host nothing does, but for the numbers in the repository.
	q := Start(t, "neobackup", "follow", "-f", r.conf, "--set", "heartbeat=1s", "--set", "state_dir="+filepath.Join(t.TempDir(), "other"))
	for deadline := time.Now().Add(patience); p.Running() && q.Running(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("both go on")
		}
	}
	if p.Running() {
		p, q = q, p
	}
	err := p.Wait(t, patience)
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != 6 {
		t.Errorf("the writer that was overtaken ended with %v, want exit status 6", err)
	}
	says(t, "follow", p.Output(), `another writer has taken over: .* was created by writer`, `hint: one writer at a time`)
	wantRunning(t, []*Process{q})
	if err := q.Stop(t); err != nil {
		t.Error(err)
	}
	sameFiles(t, r.restore(t), source)
}

// What is stored can be read by age, zstd and a reader of dumps alone.
func TestSnapshotWithoutUs(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"site.fs", "02-undo.fs", "04-deleted.fs"} {
		source := write(t, "Data.fs", read(t, samples+"/"+file))
		r := newRepository(t, "file://"+source, "")
		r.run(t, "snapshot")
		operator, err := age.ParseIdentities(bytes.NewReader(read(t, r.identity)))
		if err != nil {
			t.Fatal(err)
		}
		open := func(path string, with []age.Identity) io.Reader {
			t.Helper()
			d, err := age.Decrypt(bytes.NewReader(read(t, path)), with...)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		epoch, err := age.ParseIdentities(open(filepath.Join(r.dir, "keys/0001.0001"), operator))
		if err != nil {
			t.Fatal(err)
		}
		segments, err := filepath.Glob(filepath.Join(r.dir, "*/s/*"))
		if err != nil || len(segments) == 0 {
			t.Fatalf("%d segments, %v", len(segments), err)
		}
		slices.Sort(segments)
		var text bytes.Buffer
		for _, s := range segments {
			z, err := zstd.NewReader(open(s, epoch))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(&text, z); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
			z.Close()
		}
		restored := filepath.Join(t.TempDir(), "by-hand.fs")
		must(t, "neofs", "restore", "--input", write(t, "dump", text.Bytes()), restored)
		sameFiles(t, restored, r.restore(t))
	}
}

// A repository can be in a bucket of each server that keeps what it promises; another one is
// refused by its faults.
func TestSnapshotOnS3(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *storetest.Server{
		"gofakes3": storetest.GoFakeS3, "minio": storetest.MinIO, "versitygw": storetest.VersityGW, "moto": storetest.Moto, "s3rver": storetest.S3rver,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			source := write(t, "Data.fs", read(t, samples+"/site.fs"))
			credentials := write(t, "credentials", fmt.Appendf(nil, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s.AccessKey, s.SecretKey))
			if err := os.Chmod(credentials, 0o600); err != nil {
				t.Fatal(err)
			}
			url, with := s.URL(s.Bucket(t, false), "prefix/of/it"), []string{"--set", "s3_credentials=" + credentials}
			if name == "s3rver" {
				refused(t, 5, []string{`create-once`, `hint: backups need a store with these guarantees`}, "neobackup", append([]string{"init", url, "--no-encryption"}, with...)...)
				return
			}
			r := newRepository(t, "file://"+source, url, with...)
			r.run(t, "snapshot")
			sameFiles(t, r.restore(t), source)
			r.run(t, "verify", "--identity", r.identity)
			r.run(t, "check")
			r.run(t, "check", "--store")
			refused(t, 2, []string{`a backup repository is there already`}, "neobackup", append([]string{"init", url, "--no-encryption"}, with...)...)
		})
	}
}
