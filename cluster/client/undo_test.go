package client_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// A pack may drop the revision that an undo restores at any time before the
// storage takes it.
func TestUndoOfPacked(t *testing.T) {
	t.Run("store", func(t *testing.T) {
		playScript(t, 1, 50, func(t *testing.T, s *script) {
			c := s.open(nil)
			tx := begin(t, c)
			if err := tx.StoreUndo(t.Context(), 1, 40, []byte("old"), 30); err != nil {
				t.Fatal(err)
			}
			done := vote(t.Context(), tx)
			refuseUndo(s)
			err := <-done
			if !errors.Is(err, client.ErrUndoPacked) {
				t.Errorf("vote: %v, want %v", err, client.ErrUndoPacked)
			}
			names(t, err, tx.TTID().String(), tid.OID(1).String(), "S1")
			tx.Abort(t.Context())
			request[*proto.AbortTransaction](s)
		})
	})
	for _, tt := range []struct {
		name   string
		loaded bool // the data could still be loaded
	}{{"undo", true}, {"undo of what is packed already", false}} {
		t.Run(tt.name, func(t *testing.T) {
			playScript(t, 1, 50, func(t *testing.T, s *script) {
				c := s.open(nil)
				tx := begin(t, c)
				done := make(chan error, 1)
				go func() {
					_, err := tx.Undo(t.Context(), 40)
					done <- err
				}()
				info, _ := request[*proto.AskTransactionInformation](s)
				info.Conn.Answer(info.ID, &proto.AnswerTransactionInformation{TID: 40, OIDs: []tid.OID{1}})
				serial, _ := request[*proto.AskObjectUndoSerial](s)
				serial.Conn.Answer(serial.ID, &proto.AnswerObjectUndoSerial{Undo: map[tid.OID]proto.UndoSerial{
					1: {Current: 40, Undo: proto.Some(tid.TID(30)), IsCurrent: true},
				}})
				load, p := request[*proto.AskObject](s)
				if p.At != proto.Some(tid.TID(30)) {
					t.Errorf("%+v asked for", p)
				}
				if tt.loaded {
					load.Conn.Answer(load.ID, object(1, 30, 40, "old"))
					refuseUndo(s)
				} else {
					load.Conn.AnswerError(load.ID, proto.OIDNotFound, "")
				}
				err := <-done
				if ue, ok := errors.AsType[*txn.UndoError](err); !ok || ue.TID != 40 || !errors.Is(err, client.ErrUndoPacked) {
					t.Errorf("undo: %v, want %v", err, client.ErrUndoPacked)
				}
				names(t, err, tid.TID(40).String(), tid.OID(1).String())
				if err := tx.Abort(t.Context()); err != nil {
					t.Error(err)
				}
				synctest.Wait()
			})
		})
	}
}

// What was before a transaction may be packed: its objects were not created by it, and
// an undo must not delete them.
func TestUndoOfWhatIsKept(t *testing.T) {
	simulate(t, shape{partitions: 2, storages: 2}, func(t *testing.T, r *rig) {
		c := r.open(nil)
		first := r.commit(c, text(1, 0, "one"), text(2, 0, "two"))
		second := r.commit(c, text(1, first, "ONE"))
		third := r.commit(c, text(2, first, "TWO"), text(3, 0, "three"))
		order := must(c.Pack(t.Context(), second))(t)
		if err := c.WaitForPack(t.Context(), order); err != nil {
			t.Fatal(err)
		}
		undo := func(at tid.TID) (tid.TID, error) {
			tx := begin(t, c)
			if _, err := tx.Undo(t.Context(), at); err != nil {
				if err := tx.Abort(t.Context()); err != nil {
					t.Error(err)
				}
				return 0, err
			}
			return tx.Finish(t.Context(), nil)
		}
		for _, at := range []tid.TID{first, second} {
			if _, err := undo(at); !errors.Is(err, client.ErrUndoPacked) {
				t.Errorf("undo of %v, which was packed: %v", at, err)
			}
		}
		r.want(c, 1, "ONE", second)
		at, err := undo(third) // after the pack: its object was created by it
		if err != nil {
			t.Fatalf("undo of %v: %v", third, err)
		}
		r.want(c, 2, "two", at)
		if _, _, err := c.Load(t.Context(), 3); !errors.Is(err, client.ErrDeleted) {
			t.Errorf("load of an object whose creation was undone: %v", err)
		}
	})
}

// What a pack has deleted of a transaction cannot be undone, and the rest is not
// undone without it.
func TestUndoOfDeletedRecords(t *testing.T) {
	simulate(t, shape{partitions: 2, storages: 2}, func(t *testing.T, r *rig) {
		c := r.open(nil)
		first := r.commit(c, text(1, 0, "one"), text(2, 0, "two"))
		alone := r.commit(c, text(1, first, "ONE"))
		both := r.commit(c, text(1, alone, "One"), text(2, first, "TWO"))
		last := r.commit(c, text(1, both, "1"))
		order := must(c.PackObjects(t.Context(), last, []tid.OID{1}))(t)
		if err := c.WaitForPack(t.Context(), order); err != nil {
			t.Fatal(err)
		}
		for _, at := range []tid.TID{alone, both} {
			tx := begin(t, c)
			oids, err := tx.Undo(t.Context(), at)
			if !errors.Is(err, client.ErrUndoPacked) {
				t.Errorf("undo of %v, which was packed: %v, %v", at, oids, err)
			}
			if err := tx.Abort(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// refuseUndo answers the store of an undo.
func refuseUndo(s *script) {
	s.t.Helper()
	ev, p := request[*proto.AskStoreObject](s)
	if p.DataSerial != proto.Some(tid.TID(30)) || string(p.Data) != "old" {
		s.t.Errorf("stored %+v", p)
	}
	ev.Conn.AnswerError(ev.ID, proto.UndoPackError, "")
}
