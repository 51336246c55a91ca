#!/bin/bash
# pki.sh DIR API NODE...: certificates and kubeconfigs of the cluster whose API server is at API.
set -euo pipefail
DIR=$1 API=$2
shift 2
mkdir -p "$DIR"
cd "$DIR"

ca() {
	openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
	openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 3650 -out "$1.crt" 2>/dev/null
}

cert() { # cert NAME SUBJECT CA EXTENSIONS
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -subj "$2" -out "$1.csr" 2>/dev/null
	openssl x509 -req -in "$1.csr" -CA "$3.crt" -CAkey "$3.key" -CAcreateserial -days 3650 -extfile <(printf '%b' "$4") -out "$1.crt" 2>/dev/null
	rm "$1.csr"
}

client() { # client NAME SUBJECT: a certificate and a kubeconfig with it
	cert "$1" "$2" ca 'extendedKeyUsage=clientAuth\n'
	cat >"$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: conformance, cluster: {server: "https://$API:6443", certificate-authority: $DIR/ca.crt}}]
users: [{name: $1, user: {client-certificate: $DIR/$1.crt, client-key: $DIR/$1.key}}]
contexts: [{name: conformance, context: {cluster: conformance, user: $1}}]
current-context: conformance
K
}

ca ca
ca front-proxy-ca
openssl genrsa -out sa.key 2048 2>/dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
cert apiserver /CN=kube-apiserver ca "extendedKeyUsage=serverAuth\nsubjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$API\n"
cert apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client ca 'extendedKeyUsage=clientAuth\n'
cert front-proxy-client /CN=front-proxy-client front-proxy-ca 'extendedKeyUsage=clientAuth\n'
ca etcd-ca
cert etcd /CN=etcd etcd-ca "extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:$API\n"
cert etcd-client /CN=k8s-ovs-controller etcd-ca 'extendedKeyUsage=clientAuth\n'
ca nodes-ca
client admin /O=system:masters/CN=admin
client controller-manager /CN=system:kube-controller-manager
client scheduler /CN=system:kube-scheduler
client kube-proxy /CN=system:kube-proxy
for node; do client "$node" "/O=system:nodes/CN=system:node:$node"; done
