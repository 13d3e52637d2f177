// Package status is how a whole cluster is, as one value: [Status], which [Collect] asks
// an admin node for. It is what neoctl prints and what the status page shows. It has no text
// for people but the reasons of [Status.Health].
//
// # Invariant
//
// What is not known is absent (nil, "", or a zero time), and never a value that says that all
// is well: a cluster whose admin cannot be asked is down as far as [Status.Health] goes.
//
// # The JSON form
//
// The names of the fields are stable: some may be added, none changes its meaning without
// a new [Format]. Transaction and object ids are 16 hexadecimal digits, as many programs
// round numbers that great; moments are RFC 3339 in UTC; durations are seconds; sizes are
// bytes. States and types are the words of the protocol: RUNNING, UP_TO_DATE, STORAGE. What
// is not known is null, or "" where the field is text.
//
// Host, database, version and rates are told by nodes of this implementation only, and
// passed on by its masters and admins: see package vitals.
package status
