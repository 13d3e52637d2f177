package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The example is right as it is, and with all that is commented out in it; and it has every key.
func TestExampleFile(t *testing.T) {
	b, err := os.ReadFile("../../neobackup.conf.example")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(strings.NewReader(string(b)), "neobackup.conf.example"); err != nil {
		t.Error(err)
	}
	setting := regexp.MustCompile(`^([a-z0-9_]+):`)
	set := map[string]bool{}
	section := ""
	var lines []string
	for line := range strings.Lines(string(b)) {
		bare := strings.TrimPrefix(line, ";")
		if strings.HasPrefix(bare, "[") {
			section = bare
		}
		if m := setting.FindStringSubmatch(bare); m != nil {
			if line != bare && set[section+m[1]] {
				continue // another way to say it
			}
			set[section+m[1]] = true
			set[m[1]] = true
		}
		lines = append(lines, bare)
	}
	f, err := Parse(strings.NewReader(strings.Join(lines, "")), "neobackup.conf.example")
	if err != nil {
		t.Fatal(err)
	}
	if r := f.Repositories[0]; r.Schedule == nil || r.Drill == nil || len(r.Holds) != 2 || f.Metrics.Listen == "" {
		t.Errorf("got %+v", r)
	}
	for _, keys := range [][]string{repositoryKeys, drillKeys, notifyKeys, metricsKeys} {
		for _, key := range keys {
			if !set[key] {
				t.Errorf("the example does not have %s", key)
			}
		}
	}
}
