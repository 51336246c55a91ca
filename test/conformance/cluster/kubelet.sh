#!/bin/bash
# kubelet.sh NODE: starts the kubelet of a node of the cluster in $RUN, which registers the node.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
NODE=$1
cat >"$RUN/$NODE/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $RUN/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
enforceNodeAllocatable: []
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
maxPods: 200
oomScoreAdj: 0
resolvConf: /etc/resolv.conf
rotateCertificates: false
serializeImagePulls: false
volumePluginDir: /var/lib/kubelet/volumeplugins
Y
spawn "$NODE" kubelet "$TOOLS/bin/kubelet" --config="$RUN/$NODE/kubelet.yaml" --kubeconfig="$RUN/pki/$NODE.kubeconfig" \
	--hostname-override="$NODE" --node-ip="$(ip_of "$NODE")" --v=2
