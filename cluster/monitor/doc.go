// Package monitor lets a program be watched over HTTP: /metrics for Prometheus, /healthz and
// /readyz for probes, and a page for people.
//
// # Invariant
//
// Watching changes nothing: only GET and HEAD are answered, and a watcher that hangs, or many
// that come at once, cost the node neither time nor memory without bound. A node that does not
// answer is reported as such; the watcher never waits for it longer than a few seconds.
package monitor
