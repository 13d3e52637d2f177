package storetest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
)

// Suite says what is tested.
type Suite struct {
	// Open returns an empty store, which it closes when the test ends; required.
	Open func(t *testing.T) store.Store
	// Reopen returns another store in the same place, as another process has it,
	// or nil for stores that do not outlive a process.
	Reopen func(t *testing.T, s store.Store) store.Store
	// Lock and Versioned say what the store can do.
	Lock      bool
	Versioned bool
	// LockIgnored is set for a store that takes a Put with a retention and does
	// not retain: only the probe finds out.
	LockIgnored bool
	// Keys is how many objects a list has at most; default: 1100, more than one
	// request to S3 returns.
	Keys int
}

// Run tests every promise of a store.
func (s Suite) Run(t *testing.T) {
	s.Keys = cmp.Or(s.Keys, 1100)
	for _, tt := range []struct {
		name string
		f    func(*testing.T, store.Store)
		if_  bool
	}{
		{"Sizes", testSizes, true},
		{"Ranges", testRanges, true},
		{"NotFound", testNotFound, true},
		{"CreateOnce", testCreateOnce, true},
		{"CreateRace", testCreateRace, true},
		{"Replace", testReplace, true},
		{"Whole", testWhole, true},
		{"NotVisibleBefore", testNotVisibleBefore, true},
		{"Interrupted", testInterrupted, true},
		{"Checksum", testChecksum, true},
		{"Sending", testSending, true},
		{"List", testList, true},
		{"ListMany", s.testListMany, true},
		{"Delete", testDelete, true},
		{"Keys", testKeys, true},
		{"Cancelled", testCancelled, true},
		{"Concurrent", testConcurrent, true},
		{"Random", s.testRandom, true},
		{"Date", testDate, true},
		{"Probe", s.testProbe, true},
		{"Reopen", s.testReopen, s.Reopen != nil},
		{"Lock", testLock, s.Lock},
		{"NoLock", testNoLock, !s.Lock && !s.LockIgnored},
		{"Versions", testVersions, s.Versioned},
	} {
		if tt.if_ {
			t.Run(tt.name, func(t *testing.T) { tt.f(t, s.Open(t)) })
		}
	}
}

// random returns n bytes that depend on seed.
func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// Put stores b and fails the test if that fails.
func Put(t testing.TB, s store.Store, key string, b []byte) {
	t.Helper()
	if err := put(t, s, key, b, store.PutOptions{Create: true}); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, s store.Store, key string, b []byte, o store.PutOptions) error {
	return s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), o)
}

// Get returns a whole object and fails the test if that fails.
func Get(t testing.TB, s store.Store, key string) []byte {
	t.Helper()
	b, _, err := get(t.Context(), s, key, 0, store.All)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func get(ctx context.Context, s store.Store, key string, off, n int64) ([]byte, store.Info, error) {
	r, info, err := s.Get(ctx, key, off, n)
	if err != nil {
		return nil, info, err
	}
	b, err := io.ReadAll(r)
	if e := r.Close(); err == nil {
		err = e
	}
	return b, info, err
}

// Keys returns the keys of a list and fails the test if that fails.
func Keys(t testing.TB, s store.Store, prefix, after string) []string {
	t.Helper()
	keys := []string{}
	for info, err := range s.List(t.Context(), prefix, after) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

// absent fails the test if an object is seen.
func absent(t *testing.T, s store.Store, key string) {
	t.Helper()
	if b, _, err := get(context.WithoutCancel(t.Context()), s, key, 0, store.All); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get(%s) = %d bytes, %v, want ErrNotFound", key, len(b), err)
	}
	if keys := Keys(t, s, key, ""); len(keys) > 0 {
		t.Errorf("List(%s) = %q, want nothing", key, keys)
	}
}

func testSizes(t *testing.T, s store.Store) {
	for _, n := range []int{0, 1, 168, 65_536, 1<<20 + 1, 6 << 20} {
		key := fmt.Sprintf("l/%d", n)
		b := random(uint64(n), n)
		begin := time.Now()
		Put(t, s, key, b)
		got, info, err := get(t.Context(), s, key, 0, store.All)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes, %v, want the %d stored", key, len(got), err, n)
		}
		if info.Key != key || info.Size != int64(n) {
			t.Errorf("%s: info %+v", key, info)
		}
		// Servers give seconds; file systems may lag by some milliseconds.
		if info.Modified.Before(begin.Add(-2*time.Second)) || info.Modified.After(time.Now().Add(2*time.Second)) {
			t.Errorf("%s: modified %v, want about %v", key, info.Modified, begin)
		}
	}
}

