package conf

import (
	"fmt"
	"strings"
)

// DidYouMean ends a sentence about a word that is none of known: with the nearest of
// them, if one is near.
func DidYouMean(word string, known []string) string {
	best, at := "", 0
	for _, k := range known {
		d := distance(plain(word), plain(k))
		if d <= max(1, min(len(word), len(k))/3) && (best == "" || d < at) {
			best, at = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

func plain(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }

// distance is how many bytes must be added, removed or replaced to make b of a. Words
// that no key is as long as are far from all.
func distance(a, b string) int {
	if len(a) > 100 || len(b) > 100 {
		return 100
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
