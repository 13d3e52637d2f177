package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/spf13/pflag"
)

// daemonKeys are the keys that all nodes of a cluster have.
const daemonKeys = "cluster masters bind monitor dynamic_master_list nid peer_timeout logfile logfile_size log_level log_format ca cert key"

// programKeys are the keys of a configuration file, by the program that reads them: its
// options, with _ for -. One file serves all programs, so each knows the keys of the others.
// Those of the Python implementation are among them. A test compares the table with the
// options that the programs have.
var programKeys = map[string]string{
	"neomaster":  daemonKeys + " autostart upstream_cluster upstream_masters backup backup_schedule backup_window backup_bandwidth backup_delay replicas partitions",
	"neostorage": daemonKeys + " adapter database wait engine dedup disable_pack disable_drop_partitions replication_share replication_rate new_nid",
	"neoadmin":   daemonKeys + " backup_metrics monitor_backup monitor_maxlag monitor_interval monitor_email smtp smtp_tls smtp_auth",
	"neozeo": "cluster masters bind monitor storage file cache_size logfile logfile_size log_level log_format ca cert key peer_timeout read_only invalidation_queue_size " +
		"invalidation_age transaction_timeout client_conflict_resolution msgpack pid_filename ssl_certificate ssl_key ssl_authenticate",
}

// commandLineKeys are options that no file may set, which is said when one does.
const commandLineKeys = "reset extend_import"

// knownKeys returns the keys that a program knows, sorted: those of all programs, and the
// options of its own.
func knownKeys(fs *pflag.FlagSet) []string {
	known := map[string]bool{}
	for _, keys := range programKeys {
		for _, key := range strings.Fields(keys) {
			known[key] = true
		}
	}
	for _, key := range strings.Fields(commandLineKeys) {
		known[key] = true
	}
	fs.VisitAll(func(f *pflag.Flag) { known[keyOf(f)] = true })
	return slices.Sorted(maps.Keys(known))
}

// keyOf returns the key of an option.
func keyOf(f *pflag.Flag) string { return strings.ReplaceAll(f.Name, "-", "_") }

// checkKeys refuses the keys of a section that no program knows, unless another value
// refers to them. It returns those that the section sets itself, and that are for other
// programs than this one.
func checkKeys(fs *pflag.FlagSet, f *conf.File, s *conf.Section) (unused []string, err error) {
	known := knownKeys(fs)
	var errs []error
	for _, key := range slices.SortedFunc(slices.Values(s.Keys()), func(a, b string) int { return s.KeyLine(a) - s.KeyLine(b) }) {
		if slices.Contains(known, key) {
			if s.Own(key) && fs.Lookup(strings.ReplaceAll(key, "_", "-")) == nil {
				unused = append(unused, key)
			}
			continue
		}
		if f.Referenced(key) {
			continue
		}
		msg := fmt.Sprintf("unknown key %q", key)
		if plain := strings.ReplaceAll(key, "-", "_"); slices.Contains(known, plain) {
			msg += fmt.Sprintf(": keys are written with _, as in %q", plain)
		} else {
			msg += conf.DidYouMean(key, known)
		}
		errs = append(errs, &conf.SyntaxError{File: f.Name(), Line: s.KeyLine(key), Msg: msg})
	}
	return unused, errors.Join(errs...)
}

const fromDefaultKey = "value of [DEFAULT]"

// Given reports whether an option was set for this very node: on the command line, or in
// its own section. What [DEFAULT] says goes for all nodes, also those for which it makes no
// sense.
func Given(fs *pflag.FlagSet, name string) bool {
	f := fs.Lookup(name)
	return f != nil && f.Changed && f.Annotations[fromDefaultKey] == nil
}

// Keys returns the keys of configuration files by the program that reads them, for the test
// that compares them with the options.
func Keys() map[string][]string {
	all := map[string][]string{}
	for program, keys := range programKeys {
		all[program] = strings.Fields(keys)
	}
	all["neostorage"] = append(all["neostorage"], strings.Fields(commandLineKeys)...)
	return all
}
