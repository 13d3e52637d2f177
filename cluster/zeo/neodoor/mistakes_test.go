package neodoor

import (
	"errors"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// What a ZEO client does that masters or storages refuse does not end the links that
// it shares with others: their transactions go on.
func TestMistakesOfOneClient(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	addr := serve(t, c)
	register := func(t *testing.T) *zeotest.Client {
		z, err := zeotest.Register(addr, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(z.Close)
		return z
	}
	base, err := register(t).Commit(zeotest.Store{OID: 1, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	begin := func(z *zeotest.Client, imposed any) error {
		return z.Async("tpc_begin", 9, []byte("u"), []byte("d"), zeotest.Dict{}, imposed, " ")
	}
	vote := func(z *zeotest.Client) error {
		_, err := z.Call("vote", 9)
		return err
	}
	const refused = "ZODB.POSException.StorageError"
	next := tid.OID(10)
	for _, tt := range []struct {
		name  string
		class string // of the exception; none: success, or the end of the connection
		do    func(z *zeotest.Client) error
	}{
		{"old id imposed", refused, func(z *zeotest.Client) error {
			return errors.Join(begin(z, base-1000), vote(z))
		}},
		{"id of the future imposed", refused, func(z *zeotest.Client) error {
			return errors.Join(begin(z, tid.Max), z.Async("storea", tid.OID(2), tid.Zero, []byte("x"), 9), vote(z))
		}},
		{"check twice", "", func(z *zeotest.Client) error {
			check := func() error { return z.Async("checkCurrentSerialInTransaction", tid.OID(1), base, 9) }
			return errors.Join(begin(z, nil), check(), check(), vote(z))
		}},
		{"check of two revisions", "ZODB.POSException.ReadConflictError", func(z *zeotest.Client) error {
			check := func(at tid.TID) error { return z.Async("checkCurrentSerialInTransaction", tid.OID(1), at, 9) }
			return errors.Join(begin(z, nil), check(base), check(base-1), vote(z))
		}},
		{"store of no object", "", func(z *zeotest.Client) error {
			if _, err := z.Vote(9, zeotest.Store{OID: tid.InvalidOID, Data: []byte("x")}); err == nil {
				return errors.New("no error")
			}
			return nil
		}},
		{"load of no object", "ZODB.POSException.POSKeyError", func(z *zeotest.Client) error {
			_, _, _, err := z.LoadBefore(tid.InvalidOID, tid.Max)
			return err
		}},
		{"load of no revision", "ZODB.POSException.POSKeyError", func(z *zeotest.Client) error {
			_, err := z.Call("loadSerial", tid.OID(1), tid.TID(1<<64-1))
			return err
		}},
		{"history of no object", "ZODB.POSException.POSKeyError", func(z *zeotest.Client) error {
			_, err := z.Call("history", tid.InvalidOID, 10)
			return err
		}},
		{"objects after the last one", "ZODB.POSException.POSKeyError", func(z *zeotest.Client) error {
			_, err := z.Call("record_iternext", tid.InvalidOID)
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			voted, open, offender := register(t), register(t), register(t)
			next += 2
			if _, err := voted.Vote(5, zeotest.Store{OID: next, Data: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			if err := open.Async("tpc_begin", 6, []byte("u"), []byte("d"), zeotest.Dict{}, nil, " "); err != nil {
				t.Fatal(err)
			}
			err := tt.do(offender)
			r, ok := errors.AsType[*zeotest.RemoteError](err)
			if tt.class == "" && err != nil || tt.class != "" && (!ok || r.Class != tt.class) {
				t.Errorf("the offender got %v, want %s", err, tt.class)
			}
			if _, err := voted.Call("tpc_finish", 5); err != nil {
				t.Errorf("tpc_finish of another client: %v", err)
			}
			err = open.Async("storea", next+1, tid.Zero, []byte("x"), 6)
			_, err2 := open.Call("vote", 6)
			_, err3 := open.Call("tpc_finish", 6)
			if err := errors.Join(err, err2, err3); err != nil {
				t.Errorf("transaction of another client: %v", err)
			}
		})
	}
}
