package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// member is the process that is one member of a lab's etcd; `up` starts it.
func member() *cobra.Command {
	var name, address, dir, ca, cluster string
	c := &cobra.Command{
		Use:    "member",
		Short:  "One member of a lab's etcd",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ip, err := netip.ParseAddr(address)
			if err != nil {
				return fmt.Errorf("member: --address: %w", err)
			}
			cfg := embed.NewConfig()
			cfg.Name, cfg.Dir, cfg.InitialCluster, cfg.LogLevel = name, filepath.Join(dir, "data"), cluster, "warn"
			peer := url.URL{Scheme: "http", Host: netip.AddrPortFrom(ip, 2380).String()}
			cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
			client := url.URL{Scheme: "https", Host: netip.AddrPortFrom(ip, 2379).String()}
			cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
			server := filepath.Join(dir, "server.pem")
			cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile, cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = server, server, ca, true
			cfg.EnableGRPCGateway = false // its requests have no client certificate
			// A member that is killed loses nothing that the machine has.
			cfg.UnsafeNoFsync = true
			e, err := embed.StartEtcd(cfg)
			if err != nil {
				return fmt.Errorf("member %s: %w", name, err)
			}
			defer e.Close()
			select {
			case <-cmd.Context().Done():
				return nil
			case err := <-e.Err():
				return fmt.Errorf("member %s: %w", name, err)
			}
		},
	}
	f := c.Flags()
	f.StringVar(&name, "member", "", "its name")
	f.StringVar(&address, "address", "", "where it listens")
	f.StringVar(&dir, "dir", "", "folder with server.pem and its data")
	f.StringVar(&ca, "ca", "", "file with the CA of clients")
	f.StringVar(&cluster, "cluster", "", "all members, as NAME=URL,...")
	return c
}
