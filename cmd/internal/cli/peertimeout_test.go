package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/neozodb/neo/cluster/link"
)

func TestPeerTimeout(t *testing.T) {
	for arg, want := range map[string]time.Duration{
		"": link.DefaultPeerTimeout, "0": -1, "3": 3 * time.Second, "4.5": 4500 * time.Millisecond, "86400": 24 * time.Hour,
		"2.9": 0, "-1": 0, "86401": 0, "1e300": 0, "NaN": 0, "Inf": 0,
	} {
		var o PeerTimeout
		fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
		o.AddFlags(fs)
		if arg != "" {
			if err := fs.Parse([]string{"--peer-timeout", arg}); err != nil {
				t.Errorf("%s: %v", arg, err)
			}
		}
		got, err := o.Limit()
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("--peer-timeout %q: %v, %v, want %v", arg, got, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "peer-timeout must be between 3 and 86400 seconds") {
			t.Errorf("--peer-timeout %q: %v", arg, err)
		}
	}
}
