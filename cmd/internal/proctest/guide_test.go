package proctest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup/store/storetest"
)

// The commands of docs/import.md migrate a Data.fs, in their order and in one shell.
func TestImportGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "import.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:8100")
	says(t, "the guide", out, "no difference at", "S1 R UUUUUUUUUUUU\nS2 R UUUUUUUUUUUU", "of 12 partitions compared: no difference found")
}

// The commands of docs/backup-cluster.md set up a backup, promote it, and move back.
func TestBackupGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "backup-cluster.md", "", "127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:11000", "127.0.0.1:9998")
	says(t, "the guide", out, `(?m)^mirror$`, `BACKINGUP; UP_TO_DATE=24; ltid=[0-9a-f]{16}; lag=0\.0`, `compared with cluster \w+: no difference found`, `(?m)^kept: everything up to 0x`,
		`(?m)^The cluster is RUNNING\.$`, `(?m)^The cluster follows the new one\.$`, `(?m)^The cluster is RUNNING with all transactions\.$`)
}

// The commands of docs/backup.md back up a Data.fs and a cluster, restore them after everything
// was lost, and without us.
func TestSnapshotGuide(t *testing.T) {
	t.Parallel()
	s3 := storetest.GoFakeS3(t)
	g := guide{
		file: "backup.md", addrs: []string{"127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:11000", "127.0.0.1:9998", "127.0.0.1:12000", "127.0.0.1:9997", "127.0.0.1:8100", "127.0.0.1:9145"},
		replace: []string{
			"s3://backups/", "s3://" + s3.Bucket(t, false) + "/", "endpoint=s3.example.org&region=eu-1", "endpoint=" + s3.Endpoint + "&insecure=1",
			"S3_ACCESS_KEY=backup", "S3_ACCESS_KEY=" + s3.AccessKey, "S3_SECRET_KEY=secret", "S3_SECRET_KEY=" + s3.SecretKey,
		},
	}
	if age := agePath(); age != "" {
		g.path = filepath.Dir(age)
	} else if os.Getenv("CI") != "" || os.Getenv("NEO_TEST_PEERS") == "required" {
		t.Fatal("age is not installed: make install-s3-servers")
	} else {
		g.without = "age -d"
	}
	out := g.follow(t)
	says(t, "the guide", out, `Repository site is ready`, `334 transactions more`, `exact +yes`, `read again and equal`, `following neo://site@`,
		`epoch 0001 of .*: opened`, `found: 0 faults, 0 warnings`, `requests +\d+ PUT a day`, `serving site at 040660ee3597d844`, `0 transactions more`, `daemon +runs on this host`, `next verify +.* 03:30 UTC`)
}

// The commands of docs/drills.md prove a backup, and show what a failure looks like.
func TestDrillGuide(t *testing.T) {
	t.Parallel()
	out := guide{file: "drills.md"}.follow(t)
	says(t, "the guide", out, `proven +site until 040660ee3597d844`, `mode +cluster`, `proven +until 040660ee3597d844`, `"neobackup":"proof"`, `FAILED +site`, `Done: \d+ objects stored`, `manifest \d+ is the newest`, `no manifest verifies|of \d+ manifests the newest`, `drill failed +.*failed to decrypt and authenticate|its SHA-256 is`, `found: \d faults`)
}

// agePath returns the program age, "" if it is not installed: where the S3 servers are.
func agePath() string {
	if path, err := exec.LookPath("age"); err == nil {
		return path
	}
	for _, dir := range []string{os.Getenv("NEO_TEST_S3"), "../../../.s3"} {
		if path, err := filepath.Abs(filepath.Join(dir, "bin", "age")); err == nil && dir != "" {
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
	}
	return ""
}

// followGuide runs the commands of a file in docs, see guide. neoctl finds the admin, if that is
// not empty, without being told.
func followGuide(t testing.TB, file, admin string, addrs ...string) string {
	t.Helper()
	return guide{file: file, admin: admin, addrs: addrs}.follow(t)
}

// guide is a file in docs whose commands are run.
type guide struct {
	file    string
	admin   string   // address for neoctl; "" : commands say it
	addrs   []string // each becomes one with a free port
	replace []string // more pairs of old and new text
	path    string   // directory of more programs
	without string   // blocks with this text are left out; "": none
}

// follow runs the commands, in one shell, and returns what they print. Paths of databases
// lead into a directory with a Data.fs.
func (g guide) follow(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Data.fs"), read(t, samples+"/site.fs"), 0o600); err != nil {
		t.Fatal(err)
	}
	replace := append([]string{"/var/lib/zope", dir, "/var/lib/neo", dir}, g.replace...)
	for _, addr := range g.addrs {
		port := FreePort(t)
		replace = append(replace, addr, fmt.Sprintf("127.0.0.1:%d", port), strings.Replace(addr, ":", "/", 1), fmt.Sprintf("127.0.0.1/%d", port))
	}
	contrib, err := filepath.Abs("../../../contrib")
	if err != nil {
		t.Fatal(err)
	}
	replace = append(replace, "contrib", contrib)
	script := "PS4='+$SECONDS '\nset -euxo pipefail\ntrap 'kill $(jobs -p) || :' EXIT\n"
	if g.admin != "" {
		script += "neoctl() { command neoctl -a " + g.admin + " \"$@\"; }\n"
	}
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(read(t, "../../../docs/"+g.file)), -1)
	if len(blocks) < 3 {
		t.Fatalf("%d blocks of commands in the guide", len(blocks))
	}
	for _, b := range blocks {
		if g.without == "" || !strings.Contains(b[1], g.without) {
			script += b[1]
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", strings.NewReplacer(replace...).Replace(script))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(Bin(t, "neoctl"))+":"+os.Getenv("PATH")+":"+g.path, "XDG_STATE_HOME="+filepath.Join(dir, "state"))
	cmd.SysProcAttr = childAttr()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(string(out), 8000))
	}
	return string(out)
}
