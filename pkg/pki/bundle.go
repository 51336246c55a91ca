package pki

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// typeAccess is the PEM block of a bundle that says where etcd is; its body is JSON.
// Programs that look for certificates and keys pass it over.
const typeAccess = "K8S-OVS ETCD ACCESS"

// Bundle is all that a client needs to reach etcd.
type Bundle struct {
	// Endpoints are those of etcd: https://host:port.
	Endpoints []string
	// Prefix is where the records stand; empty for the default.
	Prefix string
	// CA has the certificates that etcd's is checked against, PEM.
	CA []byte
	// Pair is the client's own.
	Pair *Pair
}

// access is the JSON of the access block.
type access struct {
	Endpoints []string `json:"endpoints"`
	Prefix    string   `json:"prefix,omitempty"`
}

// User is who the bundle's holder is.
func (b Bundle) User() string { return b.Pair.Cert.Subject.CommonName }

// RenewAt is when half of the time is over for which the certificate was asked.
func (b Bundle) RenewAt() time.Time {
	c := b.Pair.Cert
	begin := c.NotBefore.Add(backdate)
	return begin.Add(c.NotAfter.Sub(begin) / 2)
}

// Encode writes the bundle: where etcd is, the client's certificate, the CA's, the key.
// In this order the file serves as certificate file, key file and CA file.
func (b Bundle) Encode() ([]byte, error) {
	data, err := json.Marshal(access{b.Endpoints, b.Prefix})
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{
		fmt.Appendf(nil, "# k8s-ovs: access to etcd for %s, until %s. Secret: it has a private key.\n", b.User(), b.Pair.Cert.NotAfter.UTC().Format(time.RFC3339)),
		pem.EncodeToMemory(&pem.Block{Type: typeAccess, Bytes: data}), b.Pair.CertPEM, b.CA, b.Pair.KeyPEM,
	}, nil), nil
}

// ParseBundle reads what Encode wrote. The error says what is missing or wrong.
func ParseBundle(data []byte) (Bundle, error) {
	var b Bundle
	var own, key []byte
	said := false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case typeAccess:
			var a access
			if err := json.Unmarshal(block.Bytes, &a); err != nil {
				return Bundle{}, fmt.Errorf("its block %q is not readable: %w", typeAccess, err)
			}
			b.Endpoints, b.Prefix, said = a.Endpoints, a.Prefix, true
		case typeCertificate:
			if own == nil {
				own = pem.EncodeToMemory(block)
			} else {
				b.CA = append(b.CA, pem.EncodeToMemory(block)...)
			}
		case typeKey:
			key = pem.EncodeToMemory(block)
		}
	}
	switch {
	case !said || len(b.Endpoints) == 0:
		return Bundle{}, fmt.Errorf("it does not say where etcd is: a bundle has a block %q", typeAccess)
	case own == nil || key == nil:
		return Bundle{}, errors.New("it has no client certificate with its key")
	case b.CA == nil:
		return Bundle{}, errors.New("it has no certificate of a CA after the client's own")
	}
	var err error
	if b.Pair, err = ParsePair(own, key); err != nil {
		return Bundle{}, fmt.Errorf("its client certificate: %w", err)
	}
	return b, nil
}
