package store

import (
	"net/netip"
	"strings"
)

// The kinds of records below <prefix>/<Name>/.
const (
	kindNamespaces = "netnamespaces/"
	kindNodes      = "subnets/"
	kindStatus     = "status/"
	kindMTU        = "mtu/"
	kindLimits     = "limits/"
	kindRequests   = "requests/"
	kindCerts      = "certificates/"
	kindLeader     = "leader/"
	// Of policies; below kindPolicies are namespaces, below kindSets hashes.
	kindIsolation       = "isolation/"
	kindPolicies        = "policies/"
	kindClusterPolicies = "clusterpolicies/"
	kindSets            = "sets/"
	kindPods            = "pods/"
	kindAcknowledged    = "acknowledged/"
	// Of who led: below it are historyTerms and historyNow.
	kindHistory = "history/"

	keyReleased = "released"

	// historyTerms has the terms of leaders, historyNow the ID of the present one; each write
	// of a leader writes that again.
	historyTerms = "terms"
	historyNow   = "now"
)

// keyspace writes keys. Their layout is in docs/design.md, "Records".
type keyspace struct{ prefix string }

func (k keyspace) config() string { return k.prefix + "/config" }

// kind is the prefix of all records of a kind in network name.
func (k keyspace) kind(name, kind string) string { return k.prefix + "/" + name + "/" + kind }

func (k keyspace) namespace(name, ns string) string { return k.kind(name, kindNamespaces) + ns }

func (k keyspace) node(name string, ip netip.Addr) string {
	return k.kind(name, kindNodes) + ip.String()
}

// ofNode is the record of a kind that the node with address ip has: see nodeKinds.
func (k keyspace) ofNode(name, kind string, ip netip.Addr) string {
	return k.kind(name, kind) + ip.String()
}

func (k keyspace) historyTerms(name string) string { return k.kind(name, kindHistory) + historyTerms }

func (k keyspace) historyNow(name string) string { return k.kind(name, kindHistory) + historyNow }

func (k keyspace) released(name string) string { return k.prefix + "/" + name + "/" + keyReleased }

// last is what follows the kind in key.
func (k keyspace) last(key, name, kind string) string {
	return strings.TrimPrefix(key, k.kind(name, kind))
}
