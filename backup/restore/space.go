package restore

import "fmt"

// freeIn is [free]; tests replace it.
var freeIn = free

// space returns an error if a directory has too little room.
func space(dir string, need int64) error {
	if have := freeIn(dir); have >= 0 && have < need {
		return fmt.Errorf("%w: about %d bytes are needed, %s has %d", ErrSpace, need, dir, have)
	}
	return nil
}
