package merge_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/fsformat/pickle"
	"github.com/neozodb/neo/importer/merge"
)

// A world is some databases that are mounted into each other, and beside them the plain
// model of what they make together: its records are descriptions of what is in the records
// of the sources.
type world struct {
	t       testing.TB
	rnd     *rand.Rand
	sources []merge.Source
	parts   []*txntest.Memory
	model   txntest.Memory
	joined  int64
}

// reference makes a reference of a random form from a database, and describes what it must
// become.
func (w *world) reference(from int, protocol int) (pickle.PersID, string) {
	str := func(b []byte) pickle.Value {
		switch {
		case protocol >= 3:
			return b
		case w.rnd.IntN(2) == 0 && protocol == 2:
			return b // _codecs.encode
		}
		return pickle.ByteString(b)
	}
	name := func(s string) pickle.Value {
		if w.rnd.IntN(2) == 0 && protocol < 3 {
			return pickle.ByteString(s)
		}
		return s
	}
	class := pickle.Value(pickle.Global{Module: "m", Name: fmt.Sprint("C", w.rnd.IntN(3))})
	in := w.rnd.IntN(len(w.sources) + 1)
	form := w.rnd.IntN(8)
	if form < 5 {
		in = from
	}
	database, own := "elsewhere", tid.OID(w.rnd.IntN(40))
	became, mount := uint64(own), false
	if in < len(w.sources) {
		s := &w.sources[in]
		database = s.DatabaseName
		if database == "" {
			database = s.Name
		}
		own = tid.OID(w.rnd.IntN(int(s.Next)))
		became = uint64(own + s.Shift)
		if to, ok := s.Mapping[own]; ok {
			became, mount = uint64(to), true
		}
	}
	ours := in < len(w.sources)
	oid := str(own.Bytes())
	described := fmt.Sprintf("%x", became)
	withClass := func(class string) string {
		if mount {
			return described
		}
		return described + " " + class
	}
	switch form {
	case 0:
		return pickle.PersID{ID: oid}, described
	case 1:
		return pickle.PersID{ID: pickle.Tuple{oid, class}}, withClass(fmt.Sprint(class))
	case 2:
		return pickle.PersID{ID: pickle.Tuple{oid, pickle.Tuple{name("m"), name("D")}}}, withClass("m.D")
	case 3:
		return pickle.PersID{ID: []pickle.Value{name("w"), pickle.Tuple{oid}}}, "w " + described
	case 4:
		return pickle.PersID{ID: []pickle.Value{oid}}, "legacy " + described
	case 5:
		d := "w " + described
		if !ours {
			d += " in " + database
		}
		return pickle.PersID{ID: []pickle.Value{name("w"), pickle.Tuple{oid, name(database)}}}, d
	case 6:
		d := withClass(fmt.Sprint(class))
		if !ours {
			d = fmt.Sprintf("m %s %v in %s", described, class, database)
		}
		return pickle.PersID{ID: []pickle.Value{name("m"), pickle.Tuple{name(database), oid, class}}}, d
	}
	d := described
	if !ours {
		d = "n " + described + " in " + database
	}
	return pickle.PersID{ID: []pickle.Value{name("n"), pickle.Tuple{name(database), oid}}}, d
}

