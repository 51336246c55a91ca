package kube

import (
	"context"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// forbiddenRetry is how long after a watch was forbidden it is tried again: rights
// come with a new manifest, and a manifest without them is no fault to go on about.
const forbiddenRetry = 5 * time.Minute

// NetworkPolicy is a NetworkPolicy of the API server, as far as it can be named.
type NetworkPolicy struct{ Namespace, Name, UID string }

// Ref is what an Event about the policy is about.
func (p NetworkPolicy) Ref() ObjectRef {
	return ObjectRef{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy", Namespace: p.Namespace, Name: p.Name, UID: p.UID}
}

// WatchNetworkPolicies tells of all NetworkPolicies by their UIDs, when they are first
// known and anew after each batch of changes. The newest wins, and what is told is not
// changed. Where the watch is forbidden nothing is told until it no longer is. The
// channel is closed when ctx ends.
func (c *Client) WatchNetworkPolicies(ctx context.Context) <-chan map[string]NetworkPolicy {
	p := newPicture()
	policies := newTable(p, func(n *networkingv1.NetworkPolicy) (string, NetworkPolicy) {
		return string(n.UID), NetworkPolicy{Namespace: n.Namespace, Name: n.Name, UID: string(n.UID)}
	})
	return tellAll(ctx, p, policies, func() {
		if c.mayWatchPolicies(ctx) {
			follow(ctx, c, "networkpolicies", c.api.Networking.NetworkPolicies(""), &networkingv1.NetworkPolicy{}, metav1.ListOptions{}, policies)
		}
	})
}

// mayWatchPolicies returns when NetworkPolicies can be listed; false when ctx ended
// first. A reflector would complain of a right that is missing every few seconds.
func (c *Client) mayWatchPolicies(ctx context.Context) bool {
	said := false
	for ctx.Err() == nil {
		err := c.listPolicies(ctx)
		pause := serviceRetry
		switch {
		case err == nil:
			return true
		case apierrors.IsForbidden(err):
			pause = forbiddenRetry
			if !said {
				said = true
				c.log.Warn("may not list NetworkPolicies, so nobody is told that they are not enforced; going on without: the ClusterRole of the newest manifest has the right", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return false
}

func (c *Client) listPolicies(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.api.Networking.NetworkPolicies("").List(ctx, metav1.ListOptions{Limit: 1})
	return err
}
