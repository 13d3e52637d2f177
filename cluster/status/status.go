package status

import (
	"encoding/json"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Format is the version of the JSON form.
const Format = 1

// Status is how a cluster is.
type Status struct {
	Format  int       `json:"format"`
	Time    time.Time `json:"time"`    // when it was collected
	Admin   string    `json:"admin"`   // address of the admin that was asked, "" if it is of this process
	Cluster string    `json:"cluster"` // name
	State   string    `json:"state"`   // of the cluster: RUNNING, RECOVERING, BACKINGUP, …
	Primary string    `json:"primary"` // master: M1
	// Unknown says why most of the rest is not known: the admin cannot be reached, or is not
	// connected to a primary master; "" otherwise.
	Unknown string `json:"unknown"`

	Nodes      []Node     `json:"nodes"`      // by type and number: masters, storages, clients, admins
	Partitions Partitions `json:"partitions"` // partition table
	// Replication has an entry for each cell that is out of date, by partition and node.
	Replication []Replication `json:"replication"`

	LastOID *OID    `json:"last_oid"` // absent in a backup cluster
	Last    *Moment `json:"last"`     // last transaction; of a backup: last one known of the upstream cluster
	// Backup is up to where a backup cluster is complete; nil if it is none.
	Backup *Moment `json:"backup"`

	CommitsPerSecond *float64 `json:"commits_per_second"` // transactions, lately
	LoadsPerSecond   *float64 `json:"loads_per_second"`   // records that storages read for clients, lately

	Imports []Import `json:"imports"` // by storage
	// Backups are how far this cluster follows another one (Cluster is "" then), and the
	// backups of it that its admin watches.
	Backups []Backup `json:"backups"`
	Check   *Check   `json:"check"` // last check of replicas since the admin or its master was started
	Pack    *Pack    `json:"pack"`  // last pack order since the primary master was elected

	// Warnings and Problems are the clusters that the admin finds not well; "" is this one.
	Warnings []string `json:"warnings"`
	Problems []string `json:"problems"`
	Summary  string   `json:"summary"` // what the admin says of all that, in lines
}

// Node is a node of the cluster.
type Node struct {
	ID       string     `json:"id"`       // S1; "" if it has none, as a master that is not running
	Type     string     `json:"type"`     // MASTER, STORAGE, CLIENT, ADMIN
	State    string     `json:"state"`    // RUNNING, DOWN, PENDING, UNKNOWN
	Address  string     `json:"address"`  // HOST:PORT; "" of a client
	Since    *time.Time `json:"since"`    // when it came into its state
	Host     string     `json:"host"`     // name of its machine
	Adapter  string     `json:"adapter"`  // of a storage: SQLite, MySQL, Importer
	Database string     `json:"database"` // of a storage: path or database, without password
	Version  string     `json:"version"`  // of its program
	Started  *time.Time `json:"started"`  // when its process began
	// PackDisabled tells that a storage does not execute pack orders (--disable-pack).
	PackDisabled bool `json:"pack_disabled"`

	// Since the process began, and per second, lately: transactions of a storage or of the
	// primary master; records that a storage read for clients.
	Commits          *int64   `json:"commits"`
	CommitsPerSecond *float64 `json:"commits_per_second"`
	Loads            *int64   `json:"loads"`
	LoadsPerSecond   *float64 `json:"loads_per_second"`

	Cells map[string]int `json:"cells"` // of a storage: how many in each state; nil: none, or not asked for
}

// Size is a number of bytes.
type Size = int64

// Partitions is the partition table.
type Partitions struct {
	ID       *uint64  `json:"id"`       // of its version
	Replicas int      `json:"replicas"` // copies wanted beside the first
	Rows     [][]Cell `json:"rows"`     // by partition
}

// Cell is a copy of a partition.
type Cell struct {
	Node  string `json:"node"`  // S1
	State string `json:"state"` // UP_TO_DATE, OUT_OF_DATE, FEEDING, CORRUPTED
}

// Replication is how far a cell that is out of date is.
type Replication struct {
	Partition int    `json:"partition"`
	Node      string `json:"node"`
	Running   bool   `json:"running"` // its node is
	Active    bool   `json:"active"`  // it is being copied now
	// Reached is up to where its records are there, nil as long as its transactions are
	// copied, which come first; End is the last transaction wanted. Both are nil unless Active.
	Reached *Moment `json:"reached"`
	End     *Moment `json:"end"`
}

// Import is the import of a storage.
type Import struct {
	Node         string     `json:"node"`
	State        string     `json:"state"` // waiting, copying, paused, failed, comparing, different, done
	LastTID      ID         `json:"last_tid"`
	EndTID       ID         `json:"end_tid"`
	Transactions int64      `json:"transactions"`
	Records      int64      `json:"records"`
	Bytes        int64      `json:"bytes"`
	Position     *Size      `json:"position"` // of the copy in the sources
	Size         *Size      `json:"size"`     // of the sources
	Rate         float64    `json:"rate"`     // bytes of the sources per second
	Left         *float64   `json:"left"`     // seconds
	ComparedTID  *ID        `json:"compared_tid"`
	ComparedAt   *time.Time `json:"compared_at"`
	Differences  *int64     `json:"differences"`
	Slow         *string    `json:"slow"`           // what it waits for most: source, processor, database, clients, limit
	Limit        *Size      `json:"limit"`          // of the rate, by order
	Skipped      int64      `json:"skipped"`        // records left out by order
	Twice        int64      `json:"twice"`          // records left out before a later one of the same object and transaction
	Blobs        int64      `json:"blobs"`          // records whose files are not imported
	WriteBackTID *ID        `json:"write_back_tid"` // last transaction written back to the source
	Behind       *int64     `json:"behind"`         // transactions still to be written back
	Bad          bool       `json:"bad"`            // it does not go on without the operator
	Note         string     `json:"note"`
}

// Backup is how far a cluster follows another one.
type Backup struct {
	Cluster     string     `json:"cluster"` // that is the backup; "": the one whose status this is
	BackupTID   ID         `json:"backup_tid"`
	ReadableTID ID         `json:"readable_tid"` // what clients see
	UpstreamTID *ID        `json:"upstream_tid"`
	WantedTID   *ID        `json:"wanted_tid"` // by now, with delay, hold and window
	Due         *float64   `json:"due"`        // seconds that it is late, delay and window not counted
	Behind      bool       `json:"behind"`     // it lacks something that is wanted by now
	HoldTID     *ID        `json:"hold_tid"`
	Delay       float64    `json:"delay"` // seconds, as configured
	Closed      bool       `json:"closed"`
	Opens       *time.Time `json:"opens"`
	Linked      bool       `json:"linked"` // to the master of the upstream cluster
	Rate        *Size      `json:"rate"`   // limit per second
	Gap         []ID       `json:"gap"`    // first and last of what can never be kept
	Note        string     `json:"note"`
}

// Check is a check of replicas.
type Check struct {
	Begun       *time.Time `json:"begun"`
	Ended       *time.Time `json:"ended"`    // nil: it goes on
	Complete    bool       `json:"complete"` // everything that it was to compare was compared
	Partitions  int        `json:"partitions"`
	Rows        int        `json:"rows"` // transactions and records compared
	Differences int        `json:"differences"`
	Nodes       []string   `json:"nodes"` // that differ
	// Differ are the partitions that had differences when they were last checked, by this
	// check or an earlier one.
	Differ []int `json:"differ"`
}

// Pack is a pack order.
type Pack struct {
	Order   Moment  `json:"order"`   // transaction that gave it
	UpTo    *Moment `json:"up_to"`   // history before is deleted; nil: not known, as the master was restarted since
	Partial bool    `json:"partial"` // of some objects only
	Done    bool    `json:"done"`    // by all storages that execute orders
	Signed  bool    `json:"signed"`  // approved: else it waits
	// Waiting are the storages that have not completed it.
	Waiting []string `json:"waiting"`
}

// Moment is a transaction and its time.
type Moment struct {
	TID  ID        `json:"tid"`
	Time time.Time `json:"time"`
}

// MomentOf returns the moment of a transaction, nil if that is Zero.
func MomentOf(t tid.TID) *Moment {
	if t == tid.Zero {
		return nil
	}
	return &Moment{ID(t), t.Time().UTC()}
}

// ID is a transaction id, in JSON 16 hexadecimal digits.
type ID tid.TID

// OID is an object id, in JSON 16 hexadecimal digits.
type OID tid.OID

func (t ID) String() string { return tid.TID(t).String() }

// MarshalText implements [encoding.TextMarshaler].
func (t ID) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (t *ID) UnmarshalText(text []byte) error {
	id, err := tid.Parse(string(text))
	*t = ID(id)
	return err
}

func (o OID) String() string { return tid.OID(o).String() }

// MarshalText implements [encoding.TextMarshaler].
func (o OID) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (o *OID) UnmarshalText(text []byte) error {
	id, err := tid.ParseOID(string(text))
	*o = OID(id)
	return err
}

// JSON returns the status in its JSON form, in one line without a line break.
func (s *Status) JSON() ([]byte, error) { return json.Marshal(s) }

// Node returns the node of an id, nil if there is none.
func (s *Status) Node(id string) *Node {
	for i := range s.Nodes {
		if s.Nodes[i].ID == id && id != "" {
			return &s.Nodes[i]
		}
	}
	return nil
}

// Running reports whether the node runs.
func (n *Node) Running() bool { return n.State == proto.NodeRunning.String() }

// Readable reports whether clients can read the cell while its node runs.
func (c *Cell) Readable() bool {
	return c.State == proto.UpToDate.String() || c.State == proto.Feeding.String()
}
