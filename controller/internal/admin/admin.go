// Package admin is the controller's commands for people: bundles, the rotation of the CA,
// and the users of an etcd that is not embedded. They run on the controller's machine
// while it runs, through the socket and the CA in its data directory.
package admin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

const (
	// operatorLifetime is that of a person's certificate, and of a controller's.
	operatorLifetime = 365 * 24 * time.Hour
	// userTimeout bounds the wait for the leader to make a node's user.
	userTimeout = 30 * time.Second
	// userLook is the pause between two looks for it.
	userLook = 20 * time.Millisecond
)

// Commands are the names of all, with what each takes and does.
const Commands = `Commands:
  bundle node NAME --node-ip ADDRESS   a node's access to etcd: its record, its user, its certificate; a second call revokes the first bundle
  bundle operator NAME                 a person's access, for netns and etcdctl; with --revoke it ends
  bundle controller                    a controller's that runs beside this one
  rotate-ca [--finish]                 make a new CA; drop the former one when all live nodes have certificates of the new one
  etcd-users --print|--apply           users and roles in an etcd that is not embedded
`

// IO is what a command writes to.
type IO struct{ Out, Err io.Writer }

// usage is an error in how a command was called.
type usage struct{ error }

// IsUsage reports whether err is one in how a command was called.
func IsUsage(err error) bool { return errors.As(err, new(usage)) }

// command is one run.
type command struct {
	io       IO
	fs       *pflag.FlagSet
	dataDir  string
	etcd     options.Etcd
	nodeIP   string
	lifetime time.Duration
	urls     []string
	out      string
	caOut    string
	revoke   bool
	finish   bool
	print    bool
	apply    bool
}

// Known reports whether name is a command.
func Known(name string) bool { return name == "bundle" || name == "rotate-ca" || name == "etcd-users" }

// Run runs the command that args begin with. others are the controller's own flags, which
// may stand in the same configuration file.
func Run(ctx context.Context, args []string, io IO, others *pflag.FlagSet) error {
	c := &command{io: io, fs: pflag.NewFlagSet("k8s-ovs-controller "+args[0], pflag.ContinueOnError)}
	c.fs.SetOutput(io.Err)
	run := map[string]func(context.Context, []string) error{"bundle": c.bundle, "rotate-ca": c.rotate, "etcd-users": c.users}[args[0]]
	options.AddConfig(c.fs)
	c.fs.StringVar(&c.dataDir, "data-dir", options.DefaultDataDir, "`folder` of the embedded etcd")
	c.etcd.Register(c.fs)
	switch args[0] {
	case "bundle":
		c.fs.StringVar(&c.nodeIP, "node-ip", "", "`address` of the node's tunnels")
		c.fs.DurationVar(&c.lifetime, "lifetime", 0, "how long the certificate is good for (default: a node's 720h, an operator's 8760h)")
		c.fs.StringSliceVar(&c.urls, "endpoints", nil, "comma-separated `URLs` at which the bundle's holder reaches etcd (default: where etcd says it is)")
		c.fs.StringVar(&c.out, "out", "", "`file` to write, which only its owner may read (default: standard output)")
		c.fs.StringVar(&c.caOut, "ca-out", "", "`file` to write the CA to, too: etcdctl takes it from no bundle")
		c.fs.BoolVar(&c.revoke, "revoke", false, "take an operator's access away")
	case "rotate-ca":
		c.fs.BoolVar(&c.finish, "finish", false, "drop the former CA")
	case "etcd-users":
		c.fs.BoolVar(&c.print, "print", false, "print what etcdctl is to be told")
		c.fs.BoolVar(&c.apply, "apply", false, "do it: the client must have etcd's role root, or etcd heed no users yet")
	}
	if err := c.fs.Parse(args[1:]); err != nil {
		return usage{err}
	}
	if err := options.Resolve(c.fs, others); err != nil {
		return usage{err}
	}
	return run(ctx, c.fs.Args())
}

// open opens the records by the socket of the embedded etcd, as its root.
func (c *command) open() (*store.Store, error) {
	dir, err := filepath.Abs(c.dataDir)
	if err != nil {
		return nil, err
	}
	return store.Open(store.Config{
		Endpoints: []string{"unix://" + filepath.Join(dir, options.EtcdSocket)}, Prefix: c.etcd.Prefix, DialTimeout: c.etcd.DialTimeout, Logger: slog.New(slog.DiscardHandler),
	})
}

