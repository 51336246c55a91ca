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

// namespaceOf waits for the record of the pod's Namespace, and returns that Namespace's UID. Without the pod's UID it
// says none, and package namesakes binds the pod later: the record may still be that of a Namespace that is gone, and
// nobody could find out that the pod is not of it, so it would never have a network again.
func (a *Attacher) namespaceOf(ctx context.Context, req cniapi.Request) (uid string, err error) {
	uid, err = a.tenants.WaitKnown(ctx, req.PodNamespace)
	if req.PodUID == "" {
		uid = ""
	}
	return uid, err
}
