package admin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// checkTimeout is how long a cluster may take to tell its last transaction
	// before its link is closed.
	checkTimeout = 60 * time.Second
	// checkAgain is how often the lag of backups is looked at, if somebody wants
	// mails about it, and how long to wait before a failed mail is sent again.
	checkAgain = 600 * time.Second
)

// DefaultMailInterval is the least time between two mails.
const DefaultMailInterval = time.Minute

// cluster is a cluster that is watched.
type cluster struct {
	name string
	status
	follows *following.Report // how far it follows its upstream cluster; nil: not known
	conn    *link.Conn        // to the admin of a backup; nil: not connected
	seen    seen
}

// monitor is what the node knows of its cluster and of its backups.
type monitor struct {
	own       cluster
	backups   []*cluster // sorted by name
	sawAt     time.Time  // of the last questions for Stats
	maxLag    time.Duration
	checks    string // what the last checks of replicas found; "" if nothing
	imports   imports
	following backup

	waiting []relay // of AskMonitorInformation, for the end of the check
	// A check is in progress while queries is not empty. dirty: something changed
	// since it began.
	queries map[checkTag]bool
	dirty   bool
	check   int // number of the last one
	timeout <-chan time.Time
	again   <-chan time.Time

	mailing bool             // one is under way
	mailErr error            // why the last one could not be sent
	floor   <-chan time.Time // until then no other one is sent; nil: at once
	mailed  letter           // last one sent, or zero
	sending letter
	held    letter // worst that could not be sent in time, or zero
	passing letter // held when the one under way was written
}

// letter is what a mail tells.
type letter struct {
	news   string              // what makes it differ from others
	levels map[string]severity // of clusters
	text   string
}

// worst returns the greatest severity that a letter tells of.
func (l *letter) worst() severity {
	s := fine
	for _, level := range l.levels {
		s = max(s, level)
	}
	return s
}

// checkTag is the tag of a query of a check.
type checkTag struct {
	check   int
	cluster *cluster
	last    bool // AskLastTransaction, otherwise AskRecovery
}

func (m *monitor) init(own string, backups []string, maxLag time.Duration) {
	m.own.name, m.maxLag = own, maxLag
	for _, name := range slices.Compact(slices.Sorted(slices.Values(backups))) {
		m.backups = append(m.backups, &cluster{name: name})
	}
	m.queries = map[checkTag]bool{}
}

func (m *monitor) backup(name string) *cluster {
	for _, c := range m.backups {
		if c.name == name {
			return c
		}
	}
	return nil
}

func (m *monitor) disconnected(c *cluster) {
	c.conn, c.status, c.follows, c.seen = nil, status{}, nil, seen{}
	maps.DeleteFunc(m.queries, func(q checkTag, _ bool) bool { return q.cluster == c })
}

// report sums up what is known now.
func (m *monitor) report() report {
	var r report
	var text strings.Builder
	add := func(name proto.Opt[string], s severity) {
		switch s {
		case warning:
			r.warning = append(r.warning, name)
		case problem:
			r.problem = append(r.problem, name)
		}
	}
	own := m.own.severity(false)
	if m.mailErr != nil {
		own = problem
	}
	if m.checks != "" || m.imports.bad() {
		own = max(own, warning)
	}
	add(proto.Opt[string]{}, own)
	text.WriteString(m.own.line(lag{}))
	if m.checks != "" {
		text.WriteString("\n" + m.checks)
	}
	text.WriteString(m.imports.lines())
	text.WriteString(m.own.followLine(""))
	for _, c := range m.backups {
		l := lagOf(&c.status, &m.own.status)
		s := c.severity(true)
		if s == fine && c.due(l).over(m.maxLag) {
			s = warning
		}
		add(proto.Some(c.name), s)
		fmt.Fprintf(&text, "\n\n%s\n    %s%s", c.name, c.line(l), c.followLine("    "))
	}
	if m.mailErr != nil {
		fmt.Fprintf(&text, "\n\n%v", m.mailErr)
	}
	sortNames(r.warning)
	sortNames(r.problem)
	r.text = text.String()
	return r
}

// observe compares the cluster with what was watched before.
func (n *Node) observe() {
	now := status{state: n.state, ltid: n.monitor.own.ltid, backupTID: n.monitor.own.backupTID}
	if n.pt.PTID().OK {
		now.cells = map[proto.CellState]int{}
	}
	down := map[proto.NodeID]bool{}
	for _, row := range n.pt.Rows() {
		for _, c := range row {
			now.cells[c.State]++
			if !n.nodes.Running(c.ID) {
				down[c.ID] = true
			}
		}
	}
	now.down = len(down)
	if now.equal(&n.monitor.own.status) {
		return
	}
	before := n.monitor.own.status
	n.monitor.own.status = now
	n.tellUpstream(&before)
	n.changed()
}

// changed starts a check because of a change, if somebody wants to be told.
func (n *Node) changed() {
	if len(n.monitor.queries) > 0 {
		n.monitor.dirty = true
	}
	if n.cfg.Mail != nil || len(n.monitor.waiting) > 0 {
		n.startCheck()
	}
}

// startCheck asks every cluster for its last transaction, unless that is under
// way already.
func (n *Node) startCheck() {
	m := &n.monitor
	if len(m.queries) > 0 {
		return
	}
	m.check++
	m.dirty = false
	if n.master != nil && m.own.operational() {
		n.query(&m.own, n.master)
		for _, c := range m.backups {
			if c.conn != nil && c.operational() {
				n.query(c, c.conn)
			}
		}
	}
	if len(m.queries) == 0 {
		n.checkEnds()
		return
	}
	m.timeout = time.After(checkTimeout)
}

