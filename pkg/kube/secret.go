package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// The keys of the Secret with access to an external etcd. The ConfigMap that says where etcd is
// has those that are not secret.
const (
	EndpointsKey  = "endpoints"
	CAKey         = "ca.crt"
	CertKey       = corev1.TLSCertKey
	KeyKey        = corev1.TLSPrivateKeyKey
	PrefixKey     = "prefix"
	SignerCertKey = "client-ca.crt"
	SignerKeyKey  = "client-ca.key"
)

// EtcdAccess is what the Secret says of etcd.
type EtcdAccess struct {
	// Endpoints are https://host:port.
	Endpoints []string
	// CA has the certificates that etcd's is checked against, Cert and Key are
	// the client's own. PEM.
	CA, Cert, Key []byte
	// Prefix is where the records stand; empty for the default.
	Prefix string
	// SignerCert and SignerKey are the CA that signs the certificates of nodes; only a Secret
	// has them. PEM.
	SignerCert, SignerKey []byte
}

// Signer is the CA that signs the certificates of nodes; nil where there is none.
func (a EtcdAccess) Signer() *pki.Pair {
	p, err := pki.ParsePair(a.SignerCert, a.SignerKey)
	if err != nil {
		return nil
	}
	return p
}

// ErrNotEncrypted: an endpoint of etcd is not https://.
var ErrNotEncrypted = errors.New("not encrypted")

// CheckEncrypted says which endpoint is not reached by https://, if one is not: whoever
// sits between a node and etcd would read and write every tenant's records. The error is
// ErrNotEncrypted.
func (a EtcdAccess) CheckEncrypted() error {
	for _, e := range a.Endpoints {
		if !strings.HasPrefix(e, "https://") {
			return fmt.Errorf("its key %q has %s, which is %w: make etcd serve TLS, write https:// there, and put the certificates that etcd's is checked against into its key %q",
				EndpointsKey, e, ErrNotEncrypted, CAKey)
		}
	}
	return nil
}

// ParseEtcdAccess reads the data of the Secret. The error names the key that is
// missing or wrong; it is ErrNotEncrypted where an endpoint is not https://.
func ParseEtcdAccess(data map[string][]byte) (EtcdAccess, error) {
	a := EtcdAccess{
		CA: data[CAKey], Cert: data[CertKey], Key: data[KeyKey], Prefix: strings.TrimSpace(string(data[PrefixKey])),
		SignerCert: data[SignerCertKey], SignerKey: data[SignerKeyKey],
	}
	for _, e := range strings.Split(string(data[EndpointsKey]), ",") {
		if e = strings.TrimSpace(e); e != "" {
			a.Endpoints = append(a.Endpoints, e)
		}
	}
	if err := a.CheckEncrypted(); err != nil {
		return EtcdAccess{}, err
	}
	switch {
	case len(a.Endpoints) == 0:
		return EtcdAccess{}, fmt.Errorf("its key %q is missing or empty: it has the comma-separated URLs of etcd", EndpointsKey)
	case len(a.CA) == 0:
		return EtcdAccess{}, fmt.Errorf("its key %q is missing or empty: it has the certificates that etcd's is checked against", CAKey)
	case (len(a.Cert) == 0) != (len(a.Key) == 0):
		return EtcdAccess{}, fmt.Errorf("only one of its keys %q and %q is there: a client certificate needs both", CertKey, KeyKey)
	case !x509.NewCertPool().AppendCertsFromPEM(a.CA):
		return EtcdAccess{}, fmt.Errorf("its key %q has no PEM certificate in it", CAKey)
	}
	if len(a.Cert) > 0 {
		if _, err := tls.X509KeyPair(a.Cert, a.Key); err != nil {
			return EtcdAccess{}, fmt.Errorf("its keys %q and %q are no client certificate with its key: %w", CertKey, KeyKey, err)
		}
	}
	return a, a.checkSigner()
}

func (a EtcdAccess) checkSigner() error {
	if len(a.SignerCert) == 0 && len(a.SignerKey) == 0 {
		return nil
	}
	p, err := pki.ParsePair(a.SignerCert, a.SignerKey)
	switch {
	case err != nil:
		return fmt.Errorf("its keys %q and %q are no CA with its key: %w", SignerCertKey, SignerKeyKey, err)
	case !p.Cert.IsCA:
		return fmt.Errorf("its key %q is not the certificate of a CA", SignerCertKey)
	}
	return nil
}