func testRanges(t *testing.T, s store.Store) {
	const size = 200_000
	b := random(1, size)
	Put(t, s, "a", b)
	Put(t, s, "empty", nil)
	for _, tt := range []struct {
		off, n   int64
		from, to int
	}{
		{0, store.All, 0, size},
		{0, 1, 0, 1},
		{0, size, 0, size},
		{0, size + 1, 0, size},
		{1, store.All, 1, size},
		{65_552, 65_552, 65_552, 131_104},
		{size - 1, 1, size - 1, size},
		{size - 1, 10, size - 1, size},
		{size - 1, store.All, size - 1, size},
		{size, 1, size, size}, // at the end: nothing
		{size, store.All, size, size},
		{2 * size, 10, size, size}, // beyond it: nothing
		{0, 0, 0, 0},               // Info alone
		{7, 0, 0, 0},
		{168, -1, size - 168, size}, // the last bytes
		{1, -1, size - 1, size},
		{size, -1, 0, size},
		{size + 1, -1, 0, size},
		{0, -1, size, size},
	} {
		got, info, err := get(t.Context(), s, "a", tt.off, tt.n)
		if err != nil || !bytes.Equal(got, b[tt.from:tt.to]) || info.Size != size || info.Key != "a" {
			t.Errorf("Get(%d, %d) = %d bytes of %+v, %v, want [%d, %d)", tt.off, tt.n, len(got), info, err, tt.from, tt.to)
		}
		got, info, err = get(t.Context(), s, "empty", tt.off, tt.n)
		if err != nil || len(got) > 0 || info.Size != 0 {
			t.Errorf("Get(%d, %d) of an empty object = %d bytes of %+v, %v", tt.off, tt.n, len(got), info, err)
		}
	}
	for _, n := range []int64{0, 1, -1, store.All} {
		if _, _, err := get(t.Context(), s, "a", -1, n); err == nil || store.Temporary(err) {
			t.Errorf("Get(-1, %d): %v, want a final error", n, err)
		}
	}
	// A body that is closed early, or read byte by byte.
	r, _, err := s.Get(t.Context(), "a", 10, 5)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		var one [1]byte
		if _, err := io.ReadFull(r, one[:]); err != nil || one[0] != b[10+i] {
			t.Errorf("byte %d: %x, %v", i, one, err)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if r, _, err = s.Get(t.Context(), "a", 0, store.All); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func testNotFound(t *testing.T, s store.Store) {
	Put(t, s, "a/b/c", []byte("c"))
	for _, key := range []string{"b", "a", "a/b", "a/b/c/d", "a/b/cc"} {
		for _, n := range []int64{store.All, 0, 1, -1} {
			if b, _, err := get(t.Context(), s, key, 0, n); !errors.Is(err, store.ErrNotFound) || !strings.Contains(fmt.Sprint(err), key) {
				t.Errorf("Get(%s, 0, %d) = %q, %v, want ErrNotFound with the key", key, n, b, err)
			}
		}
	}
}

func testCreateOnce(t *testing.T, s store.Store) {
	Put(t, s, "t/0000000001", []byte("first"))
	for _, b := range []string{"second", "first", ""} {
		if err := put(t, s, "t/0000000001", []byte(b), store.PutOptions{Create: true}); !errors.Is(err, store.ErrExists) || store.Temporary(err) {
			t.Errorf("second create: %v, want ErrExists", err)
		}
		if got := Get(t, s, "t/0000000001"); string(got) != "first" {
			t.Errorf("after a second create: %q", got)
		}
	}
}

// Exactly one of many writers creates a key, and what is stored is the winner's.
func testCreateRace(t *testing.T, s store.Store) {
	for round := range 5 {
		key := fmt.Sprintf("t/%d", round)
		errs := make([]error, 16)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				errs[i] = put(t, s, key, random(uint64(i), 5000+i), store.PutOptions{Create: true})
				for store.Temporary(errs[i]) { // a store may ask to try again
					errs[i] = put(t, s, key, random(uint64(i), 5000+i), store.PutOptions{Create: true})
				}
			})
		}
		wg.Wait()
		winners := 0
		for i, err := range errs {
			switch {
			case err == nil:
				if winners++; !bytes.Equal(Get(t, s, key), random(uint64(i), 5000+i)) {
					t.Errorf("round %d: what is stored is not what the winner stored", round)
				}
			case !errors.Is(err, store.ErrExists):
				t.Errorf("round %d: %v, want ErrExists", round, err)
			}
		}
		if winners != 1 {
			t.Errorf("round %d: %d winners", round, winners)
		}
	}
}

