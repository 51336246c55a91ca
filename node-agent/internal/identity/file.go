// Package identity keeps the certificate by which the agent proves to etcd who it is: a
// bundle on disk, and its renewal. docs/identities.md has the rules.
//
// Who signs is an [Issuer]'s to know.
package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// File is the node's bundle on disk.
type File struct{ path string }

// NewFile names the bundle in the agent's state directory.
func NewFile(stateDir string) File { return File{filepath.Join(stateDir, "identity.pem")} }

// Path is where it is. It serves as CA file, certificate file and key file at once.
func (f File) Path() string { return f.path }

// Load reads the bundle; held is false where there is none.
func (f File) Load() (b pki.Bundle, held bool, err error) {
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
	return b, true, nil
}

// Save replaces the bundle. Only root may read it: it holds a private key.
func (f File) Save(b pki.Bundle) error {
	data, err := b.Encode()
	if err == nil {
		err = atomicfile.Write(f.path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the node's identity to %s: %w", f.path, err)
	}
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
