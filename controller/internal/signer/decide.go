// Package signer answers the CertificateSigningRequests by which agents in Kubernetes
// ask for the certificates of their nodes: docs/identities.md says who gets one.
package signer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// Name is the signer that agents ask.
	Name = kube.AgentSigner
	// Lifetime is that of the certificates; less where less is asked for.
	Lifetime = kube.AgentLifetime

	// What the API server says of a token that is bound to a pod (Kubernetes 1.30,
	// ServiceAccountTokenPodNodeInfo).
	extraNodeName = "authentication.kubernetes.io/node-name"
	extraNodeUID  = "authentication.kubernetes.io/node-uid"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	// serviceAccountPrefix begins the user name of a service account.
	serviceAccountPrefix = "system:serviceaccount:"
)

// Decision is what becomes of a request: it is signed for User, denied, or left alone
// until there is more to know.
type Decision struct {
	// User is the node's; empty where the request is not signed.
	User     string
	Node     string
	Lifetime time.Duration
	// Deny is why there will be no certificate, Wait why there is none yet. Where
	// both are empty the request is signed.
	Deny, Wait string
}

// Account is the user name of the service account NAMESPACE/NAME.
func Account(namespace, name string) string {
	return serviceAccountPrefix + namespace + ":" + name
}

// Decide says what becomes of the request r. account is the user name that agents have,
// nodes are the records of nodes.
func Decide(r kube.SigningRequest, account string, nodes map[netip.Addr]topology.Node) Decision {
	deny := func(format string, args ...any) Decision { return Decision{Deny: fmt.Sprintf(format, args...)} }
	switch {
	case r.Signer != Name:
		return deny("it is for the signer %s, and this is %s", r.Signer, Name)
	case r.Username != account:
		return deny("%s asks for it; only the agents' service account (%s, --agent-service-account) may", r.Username, account)
	}
	host, uid := single(r.Extra[extraNodeName]), single(r.Extra[extraNodeUID])
	if host == "" || uid == "" || single(r.Extra[extraPodUID]) == "" {
		return deny("the API server does not say on which node the pod is that the agent's token is bound to: that takes Kubernetes 1.30 or later, and the token of the agent's own pod")
	}
	deny = func(format string, args ...any) Decision {
		return Decision{Node: host, Deny: fmt.Sprintf(format, args...)}
	}
	if reason := usages(r.Usages); reason != "" {
		return deny("%s", reason)
	}
	request, err := pki.ParseRequest(r.Request)
	if err != nil {
		return deny("%v", err)
	}
	user := pki.NodeUser(host, uid)
	if asked := request.Subject.CommonName; asked != user {
		return deny("the agent's token is that of node %s (UID %s), so its user is %s; it asks to be %s", host, uid, user, asked)
	}
	rec, why := record(host, uid, nodes)
	switch {
	case why != "":
		return Decision{Node: host, Wait: why}
	case rec.ID() != uid:
		return deny("the record of node %s has an Identity, by which it has a bundle: take the field out of it", host)
	}
	return Decision{Node: host, User: user, Lifetime: lifetime(r.Lifetime)}
}

// single is the one value that there is.
func single(values []string) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

// usages says what is wrong with what the certificate is to be used for.
func usages(asked []string) string {
	allowed := []string{kube.ClientAuth, kube.DigitalSignature}
	extra := slices.ContainsFunc(asked, func(u string) bool { return !slices.Contains(allowed, u) })
	if extra || !slices.Contains(asked, kube.ClientAuth) {
		return fmt.Sprintf("its usages are %q; they must be %q, with or without %q", strings.Join(asked, ", "), kube.ClientAuth, kube.DigitalSignature)
	}
	return ""
}

// record is the one of the Node, or why there is none.
func record(host, uid string, nodes map[netip.Addr]topology.Node) (topology.Node, string) {
	why := fmt.Sprintf("node %s has no record below subnets/ yet", host)
	for _, n := range nodes {
		switch {
		case n.Host != host:
		case n.UID == uid:
			return n, ""
		default:
			why = fmt.Sprintf("the record of node %s is that of another Node of this name (UID %q), not of %s, yet", host, n.UID, uid)
		}
	}
	return topology.Node{}, why
}

func lifetime(asked time.Duration) time.Duration {
	if asked > 0 && asked < Lifetime {
		return asked
	}
	return Lifetime
}