// bundle makes access for a node, a person, or a controller.
func (c *command) bundle(ctx context.Context, args []string) error {
	kind, name := "", ""
	if len(args) > 0 {
		kind = args[0]
	}
	if len(args) > 1 {
		name = args[1]
	}
	switch {
	case kind == "controller" && len(args) == 1:
	case (kind == "node" || kind == "operator") && len(args) == 2 && name != "" && !strings.ContainsAny(name, "/: \t\n"):
	default:
		return usage{errors.New("bundle takes: node NAME --node-ip ADDRESS, operator NAME, or controller")}
	}
	a, err := etcd.OpenAuthority(c.dataDir)
	if err != nil {
		return err
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	defer s.Close()
	state, err := s.Auth().State(ctx)
	if err != nil {
		return err
	}
	if !state.Enabled {
		return errors.New("etcd heeds no users, so a bundle would be of no use: let it listen at https:// only, with certificates of the controller's own making")
	}
	var user string
	switch kind {
	case "node":
		user, err = c.node(ctx, s, name)
	case "operator":
		user = pki.OperatorUser(name)
		if c.revoke {
			return s.Auth().DropUser(ctx, user)
		}
		err = c.ensure(ctx, s, user, store.OperatorRole, store.ReaderRole)
	default:
		user = pki.ControllerUser
		err = c.ensure(ctx, s, user, store.RootRole)
	}
	if err != nil {
		return err
	}
	return c.issue(ctx, s, a, user)
}

func (c *command) ensure(ctx context.Context, s *store.Store, user string, roles ...string) error {
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	return s.Auth().EnsureUser(ctx, cfg.Value.Name, user, roles...)
}

// node gives a node a new identity, and waits until the leader has made its user.
func (c *command) node(ctx context.Context, s *store.Store, host string) (user string, err error) {
	ip, err := tunnel.ParseVTEP(c.nodeIP)
	if err != nil {
		return "", usage{fmt.Errorf("--node-ip: %w: give that of the node's tunnels", err)}
	}
	var b [8]byte
	rand.Read(b[:]) // never fails, says its documentation
	id := hex.EncodeToString(b[:])
	if err := s.Identify(ctx, host, ip, id); err != nil {
		return "", err
	}
	user = pki.NodeUser(host, id)
	ctx, cancel := context.WithTimeout(ctx, userTimeout)
	defer cancel()
	for {
		there, err := s.Auth().HasUser(ctx, user, user, store.ReaderRole)
		if there {
			return user, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = errors.New("does a controller lead that keeps etcd's users?")
			}
			return "", fmt.Errorf("the record of node %s is there, but its user is not made within %s: %w", host, userTimeout, err)
		case <-time.After(userLook):
		}
	}
}

// issue signs the certificate and writes the bundle.
func (c *command) issue(ctx context.Context, s *store.Store, a *etcd.Authority, user string) error {
	urls, err := c.endpoints(ctx, s)
	if err != nil {
		return err
	}
	lifetime := c.lifetime
	if lifetime == 0 {
		lifetime = operatorLifetime
		if pki.IsNodeUser(user) {
			lifetime = etcd.NodeLifetime
		}
	}
	pair, err := a.CA.Client(user, lifetime, time.Now())
	if err != nil {
		return err
	}
	b := pki.Bundle{Endpoints: urls, CA: a.Trust, Pair: pair}
	if s.Prefix() != store.DefaultPrefix {
		b.Prefix = s.Prefix()
	}
	data, err := b.Encode()
	if err != nil {
		return err
	}
	if c.caOut != "" {
		if err := atomicfile.Write(c.caOut, a.Trust, 0o644); err != nil {
			return err
		}
	}
	if c.out == "" {
		_, err = c.io.Out.Write(data)
		return err
	}
	return atomicfile.Write(c.out, data, 0o600)
}

// endpoints are where the holder of a bundle reaches etcd.
func (c *command) endpoints(ctx context.Context, s *store.Store) ([]string, error) {
	urls := c.urls
	if len(urls) == 0 {
		all, err := s.ClientURLs(ctx)
		if err != nil {
			return nil, err
		}
		urls = slices.DeleteFunc(all, func(u string) bool { return !strings.HasPrefix(u, "https://") })
	}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Port() == "" {
			return nil, usage{fmt.Errorf("--endpoints: %q is not https://host:port", text)}
		}
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsUnspecified() {
			return nil, usage{fmt.Errorf("etcd listens at all addresses (%s): say with --endpoints which one the bundle is for", text)}
		} else if err == nil && ip.IsLoopback() {
			fmt.Fprintf(c.io.Err, "note: the bundle is for %s, which is of use on this machine only\n", text)
		}
	}
	if len(urls) == 0 {
		return nil, errors.New("etcd listens at no https:// address")
	}
	return urls, nil
}

// rotate begins or ends the rotation of the CA.
func (c *command) rotate(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return usage{fmt.Errorf("rotate-ca takes no %q", args[0])}
	}
	a, err := etcd.OpenAuthority(c.dataDir)
	if err != nil {
		return err
	}
	if !c.finish {
		if err := a.Rotate(time.Now()); err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.io.Out, "There is a new CA, and the former one is trusted still. Live agents renew by themselves; give operators, and nodes that are down, new bundles. Then: rotate-ca --finish")
		return err
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	defer s.Close()
	live, err := s.Statuses(ctx)
	if err != nil {
		return err
	}
	issuer := hex.EncodeToString(a.CA.Cert.SubjectKeyId)
	var late []string
	for ip, st := range live {
		if st.Issuer != issuer {
			late = append(late, fmt.Sprintf("%s (%s)", st.Host, ip))
		}
	}
	if len(late) > 0 {
		slices.Sort(late)
		return fmt.Errorf("the former CA is needed still: these live nodes have no certificate of the new one yet: %s", strings.Join(late, ", "))
	}
	if err := a.Finish(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.io.Out, "The former CA is trusted no more, as soon as the controller has started anew, which it does now.")
	return err
}
