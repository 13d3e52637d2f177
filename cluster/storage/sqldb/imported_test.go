package sqldb

import "testing"

// Whatever a configuration holds is read or refused.
func FuzzImportEnd(f *testing.F) {
	for _, s := range []string{"", `{"root": {"ltid": 400}}`, `b'\x80\x03}q\x00.'`, "(dp0\nS'root'\np1\n(ia\nB\n(dS'ltid'\nI5\nsbs."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, state string) {
		if end, err := importEnd(state); err != nil && end != 0 {
			t.Errorf("end %v with error %v", end, err)
		}
	})
}
