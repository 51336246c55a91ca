// Package access is how a program of the network reaches the Kubernetes API server, and what a
// Secret there says of etcd. It knows no kinds of objects: client-go takes some ten milliseconds to
// make those known, each time that a program starts.
package access

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// The keys of the Secret with access to an external etcd. The ConfigMap that says where etcd is
// has those that are not secret.
const (
	EndpointsKey  = "endpoints"
	CAKey         = "ca.crt"
	CertKey       = "tls.crt"
	KeyKey        = "tls.key"
	PrefixKey     = "prefix"
	SignerCertKey = "client-ca.crt"
	SignerKeyKey  = "client-ca.key"
)

// Etcd is what the Secret says of etcd.
type Etcd struct {
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
func (a Etcd) Signer() *pki.Pair {
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
func (a Etcd) CheckEncrypted() error {
	for _, e := range a.Endpoints {
		if !strings.HasPrefix(e, "https://") {
			return fmt.Errorf("its key %q has %s, which is %w: make etcd serve TLS, write https:// there, and put the certificates that etcd's is checked against into its key %q",
				EndpointsKey, e, ErrNotEncrypted, CAKey)
		}
	}
	return nil
}

// Parse reads the data of the Secret. The error names the key that is
// missing or wrong; it is ErrNotEncrypted where an endpoint is not https://.
func Parse(data map[string][]byte) (Etcd, error) {
	a := Etcd{
		CA: data[CAKey], Cert: data[CertKey], Key: data[KeyKey], Prefix: strings.TrimSpace(string(data[PrefixKey])),
		SignerCert: data[SignerCertKey], SignerKey: data[SignerKeyKey],
	}
	for _, e := range strings.Split(string(data[EndpointsKey]), ",") {
		if e = strings.TrimSpace(e); e != "" {
			a.Endpoints = append(a.Endpoints, e)
		}
	}
	if err := a.CheckEncrypted(); err != nil {
		return Etcd{}, err
	}
	switch {
	case len(a.Endpoints) == 0:
		return Etcd{}, fmt.Errorf("its key %q is missing or empty: it has the comma-separated URLs of etcd", EndpointsKey)
	case len(a.CA) == 0:
		return Etcd{}, fmt.Errorf("its key %q is missing or empty: it has the certificates that etcd's is checked against", CAKey)
	case (len(a.Cert) == 0) != (len(a.Key) == 0):
		return Etcd{}, fmt.Errorf("only one of its keys %q and %q is there: a client certificate needs both", CertKey, KeyKey)
	case !x509.NewCertPool().AppendCertsFromPEM(a.CA):
		return Etcd{}, fmt.Errorf("its key %q has no PEM certificate in it", CAKey)
	}
	if len(a.Cert) > 0 {
		if _, err := tls.X509KeyPair(a.Cert, a.Key); err != nil {
			return Etcd{}, fmt.Errorf("its keys %q and %q are no client certificate with its key: %w", CertKey, KeyKey, err)
		}
	}
	return a, a.checkSigner()
}

func (a Etcd) checkSigner() error {
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
func (a Etcd) Data() map[string][]byte {
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
func (a Etcd) Equal(b Etcd) bool { return reflect.DeepEqual(a, b) }

// Place is the ConfigMap's data that says where a's etcd is. Nothing in it is secret.
func (a Etcd) Place() map[string]string {
	data := map[string]string{EndpointsKey: strings.Join(a.Endpoints, ","), CAKey: string(a.CA)}
	if a.Prefix != "" {
		data[PrefixKey] = a.Prefix
	}
	return data
}

// ParseRef splits NAMESPACE/NAME.
func ParseRef(ref string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(ref, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("%q is not NAMESPACE/NAME, such as kube-system/k8s-ovs-etcd", ref)
	}
	return namespace, name, nil
}
