package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/asking"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/backoff"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// errLockedOut is the state of a node whose identity etcd does not know any more.
var errLockedOut = errors.New("etcd refuses this node's identity: the node was removed, or got a newer bundle. Pods keep their network as it was")

// takeIdentity makes the node's own bundle what etcd is reached with: the one that it was
// given, or that one as it was renewed since. It does nothing where access to etcd is
// said by other flags.
func (n *node) takeIdentity(etcd *options.Etcd) (err error) {
	file := identity.NewFile(n.cfg.StateDir)
	if !n.cfg.ownIdentity {
		return nil
	}
	if n.cfg.bundle != "" {
		given, err := options.ReadBundle(n.cfg.bundle)
		if err != nil {
			return fmt.Errorf("--etcd-bundle: %w", err)
		}
		taken, err := file.Import(given)
		if err != nil {
			return err
		}
		if taken {
			n.log.Info("took over a bundle", "path", n.cfg.bundle, "user", given.User(), "until", given.Pair.Cert.NotAfter)
		}
	}
	b, _, err := file.Load()
	if err != nil {
		return err
	}
	host, _, ok := pki.ParseNodeUser(b.User())
	if !ok {
		return fmt.Errorf("the bundle is for %q, which is no node: make one with `k8s-ovs-controller bundle node %s`", b.User(), n.cfg.NodeName)
	}
	if host != n.cfg.NodeName {
		return fmt.Errorf("the bundle is node %s's, but this node is %s (--node-name): make one for it with `k8s-ovs-controller bundle node %s`", host, n.cfg.NodeName, n.cfg.NodeName)
	}
	etcd.UseBundle(b, file.Path())
	n.identity = &file
	return nil
}

// renew renews the node's certificate until ctx ends, through the records. In Kubernetes
// access does that.
func (n *node) renew(ctx context.Context) error {
	if n.identity == nil || n.api != nil {
		return nil
	}
	renewer := identity.NewRenewer(*n.identity, recordsIssuer{n.store, n.asking, n.self}, n.identityMetrics, n.log)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return renewer.Run(ctx) })
	group.Go(func() error { return n.followCA(ctx, renewer) })
	return group.Wait()
}

// followCA has the certificate renewed when the controller has another CA.
func (n *node) followCA(ctx context.Context, renewer *identity.Renewer) error {
	pause := backoff.New()
	for {
		_, err := n.store.WaitCertificate(ctx, n.self, func(c topology.Certificate) bool {
			b, held, err := n.identity.Load()
			return err == nil && held && c.CA != "" && c.CA != string(b.CA)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			n.log.Info("the CA of etcd is another one")
			renewer.Renew()
		}
		if !pause.Sleep(ctx) {
			return ctx.Err()
		}
	}
}

// recordsIssuer has certificates signed by the leading controller: the request stands in
// what the node asks for, the answer in a record that only the leader writes.
type recordsIssuer struct {
	store  *store.Store
	asking *asking.Asking
	self   netip.Addr
}

// Issue implements [identity.Issuer].
func (r recordsIssuer) Issue(ctx context.Context, request []byte, _ string) (cert, ca []byte, err error) {
	want, err := pki.ParseRequest(request)
	if err != nil {
		return nil, nil, err
	}
	r.asking.Certificate(string(request))
	defer r.asking.Certificate("")
	answer, err := r.store.WaitCertificate(ctx, r.self, func(c topology.Certificate) bool {
		block, _ := pem.Decode([]byte(c.Certificate))
		if block == nil {
			return false
		}
		got, err := x509.ParseCertificate(block.Bytes)
		return err == nil && bytes.Equal(got.RawSubjectPublicKeyInfo, want.RawSubjectPublicKeyInfo)
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("the controller has not answered: does one lead that signs certificates? Its log says what it refuses")
	}
	return []byte(answer.Certificate), []byte(answer.CA), err
}

// who is the user that the node writes as, and which CA says so; empty where it has no
// identity of its own.
func (n *node) who() (user, issuer string) {
	if n.identity == nil {
		return "", ""
	}
	b, held, err := n.identity.Load()
	if err != nil || !held {
		return "", ""
	}
	return b.User(), hex.EncodeToString(b.Pair.Cert.AuthorityKeyId)
}

// lockedOut says that etcd does not know this node any more, where that is so.
func (n *node) lockedOut() error {
	if n.identity == nil || !errors.Is(n.store.Healthy(), store.ErrDenied) {
		return nil
	}
	if n.api != nil {
		return fmt.Errorf("%w. If its Node is there, another certificate is asked for", errLockedOut)
	}
	return fmt.Errorf("%w. Make a new bundle with `k8s-ovs-controller bundle node %s --node-ip %s`", errLockedOut, n.cfg.NodeName, n.self)
}
