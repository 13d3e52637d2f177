package client

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseURI(t *testing.T) {
	env := map[string]string{"NEO_CERT": "/cert.crt"}
	getenv := func(k string) string { return env[k] }
	none := map[string]string{}
	for _, tt := range []struct {
		in   string
		want *URI // nil: refused
	}{
		{"neo://db@master:1", &URI{"db", "master:1", none, none}},
		{"neo://db3@master1,master2:port2?read_only=true", &URI{"db3", "master1 master2:port2", map[string]string{"read-only": "true"}, none}},
		{"neo://db4@[2001:67c:1254:2a::1]:1234,m2:p?alpha=111&beta=222", &URI{"db4", "[2001:67c:1254:2a::1]:1234 m2:p", none, map[string]string{"alpha": "111", "beta": "222"}}},
		{"neos://db7@master?ca=/a%20b&key=k", &URI{"db7", "master", map[string]string{"ca": "/a b", "key": "k", "cert": "/cert.crt"}, none}},
		{"neo://a%40b@m@x", &URI{"a@b", "m@x", none, none}},
		{"neo://db@m?compress=no&compress=zlib=3", &URI{"db", "m", map[string]string{"compress": "zlib=3"}, none}}, // the last one wins
		{"neos://db@m?ca=a", nil},
		{"http://db@m", nil},
		{"neo://db@m/path", nil},
		{"neo://db@m#f", nil},
		{"neo://master", nil},
		{"neo://db@m?name=z", nil},
		{"neo://db@m?master_nodes=z", nil},
		{"neo://d%zz@m", nil},
	} {
		got, err := ParseURI(tt.in, getenv)
		if (err != nil) != (tt.want == nil) {
			t.Errorf("%s: %v, %v", tt.in, got, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.in, diff)
		}
	}
}

func TestApply(t *testing.T) {
	u, err := ParseURI("neo://db@m?compress=zlib=9&read_only=yes&cache-size=2MB&ignore_wrong_checksum=on&logfile=l", nil)
	if err != nil {
		t.Fatal(err)
	}
	var cfg Config
	left, err := u.Apply(&cfg)
	if err != nil || cfg.Cluster != "db" || cfg.Level != 9 || !cfg.ReadOnly || cfg.CacheSize != 2<<20 || !cfg.IgnoreWrongChecksum {
		t.Errorf("%+v, %v", cfg, err)
	}
	if diff := cmp.Diff(map[string]string{"logfile": "l"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestParseCompress(t *testing.T) {
	for in, want := range map[string]int{"true": 0, "zlib": 0, "false": NoCompression, "zlib=1": 1, "zlib=9": 9} {
		if got, err := ParseCompress(in); got != want || err != nil {
			t.Errorf("%s: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"zlib=0", "zlib=100", "9", "best", ""} {
		if got, err := ParseCompress(in); err == nil {
			t.Errorf("%s was read as %d", in, got)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("neo://db@m1,m2?cache_size=20MB&x=y")
	f.Add("neos://db@[::1]:1?ca=a&cert=b&key=c")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s, func(string) string { return "" })
		if err != nil {
			return
		}
		var cfg Config
		if _, err := u.Apply(&cfg); err == nil && (cfg.Level > 9 || cfg.CacheSize < 0) {
			t.Errorf("%q gives %+v", s, cfg)
		}
	})
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int{"1": 1, "20MB": 20 << 20, "3 kb": 3 << 10, "1GB": 1 << 30, "": 0, "0": 0, "-1": 0, "MB": 0, "1TB": 0} {
		if got, err := ParseSize(in); got != want || (err == nil) != (want != 0) {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
}
