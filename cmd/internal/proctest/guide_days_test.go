package proctest

import "testing"

// The commands of docs/first-cluster.md make a cluster with two copies of a Data.fs, and start it again.
func TestFirstClusterGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "first-cluster.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:8100")
	says(t, "the guide", out, "S1 R UUUUUUUUUUUU\nS2 R UUUUUUUUUUUU")
}

// The commands of docs/grow.md add a storage, remove another one, and change the number of copies.
func TestGrowGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "grow.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999")
	says(t, "the guide", out, "S3 R ", `S1 R \.{12}\nS2 R U{12}\nS3 R U{12}`)
}

// The commands of docs/replace.md bring back a storage that was killed, and replace one that is lost.
func TestReplaceGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "replace.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999")
	says(t, "the guide", out, "degraded: exit status 1", `S1 R U{12}\nS3 R U{12}`)
}

// The commands of docs/check.md compare the copies of a cluster, and repair one from the other.
func TestCheckGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "check.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999")
	says(t, "the guide", out, "of 12 partitions compared: no difference found")
}
