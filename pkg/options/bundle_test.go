package options

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

func bundle(t *testing.T, prefix string) string {
	t.Helper()
	ca, err := pki.NewCA("ca", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Client("me", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := pki.Bundle{Endpoints: []string{"https://192.0.2.1:2379"}, Prefix: prefix, CA: ca.CertPEM, Pair: pair}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestEtcdBundle(t *testing.T) {
	for prefix, want := range map[string]string{"": store.DefaultPrefix, "/other": "/other"} {
		e, _, err := parse(t, bundle(t, prefix), nil, "--etcd-bundle=FILE")
		if err != nil {
			t.Fatal(err)
		}
		all := Etcd{Endpoints: []string{"https://192.0.2.1:2379"}, Prefix: want, CAFile: "FILE", CertFile: "FILE", KeyFile: "FILE", DialTimeout: store.DefaultDialTimeout}
		if diff := cmp.Diff(all, *e); diff != "" {
			t.Errorf("prefix %q (-want +got):\n%s", prefix, diff)
		}
	}
	for args, say := range map[string]string{
		"--etcd-endpoints=n1:1":       "--etcd-endpoints and --etcd-bundle are both given",
		"--etcd-cacert=FILE":          "--etcd-cacert and --etcd-bundle",
		"--etcd-username=x":           "--etcd-username and --etcd-bundle",
		"--etcd-insecure-skip-verify": "--etcd-insecure-skip-verify and --etcd-bundle",
		"--etcd-prefix=/another":      "is for /k8s.ovs.com/ovs/network",
	} {
		if _, _, err := parse(t, bundle(t, ""), nil, "--etcd-bundle=FILE", args); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want %q", args, err, say)
		}
	}
	if _, _, err := parse(t, "garbage", nil, "--etcd-bundle=FILE"); err == nil || !strings.Contains(err.Error(), "--etcd-bundle") {
		t.Errorf("garbage: %v", err)
	}
}
