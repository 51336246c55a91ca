package cluster

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// PolicyNotEnforced is the reason of an Event about a NetworkPolicy.
const PolicyNotEnforced = "NetworkPolicyNotEnforced"

const (
	// noticeEvery is how often people are told of one NetworkPolicy: Events are gone
	// after an hour, and the policy may be somebody else's to look at by then.
	noticeEvery = 24 * time.Hour
	// noticesAtOnce, and noticePause between them, keep below what client-go queues
	// and the API server is asked for at once.
	noticesAtOnce = 20
	noticePause   = time.Second
)

// Notices are the Events about NetworkPolicies that one leader has sent: that they
// are not enforced, once a day for each.
type Notices struct{ told map[string]time.Time }

// NewNotices starts with none sent.
func NewNotices() *Notices { return &Notices{told: map[string]time.Time{}} }

// Due are the Events to send now, and when to ask again; zero for as soon as policies
// change. policies are all there are.
func (n *Notices) Due(policies map[string]kube.NetworkPolicy, now time.Time) (due []Event, again time.Time) {
	maps.DeleteFunc(n.told, func(uid string, _ time.Time) bool { _, there := policies[uid]; return !there })
	sorted := slices.SortedFunc(maps.Values(policies), func(a, b kube.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	sooner := func(at time.Time) {
		if again.IsZero() || at.Before(again) {
			again = at
		}
	}
	for _, p := range sorted {
		if told, ok := n.told[p.UID]; ok && now.Before(told.Add(noticeEvery)) {
			sooner(told.Add(noticeEvery))
			continue
		}
		if len(due) == noticesAtOnce {
			sooner(now.Add(noticePause))
			break
		}
		n.told[p.UID] = now
		sooner(now.Add(noticeEvery))
		due = append(due, Event{
			Object: p.Ref(), Warning: true, Reason: PolicyNotEnforced,
			Message: "k8s-ovs does not enforce NetworkPolicy yet: this one allows and denies nothing. Namespaces are kept apart by their networks (annotation k8s-ovs.io/network)",
		})
	}
	return due, again
}
