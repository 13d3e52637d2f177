//go:build linux || darwin

package restore

import "golang.org/x/sys/unix"

// free returns how many bytes a directory has room for, -1 if that is not known.
func free(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return -1
	}
	return int64(st.Bavail) * int64(st.Bsize)
}
