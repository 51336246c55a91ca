package kube

import "github.com/k8s-ovs/k8s-ovs/pkg/kube/access"

// What is said of etcd is in a package of its own: a program that only reads one Secret need not
// make the kinds of objects known, as this package does, each time that it starts.

// EtcdAccess is what the Secret says of etcd.
type EtcdAccess = access.Etcd

// The keys of the Secret, and of the ConfigMap that says where etcd is.
const (
	EndpointsKey  = access.EndpointsKey
	CAKey         = access.CAKey
	CertKey       = access.CertKey
	KeyKey        = access.KeyKey
	PrefixKey     = access.PrefixKey
	SignerCertKey = access.SignerCertKey
	SignerKeyKey  = access.SignerKeyKey
)

var (
	// ErrNotFound: there is no such object.
	ErrNotFound = access.ErrNotFound
	// ErrNotEncrypted: an endpoint of etcd is not https://.
	ErrNotEncrypted = access.ErrNotEncrypted
)

// ParseEtcdAccess is [access.Parse].
func ParseEtcdAccess(data map[string][]byte) (EtcdAccess, error) { return access.Parse(data) }

// ParseRef is [access.ParseRef].
func ParseRef(ref string) (namespace, name string, err error) { return access.ParseRef(ref) }
