package proctest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// memoryHas returns where a process has any of some secrets in its memory.
func memoryHas(t *testing.T, pid int, secrets map[string][]byte) (found []string) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	looked := int64(0)
	for _, line := range strings.Split(strings.TrimSpace(string(maps)), "\n") {
		if f := strings.Fields(line); len(f) < 2 || !strings.HasPrefix(f[1], "rw") {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		// Pages that were never used cannot be read in some mappings.
		b := make([]byte, to-from)
		n, err := io.ReadFull(io.NewSectionReader(mem, from, to-from), b)
		if err != nil && n == 0 {
			continue
		}
		looked += int64(n)
		for name, secret := range secrets {
			for at := 0; ; {
				i := bytes.Index(b[at:n], secret)
				if i < 0 {
					break
				}
				found = append(found, fmt.Sprintf("%s at %x in %s", name, from+int64(at+i), line))
				at += i + 1
			}
		}
	}
	if looked < 1<<20 {
		t.Fatalf("only %d bytes of the memory could be read", looked)
	}
	return found
}

// secretsOf returns the forms in which an identity of X25519 may be somewhere.
func secretsOf(t *testing.T, id *age.X25519Identity) map[string][]byte {
	t.Helper()
	text := id.String()
	return map[string][]byte{
		"the identity":               []byte(text),
		"the identity in lower case": []byte(strings.ToLower(text)),
		"its key":                    scalarOf(t, text),
	}
}

// scalarOf returns the key in the text of an identity, which is Bech32.
func scalarOf(t *testing.T, text string) []byte {
	t.Helper()
	const charset = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
	data := strings.ToLower(strings.TrimPrefix(text, "AGE-SECRET-KEY-1"))
	acc, bits := 0, 0
	var key []byte
	for _, c := range data[:len(data)-6] {
		acc = acc<<5 | strings.IndexRune(charset, c)
		if bits += 5; bits >= 8 {
			bits -= 8
			key = append(key, byte(acc>>bits))
			acc &= 1<<bits - 1
		}
	}
	if len(key) != 32 {
		t.Fatalf("a key of %d bytes", len(key))
	}
	return key
}

// epochIdentity opens the wrap of an epoch.
func (r *repository) epochIdentity(t *testing.T, kid int) *age.X25519Identity {
	t.Helper()
	f, err := os.Open(r.identity)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ids, err := age.ParseIdentities(f)
	if err != nil {
		t.Fatal(err)
	}
	wrap, err := os.Open(filepath.Join(r.dir, fmt.Sprintf("keys/%04x.0001", kid)))
	if err != nil {
		t.Fatal(err)
	}
	defer wrap.Close()
	plain, err := age.Decrypt(bufio.NewReader(wrap), ids...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.ParseX25519Identity(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// appendTo commits a transaction to a Data.fs.
func appendTo(t *testing.T, path string, at tid.TID) {
	t.Helper()
	f, err := fsformat.OpenAppend(t.Context(), path, fsformat.WriterOptions{})
	if err == nil {
		err = f.Append(&txn.Transaction{TID: at, Status: txn.Committed, Records: txn.Slice([]txn.Record{{OID: 1, TID: at, Data: []byte("\x80\x03cm\nC\nq\x00.\x80\x03}q\x01.")}})})
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A writer that has begun an epoch has its identity neither in its memory nor on its disk: a thief of
// the host cannot read what was stored.
func TestNoIdentityOnWriter(t *testing.T) {
	t.Parallel()
	source := write(t, "Data.fs", read(t, samples+"/site.fs"))
	r := newRepository(t, "file://"+source, "")
	r.run(t, "snapshot")
	// Another recipient begins an epoch, in the process that then follows.
	other := filepath.Join(t.TempDir(), "other.txt")
	recipient, _ := must(t, "neobackup", "key", "generate", other)
	conf := string(read(t, r.conf))
	conf = regexp.MustCompile(`(?m)^recipients:`).ReplaceAllString(conf, "recipients:\n  "+strings.TrimSpace(recipient)+"\n ")
	if err := os.WriteFile(r.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	p := Start(t, "neobackup", "follow", "-f", r.conf)
	for i := range 5 {
		at := tid.TID(0x0406800000000000 + i<<32)
		appendTo(t, source, at)
		for begin := time.Now(); r.head(t) < at; time.Sleep(100 * time.Millisecond) {
			if time.Since(begin) > runLimit {
				t.Fatalf("%v is not stored", at)
			}
		}
	}
	secrets := secretsOf(t, r.epochIdentity(t, 2))
	// What the process does have shows that its memory was looked through.
	control := map[string][]byte{"the path of the source": []byte(source)}
	if len(memoryHas(t, p.Pid(), control)) == 0 {
		t.Fatal("the path of the source is not found in the memory")
	}
	for _, place := range memoryHas(t, p.Pid(), secrets) {
		t.Errorf("in the memory of the writer: %s", place)
	}
	dir := filepath.Dir(r.conf)
	operators := []string{r.identity}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the writer works on
			return nil
		}
		if err != nil || d.IsDir() || slices.Contains(operators, path) {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for name, secret := range secrets {
			if bytes.Contains(b, secret) {
				t.Errorf("%s is in %s", name, path)
			}
		}
		if bytes.Contains(b, []byte("AGE-SECRET-KEY-")) {
			t.Errorf("an identity is in %s", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
