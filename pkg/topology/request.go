package topology

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// MaxRequestedNamespaces bounds how many namespaces one node may ask for at a time:
// more than the pods that a node takes.
const MaxRequestedNamespaces = 1024

// Request is the record requests/<nodeIP>: what an agent outside of Kubernetes asks the
// leader for. Only that node writes it, and takes out what it has been given.
type Request struct {
	// Host and HostIP are the node's name and address.
	Host   string     `json:"Host"`
	HostIP netip.Addr `json:"HostIP"`
	// Subnet asks for a node record, with a subnet.
	Subnet bool `json:"Subnet,omitempty"`
	// Namespaces asks for records of these, sorted.
	Namespaces []string `json:"Namespaces,omitempty"`
	// CSR asks for a certificate: a PEM certificate request for the node's own user.
	CSR string `json:"CSR,omitempty"`
}

// Empty reports whether nothing is asked for.
func (r Request) Empty() bool { return !r.Subnet && len(r.Namespaces) == 0 && r.CSR == "" }

// ParseRequest decodes the request that stands under key, the node's address.
func ParseRequest(key string, data []byte) (Request, error) {
	var r Request
	if err := json.Unmarshal(data, &r); err != nil {
		return Request{}, fmt.Errorf("request of node %s is not valid JSON of its form: %w", key, err)
	}
	switch {
	case r.HostIP.String() != key:
		return Request{}, fmt.Errorf("request of node %s: HostIP is %s; it must be the address in the key", key, r.HostIP)
	case r.Host == "":
		return Request{}, fmt.Errorf("request of node %s: Host is missing", key)
	case len(r.Namespaces) > MaxRequestedNamespaces:
		return Request{}, fmt.Errorf("request of node %s: %d namespaces at once, at most %d", key, len(r.Namespaces), MaxRequestedNamespaces)
	}
	for _, ns := range r.Namespaces {
		if err := ValidateNamespaceName(ns); err != nil {
			return Request{}, fmt.Errorf("request of node %s: %w", key, err)
		}
	}
	return r, nil
}

// Certificate is the record certificates/<nodeIP>: the leader's answer to a node's
// certificate request. Nothing in it is secret.
type Certificate struct {
	// Certificate is the node's, CA the certificates that etcd's is checked against; PEM.
	Certificate string `json:"Certificate"`
	CA          string `json:"CA"`
}
