package proctest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
)

// without returns a Data.fs without the bytes [from, to), which are transactions or
// records of one: its length shrinks, and all positions after them move.
func without(b []byte, from, to int) []byte {
	gap := uint64(to - from)
	walk := func(transaction func(pos, length int), position func(at int)) {
		for pos := 4; pos < len(b); {
			length := int(binary.BigEndian.Uint64(b[pos+8:]))
			rec := pos + 23
			for at := 17; at < 23; at += 2 {
				rec += int(binary.BigEndian.Uint16(b[pos+at:]))
			}
			for rec < pos+length {
				position(rec + 16)
				position(rec + 24)
				size := int(binary.BigEndian.Uint64(b[rec+34:]))
				if size == 0 {
					position(rec + 42)
					size = 8
				}
				rec += 42 + size
			}
			transaction(pos, length)
			pos += length + 8
		}
	}
	shorter := func(at int) { binary.BigEndian.PutUint64(b[at:], binary.BigEndian.Uint64(b[at:])-gap) }
	b = slices.Clone(b)
	var around []int
	walk(func(pos, length int) {
		if pos < from && to <= pos+length {
			around = []int{pos + 8, pos + length}
		}
	}, func(at int) {
		if binary.BigEndian.Uint64(b[at:]) >= uint64(to) {
			shorter(at)
		}
	})
	for _, at := range around {
		shorter(at)
	}
	return slices.Concat(b[:from], b[to:])
}

// differences are what a cluster cannot keep of a Data.fs, sample by sample.
// Whatever is not listed comes back byte for byte.
var differences = map[string]func(b []byte) []byte{
	// No packet of a commit carries the status of packed transactions. A packed
	// record of which the pack had forgotten the previous one, still in the file
	// since another refers to it, gets it back.
	"05-packed.fs": func(b []byte) []byte {
		for _, at := range []int{20, 174, 328, 493, 729} {
			b[at] = ' '
		}
		b[742+16+7] = 33
		return b
	},
	// The incomplete transaction at the end never was in the database.
	"08-truncated-tail.fs": func(b []byte) []byte { return b[:1135] },
	"09-voted-tail.fs":     func(b []byte) []byte { return b[:293] },
	// A transaction undone in place is left out, and the magic is that of Python 3.
	"10-legacy-fs21.fs": func(b []byte) []byte {
		end := 1024 + 8 + int(binary.BigEndian.Uint64(b[1024+8:]))
		return append([]byte("FS30"), without(b, 1024, end)[4:]...)
	},
}

// undone is how many records of some samples are links to older data.
var undone = map[string]string{"02-undo.fs": "5", "site.fs": "51"}

var shapes = []Options{
	{Storages: 1, Partitions: 4},
	{Storages: 2, Partitions: 5, Replicas: 1},
	{Storages: 3, Partitions: 7},
}

// Every sample goes into clusters of several shapes, and comes back.
func TestIdentity(t *testing.T) {
	files, err := filepath.Glob(samples + "/*.fs")
	if err != nil || len(files) < 12 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		if name == "06-metadata.fs" {
			continue // see TestMetadata
		}
		want := read(t, file)
		if change := differences[name]; change != nil {
			want = change(slices.Clone(want))
			if bytes.Equal(want, read(t, file)) {
				t.Errorf("%s: the difference is none", name)
			}
		}
		for _, shape := range shapes {
			t.Run(fmt.Sprintf("%s into %d storages", name, shape.Storages), func(t *testing.T) {
				t.Parallel()
				c := StartCluster(t, shape)
				c.migrate(t, file)
				out := filepath.Join(t.TempDir(), "export.fs")
				c.export(t, out, "--verify")
				sameBytes(t, out, want)
				migrated := filepath.Join(t.TempDir(), "migrate.fs")
				must(t, "neomigrate", "-q", "-c", c.Name, c.Masters, migrated)
				sameBytes(t, migrated, want)
				if name == "10-legacy-fs21.fs" {
					c.export(t, out+"21", "--magic", "FS21")
					sameBytes(t, out+"21", append([]byte("FS21"), want[4:]...))
				}
				if name == "05-packed.fs" {
					packed := out + ".packed"
					c.export(t, packed, "--packed-up-to", places(t, file)[4].tid.String())
					sameBytes(t, packed, read(t, file))
				}
				// Nothing more to do, neither in nor out.
				c.migrate(t, file)
				c.export(t, out)
				sameBytes(t, out, want)
				// Nothing was replaced by what only looks alike: undo refers to what it undid.
				report, _ := must(t, "neofs", "check", "-q", out)
				if n := undone[name]; n != "" {
					says(t, "neofs check", report, n+` records that share the data of earlier ones`)
				}
			})
		}
	}
}

