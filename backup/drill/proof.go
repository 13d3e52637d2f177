package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// What a proof says of the source.
const (
	noSource = "none"
	digest   = "digest" // all of its history up to the moment was compared
)

// canSign makes sure that readers will believe the proof: one that no trusted key signed
// proves nothing.
func (d *run) canSign() error {
	p := *d.proof
	p.Seq, p.Result, p.Time = 1, snapshot.ResultOK, d.o.Now().UTC().Truncate(time.Second)
	b, err := snapshot.Sign(&p, d.o.Signer)
	if err != nil {
		return err
	}
	err = snapshot.Open(b, d.key(&p), d.repo.Marker.ID, &snapshot.Proof{}, d.o.Trusted)
	if errors.Is(err, snapshot.ErrUntrusted) {
		return fmt.Errorf("%w: the key %s is not trusted here, so that the proof would prove nothing: it has to be in verify_keys", ErrSetup, d.o.Signer.Name())
	}
	return err
}

func (d *run) key(p *snapshot.Proof) string {
	return snapshot.Key{Kind: snapshot.KindProof, Lineage: p.Lineage, Time: p.Time, Upto: p.TID}.String()
}

// prove writes the proof of a drill that went well.
func (d *run) prove(ctx context.Context) error {
	d.proof.Result = snapshot.ResultOK
	return d.put(ctx)
}

// failed writes the proof of a drill that failed, and returns the error of the drill.
func (d *run) failed(ctx context.Context, err error) error {
	if d.res.Key != "" {
		return err // it went well, but for what came after it
	}
	if d.proof.Seq == 0 {
		d.res.Proof = nil
		return fmt.Errorf("%w (no proof was written: there is no manifest that it could be about)", err)
	}
	d.proof.Result, d.proof.Reason = snapshot.ResultFailed, reason(err)
	if putErr := d.put(ctx); putErr != nil {
		return fmt.Errorf("%w (a proof that says so could not be written: %w)", err, putErr)
	}
	return err
}

// reason is what a proof says of an error.
func reason(err error) string {
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + " …"
	}
	return text
}

// put stores the proof.
func (d *run) put(ctx context.Context) error {
	p, lock := d.proof, d.o.Lock
	st := d.store.Stats()
	p.Seconds, p.BytesRead, p.Gets = int64(time.Since(d.start).Seconds()), st.Received, st.Gets
	for p.Time = d.o.Now().UTC().Truncate(time.Second); ; p.Time = p.Time.Add(time.Second) {
		b, err := snapshot.Sign(p, d.o.Signer)
		if err != nil {
			return err
		}
		key, o := d.key(p), store.PutOptions{Create: true}
		if lock != "" {
			now := store.Date(d.store)
			if now.IsZero() {
				now = d.o.Now()
			}
			o.Retain = store.Retention{Mode: lock, Until: now.Add(time.Duration(d.o.LockDays) * 24 * time.Hour)}
		}
		err = d.store.Put(ctx, key, bytes.NewReader(b), int64(len(b)), o)
		if errors.Is(err, store.ErrExists) {
			continue // another drill ended in the same second
		}
		if errors.Is(err, store.ErrDenied) && lock != "" {
			// Without permission to lock it is still a proof: if it is deleted, less may be deleted, not more.
			d.warn("the proof is stored without a lock: %v", err)
			lock = ""
			continue
		}
		if err != nil {
			return fmt.Errorf("proof: %w", err)
		}
		d.res.Key = key
		d.o.Log.Info("the proof is stored", "key", key, "result", p.Result, "tid", p.TID)
		return nil
	}
}
