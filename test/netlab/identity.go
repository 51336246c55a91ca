package netlab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// EtcdURL is where the lab's etcd listens, as its nodes reach it; InsecureEtcdURL where
// that of a lab without identities does.
const (
	EtcdURL         = "https://" + etcdAddress
	InsecureEtcdURL = "http://" + etcdAddress
	etcdAddress     = "198.18.0.250:2379"
)

// URL is where the lab's etcd listens.
func (o Options) url() string {
	if o.Insecure {
		return InsecureEtcdURL
	}
	return EtcdURL
}

// dataDir is that of the embedded etcd.
func (l *Lab) dataDir() string { return filepath.Join(l.dir, "ctl", "etcd") }

func (l *Lab) nodeBundle(node string) string { return filepath.Join(l.nodeDir(node), "bundle.pem") }
func (l *Lab) operatorBundle() string        { return filepath.Join(l.dir, "ctl", "operator.pem") }
func (l *Lab) controllerBundle() string      { return filepath.Join(l.dir, "ctl", "controller.pem") }

// Admin runs a command of the controller's for people, such as "bundle operator me", on
// the controller's machine, and returns what it prints.
func (l *Lab) Admin(ctx context.Context, args ...string) (string, error) {
	s, err := l.read()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.Options.BinDir, "k8s-ovs-controller"), append(args, "--data-dir", l.dataDir())...)
	cmd.Env = append(Environ(), l.Mark())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("k8s-ovs-controller %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// GiveBundle gives a node a new bundle; one that it had is good for nothing any more. The
// agent takes it over when it starts.
func (l *Lab) GiveBundle(ctx context.Context, node string, args ...string) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	n, err := s.node(node)
	if err != nil {
		return err
	}
	if s.Options.Members > 0 {
		return l.giveMemberBundle(ctx, *n)
	}
	_, err = l.Admin(ctx, append([]string{"bundle", "node", node, "--node-ip", n.VTEP.String(), "--out", l.nodeBundle(node)}, args...)...)
	return err
}

// LoseBundle takes the file away that a node was given its bundle in, which it does not need any
// more once it has started.
func (l *Lab) LoseBundle(node string) error { return os.Remove(l.nodeBundle(node)) }

// ensureBundle gives a node its first bundle.
func (l *Lab) ensureBundle(ctx context.Context, node string, o Options) error {
	if _, err := os.Stat(l.nodeBundle(node)); o.Insecure || err == nil {
		return nil
	}
	return l.GiveBundle(ctx, node)
}

// ensureOperator makes the operator's bundle, for the namespace that the lab was started
// from; a bare lab has no way to etcd from there.
func (l *Lab) ensureOperator(ctx context.Context, s state) error {
	if _, err := os.Stat(l.operatorBundle()); s.Options.Insecure || len(s.Etcd.Endpoints) == 0 || err == nil {
		return nil
	}
	if s.Options.Members > 0 {
		return l.makeOperator(ctx, s.Etcd.Endpoints)
	}
	_, err := l.Admin(ctx, "bundle", "operator", "netlab", "--endpoints", strings.Join(s.Etcd.Endpoints, ","), "--out", l.operatorBundle(), "--ca-out", l.operatorBundle()+".ca")
	return err
}

// NodeIdentity is the bundle with which a node reaches etcd now, for the namespace that
// the lab was started from.
func (l *Lab) NodeIdentity(node string) (pki.Bundle, error) {
	s, err := l.read()
	if err != nil {
		return pki.Bundle{}, err
	}
	if _, err := s.node(node); err != nil {
		return pki.Bundle{}, err
	}
	data, err := os.ReadFile(filepath.Join(l.stateDir(node), "identity.pem"))
	if err != nil {
		return pki.Bundle{}, fmt.Errorf("node %s: %w", node, err)
	}
	b, err := pki.ParseBundle(data)
	b.Endpoints = s.Etcd.Endpoints
	return b, err
}

// GivenBundle is the bundle that a node was given last.
func (l *Lab) GivenBundle(node string) (pki.Bundle, error) {
	s, err := l.read()
	if err != nil {
		return pki.Bundle{}, err
	}
	data, err := os.ReadFile(l.nodeBundle(node))
	if err != nil {
		return pki.Bundle{}, err
	}
	b, err := pki.ParseBundle(data)
	b.Endpoints = s.Etcd.Endpoints
	return b, err
}

// NodeEnv is [Lab.Env] as a node, and not as an operator.
func (l *Lab) NodeEnv(node string) ([]string, error) {
	b, err := l.NodeIdentity(node)
	if err != nil {
		return nil, err
	}
	data, err := b.Encode()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(l.nodeDir(node), "env.pem")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(path+".ca", b.CA, 0o600); err != nil {
		return nil, err
	}
	return bundleEnv(path, b.Endpoints), nil
}

// Env is the environment that makes netns and etcdctl use the lab's etcd, as an operator.
func (l *Lab) Env(e EtcdStatus) []string {
	path := l.operatorBundle()
	if _, err := os.Stat(path); err == nil {
		return bundleEnv(path, e.Endpoints)
	}
	return []string{
		"K8S_OVS_ETCD_ENDPOINTS=" + strings.Join(e.Endpoints, ","), "K8S_OVS_ETCD_PREFIX=" + e.Prefix,
		"ETCDCTL_API=3", "ETCDCTL_ENDPOINTS=" + strings.Join(e.Endpoints, ","),
	}
}

func bundleEnv(path string, endpoints []string) []string {
	return []string{
		"K8S_OVS_ETCD_BUNDLE=" + path, "ETCDCTL_API=3", "ETCDCTL_ENDPOINTS=" + strings.Join(endpoints, ","),
		"ETCDCTL_CACERT=" + path + ".ca", "ETCDCTL_CERT=" + path, "ETCDCTL_KEY=" + path,
	}
}

// access are the flags with which a controller or an agent reaches etcd; bundle is its.
func (o Options) access(bundle string) []string {
	if o.Insecure {
		return []string{"--etcd-endpoints", InsecureEtcdURL}
	}
	return []string{"--etcd-bundle", bundle}
}

// ControllerBundle makes, once, what a controller beside the first one needs.
func (l *Lab) ControllerBundle(ctx context.Context) (pki.Bundle, error) {
	if _, err := os.Stat(l.controllerBundle()); errors.Is(err, os.ErrNotExist) {
		if _, err := l.Admin(ctx, "bundle", "controller", "--out", l.controllerBundle()); err != nil {
			return pki.Bundle{}, err
		}
	}
	data, err := os.ReadFile(l.controllerBundle())
	if err != nil {
		return pki.Bundle{}, err
	}
	return pki.ParseBundle(data)
}

// TLS is how the holder of a bundle talks to etcd.
func TLS(b pki.Bundle) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b.CA)
	own := tls.Certificate{Certificate: [][]byte{b.Pair.Cert.Raw}, PrivateKey: b.Pair.Key}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}
}

// UseIdentities makes a lab without identities one with them, for controller and agents
// that are started from now on.
func (l *Lab) UseIdentities() error {
	return l.update(func(s *state) error {
		s.Options.Insecure = false
		for i, e := range s.Etcd.Endpoints {
			s.Etcd.Endpoints[i] = strings.Replace(e, "http://", "https://", 1)
		}
		return nil
	})
}
