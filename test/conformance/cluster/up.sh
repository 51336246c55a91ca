#!/bin/bash
# up.sh [KCM-FLAG...]: brings up Kubernetes on two nodes without any CNI plugin, as
# the cluster in $RUN, with the flags given for kube-controller-manager. Ends when
# both nodes are registered; they are not Ready before a plugin is installed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
mkdir -p "$RUN"
for n in fabric $NODES; do echo "$(ip_of "$n") $n"; done >"$RUN/hosts"

# The fabric is the switch between the nodes; kubectl and e2e.test run there.
make_node() {
	local node=$1 unshare
	mkdir -p "$RUN/$node/log"
	cg_make "$node"
	(cg_enter "$node" && exec setsid unshare --mount --uts --ipc --net --pid --cgroup --fork --mount-proc --kill-child \
		"$CLUSTER/node-init.sh" "$node" "$RUN" "$TOOLS/bin/pause") >"$RUN/$node/log/init.log" 2>&1 </dev/null 9>&- &
	unshare=$!
	note_pid "$unshare" "$RUN/$node/unshare"
	wait_for 20 "$node (see $RUN/$node/log/init.log)" test -e "$RUN/$node/ready"
	note_pid "$(ps -o pid= --ppid "$unshare" | tr -d ' ')" "$RUN/$node/pid1"
}

# wire NODE: a cable to the fabric. What a veth sends has no checksum yet, which a
# switch in user space at the other end takes for broken; a real NIC's has.
wire() {
	local node=$1
	ip link add name "$node" netns "$(pid_of fabric)" type veth peer name eth0 netns "$(pid_of "$node")"
	in_node fabric ip link set "$node" master br0 up
	in_node "$node" bash -ec "ethtool -K eth0 tx off >/dev/null
		ip addr add $(ip_of "$node")/24 dev eth0
		ip link set eth0 up
		ip route add default via $UNDERLAY.1
		sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0"
}

start_api() {
	local pki=$RUN/pki
	spawn node1 etcd "$TOOLS/bin/etcd" --data-dir /var/lib/etcd --unsafe-no-fsync --log-level warn \
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
	spawn node1 kube-apiserver "$TOOLS/bin/kube-apiserver" --advertise-address="$API" --secure-port=6443 --etcd-servers=http://127.0.0.1:2379 \
		--allow-privileged=true --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --service-cluster-ip-range="$SVC_CIDR" \
		--client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
		--kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" --kubelet-client-key="$pki/apiserver-kubelet-client.key" --kubelet-preferred-address-types=InternalIP \
		--service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
		--requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
		--requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
		--proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key" --enable-aggregator-routing=true
}

start_control() { # start_control KCM-FLAG...
	local pki=$RUN/pki config
	config=$pki/controller-manager.kubeconfig
	spawn node1 kube-controller-manager "$TOOLS/bin/kube-controller-manager" --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
		--leader-elect=false --use-service-account-credentials --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" \
		--cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" --service-cluster-ip-range="$SVC_CIDR" "$@"
	config=$pki/scheduler.kubeconfig
	spawn node1 kube-scheduler "$TOOLS/bin/kube-scheduler" --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" --leader-elect=false
	kc create clusterrolebinding kube-proxy --clusterrole=system:node-proxier --user=system:kube-proxy >/dev/null
}

# root may lack CAP_SYS_RESOURCE: then runc cannot lower oom_score_adj
start_containerd() {
	local node=$1
	cat >"$RUN/$node/containerd.toml" <<-T
		version = 2
		[plugins."io.containerd.grpc.v1.cri"]
		  sandbox_image = "registry.k8s.io/pause:3.10.1"
		  restrict_oom_score_adj = true
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		  runtime_type = "io.containerd.runc.v2"
	T
	spawn "$node" containerd containerd --config "$RUN/$node/containerd.toml"
}

import_images() {
	local node=$1 archive
	wait_for 60 "containerd on $node" in_node "$node" ctr version
	for archive in "$TOOLS"/images/*.tar; do
		in_node "$node" ctr -n k8s.io images import "$archive" >>"$RUN/$node/log/import.log" 2>&1
	done
}

start_proxy() {
	local node=$1
	cat >"$RUN/$node/kube-proxy.yaml" <<-Y
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: nftables
		clusterCIDR: $POD_CIDR
		hostnameOverride: $node
		oomScoreAdj: 0
		clientConnection: {kubeconfig: $RUN/pki/kube-proxy.kubeconfig}
		conntrack: {maxPerCore: 0, min: 0} # nf_conntrack_max is the machine's
	Y
	spawn "$node" kube-proxy "$TOOLS/bin/kube-proxy" --config="$RUN/$node/kube-proxy.yaml" --v=2
}

make_node fabric
in_node fabric bash -ec "ip link add br0 type bridge; ethtool -K br0 tx off >/dev/null; ip link set br0 up; ip addr add $UNDERLAY.1/24 dev br0"
for n in $NODES; do
	make_node "$n"
	wire "$n"
done
# shellcheck disable=SC2086
"$CLUSTER/pki.sh" "$RUN/pki" "$API" $NODES
start_api
imports=()
for n in $NODES; do
	start_containerd "$n"
	import_images "$n" &
	imports+=($!)
done
for i in "${imports[@]}"; do wait "$i"; done
wait_for 120 "kube-apiserver" kc get --raw /readyz
start_control "$@"
for n in $NODES; do
	"$CLUSTER/kubelet.sh" "$n"
	start_proxy "$n"
	wait_for 90 "$n to register" kc get node "$n"
done
kc label node node1 node-role.kubernetes.io/control-plane= >/dev/null
