// Package etcdaccess finds the way to etcd and keeps it good: where etcd is, and by which certificate the
// node opens it. In Kubernetes a ConfigMap and the controller's signature say so ([Access]), elsewhere the
// node's bundle ([Own]).
//
// It owns the bundle in the state directory. It never reads or writes records other than what a
// certificate is asked for and answered with.
package etcdaccess

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

const (
	// firstAsk and lastAsk bound the pause after a certificate was asked for in vain;
	// askTimeout bounds one attempt, after which the same request is waited for.
	firstAsk, lastAsk = time.Second, 5 * time.Minute
	askTimeout        = time.Minute
	// saveAgainAfter is how long a disk has to find room before it is tried again.
	saveAgainAfter = 5 * time.Second
	// longestName leaves room for the rest of the name of a CertificateSigningRequest.
	longestName = 200
)

// Source is the API server, as far as the way to etcd stands in it.
type Source interface {
	// WatchEtcdPlace tells what the ConfigMap says as soon as it is there and whole, and
	// then whenever it says something else.
	WatchEtcdPlace(ctx context.Context, ref string) <-chan kube.EtcdAccess
	// WatchNodeUID tells the UID of the Node, and whenever it is another one.
	WatchNodeUID(ctx context.Context, name string) <-chan string
	// RequestCertificate waits until a certificate is signed, or refused: kube.ErrDenied.
	RequestCertificate(ctx context.Context, prefix string, requestPEM []byte, signer string, lifetime time.Duration) ([]byte, error)
}

// Access is how the agent reaches etcd in Kubernetes: a ConfigMap says where it is, and
// the node's own certificate opens it. Both are kept on disk, for a start while the API
// server is away.
type Access struct {
	source Source
	// ref is the ConfigMap, NAMESPACE/NAME; places tells what it says.
	ref    string
	places <-chan kube.EtcdAccess
	// uids tells the UID of the Node called node.
	node string
	uids <-chan string
	file identity.File
	// shared is where the release before this one kept its copy of the access that all
	// nodes shared.
	shared string
	// patience is how long the certificate may take where there is such a copy.
	patience time.Duration
	renewer  *identity.Renewer
	log      *slog.Logger

	// want is the user that the node should be; empty before its UID is known.
	want string
	// unsaved is that what the ConfigMap says could not be written down, disk that and why it was told.
	unsaved bool
	disk    backoff.Trouble

	mu    sync.Mutex
	place *kube.EtcdAccess // nil before it is known
}

// Config says whose access it is.
type Config struct {
	// Ref is the ConfigMap, NAMESPACE/NAME, Node the name of this node.
	Ref, Node string
	// StateDir keeps the bundle.
	StateDir string
	// Patience is how long the certificate may take where there is the access that all nodes shared.
	Patience time.Duration
	Metrics  *identity.Metrics
	Logger   *slog.Logger
}

// New watches the ConfigMap and the Node until ctx ends.
func New(ctx context.Context, source Source, cfg Config) *Access {
	a := &Access{
		source: source, ref: cfg.Ref, places: source.WatchEtcdPlace(ctx, cfg.Ref), node: cfg.Node, uids: source.WatchNodeUID(ctx, cfg.Node),
		file: identity.NewFile(cfg.StateDir), shared: filepath.Join(cfg.StateDir, "etcd-access.json"), patience: cfg.Patience, log: cfg.Logger,
	}
	a.renewer = identity.NewRenewer(a.file, a, cfg.Metrics, cfg.Logger)
	return a
}

// Way is how etcd is reached.
type Way struct {
	Etcd options.Etcd
	// bundle is the node's own; not there in the first minutes after an upgrade from a
	// release whose nodes had none.
	bundle *pki.Bundle
}

// Own is that the node is itself to etcd.
func (w Way) Own() bool { return w.bundle != nil }

// user is who etcd takes the agent for, where it is itself.
func (w Way) user() string {
	if w.bundle == nil {
		return ""
	}
	return w.bundle.User()
}

