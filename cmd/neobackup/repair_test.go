package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/neozodb/neo/backup/store/storetest"
)

// spoil flips a bit of a stored object, near its end.
func (w *world) spoil(key string) {
	w.t.Helper()
	b := []byte(w.read(filepath.Join("repo", key)))
	b[len(b)-20] ^= 1
	w.write(filepath.Join("repo", key), string(b), 0o600)
}

func (w *world) saveRepo() {
	w.t.Helper()
	if err := os.CopyFS(w.path("copy"), os.DirFS(w.path("repo"))); err != nil {
		w.t.Fatal(err)
	}
}

// A damaged segment is found, not restored, and repaired from a copy, from the source, or given up: each only with --confirm.
func TestRepairCommand(t *testing.T) {
	for name, means := range map[string][]string{"copy": {"--from", "COPY"}, "source": {"--against"}, "gap": {"--accept-gaps"}} {
		w := newWorld(t)
		w.prepare("02-undo.fs")
		w.want(0, "snapshot")
		for _, key := range w.keys(`/t/`) { // as a keeper would
			if err := os.Remove(w.path(filepath.Join("repo", key))); err != nil {
				t.Fatal(err)
			}
		}
		w.saveRepo()
		for i := range means {
			means[i] = strings.Replace(means[i], "COPY", "file://"+w.path("copy"), 1)
		}
		w.want(0, "restore", "-i", w.path("op1.txt"), w.path("before.fs"))
		segment := w.keys(`/s/`)[0]
		w.spoil(segment)
		out, _ := w.want(3, "verify", "-i", w.path("op1.txt"))
		w.says(out, segment)
		w.want(3, "restore", "-i", w.path("op1.txt"), w.path("damaged.fs"))

		objects := len(w.keys("."))
		out, errs := w.want(3, "repair", "-i", w.path("op1.txt"))
		w.says(out, segment, "cannot be repaired")
		w.says(errs, "--from another copy")
		args := append([]string{"repair", "-i", w.path("op1.txt")}, means...)
		out, errs = w.want(3, args...)
		w.says(out, segment, "new +manifest 3", "Nothing was done")
		w.says(errs, "--confirm")
		if n := len(w.keys(".")); n != objects {
			t.Errorf("%s: %d objects were stored by plans", name, n-objects)
		}
		out, _ = w.want(3, append(args, "--json")...)
		var doc struct {
			V    int
			Plan struct {
				Manifest int
				Steps    []struct{ Key, Means, After, Upto string }
			}
			Gaps []struct{ After, Upto string }
		}
		if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.V != 1 || doc.Plan.Manifest != 3 || len(doc.Plan.Steps) != 1 || doc.Plan.Steps[0].Key != segment || len(doc.Plan.Steps[0].Upto) != 16 {
			t.Errorf("%v %s", err, out)
		}
		out, _ = w.want(0, append(args, "--confirm")...)
		w.says(out, "Done: ", "manifest 3 is the newest")
		w.want(0, "check")
		w.want(0, "repair", "-i", w.path("op1.txt"))
		if name == "gap" {
			_, errs := w.want(3, "restore", "-i", w.path("op1.txt"), w.path("after.fs"))
			w.says(errs, "accepted")
			out, _ := w.want(0, "restore", "--allow-gap", "-i", w.path("op1.txt"), w.path("after.fs"))
			w.says(out, "after.fs.unknown lists them")
			continue
		}
		w.want(0, "verify", "-i", w.path("op1.txt"))
		w.want(0, "restore", "-i", w.path("op1.txt"), w.path("after.fs"))
		if !bytes.Equal([]byte(w.read("before.fs")), []byte(w.read("after.fs"))) {
			t.Errorf("%s: the restored file differs", name)
		}
		w.want(0, "snapshot") // the writer goes on
		w.want(0, "check")
	}
}

