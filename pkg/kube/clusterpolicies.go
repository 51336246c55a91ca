package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	npav1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

const (
	clusterPolicyGroup = "policy.networking.k8s.io"
	clusterPolicyKind  = "ClusterNetworkPolicy"
	// clusterPoliciesEvery is how often it is looked whether there are ClusterNetworkPolicies
	// by now, where the API server did not know them. No watch tells of that.
	clusterPoliciesEvery = 5 * time.Second
	// unknownTimes is how often on end the API server must say that it does not know
	// ClusterNetworkPolicies before there are none. Where their definition is deleted they are
	// deleted first, and the watch tells of that; one of several servers may just lag behind,
	// and for its word nobody is let through whom they deny.
	unknownTimes = 6
	// honoured is the condition by which people learn what became of a ClusterNetworkPolicy,
	// and manager is who has it.
	honoured = "k8s-ovs.io/Honoured"
	manager  = "k8s-ovs"
	// maxConditionMessage is the most that the API takes, bytes.
	maxConditionMessage = 32768
)

// clusterPolicyVersions are those that have the form which policy.ParseCluster reads, the
// best first.
var clusterPolicyVersions = []string{"v1beta1", "v1alpha2"}

// clusterPolicies is the resource in one of its versions.
func clusterPolicies(version string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: clusterPolicyGroup, Version: version, Resource: "clusternetworkpolicies"}
}

// ClusterNetworkPolicy is a ClusterNetworkPolicy of the API server, as it was understood.
type ClusterNetworkPolicy struct {
	policy.ClusterPolicy
	UID string
	// Version is that of the API by which it was read, Generation that of its spec.
	Version    string
	Generation int64
	// Problem says what of it was not understood, and therefore closes; empty for none.
	Problem string
	// Told is what its status says of that.
	Told Honoured
	// toldAt is since when it says yes or no so.
	toldAt time.Time
}

// Honoured is what the status of a ClusterNetworkPolicy says of what k8s-ovs makes of it; the
// zero value where it says nothing.
type Honoured struct {
	// Generation is that of the spec that it is about.
	Generation int64
	// Reason is a word, and Message says more.
	Reason  EventReason
	Message string
	// OK is that all of it is honoured.
	OK bool
}

// Ref is what an Event about the policy is about.
func (p ClusterNetworkPolicy) Ref() ObjectRef {
	return ObjectRef{APIVersion: clusterPolicyGroup + "/" + p.Version, Kind: clusterPolicyKind, Name: p.Name, UID: p.UID}
}

// WatchClusterNetworkPolicies tells of all ClusterNetworkPolicies. An API server that does not
// know them has none, when it has said so for some 30 s; they may come to be known, and not to
// be, while it runs. Where the
// watch is forbidden nothing is told until it no longer is. It ends with ctx.
func (c *Client) WatchClusterNetworkPolicies(ctx context.Context) *Changes[string, ClusterNetworkPolicy] {
	return watchChanges(toClusterPolicy, func(t *table[*unstructured.Unstructured, string, ClusterNetworkPolicy]) {
		for unknown := 0; ctx.Err() == nil; {
			if version := c.clusterPolicyVersion(ctx); version != "" {
				unknown = 0
				c.followClusterPolicies(ctx, version, t)
				continue
			}
			if unknown++; unknown >= unknownTimes {
				_ = t.Replace(nil, "") // an empty list has nothing of a wrong kind
			}
			select {
			case <-ctx.Done():
			case <-time.After(clusterPoliciesEvery):
			}
		}
	})
}

// clusterPolicyVersion is the best version of ClusterNetworkPolicy that the API server serves;
// empty for none, or when ctx ended.
func (c *Client) clusterPolicyVersion(ctx context.Context) (version string) {
	c.mayList(ctx, "ClusterNetworkPolicies are not enforced", func(ctx context.Context) error {
		for _, version = range clusterPolicyVersions {
			_, err := c.api.ClusterPolicies(version).List(ctx, metav1.ListOptions{Limit: 1})
			if !apierrors.IsNotFound(err) {
				return err
			}
		}
		version = ""
		return nil
	})
	if ctx.Err() != nil {
		return ""
	}
	return version
}