// Data is the Secret's data that says a.
func (a EtcdAccess) Data() map[string][]byte {
	data := map[string][]byte{EndpointsKey: []byte(strings.Join(a.Endpoints, ",")), CAKey: a.CA, CertKey: a.Cert, KeyKey: a.Key}
	if a.Prefix != "" {
		data[PrefixKey] = []byte(a.Prefix)
	}
	if len(a.SignerCert) > 0 {
		data[SignerCertKey], data[SignerKeyKey] = a.SignerCert, a.SignerKey
	}
	return data
}

// Equal reports whether both say the same.
func (a EtcdAccess) Equal(b EtcdAccess) bool { return reflect.DeepEqual(a, b) }

// WatchEtcdAccess tells what the Secret ref (NAMESPACE/NAME) says, now and
// whenever it says something else that is whole. The channel is closed when ctx
// ends, or at once when ref is none: see [ParseRef].
func (c *Client) WatchEtcdAccess(ctx context.Context, ref string) <-chan EtcdAccess {
	p := newPicture()
	secrets := newTable(p, func(s *corev1.Secret) (string, map[string][]byte) { return s.Name, s.Data })
	w := accessWatch{
		client: c, ref: ref, absent: errors.New("there is no such Secret: whoever runs the external etcd makes it"),
		follow: func(ctx context.Context, namespace, name string) {
			follow(ctx, c, "secret", c.api.Core.Secrets(namespace), &corev1.Secret{}, named(name), secrets)
		},
		read: func(name string) (EtcdAccess, error) { return ParseEtcdAccess(secrets.items[name]) },
		has:  func(name string) bool { _, there := secrets.items[name]; return there },
	}
	return w.start(ctx, p)
}

// accessWatch tells what one object says of etcd. It remembers what was told and
// logged.
type accessWatch struct {
	client *Client
	ref    string
	absent error
	follow func(ctx context.Context, namespace, name string)
	// has and read are called with the picture's lock held.
	has  func(name string) bool
	read func(name string) (EtcdAccess, error)
	told EtcdAccess
	// trouble is why there is nothing to tell.
	trouble backoff.Trouble
}

func (w *accessWatch) start(ctx context.Context, p *picture) <-chan EtcdAccess {
	out := make(chan EtcdAccess)
	namespace, name, err := ParseRef(w.ref)
	if err != nil {
		close(out)
		return out
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.follow(ctx, namespace, name)
	}()
	go func() {
		defer close(out)
		defer func() { <-done }()
		var ready chan<- EtcdAccess
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
				p.mu.Lock()
				a, err := EtcdAccess{}, w.absent
				if w.has(name) {
					a, err = w.read(name)
				}
				p.mu.Unlock()
				if w.take(a, err) {
					ready = out
				}
			case ready <- w.told:
				ready = nil
			}
		}
	}()
	return out
}

// take takes in what the object says; true when there is something new to tell.
func (w *accessWatch) take(a EtcdAccess, err error) bool {
	if w.trouble.News(err) {
		w.client.log.Info("waiting for access to etcd", "object", w.ref, "reason", err)
	}
	if err != nil || a.Equal(w.told) {
		return false
	}
	w.told = a
	return true
}

// Secret reads the data of the Secret ref (NAMESPACE/NAME); ErrNotFound where
// there is none.
func (c *Client) Secret(ctx context.Context, ref string) (map[string][]byte, error) {
	namespace, name, err := ParseRef(ref)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.api.Core.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", ref, classify(err))
	}
	return s.Data, nil
}

// DeleteSecret takes the Secret ref (NAMESPACE/NAME) away; one that is not there is
// no error.
func (c *Client) DeleteSecret(ctx context.Context, ref string) error {
	namespace, name, err := ParseRef(ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = c.api.Core.Secrets(namespace).Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Secret %s: %w", ref, err)
	}
	return nil
}

// classify makes errors of the API server recognisable without client-go.
func classify(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	return err
}
