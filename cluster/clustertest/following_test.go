package clustertest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
)

// past is what the upstream cluster had at each TID.
type past struct {
	tids []tid.TID // ascending
	data map[tid.OID][]pastRevision
	told map[string]tid.TID // the highest TID that each client of the backup was told
	most tid.TID            // the highest of a transaction that a client was told to be there
}

// pastRevision is an object since a transaction. A nil data is an object that is not there.
type pastRevision struct {
	at   tid.TID
	data []byte
}

// commit adds a transaction of the upstream cluster.
func (p *past) commit(at tid.TID, writes map[tid.OID][]byte) {
	if p.data == nil {
		p.data = map[tid.OID][]pastRevision{}
	}
	p.tids = append(p.tids, at)
	for oid, data := range writes {
		p.data[oid] = append(p.data[oid], pastRevision{at, data})
	}
}

// truncate removes what the upstream cluster committed after at. Clients may go back to it.
func (p *past) truncate(at tid.TID) {
	p.tids = slices.DeleteFunc(p.tids, func(t tid.TID) bool { return t > at })
	for oid, list := range p.data {
		p.data[oid] = slices.DeleteFunc(list, func(r pastRevision) bool { return r.at > at })
	}
	p.restart()
	p.most = min(p.most, at)
}

// restart forgets what clients were told: the backup finds out anew how far it is.
func (p *past) restart() { clear(p.told) }

// floor returns the last transaction up to a TID.
func (p *past) floor(at tid.TID) (last tid.TID) {
	for _, t := range p.tids {
		if t <= at {
			last = t
		}
	}
	return last
}

// state returns an object as the upstream cluster had it at a TID, nil if it was not there.
func (p *past) state(oid tid.OID, at tid.TID) (data []byte) {
	for _, r := range p.data[oid] {
		if r.at <= at {
			data = r.data
		}
	}
	return data
}

// seen reports how what a client of the backup read as the state at a TID
// differs from what the upstream cluster had. A TID between two transactions stands for the
// state after the first of them.
func (p *past) seen(name string, at tid.TID, read map[tid.OID][]byte) error {
	if n := len(p.tids); n == 0 && at > 0 || n > 0 && at > p.tids[n-1] {
		return fmt.Errorf("client %s was told %v, the upstream cluster has nothing so late", name, at)
	}
	if t := p.told[name]; at < t {
		return fmt.Errorf("client %s went back from %v to %v", name, t, at)
	}
	if p.told == nil {
		p.told = map[string]tid.TID{}
	}
	p.told[name] = at
	p.most = max(p.most, p.floor(at))
	for oid, data := range read {
		if want := p.state(oid, at); !bytes.Equal(data, want) || (data == nil) != (want == nil) {
			return fmt.Errorf("client %s read %v at %v as %q, the upstream cluster had %q", name, oid, at, data, want)
		}
	}
	return nil
}

// TestFollowingModel shows the model of TestFollowing views with and without each fault.
func TestFollowingModel(t *testing.T) {
	for _, c := range []struct {
		name string
		at   tid.TID
		read map[tid.OID][]byte
		want string // of the error; "": none
	}{
		{"the state at the end", 30, map[tid.OID][]byte{1: []byte("c"), 2: nil}, ""},
		{"the state in between", 20, map[tid.OID][]byte{1: []byte("a"), 2: []byte("b")}, ""},
		{"a TID that is newer", 40, nil, "so late"},
		{"a TID in between", 25, map[tid.OID][]byte{1: []byte("a"), 2: []byte("b")}, ""},
		{"a TID that goes back", 10, nil, "went back"},
		{"announced early", 30, map[tid.OID][]byte{1: []byte("a"), 2: nil}, "read"},
		{"newer than announced", 20, map[tid.OID][]byte{1: []byte("c"), 2: []byte("b")}, "read"},
		{"a deletion that is missing", 30, map[tid.OID][]byte{1: []byte("c"), 2: []byte("b")}, "read"},
		{"an object that is missing", 20, map[tid.OID][]byte{2: nil}, "read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p past
			p.commit(10, map[tid.OID][]byte{1: []byte("a")})
			p.commit(20, map[tid.OID][]byte{2: []byte("b")})
			p.commit(30, map[tid.OID][]byte{1: []byte("c"), 2: nil})
			if err := p.seen("x", 20, nil); err != nil {
				t.Fatal(err)
			}
			err := p.seen("x", c.at, c.read)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	var p past
	p.commit(10, map[tid.OID][]byte{1: []byte("a")})
	p.commit(20, map[tid.OID][]byte{1: []byte("b")})
	if err := p.seen("x", 20, map[tid.OID][]byte{1: []byte("b")}); err != nil {
		t.Error(err)
	}
	p.truncate(10)
	if err := p.seen("x", 10, map[tid.OID][]byte{1: []byte("a")}); err != nil {
		t.Errorf("after truncation: %v", err)
	}
}
