package netlab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

const (
	// maxMembers leaves addresses for others.
	maxMembers = 7
	// memberTimeout bounds what has to wait until members have elected a leader.
	memberTimeout = 30 * time.Second
	// bundleLifetime is that of the certificates that the lab signs: no test lasts longer.
	bundleLifetime = 30 * 24 * time.Hour
)

func memberName(n int) string { return fmt.Sprintf("etcd-%d", n) }

// memberIP is where member n listens, from 1.
func memberIP(n int) netip.Addr {
	b := underlay.Addr().As4()
	b[3] = 240 + byte(n)
	return netip.AddrFrom4(b)
}

// memberURLs are those for clients in the lab.
func (o Options) memberURLs() (urls []string) {
	for n := 1; n <= o.Members; n++ {
		urls = append(urls, "https://"+memberIP(n).String()+":2379")
	}
	return urls
}

// Member is one member of the lab's etcd, from 1: see [Options.Members]. Kill is the end of its
// program; [Lab.Cut] with its name, "etcd-1", that of its machine.
func (l *Lab) Member(n int) Component { return l.Process(memberName(n)) }

func (l *Lab) membersDir() string       { return filepath.Join(l.dir, "members") }
func (l *Lab) memberFile() string       { return filepath.Join(l.membersDir(), "ca.crt") }
func (l *Lab) memberKey() string        { return filepath.Join(l.membersDir(), "ca.key") }
func (l *Lab) memberNetns(n int) string { return l.name + "-" + memberName(n) }
func (l *Lab) memberDir(n int) string   { return filepath.Join(l.membersDir(), memberName(n)) }

// startMembers makes the members' CA, starts all of them, and puts users in force.
func (l *Lab) startMembers(ctx context.Context, o Options) error {
	ca, err := pki.NewCA("netlab", time.Now())
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(l.membersDir(), 0o700), os.WriteFile(l.memberFile(), ca.CertPEM, 0o600), os.WriteFile(l.memberKey(), ca.KeyPEM, 0o600)); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for n := 1; n <= o.Members; n++ {
		g.Go(func() error {
			if err := l.makeMember(gctx, ca, n); err != nil {
				return err
			}
			return l.StartMember(gctx, n)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.makeUsers(ctx)
}

// makeMember makes a member's machine, and its certificate: for the way there from the
// namespace that the lab is started from, too.
func (l *Lab) makeMember(ctx context.Context, ca *pki.Pair, n int) error {
	server, err := ca.Server(memberName(n), []netip.Addr{memberIP(n), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, time.Now())
	if err != nil {
		return err
	}
	dir := l.memberDir(n)
	err = errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "server.pem"), append(bytes.Clone(server.CertPEM), server.KeyPEM...), 0o600))
	if err != nil {
		return err
	}
	if err := l.newNetns(l.memberNetns(n)); err != nil {
		return err
	}
	return l.Plug(ctx, l.memberNetns(n), memberName(n), netip.PrefixFrom(memberIP(n), underlay.Bits()))
}

// StartMember starts a member, after Kill or Stop with the data that it had. It does not wait
// until the member serves, which takes most of all members.
func (l *Lab) StartMember(ctx context.Context, n int) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	if n < 1 || n > s.Options.Members {
		return fmt.Errorf("lab %s has %d members of etcd, and not one of number %d", l.name, s.Options.Members, n)
	}
	if l.Member(n).Alive() {
		return fmt.Errorf("%s runs already", memberName(n))
	}
	var peers []string
	for m := 1; m <= s.Options.Members; m++ {
		peers = append(peers, fmt.Sprintf("%s=http://%s:2380", memberName(m), memberIP(m)))
	}
	return l.run(ctx, command{
		name: memberName(n), netns: l.memberNetns(n), log: filepath.Join(l.dir, "log", memberName(n)+".log"),
		args: []string{
			filepath.Join(s.Options.BinDir, "netlab"), "member", "--member", memberName(n), "--address", memberIP(n).String(), "--dir", l.memberDir(n), "--ca", l.memberFile(),
			"--cluster", strings.Join(peers, ","),
		},
	}, 10*time.Second, func() (bool, error) { return true, nil })
}

