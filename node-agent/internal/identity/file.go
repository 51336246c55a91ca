// Package identity keeps the certificate by which the agent proves to etcd who it is: a
// bundle on disk, and its renewal. docs/identities.md has the rules.
//
// Who signs is an [Issuer]'s to know.
package identity

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/statefile"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// File is the node's bundle on disk, and beside it the key of the next one while its
// certificate is asked for. Copies of a File are of the same one.
type File struct {
	path, next string
	last       *last
}

// last is the bundle that was read or written last: who empties the state directory would take
// the node's way to etcd away for good.
type last struct {
	mu     sync.Mutex
	bundle *pki.Bundle
}

// NewFile names the bundle in the agent's state directory.
func NewFile(stateDir string) File {
	return File{filepath.Join(stateDir, "identity.pem"), filepath.Join(stateDir, "identity-next.key"), &last{}}
}

// Path is where it is. It serves as CA file, certificate file and key file at once.
func (f File) Path() string { return f.path }

// Load reads the bundle; held is false where there is none.
func (f File) Load() (b pki.Bundle, held bool, err error) {
	f.last.mu.Lock()
	defer f.last.mu.Unlock()
	return f.load()
}

func (f File) load() (b pki.Bundle, held bool, err error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return pki.Bundle{}, false, nil
	}
	if err == nil {
		b, err = pki.ParseBundle(data)
	}
	if err != nil {
		return pki.Bundle{}, false, fmt.Errorf("the node's identity in %s: %w", f.path, err)
	}
	f.last.bundle = &b
	return b, true, nil
}

// Restore writes the bundle that was read or written last where somebody deleted it since, and
// reports whether it had to.
func (f File) Restore() (bool, error) {
	f.last.mu.Lock()
	defer f.last.mu.Unlock()
	if f.last.bundle == nil || !statefile.Missing(f.path) {
		return false, nil
	}
	return true, f.save(*f.last.bundle)
}

// Save replaces the bundle. Only root may read it: it holds a private key.
func (f File) Save(b pki.Bundle) error {
	f.last.mu.Lock()
	defer f.last.mu.Unlock()
	return f.save(b)
}

func (f File) save(b pki.Bundle) error {
	data, err := b.Encode()
	if err == nil {
		err = statefile.Write(f.path, data)
	}
	if err != nil {
		return fmt.Errorf("write the node's identity to %s: %w", f.path, err)
	}
	f.last.bundle = &b
	return nil
}

// Import takes over a bundle that somebody gave the node, unless the one that it holds
// was made later: of the same identity, renewed since.
func (f File) Import(given pki.Bundle) (taken bool, err error) {
	own, held, err := f.Load()
	// One that cannot be read is no reason to refuse one that can.
	if err == nil && held && !given.Pair.Cert.NotBefore.After(own.Pair.Cert.NotBefore) {
		return false, nil
	}
	return true, f.Save(given)
}

// nextKey is the key that a certificate is asked for with: the same one until there is an
// answer, also by an agent that started anew, so that who signs has one request of each node.
func (f File) nextKey() (crypto.Signer, []byte, error) {
	data, err := os.ReadFile(f.next)
	if err == nil {
		if block, _ := pem.Decode(data); block != nil {
			key, perr := x509.ParsePKCS8PrivateKey(block.Bytes)
			if signer, ok := key.(crypto.Signer); ok && perr == nil {
				return signer, data, nil
			}
		}
	}
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		return nil, nil, err
	}
	if err := statefile.Write(f.next, keyPEM); err != nil {
		return nil, nil, fmt.Errorf("the key of the node's next identity: %w", err)
	}
	return key, keyPEM, nil
}

// dropNext has the next certificate asked for with another key.
func (f File) dropNext() error {
	if err := os.Remove(f.next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the key of the node's next identity: %w", err)
	}
	return nil
}
