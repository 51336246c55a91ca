// Package cluster decides what the records of the network should say about the
// namespaces and nodes of a Kubernetes cluster, and what is to be written back
// to them. The rules are in docs/kubernetes.md, "Namespaces and nodes".
//
// The [Planner] is pure: what the API server and the records say goes in, the
// writes that should be made come out. netIDs and subnets themselves are for
// packages tenant and subnet: a plan only asks for them, as people do. [Errands]
// makes the calls to the API server that a plan wants, aside from the records.
package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/nodeaddr"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// GlobalNetwork is the value of the network annotation that makes a namespace global.
const GlobalNetwork = "global"

// retryRefused is how long a request that was refused is not made again.
const retryRefused = 30 * time.Second

// SubnetSource says where the subnets of nodes come from.
type SubnetSource string

const (
	// FromRecords: the controller gives them out.
	FromRecords SubnetSource = "records"
	// FromNode: they are the nodes' spec.podCIDR.
	FromNode SubnetSource = "node"
)

// Write is one change of a record, on the revision that was read.
type Write struct {
	// Key is the last part of the record's key.
	Key string
	// Namespace or Node is what to write; the other is nil.
	Namespace *topology.Namespace
	Node      *topology.Node
	// Delete takes the record out; what it was is in Namespace or Node.
	Delete bool
	// Revision is that of the record; 0 where there is none.
	Revision int64
	// Why is for the log.
	Why string
}

// Annotation is the netID annotation that a namespace should have.
type Annotation struct{ Namespace, UID, Value string }

// Ask is a namespace that is gone, and whose record may go when no pod is left.
type Ask struct{ Namespace, UID string }

// Event is something to tell people about an object.
type Event struct {
	Object  kube.ObjectRef
	Warning bool
	Reason  kube.EventReason
	Message string
}

// Reasons of Events.
const (
	NetworkJoined      = "NetworkJoined"
	NetworkIsolated    = "NetworkIsolated"
	NetworkGlobal      = "NetworkGlobal"
	NetworkRefused     = "NetworkRefused"
	NodeRefused        = "NodeRefused"
	NodeAddressWaiting = "NodeAddressWaiting"
	NodeAddressRefused = "NodeAddressRefused"
	SubnetRefused      = "SubnetRefused"
	SubnetWaiting      = "SubnetWaiting"
	ConfigRefused      = "NetworkConfigurationRefused"
)

// Plan is what should be done about one state of things.
type Plan struct {
	// Writes in the order to make them; when one fails, the later ones must wait
	// for the next plan.
	Writes []Write
	// New are records that only ask for a first netID. They come after Writes; none builds
	// on another, so that they can be made together.
	New []Write
	// Annotations and Asks are all that is wanted now, whether wanted before or not.
	Annotations []Annotation
	Asks        []Ask
	// Addresses are what Nodes are taken to have, by their names.
	Addresses map[string]nodeaddr.Addresses
	// Events that were not in the plan before.
	Events []Event
	// Refused counts the namespaces whose annotation cannot be followed.
	Refused int
	// Again is when to plan anew even if nothing changes; zero for never.
	Again time.Time
}

// Planner plans for one term of one leader. It remembers only what it said, and how
// long it has not heard of agents whose Node claims another address.
type Planner struct {
	source SubnetSource
	said   map[topic]string
	silent map[string]quiet // by UID of the Node
}

// topic is what one message at a time is told about.
type topic struct {
	object kube.ObjectRef
	reason kube.EventReason
}

// quiet is since when the agent at ip has not reported, and when that was last seen.
type quiet struct {
	ip          netip.Addr
	since, seen time.Time
}

// New starts a term.
func New(source SubnetSource) *Planner {
	return &Planner{source: source, said: map[topic]string{}, silent: map[string]quiet{}}
}

// State is what a plan is made of.
type State struct {
	// Cluster is all namespaces and nodes there are.
	Cluster kube.Cluster
	// Records are all there are at one revision.
	Records store.Records
	// Empty has the UIDs of namespaces that have no pod left.
	Empty map[string]bool
	// Reporting are the addresses whose agents report. It is looked at only where
	// AddressesDiffer.
	Reporting map[netip.Addr]bool
}

