package policies

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Reasons of Events about a NetworkPolicy or a ClusterNetworkPolicy.
const (
	// NotEnforced and ClusterNotEnforced: some nodes' agents do not know policies of the kind.
	NotEnforced        = "NetworkPolicyNotEnforced"
	ClusterNotEnforced = "ClusterNetworkPolicyNotEnforced"
	// NotHonoured: something in the policy was not understood, or nodes cannot do it. It is the
	// reason of a condition too where it was not understood, as Understood is where it was.
	NotHonoured = "PolicyNotHonoured"
	Understood  = "PolicyUnderstood"
	// PortsNotHonoured, of a pod: it has more named ports than count.
	PortsNotHonoured = "NamedPortsNotHonoured"
	// StaticPodPassedOver, of a pod: its node made it, so that it is in no set.
	StaticPodPassedOver = "StaticPodPassedOver"
)

const (
	// noticeEvery is how often people are told the same of one policy: Events are
	// gone after an hour, and the policy may be somebody else's to look at by then.
	noticeEvery = 24 * time.Hour
	// noticesAtOnce, and noticePause between them, keep below what client-go queues
	// and the API server is asked for at once.
	noticesAtOnce = 20
	noticePause   = time.Second
	// maxListed is how many names a message has.
	maxListed = 5
)

// notice is something to tell people of a policy.
type notice struct {
	object  kube.ObjectRef
	reason  kube.EventReason
	message string
	// nodes are those that the message is about, remedy is what is to be done there.
	nodes, remedy string
}

// text is the notice in words.
func (n notice) text() string { return n.message + n.nodes + n.remedy }

// said tells notices apart that are to be told one by one. Which nodes one is about may change
// from minute to minute, while they are upgraded.
func (n notice) said() notice {
	n.nodes = ""
	return n
}

// lacking are the nodes, by name, that cannot do all that policies ask for.
type lacking struct {
	// policies are those that do not enforce NetworkPolicy, cluster those that do not enforce
	// ClusterNetworkPolicy, sctp those that enforce and do not know the ports of SCTP.
	policies, cluster, sctp []string
}

// notices are those that policies call for, in order.
func (s *state) notices(nodes lacking) []notice {
	all := wanted(s.policies, nodes)
	for _, name := range s.clusterNames {
		p := s.cluster[name]
		if p.Problem != "" {
			all = append(all, notice{object: p.Ref(), reason: NotHonoured, message: p.Problem + closes})
		}
		if len(nodes.sctp) > 0 && clusterPortsOfSCTP(p.ClusterPolicy) {
			all = append(all, notice{p.Ref(), NotHonoured, "for pods on nodes whose Open vSwitch does not know ports of SCTP, rules with some accept nothing, and deny all of SCTP where they do not accept: ", list(nodes.sctp), sctpRemedy})
		}
		if len(nodes.cluster) > 0 {
			all = append(all, notice{p.Ref(), ClusterNotEnforced, "not in force for pods on nodes whose agents do not know ClusterNetworkPolicy: ", list(nodes.cluster), ". Upgrade k8s-ovs there"})
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(s.manyPorts), kube.PodKey.Compare) {
		ports := s.ports[key]
		pod := kube.ObjectRef{Kind: "Pod", Namespace: key.Namespace, Name: key.Name, UID: ports.UID}
		all = append(all, notice{object: pod, reason: PortsNotHonoured, message: fmt.Sprintf(
			"it has %d named ports. For each set of pods that policies name %d of those count that they name, the first by name: by the others' names nothing is allowed, and nothing denied", len(ports.Ports), maxPodPorts)})
	}
	for _, key := range slices.SortedFunc(maps.Keys(s.static), kube.PodKey.Compare) {
		pod := kube.ObjectRef{Kind: "Pod", Namespace: key.Namespace, Name: key.Name, UID: s.labels[key].UID}
		all = append(all, notice{object: pod, reason: StaticPodPassedOver, message: "rules of policies that choose their peers by labels neither allow nor deny it, as its node made it: it is a static pod. " +
			"An admin who trusts all nodes with that labels the namespace " + topology.StaticPodsLabel + "=" + topology.StaticPodsAllowed})
	}
	return all
}

const (
	// closes is what becomes of a ClusterNetworkPolicy that was not understood.
	closes = ". What was not understood accepts nothing, and denies all where it does not accept"
	// sctpRemedy ends notices about ports of SCTP.
	sctpRemedy = ". It does since 3.2, or with the kernel's datapath"
)

// wanted are the notices that NetworkPolicies call for, in order.
func wanted(policies map[policy.Key]kube.NetworkPolicy, nodes lacking) []notice {
	var all []notice
	for _, key := range slices.SortedFunc(maps.Keys(policies), policy.Key.Compare) {
		p := policies[key]
		if p.Problem != "" {
			all = append(all, notice{object: p.Ref(), reason: NotHonoured, message: p.Problem + ". What was not understood allows nothing"})
		}
		if rules := portsOfSCTP(p.Policy); len(nodes.sctp) > 0 && len(rules) > 0 {
			all = append(all, notice{p.Ref(), NotHonoured, list(rules) + ": ports of SCTP allow nothing for pods on nodes whose Open vSwitch does not know them: ", list(nodes.sctp), sctpRemedy})
		}
		if len(nodes.policies) > 0 {
			all = append(all, notice{p.Ref(), NotEnforced, "not in force for pods on nodes whose agents do not know NetworkPolicy: ", list(nodes.policies), ". Upgrade k8s-ovs there"})
		}
	}
	return all
}

// list is a list of names for people.
func list(names []string) string {
	if len(names) > maxListed {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxListed], ", "), len(names)-maxListed)
	}
	return strings.Join(names, ", ")
}

// notices are those that one leader has told, each once a day.
type notices struct{ told map[notice]time.Time }

func newNotices() *notices { return &notices{told: map[notice]time.Time{}} }

// due are those of all that are to be told now, and when to ask again; zero for as soon as
// they change.
func (n *notices) due(all []notice, now time.Time) (due []notice, again time.Time) {
	there := map[notice]bool{}
	for _, one := range all {
		there[one.said()] = true
	}
	maps.DeleteFunc(n.told, func(said notice, _ time.Time) bool { return !there[said] })
	sooner := func(at time.Time) {
		if again.IsZero() || at.Before(again) {
			again = at
		}
	}
	for _, one := range all {
		if told, ok := n.told[one.said()]; ok && now.Before(told.Add(noticeEvery)) {
			sooner(told.Add(noticeEvery))
			continue
		}
		if len(due) == noticesAtOnce {
			sooner(now.Add(noticePause))
			break
		}
		n.told[one.said()] = now
		sooner(now.Add(noticeEvery))
		due = append(due, one)
	}
	return due, again
}
