package proto

import (
	"github.com/neozodb/neo/cluster/msgpack"
	"github.com/neozodb/neo/cluster/tid"
)

// appendPackOIDs writes the oids of a partial pack, nil for a complete one.
func appendPackOIDs(b []byte, partial bool, oids []tid.OID) []byte {
	if !partial {
		return msgpack.AppendNil(b)
	}
	return appendOIDs(b, oids)
}

// packOIDs reads a list of oids or nil. Python storages send the list as one
// binary string, as they have it in their database.
func (d *decoder) packOIDs() (oids []tid.OID, partial bool) {
	if d.Nil() {
		return nil, false
	}
	if d.Peek() != msgpack.Bin {
		return d.oids(), true
	}
	v := d.Bin()
	if len(v)%8 != 0 {
		d.Fail("list of oids of %d bytes, not a multiple of 8", len(v))
		return nil, false
	}
	for ; len(v) > 0; v = v[8:] {
		oids = append(oids, tid.OIDFromBytes(v))
	}
	return oids, true
}

func appendPackRequest(b []byte, p *PackRequest) []byte {
	if p == nil {
		return msgpack.AppendNil(b)
	}
	b = msgpack.AppendArray(b, 2)
	return appendTID(appendPackOIDs(b, len(p.OIDs) > 0, p.OIDs), p.Time)
}

// packRequest refuses an empty list: an order to pack nothing must not be taken
// for one to pack everything.
func (d *decoder) packRequest() *PackRequest {
	if d.Nil() || !d.tuple(2) {
		return nil
	}
	oids, partial := d.packOIDs()
	if partial && len(oids) == 0 {
		d.Fail("partial pack of no object")
	}
	return &PackRequest{OIDs: oids, Time: d.tid()}
}

func appendPackState(b []byte, p *PackState) []byte {
	if p == nil {
		return msgpack.AppendNil(b)
	}
	b = appendOpt(msgpack.AppendArray(b, 4), p.Approved, msgpack.AppendBool)
	b = msgpack.AppendBool(b, p.Partial)
	return appendTID(appendPackOIDs(b, p.Partial, p.OIDs), p.Time)
}

func (d *decoder) packState() *PackState {
	if d.Nil() || !d.tuple(4) {
		return nil
	}
	p := new(PackState)
	p.Approved = opt(d, d.Bool)
	p.Partial, p.OIDs = d.partial()
	p.Time = d.tid()
	return p
}

// partial reads a flag and the list that must be there if it is set.
func (d *decoder) partial() (bool, []tid.OID) {
	flag := d.Bool()
	oids, partial := d.packOIDs()
	if flag != partial && d.Err() == nil {
		d.Fail("partial pack %t, list of oids %t", flag, partial)
	}
	return flag, oids
}

func appendPackOrder(b []byte, p PackOrder) []byte {
	b = appendTID(msgpack.AppendArray(b, 5), p.ID)
	b = appendOpt(b, p.Approved, msgpack.AppendBool)
	b = msgpack.AppendBool(b, p.Partial)
	return appendTID(appendPackOIDs(b, p.Partial, p.OIDs), p.Time)
}

func (d *decoder) packOrder() (p PackOrder) {
	if !d.tuple(5) {
		return p
	}
	p.ID = d.tid()
	p.Approved = opt(d, d.Bool)
	p.Partial, p.OIDs = d.partial()
	p.Time = d.tid()
	return p
}