// The last transaction of this sample has an object id that databases of clusters
// cannot keep; in another one an object is twice, and the last record
// counts; and one has the status of packed transactions.
func TestMetadata(t *testing.T) {
	t.Parallel()
	file := filepath.Join(samples, "06-metadata.fs")
	b := read(t, file)
	list := places(t, file)
	last := list[len(list)-1]

	c := StartCluster(t, Options{Storages: 2})
	refused(t, 1, []string{last.tid.String(), "ffffffffffff0001"}, "neomigrate", "-q", "-c", c.Name, file, c.Masters)

	cut := write(t, "cut.fs", b[:last.pos])
	c.migrate(t, cut)
	out := filepath.Join(t.TempDir(), "export.fs")
	c.export(t, out)

	// Take out the first of two records of one object in one transaction.
	from, to := twice(t, cut)
	want := without(b[:last.pos], from, to)
	packed := list[len(list)-2].pos + int64(from-to) + 16
	if want[packed] != 'p' {
		t.Fatalf("the status at %d is %q", packed, want[packed])
	}
	want[packed] = ' '
	sameBytes(t, out, want)
}

// An export as of a moment is the beginning of the file.
func TestExportAt(t *testing.T) {
	t.Parallel()
	file := filepath.Join(samples, "site.fs")
	b, list := read(t, file), places(t, file)
	c := StartCluster(t, Options{Storages: 2})
	c.migrate(t, file)
	out := filepath.Join(t.TempDir(), "grows.fs")
	for _, i := range []int{0, 1, len(list) / 3, len(list) / 2, len(list) - 2, len(list) - 1} {
		x := list[i]
		single := filepath.Join(t.TempDir(), "at.fs")
		c.export(t, single, "--at", x.tid.String(), "--verify")
		sameBytes(t, single, b[:x.end])
		c.export(t, out, "--at", fmt.Sprintf("tid:%d", uint64(x.tid)))
		sameBytes(t, out, b[:x.end])
		if i+1 < len(list) && x.tid+1 < list[i+1].tid {
			between := filepath.Join(t.TempDir(), "between.fs")
			c.export(t, between, "--at", (x.tid + 1).String())
			sameBytes(t, between, b[:x.end])
		}
	}
	// A file that is later than what is asked for stays as it is.
	refused(t, 1, []string{"grows.fs", list[len(list)-1].tid.String()},
		"neoexport", "-q", "-c", c.Name, c.Masters, out, "--at", list[0].tid.String())
	sameBytes(t, out, b)
}

// A Data.fs copied without a cluster is the same to the last byte of what is valid.
func TestExportOfFile(t *testing.T) {
	files, err := filepath.Glob(samples + "/*.fs")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			want := read(t, file)
			switch name := filepath.Base(file); name {
			case "08-truncated-tail.fs", "09-voted-tail.fs":
				want = differences[name](want)
			case "10-legacy-fs21.fs": // what was undone in place is no part of the history
				want = append([]byte("FS21"), differences[name](want)[4:]...)
			case "05-packed.fs": // a copy knows the previous record
				want[742+16+7] = 33
			}
			out := filepath.Join(t.TempDir(), "copy.fs")
			must(t, "neoexport", "-q", "--verify", file, out)
			sameBytes(t, out, want)
		})
	}
}

// A cluster that has something else is not touched.
func TestMigrateOther(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Options{})
	first, other := filepath.Join(samples, "01-basic.fs"), filepath.Join(samples, "02-undo.fs")
	c.migrate(t, first)
	refused(t, 1, []string{`cluster test`, `(?i)transaction [0-9a-f]{16}`}, "neomigrate", "-q", "-c", c.Name, other, c.Masters)
	out := filepath.Join(t.TempDir(), "out.fs")
	c.export(t, out)
	sameBytes(t, out, read(t, first))
	// The same in the other direction: a file that is no beginning of the cluster.
	foreign := write(t, "foreign.fs", read(t, other))
	refused(t, 1, []string{`foreign\.fs`, `(?i)transaction [0-9a-f]{16}`}, "neoexport", "-q", "-c", c.Name, c.Masters, foreign)
	sameBytes(t, foreign, read(t, other))
	refused(t, 1, []string{`foreign\.fs`}, "neomigrate", "-q", "-c", c.Name, c.Masters, foreign)
	sameBytes(t, foreign, read(t, other))
}
