package etcdaccess

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Own is the identity that the node has to etcd; the zero value is none of its own.
type Own struct {
	file *identity.File
	node string
	// inCluster is that access renews it.
	inCluster bool
	log       *slog.Logger
}

// InCluster is the identity that access keeps, for the node of that name.
func (a *Access) InCluster() Own {
	return Own{file: &a.file, node: a.node, inCluster: true, log: a.log}
}

// firstLook and lastLook bound the pause before the answers of the controller are looked at again.
const firstLook, lastLook = 20 * time.Millisecond, 2 * time.Second

// errLockedOut is the state of a node whose identity etcd does not know any more.
var errLockedOut = errors.New("etcd refuses this node's identity: the node was removed, or got a newer bundle. Pods keep their network as it was")

// Take makes the own bundle of the node called node what etcd is reached with: the one in the file
// bundle that it was given, or that one as it was renewed since.
func Take(etcd *options.Etcd, bundle, node, stateDir string, log *slog.Logger) (Own, error) {
	file := identity.NewFile(stateDir)
	if bundle != "" {
		given, err := options.ReadBundle(bundle)
		if err != nil {
			return Own{}, fmt.Errorf("--etcd-bundle: %w", err)
		}
		taken, err := file.Import(given)
		if err != nil {
			return Own{}, err
		}
		if taken {
			log.Info("took over a bundle", "path", bundle, "user", given.User(), "until", given.Pair.Cert.NotAfter)
		}
	}
	b, _, err := file.Load()
	if err != nil {
		return Own{}, err
	}
	host, _, ok := pki.ParseNodeUser(b.User())
	if !ok {
		return Own{}, fmt.Errorf("the bundle is for %q, which is no node: make one with `k8s-ovs-controller bundle node %s`", b.User(), node)
	}
	if host != node {
		return Own{}, fmt.Errorf("the bundle is node %s's, but this node is %s (--node-name): make one for it with `k8s-ovs-controller bundle node %s`", host, node, node)
	}
	etcd.UseBundle(b, file.Path())
	return Own{file: &file, node: node, log: log}, nil
}

// Exists is that the node has an identity of its own.
func (o Own) Exists() bool { return o.file != nil }

// Answers are where the leading controller answers; [store.Store] reads them.
type Answers interface {
	WaitCertificate(ctx context.Context, node netip.Addr, want func(topology.Certificate) bool) (topology.Certificate, error)
}

// Requests are what the node asks the leading controller for; [asking.Asking] writes them.
type Requests interface{ Certificate(csr string) }

// Renew renews the certificate of the node with address self until ctx ends, through the records. In
// Kubernetes [Access.Follow] does that.
func (o Own) Renew(ctx context.Context, self netip.Addr, answers Answers, requests Requests, metrics *identity.Metrics) error {
	if o.file == nil || o.inCluster {
		return nil
	}
	renewer := identity.NewRenewer(*o.file, recordsIssuer{answers, requests, self}, metrics, o.log)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return renewer.Run(ctx) })
	group.Go(func() error { return o.followCA(ctx, self, answers, renewer) })
	return group.Wait()
}

// followCA has the certificate renewed when the controller has another CA.
func (o Own) followCA(ctx context.Context, self netip.Addr, answers Answers, renewer *identity.Renewer) error {
	pause := &backoff.Pauses{First: firstLook, Last: lastLook}
	for {
		_, err := answers.WaitCertificate(ctx, self, func(c topology.Certificate) bool {
			b, held, err := o.file.Load()
			return err == nil && held && c.CA != "" && c.CA != string(b.CA)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			o.log.Info("the CA of etcd is another one")
			renewer.Renew()
		}
		if !pause.Wait(ctx) {
			return ctx.Err()
		}
	}
}

// recordsIssuer has certificates signed by the leading controller: the request stands in
// what the node asks for, the answer in a record that only the leader writes.
type recordsIssuer struct {
	answers  Answers
	requests Requests
	self     netip.Addr
}

// Issue implements [identity.Issuer].
func (r recordsIssuer) Issue(ctx context.Context, request []byte, _ string) (cert, ca []byte, err error) {
	want, err := pki.ParseRequest(request)
	if err != nil {
		return nil, nil, err
	}
	r.requests.Certificate(string(request))
	defer r.requests.Certificate("")
	answer, err := r.answers.WaitCertificate(ctx, r.self, func(c topology.Certificate) bool {
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

// Who is the user that the node writes as, and which CA says so; empty where it has no
// identity of its own.
func (o Own) Who() (user, issuer string) {
	if o.file == nil {
		return "", ""
	}
	_, _ = o.file.Restore() // the Renewer says what keeps it from being written
	b, held, err := o.file.Load()
	if err != nil || !held {
		return "", ""
	}
	return b.User(), hex.EncodeToString(b.Pair.Cert.AuthorityKeyId)
}

// LockedOut says that etcd does not know this node, which has address self, any more, where health says so.
func (o Own) LockedOut(health error, self netip.Addr) error {
	if o.file == nil || !errors.Is(health, store.ErrDenied) {
		return nil
	}
	if o.inCluster {
		return fmt.Errorf("%w. If its Node is there, another certificate is asked for", errLockedOut)
	}
	return fmt.Errorf("%w. Make a new bundle with `k8s-ovs-controller bundle node %s --node-ip %s`", errLockedOut, o.node, self)
}
