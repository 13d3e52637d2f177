package storage

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/storage/backend"
)

const (
	// reportEvery is the least time between two reports of an import.
	reportEvery = time.Second
	// logImportEvery is how often the log tells how far an import is, beside its
	// changes of state.
	logImportEvery = 5 * time.Minute
	// maxImportOrders is how many orders may wait for a database.
	maxImportOrders = 16
)

// importer tells how far the work of a database is, and hands over what operators
// order. Nothing of it needs the goroutine of Run.
type importer struct {
	n      *Node
	db     backend.Runner
	orders chan importOrder
	asked  chan struct{} // a master that wants reports is there

	m    sync.Mutex
	conn *link.Conn        // of a master that wants reports; nil: none does
	told *importing.Report // what it knows
}

// importOrder is an order of an operator, and where its answer goes.
type importOrder struct {
	conn *link.Conn
	msg  *importing.Message
}

func newImporter(n *Node, db backend.Runner) *importer {
	return &importer{n: n, db: db, orders: make(chan importOrder, maxImportOrders), asked: make(chan struct{}, 1)}
}

// start works until the node ends.
func (i *importer) start() {
	for _, work := range []func(context.Context){i.report, i.obey} {
		i.n.wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					i.n.fail(fmt.Errorf("internal error in the work of the database: %v\n%s", p, debug.Stack()))
				}
			}()
			work(i.n.ctx)
		})
	}
}

// report tells the master, and the log, how far the work is.
func (i *importer) report(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	var state importing.State // as logged; a node that starts waits
	var logged time.Time
	for {
		r := i.db.Progress()
		now := time.Now()
		switch {
		case r.State != state:
			level := slog.LevelInfo
			if r.State.Bad() {
				level = slog.LevelWarn
			}
			i.n.log.Log(ctx, level, "import", "state", r.State.String(), "tid", r.Last, "progress", r.String())
			state, logged = r.State, now
		case r.Moves() && now.Sub(logged) >= logImportEvery:
			i.n.log.Info("import", "state", r.State.String(), "tid", r.Last, "progress", r.String())
			logged = now
		}
		i.tell(r)
		select {
		case <-tick.C:
		case <-i.asked:
		case <-ctx.Done():
			return
		}
	}
}

// tell tells the master, if it wants reports and does not know this one.
func (i *importer) tell(r importing.Report) {
	i.m.Lock()
	defer i.m.Unlock()
	if i.conn == nil || i.told != nil && *i.told == r {
		return
	}
	i.told = &r
	i.conn.Send(r.Packet(0)) // the name is that of the connection
}

// wanted is called when a master wants reports; nil: a new one has not said so. It is told
// at once: as soon as the cluster runs, neoctl must know of the import.
func (i *importer) wanted(conn *link.Conn) {
	i.m.Lock()
	defer i.m.Unlock()
	i.conn, i.told = conn, nil
	if conn == nil {
		return
	}
	select {
	case i.asked <- struct{}{}:
	default: // is to be told
	}
}

// obey hands orders over, one after the other: the database may take its time.
func (i *importer) obey(ctx context.Context) {
	for {
		select {
		case o := <-i.orders:
			text := ""
			if err := i.db.Order(o.msg.Order); err != nil {
				text = err.Error()
				i.n.log.Warn("order for the import refused", "order", o.msg.Order.String(), "err", err)
				i.n.endIfBroken()
			} else {
				i.n.log.Info("order for the import obeyed", "order", o.msg.Order.String())
			}
			i.tell(i.db.Progress()) // what came of it precedes the answer
			o.answer(text)
		case <-ctx.Done():
			return
		}
	}
}

func (o importOrder) answer(text string) {
	o.conn.Send((&importing.Message{Topic: importing.Answered, Number: o.msg.Number, Text: text}).Packet())
}

// importMessage processes what the master says of an import.
func (n *Node) importMessage(conn *link.Conn, msg *importing.Message) {
	switch {
	case msg.Topic == importing.Wanted && n.importer != nil:
		n.importer.wanted(conn)
	case msg.Topic == importing.Ordered:
		o := importOrder{conn, msg}
		if n.importer == nil {
			o.answer("this storage does not import")
			return
		}
		select {
		case n.importer.orders <- o:
		default:
			o.answer("the orders before have not been obeyed yet")
		}
	default:
		n.log.Warn("unexpected message about an import", "topic", msg.Topic)
	}
}