func testReplace(t *testing.T, s store.Store) {
	Put(t, s, "a", []byte("first"))
	for _, b := range []string{"second, longer", "3", ""} {
		if err := put(t, s, "a", []byte(b), store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := Get(t, s, "a"); string(got) != b {
			t.Errorf("Get = %q, want %q", got, b)
		}
	}
	if keys := Keys(t, s, "", ""); !slices.Equal(keys, []string{"a"}) {
		t.Errorf("List = %q", keys)
	}
}

// A reader sees one object or the other, never a mixture or a part.
func testWhole(t *testing.T, s store.Store) {
	a, b := random(1, 300_000), random(2, 100_000)
	Put(t, s, "a", a)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, info, err := get(t.Context(), s, "a", 0, store.All)
				if errors.Is(err, store.ErrChanged) || store.Temporary(err) {
					continue
				} else if err != nil {
					t.Errorf("Get beside a Put: %v", err)
					return
				}
				if !bytes.Equal(got, a) && !bytes.Equal(got, b) || info.Size != int64(len(got)) {
					t.Errorf("Get beside a Put: %d bytes of %+v, which were never stored", len(got), info)
					return
				}
			}
		})
	}
	for i := range 20 {
		if err := put(t, s, "a", [][]byte{b, a}[i%2], store.PutOptions{}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

// An object is not seen before all of it is there. A store may let readers of its
// key wait for a writer.
func testNotVisibleBefore(t *testing.T, s store.Store) {
	b := random(1, 3<<20)
	half := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		<-half
		for {
			got, _, err := get(t.Context(), s, "a/new", 0, store.All)
			switch {
			case err == nil:
				if !bytes.Equal(got, b) {
					t.Errorf("%d bytes are seen of an object of %d", len(got), len(b))
				}
				return
			case !errors.Is(err, store.ErrNotFound) && !store.Temporary(err):
				t.Error(err)
				return
			}
		}
	})
	wg.Go(func() {
		<-half
		for {
			for info, err := range s.List(t.Context(), "a/", "") {
				if err != nil || info.Size != int64(len(b)) {
					t.Errorf("listed: %+v, %v", info, err)
				}
				return
			}
		}
	})
	sent := 0
	err := put(t, s, "a/new", b, store.PutOptions{Create: true, Sending: func(n int) error {
		if sent < len(b)/2 && sent+n >= len(b)/2 {
			close(half)
			time.Sleep(100 * time.Millisecond)
		}
		sent += n
		return nil
	}})
	if err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// failing is a body that fails after some bytes.
type failing struct {
	n   int64
	err error
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= f.n {
		return len(p), nil
	}
	return int(max(0, f.n-off)), f.err
}

// A Put that fails in the middle leaves nothing.
func testInterrupted(t *testing.T, s store.Store) {
	const size = 3 << 20
	broken := errors.New("broken")
	if err := s.Put(t.Context(), "a", failing{size / 2, broken}, size, store.PutOptions{Create: true}); !errors.Is(err, broken) {
		t.Errorf("Put of a broken body: %v", err)
	}
	absent(t, s, "a")
	if err := s.Put(t.Context(), "b", bytes.NewReader(make([]byte, size/2)), size, store.PutOptions{Create: true}); !errors.Is(err, io.ErrUnexpectedEOF) || store.Temporary(err) {
		t.Errorf("Put of a short body: %v, want io.ErrUnexpectedEOF", err)
	}
	absent(t, s, "b")
	if err := put(t, s, "c", make([]byte, size), store.PutOptions{Create: true, Sending: func(int) error { return broken }}); !errors.Is(err, broken) || store.Temporary(err) {
		t.Errorf("Put stopped by Sending: %v", err)
	}
	absent(t, s, "c")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := s.Put(ctx, "d", bytes.NewReader(make([]byte, size)), size, store.PutOptions{Create: true, Sending: func(int) error { cancel(); return ctx.Err() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Put: %v", err)
	}
	absent(t, s, "d")
	if err := s.Put(t.Context(), "e", bytes.NewReader(nil), -1, store.PutOptions{Create: true}); err == nil {
		t.Error("an object of -1 bytes is stored")
	}
	if err := s.Put(t.Context(), "e", bytes.NewReader(nil), store.MaxObject+1, store.PutOptions{Create: true}); err == nil {
		t.Error("an object that is too large is stored")
	}
	absent(t, s, "e")
	Put(t, s, "a", []byte("now")) // the key is free
}

func testChecksum(t *testing.T, s store.Store) {
	b := random(1, 100_000)
	o := store.PutOptions{Create: true, SHA256: sha256.Sum256(b)}
	o.SHA256[0]++
	if err := put(t, s, "a", b, o); !errors.Is(err, store.ErrChecksum) || store.Temporary(err) {
		t.Errorf("wrong SHA-256: %v, want ErrChecksum", err)
	}
	absent(t, s, "a")
	o.SHA256[0]--
	if err := put(t, s, "a", b, o); err != nil {
		t.Errorf("right SHA-256: %v", err)
	}
}

func testSending(t *testing.T, s store.Store) {
	for _, size := range []int{0, 1, 5 << 20} {
		sent := 0
		err := put(t, s, fmt.Sprintf("a/%d", size), random(1, size), store.PutOptions{Create: true, Sending: func(n int) error {
			sent += n
			return nil
		}})
		if err != nil || sent != size {
			t.Errorf("Put of %d bytes: %v, told of %d", size, err, sent)
		}
	}
}

func testList(t *testing.T, s store.Store) {
	// In the order of bytes: - . / 0-9 T Z a-z. Directories sort differently.
	keys := []string{"a", "b-x", "b.x", "b/-", "b/a/x", "b/a/y", "b/aT", "b/a0", "b/b", "b0", "bTx", "bZ", "bb/c", "bc", "d"}
	slices.Sort(keys)
	if got := Keys(t, s, "", ""); len(got) > 0 {
		t.Errorf("an empty store lists %q", got)
	}
	for i, key := range rand.Perm(len(keys)) {
		Put(t, s, keys[key], random(uint64(i), 10+key))
		if got := Keys(t, s, keys[key], ""); !slices.Contains(got, keys[key]) {
			t.Errorf("%s just stored is not in %q", keys[key], got)
		}
	}
	afters := append([]string{"", "b", "b/", "b/a", "b/a/", "b/zz", "c", "0", "z"}, keys...)
	for _, prefix := range []string{"", "a", "b", "b/", "b/a", "b/a/", "b/a/x", "b.", "bb/", "c", "z", "b/a/x/y"} {
		for _, after := range afters {
			want := []string{}
			for _, key := range keys {
				if strings.HasPrefix(key, prefix) && key > after {
					want = append(want, key)
				}
			}
			if got := Keys(t, s, prefix, after); !slices.Equal(got, want) {
				t.Errorf("List(%q, %q) = %q, want %q", prefix, after, got, want)
			}
		}
	}
	for info, err := range s.List(t.Context(), "b/", "") {
		if want := int64(10 + slices.Index(keys, info.Key)); err != nil || info.Size != want || time.Since(info.Modified).Abs() > 10*time.Minute {
			t.Errorf("%+v, %v, want %d bytes", info, err, want)
		}
		if _, stat, err := get(t.Context(), s, info.Key, 0, 0); err != nil || stat.ETag != info.ETag || stat.Size != info.Size {
			t.Errorf("Get says %+v, List %+v", stat, info)
		}
	}
	for range s.List(t.Context(), "", "") {
		break // ending early is allowed
	}
}

// parallel calls f for 0 to n-1.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func (x Suite) testListMany(t *testing.T, s store.Store) {
	want := make([]string, x.Keys)
	parallel(x.Keys, func(i int) {
		want[i] = fmt.Sprintf("l/s/%06d", i*7)
		if err := put(t, s, want[i], []byte("x"), store.PutOptions{Create: true}); err != nil {
			t.Error(err)
		}
	})
	if got := Keys(t, s, "l/", ""); !slices.Equal(got, want) {
		t.Errorf("List yields %d keys, want the %d in order", len(got), len(want))
	}
	if got := Keys(t, s, "l/s/", want[10]); !slices.Equal(got, want[11:]) {
		t.Errorf("List after the 11th yields %d keys, want %d", len(got), len(want)-11)
	}
	// A list that is cancelled does not look complete.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n, failed := 0, error(nil)
	for _, err := range s.List(ctx, "", "") {
		if err != nil {
			failed = err
			continue
		}
		n++
		cancel()
	}
	if n < x.Keys && !errors.Is(failed, context.Canceled) {
		t.Errorf("a cancelled list ends after %d of %d keys with %v", n, x.Keys, failed)
	}
	if err := s.Delete(t.Context(), want[1:]); err != nil {
		t.Error(err)
	}
	if got := Keys(t, s, "", ""); !slices.Equal(got, want[:1]) {
		t.Errorf("%d keys left, want 1", len(got))
	}
}

func testDelete(t *testing.T, s store.Store) {
	for _, key := range []string{"a", "b/c", "b/d", "e"} {
		Put(t, s, key, []byte(key))
	}
	if err := s.Delete(t.Context(), nil); err != nil {
		t.Errorf("Delete of nothing: %v", err)
	}
	if err := s.Delete(t.Context(), []string{"none", "b/c", "b/c/d", "x/y/z", "a"}); err != nil {
		t.Errorf("Delete: %v", err)
	}
	absent(t, s, "a")
	absent(t, s, "b/c")
	if got := Keys(t, s, "", ""); !slices.Equal(got, []string{"b/d", "e"}) {
		t.Errorf("left: %q", got)
	}
	if err := s.Delete(t.Context(), []string{"e"}); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if err := s.Delete(t.Context(), []string{"e"}); err != nil {
		t.Errorf("Delete again: %v", err)
	}
	absent(t, s, "e")
	if got := Get(t, s, "b/d"); string(got) != "b/d" {
		t.Errorf("b/d is %q", got)
	}
}

func testKeys(t *testing.T, s store.Store) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".a", "a/.tmp", "A", "ä", "a b", "a%20", "a_b", "a\x00", "a\\b", "a+b", strings.Repeat("a", store.MaxKey+1)} {
		if err := put(t, s, key, []byte("x"), store.PutOptions{}); !errors.Is(err, store.ErrKey) {
			t.Errorf("Put(%q): %v, want ErrKey", key, err)
		}
	}
	if got := Keys(t, s, "", ""); len(got) > 0 {
		t.Errorf("stored: %q", got)
	}
	// What repositories have.
	lin := strings.Repeat("0123456789abcdef", 2)
	for _, key := range []string{
		"neobackup", "keys/0001.pub", "keys/0001.0001", "l/0001", lin + "/m/fffffffffe", lin + "/t/0000000001",
		lin + "/c/0123456789abcdef", lin + "/s/03f1a2b3c4d5e6f7-03f1a2b3c4d5e6f8-0123456789abcdef", lin + "/x/0",
		lin + "/p/20261120T201003Z-03f1a2b3c4d5e6f7", "policy/0001", "d/20261120T201003Z", "d/20261120T201003Z.void", "probe/0a",
		strings.Repeat("a", store.MaxKey),
	} {
		Put(t, s, key, []byte(key))
		if got := Get(t, s, key); string(got) != key {
			t.Errorf("%s: %q", key, got)
		}
	}
}