func (n *Node) query(c *cluster, conn *link.Conn) {
	ask := func(req proto.Request, last bool) {
		tag := checkTag{n.monitor.check, c, last}
		n.monitor.queries[tag] = true
		conn.Ask(req, tag)
	}
	if c.backingUp() {
		ask(&proto.AskRecovery{}, false)
	}
	ask(&proto.AskLastTransaction{}, true)
}

// checkAnswered handles the answer, or the loss, of a query.
func (n *Node) checkAnswered(tag checkTag, ev link.Event) {
	switch p := ev.Packet.(type) {
	case *proto.AnswerRecovery:
		tag.cluster.backupTID = p.BackupTID
	case *proto.AnswerLastTransaction:
		tag.cluster.ltid = proto.Some(p.TID)
	default:
		// Lost or refused: an old value would say that all is well.
		tag.cluster.ltid, tag.cluster.backupTID = proto.Opt[tid.TID]{}, proto.Opt[tid.TID]{}
	}
	if !n.monitor.queries[tag] {
		return
	}
	delete(n.monitor.queries, tag)
	if len(n.monitor.queries) == 0 {
		n.checkEnds()
	}
}

// checkTimedOut closes the links of the clusters that did not answer. Their ends
// then end the check.
func (n *Node) checkTimedOut() {
	n.monitor.timeout = nil
	for tag := range n.monitor.queries {
		conn := tag.cluster.conn
		if tag.cluster == &n.monitor.own {
			conn = n.master
		}
		if conn != nil {
			n.log.Warn("no answer about the last transaction, closing the connection", "cluster", tag.cluster.name, "peer", conn.String())
			conn.Close()
		}
	}
}

// refuseWaiting answers the operators that wait for a check without a master.
func (n *Node) refuseWaiting() {
	m := &n.monitor
	for _, w := range m.waiting {
		w.conn.AnswerError(w.id, proto.NotReady, notConnected)
	}
	m.waiting = nil
	clear(m.queries)
	m.timeout = nil
}

func (n *Node) checkEnds() {
	m := &n.monitor
	m.timeout = nil
	r := m.report()
	for _, w := range m.waiting {
		w.conn.Answer(w.id, &proto.AnswerMonitorInformation{Warning: r.warning, Problem: r.problem, Summary: r.text})
	}
	m.waiting = nil
	if n.cfg.Mail == nil {
		return
	}
	n.mail(r)
	if m.dirty {
		n.startCheck()
	}
}

// mail sends a report, if it tells something new and the last mail is old enough.
// Otherwise the floor between two mails ends with another check.
func (n *Node) mail(r report) {
	m := &n.monitor
	if m.again == nil && (m.mailErr != nil || m.own.operational() && slices.ContainsFunc(m.backups, func(c *cluster) bool { return c.operational() })) {
		m.again = time.After(checkAgain)
	}
	now := letter{m.news(r), r.levels(m.own.name), r.text}
	if n.master == nil {
		now.text = notConnected
	}
	told := &m.mailed
	if m.mailing {
		told = &m.sending
	}
	if m.mailErr == nil && now.news == told.news && (m.held.news == "" || m.mailing) {
		return
	}
	if m.mailing || m.floor != nil {
		if now.news != told.news {
			m.hold(now)
		}
		return
	}
	body := now.text + "\n"
	if h := m.held; h.news != "" && h.news != now.news && h.news != told.news {
		body += "\nMeanwhile it was:\n\n" + h.text + "\n"
	}
	subject := r.subject(changedNames(m.mailed.levels, now.levels))
	m.mailing, m.sending, m.passing, m.held = true, now, m.held, letter{}
	m.floor = time.After(n.cfg.MailInterval)
	n.work.start(func(ctx context.Context) {
		n.send(mailed{n.cfg.Mail(ctx, subject, body)})
	})
}

// hold keeps a letter for the next mail, unless one is kept that is as bad.
func (m *monitor) hold(l letter) {
	if m.held.news == "" || l.news != "" && l.worst() > m.held.worst() {
		m.held = l
	}
}

// news returns what is worth a mail when it changes: how well each cluster is, its
// state, how many of its nodes are missing, and that an import is over; but not its
// transactions, nor how many cells are still to be replicated.
func (m *monitor) news(r report) string {
	levels := r.levels(m.own.name)
	text := ""
	for _, c := range append([]*cluster{&m.own}, m.backups...) {
		text += fmt.Sprintf("%q %d %v %d\n", c.name, levels[c.name], c.state, c.down)
	}
	return text + m.imports.importNews()
}

// changedNames returns the clusters that are not fine now and were otherwise
// before, sorted.
func changedNames(before, now map[string]severity) []string {
	var names []string
	for name, level := range now {
		if old, ok := before[name]; !ok || old != level {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// mailEnded notes what became of a mail. A failure is told in the next one, and
// to operators.
func (n *Node) mailEnded(err error) {
	m := &n.monitor
	m.mailing = false
	if err != nil {
		m.mailErr = err
		later := m.held
		m.held = m.passing
		m.hold(m.sending)
		m.hold(later)
		n.log.Error("mail not sent", "err", err)
		m.again = time.After(checkAgain)
		return
	}
	m.mailErr = nil
	m.mailed = m.sending
	// What happened while it was being sent.
	n.startCheck()
}
