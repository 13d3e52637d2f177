package status

import (
	"context"
	"errors"
	"time"

	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/proto"
)

// Collect asks an admin how its cluster is. An admin without primary master gives a status
// too, with Unknown; an error is one of the connection, for which there is [Unreachable].
func Collect(ctx context.Context, c *ctl.Client) (*Status, error) {
	s := &Status{Format: Format, Time: time.Now().UTC()}
	state, err := c.ClusterState(ctx)
	if refused, ok := errors.AsType[*proto.Error](err); ok {
		s.Unknown = refused.Message
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.State = state.String()
	return s, nil
}

// Unreachable is the status of a cluster whose admin cannot be asked.
func Unreachable(admin string, err error) *Status {
	return &Status{Format: Format, Time: time.Now().UTC(), Admin: admin, Unknown: "the admin at " + admin + " cannot be asked: " + err.Error()}
}