// makeUsers makes the users of whom docs/identities.md asks in an etcd of one's own.
func (l *Lab) makeUsers(ctx context.Context) error {
	c, err := l.Etcd()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // all was answered
	ctx, cancel := context.WithTimeoutCause(ctx, memberTimeout, fmt.Errorf("etcd's members do not serve in %s", memberTimeout))
	defer cancel()
	var last error
	err = waitFor(ctx, 50*time.Millisecond, func() (bool, error) {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, last = c.Get(asking, EtcdPrefix)
		return last == nil, nil
	})
	if err != nil {
		return errors.Join(err, last)
	}
	steps := []func() error{func() error { _, err := c.RoleAdd(ctx, store.RootRole); return err }}
	for _, user := range []string{pki.RootUser, pki.ControllerUser} {
		steps = append(steps,
			func() error {
				_, err := c.UserAddWithOptions(ctx, user, "", &clientv3.UserAddOptions{NoPassword: true})
				return err
			},
			func() error { _, err := c.UserGrantRole(ctx, user, store.RootRole); return err })
	}
	for _, step := range append(steps, func() error { _, err := c.AuthEnable(ctx); return err }) {
		if err := step(); err != nil {
			return fmt.Errorf("users of etcd: %w", err)
		}
	}
	return l.issue(pki.ControllerUser, l.controllerBundle())
}

// memberCA is what the members' CA signs with.
func (l *Lab) memberCA() (*pki.Pair, error) {
	cert, err := os.ReadFile(l.memberFile())
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(l.memberKey())
	if err != nil {
		return nil, err
	}
	return pki.ParsePair(cert, key)
}

// certify is the access of a user to the lab's members.
func (l *Lab) certify(user string, endpoints []string) (pki.Bundle, error) {
	ca, err := l.memberCA()
	if err != nil {
		return pki.Bundle{}, err
	}
	pair, err := ca.Client(user, bundleLifetime, time.Now())
	return pki.Bundle{Endpoints: endpoints, CA: ca.CertPEM, Pair: pair}, err
}

// issue writes the access of a user in the lab.
func (l *Lab) issue(user, path string) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	return l.issueFor(user, s.Options.memberURLs(), path)
}

func (l *Lab) issueFor(user string, endpoints []string, path string) error {
	b, err := l.certify(user, endpoints)
	if err != nil {
		return err
	}
	data, err := b.Encode()
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600))
}

// asRoot opens the records with all rights, from the namespace that the lab is started from.
func (l *Lab) asRoot() (*store.Store, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	b, err := l.certify(pki.RootUser, s.Etcd.Endpoints)
	if err != nil {
		return nil, err
	}
	return store.Open(store.Config{
		Endpoints: b.Endpoints, Prefix: EtcdPrefix, CA: b.CA, Cert: b.Pair.CertPEM, Key: b.Pair.KeyPEM, Logger: slog.New(slog.DiscardHandler),
	})
}

// giveMemberBundle is GiveBundle where etcd has members of its own: the record with another identity,
// for which the leader makes the user, and the certificate.
func (l *Lab) giveMemberBundle(ctx context.Context, n nodeState) error {
	s, err := l.asRoot()
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // all was answered
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	user := pki.NodeUser(n.Name, hex.EncodeToString(b[:]))
	_, id, _ := pki.ParseNodeUser(user)
	if err := s.Identify(ctx, n.Name, n.VTEP, id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, memberTimeout, fmt.Errorf("the leader has not made the user %s in %s", user, memberTimeout))
	defer cancel()
	err = waitFor(ctx, 20*time.Millisecond, func() (bool, error) {
		return s.Auth().HasUser(ctx, user, user, store.ReaderRole)
	})
	if err != nil {
		return err
	}
	return l.issue(user, l.nodeBundle(n.Name))
}

// makeOperator makes the operator of a lab whose etcd has members of its own.
func (l *Lab) makeOperator(ctx context.Context, endpoints []string) error {
	s, err := l.asRoot()
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // all was answered
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	user := pki.OperatorUser("netlab")
	if err := s.Auth().EnsureUser(ctx, cfg.Value.Name, user, store.OperatorRole, store.ReaderRole); err != nil {
		return err
	}
	ca, err := os.ReadFile(l.memberFile())
	if err != nil {
		return err
	}
	return errors.Join(l.issueFor(user, endpoints, l.operatorBundle()), os.WriteFile(l.operatorBundle()+".ca", ca, 0o600))
}

// memberClient is a client of members with all rights; its endpoints are as many as asked for.
func (l *Lab) memberClient(endpoints []string) (*clientv3.Client, error) {
	b, err := l.certify(pki.RootUser, endpoints)
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, TLS: TLS(b), Logger: zap.NewNop()})
}

// MemberClient is a client of one member alone, from 1, with all rights. The caller closes it.
func (l *Lab) MemberClient(n int) (*clientv3.Client, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	if n < 1 || n > s.Options.Members {
		return nil, fmt.Errorf("lab %s has %d members of etcd, and not one of number %d", l.name, s.Options.Members, n)
	}
	return l.memberClient(s.Etcd.Endpoints[n-1 : n])
}