// With a context that has ended every call fails, and says so.
func testCancelled(t *testing.T, s store.Store) {
	Put(t, s, "a", []byte("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check := func(call string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", call, err)
		}
	}
	check("Put", s.Put(ctx, "b", bytes.NewReader(nil), 0, store.PutOptions{}))
	_, _, err := get(ctx, s, "a", 0, store.All)
	check("Get", err)
	err = nil
	for _, e := range s.List(ctx, "", "") {
		err = e
	}
	check("List", err)
	check("Delete", s.Delete(ctx, []string{"a"}))
	if got := Keys(t, s, "", ""); !slices.Equal(got, []string{"a"}) {
		t.Errorf("after calls that were cancelled: %q", got)
	}
}

func testConcurrent(t *testing.T, s store.Store) {
	parallel(50, func(i int) {
		key := fmt.Sprintf("%d/%d", i%3, i)
		b := random(uint64(i), 1000*i)
		if err := put(t, s, key, b, store.PutOptions{Create: true}); err != nil {
			t.Error(err)
			return
		}
		got, _, err := get(t.Context(), s, key, 0, store.All)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes, %v", key, len(got), err)
		}
		for info, err := range s.List(t.Context(), key, "") {
			if err != nil || info.Key == key && info.Size != int64(len(b)) {
				t.Errorf("%+v, %v", info, err)
			}
		}
		if i%2 == 0 {
			if err := s.Delete(t.Context(), []string{key}); err != nil {
				t.Error(err)
			}
		}
	})
	if got := Keys(t, s, "", ""); len(got) != 25 {
		t.Errorf("%d objects, want 25: %q", len(got), got)
	}
}

