package backup

import (
	"context"

	"github.com/neozodb/neo/backup/snapshot"
)

// InitOptions say what a new repository is.
type InitOptions struct {
	Name       string               // [a-z0-9-]{1,32}
	Signer     *snapshot.Signer     // key of the writer
	Sign       []string             // keys that verify, for the marker
	Recipients []snapshot.Recipient // of the operators; none: the repository is not encrypted
	Source     snapshot.Source
	Writer     string // host/pid/nonce
}

// Init makes a repository in an empty place: lineage 1 with manifest 1, epoch 1, and last the marker.
// An interrupted one may be repeated. The store must have been tried, see [store.Probe].
func Init(ctx context.Context, cfg Config, o InitOptions) (*Repository, error) { panic("todo") }

// NewEpoch makes the next epoch, for these recipients, and returns its note and recipient.
func (r *Repository) NewEpoch(ctx context.Context, signer *snapshot.Signer, recipients []snapshot.Recipient) (*snapshot.Epoch, snapshot.Recipient, error) {
	panic("todo")
}

// NewLineage writes the note that makes a lineage, whose manifest 1 exists, the current one.
func (r *Repository) NewLineage(ctx context.Context, signer *snapshot.Signer, l *snapshot.Lineage) error {
	panic("todo")
}