// AddressesDiffer reports whether a Node does not list the address of its record.
func (s State) AddressesDiffer() bool {
	listed := map[string][]netip.Addr{}
	for _, n := range s.Cluster.Nodes {
		listed[n.UID] = n.Addresses
	}
	for ip, rec := range s.Records.Nodes {
		if addresses := listed[rec.UID]; len(addresses) > 0 && !slices.Contains(addresses, ip) {
			return true
		}
	}
	return false
}

// round is the making of one plan.
type round struct {
	planner   *Planner
	cluster   kube.Cluster
	records   store.Records
	empty     map[string]bool
	reporting map[netip.Addr]bool
	now       time.Time
	plan      Plan
	said      map[topic]string
	quiet     map[string]quiet
}

// Plan says what should be done.
func (p *Planner) Plan(s State, now time.Time) Plan {
	d := &round{planner: p, cluster: s.Cluster, records: s.Records, empty: s.Empty, reporting: s.Reporting, now: now, said: map[topic]string{}, quiet: map[string]quiet{}}
	d.namespaces()
	d.nodes()
	d.addresses()
	p.said, p.silent = d.said, d.quiet
	return d.plan
}

// refuse tells people about an object what cannot be, once for each message.
func (d *round) refuse(object kube.ObjectRef, reason kube.EventReason, message string) {
	about := topic{object, reason}
	d.said[about] = message
	if d.planner.said[about] != message {
		d.plan.Events = append(d.plan.Events, Event{Object: object, Warning: true, Reason: reason, Message: message})
	}
}

// resting reports that what a record asked for was refused only just; it is
// asked for again later. A time that is still to come is of a clock that was set back since, and says nothing.
func (d *round) resting(s *topology.Status) bool {
	if !s.Is(topology.Refused) {
		return false
	}
	again := s.Time.Add(retryRefused)
	if !again.After(d.now) || s.Time.After(d.now) {
		return false
	}
	d.again(again)
	return true
}

// again has the next plan made at that time, if not before.
func (d *round) again(at time.Time) {
	if d.plan.Again.IsZero() || at.Before(d.plan.Again) {
		d.plan.Again = at
	}
}

// NamespaceRef is a Namespace as the object of an Event: Events about it are
// among its own, where its users look.
func NamespaceRef(name, uid string) kube.ObjectRef {
	return kube.ObjectRef{Kind: "Namespace", Namespace: name, Name: name, UID: uid}
}

// NodeRef is a Node as the object of an Event. The kubelet, and so `kubectl
// describe node`, has the node's name as its UID.
func NodeRef(name string) kube.ObjectRef {
	return kube.ObjectRef{Kind: "Node", Name: name, UID: name}
}

// ErrMisfit: the network configuration cannot be in the cluster as it is.
var ErrMisfit = errors.New("the network configuration does not fit the cluster")

// Check says what of the network configuration cannot be in the cluster as it
// is, and the way out: an ErrMisfit.
func Check(cfg topology.Config, c kube.Cluster) error {
	var wrong []string
	if own := c.KubernetesService; own.Is4() && !cfg.ServiceNetwork.Contains(own) {
		wrong = append(wrong, fmt.Sprintf("the service network %s does not contain %s, the address of service default/kubernetes: set service-network to the API server's --service-cluster-ip-range", cfg.ServiceNetwork, own))
	}
	for _, n := range byAge(c.Nodes, nodeAge) {
		for _, ip := range n.Addresses {
			if err := (topology.Node{Host: n.Name, HostIP: ip}).Validate(cfg); err != nil {
				wrong = append(wrong, err.Error()+": choose a network that no node is in")
			}
		}
	}
	if room := 1 << (cfg.NodeBits() - cfg.Network.Bits()); room < len(c.Nodes) {
		wrong = append(wrong, fmt.Sprintf("the pod network %s has %d subnets of /%d for %d nodes: choose a larger network or a smaller host-subnet-length", cfg.Network, room, cfg.NodeBits(), len(c.Nodes)))
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrMisfit, strings.Join(wrong, "; "))
}
