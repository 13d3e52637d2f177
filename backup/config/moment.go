package config

import (
	"time"

	"github.com/neozodb/neo/cluster/moment"
)

// Moment is a place in the history as an operator writes it.
type Moment = moment.Moment

// ParseMoment reads a moment, as [moment.Parse] does.
func ParseMoment(s string, now time.Time) (Moment, error) { return moment.Parse(s, now) }
