package verify

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
)

// Share is which segments are read. The zero value is all.
type Share struct {
	N, Of   int     // the N-th of Of shares, from 1; Of 0: not by number
	Percent float64 // a random share; 0: not at random
}

// ParseShare reads a share: "" or "all", "n/t" (the n-th of t shares), "rotate/t" (the one of
// t that is due on the day of now, in UTC, so that t days read all), "p%" (as many, at
// random).
func ParseShare(s string, now time.Time) (Share, error) {
	bad := fmt.Errorf("share %q: want n/t, rotate/t or p%%, as 3/10, rotate/30, 5%%", s)
	if s == "" || s == "all" {
		return Share{}, nil
	}
	if p, ok := strings.CutSuffix(s, "%"); ok {
		v, err := strconv.ParseFloat(p, 64)
		if err != nil || !(v > 0 && v <= 100) {
			return Share{}, bad
		}
		return Share{Percent: v}, nil
	}
	n, t, ok := strings.Cut(s, "/")
	of, err := strconv.Atoi(t)
	if !ok || err != nil || of < 1 || of > 1e6 {
		return Share{}, bad
	}
	if n == "rotate" {
		return Share{N: int(now.UTC().Unix()/(24*60*60)%int64(of)) + 1, Of: of}, nil
	}
	i, err := strconv.Atoi(n)
	if err != nil || i < 1 || i > of {
		return Share{}, bad
	}
	return Share{N: i, Of: of}, nil
}

// String returns the share as ParseShare reads it.
func (s Share) String() string {
	switch {
	case s.Of > 0:
		return fmt.Sprintf("%d/%d", s.N, s.Of)
	case s.Percent > 0:
		return fmt.Sprintf("%g%%", s.Percent)
	}
	return "all"
}

// has reports whether a segment is in the share. By number that depends on its bytes
// alone: others come and go without moving it.
func (s Share) has(l *snapshot.Segment) bool {
	switch {
	case s.Of > 0:
		return binary.BigEndian.Uint64(l.SHA256[:8])%uint64(s.Of) == uint64(s.N-1)
	case s.Percent > 0:
		return rand.Float64()*100 < s.Percent
	}
	return true
}