// Whatever is called in whatever order, the store answers as the one in memory.
func (x Suite) testRandom(t *testing.T, s store.Store) {
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	model := memstore.New(memstore.Options{})
	keys := []string{"a", "b/a", "b/b", "b/c/d", "b-", "b0/x", "c"}
	gone := map[string]bool{} // keys that were deleted are not created again
	kind := func(err error) string {
		for _, e := range []error{store.ErrExists, store.ErrNotFound, store.ErrKey} {
			if errors.Is(err, e) {
				return e.Error()
			}
		}
		return fmt.Sprint(err)
	}
	for i := range 300 {
		key := keys[r.IntN(len(keys))]
		var got, want error
		var call string
		switch r.IntN(6) {
		case 0, 1:
			if gone[key] {
				continue
			}
			b, create := random(r.Uint64(), r.IntN(3000)), r.IntN(2) == 0
			call = fmt.Sprintf("Put(%s, %d bytes, create %v)", key, len(b), create)
			got = put(t, s, key, b, store.PutOptions{Create: create})
			want = put(t, model, key, b, store.PutOptions{Create: create})
		case 2, 3:
			off, n := r.Int64N(3000), r.Int64N(3000)-100
			call = fmt.Sprintf("Get(%s, %d, %d)", key, off, n)
			var a, b []byte
			a, _, got = get(t.Context(), s, key, off, n)
			b, _, want = get(t.Context(), model, key, off, n)
			if !bytes.Equal(a, b) {
				t.Fatalf("call %d, %s: %d bytes, want %d", i, call, len(a), len(b))
			}
		case 4:
			prefix, after := key[:r.IntN(len(key)+1)], keys[r.IntN(len(keys))]
			call = fmt.Sprintf("List(%s, %s)", prefix, after)
			if a, b := Keys(t, s, prefix, after), Keys(t, model, prefix, after); !slices.Equal(a, b) {
				t.Fatalf("call %d, %s: %q, want %q", i, call, a, b)
			}
		case 5:
			if r.IntN(10) > 0 {
				continue
			}
			call = "Delete " + key
			got, want = s.Delete(t.Context(), []string{key}), model.Delete(t.Context(), []string{key})
			gone[key] = true
		}
		if kind(got) != kind(want) {
			t.Fatalf("call %d, %s: %v, want %v", i, call, got, want)
		}
	}
}

