package zeo

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// Claims are granted in the order they were asked for, all objects at once, and
// whoever needs nothing of the others does not wait.
func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c claims
		var names [5]transaction
		a, b, d, e, f := &names[0], &names[1], &names[2], &names[3], &names[4]
		done := make(chan *transaction, 10)
		wait := func(x *transaction, oids ...tid.OID) {
			go func() {
				if err := c.wait(t.Context(), x, oids); err != nil {
					t.Error(err)
				}
				done <- x
			}()
			synctest.Wait()
		}
		granted := func(want ...*transaction) {
			t.Helper()
			synctest.Wait()
			got := map[*transaction]bool{}
			for len(done) > 0 {
				got[<-done] = true
			}
			for _, x := range want {
				if !got[x] {
					t.Error("not granted")
				}
				delete(got, x)
			}
			if len(got) > 0 {
				t.Error("granted too early")
			}
		}
		if !c.try(a, []tid.OID{1, 2}) || c.try(b, []tid.OID{2, 3}) {
			t.Fatal("a must have 1 and 2, b nothing")
		}
		if got := c.taken(b, []tid.OID{1, 3}); len(got) != 1 || got[0] != 1 {
			t.Errorf("b would wait for %v, want 1", got)
		}
		wait(b, 2, 3)
		wait(d, 3) // behind b, though nobody has 3
		wait(e, 4)
		wait(f, 2)
		granted(e)
		if got := c.taken(a, []tid.OID{1, 2}); got != nil {
			t.Errorf("a would wait for its own %v", got)
		}
		if c.try(e, []tid.OID{3}) {
			t.Error("e passed those who wait")
		}
		c.release(a)
		granted(b)
		c.release(b)
		granted(d, f)
		for _, x := range []*transaction{d, e, f} {
			c.release(x)
		}
		if c.held.Load() != 0 || len(c.owner) != 0 {
			t.Errorf("%d are left", c.held.Load())
		}
	})
}

func TestWhoGivesUpClaimsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c claims
		a, b := new(transaction), &transaction{id: 1}
		if !c.try(a, []tid.OID{1}) {
			t.Fatal("nobody has it")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.wait(ctx, b, []tid.OID{1, 2}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		c.release(a)
		if c.held.Load() != 0 {
			t.Errorf("%d are left", c.held.Load())
		}
	})
}

// Two transactions that each have what the other waits for give it back first.
func TestClaimsDoNotDeadlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c claims
		var a, b transaction
		if !c.try(&a, []tid.OID{1}) || !c.try(&b, []tid.OID{2}) {
			t.Fatal("free objects must be had at once")
		}
		done := make(chan *transaction, 2)
		wait := func(x *transaction, oid tid.OID) {
			go func() {
				if err := c.wait(t.Context(), x, []tid.OID{oid}); err != nil {
					t.Error(err)
				}
				done <- x
			}()
			synctest.Wait()
		}
		wait(&a, 2)
		wait(&b, 1)
		for range 2 {
			synctest.Wait()
			if len(done) != 1 {
				t.Fatalf("%d transactions have both objects, want 1", len(done))
			}
			x := <-done
			for oid := range tid.OID(3) {
				if owner := c.owner[oid]; oid > 0 && owner != x {
					t.Errorf("object %v is not claimed by who waited for both", oid)
				}
			}
			c.release(x)
		}
		if len(c.owner)+len(c.waiting) > 0 || c.held.Load() != 0 {
			t.Errorf("left over: %d claims, %d waiting", len(c.owner), len(c.waiting))
		}
	})
}
