package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// validate names the field that is wrong.
func (c Config) validate() error {
	if len(c.Endpoints) == 0 {
		return errors.New("etcd: no endpoints are given: name at least one, such as http://127.0.0.1:2379")
	}
	for _, e := range c.Endpoints {
		if err := c.validateEndpoint(e); err != nil {
			return fmt.Errorf("etcd endpoint %q: %w", e, err)
		}
	}
	if p := strings.TrimRight(c.Prefix, "/"); !strings.HasPrefix(p, "/") {
		return fmt.Errorf("etcd prefix %q: it must begin with a slash and name at least one part, as %s does", c.Prefix, DefaultPrefix)
	}
	switch {
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("etcd: a client certificate and its key go together; only one of CertFile and KeyFile is given")
	case c.Username == "" && c.Password != "":
		return errors.New("etcd: a password is given without a user name")
	case c.Username != "" && c.Password == "":
		return fmt.Errorf("etcd: user %s is given without a password", c.Username)
	case c.DialTimeout < 0:
		return fmt.Errorf("etcd: DialTimeout %s is negative", c.DialTimeout)
	}
	return nil
}

// encrypted reports whether any field asks for TLS.
func (c Config) encrypted() bool {
	return c.CAFile != "" || c.CertFile != "" || c.ServerName != "" || c.InsecureSkipVerify
}

func (c Config) validateEndpoint(e string) error {
	scheme, rest, ok := strings.Cut(e, "://")
	if !ok {
		scheme, rest = "", e
	}
	switch scheme {
	case "unix", "unixs":
		if !strings.HasPrefix(rest, "/") {
			return errors.New("a unix socket is written with its whole path: unix:///run/etcd.sock")
		}
		return nil
	case "http":
		// The library would drop the encryption without a word.
		if c.encrypted() {
			return errors.New("http:// is not encrypted, but TLS is asked for: write https://")
		}
	case "https", "":
	default:
		return fmt.Errorf("%s:// is none of http://, https://, unix://", scheme)
	}
	u, err := url.Parse("https://" + rest)
	if err != nil {
		return errors.New("it is not host:port or a URL")
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || host == "" || port == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return errors.New("it needs a host and a port and nothing else, such as 192.0.2.1:2379")
	}
	return nil
}

// tls builds the TLS configuration; nil where none is asked for.
func (c Config) tls() (*tls.Config, error) {
	if !c.encrypted() {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.InsecureSkipVerify}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd CA certificates: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd CA certificates: %s has no PEM certificate in it", c.CAFile)
		}
	}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("etcd client certificate %s with key %s: %w", c.CertFile, c.KeyFile, err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		// Read again at each handshake: certificates are renewed while we run.
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	if c.ServerName != "" && !c.InsecureSkipVerify {
		// gRPC puts the endpoint's name in the place of t.ServerName, so the
		// certificate is checked here, as crypto/tls would check it.
		t.InsecureSkipVerify = true
		t.VerifyConnection = func(state tls.ConnectionState) error { return verify(state, t.RootCAs, c.ServerName) }
	}
	return t, nil
}

// verify checks the server's certificate against roots (nil: the machine's) and name.
func verify(state tls.ConnectionState, roots *x509.CertPool, name string) error {
	opts := x509.VerifyOptions{Roots: roots, DNSName: name, Intermediates: x509.NewCertPool()}
	for _, cert := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	_, err := state.PeerCertificates[0].Verify(opts)
	return err
}