// First is the way to start with. The node's bundle is used at once, whatever its dates say:
// it is renewed beside. Without one it is waited for; tell hears why.
func (a *Access) First(ctx context.Context, flags options.Etcd, tell func(error)) (Way, error) {
	if b, held := a.held(); held {
		return a.by(flags, b)
	}
	copied, has := a.loadShared()
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	if has {
		asking, cancel = context.WithTimeout(ctx, a.patience)
		defer cancel()
	}
	b, err := a.settle(asking, Way{}, tell)
	switch {
	case err == nil:
		return a.by(flags, b)
	case ctx.Err() != nil || !has:
		return Way{}, err
	}
	a.log.Warn("the node has no certificate of its own yet: going on with the access that all nodes shared before", "error", err)
	w := Way{Etcd: flags}
	return w, w.Etcd.Use(copied.Endpoints, copied.CA, copied.Cert, copied.Key, copied.Prefix)
}

// by is the way by the node's own bundle.
func (a *Access) by(flags options.Etcd, b pki.Bundle) (Way, error) {
	w := Way{Etcd: flags, bundle: &b}
	w.Etcd.UseBundle(b, a.file.Path())
	a.forgetShared()
	return w, w.Etcd.Complete()
}

// Follow keeps the bundle good. It returns an error when the agent has to start anew: etcd is
// elsewhere, or the node is another user.
func (a *Access) Follow(ctx context.Context, used Way) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	if used.bundle != nil {
		running.Go(func() { _ = a.renewer.Run(ctx) }) // the end of ctx
	}
	b, err := a.settle(ctx, used, func(error) {})
	if err != nil {
		return err
	}
	return fmt.Errorf("the node is %s now: a new start takes that over (pods keep their network)", b.User())
}

// settle returns when there is a bundle for the user that the node should be, and that is not the
// one which is used. It follows what the ConfigMap says meanwhile.
func (a *Access) settle(ctx context.Context, used Way, tell func(error)) (pki.Bundle, error) {
	pauses := backoff.Pauses{First: firstAsk, Last: lastAsk}
	var failed backoff.Trouble
	retry := time.After(0)
	why := errors.New("the API server does not answer yet")
	for {
		if err := a.missing(); err != nil {
			why = err
			tell(err)
		}
		select {
		case <-ctx.Done():
			return pki.Bundle{}, fmt.Errorf("the node has no certificate for etcd: %w (%w)", why, ctx.Err())
		case place, open := <-a.places:
			if !open {
				a.places = nil // with ctx
				continue
			}
			if err := a.moved(place, used); err != nil {
				return pki.Bundle{}, err
			}
		case uid, open := <-a.uids:
			if !open {
				a.uids = nil
				continue
			}
			a.want = pki.NodeUser(a.node, uid)
			pauses.Reset()
		case <-a.saveAgain():
			if err := a.moved(*a.now(), used); err != nil {
				return pki.Bundle{}, err
			}
			continue
		case <-retry:
		}
		retry = nil
		if a.missing() != nil || a.want == used.user() {
			continue
		}
		b, err := a.obtain(ctx)
		if err == nil {
			return b, nil
		}
		if why = err; ctx.Err() == nil && failed.News(err) {
			a.log.Warn("no certificate for etcd; asking again", "user", a.want, "error", err)
		}
		tell(err)
		retry = time.After(pauses.Next())
	}
}

// missing is what has to be known before a certificate is asked for.
func (a *Access) missing() error {
	switch {
	case a.now() == nil:
		return fmt.Errorf("waiting for ConfigMap %s, which says where etcd is: the controller makes it", a.ref)
	case a.want == "":
		return fmt.Errorf("waiting for Node %s to be registered", a.node)
	}
	return nil
}

// obtain asks for the certificate of the user that the node should be.
func (a *Access) obtain(ctx context.Context) (pki.Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	place := a.now()
	return a.file.Obtain(ctx, a, a.want, place.Endpoints, place.Prefix)
}

