// Package clustertest runs whole clusters in memory, under a seed, and compares
// what their clients saw with a sequential model of ZODB.
//
// Nodes are the real ones; network, databases and time are simulated, so that
// message delays, lost connections and dying clients come from the seed and a
// failing run can be repeated.
//
// Replicas are compared record by record in clusters that delete and pack while
// storages are away, some of them with the habits of the Python implementation.
//
// A backup cluster follows an upstream cluster in the same network. What its clients see at
// a TID is compared with what the upstream cluster had then.
//
// In some clusters the first storage imports a source that is slow and goes away; the
// history of the source is the beginning of that of the model.
package clustertest
