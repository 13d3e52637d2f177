package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/tid"
)

// keys puts recipients and keys in place of their names in the text of a test.
func keys(t testing.TB) *strings.Replacer {
	t.Helper()
	var list []string
	for _, name := range []string{"recipient1", "recipient2"} {
		_, to, err := snapshot.GenerateEpoch(nil)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, name, to.String())
	}
	for _, role := range []snapshot.Role{snapshot.Writer, snapshot.Keeper} {
		_, verifier, err := snapshot.GenerateKey("prod", role)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(role)+"Key", verifier)
	}
	return strings.NewReplacer(list...)
}

const full = `[DEFAULT]
heartbeat: 10m
scratch: /srv/scratch
[repository prod]
url: s3://backups/prod?endpoint=s3.example.org&region=eu-1
s3_credentials: /etc/neo/s3
recipients:
  recipient1
# the second operator
  recipient2
require_recipients: 2
sign_key: /etc/neo/writer.key
verify_keys: writerKey keeperKey
source: neo://prod@10.0.0.1:10000 10.0.0.2
ca: /etc/neo/ca.crt
cert: /etc/neo/backup.crt
key: /etc/neo/backup.key
state_dir: /var/lib/neobackup/prod
interval: 2s
segment_size: 64MiB
level: default
limit_upload: 10MiB/s
on_pack: stop
keep_lineages_days: 40
prune_grace: 2d
hold:
  2026-11-20T10:00:00Z release 5
  03f1a2b3c4d5e6f7 before the merge of the sites
lock: compliance
lock_days: 35
max_rpo: 30s
proof_max_age: 8d
[schedule prod]
follow: yes
verify: 30 3 * * *  --read-data=rotate/30
drill: 0 5 * * 7
prune: @daily
[drill prod]
identity: /etc/neo/drill.txt
mode: cluster
[repository small]
url: file:///srv/small
source: file:///var/lib/Data.fs
[notify]
webhook: https://example.org/hook?token=50%%
email: ops@example.org
  boss@example.org
[metrics]
listen: 127.0.0.1:9145
`

func TestFull(t *testing.T) {
	k := keys(t)
	f, err := Parse(strings.NewReader(k.Replace(full)), "neobackup.conf")
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Repository("prod")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, to := range r.Recipients {
		got = append(got, to.String())
	}
	if want := strings.Fields(k.Replace("recipient1 recipient2")); !slices.Equal(got, want) {
		t.Errorf("recipients %q", got)
	}
	if want := strings.Fields(k.Replace("writerKey keeperKey")); !slices.Equal(r.VerifyKeys, want) {
		t.Errorf("verify keys %q", r.VerifyKeys)
	}
	if want := (Source{Cluster: "prod", Masters: []conf.Address{{Host: "10.0.0.1", Port: 10000}, {Host: "10.0.0.2", Port: 10000}}}); !cmp.Equal(r.Source, want) {
		t.Errorf("source %+v", r.Source)
	}
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	if want := []Hold{
		{Moment{IsTime: true, Time: at, TID: tid.FromTime(at)}, "release 5"},
		{Moment{TID: 0x03f1a2b3c4d5e6f7}, "before the merge of the sites"},
	}; !cmp.Equal(r.Holds, want) {
		t.Errorf("holds: %s", cmp.Diff(want, r.Holds))
	}
	if r.Heartbeat != 10*time.Minute || r.Interval != 2*time.Second || r.SegmentSize != 64<<20 || r.Level != snapshot.Default || r.LimitUpload != 10<<20 ||
		r.KeepLineagesDays != 40 || r.PruneGrace != 48*time.Hour || r.Lock != store.Compliance || r.LockDays != 35 || r.LockShortDays != 7 ||
		r.MaxRPO != 30*time.Second || r.ProofMaxAge != 8*24*time.Hour || r.RequireRecipients != 2 || r.RebaseOnPack {
		t.Errorf("got %+v", r)
	}
	if s := r.Schedule; !s.Follow || len(s.Jobs) != 3 || s.Jobs[0].Command != "verify" || !slices.Equal(s.Jobs[0].Options, []string{"--read-data=rotate/30"}) || s.Jobs[1].Line != 36 {
		t.Errorf("schedule %+v", s)
	} else if next := s.Jobs[1].Times.Next(at); !next.Equal(time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)) { // a Sunday
		t.Errorf("the drill is at %v", next)
	}
	if d := r.Drill; d.Identity != "/etc/neo/drill.txt" || d.Mode != "cluster" || d.Scratch != "/srv/scratch" {
		t.Errorf("drill %+v", d)
	}
	small, err := f.Repository("small")
	if err != nil || small.Source.File != "/var/lib/Data.fs" || small.Schedule != nil || small.Heartbeat != 10*time.Minute {
		t.Errorf("small: %+v, %v", small, err)
	}
	if want := (Notify{"https://example.org/hook?token=50%", []string{"ops@example.org", "boss@example.org"}, ""}); !cmp.Equal(f.Notify, want) {
		t.Errorf("notify %+v", f.Notify)
	}
	if f.Metrics.Listen != "127.0.0.1:9145" {
		t.Errorf("metrics %+v", f.Metrics)
	}
	if _, err := f.Repository("prd"); err == nil || !strings.Contains(err.Error(), `did you mean "prod"?`) {
		t.Errorf("wrong name: %v", err)
	}
	if _, err := f.Repository(""); err == nil || !strings.Contains(err.Error(), "prod, small") {
		t.Errorf("no name: %v", err)
	}
}