// followClusterPolicies returns when the API server does not serve that version any more.
func (c *Client) followClusterPolicies(ctx context.Context, version string, t *table[*unstructured.Unstructured, string, ClusterNetworkPolicy]) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	example := &unstructured.Unstructured{}
	example.SetGroupVersionKind(schema.GroupVersionKind{Group: clusterPolicyGroup, Version: version, Kind: clusterPolicyKind})
	follow(ctx, c, "clusternetworkpolicies", &untilGone{of: c.api.ClusterPolicies(version), gone: cancel}, example, metav1.ListOptions{}, t)
}

// untilGone is a resource by definition: it may cease to be one, and be changed. What watches
// of before a change tell lacks what is new in it, so all is read anew when one ends. It is for
// one goroutine.
type untilGone struct {
	of resource[*unstructured.UnstructuredList]
	// gone is called when there is no such resource.
	gone func()
	// watched is that a watch has followed what was read last.
	watched bool
}

func (u *untilGone) List(ctx context.Context, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	u.watched = false
	list, err := u.of.List(ctx, o)
	return list, u.look(err)
}

func (u *untilGone) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	reads := o.SendInitialEvents != nil && *o.SendInitialEvents
	if u.watched && !reads {
		return nil, apierrors.NewResourceExpired("the watch ended; reading all")
	}
	u.watched = true
	w, err := u.of.Watch(ctx, o)
	return w, u.look(err)
}

func (u *untilGone) look(err error) error {
	if apierrors.IsNotFound(err) {
		u.gone()
	}
	return err
}

func toClusterPolicy(u *unstructured.Unstructured) (string, ClusterNetworkPolicy) {
	out := ClusterNetworkPolicy{UID: string(u.GetUID()), Version: u.GroupVersionKind().Version, Generation: u.GetGeneration()}
	var object npav1beta1.ClusterNetworkPolicy
	err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &object)
	if err == nil {
		out.ClusterPolicy, err = policy.ParseCluster(&object)
	} else {
		// The API server checks objects by a definition that is not the one we know.
		out.ClusterPolicy = policy.ClosedCluster(u.GetName())
		err = fmt.Errorf("%s %s is not of a form that k8s-ovs knows: %w", clusterPolicyKind, u.GetName(), err)
	}
	if err != nil {
		out.Problem = err.Error()
	}
	if told := meta.FindStatusCondition(object.Status.Conditions, honoured); told != nil {
		out.Told = Honoured{Generation: told.ObservedGeneration, Reason: EventReason(told.Reason), Message: told.Message, OK: told.Status == metav1.ConditionTrue}
		out.toldAt = told.LastTransitionTime.UTC()
	}
	return u.GetName(), out
}

// TellHonoured has the status of a ClusterNetworkPolicy say what became of it, beside what
// others say there. ErrNotFound when it is gone.
func (c *Client) TellHonoured(ctx context.Context, p ClusterNetworkPolicy, say Honoured) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	status, since := metav1.ConditionFalse, time.Now()
	if say.OK {
		status = metav1.ConditionTrue
	}
	if p.Told.Reason != "" && p.Told.OK == say.OK {
		since = p.toldAt
	}
	apply := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": clusterPolicyGroup + "/" + p.Version, "kind": clusterPolicyKind,
		"metadata": map[string]any{"name": p.Name, "uid": p.UID},
		"status": map[string]any{"conditions": []any{map[string]any{
			"type": honoured, "status": string(status), "reason": string(say.Reason), "message": say.Message,
			"observedGeneration": say.Generation, "lastTransitionTime": since.UTC().Format(time.RFC3339),
		}}},
	}}
	_, err := c.api.ClusterPolicies(p.Version).ApplyStatus(ctx, p.Name, apply, metav1.ApplyOptions{FieldManager: manager, Force: true})
	if err != nil {
		return fmt.Errorf("condition of %s %s: %w", clusterPolicyKind, p.Name, classify(err))
	}
	return nil
}

// Short is the same with no longer a message than the API takes.
func (h Honoured) Short() Honoured {
	const more = " ..."
	if len(h.Message) > maxConditionMessage {
		h.Message = strings.ToValidUTF8(h.Message[:maxConditionMessage-len(more)], "") + more
	}
	return h
}
