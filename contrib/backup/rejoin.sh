#!/bin/sh
# Make the old upstream cluster a backup of the cluster that was promoted.
#
#   rejoin.sh TID ADMIN [OTHER OPTIONS OF neoctl]
#
# TID is up to where the promotion has kept everything, as promote.sh has printed it:
# 0x and hexadecimal digits. ADMIN is the one of the old cluster, whose masters run
# again, now with the options upstream-cluster and upstream-masters, and without clients.
#
# TRANSACTIONS AFTER TID ARE REMOVED from the old cluster; the script asks first,
# unless REMOVE=yes. Copy the database before that, or export it, if they may matter.
#
# Exit status: 0 it follows the new cluster, 1 not, with the reason.
set -eu

fail() { echo "error: $*" >&2; exit 1; }
command -v neoctl >/dev/null || fail "neoctl is not in the PATH"
[ $# -ge 2 ] || fail "usage: rejoin.sh TID ADMIN [OTHER OPTIONS OF neoctl]"
kept=$1
admin=$2
shift 2
case $kept in
0x*[!0-9a-f]* | 0x) fail "$kept is no transaction id: it is printed by promote.sh, and begins with 0x" ;;
0x*) ;;
*) fail "$kept is no transaction id: it is printed by promote.sh, and begins with 0x" ;;
esac
id() { printf '%s\n' "$1" | sed -n "s/^$2 = //p"; }
wanted() {
	n=0
	until state=$(neoctl -a "$admin" "$@" print cluster) && [ "$state" = "$want" ]; do
		n=$((n + 1))
		[ $n -lt 600 ] || fail "the cluster is ${state:-silent} and not $want after a minute: look at the logs of its nodes"
		sleep 0.1
	done
}

want=RUNNING
wanted "$@"
clients=$(neoctl -a "$admin" "$@" print node CLIENT)
[ "$(printf '%s' "$clients" | grep -c CLIENT)" = 0 ] || fail "these clients are connected to the old cluster: stop them first:
$clients"
last=$(id "$(neoctl -a "$admin" "$@" print ids)" last_tid)
[ -n "$last" ] || fail "the cluster at $admin does not tell its last transaction"
if [ $((${last%% *})) -gt $((kept)) ]; then
	echo "The last transaction of the old cluster is $last."
	if [ "${REMOVE:-}" != yes ]; then
		printf 'Remove everything after %s? ' "$kept"
		read -r answer || answer=
		[ "$answer" = yes ] || fail "nothing was changed"
	fi
	neoctl -a "$admin" "$@" truncate "tid:$((kept))" --yes
	n=0
	until last=$(id "$(neoctl -a "$admin" "$@" print ids)" last_tid) && [ -n "$last" ] && [ $((${last%% *})) -le $((kept)) ]; do
		n=$((n + 1))
		[ $n -lt 600 ] || fail "the cluster is still at ${last:-nothing} after a minute"
		sleep 0.1
	done
	wanted "$@"
fi
neoctl -a "$admin" "$@" set cluster STARTING_BACKUP >/dev/null
want=BACKINGUP
wanted "$@"
echo "The cluster follows the new one."
