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

// followGuide runs the commands of a file in docs, in one shell, and returns what they
// print. Paths of databases lead into a directory with a Data.fs, and each address becomes
// one with a free port. neoctl finds the admin, if that is not empty, without being told.
func followGuide(t testing.TB, guide, admin string, addrs ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Data.fs"), read(t, samples+"/site.fs"), 0o600); err != nil {
		t.Fatal(err)
	}
	replace := []string{"/var/lib/zope", dir, "/var/lib/neo", dir}
	for _, addr := range addrs {
		replace = append(replace, addr, fmt.Sprintf("127.0.0.1:%d", FreePort(t)))
	}
	contrib, err := filepath.Abs("../../../contrib")
	if err != nil {
		t.Fatal(err)
	}
	replace = append(replace, "contrib", contrib)
	script := "set -euxo pipefail\ntrap 'kill $(jobs -p)' EXIT\n"
	if admin != "" {
		script += "neoctl() { command neoctl -a " + admin + " \"$@\"; }\n"
	}
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(read(t, "../../../docs/"+guide)), -1)
	if len(blocks) < 6 {
		t.Fatalf("%d blocks of commands in the guide", len(blocks))
	}
	for _, b := range blocks {
		script += b[1]
	}
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", strings.NewReplacer(replace...).Replace(script))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(Bin(t, "neoctl"))+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = childAttr()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(string(out), 8000))
	}
	return string(out)
}