// describe says what is in a record, in the words of reference.
func describe(data []byte) (string, error) {
	if data == nil {
		return "", nil
	}
	_, state, err := pickle.DecodeRecord(data)
	if err != nil {
		return "", err
	}
	var out []string
	for _, v := range state.(*pickle.List).Items {
		ref, ok := v.(pickle.PersID)
		if !ok {
			b, _ := bytesOf(v)
			out = append(out, fmt.Sprintf("data %x", b))
			continue
		}
		oid := func(v pickle.Value) string {
			b, ok := bytesOf(v)
			if !ok || len(b) != 8 {
				return fmt.Sprintf("no id: %#v", v)
			}
			return strconv.FormatUint(binary.BigEndian.Uint64(b), 16)
		}
		class := func(v pickle.Value) string {
			if names, ok := v.(pickle.Tuple); ok {
				module, _ := pickle.Text(names[0])
				name, _ := pickle.Text(names[1])
				return module + "." + name
			}
			return fmt.Sprint(v)
		}
		switch id := ref.ID.(type) {
		case pickle.Tuple:
			out = append(out, oid(id[0])+" "+class(id[1]))
		case *pickle.List:
			if len(id.Items) == 1 {
				out = append(out, "legacy "+oid(id.Items[0]))
				continue
			}
			letter, _ := pickle.Text(id.Items[0])
			args := id.Items[1].(pickle.Tuple)
			switch {
			case letter == "w" && len(args) == 1:
				out = append(out, "w "+oid(args[0]))
			case letter == "w":
				db, _ := pickle.Text(args[1])
				out = append(out, "w "+oid(args[0])+" in "+db)
			case letter == "m":
				db, _ := pickle.Text(args[0])
				out = append(out, "m "+oid(args[1])+" "+class(args[2])+" in "+db)
			default:
				db, _ := pickle.Text(args[0])
				out = append(out, letter+" "+oid(args[1])+" in "+db)
			}
		default:
			out = append(out, oid(id))
		}
	}
	return strings.Join(out, ", "), nil
}

// bytesOf returns the bytes of a value, also in the form that protocols below 3 have for
// them.
func bytesOf(v pickle.Value) ([]byte, bool) {
	if o, ok := v.(*pickle.Object); ok {
		text, ok := o.Args.(pickle.Tuple)[0].(string)
		var b []byte
		for _, r := range text {
			b = append(b, byte(r))
		}
		return b, ok
	}
	return pickle.RawBytes(v)
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 7))}
	rnd := w.rnd
	shift := tid.OID(0)
	for i := range 1 + rnd.IntN(4) {
		if i > 0 {
			shift += tid.OID(rnd.IntN(3)) // not necessarily without a gap
		}
		s := merge.Source{Name: fmt.Sprint("s", i), Shift: shift, Next: tid.OID(1 + rnd.IntN(12))}
		if rnd.IntN(2) == 0 {
			s.DatabaseName = fmt.Sprint("db", i)
		}
		shift += s.Next
		w.sources = append(w.sources, s)
		w.parts = append(w.parts, &txntest.Memory{})
	}
	for i := range w.sources {
		s := &w.sources[i]
		s.Mapping = map[tid.OID]tid.OID{}
		n := rnd.IntN(3)
		if len(w.sources) == 1 {
			n++ // else it is given as it is
		}
		for range n {
			to := &w.sources[rnd.IntN(len(w.sources))]
			s.Mapping[tid.OID(rnd.IntN(int(s.Next)))] = to.Shift + tid.OID(rnd.IntN(int(to.Next)))
		}
	}
	// What a source has of each object: the transactions that gave it data.
	type revision struct {
		at        tid.TID
		data      []byte
		described string
	}
	revisions := map[tid.OID][]revision{}
	const begin = tid.TID(0x03d2_1d9c_0000_0000)
	ended := make([]bool, len(w.sources)) // at its Last
	for n := range 60 {
		at := begin + tid.TID(n)*3
		var whole *txn.Transaction
		var records []txn.Record
		for i := range w.sources {
			s := &w.sources[i]
			if rnd.IntN(2) == 0 {
				continue
			}
			if !ended[i] && n > 30 && rnd.IntN(20) == 0 {
				ended[i] = true
			}
			own := txn.Transaction{TID: at, Status: txn.Committed, User: []byte(s.Name), Description: []byte(fmt.Sprint(n))}
			if rnd.IntN(3) == 0 {
				own.Status = txn.Packed
			}
			var rs []txn.Record
			for _, k := range rnd.Perm(int(s.Next))[:rnd.IntN(min(4, int(s.Next)+1))] {
				r, described := txn.Record{OID: tid.OID(k), TID: at}, ""
				merged := r.OID + s.Shift
				switch before := revisions[merged]; {
				case rnd.IntN(6) == 0 && len(before) > 0:
				case rnd.IntN(5) == 0 && len(before) > 0:
					b := before[rnd.IntN(len(before))]
					r.Data, r.DataTID, described = b.data, b.at, b.described
				default:
					r.Data, described = w.record(i)
					revisions[merged] = append(before, revision{at, r.Data, described})
				}
				rs = append(rs, r)
				if !ended[i] {
					r.OID = merged
					if r.Data != nil {
						r.Data = []byte(described)
					}
					records = append(records, r)
				}
			}
			own.Records = txn.Slice(rs)
			if err := w.parts[i].Append(&own); err != nil {
				t.Fatal(err)
			}
			if ended[i] {
				continue
			}
			s.Last = at
			if whole == nil {
				whole = &own
			} else {
				w.joined++
			}
		}
		if whole != nil {
			c := *whole
			c.Records = txn.Slice(records)
			if err := w.model.Append(&c); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range w.sources {
		w.sources[i].Database = w.parts[i]
	}
	return w
}

// record makes a record of a database that has references, and data that look like object ids.
func (w *world) record(from int) ([]byte, string) {
	protocol := 1 + w.rnd.IntN(5)
	list := &pickle.List{}
	var described []string
	for range w.rnd.IntN(6) {
		if w.rnd.IntN(4) == 0 {
			b := tid.OID(w.rnd.IntN(10)).Bytes()
			if protocol < 3 {
				list.Items = append(list.Items, pickle.ByteString(b))
			} else {
				list.Items = append(list.Items, b)
			}
			described = append(described, fmt.Sprintf("data %x", b))
			continue
		}
		ref, d := w.reference(from, protocol)
		list.Items = append(list.Items, ref)
		described = append(described, d)
	}
	return makeRecord(w.t, protocol, list), strings.Join(described, ", ")
}

func kind(err error) string {
	switch {
	case err == nil:
		return "found"
	case errors.Is(err, txn.ErrNotFound):
		return "not found"
	case errors.Is(err, txn.ErrNoSuchObject):
		return "no such object"
	}
	return err.Error()
}

// lines says all about a history, one transaction a line. described tells that its records are
// descriptions.
func lines(t testing.TB, h txn.History, after, upTo tid.TID, described bool) (out []string) {
	t.Helper()
	for tr, err := range h.Transactions(t.Context(), after, upTo) {
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%v %q %s %s", tr.TID, tr.Status, tr.User, tr.Description)
		for r, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			what := string(r.Data)
			if !described {
				if what, err = describe(r.Data); err != nil {
					t.Fatal(err)
				}
			}
			line += fmt.Sprintf("; %v at %v like %v %t: %s", r.OID, r.TID, r.DataTID, r.Data == nil, what)
		}
		out = append(out, line)
	}
	return out
}

