package config

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// The Python program reads each text as ZODB.config does, and answers with the values,
// or with what is wrong.
const pythonReader = `
import io, json, os, socket, sys, ZConfig
schema = ZConfig.loadSchemaFile(io.StringIO('''<schema><import package="ZODB"/><import package="ZEO"/>
<section type="ZODB.storage" name="*" attribute="storage"/></schema>'''))
for line in sys.stdin:
    try:
        c = ZConfig.loadConfigFile(schema, io.StringIO(json.loads(line)))[0].storage.config
        blobs = None
        if c.getSectionType() == 'blobstorage':
            blobs = c.blob_dir
            c = c.base.config
        if c.getSectionType() == 'filestorage':
            v = {'Path': c.path, 'BlobDir': c.blob_dir or blobs or ''}
        else:
            v = {'Servers': [s.address if s.family == socket.AF_UNIX else
                             (('[%s]' if ':' in s.address[0] else '%s') + ':%s') % s.address for s in c.server],
                 'Storage': c.storage, 'WaitTimeout': getattr(c, 'wait_timeout', 30) * 10**9, 'Wait': getattr(c, 'wait', True)}
        print(json.dumps([v, '']))
    except (ZConfig.ConfigurationError, ValueError) as e:
        print(json.dumps([None, str(e)]))
`

// fromPython is what Python has read of a text.
type fromPython struct {
	values json.RawMessage
	err    string
}

func readInPython(t *testing.T, texts []string) []fromPython {
	t.Helper()
	var in bytes.Buffer
	e := json.NewEncoder(&in)
	for _, text := range texts {
		if err := e.Encode(text); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(zeotest.Python(t), "-c", pythonReader)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = &in, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python: %v\n%s", err, &stderr)
	}
	var list []fromPython
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		var p fromPython
		if err := json.Unmarshal(s.Bytes(), &[]any{&p.values, &p.err}); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) != len(texts) {
		t.Fatalf("python has answered %d of %d texts", len(list), len(texts))
	}
	return list
}

// A text means what it means to Python, or is refused: mutations of texts that are
// right are compared, and what Python refuses is refused.
func TestStorageAsPython(t *testing.T) {
	t.Setenv("INSTANCE", "/tmp")
	bases := []string{
		"%define instance /tmp\n%define var $instance/\n# comment\n<filestorage 1>\n  path ${VAR}a$$b\n  Blob-Dir $(INSTANCE)/blobs\n  create no\n  read-only true\n  quota 10MB\n  pack-gc off\n</FileStorage>",
		"<blobstorage>\n  blob-dir /tmp/b\n  <filestorage>\n    path ~/Data.fs\n  </filestorage>\n</blobstorage>",
		"<zeoclient>\n  server localhost:8100\n  server /tmp/sock\n  server 8101\n  server [::1]:8102\n  storage main\n  wait off\n  cache-size 20MB\n  name x y\n</zeoclient>",
		"%import ZEO\n<clientstorage>\n  server h:1\n  storage 2\n  wait-timeout 7\n  read-only-fallback on\n</clientstorage>",
	}
	texts := append([]string(nil), bases...)
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		text := bases[rng.IntN(len(bases))]
		for range 1 + rng.IntN(2) {
			text = mutate(rng, text)
		}
		texts = append(texts, text)
	}
	equal := 0
	for i, p := range readInPython(t, texts) {
		lines := strings.Split(texts[i], "\n")
		z := zparser{
			errorf: (&reader{file: emptyFile(t)}).errorf, warnf: func(int, string, ...any) {},
			line: func(i int) int { return i + 1 }, defines: map[string]string{},
		}
		var st Storage
		sections, err := z.parse(lines)
		if err == nil && len(sections) == 1 {
			st, _, err = z.storage(sections[0])
		}
		// Whether a directory exists is found when the source is opened.
		if err != nil || len(sections) != 1 || strings.Contains(p.err, "directory named as part of the path") {
			if i < len(bases) {
				t.Errorf("%q: %v, %s", texts[i], err, p.err)
			}
			continue
		}
		if p.err != "" {
			// A definition that is repeated is harmless, and packages make kinds known that we know.
			if strings.Contains(p.err, "cannot redefine") || strings.Contains(p.err, "could not load package") {
				continue
			}
			t.Errorf("read as %+v what Python refuses: %s\n%s", st, p.err, numbered(texts[i]))
			continue
		}
		var want Storage
		if st.File != nil {
			want.File = &File{}
			err = json.Unmarshal(p.values, want.File)
		} else {
			want.ZEO = &ZEO{}
			err = json.Unmarshal(p.values, want.ZEO)
			for i, s := range st.ZEO.Servers { // Python gives hosts in lower case
				if !strings.Contains(s, "/") {
					st.ZEO.Servers[i] = strings.ToLower(s)
				}
			}
		}
		if diff := cmp.Diff(want, st); err != nil || diff != "" {
			t.Errorf("%v (-Python +got):\n%s\n%s", err, diff, numbered(texts[i]))
		}
		equal++
	}
	t.Logf("%d of %d texts are read by both", equal, len(texts))
	if equal < len(texts)/10 {
		t.Errorf("only %d of %d texts are read by both", equal, len(texts))
	}
}

// mutate changes a line or a character.
func mutate(rng *rand.Rand, text string) string {
	lines := strings.Split(text, "\n")
	i, j := rng.IntN(len(lines)), rng.IntN(len(lines))
	const chars = " \t<>/%$#{}()-_:;.~aZ19,[]="
	switch rng.IntN(6) {
	case 0:
		lines = append(lines[:i:i], lines[i+1:]...)
	case 1:
		lines = append(lines[:i:i], append([]string{lines[j]}, lines[i:]...)...)
	case 2:
		lines[i], lines[j] = lines[j], lines[i]
	default:
		at := rng.IntN(len(lines[i]) + 1)
		end := min(at+rng.IntN(2), len(lines[i]))
		lines[i] = lines[i][:at] + string(chars[rng.IntN(len(chars))]) + lines[i][end:]
	}
	if len(lines) == 0 {
		return text
	}
	return strings.Join(lines, "\n")
}

func emptyFile(t *testing.T) *conf.File {
	t.Helper()
	f, err := conf.Parse(strings.NewReader(""), "text")
	if err != nil {
		t.Fatal(err)
	}
	return f
}
