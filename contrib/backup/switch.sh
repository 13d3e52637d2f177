#!/bin/sh
# Move from a cluster to its backup without losing anything: the upstream cluster,
# which may be one of Python, gets no more transactions, the backup gets the last ones
# and becomes an ordinary cluster.
#
#   switch.sh UPSTREAM_ADMIN BACKUP_ADMIN [OTHER OPTIONS OF neoctl]
#
# The applications must be stopped first; one that is still connected is told. A backup is
# a client of its upstream cluster, too: with several of them, set BACKUPS to their number.
# Start them with the masters of the backup
# afterwards, and stop the upstream cluster or make it a backup of the new one.
#
# Exit status: 0 moved, 1 not, with the reason; the backup then goes on as before.
set -eu

fail() { echo "error: $*" >&2; exit 1; }
command -v neoctl >/dev/null || fail "neoctl is not in the PATH"
[ $# -ge 2 ] || fail "usage: switch.sh UPSTREAM_ADMIN BACKUP_ADMIN [OTHER OPTIONS OF neoctl]"
from=$1
to=$2
shift 2
id() { printf '%s\n' "$1" | sed -n "s/^$2 = //p"; }

state=$(neoctl -a "$to" "$@" print cluster)
[ "$state" = BACKINGUP ] || fail "the backup does not follow its upstream cluster: it is $state"
clients=$(neoctl -a "$from" "$@" print node CLIENT)
[ "$(printf '%s' "$clients" | grep -c CLIENT)" -le "${BACKUPS:-1}" ] || fail "stop the applications first; these clients are connected to the upstream cluster, one is the backup:
$clients"
last=$(id "$(neoctl -a "$from" "$@" print ids)" last_tid)
[ -n "$last" ] || fail "the upstream cluster at $from does not tell its last transaction"
echo "last transaction: $last"
n=0
until kept=$(id "$(neoctl -a "$to" "$@" print ids)" backup_tid) && [ -n "$kept" ] && [ $((${kept%% *})) -ge $((${last%% *})) ]; do
	n=$((n + 1))
	[ $n -lt 600 ] || fail "the backup is at ${kept:-nothing} after a minute: nothing was changed"
	sleep 0.1
done
again=$(id "$(neoctl -a "$from" "$@" print ids)" last_tid)
[ "$again" = "$last" ] || fail "the upstream cluster has got $again meanwhile: stop the applications first"

neoctl -a "$to" "$@" set cluster STOPPING_BACKUP >/dev/null
n=0
until state=$(neoctl -a "$to" "$@" print cluster) && [ "$state" = RUNNING ]; do
	n=$((n + 1))
	[ $n -lt 600 ] || fail "the cluster is ${state:-silent} after a minute: look at neoctl print node, and at the logs of its nodes"
	sleep 0.1
done
here=$(id "$(neoctl -a "$to" "$@" print ids)" last_tid)
[ "$here" = "$last" ] || fail "the cluster has $here as its last transaction and not $last"
again=$(id "$(neoctl -a "$from" "$@" print ids)" last_tid)
[ "$again" = "$last" ] || fail "the upstream cluster has got $again meanwhile, which the new cluster has not: an application was still connected"
echo "The cluster is RUNNING with all transactions."
