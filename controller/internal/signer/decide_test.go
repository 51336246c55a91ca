package signer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const account = "system:serviceaccount:kube-system:k8s-ovs-agent"

// requestFor is a certificate request for a user, PEM.
func requestFor(t *testing.T, user string) []byte {
	t.Helper()
	key, _, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.Request(key, user)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// asks is what the agent of node n1, whose UID is u1, asks for.
func asks(t *testing.T) kube.SigningRequest {
	return kube.SigningRequest{
		Name: "k8s-ovs-agent-1", UID: "c1", Username: account, Signer: Name,
		Extra:    map[string][]string{extraNodeName: {"n1"}, extraNodeUID: {"u1"}, extraPodUID: {"p1"}},
		Usages:   []string{kube.ClientAuth, kube.DigitalSignature},
		Request:  requestFor(t, "k8s-ovs-node:n1:u1"),
		Lifetime: Lifetime,
	}
}

func nodes(records ...topology.Node) map[netip.Addr]topology.Node {
	out := map[netip.Addr]topology.Node{}
	for i, n := range records {
		n.HostIP = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		out[n.HostIP] = n
	}
	return out
}

func TestDecide(t *testing.T) {
	known := nodes(topology.Node{Host: "n1", UID: "u1"}, topology.Node{Host: "n2", UID: "u2"})
	if got := Account("kube-system", "k8s-ovs-agent"); got != account {
		t.Errorf("account %s", got)
	}
	signed := Decision{User: "k8s-ovs-node:n1:u1", Node: "n1", Lifetime: Lifetime}
	for name, tc := range map[string]struct {
		change  func(*kube.SigningRequest)
		records map[netip.Addr]topology.Node
		want    Decision
	}{
		"as it should be":           {want: signed},
		"without digital signature": {change: func(r *kube.SigningRequest) { r.Usages = r.Usages[:1] }, want: signed},
		"for a shorter time": {
			change: func(r *kube.SigningRequest) { r.Lifetime = time.Hour },
			want:   Decision{User: signed.User, Node: "n1", Lifetime: time.Hour},
		},
		"for a longer time": {change: func(r *kube.SigningRequest) { r.Lifetime = 48 * time.Hour }, want: signed},
		"for no time":       {change: func(r *kube.SigningRequest) { r.Lifetime = 0 }, want: signed},
		"of a node that moves": {
			records: nodes(topology.Node{Host: "n1", UID: "u0"}, topology.Node{Host: "n1", UID: "u1"}, topology.Node{Host: "n1"}), want: signed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, records := asks(t), tc.records
			if tc.change != nil {
				tc.change(&r)
			}
			if records == nil {
				records = known
			}
			if diff := cmp.Diff(tc.want, Decide(r, account, records)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestDecideRefuses: each thing that is not as it should be, alone, is enough.
func TestDecideRefuses(t *testing.T) {
	known := nodes(topology.Node{Host: "n1", UID: "u1"}, topology.Node{Host: "n2", UID: "u2"})
	extra := func(key string, values ...string) func(*kube.SigningRequest) {
		return func(r *kube.SigningRequest) {
			if r.Extra[key] = values; values == nil {
				delete(r.Extra, key)
			}
		}
	}
	requester := func(name string) func(*kube.SigningRequest) {
		return func(r *kube.SigningRequest) { r.Username = name }
	}
	request := func(pem []byte) func(*kube.SigningRequest) {
		return func(r *kube.SigningRequest) { r.Request = pem }
	}
	user := func(name string) func(*kube.SigningRequest) { return request(requestFor(t, name)) }
	uses := func(usages ...string) func(*kube.SigningRequest) {
		return func(r *kube.SigningRequest) { r.Usages = usages }
	}
	for name, tc := range map[string]struct {
		change func(*kube.SigningRequest)
		say    string
	}{
		"another signer":          {func(r *kube.SigningRequest) { r.Signer = "kubernetes.io/kube-apiserver-client" }, "it is for the signer"},
		"a kubelet":               {requester("system:node:n1"), "only the agents' service account"},
		"an admin":                {requester("admin"), "only the agents' service account"},
		"another service account": {requester("system:serviceaccount:red:k8s-ovs-agent"), "only the agents' service account"},
		"the controller":          {requester("system:serviceaccount:kube-system:k8s-ovs-controller"), "only the agents' service account"},
		"nobody":                  {requester(""), "only the agents' service account"},
		"before Kubernetes 1.30":  {func(r *kube.SigningRequest) { r.Extra = nil }, "Kubernetes 1.30"},
		"no node name":            {extra(extraNodeName), "Kubernetes 1.30"},
		"no node UID":             {extra(extraNodeUID), "Kubernetes 1.30"},
		"two node names":          {extra(extraNodeName, "n1", "n2"), "Kubernetes 1.30"},
		"a token of no pod":       {extra(extraPodUID), "the agent's own pod"},
		"another node's token":    {extra(extraNodeName, "n2"), "it asks to be k8s-ovs-node:n1:u1"},
		"a former node's token":   {extra(extraNodeUID, "u0"), "it asks to be k8s-ovs-node:n1:u1"},
		"another node's name":     {user("k8s-ovs-node:n2:u2"), "it asks to be k8s-ovs-node:n2:u2"},
		"the controller's name":   {user(pki.ControllerUser), "it asks to be k8s-ovs-controller"},
		"root":                    {user(pki.RootUser), "it asks to be root"},
		"no name":                 {user(""), "it asks to be"},
		"a server":                {uses(kube.ClientAuth, "server auth"), "its usages"},
		"a CA":                    {uses(kube.ClientAuth, "cert sign"), "its usages"},
		"a signature only":        {uses(kube.DigitalSignature), "its usages"},
		"no usage":                {uses(), "its usages"},
		"no request":              {request(nil), "PEM"},
		"two requests":            {request(append(requestFor(t, "k8s-ovs-node:n1:u1"), requestFor(t, "k8s-ovs-node:n2:u2")...)), "PEM"},
		"another's key":           {request(forged(t, "k8s-ovs-node:n1:u1")), "the request"},
	} {
		r := asks(t)
		tc.change(&r)
		if d := Decide(r, account, known); d.User != "" || d.Wait != "" || !strings.Contains(d.Deny, tc.say) {
			t.Errorf("%s: %+v, want denied with %q", name, d, tc.say)
		}
	}
	bundled := nodes(topology.Node{Host: "n1", UID: "u1", Identity: "x"})
	if d := Decide(asks(t), account, bundled); !strings.Contains(d.Deny, "has a bundle") {
		t.Errorf("with a bundle: %+v", d)
	}
}

// TestDecideWaits: a Node's record is a moment behind the Node.
func TestDecideWaits(t *testing.T) {
	for name, tc := range map[string]struct {
		records map[netip.Addr]topology.Node
		say     string
	}{
		"no record":               {nodes(), "no record below subnets/ yet"},
		"another's record":        {nodes(topology.Node{Host: "n2", UID: "u1"}), "no record below subnets/ yet"},
		"the former Node's":       {nodes(topology.Node{Host: "n1", UID: "u0"}), `UID "u0"`},
		"one that people made":    {nodes(topology.Node{Host: "n1"}), `UID ""`},
		"one with a bundle alone": {nodes(topology.Node{Host: "n1", Identity: "u1"}), `UID ""`},
	} {
		if d := Decide(asks(t), account, tc.records); d.User != "" || d.Deny != "" || !strings.Contains(d.Wait, tc.say) {
			t.Errorf("%s: %+v, want to wait with %q", name, d, tc.say)
		}
	}
}

// forged is a request whose signature is not that of its key.
func forged(t *testing.T, user string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: user}}, key)
	if err != nil {
		t.Fatal(err)
	}
	der[len(der)-1] ^= 1
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
