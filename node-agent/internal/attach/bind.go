package attach

import (
	"context"
	"maps"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// Bind says in which Kubernetes Namespaces attachments are, by the Namespaces' UIDs: of those of
// which it was not known, and of those that were thought to be in another. What failed may be
// repeated; a pod whose flows did not follow has the UID that it had.
func (a *Attacher) Bind(ctx context.Context, uids map[cniapi.Attachment]string) error {
	_, pool, err := a.known()
	if err != nil {
		return err
	}
	pool.SetNamespaceUIDs(uids)
	return a.each(ctx, slices.Collect(maps.Keys(uids)), func(ctx context.Context, node Node, at Attachment) error {
		at.UIDs.Namespace = uids[at.Attachment]
		return a.retell(ctx, &at, a.attached(node, at))
	})
}
