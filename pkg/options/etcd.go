package options

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

const (
	// DefaultDataDir is where a controller without other word keeps its etcd's records.
	DefaultDataDir = "/var/lib/k8s-ovs/etcd"
	// EtcdSocket is the unix socket of that etcd, in its data directory: whoever may open
	// it is etcd's root.
	EtcdSocket = "client.sock"
)

// Etcd says how to reach etcd. Fill in defaults, [Etcd.Register] the flags,
// resolve them, let [Etcd.Complete] check all of it, and open the store with
// [Etcd.Config].
type Etcd struct {
	// BundleFile says all but DialTimeout: where etcd is, and who the client is. See
	// [pki.Bundle].
	BundleFile string
	// Endpoints are host:port, http(s)://host:port or unix:///path.
	Endpoints []string
	// Prefix is where all records stand, with a leading slash and none at its end.
	Prefix string
	// CAFile has the certificates that etcd's is checked against; empty for
	// those of the machine. CertFile and KeyFile are the client's own. All PEM.
	CAFile, CertFile, KeyFile string
	// CA, Cert and Key are PEM in place of the files: see [Etcd.Use].
	CA, Cert, Key []byte
	// ServerName is the name that etcd's certificate must have, where it is not
	// the one in the endpoint.
	ServerName string
	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool
	// Username and Password are for etcd's own user database.
	Username string
	Password Secret
	// PasswordFile holds the password, which keeps it out of the process list.
	PasswordFile string
	// DialTimeout bounds one attempt to connect, and one call.
	DialTimeout time.Duration
}

// Register adds the flags. What stands in e is their default; where nothing
// does, [store.DefaultPrefix] and [store.DefaultDialTimeout] are.
func (e *Etcd) Register(fs *pflag.FlagSet) {
	if e.Prefix == "" {
		e.Prefix = store.DefaultPrefix
	}
	if e.DialTimeout == 0 {
		e.DialTimeout = store.DefaultDialTimeout
	}
	fs.StringVar(&e.BundleFile, "etcd-bundle", e.BundleFile, "`file` that says all about etcd: where it is, its CA, and the client's certificate with its key; k8s-ovs-controller bundle makes one")
	fs.StringSliceVar(&e.Endpoints, "etcd-endpoints", e.Endpoints, "comma-separated `endpoints` of etcd: host:port, https://host:port, unix:///path")
	fs.StringVar(&e.Prefix, "etcd-prefix", e.Prefix, "`key` below which all records stand")
	fs.StringVar(&e.CAFile, "etcd-cacert", e.CAFile, "PEM `file` with the certificates that etcd's is checked against")
	fs.StringVar(&e.CertFile, "etcd-cert", e.CertFile, "PEM `file` with the client certificate for etcd")
	fs.StringVar(&e.KeyFile, "etcd-key", e.KeyFile, "PEM `file` with the key of the client certificate")
	fs.StringVar(&e.ServerName, "etcd-server-name", e.ServerName, "`name` that etcd's certificate must have, if not the endpoint's")
	fs.BoolVar(&e.InsecureSkipVerify, "etcd-insecure-skip-verify", e.InsecureSkipVerify, "accept any certificate from etcd (for tests only)")
	fs.StringVar(&e.Username, "etcd-username", e.Username, "etcd `user`")
	fs.Var(&e.Password, "etcd-password", "password of the etcd user; seen in the process list: --etcd-password-file or the environment hide it")
	fs.StringVar(&e.PasswordFile, "etcd-password-file", e.PasswordFile, "`file` with the password of the etcd user")
	fs.DurationVar(&e.DialTimeout, "etcd-dial-timeout", e.DialTimeout, "how long one attempt to connect to etcd, or one call, may take")
}

