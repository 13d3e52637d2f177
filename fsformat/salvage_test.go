package fsformat

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

// salvaged returns what is recovered of a file and what is reported, a line each.
func salvaged(t *testing.T, file []byte, opt SalvageOptions) ([]byte, string, Salvaged) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var lost []string
	bytesLost := int64(0)
	opt.Now = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	opt.Notice = func(n Notice) { lost = append(lost, n.String()) }
	sum, err := Salvage(t.Context(), openBytes(t, file), w, opt, func(l Lost) {
		lost = append(lost, l.String())
		bytesLost += l.To - l.From
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if sum.LostBytes != bytesLost {
		t.Errorf("%d bytes lost, %d reported", sum.LostBytes, bytesLost)
	}
	out := readFile(t, path)
	if _, err := Check(t.Context(), openBytes(t, out), CheckOptions{Structure: true}, func(p Problem) {
		if p.Severity == Error {
			t.Errorf("the recovered file has a problem: %v", p)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return out, strings.Join(lost, "\n"), sum
}

// Transactions of 02-undo: 4, 391, 551, 643, 742, 845, 1128. What is left out
// shows in what is kept: the others, with the data of undos in full where the
// record they were taken from is gone.
func TestSalvage(t *testing.T) {
	undo := readFile(t, samples+"02-undo.fs")
	for _, tt := range []struct {
		name    string
		file    []byte
		partial bool
		missing string // tids of transactions, and objects in them
		lost    string
	}{
		{"nothing wrong", undo, false, "", ""},
		{"truncated", undo[:1200], false, "8", "bytes 1128 to 1200 (72): transaction 03f6420008888888 is incomplete"},
		{"voted", put(undo, 1128+16, "c"), false, "8", "bytes 1128 to 1289 (161): transaction 03f6420008888888 was voted but not finished"},
		{"voted in the middle", put(undo, 391+16, "c"), false, "", "repaired: offset 391: transaction 03f6420003333333: its status says that it was not finished, and others follow"},
		{"status", put(undo, 391+16, "x"), false, "", "repaired: offset 391: transaction 03f6420003333333: its status 'x' is none, it is taken for committed"},
		{"undone in place", put(undo, 1128+16, "u"), false, "8", "left out: offset 1128: transaction 03f6420008888888: it was undone in place"},
		{"zeros", append(bytes.Clone(undo), make([]byte, 64)...), false, "", "bytes 1289 to 1353 (64): the last 64 bytes are no transaction"},
		{"a header", put(undo, 391, strings.Repeat("\xff", 20)), false, "", `repaired: offset 391: transaction 03f6420003333333: its id was ffffffffffffffff, its records say 03f6420003333333
repaired: offset 391: transaction 03f6420003333333: its length was 18446744073709551615, its records fill 152
repaired: offset 391: transaction 03f6420003333333: its user, description and extension cannot be told apart: all is description
repaired: offset 391: transaction 03f6420003333333: its status 'ÿ' is none, it is taken for committed`},
		{"a header and its records", put(undo, 391, strings.Repeat("\xff", 80)), false, "35",
			"bytes 391 to 551 (160): transaction ffffffffffffffff: its length 18446744073709551615 passes the end of the file, which ends with an intact transaction\n" +
				"bytes 643 to 742 (99): transaction 03f6420005555555: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 426, where its data are no more"},
		{"a repeated length", put64(undo, 391+152, 7), false, "", "repaired: offset 391: transaction 03f6420003333333: its length at its end was 7, its records fill 152"},
		{"a description", put(undo, 391+20, "\x05"), false, "", "repaired: offset 391: transaction 03f6420003333333: a length of its user, description or extension"},
		{"a record", put64(undo, 886+24, 1), false, "", "repaired: offset 845: transaction 03f6420007777777: object 0000000000000002, at 886: the position of its transaction was 1"},
		{"another record", put64(undo, 1003+24, 1), false, "", "repaired: offset 845: transaction 03f6420007777777: object 0000000000000001, at 1003: the position of its transaction was 1"},
		{"data", put64(undo, 886+34, 30), false, "", "repaired: offset 845: transaction 03f6420007777777: object 0000000000000002, at 886: the length of its data"},
		{"two fields of a record", put64(put64(undo, 1003+24, 1), 1003+8, 1), false, "7",
			"bytes 845 to 1128 (283): transaction 03f6420007777777: 1 of its records are damaged, the first: object 0000000000000001: the record says that its transaction is at 1, not 845; the other 1 are intact"},
		{"two fields of a record, the rest kept", put64(put64(undo, 1003+24, 1), 1003+8, 1), true, "7/1",
			"bytes 1003 to 1120 (117): transaction 03f6420007777777: object 0000000000000001: the record says that its transaction is at 1, not 845"},
		{"two fields of the first record, the rest kept", put64(put64(undo, 886+24, 1), 886+8, 1), true, "7/2",
			"bytes 886 to 1003 (117): transaction 03f6420007777777: object 0000000000000002: the record says that its transaction is at 1, not 845"},
		{"the head and the first record", put(undo, 845, strings.Repeat("\x00", 80)), false, "7", "bytes 845 to 1128 (283): transaction 03f6420007777777: 1 of its records are damaged, the first: no record can be read there, nor user, description and extension; the other 1 are intact"},
		{"the head and the first record, the rest kept", put(undo, 845, strings.Repeat("\x00", 80)), true, "7/2", `repaired: offset 845: transaction 03f6420007777777: its id was 0000000000000000, its records say 03f6420007777777
repaired: offset 845: transaction 03f6420007777777: its length was 0, its records fill 275
repaired: offset 845: transaction 03f6420007777777: its status '\x00' is none, it is taken for committed
bytes 868 to 1003 (135): transaction 03f6420007777777: no record can be read there, nor user, description and extension`},
		{"a bit of a back-pointer", put64(undo, 1231+42, 787^64), false, "",
			"repaired: offset 1128: transaction 03f6420008888888: object 0000000000000001, at 1231: its back-pointer was 851, a bit of it is damaged"},
		{"a back-pointer, the rest kept", put64(undo, 1231+42, 1), true, "8/1",
			"bytes 1231 to 1281 (50): transaction 03f6420008888888: object 0000000000000001: its back-pointer leads to 1, where its data are no more"},
		{"a length of data, and the data", put64(put(undo, 426+42, "\x00"), 426+34, 120), false, "35",
			"bytes 391 to 551 (160): transaction 03f6420003333333: 1 of its records are damaged, the first: object 0000000000000001: the record of 120 bytes of data passes the end of its transaction at 543\n" +
				"bytes 643 to 742 (99): transaction 03f6420005555555: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 426, where its data are no more"},
		{"a length of data, and a header", put64(put(undo, 391, strings.Repeat("\xff", 35)), 426+34, 120), false, "35",
			"bytes 391 to 551 (160): transaction ffffffffffffffff: its length 18446744073709551615 passes the end of the file, which ends with an intact transaction\n" +
				"bytes 643 to 742 (99): transaction 03f6420005555555: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 426, where its data are no more"},
		{"a length of data, and what the back-pointer leads to", put64(put64(undo, 585+42, 1), 1231+34, 3), false, "468",
			"bytes 551 to 643 (92): transaction 03f6420004444444: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 1, where its data are no more\n" +
				"bytes 742 to 845 (103): transaction 03f6420006666666: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 1, where its data are no more\n" +
				"bytes 1128 to 1289 (161): transaction 03f6420008888888: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 1, where its data are no more; the other 1 are intact"},
		{"a length of data, and what the back-pointer leads to, the rest kept", put64(put64(undo, 585+42, 1), 1231+34, 3), true, "468/1",
			"bytes 551 to 643 (92): transaction 03f6420004444444: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 1, where its data are no more\n" +
				"bytes 742 to 845 (103): transaction 03f6420006666666: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 1, where its data are no more\n" +
				"bytes 1231 to 1281 (50): transaction 03f6420008888888: object 0000000000000001: its back-pointer leads to 1, where its data are no more"},
		{"a previous record", put64(undo, 1231+16, 684), false, "",
			"warning: offset 1231: transaction 03f6420008888888: object 0000000000000001: its previous record is said to be at 684, but there is a later one"},
		{"50 bytes missing in the second", append(bytes.Clone(undo[:430]), undo[480:]...), false, "35",
			"bytes 391 to 501 (110): transaction 03f6420003333333: its length is 152 at its beginning and 285488194223621188 at its end\n" +
				"bytes 593 to 692 (99): transaction 03f6420005555555: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 426, where its data are no more"},
		{"50 bytes more in the second", append(append(bytes.Clone(undo[:430]), make([]byte, 50)...), undo[430:]...), false, "",
			"repaired: offset 391: transaction 03f6420003333333: 50 bytes that belong to nothing are before its first record"},
		{"a tid far too great", put64(undo, 391, 0x7ff6420009999999), false, "", "repaired: offset 391: transaction 03f6420003333333: its id was 7ff6420009999999, its records say 03f6420003333333"},
		{"only garbage", append([]byte("FS30"), bytes.Repeat([]byte("garbage "), 100)...), false, "2345678",
			"bytes 4 to 804 (800): transaction 6761726261676520 is incomplete"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, lost, _ := salvaged(t, tt.file, SalvageOptions{Partial: tt.partial})
			if diff := cmp.Diff(strings.Split(tt.lost, "\n"), strings.Split(lost, "\n")); diff != "" {
				t.Errorf("lost (-want +got):\n%s", diff)
			}
			got, want := contents(t, openBytes(t, out)), contents(t, openBytes(t, undo))
			for key := range want {
				// T3 to T8 are those that end in 3 to 8.
				name := key[15:16]
				gone, object, some := strings.Cut(tt.missing, "/")
				if strings.Contains(gone, name) && (!some || key[len(key)-1:] == object) {
					delete(want, key)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("contents (-want +got):\n%s", diff)
			}
		})
	}
}

// contents maps the transactions and objects of a file to their data.
func contents(t *testing.T, r *Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			out[fmt.Sprint(tr.TID, " ", rec.OID)] = fmt.Sprintf("%q", rec.Data)
		}
	}
	return out
}

// Each field of which others say what it must be can have a damaged bit, at any
// place in the file, and nothing is lost.
func TestSalvageRepairsEachBit(t *testing.T) {
	const step = 13 // 1 for all
	for _, name := range []string{"02-undo"} {
		file := readFile(t, samples+name+".fs")
		want := dumpRecords(t, openBytes(t, file))
		damage := func(what string, at int64, bits int) {
			for bit := 0; bit < bits; bit += step {
				b := bytes.Clone(file)
				b[at+int64(bit/8)] ^= 0x80 >> (bit % 8)
				out, report, sum := salvaged(t, b, SalvageOptions{})
				if sum.LostBytes != 0 {
					t.Errorf("%s: bit %d of %s at %d: %d bytes lost:\n%s", name, bit, what, at, sum.LostBytes, report)
					continue
				}
				if diff := cmp.Diff(want, dumpRecords(t, openBytes(t, out))); diff != "" {
					t.Errorf("%s: bit %d of %s at %d:\n%s\ncontent (-want +got):\n%s", name, bit, what, at, report, diff)
				}
				if report == "" {
					t.Errorf("%s: bit %d of %s at %d: nothing is said of it", name, bit, what, at)
				}
			}
		}
		for tr, err := range openBytes(t, file).Scan(t.Context(), 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for range tr.Places {
				n++
			}
			// Of two ids, in the head and in the only record, the one that is nearer to
			// those of the transactions around is believed: here they are 2^24 apart.
			sure := 64
			if n == 1 {
				sure = 36
			}
			damage("the id", tr.Head.Pos, sure)
			damage("the length", tr.Head.Pos+8, 64)
			damage("the length at the end", tr.Head.Pos+tr.Head.Len, 64)
			for rec, err := range tr.Places {
				if err != nil {
					t.Fatal(err)
				}
				damage("the id in a record", rec.Pos+8, sure)
				damage("the previous record", rec.Pos+16, 64)
				damage("the position of the transaction", rec.Pos+24, 64)
				damage("the length of the version", rec.Pos+32, 16)
				damage("the length of the data", rec.Pos+34, 64)
			}
		}
	}
}

// Nothing that is intact is thrown away for its id: all is kept in the order of the
// file, with as few other ids as possible.
func TestSalvageKeepsAllIDs(t *testing.T) {
	undo := readFile(t, samples+"02-undo.fs")
	original := []tid.TID{0x03f6420002222222, 0x03f6420003333333, 0x03f6420004444444, 0x03f6420005555555, 0x03f6420006666666, 0x03f6420007777777, 0x03f6420008888888}
	for _, tt := range []struct {
		name    string
		changed map[int]tid.TID // in the file
		want    map[int]tid.TID // in the copy, other than in the original
		report  string
	}{
		{"one is too great", map[int]tid.TID{2: 0x7ff0000000000000}, map[int]tid.TID{2: 0x03f6420003333334},
			"renumbered: offset 551: transaction 7ff0000000000000: its id is out of order, it becomes 03f6420003333334"},
		{"one is too small", map[int]tid.TID{5: 0x0100000000000000}, map[int]tid.TID{5: 0x03f6420006666667},
			"renumbered: offset 845: transaction 0100000000000000: its id is out of order, it becomes 03f6420006666667"},
		{"the first is too great", map[int]tid.TID{0: 0x03f6420009999999}, map[int]tid.TID{0: 0x03f6420003333332},
			"renumbered: offset 4: transaction 03f6420009999999: its id is out of order, it becomes 03f6420003333332"},
		{"twice the same", map[int]tid.TID{3: 0x03f6420004444444}, map[int]tid.TID{3: 0x03f6420004444445},
			"renumbered: offset 643: transaction 03f6420004444444: its id is out of order, it becomes 03f6420004444445"},
		{"the last in the future", map[int]tid.TID{6: 0x0500000000000000}, map[int]tid.TID{6: 0x0500000000000000},
			"warning: offset 1128: transaction 0500000000000000: it is in the future"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, want := slices.Clone(original), slices.Clone(original)
			for i, id := range tt.changed {
				in[i] = id
			}
			for i, id := range tt.want {
				want[i] = id
			}
			out, report, sum := salvaged(t, retag(t, undo, in), SalvageOptions{})
			if report != tt.report || sum.LostBytes != 0 || sum.Kept != 7 {
				t.Errorf("%+v, report:\n%s", sum, report)
			}
			if diff := cmp.Diff(dumpRecords(t, openBytes(t, retag(t, undo, want))), dumpRecords(t, openBytes(t, out))); diff != "" {
				t.Errorf("content (-want +got):\n%s", diff)
			}
		})
	}
	for _, name := range []string{"tsreduction", "future", "oidflip"} {
		file := readFile(t, samples+"damaged/"+name+".fs")
		if _, report, sum := salvaged(t, file, SalvageOptions{}); sum.LostBytes != 0 || report == "" {
			t.Errorf("%s: %+v, report:\n%s", name, sum, report)
		}
	}
}

func TestIncreasingIDs(t *testing.T) {
	const seed = 5
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range 3000 {
		ids := make([]tid.TID, 1+rng.IntN(9))
		for k := range ids {
			ids[k] = tid.TID(1 + rng.Uint64N(12))
			if rng.IntN(20) == 0 {
				ids[k] = tid.TID(rng.Uint64())
			}
		}
		got := increasing(ids)
		stay := 0
		for k := range got {
			if k > 0 && got[k] <= got[k-1] || got[k] == 0 || got[k] > tid.Max {
				t.Fatalf("seed %d, %d: %v becomes %v", seed, i, ids, got)
			}
			if got[k] == ids[k] {
				stay++
			}
		}
		if best := mostThatStay(ids); stay < best {
			t.Fatalf("seed %d, %d: %v becomes %v: %d stay, %d could", seed, i, ids, got, stay, best)
		}
	}
}

// mostThatStay tries all choices.
func mostThatStay(ids []tid.TID) int {
	best := 0
	for set := range 1 << len(ids) {
		n, last, at := 0, tid.TID(0), -1
		for k, id := range ids {
			if set>>k&1 == 0 {
				continue
			}
			if id > tid.Max-tid.TID(len(ids)) || id < last || id-last < tid.TID(k-at) {
				n = -1
				break
			}
			n, last, at = n+1, id, k
		}
		best = max(best, n)
	}
	return best
}

func TestSalvageRange(t *testing.T) {
	undo := readFile(t, samples+"02-undo.fs")
	for _, tt := range []struct {
		opt    SalvageOptions
		kept   int64
		report string
	}{
		{SalvageOptions{From: 391, To: 742}, 3, ""},
		{SalvageOptions{From: 400}, 5, "bytes 400 to 551 (151): transaction 0000000000009820: its length 281522221380948 passes the end of the file, which ends with an intact transaction"},
		{SalvageOptions{After: 0x03f6420003333333, UpTo: 0x03f6420007777777}, 4, ""},
	} {
		out, report, sum := salvaged(t, undo, tt.opt)
		if report != tt.report || sum.Kept != tt.kept {
			t.Errorf("%+v: %+v, report:\n%s", tt.opt, sum, report)
		}
		want, got := contents(t, openBytes(t, undo)), contents(t, openBytes(t, out))
		for k, v := range got {
			if want[k] != v {
				t.Errorf("%+v: %s is %s, want %s", tt.opt, k, v, want[k])
			}
		}
	}
}

func TestSalvageRefuses(t *testing.T) {
	for _, tt := range []struct {
		file []byte
		opt  SalvageOptions
		want string
	}{
		{nil, SalvageOptions{}, "Data.fs: the file is empty: there is nothing to recover"},
		{readFile(t, samples+"02-undo.fs"), SalvageOptions{From: 5000}, "Data.fs: offset 5000 is behind the end, 1289"},
		{readFile(t, samples+"damaged/oidflip.fs"), SalvageOptions{Strict: true}, "an object id is damaged"},
	} {
		w, err := Create(filepath.Join(t.TempDir(), "Data.fs"), WriterOptions{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		_, err = Salvage(t.Context(), openBytes(t, tt.file), w, tt.opt, func(Lost) {})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %s", err, tt.want)
		}
		w.Abort()
	}
}

// Whatever is overwritten, each transaction that it does not touch is kept, if the
// data that it shares are there too.
func TestSalvageKeepsWhatIsNotTouched(t *testing.T) {
	site := readFile(t, samples+"site.fs")
	type transaction struct {
		from, to int64
		id       tid.TID
		needs    []hole // what its records have their data from
		content  string
	}
	var all []transaction
	r := openBytes(t, site)
	for tr, err := range r.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		x := transaction{from: tr.Head.Pos, to: tr.Head.End(), id: tr.TID}
		for p, err := range tr.Places {
			if err != nil {
				t.Fatal(err)
			}
			for cur := *p; cur.DataLen == 0 && cur.Back != 0; {
				var next RecordHeader
				if err := r.follow(&cur, &next); err != nil {
					t.Fatal(err)
				}
				x.needs = append(x.needs, hole{next.Pos, next.End()})
				cur = next
			}
		}
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			x.content += fmt.Sprintf("%v %q\n", rec.OID, rec.Data)
		}
		all = append(all, x)
	}
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 0))
		b := bytes.Clone(site)
		var damaged []hole
		for range 1 + rng.IntN(4) {
			from := magicLen + rng.Int64N(int64(len(b))-magicLen)
			to := min(from+1+rng.Int64N(600), int64(len(b)))
			damaged = append(damaged, hole{from, to})
			for i := from; i < to; i++ {
				switch seed % 3 {
				case 0:
					b[i] = 0
				case 1:
					b[i] = byte(rng.Uint32())
				case 2:
					b[i] = site[(i+int64(len(site))/2)%int64(len(site))] // another part of it
				}
			}
		}
		touched := func(from, to int64) bool {
			return slices.ContainsFunc(damaged, func(d hole) bool { return d.from < to && from < d.to })
		}
		got := map[tid.TID]string{}
		out, report, _ := salvaged(t, b, SalvageOptions{Partial: seed%2 == 0})
		for tr, err := range openBytes(t, out).Transactions(t.Context(), 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			for rec, err := range tr.Records {
				if err != nil {
					t.Fatal(err)
				}
				got[tr.TID] += fmt.Sprintf("%v %q\n", rec.OID, rec.Data)
			}
		}
		for _, x := range all {
			if touched(x.from, x.to) || slices.ContainsFunc(x.needs, func(n hole) bool { return touched(n.from, n.to) }) {
				continue
			}
			if got[x.id] != x.content {
				t.Errorf("seed %d, damaged %v: transaction %v at %d is not kept as it was:\n%s", seed, damaged, x.id, x.from, report)
			}
		}
	}
}
