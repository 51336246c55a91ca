package controller

import (
	"context"
	"fmt"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/lead"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// awaitAccess waits until the Secret with the access to an external etcd is there and whole. Without the CA
// that signs for nodes it is not: they would have no way to etcd.
func (i *instance) awaitAccess(ctx context.Context) (kube.EtcdAccess, error) {
	ref := i.cfg.Kube.EtcdSecret
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wait := func(err error) { i.waits.Store(&err) }
	wait(fmt.Errorf("waiting for Secret %s with the access to etcd: whoever runs the external etcd makes it", ref))
	for a := range i.client.WatchEtcdAccess(ctx, ref) {
		if a.Signer() != nil {
			return a, nil
		}
		err := fmt.Errorf("secret %s has no keys %q and %q: the CA, trusted by etcd for its clients, with which the certificates of nodes are signed. Add them: docs/identities.md", ref, kube.SignerCertKey, kube.SignerKeyKey)
		i.log.Error("the controller does not start yet", "error", err)
		wait(err)
	}
	return kube.EtcdAccess{}, fmt.Errorf("wait for Secret %s with access to etcd: %w", ref, ctx.Err())
}

// identify has the leader give nodes their certificates, where this controller knows the CA.
func (i *instance) identify(c *lead.Config, access kube.EtcdAccess) {
	switch ca := access.Signer(); {
	case ca != nil:
		place := &publisher{client: i.client, ref: i.cfg.Kube.EtcdSecret, log: i.log, place: func() (kube.EtcdAccess, error) { return access, nil }}
		c.Duties = append(c.Duties, place.run)
		i.signed(c, func() (*pki.Pair, error) { return ca, goodNow(ca, i.cfg.now()) })
	case i.signer != nil:
		i.signed(c, func() (*pki.Pair, error) {
			ca := i.signer.current.Load().CA
			return ca, goodNow(ca, i.cfg.now())
		})
		i.ended(c)
	}
}

// goodNow is nil while the certificate of a CA is good.
func goodNow(ca *pki.Pair, now time.Time) error {
	if c := ca.Cert; now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fmt.Errorf("the CA that signs for nodes is good from %s to %s, and it is %s: set the clock right, or give another CA", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}
