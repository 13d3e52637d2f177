package admin

import (
	"context"
	"sync"
)

// tasks are the goroutines of a node that do not belong to a link.
type tasks struct {
	ctx context.Context
	wg  sync.WaitGroup
}

// start runs f, which must return soon after its context ends.
func (t *tasks) start(f func(context.Context)) { t.wg.Go(func() { f(t.ctx) }) }

func (t *tasks) wait() { t.wg.Wait() }
