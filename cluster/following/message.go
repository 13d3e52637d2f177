package following

// Extension is the key by which a node says in its identification that it understands
// messages about backup clusters. Nodes of the Python implementation ignore it.
const Extension = "following"

// Topic says what a [Message] is.
type Topic uint8

const (
	Wanted   Topic = iota // an operator asks an admin for the report from now on
	Reported              // Report: from the master to admins, from an admin to operators and to the admin upstream
	Ordered               // Order: from an operator to an admin to the master
	Answered              // to the order Number: Text says why it was not obeyed, "" that it was
	Agreed                // Terms: from the master to a storage, before StartOperation and when they change
	Held                  // Terms.Hold: from a storage, of what it remembers, to the master when it has answered AskRecovery
)

// Message is what nodes tell each other about a backup cluster.
type Message struct {
	Topic  Topic
	Number int64  // names an order between two nodes
	Report Report // if Reported
	Order  Order  // if Ordered
	Terms  Terms  // if Agreed or Held
	Text   string // if Answered
}
