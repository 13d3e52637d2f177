package snapshot

import "testing"

// A key that is trusted twice is trusted once: a note that it signed is not damaged.
func TestDoubledVerifier(t *testing.T) {
	key := testKeys[Writer][1]
	v, err := NewVerifiers(key, key)
	if err != nil {
		t.Fatal(err)
	}
	m := &Marker{ID: testRepo, Name: "test", Created: testTime, Encryption: EncryptionNone, Sign: []string{key}}
	b, err := Sign(m, signer(t, Writer))
	if err != nil {
		t.Fatal(err)
	}
	if err := Open(b, MarkerKey, ID{}, &Marker{}, v); err != nil {
		t.Error(err)
	}
}

// The private key has the one that verifies in it.
func TestVerifierOf(t *testing.T) {
	for role, pair := range testKeys {
		if got, err := VerifierOf(pair[0] + "\n"); err != nil || got != pair[1] {
			t.Errorf("%s: %q, %v, want %q", role, got, err, pair[1])
		}
	}
	for _, bad := range []string{"", "x", testKeys[Writer][1], testKeys[Writer][0][:60]} {
		if got, err := VerifierOf(bad); err == nil {
			t.Errorf("%q has %q", bad, got)
		}
	}
}
