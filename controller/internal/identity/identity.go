// Package identity decides which users etcd should have for the nodes, and what is to be
// done about what agents outside of Kubernetes ask for.
//
// It is pure: records and requests go in, users and answers come out. The rules are in
// docs/identities.md.
package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// User is the user of etcd that the agent of n is; empty for one that has none.
func User(n topology.Node) string {
	if n.Host == "" || n.ID() == "" {
		return ""
	}
	return pki.NodeUser(n.Host, n.ID())
}

// Users are those of the nodes, with the roles that they and others have.
func Users(prefix, network string, nodes map[netip.Addr]topology.Node) store.Access {
	want := store.Access{Roles: store.CommonRoles(prefix, network), Users: map[string][]string{}}
	for _, ip := range slices.SortedFunc(maps.Keys(nodes), netip.Addr.Compare) {
		user := User(nodes[ip])
		if user == "" {
			continue
		}
		want.Roles[user] = append(want.Roles[user], store.NodePermissions(prefix, network, ip)...)
		want.Users[user] = []string{user, store.ReaderRole}
	}
	for _, roles := range want.Users {
		slices.Sort(roles)
	}
	return want
}

// Input is what requests are judged by.
type Input struct {
	Config     topology.Config
	Nodes      map[netip.Addr]topology.Node
	Namespaces map[string]topology.Namespace
	// Unreadable are the records that do not parse: see [topology.Snapshot].
	Unreadable map[string]string
	Requests   store.Requests
	// Enforced is that each node can write its own requests only, and that its record
	// was made by an admin.
	Enforced bool
	// Trust are the CAs that sign, PEM; empty where nobody signs.
	Trust []byte
	// Grant takes n from the namespaces that a node may still ask for, and returns how many it gets; nil where there
	// is no bound.
	Grant func(node netip.Addr, n int) int
}

// Signature is a certificate request that is to be signed.
type Signature struct {
	Key     netip.Addr
	User    string
	Request string
}

// Plan is what is to be done.
type Plan struct {
	// Namespaces get a record.
	Namespaces []string
	// Nodes get a record, or another one.
	Nodes []topology.Node
	// Sign these, and write the answers.
	Sign []Signature
	// Trust goes to these nodes, in the record of their certificate: the CA is another one.
	Trust []netip.Addr
	// Drop these requests: they are nobody's.
	Drop []string
	// Refused says by key why a request is not answered.
	Refused map[string]string
}

// Answer plans.
func Answer(in Input) Plan {
	p := Plan{Refused: maps.Clone(in.Requests.Invalid)}
	if p.Refused == nil {
		p.Refused = map[string]string{}
	}
	asked := map[string]bool{}
	for _, ip := range slices.SortedFunc(maps.Keys(in.Requests.All), netip.Addr.Compare) {
		r := in.Requests.All[ip].Value
		n, known := in.Nodes[ip]
		switch {
		case known && n.UID != "":
			// In Kubernetes records follow the API server.
			p.Refused[ip.String()] = fmt.Sprintf("its record follows the Node %s of Kubernetes", n.Host)
			continue
		case in.Enforced && !known:
			if _, broken := in.Unreadable["subnets/"+ip.String()]; !broken {
				p.Drop = append(p.Drop, ip.String())
			}
			p.Refused[ip.String()] = fmt.Sprintf("there is no record of node %s with address %s: it needs a bundle", r.Host, ip)
			continue
		case in.Enforced && n.Host != r.Host:
			p.Refused[ip.String()] = fmt.Sprintf("%s asks, but address %s is node %s's", r.Host, ip, n.Host)
			continue
		}
		p.create(in, ip, r, asked)
		if r.Subnet {
			p.place(in, r, n, known)
		}
		p.sign(in, ip, r, n)
	}
	p.retrust(in)
	return p
}

// create answers one that asks for namespaces; asked are those that somebody else asked for.
func (p *Plan) create(in Input, ip netip.Addr, r topology.Request, asked map[string]bool) {
	var missing []string
	for _, ns := range r.Namespaces {
		_, there := in.Namespaces[ns]
		_, broken := in.Unreadable["netnamespaces/"+ns]
		if !there && !broken && !asked[ns] {
			missing = append(missing, ns)
		}
	}
	if n := len(missing); n > 0 && in.Grant != nil {
		missing = missing[:in.Grant(ip, n)]
		if len(missing) < n {
			p.Refused[ip.String()] = fmt.Sprintf("node %s asks for more namespaces than its pods can be of: the others wait", r.Host)
		}
	}
	for _, ns := range missing {
		asked[ns] = true
	}
	p.Namespaces = append(p.Namespaces, missing...)
}

// place answers one that asks for a subnet.
func (p *Plan) place(in Input, r topology.Request, n topology.Node, known bool) {
	if n.Host == r.Host && (n.Ready() || n.Assign) {
		return
	}
	if _, broken := in.Unreadable["subnets/"+r.HostIP.String()]; broken {
		return
	}
	if !known {
		n = topology.Node{HostIP: r.HostIP}
	}
	n.Host = r.Host
	if !n.Ready() && !n.Assign {
		n.Assign, n.Status = true, nil
	}
	bare := topology.Node{Host: r.Host, HostIP: r.HostIP}
	if err := bare.Validate(in.Config); err != nil {
		p.Refused[r.HostIP.String()] = err.Error()
		return
	}
	p.Nodes = append(p.Nodes, n)
}

// sign answers one that asks for a certificate, unless that was done.
func (p *Plan) sign(in Input, ip netip.Addr, r topology.Request, n topology.Node) {
	if r.CSR == "" {
		return
	}
	if !in.Enforced || len(in.Trust) == 0 {
		p.Refused[ip.String()] = "it asks for a certificate, but this controller signs none"
		return
	}
	user := User(n)
	request, err := pki.ParseRequest([]byte(r.CSR))
	switch {
	case err != nil:
		p.Refused[ip.String()] = err.Error()
	case user == "" || request.Subject.CommonName != user:
		p.Refused[ip.String()] = fmt.Sprintf("it asks for a certificate for %q, but is %q", request.Subject.CommonName, user)
	case !answers(in.Requests.Answers[ip].Value, request, in.Trust):
		p.Sign = append(p.Sign, Signature{Key: ip, User: user, Request: r.CSR})
	}
}

// answers reports whether c is the answer to request.
func answers(c topology.Certificate, request *x509.CertificateRequest, trust []byte) bool {
	block, _ := pem.Decode([]byte(c.Certificate))
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	return err == nil && bytes.Equal(cert.RawSubjectPublicKeyInfo, request.RawSubjectPublicKeyInfo) && pki.Signs(trust, cert)
}

// retrust tells the nodes whose identity is of this controller's making which CAs are
// trusted.
func (p *Plan) retrust(in Input) {
	if !in.Enforced || len(in.Trust) == 0 {
		return
	}
	signed := map[netip.Addr]bool{}
	for _, s := range p.Sign {
		signed[s.Key] = true
	}
	for _, ip := range slices.SortedFunc(maps.Keys(in.Nodes), netip.Addr.Compare) {
		if in.Nodes[ip].Identity != "" && !signed[ip] && in.Requests.Answers[ip].Value.CA != string(in.Trust) {
			p.Trust = append(p.Trust, ip)
		}
	}
}
