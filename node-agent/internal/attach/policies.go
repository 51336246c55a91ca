package attach

import (
	"context"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
)

// Policies knows which NetworkPolicies and ClusterNetworkPolicies select pods, and has their rules
// in the switch.
type Policies interface {
	// Load says which attachments there are, all of them.
	Load(all []Attachment)
	// Enter says that one comes, whose pod has that UID; empty where the runtime does not say.
	// It returns when it is known what selects the pod, at the latest after a second.
	Enter(ctx context.Context, at Attachment, uid string)
	// Arm returns when the rules are in the switch without which its flows would let through
	// what ClusterNetworkPolicies deny; at once where none is about it. It is called before
	// Selection.
	Arm(ctx context.Context, at Attachment) error
	// Selection is what its own flows have to know of policies.
	Selection(at Attachment) pipeline.PodPolicy
	// Await returns when its rules are in the switch, or after 200 ms.
	Await(ctx context.Context, at Attachment)
	// Leave says that one is off the network; that it is not known is no error.
	Leave(at Attachment)
	// Forget ends what the switch remembers of connections of addresses that are about to
	// be free.
	Forget(ctx context.Context, addresses ...netip.Addr) error
	// Reusable reports whether a freed address may be given to another pod.
	Reusable(address netip.Addr) bool
}

// SetPolicies makes p the policies that count; without there are none. It is called before
// anything is served.
func (a *Attacher) SetPolicies(p Policies) { a.policies = p }

// noPolicies is for a node of which no API server tells any.
type noPolicies struct{}

func (noPolicies) Load([]Attachment)                           {}
func (noPolicies) Enter(context.Context, Attachment, string)   {}
func (noPolicies) Arm(context.Context, Attachment) error       { return nil }
func (noPolicies) Selection(Attachment) pipeline.PodPolicy     { return pipeline.PodPolicy{} }
func (noPolicies) Await(context.Context, Attachment)           {}
func (noPolicies) Leave(Attachment)                            {}
func (noPolicies) Forget(context.Context, ...netip.Addr) error { return nil }
func (noPolicies) Reusable(netip.Addr) bool                    { return true }
