package proctest

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var (
	restoreRounds = flag.Int("restore-rounds", 6, "restores of each kind killed by TestRestoreKilled")
	restoreSize   = flag.String("restore-size", "24MB", "size of the Data.fs that is restored")
	restoreSeed   = flag.Uint64("restore-seed", 0, "seed of TestRestoreKilled; 0 chooses one")
)

// A restore that is killed again and again goes on where it was. A Data.fs has no name before
// it is complete, tables are those of no node; in the end all is there.
func TestRestoreKilled(t *testing.T) {
	t.Parallel()
	seed := *restoreSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-restore-seed=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	source := filepath.Join(dir, "Data.fs")
	must(t, "neobench", "generate", source, "--size", *restoreSize, "--seed", fmt.Sprint(seed%1000))
	r := newRepository(t, "file://"+source, "", "--set", "segment_size=16MiB")
	r.run(t, "snapshot")

	// killed runs a restore, kills it in each round, and lets it come to its end.
	killed := func(unfinished func(), args ...string) {
		t.Helper()
		args = append(append([]string{"restore", "-f", r.conf, "--identity", r.identity}, args...), "--json")
		begin := time.Now()
		for round := range *restoreRounds {
			p := Start(t, "neobackup", args...)
			time.Sleep(time.Duration(rnd.IntN(800)) * time.Millisecond)
			if !p.Running() {
				t.Logf("round %d: it was complete after %v", round, time.Since(begin))
				break
			}
			p.Kill()
			unfinished()
		}
		if out, errs, status := Run(t, "neobackup", args...); status != 0 {
			// It may have been complete when it was killed, or have ended by itself.
			says(t, "neobackup", out+errs, `not empty`)
		}
	}
	path := filepath.Join(dir, "restored.fs")
	killed(func() {
		if _, err := os.Stat(path); err == nil {
			sameFiles(t, path, source)
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}, path)
	sameFiles(t, path, source)

	tables := filepath.Join(dir, "tables")
	if err := os.Mkdir(tables, 0o700); err != nil {
		t.Fatal(err)
	}
	killed(func() {}, "--cluster", "restored", "--partitions", "5", "--replicas", "1", "--nodes", "3", "sqlite:"+tables)
	for i := 1; i <= 3; i++ {
		if err := os.Rename(filepath.Join(tables, fmt.Sprintf("storage%d.sqlite", i)), filepath.Join(tables, fmt.Sprintf("s%d.sqlite", i))); err != nil {
			t.Fatal(err)
		}
	}
	c := StartCluster(t, Options{Name: "restored", Dir: tables, Storages: 3, Partitions: 5, Replicas: 1})
	exported := filepath.Join(dir, "exported.fs")
	must(t, "neoexport", "-q", "-c", c.Name, c.Masters, exported)
	sameFiles(t, exported, source)
}
