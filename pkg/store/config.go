package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
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
	case (len(c.Cert) == 0) != (len(c.Key) == 0):
		return errors.New("etcd: a client certificate and its key go together; only one of Cert and Key is given")
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
	return c.CAFile != "" || c.CertFile != "" || len(c.CA) > 0 || len(c.Cert) > 0 || c.ServerName != "" || c.InsecureSkipVerify
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

// handshakes are the credentials of a Config: its files are read anew at each
// handshake, since CAs and certificates are renewed while we run.
type handshakes struct {
	credentials.TransportCredentials
	cfg    Config
	health *health
}

func (h handshakes) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, err := h.cfg.tls()
	h.health.handshake(err)
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(t).ClientHandshake(ctx, authority, conn)
}

func (h handshakes) Clone() credentials.TransportCredentials { return h }

// attentive are credentials of connections that end soon after the other side is gone without a word, as a
// machine is that lost its power or its network.
type attentive struct {
	credentials.TransportCredentials
}

// silent is how long a TCP connection may be idle before the kernel asks whether the other side is there, and
// then between two questions. gRPC's own question comes after 10 s at the earliest, and what a [follower] asks
// costs etcd something.
const silent = time.Second

func (a attentive) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if c, ok := conn.(*net.TCPConn); ok {
		// With TCP_USER_TIMEOUT, which gRPC sets to keepAliveTimeout, that many answers may be missing (tcp(7)).
		if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: silent, Interval: silent, Count: int(keepAliveTimeout / silent)}); err != nil {
			return nil, nil, err
		}
	}
	return a.TransportCredentials.ClientHandshake(ctx, authority, conn)
}

func (a attentive) Clone() credentials.TransportCredentials { return a }

// tls builds the TLS configuration; nil where none is asked for.
func (c Config) tls() (*tls.Config, error) {
	if !c.encrypted() {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.InsecureSkipVerify}
	var err error
	if t.RootCAs, err = c.roots(); err != nil {
		return nil, err
	}
	if load := c.pair(); load != nil {
		pair, err := load()
		if err != nil {
			return nil, err
		}
		// Whatever CAs etcd says it knows: with a certificate of none of them it says
		// what is wrong, without one it does not.
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	if c.ServerName != "" && !c.InsecureSkipVerify {
		// gRPC puts the endpoint's name in the place of t.ServerName, so the
		// certificate is checked here, as crypto/tls would check it.
		t.InsecureSkipVerify = true
		t.VerifyConnection = func(state tls.ConnectionState) error { return verify(state, t.RootCAs, c.ServerName) }
	}
	return t, nil
}

// roots are the certificates that etcd's is checked against; nil: the machine's.
func (c Config) roots() (*x509.CertPool, error) {
	pem, from := c.CA, "the PEM given"
	if len(pem) == 0 {
		if c.CAFile == "" {
			return nil, nil
		}
		var err error
		if pem, err = os.ReadFile(c.CAFile); err != nil {
			return nil, fmt.Errorf("etcd CA certificates: %w", err)
		}
		from = c.CAFile
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("etcd CA certificates: %s has no PEM certificate in it", from)
	}
	return pool, nil
}

// pair loads the client's certificate; nil where there is none.
func (c Config) pair() func() (*tls.Certificate, error) {
	switch {
	case len(c.Cert) > 0:
		return func() (*tls.Certificate, error) {
			pair, err := tls.X509KeyPair(c.Cert, c.Key)
			if err != nil {
				return nil, fmt.Errorf("etcd client certificate and key: %w", err)
			}
			return &pair, nil
		}
	case c.CertFile != "":
		return func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("etcd client certificate %s with key %s: %w", c.CertFile, c.KeyFile, err)
			}
			return &pair, nil
		}
	}
	return nil
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