// Issue has a certificate signed by the controller; see [identity.Issuer].
func (a *Access) Issue(ctx context.Context, request []byte, _ string) (cert, ca []byte, err error) {
	if a.now() == nil {
		return nil, nil, a.missing()
	}
	prefix := "k8s-ovs-agent-" + a.node[:min(len(a.node), longestName)] + "-"
	cert, err = a.source.RequestCertificate(ctx, prefix, request, kube.AgentSigner, kube.AgentLifetime)
	if errors.Is(err, kube.ErrDenied) {
		err = fmt.Errorf("%w: %w", identity.ErrRefused, err)
	}
	return cert, a.now().CA, err
}

func (a *Access) now() *kube.EtcdAccess {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.place
}

// saveAgain receives when what the ConfigMap says is to be written down once more; never where it was.
func (a *Access) saveAgain() <-chan time.Time {
	if !a.unsaved {
		return nil
	}
	return time.After(saveAgainAfter)
}

// moved takes in what the ConfigMap says. The bundle on disk says the same from then on. The
// error is that etcd is not where used is. A disk that does not take it is none: an agent that starts anew would have
// the bundle from before, and end again.
func (a *Access) moved(place kube.EtcdAccess, used Way) error {
	a.mu.Lock()
	a.place = &place
	a.mu.Unlock()
	a.unsaved = false
	b, held := a.held()
	if used.bundle == nil || !held {
		return nil
	}
	elsewhere := !slices.Equal(b.Endpoints, place.Endpoints) || b.Prefix != place.Prefix
	if !elsewhere && string(b.CA) == string(place.CA) {
		return nil
	}
	b.Endpoints, b.Prefix, b.CA = place.Endpoints, place.Prefix, place.CA
	if err := a.file.Save(b); err != nil {
		a.unsaved = true
		if a.disk.News(err) {
			a.log.Warn("what the ConfigMap says of etcd cannot be written down: going on with what it said before, and trying again", "configMap", a.ref, "error", err)
		}
		return nil
	}
	a.disk.Over()
	if elsewhere {
		return fmt.Errorf("etcd is elsewhere, says ConfigMap %s: a new start takes that over (pods keep their network)", a.ref)
	}
	a.log.Info("took over the certificates of etcd's CA", "configMap", a.ref)
	// The first of them signs now.
	if first, _ := pem.Decode(place.CA); first != nil && !pki.Signs(pem.EncodeToMemory(first), b.Pair.Cert) {
		a.renewer.Renew()
	}
	return nil
}

// held is the bundle on disk, if it is this node's: a disk may be copied to another one.
func (a *Access) held() (pki.Bundle, bool) {
	if _, err := a.file.Restore(); err != nil {
		a.log.Warn("the node's certificate was gone from the state directory", "error", err)
	}
	b, held, err := a.file.Load()
	switch {
	case err != nil:
		a.log.Warn("starting without the node's certificate; another one is asked for", "error", err)
		return pki.Bundle{}, false
	case held && !strings.HasPrefix(b.User(), pki.NodeUser(a.node, "")):
		a.log.Warn("the certificate on disk is another node's; one of our own is asked for", "path", a.file.Path(), "user", b.User(), "node", a.node)
		return pki.Bundle{}, false
	}
	return b, held
}

// loadShared is the access that all nodes shared before, if it can be used.
func (a *Access) loadShared() (copied kube.EtcdAccess, held bool) {
	data, err := os.ReadFile(a.shared)
	if errors.Is(err, fs.ErrNotExist) {
		return kube.EtcdAccess{}, false
	}
	if err == nil {
		err = json.Unmarshal(data, &copied)
	}
	if err == nil {
		err = copied.CheckEncrypted() // an earlier version took others
	}
	if err != nil {
		a.log.Warn("the access that all nodes shared before is not readable; going on without", "path", a.shared, "error", err)
		return kube.EtcdAccess{}, false
	}
	return copied, len(copied.Endpoints) > 0
}

// forgetShared takes that access away, which has a private key in it: the node has its own.
func (a *Access) forgetShared() {
	if err := os.Remove(a.shared); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("the key that all nodes shared before is still on disk", "path", a.shared, "error", err)
	}
}
