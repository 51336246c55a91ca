package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

const (
	// clockEvery is how often a clock that is wrong is looked at again.
	clockEvery = time.Second
	// roomEvery is how often a disk without room is.
	roomEvery = time.Second
	// pkiEvery is how often the certificates are looked after: the server's is renewed, and
	// somebody may rotate the CA.
	pkiEvery = time.Second
)

// ownPKI reports whether flags say where the certificates of the embedded etcd are.
func (c *Config) ownPKI() bool {
	return c.Embedded.CertFile != "" || c.Embedded.KeyFile != "" || c.Embedded.ClientCAFile != ""
}

// signs reports whether the embedded etcd has certificates of the controller's making.
func (c *Config) signs() bool {
	https := func(u string) bool { return strings.HasPrefix(u, "https://") }
	return !c.ownPKI() && slices.ContainsFunc(c.Embedded.ListenClientURLs, https)
}

// awaitAuthority reads the CA, and makes it where there never was one. With a clock
// that is wrong it waits until that is right.
func (i *instance) awaitAuthority(ctx context.Context) (*etcd.Authority, error) {
	var a *etcd.Authority
	err := i.await(ctx, clockEvery, func() (wait bool, err error) {
		if a, err = etcd.EnsureAuthority(i.cfg.Embedded.DataDir, i.cfg.now()); err != nil {
			return errors.Is(err, etcd.ErrClock), err
		}
		_, err = a.EnsureServer(i.cfg.serverAddresses(), i.cfg.now())
		return false, err
	})
	return a, err
}

// awaitRoom waits until the disk of the embedded etcd has room for it: started before, etcd would end the process
// again and again.
func (i *instance) awaitRoom(ctx context.Context) error {
	return i.await(ctx, roomEvery, func() (wait bool, err error) {
		err = etcd.RoomToStart(i.cfg.Embedded.DataDir)
		var full *etcd.NoRoomError
		return errors.As(err, &full), err
	})
}

// await has look look until it finds nothing wrong, or what no waiting mends.
func (i *instance) await(ctx context.Context, every time.Duration, look func() (wait bool, err error)) error {
	for said := false; ; said = true {
		wait, err := look()
		switch {
		case err == nil:
			i.waits.Store(nil)
			return nil
		case !wait:
			return err
		}
		i.waits.Store(&err)
		if !said {
			i.log.Error("the embedded etcd does not start yet; looking again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// keepAuthority looks after the certificates until ctx ends. use hears of the CA as it is
// now, whenever it is another one.
// It returns an error when a CA is trusted no more: etcd takes that over in a new start.
func (i *instance) keepAuthority(ctx context.Context, now *etcd.Authority, use func(*etcd.Authority)) error {
	var trouble backoff.Trouble
	trust := now.Trust
	for ticker := time.NewTicker(pkiEvery); ; {
		select {
		case <-ctx.Done():
			ticker.Stop()
			return nil
		case <-ticker.C:
		}
		a, made, err := i.renewServer()
		if trouble.News(err) {
			i.log.Error("the certificates of the embedded etcd cannot be looked after; trying again", "error", err)
		}
		if err != nil {
			continue
		}
		if made {
			i.log.Info("renewed the certificate of the embedded etcd", "addresses", i.cfg.serverAddresses())
		}
		if !a.Keeps(trust) {
			return errors.New("a former CA of the embedded etcd is trusted no more: a new start takes that over (pods keep their network)")
		}
		if !bytes.Equal(a.Trust, trust) {
			trust = a.Trust
			i.log.Info("the CA of the embedded etcd is another one now", "until", a.CA.Cert.NotAfter)
			use(a)
		}
	}
}

func (i *instance) renewServer() (a *etcd.Authority, made bool, err error) {
	if a, err = etcd.EnsureAuthority(i.cfg.Embedded.DataDir, i.cfg.now()); err != nil {
		return nil, false, err
	}
	made, err = a.EnsureServer(i.cfg.serverAddresses(), i.cfg.now())
	return a, made, err
}

// serverAddresses are those that the certificate of the embedded etcd is for.
func (c *Config) serverAddresses() []netip.Addr {
	addresses := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	add := func(a netip.Addr) {
		if a.IsValid() && !slices.Contains(addresses, a) {
			addresses = append(addresses, a)
		}
	}
	add(c.Kube.NodeIP)
	for _, text := range c.Embedded.ListenClientURLs {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" {
			continue
		}
		a, err := netip.ParseAddr(u.Hostname())
		switch {
		case err != nil:
		case a.IsUnspecified():
			for _, own := range machineAddresses() {
				add(own)
			}
		default:
			add(a)
		}
	}
	return addresses
}

// machineAddresses are those of this machine that others may reach.
func machineAddresses() (out []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsLoopback() {
			out = append(out, p.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// tellInsecure says loudly that clients have no identities.
func (i *instance) tellInsecure(why error) {
	i.identities.Set(0)
	if why == nil {
		i.identities.Set(1)
		return
	}
	text := fmt.Sprint(why)
	i.insecure.Store(&text)
	i.log.Warn("NOT SECURED: "+text, "urls", i.cfg.Embedded.ListenClientURLs)
}

// signer signs for nodes with the CA as it is now.
type signer struct {
	lifetime time.Duration
	now      func() time.Time
	current  atomic.Pointer[etcd.Authority]
}

// Sign implements [lead.Signer].
func (s *signer) Sign(request []byte, user string) ([]byte, error) {
	return s.current.Load().CA.Sign(request, user, s.lifetime, s.now())
}

// Trust implements [lead.Signer].
func (s *signer) Trust() []byte { return s.current.Load().Trust }