// What is not understood is refused, with the line it is on and what was meant.
func TestRefused(t *testing.T) {
	k := keys(t)
	const head = "[repository prod]\nurl: file:///b\n"
	for _, tt := range []struct{ name, text, want string }{
		{"unknown section", head + "[schedul prod]\n", `:3: unknown section [schedul prod]: the sections are [repository NAME], [schedule NAME], [drill NAME], [notify] and [metrics]; did you mean "schedule"?`},
		{"unknown key", head + "recipents: recipient1\n", `:3: unknown key "recipents" in [repository prod]; did you mean "recipients"?`},
		{"dash for underscore", head + "sign-key: /k\n", `:3: unknown key "sign-key" in [repository prod]; did you mean "sign_key"?`},
		{"unknown default", "[DEFAULT]\nintervall: 1s\n" + head, `:2: unknown key "intervall" in [DEFAULT]; did you mean "interval"?`},
		{"no repository", "[metrics]\nlisten: a:1\n", `:1: there is no [repository NAME]`},
		{"no name", "[repository]\nurl: file:///b\n", `:1: [repository]: a repository has a name`},
		{"no url", "[repository prod]\ninterval: 1s\n", `:1: [repository prod] has no url`},
		{"key twice", head + "url: file:///c\n", `:3: key "url" is already set`},
		{"empty", head + "interval:\n", `:3: interval: no value`},
		{"several lines", head + "interval: 1s\n  2s\n", `:3: interval: the value has several lines`},
		{"secret in the URL", "[repository prod]\nurl: s3://user:secret@host/bucket\n", `:2: url: `},
		{"other store", "[repository prod]\nurl: ftp://b\n", `:2: url: URL of a store: it begins with s3://bucket/prefix or file:///path`},
		{"third recipient", head + "recipients:\n  recipient1\n  recipient2\n  age1nonsense\n", `:6: recipients: `},
		{"recipient twice", head + "recipients:\n  recipient1\n  recipient1\n", `:5: recipients: recipient1 is there twice`},
		{"too few recipients", head + "recipients: recipient1\nrequire_recipients: 2\n", `:4: 1 recipients, and require_recipients is 2`},
		{"verify key", head + "verify_keys: prod/writer+x\n", `:3: verify_keys: "prod/writer+x" does not verify notes`},
		{"source", head + "source: Data.fs\n", `:3: source: "Data.fs" is not an absolute path`},
		{"source without master", head + "source: neo://prod@\n", `:3: source: "neo://prod@" names no master`},
		{"other source", head + "source: zeo://h:1\n", `:3: source: "zeo://h:1": a source is neo://`},
		{"half of TLS", head + "ca: /c\n", `:3: ca, cert and key belong together`},
		{"TLS to a file", head + "source: /d.fs\nca: /c\ncert: /c\nkey: /k\n", `:4: ca, cert and key are for the links to a cluster`},
		{"no unit", head + "interval: 1\n", `:3: interval: "1" is not a duration: want a number with a unit`},
		{"too often", head + "interval: 1ms\n", `:3: interval: "1ms" is not from 100ms to 1h`},
		{"heartbeat", head + "interval: 1m\nheartbeat: 30s\n", `:4: heartbeat (30s) is less than interval (1m)`},
		{"size", head + "segment_size: 128\n", `:3: segment_size: "128" is not a size`},
		{"small size", head + "segment_size: 1MiB\n", `:3: segment_size: "1MiB" is not from 16 MiB to 1024 MiB`},
		{"level", head + "level: fast\n", `:3: level: "fast" is none of fastest, default, better`},
		{"on pack", head + "on_pack: yes\n", `:3: on_pack: "yes" is none of stop, rebase`},
		{"grace", head + "prune_grace: 1h\n", `:3: prune_grace: "1h" is not from 1d to 365d`},
		{"hold without label", head + "hold:\n  2026-11-20\n", `:4: hold: a hold needs a label`},
		{"hold that moves", head + "hold: latest x\n", `:3: hold: "latest" is another moment at each start`},
		{"lock without days", head + "lock: compliance\n", `:3: lock needs lock_days`},
		{"days without lock", head + "lock_days: 3\n", `:3: lock_days needs lock`},
		{"lock", head + "lock: complience\nlock_days: 1\n", `:3: lock: "complience" is none of governance, compliance; did you mean "compliance"?`},
		{"short lock", head + "lock: governance\nlock_days: 5\nlock_short_days: 7\n", `:5: lock_short_days (7) is more than lock_days (5)`},
		{"lone percent", head + "state_dir: /a%b\n", `neobackup.conf:3: `},
		{"schedule of nothing", head + "[schedule prd]\nfollow: yes\n", `:3: [schedule prd] is about no [repository prd]; did you mean "prod"?`},
		{"no such day", head + "[schedule prod]\ndrill: 0 0 31 2 *\n", `:4: drill: schedule "0 0 31 2 *": there is no such day`},
		{"time zone", head + "[schedule prod]\ndrill: TZ=UTC 0 5 * * SUN\n", `:4: drill: `},
		{"TZ that panics the parser", head + "[schedule prod]\ndrill: TZ=0 0 5 * *\n", `:4: drill: `},
		{"four fields", head + "[schedule prod]\nverify: 0 5 * * --read-data\n", `:4: verify: `},
		{"option", head + "[schedule prod]\nverify: 0 5 * * * --readdata=1/3\n", `:4: verify: verify has no option --readdata: want --read-data, --against; did you mean "--read-data"?`},
		{"behind", head + "[schedule prod]\nverify: 0 5 * * * 2026\n", `:4: verify: `},
		{"schedule twice", head + "[schedule prod]\nfollow: yes\n[schedule  prod]\ncheck: @daily\n", `:5: [schedule  prod]: there is a section [schedule prod] already`},
		{"drill twice", head + "[drill prod]\n[drill  prod]\n", `:4: [drill  prod]: there is a section [drill prod] already`},
		{"repository twice", head + "[repository  prod]\nurl: file:///r\n", `:3: [repository  prod]: there is a section [repository prod] already`},
		{"both", head + "[schedule prod]\nfollow: yes\nsnapshot: @daily\n", `:5: snapshot: with follow there is nothing left to take`},
		{"drill", head + "[drill prod]\nmode: files\n", `:4: mode: "files" is none of file, cluster, read; did you mean "file"?`},
		{"notify", head + "[notify prod]\n", `:3: [notify prod]: there is one section [notify]`},
		{"webhook", head + "[notify]\nwebhook: example.org\n", `:4: webhook: not a URL`},
		{"email", head + "[notify]\nemail: a@b\n  c\n", `:5: email: "c" is not an address`},
		{"metrics", head + "[metrics]\nlisten: 9145\n", `:4: listen: "9145": want host:port`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(strings.NewReader(k.Replace(tt.text)), "neobackup.conf")
			if err == nil || !strings.Contains(err.Error(), k.Replace(tt.want)) || !strings.HasPrefix(err.Error(), "neobackup.conf:") {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

// Files of secrets that others can read are refused, by the line that names them.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	private, verifier, err := snapshot.GenerateKey("prod", snapshot.Writer)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("writer.key", "# of prod\n"+private+"\n", 0o600)
	open := write("open.key", private+"\n", 0o640)
	empty := write("empty.key", "\n", 0o600)
	id, to, err := snapshot.GenerateEpoch(nil)
	if err != nil {
		t.Fatal(err)
	}
	repository := func(text string) *Repository {
		t.Helper()
		f, err := Parse(strings.NewReader("[repository prod]\nurl: file:///b\n"+text), "neobackup.conf")
		if err != nil {
			t.Fatal(err)
		}
		return f.Repositories[0]
	}
	s, got, err := repository("sign_key: " + good).Signer(snapshot.Writer)
	if err != nil || s.Name() != "prod/writer" || got != verifier {
		t.Errorf("signer %v, verifier %q, %v, want %q", s, got, err, verifier)
	}
	// The host of the writer believes what it has signed itself.
	if v, err := repository("sign_key: " + good).Trusted(); err != nil || len(v) != 1 {
		t.Errorf("trusted: %v, %v", v, err)
	}
	// Another host has the same file, without the key.
	if v, err := repository("verify_keys: " + verifier + "\nsign_key: " + dir + "/none").Trusted(); err != nil || len(v) != 1 {
		t.Errorf("without key: %v, %v", v, err)
	}
	if _, err := repository("").Trusted(); err == nil {
		t.Error("trusts without keys")
	}
	for _, tt := range []struct {
		path, want string
	}{
		{open, "neobackup.conf:3: sign_key: " + open + " is not a file of secrets: others than its owner have access (mode 0640): chmod 600"},
		{empty, "neobackup.conf:3: sign_key: " + empty + " is not a file of secrets: 0 lines"},
		{dir, "neobackup.conf:3: sign_key: " + dir + " is not a file of secrets: no regular file"},
		{dir + "/none", "neobackup.conf:3: sign_key: "},
	} {
		r := repository("sign_key: " + tt.path)
		if _, _, err := r.Signer(snapshot.Writer); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.path, err)
		}
		if _, err := r.Trusted(); err == nil {
			t.Errorf("%s: trusted", tt.path)
		}
	}
	if _, _, err := repository("sign_key: " + good).Signer(snapshot.Driver); err == nil || !strings.Contains(err.Error(), "want one of the role drill") {
		t.Errorf("key of a writer for the drill: %v", err)
	}
	text := id.String()
	if list, err := ReadIdentities(write("id.txt", "# public key: "+to.String()+"\n"+text+"\n", 0o600)); err != nil || len(list) != 1 {
		t.Errorf("identities %v, %v", list, err)
	}
	broken := text[:len(text)-1]
	if _, err := ReadIdentities(write("broken.txt", broken, 0o600)); !errors.Is(err, ErrSecret) || strings.Contains(err.Error(), text[20:40]) {
		t.Errorf("broken identity: %v", err)
	}
}

// What a section means does not change when it is written again.
func checkSection(t testing.TB, r *Repository) {
	t.Helper()
	name := r.Name
	text := r.Section(name)
	f, err := Parse(strings.NewReader(text), "again")
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if again := f.Repositories[0].Section(name); again != text {
		t.Errorf("written again: %s", cmp.Diff(text, again))
	}
}

func TestSection(t *testing.T) {
	f, err := Parse(bytes.NewReader([]byte(keys(t).Replace(full))), "neobackup.conf")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range f.Repositories {
		checkSection(t, r)
	}
	r := New()
	for _, kv := range [][2]string{{"url", "file:///a%20b"}, {"state-dir", "/x"}, {"interval", "5s"}} {
		if err := r.Set(kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := r.Section("x"), "[repository x]\nurl: file:///a%%20b\nstate_dir: /x\ninterval: 5s\n"; got != want {
		t.Errorf("got %s", got)
	}
	if err := r.Set("intervall", "5s"); err == nil || !strings.Contains(err.Error(), `did you mean "interval"?`) {
		t.Errorf("unknown key: %v", err)
	}
	if err := r.Set("interval", "5"); err == nil || !strings.HasPrefix(err.Error(), "interval: ") {
		t.Errorf("wrong value: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(keys(f).Replace(full))
	f.Add("[repository a]\nurl: file:///b\nhold: tid:1 x\n  2026-01-01 y\n")
	f.Add("[repository a]\nurl: file:///b\n[schedule a]\nsnapshot: TZ=0\n")
	f.Add("[DEFAULT]\nx: 1\n[repository a]\nurl: file:///b%%20\nsource: neo://a@[::1]:1,b\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Parse(strings.NewReader(text), "fuzz.conf")
		if err != nil {
			if !strings.HasPrefix(err.Error(), "fuzz.conf:") {
				t.Errorf("no place in %v", err)
			}
			return
		}
		for _, r := range file.Repositories {
			checkSection(t, r)
			if err := r.Check(); err != nil {
				t.Error(err)
			}
		}
	})
}

// What may be a secret is not shown by an error of the form.
func TestSecretNotShown(t *testing.T) {
	for _, text := range []string{
		"[repository a]\nurl: file:///r\n[notify]\nwebhook: https://example.org/hook?token=50%secret\n",
		"[repository a]\nurl: file:///r\n[notify]\nwebhook: https://example.org/hook?token=50%(secret\n",
		"[repository a]\nurl: s3://user:50%secret@bucket/prefix\n",
	} {
		if _, err := Parse(strings.NewReader(text), "x.conf"); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "a % is written %%") {
			t.Errorf("%v", err)
		}
	}
}
