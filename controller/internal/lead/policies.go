package lead

import (
	"context"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// tellPolicies tells, until ctx ends, who wrote a NetworkPolicy that it is not enforced.
func (t *term) tellPolicies(ctx context.Context) {
	api := t.follower.cluster.API
	updates := api.WatchNetworkPolicies(ctx)
	defer func() {
		for range updates { // the end of ctx closes it
		}
	}()
	notices := cluster.NewNotices()
	var policies map[string]kube.NetworkPolicy
	var timer <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case p, ok := <-updates:
			if !ok {
				return
			}
			if len(p) > len(policies) {
				t.log.Warn("there are NetworkPolicies, which are not enforced", "count", len(p))
			}
			policies = p
			t.c.cfg.Metrics.notEnforced.Set(float64(len(p)))
		case <-timer:
		}
		now := t.c.cfg.Now()
		due, again := notices.Due(policies, now)
		for _, e := range due {
			api.Event(e.Object, e.Warning, e.Reason, e.Message)
		}
		timer = nil
		if !again.IsZero() {
			timer = time.After(again.Sub(now))
		}
	}
}
