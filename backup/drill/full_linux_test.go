package drill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// A scratch directory that is full, or gets full, is a drill that failed, and named.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	w.o.Source, w.o.At = nil, Head
	for _, mode := range []Mode{File, Cluster} {
		for _, kib := range []int{600, 2500} {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
				zeotest.Missing(t, "mounting a small disk (run this test as root): %v", err)
			}
			o := w.o
			o.Scratch, o.Mode = dir, mode
			filled := kib < 1000
			if !filled { // after the space was looked at
				o.Progress = func(p Phase, _, _ int64) {
					if p == Restoring && !filled {
						filled = true
						// As much as there is.
						os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, kib<<10), 0o600)
					}
				}
			}
			res, err := Run(t.Context(), o)
			if !errors.Is(err, restore.ErrSpace) || !strings.Contains(err.Error(), dir) || res.Key == "" || !strings.Contains(res.Proof.Reason, "not enough space") {
				t.Errorf("%s, %d KiB: %v", mode, kib, err)
			}
			if list, err := filepath.Glob(filepath.Join(dir, "neobackup*")); err != nil || len(list) > 0 {
				t.Errorf("%s, %d KiB: %v, %v", mode, kib, list, err)
			}
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
}