// Config is what [store.Open] takes. Call it after [Etcd.Complete]. log may be
// nil, for slog.Default().
func (e *Etcd) Config(log *slog.Logger) store.Config {
	return store.Config{
		Endpoints:          e.Endpoints,
		Prefix:             e.Prefix,
		CAFile:             e.CAFile,
		CertFile:           e.CertFile,
		KeyFile:            e.KeyFile,
		CA:                 e.CA,
		Cert:               e.Cert,
		Key:                e.Key,
		ServerName:         e.ServerName,
		InsecureSkipVerify: e.InsecureSkipVerify,
		Username:           e.Username,
		Password:           string(e.Password),
		DialTimeout:        e.DialTimeout,
		Logger:             log,
	}
}

// TLS reports whether any flag asks for encryption.
func (e *Etcd) TLS() bool {
	return e.CAFile != "" || e.CertFile != "" || e.KeyFile != "" || len(e.CA) > 0 || len(e.Cert) > 0 || e.ServerName != "" || e.InsecureSkipVerify
}

// Use takes what a Secret says of etcd, in place of what flags said: ca, cert and
// key are PEM, an empty prefix leaves the flag's. It completes and checks, as
// [Etcd.Complete] does.
func (e *Etcd) Use(endpoints []string, ca, cert, key []byte, prefix string) error {
	e.CAFile, e.CertFile, e.KeyFile = "", "", ""
	e.Endpoints, e.CA, e.Cert, e.Key = endpoints, ca, cert, key
	if prefix != "" {
		e.Prefix = prefix
	}
	return e.Complete()
}

// Complete checks what was given, reads the password file and writes the
// endpoints in full: a bare host:port becomes https:// where a TLS flag is
// given, http:// otherwise. No endpoints at all are accepted: whether that
// makes sense is the program's to say. Errors name the flag.
func (e *Etcd) Complete() error {
	if err := e.completeBundle(); err != nil {
		return err
	}
	if err := e.checkFiles(); err != nil {
		return err
	}
	if err := e.completeUser(); err != nil {
		return err
	}
	if trimmed := strings.TrimRight(e.Prefix, "/"); trimmed == "" || trimmed[0] != '/' {
		return fmt.Errorf("--etcd-prefix %q: it must begin with a slash and name at least one part, as %s does", e.Prefix, store.DefaultPrefix)
	} else {
		e.Prefix = trimmed
	}
	if e.DialTimeout <= 0 {
		return fmt.Errorf("--etcd-dial-timeout %s: it must be above zero, such as %s", e.DialTimeout, store.DefaultDialTimeout)
	}
	full := make([]string, 0, len(e.Endpoints))
	for _, endpoint := range e.Endpoints {
		f, err := e.completeEndpoint(strings.TrimSpace(endpoint))
		if err != nil {
			return fmt.Errorf("--etcd-endpoints: %q: %w", endpoint, err)
		}
		full = append(full, f)
	}
	e.Endpoints = full
	return nil
}

// completeBundle takes over what the bundle says. Its file stays the source of the
// certificates: it may be renewed.
func (e *Etcd) completeBundle() error {
	if e.BundleFile == "" {
		return nil
	}
	for _, other := range []struct {
		flag  string
		given bool
	}{
		{"etcd-endpoints", len(e.Endpoints) > 0}, {"etcd-cacert", e.CAFile != ""}, {"etcd-cert", e.CertFile != ""}, {"etcd-key", e.KeyFile != ""},
		{"etcd-username", e.Username != ""}, {"etcd-insecure-skip-verify", e.InsecureSkipVerify},
	} {
		if other.given {
			return fmt.Errorf("--%s and --etcd-bundle are both given: the bundle says that too, drop one", other.flag)
		}
	}
	b, err := ReadBundle(e.BundleFile)
	if err != nil {
		return fmt.Errorf("--etcd-bundle: %w", err)
	}
	prefix := b.Prefix
	if prefix == "" {
		prefix = store.DefaultPrefix
	}
	if e.Prefix != store.DefaultPrefix && e.Prefix != prefix {
		return fmt.Errorf("--etcd-prefix is %s, but the bundle %s is for %s: drop the flag", e.Prefix, e.BundleFile, prefix)
	}
	e.UseBundle(b, e.BundleFile)
	return nil
}

