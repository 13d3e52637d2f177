package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup/store/storetest"
)

const units = "../../contrib/systemd/"

// The units are what the specification wants, and systemd understands them.
func TestUnits(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for name, verb := range map[string]string{"neobackup.service": "daemon", "neobackup-follow@.service": "follow"} {
		b, err := os.ReadFile(units + name)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		for _, line := range []string{"Type=notify", "Restart=on-failure", "RestartPreventExitStatus=2 4 6 7", "Environment=GOTRACEBACK=crash", "LimitCORE=0", "ProtectSystem=strict", "StateDirectory=neobackup", "User=neobackup"} {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("%s has no %s", name, line)
			}
		}
		if !regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/neobackup ` + verb + ` .*-f /etc/neo/neobackup.conf$`).MatchString(text) {
			t.Errorf("%s starts something else", name)
		}
		// The program is not installed here.
		text = strings.ReplaceAll(text, "/usr/local/bin/neobackup", "/bin/true")
		path := filepath.Join(dir, strings.Replace(name, "@", "@prod", 1))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		storetest.Missing(t, "systemd-analyze is not installed: make install-monitoring-tools")
	}
	if out, err := exec.CommandContext(t.Context(), analyze, append([]string{"verify"}, paths...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	for _, path := range paths {
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", path).CombinedOutput()
		m := regexp.MustCompile(`Overall exposure level for .*: ([0-9.]+)`).FindSubmatch(out)
		if strings.Contains(string(out), "unrecognized option") {
			t.Log("this systemd-analyze is too old to judge a file")
			continue
		}
		if err != nil || m == nil {
			t.Errorf("%v\n%s", err, out)
			continue
		}
		if level, err := strconv.ParseFloat(string(m[1]), 64); err != nil || level > 2 {
			t.Errorf("%s: exposure %s, want at most 2", path, m[1])
		}
	}
}