// seeds returns which random histories are tried: those that NEO_TEST_SEEDS says, or a few.
func seeds(t testing.TB) int {
	if s := os.Getenv("NEO_TEST_SEEDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 60
}

func TestRandomHistories(t *testing.T) {
	for seed := range seeds(t) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, uint64(seed))
			d := mustNew(t, w.sources...)
			w.compare(t, d)
		})
	}
}

func (w *world) compare(t *testing.T, d *merge.Database) {
	ctx := t.Context()
	last := lastOf(t, &w.model)
	if got := lastOf(t, d); got != last || d.End() != last {
		t.Errorf("LastTID = %v, End = %v, want %v", got, d.End(), last)
	}
	var all []tid.TID
	for tr := range w.model.Transactions(ctx, 0, tid.Max) {
		all = append(all, tr.TID)
	}
	for _, bounds := range [][2]tid.TID{{0, tid.Max}, {all[len(all)/3], all[len(all)*2/3]}, {last - 1, last}, {last, last + 100}} {
		if diff := cmp.Diff(lines(t, &w.model, bounds[0], bounds[1], true), lines(t, d, bounds[0], bounds[1], false)); diff != "" {
			t.Errorf("transactions in %v (-want +got):\n%s", bounds, diff)
		}
	}
	var notes merge.Notes
	for tr, err := range d.Scan(ctx, 0, tid.Max, merge.ScanOptions{Notes: &notes}) {
		if err != nil {
			t.Fatal(err)
		}
		for range tr.Records {
		}
	}
	if notes.Joined != w.joined || notes.Dropped != w.joined {
		t.Errorf("notes %+v, want %d joined", notes, w.joined)
	}
	if notes.Dangling != 0 || len(notes.Foreign) > 1 {
		t.Errorf("notes %+v, want only references to elsewhere", notes)
	}
	i := len(all)
	for info, err := range d.Backwards(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if i--; i < 0 || info.TID != all[i] {
			t.Fatalf("Backwards: transaction %v, want %v", info.TID, all[max(i, 0)])
		}
		var want txn.Info
		for back := range w.model.Backwards(ctx) {
			if back.TID == info.TID {
				want = back.Clone()
			}
		}
		if string(info.User) != string(want.User) || info.Status != want.Status || !slices.Equal(info.OIDs, want.OIDs) {
			t.Errorf("Backwards: %+v, want %+v", info, want)
		}
	}
	if i != 0 {
		t.Errorf("Backwards: %d transactions are missing", i)
	}
	for oid := range d.Next() + 5 {
		for _, before := range append(all, 1, last+1, last+50, tid.Max) {
			want, wantErr := w.model.LoadBefore(ctx, oid, before)
			got, err := d.LoadBefore(ctx, oid, before)
			what, bad := describe(got.Data)
			if kind(err) != kind(wantErr) || bad != nil || what != string(want.Data) || got.Serial != want.Serial || got.Next != want.Next {
				t.Errorf("LoadBefore(%v, %v) = %s at %v until %v, %v %v\nwant %s at %v until %v, %v",
					oid, before, what, got.Serial, got.Next, err, bad, want.Data, want.Serial, want.Next, wantErr)
			}
			want, wantErr = w.model.LoadAt(ctx, oid, before)
			got, err = d.LoadAt(ctx, oid, before)
			what, bad = describe(got.Data)
			if (err == nil) != (wantErr == nil) || bad != nil || what != string(want.Data) || got.Serial != want.Serial || got.Next != 0 {
				t.Errorf("LoadAt(%v, %v) = %s at %v, %v %v, want %s, %v", oid, before, what, got.Serial, err, bad, want.Data, wantErr)
			}
		}
		for _, n := range []int{1, 2, 1000} {
			want, wantErr := w.model.Revisions(ctx, oid, n)
			got, err := d.Revisions(ctx, oid, n)
			if kind(err) != kind(wantErr) || !slices.EqualFunc(got, want, func(a, b txn.Info) bool {
				return a.TID == b.TID && slices.Contains(a.OIDs, oid)
			}) {
				t.Errorf("Revisions(%v, %d) = %v, %v, want %v, %v", oid, n, got, err, want, wantErr)
			}
		}
	}
	for _, at := range append(all, 1, tid.Max) {
		for _, from := range []tid.OID{0, 5, d.Next() - 1, d.Next(), 1000} {
			var want, got []tid.OID
			for oid := range w.model.OIDs(ctx, at, from) {
				want = append(want, oid)
			}
			for oid, err := range d.OIDs(ctx, at, from) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, oid)
			}
			if !slices.Equal(got, want) {
				t.Errorf("OIDs(%v, %v) = %v, want %v", at, from, got, want)
			}
		}
	}
}

// Several goroutines read a database. What they have loaded stays as it is.
func TestConcurrentReads(t *testing.T) {
	w := newWorld(t, 3)
	d := mustNew(t, w.sources...)
	want := lines(t, &w.model, 0, tid.Max, true)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3 {
				if got := lines(t, d, 0, tid.Max, false); !slices.Equal(got, want) {
					t.Errorf("%d transactions differ from %d", len(got), len(want))
				}
			}
		})
		wg.Go(func() {
			type loaded struct {
				rev  txn.Revision
				want string
			}
			var kept []loaded
			for range 5 {
				for oid := range d.Next() {
					want, err := w.model.LoadBefore(t.Context(), oid, tid.Max)
					if err != nil {
						continue
					}
					rev, err := d.LoadBefore(t.Context(), oid, tid.Max)
					if err != nil {
						t.Error(err)
					}
					kept = append(kept, loaded{rev, string(want.Data)})
				}
			}
			for _, k := range kept {
				if got, err := describe(k.rev.Data); got != k.want || err != nil {
					t.Errorf("a record has become %s, %v, want %s", got, err, k.want)
				}
			}
		})
	}
	wg.Wait()
}