// ReadBundle reads a bundle file.
func ReadBundle(path string) (pki.Bundle, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return pki.Bundle{}, err
	}
	b, err := pki.ParseBundle(data)
	if err != nil {
		return pki.Bundle{}, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// UseBundle makes b, which is in the file at path, what etcd is reached with.
func (e *Etcd) UseBundle(b pki.Bundle, path string) {
	e.BundleFile, e.Endpoints, e.Prefix = "", b.Endpoints, store.DefaultPrefix
	if b.Prefix != "" {
		e.Prefix = b.Prefix
	}
	e.CAFile, e.CertFile, e.KeyFile = path, path, path
	e.CA, e.Cert, e.Key = nil, nil, nil
}

func (e *Etcd) checkFiles() error {
	switch {
	case e.CertFile != "" && e.KeyFile == "":
		return errors.New("--etcd-cert is given without --etcd-key: a client certificate needs both")
	case e.KeyFile != "" && e.CertFile == "":
		return errors.New("--etcd-key is given without --etcd-cert: a client certificate needs both")
	}
	for flag, path := range map[string]string{"etcd-cacert": e.CAFile, "etcd-cert": e.CertFile, "etcd-key": e.KeyFile} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
	}
	return nil
}

func (e *Etcd) completeUser() error {
	if e.PasswordFile != "" {
		if e.Password != "" {
			return errors.New("--etcd-password and --etcd-password-file are both given: drop one")
		}
		data, err := os.ReadFile(e.PasswordFile)
		if err != nil {
			return fmt.Errorf("--etcd-password-file: %w", err)
		}
		// Editors end the file with a newline that is no part of the password.
		e.Password = Secret(strings.TrimRight(string(data), "\r\n"))
		if e.Password == "" {
			return fmt.Errorf("--etcd-password-file %s is empty", e.PasswordFile)
		}
		e.PasswordFile = ""
	}
	switch {
	case e.Username == "" && e.Password != "":
		return errors.New("a password for etcd is given without --etcd-username")
	case e.Username != "" && e.Password == "":
		return errors.New("--etcd-username is given without --etcd-password-file or --etcd-password")
	}
	return nil
}

// completeEndpoint writes one endpoint in full.
func (e *Etcd) completeEndpoint(endpoint string) (string, error) {
	if endpoint == "" {
		return "", errors.New("it is empty")
	}
	scheme, rest, ok := strings.Cut(endpoint, "://")
	if !ok {
		scheme, rest = "http", endpoint
		if e.TLS() {
			scheme = "https"
		}
	}
	switch scheme {
	case "unix", "unixs":
		if !strings.HasPrefix(rest, "/") {
			return "", errors.New("a unix socket is written with its whole path: unix:///run/etcd.sock")
		}
		return scheme + "://" + rest, nil
	case "http", "https":
	default:
		return "", fmt.Errorf("%s:// is none of http://, https://, unix://", scheme)
	}
	if scheme == "http" && e.TLS() {
		return "", errors.New("http:// is not encrypted, but flags for TLS are given: write https:// or drop them")
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		return "", errors.New("it is not host:port or a URL")
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || host == "" || port == "" {
		return "", errors.New("it needs a host and a port, such as 192.0.2.1:2379")
	}
	if u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("it may have a host and a port only")
	}
	return scheme + "://" + u.Host, nil
}

// LogValue is what logs show: no password.
func (e *Etcd) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Any("endpoints", e.Endpoints),
		slog.String("prefix", e.Prefix),
		slog.Bool("tls", e.TLS()),
		slog.String("username", e.Username),
	)
}

// Secret is a text that is never printed: not by fmt, in logs, in JSON, in help.
type Secret string

// hidden stands for a secret that is not empty.
const hidden = "(hidden)"

// String shows only whether there is one.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString is for %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalText is for JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Set makes a Secret a flag.
func (s *Secret) Set(value string) error { *s = Secret(value); return nil }

// Type is what help calls the value.
func (*Secret) Type() string { return "string" }
