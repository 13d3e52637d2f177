package config

import "github.com/neozodb/neo/cluster/conf"

// didYouMean is [conf.DidYouMean].
func didYouMean(word string, known []string) string { return conf.DidYouMean(word, known) }
