// Package backendtest is the contract of package backend as tests that every
// backend passes, a database in memory that is their model, and faults to put
// between a backend and its user.
package backendtest
