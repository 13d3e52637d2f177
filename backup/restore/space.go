package restore

import "fmt"

// freeIn is [free]; tests replace it.
var freeIn = free

// Free returns how many bytes a directory has room for, -1 if that is not known.
func Free(dir string) int64 { return freeIn(dir) }

// space returns an error if a directory has too little room.
func space(dir string, need int64) error {
	if have := freeIn(dir); have >= 0 && have < need {
		return fmt.Errorf("%w: about %d bytes are needed, %s has %d", ErrSpace, need, dir, have)
	}
	return nil
}
