package fsformat

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

// salvaged returns what is recovered of a file and what is reported as lost.
func salvaged(t *testing.T, file []byte, partial bool) ([]byte, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var lost []string
	bytesLost := int64(0)
	sum, err := Salvage(t.Context(), openBytes(t, file), w, SalvageOptions{Partial: partial, Now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}, func(l Lost) {
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
	if _, problems := checkAll(t, out); strings.Contains(problems, "error") && !partial {
		t.Errorf("the recovered file has problems:\n%s", problems)
	}
	return out, strings.Join(lost, "\n")
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
		{"zeros", append(bytes.Clone(undo), make([]byte, 64)...), false, "", "bytes 1289 to 1353 (64): the last 64 bytes are no transaction"},
		{"a header", put(undo, 391, strings.Repeat("\xff", 20)), false, "3",
			"bytes 391 to 551 (160): transaction ffffffffffffffff: its length 18446744073709551615 passes the end of the file, which ends with an intact transaction"},
		{"a repeated length", put64(undo, 391+152, 7), false, "3",
			"bytes 391 to 551 (160): transaction 03f6420003333333: its length is 152 at its beginning and 7 at its end"},
		{"a record", put64(undo, 886+24, 1), false, "7",
			"bytes 845 to 1128 (283): transaction 03f6420007777777: 1 of its records are damaged, the first: object 0000000000000002: the record says that its transaction is at 1, not 845"},
		{"a record, the rest kept", put64(undo, 1003+24, 1), true, "7/1",
			"bytes 1003 to 1120 (117): transaction 03f6420007777777: object 0000000000000001: the record says that its transaction is at 1, not 845"},
		{"a back-pointer, the rest kept", put64(undo, 1231+42, 1), true, "8/1",
			"bytes 1231 to 1281 (50): transaction 03f6420008888888: object 0000000000000001: its back-pointer leads to 1, where no earlier record can be"},
		{"50 bytes missing in the second", append(bytes.Clone(undo[:430]), undo[480:]...), false, "35",
			"bytes 391 to 501 (110): transaction 03f6420003333333: its length is 152 at its beginning and 285488194223621188 at its end\n" +
				"bytes 593 to 692 (99): transaction 03f6420005555555: 1 of its records are damaged, the first: object 0000000000000001: its back-pointer leads to 426, where its data are no more"},
		{"50 bytes more in the second", append(append(bytes.Clone(undo[:430]), make([]byte, 50)...), undo[430:]...), false, "3",
			"bytes 391 to 601 (210): transaction 03f6420003333333: its length is 152 at its beginning and 8316305130671469645 at its end"},
		{"a tid far too great", put64(undo, 391, 0x7ff6420009999999), false, "3",
			"bytes 391 to 551 (160): transaction 7ff6420009999999: it is in the future"},
		{"only garbage", append([]byte("FS30"), bytes.Repeat([]byte("garbage "), 100)...), false, "2345678",
			"bytes 4 to 804 (800): transaction 6761726261676520 is incomplete"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, lost := salvaged(t, tt.file, tt.partial)
			if diff := cmp.Diff(tt.lost, lost); diff != "" {
				t.Errorf("lost (-want +got):\n%s", diff)
			}
			got, want := contents(t, openBytes(t, out)), contents(t, openBytes(t, undo))
			for key := range want {
				// T3 to T8 are those that end in 3 to 8.
				name := key[15:16]
				if strings.Contains(tt.missing, name+"/") {
					if key[len(key)-1:] == tt.missing[2:] {
						delete(want, key)
					}
				} else if strings.Contains(tt.missing, name) {
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
