package sqldb

import "testing"

// The rows of a transaction are one statement, and no number of rows needs many; statements that stay prepared have few
// different lengths.
func TestInsertRows(t *testing.T) {
	const most = 256
	lengths := map[int]bool{}
	for n := 1; n <= 3*most; n++ {
		statements, left := 0, n
		for left > 0 {
			k := insertRows(left, most)
			if k < 1 || k > left || k > most {
				t.Fatalf("%d of %d rows", k, left)
			}
			lengths[k] = true
			left -= k
			statements++
		}
		switch {
		case n <= exactRows && statements > 1:
			t.Errorf("%d rows are %d statements", n, statements)
		case statements > n/most+5:
			t.Errorf("%d rows are %d statements", n, statements)
		}
	}
	if len(lengths) > exactRows+8 {
		t.Errorf("%d different lengths", len(lengths))
	}
	// A dialect may take fewer rows than that.
	if k := insertRows(20, 8); k != 8 {
		t.Errorf("%d rows of 8 at most", k)
	}
}