func testDate(t *testing.T, s store.Store) {
	if _, ok := s.(store.Dater); !ok {
		t.Error("the store is no Dater")
	}
	Put(t, s, "a", []byte("a"))
	if d := store.Date(s); time.Since(d).Abs() > time.Minute {
		t.Errorf("the store's time is %v, %v from here", d, time.Since(d))
	}
}

// The store passes the probe, which leaves nothing.
func (x Suite) testProbe(t *testing.T, s store.Store) {
	rep, err := store.Probe(t.Context(), s, store.ProbeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := rep.Err("the store"); err != nil {
		t.Error(err)
	}
	if got := Keys(t, s, "", ""); len(got) > 0 || len(rep.Left) > 0 {
		t.Errorf("the probe leaves %q, and says %q", got, rep.Left)
	}
}

func (x Suite) testReopen(t *testing.T, s store.Store) {
	b := random(1, 100_000)
	Put(t, s, "l/a", b)
	other := x.Reopen(t, s)
	if got := Get(t, other, "l/a"); !bytes.Equal(got, b) {
		t.Error("another process reads other bytes")
	}
	if err := put(t, other, "l/a", nil, store.PutOptions{Create: true}); !errors.Is(err, store.ErrExists) {
		t.Errorf("create by another process: %v, want ErrExists", err)
	}
	Put(t, other, "l/b", b)
	if got := Keys(t, s, "", ""); !slices.Equal(got, []string{"l/a", "l/b"}) {
		t.Errorf("List = %q, want both", got)
	}
}

func testNoLock(t *testing.T, s store.Store) {
	err := put(t, s, "a", []byte("a"), store.PutOptions{Create: true, Retain: store.Retention{Mode: store.Governance, Until: time.Now().Add(time.Minute)}})
	if err == nil || store.Temporary(err) {
		t.Errorf("Put with a retention: %v, want a final error", err)
	}
	absent(t, s, "a")
}

func testLock(t *testing.T, s store.Store) {
	t.Parallel() // it waits
	var key string
	var until time.Time
	var versions []store.Version
	for hold := 5 * time.Second; ; hold *= 4 {
		key, until = fmt.Sprintf("a/%d", hold/time.Second), time.Now().Add(hold).Truncate(time.Second)
		var err error
		if versions, err = locked(t, s, key, until); err == nil {
			break
		}
		if time.Now().Before(until.Add(-2*time.Second)) || hold > 10*time.Minute {
			t.Fatal(err)
		}
		// It took so long that the lock had ended.
	}
	if _, err := store.GetRetention(t.Context(), s, "none", ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Retention of nothing: %v, want ErrNotFound", err)
	}
	Put(t, s, "b", []byte("b"))
	if got, err := store.GetRetention(t.Context(), s, "b", ""); err != nil || !got.IsZero() {
		t.Errorf("Retention = %v, %v, want none", got, err)
	}
	for { // once the time is over
		late := time.Since(until) > 30*time.Second
		err := store.DeleteVersions(t.Context(), s, versions)
		if err == nil {
			break
		}
		if _, ok := errors.AsType[*store.LockedError](err); !ok || late {
			t.Fatalf("DeleteVersions after the retention: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	absent(t, s, key)
	rep, err := store.Probe(t.Context(), s, store.ProbeOptions{Lock: store.Governance})
	if err != nil {
		t.Fatal(err)
	}
	if err := rep.Err("the store"); err != nil {
		t.Error(err)
	}
}

// locked stores an object that is locked until a time, and returns its version. All of it has to
// be done before that time.
func locked(t *testing.T, s store.Store, key string, until time.Time) ([]store.Version, error) {
	t.Helper()
	retain := store.Retention{Mode: store.Governance, Until: until}
	if err := put(t, s, key, []byte("a"), store.PutOptions{Create: true, Retain: retain}); err != nil {
		return nil, err
	}
	same := func(want store.Retention) error {
		if got, err := store.GetRetention(t.Context(), s, key, ""); err != nil || got.Mode != want.Mode || !got.Until.Equal(want.Until) {
			return fmt.Errorf("Retention = %v, %w, want %v", got, err, want)
		}
		return nil
	}
	if err := same(retain); err != nil {
		return nil, err
	}
	var versions []store.Version
	for v, err := range store.Versions(t.Context(), s, key) {
		if err != nil {
			return nil, err
		}
		versions = append(versions, v)
	}
	if len(versions) != 1 {
		return nil, fmt.Errorf("Versions = %v, want one", versions)
	}
	err := store.DeleteVersions(t.Context(), s, versions)
	if l, ok := errors.AsType[*store.LockedError](err); !ok || l.Key != key || store.Temporary(err) {
		return nil, fmt.Errorf("DeleteVersions: %w, want a *LockedError", err)
	}
	if got, _, err := get(t.Context(), s, key, 0, store.All); err != nil || string(got) != "a" {
		return nil, fmt.Errorf("%s = %q, %w", key, got, err)
	}
	// Shorter or weaker: nothing changes. Longer: it does.
	if err := store.SetRetention(t.Context(), s, key, "", store.Retention{Mode: store.Governance, Until: until.Add(-2 * time.Second)}); err != nil {
		return nil, err
	}
	if err := same(retain); err != nil {
		return nil, err
	}
	retain.Until = until.Add(time.Second)
	if err := store.SetRetention(t.Context(), s, key, "", retain); err != nil {
		return nil, err
	}
	return versions, same(retain)
}

func testVersions(t *testing.T, s store.Store) {
	Put(t, s, "a", []byte("good"))
	if err := put(t, s, "a", []byte("tampered"), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	Put(t, s, "b/c", []byte("deleted"))
	if err := s.Delete(t.Context(), []string{"b/c"}); err != nil {
		t.Fatal(err)
	}
	absent(t, s, "b/c")
	var got []string
	for v, err := range store.Versions(t.Context(), s, "") {
		if err != nil {
			t.Fatal(err)
		}
		text := "deletion"
		if !v.Deleted {
			r, info, err := store.GetVersion(t.Context(), s, v.Key, v.Version, 0, store.All)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err != nil || info.Version != v.Version || v.Size != int64(len(b)) {
				t.Errorf("%+v: %d bytes of %+v, %v", v, len(b), info, err)
			}
			r.Close()
			text = string(b)
		}
		got = append(got, fmt.Sprintf("%s %s %v", v.Key, text, v.Latest))
	}
	if want := []string{"a tampered true", "a good false", "b/c deletion true", "b/c deleted false"}; !slices.Equal(got, want) {
		t.Errorf("Versions = %q, want %q", got, want)
	}
	if _, _, err := store.GetVersion(t.Context(), s, "none", "none", 0, store.All); err == nil || store.Temporary(err) {
		t.Errorf("GetVersion of nothing: %v", err)
	}
	// The newest goes, the older one is seen again.
	_, info, err := get(t.Context(), s, "a", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.DeleteVersions(t.Context(), s, []store.Version{{Info: info}}); err != nil {
		t.Fatal(err)
	}
	if b := Get(t, s, "a"); string(b) != "good" {
		t.Errorf("a = %q, want the older version", b)
	}
}
