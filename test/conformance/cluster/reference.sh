#!/bin/bash
# reference.sh BIN: gives the cluster in $RUN the network that others are measured
# against: the bridge and host-local plugins out of BIN, and static routes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
BIN=$1

subnet_of() { kc get node "$1" -o 'jsonpath={.spec.podCIDR}'; }
has_subnet() { [ -n "$(subnet_of "$1")" ]; }

for n in $NODES; do wait_for 60 "the subnet of $n" has_subnet "$n"; done
for n in $NODES; do
	for peer in $NODES; do
		[ "$n" = "$peer" ] || in_node "$n" ip route replace "$(subnet_of "$peer")" via "$(ip_of "$peer")"
	done
	in_node "$n" cp "$BIN/bridge" "$BIN/host-local" "$BIN/loopback" "$BIN/portmap" /opt/cni/bin/
	in_node "$n" tee /etc/cni/net.d/10-reference.conflist >/dev/null <<-C
		{"cniVersion": "1.0.0", "name": "reference", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
		   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(subnet_of "$n")"}]]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
	C
done
