// Package conf turns what operators write into typed values: sections of
// neo.conf, addresses of nodes, lists of masters, ids of transactions and nodes.
//
// # Invariant
//
// A text means here exactly what it means to the Python implementation, whose
// configuration files and habits must go on working: the file syntax is that of
// Python's ConfigParser, and a bare number given for a transaction id is a
// UNIX timestamp. What cannot be understood is refused with the place and the
// reason; nothing is guessed.
package conf
