package cli

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Away from a terminal there is a line every few seconds, and no carriage return.
func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := NewProgress(&Env{Stderr: &out}, ProgressConfig{What: "importing", Items: "transactions", Total: 100e6})
	p.now = func() time.Time { return now }
	p.start, p.shown = now, now
	for range 100 {
		now = now.Add(250 * time.Millisecond)
		p.Add(120, 500e3)
	}
	p.Done()
	p.Done() // says nothing more
	want := `importing: 10.0 % (10 of 100 MB), 2,400 transactions, 2.0 MB/s, 45 s left
importing: 20.0 % (20 of 100 MB), 4,800 transactions, 2.0 MB/s, 40 s left
importing: 30.0 % (30 of 100 MB), 7,200 transactions, 2.0 MB/s, 35 s left
importing: 40.0 % (40 of 100 MB), 9,600 transactions, 2.0 MB/s, 30 s left
importing: 50.0 % (50 of 100 MB), 12,000 transactions, 2.0 MB/s, 25 s left
importing: 12,000 transactions, 50 MB in 25 s
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Of a large amount hardly anything is done after the first line.
func TestProgressHardlyBegun(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := NewProgress(&Env{Stderr: &out}, ProgressConfig{What: "importing", Total: 1e12})
	p.now = func() time.Time { return now }
	p.start, p.shown = now, now
	now = now.Add(5 * time.Second)
	p.Set(0, 154)
	if diff := cmp.Diff("importing: 0.0 % (154 B of 1.0 TB), 30 B/s\n", out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestProgressWithoutTotal(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := NewProgress(&Env{Stderr: &out}, ProgressConfig{What: "checking", Items: "objects"})
	p.now = func() time.Time { return now }
	p.start, p.shown = now, now
	now = now.Add(5 * time.Second)
	p.Set(1234567, 0)
	p.Done()
	want := "checking: 1,234,567 objects, 246,913 objects/s\nchecking: 1,234,567 objects in 5.0 s\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestProgressQuiet(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&Env{Stderr: &out}, ProgressConfig{What: "x", Quiet: true, Every: 1})
	p.Add(1, 1)
	p.Done()
	if out.Len() > 0 {
		t.Errorf("quiet, but printed %q", out.String())
	}
}

// On a terminal the bar goes on when there is more than was announced, and when
// bytes start to be counted.
func TestProgressBar(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&Env{Stderr: &out}, ProgressConfig{What: "importing", Items: "objects", Total: 10})
	p.bar = p.newBar()
	for range 20 {
		p.Add(1, 1)
	}
	p.Done()
	if !bytes.Contains(out.Bytes(), []byte("100%")) || !bytes.HasSuffix(out.Bytes(), []byte("importing: 20 objects, 20 B in 0.0 s\n")) {
		t.Errorf("bar: %q", out.String())
	}
}