// With spoiled manifests only recover helps. A host that has no key of the writer can plan, not act.
func TestRecoverCommand(t *testing.T) {
	w := newWorld(t)
	w.prepare("02-undo.fs")
	w.want(0, "snapshot")
	w.want(0, "restore", "-i", w.path("op1.txt"), w.path("before.fs"))
	_, errs := w.want(1, "recover", "-i", w.path("op1.txt"))
	w.says(errs, "verifies", "neobackup repair")
	for _, key := range w.keys(`/m/`) {
		w.write(filepath.Join("repo", key), "spoiled", 0o600)
	}
	w.want(3, "check")
	w.want(3, "restore", "-i", w.path("op1.txt"), w.path("damaged.fs"))
	_, errs = w.want(3, "repair", "-i", w.path("op1.txt"))
	w.says(errs, "neobackup recover")
	out, _ := w.want(3, "recover", "-i", w.path("op1.txt"), "--against")
	w.says(out, "Nothing was done")
	_, errs = w.want(2, "recover", "-i", w.path("op1.txt"), "--against", "--confirm", "--set", "sign_key=")
	w.says(errs, "sign_key")
	out, _ = w.want(0, "recover", "-i", w.path("op1.txt"), "--against", "--confirm")
	w.says(out, "Done: ")
	w.want(0, "check")
	w.want(0, "verify", "-i", w.path("op1.txt"))
	w.want(0, "restore", "-i", w.path("op1.txt"), w.path("after.fs"))
	if w.read("before.fs") != w.read("after.fs") {
		t.Error("the restored file differs")
	}
	w.want(0, "snapshot")
}

// What a writer stored before its state directory was lost is merged by compact.
func TestCompactCommand(t *testing.T) {
	w := newWorld(t)
	w.prepare("02-undo.fs", "--set", "segment_size=16MiB")
	w.want(0, "snapshot", "--at", "2019-01-01") // before the first
	w.want(0, "snapshot")
	w.want(0, "restore", "-i", w.path("op1.txt"), w.path("before.fs"))
	out, _ := w.want(0, "compact", "-i", w.path("op1.txt"))
	w.says(out, "nothing to do|Nothing was done")
	w.want(0, "compact", "-i", w.path("op1.txt"), "--confirm")
	w.want(0, "verify", "-i", w.path("op1.txt"))
	w.want(0, "restore", "-i", w.path("op1.txt"), w.path("after.fs"))
	if w.read("before.fs") != w.read("after.fs") {
		t.Error("the restored file differs")
	}
}

// In a bucket that keeps versions, a restore of what was overwritten succeeds, from the version beneath, and says so with
// status 3, until it is repaired.
func TestTamperedBucket(t *testing.T) {
	server := storetest.MinIO(t)
	bucket := server.Bucket(t, true)
	w := newWorld(t)
	for _, kv := range server.Env() {
		k, v, _ := strings.Cut(kv, "=")
		w.env[k] = v
	}
	b, err := os.ReadFile(samples + "02-undo.fs")
	if err != nil {
		t.Fatal(err)
	}
	w.write("Data.fs", string(b), 0o600)
	out, _ := w.want(0, "key", "generate", w.path("op1.txt"))
	w.want(0, "init", server.URL(bucket, "prod"), "-f", w.conf, "--name", "prod", "--source", "file://"+w.path("Data.fs"), "--recipient", strings.TrimSpace(out), "--single-recipient")
	w.want(0, "snapshot")
	w.want(0, "restore", "-i", w.path("op1.txt"), w.path("before.fs"))
	key := ""
	for o := range server.Client(t).ListObjects(t.Context(), bucket, minio.ListObjectsOptions{Prefix: "prod/", Recursive: true}) {
		if strings.Contains(o.Key, "/s/") {
			key = o.Key
		}
	}
	if _, err := server.Client(t).PutObject(t.Context(), bucket, key, strings.NewReader("pay us"), 6, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	_, errs := w.want(3, "restore", "-i", w.path("op1.txt"), w.path("tampered.fs"))
	w.says(errs, "was overwritten or deleted", "1 objects of the repository were tampered with", "neobackup repair")
	if w.read("before.fs") != w.read("tampered.fs") {
		t.Error("the restored file differs")
	}
	w.want(3, "verify", "-i", w.path("op1.txt"))
	out, _ = w.want(0, "repair", "-i", w.path("op1.txt"), "--confirm")
	w.says(out, "an older version of the object is right")
	w.want(0, "verify", "-i", w.path("op1.txt"))
	w.want(0, "restore", "-i", w.path("op1.txt"), w.path("after.fs"))
	if w.read("before.fs") != w.read("after.fs") {
		t.Error("the restored file differs")
	}
}
