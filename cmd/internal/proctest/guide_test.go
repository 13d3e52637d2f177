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
	guide := string(read(t, "../../../docs/import.md"))
	dir := t.TempDir()
	replace := []string{"/var/lib/zope", dir, "/var/lib/neo", dir}
	for _, addr := range []string{"127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:8100"} {
		replace = append(replace, addr, fmt.Sprintf("127.0.0.1:%d", FreePort(t)))
	}
	admin := replace[len(replace)-3]
	script := "set -eux\ntrap 'kill $(jobs -p)' EXIT\nneoctl() { command neoctl -a " + admin + " \"$@\"; }\n"
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(guide, -1)
	if len(blocks) < 6 {
		t.Fatalf("%d blocks of commands in the guide", len(blocks))
	}
	for _, b := range blocks {
		script += b[1]
	}
	if err := os.WriteFile(filepath.Join(dir, "Data.fs"), read(t, samples+"/site.fs"), 0o600); err != nil {
		t.Fatal(err)
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
	for _, want := range []string{"no difference at", "S1 R UUUUUUUUUUUU\nS2 R UUUUUUUUUUUU", "of 12 partitions compared: no difference found"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the commands have not shown %q:\n%s", want, tail(string(out), 8000))
		}
	}
}
