// Package definitions has the API server know ClusterNetworkPolicy, which Kubernetes does
// not bring along. What the cluster has already is left alone: it may be newer, and others
// may follow it too. It never changes or deletes a definition.
package definitions

import (
	"context"
	_ "embed"
	"log/slog"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

// clusterNetworkPolicies is the standard channel's definition of the version of
// sigs.k8s.io/network-policy-api that go.mod names, as it is there.
//
//go:embed clusternetworkpolicies.yaml
var clusterNetworkPolicies []byte

// API is what [Make] needs of [kube.Client].
type API interface {
	MakeDefinition(ctx context.Context, text []byte) (made bool, err error)
}

// retryFirst to retryLast are the pauses after a failure. A right that is missing comes with
// a new manifest.
const retryFirst, retryLast = 5 * time.Second, 5 * time.Minute

// Make returns when the cluster has ClusterNetworkPolicy, or ctx ended.
func Make(ctx context.Context, api API, log *slog.Logger) {
	pauses := backoff.Pauses{First: retryFirst, Last: retryLast}
	var trouble backoff.Trouble
	for {
		made, err := api.MakeDefinition(ctx, clusterNetworkPolicies)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && trouble.News(err):
			log.Warn("the cluster may have no ClusterNetworkPolicy; trying again: the newest manifest has the right to make it, or install that of sigs.k8s.io/network-policy-api", "error", err)
		case made:
			log.Info("the cluster had no ClusterNetworkPolicy; made its CustomResourceDefinition")
			return
		case err == nil:
			return
		}
		if !pauses.Wait(ctx) {
			return
		}
	}
}
