package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

const (
	// policyTime is how long a change may take to be in force everywhere; it takes some
	// milliseconds where the machine is idle.
	policyTime = 15 * time.Second
	// policyLooks is the pause between two looks at it.
	policyLooks = 50 * time.Millisecond
)

// policyNetworks are the networks of these tests' namespaces: red and pink are one tenant,
// blue is another.
var policyNetworks = map[string]string{"red": "warm", "pink": "warm", "blue": "cold"}

// policed starts a Kubernetes cluster with these namespaces and no pods.
func policed(t *testing.T, o netlab.Options) *cluster {
	t.Helper()
	o.Bare = true
	return up(t, o).policed(binDir)
}

// policed makes a bare lab such a cluster, of the programs in a folder.
func (l *lab) policed(bin string) *cluster {
	l.t.Helper()
	c := l.serveCluster()
	for name := range policyNetworks {
		c.labelNamespace(name, map[string]string{"team": name})
	}
	c.must(l.StartInCluster(l.t.Context(), bin))
	nodes, err := l.Nodes()
	c.must(err)
	for _, n := range nodes {
		c.must(l.Agent(n.Name).StartInCluster(l.t.Context(), bin))
	}
	return c
}

// labelNamespace makes a namespace with these labels, or makes them all that it has, beside
// the one that an API server gives each.
func (c *cluster) labelNamespace(name string, labels map[string]string) {
	c.t.Helper()
	n, there := c.api.Object("namespaces", "", name).(*corev1.Namespace)
	if there {
		n = n.DeepCopy()
	} else {
		n = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{"k8s-ovs.io/network": policyNetworks[name]},
		}}
	}
	n.Labels = map[string]string{corev1.LabelMetadataName: name}
	for k, v := range labels {
		n.Labels[k] = v
	}
	c.must(c.api.Put(n))
}

// labelled makes a pod with a label "app".
func (c *cluster) labelled(node, name, app string, ports ...corev1.ContainerPort) netlab.Pod {
	c.t.Helper()
	p, err := c.tryLabelled(node, name, app, ports...)
	c.must(err)
	return p
}

func (c *cluster) tryLabelled(node, name, app string, ports ...corev1.ContainerPort) (netlab.Pod, error) {
	namespace, pod, err := netlab.ParsePodName(name)
	c.must(err)
	return c.AddPod(c.t.Context(), node, namespace, pod, netlab.PodOptions{Labels: map[string]string{"app": app}, Ports: ports})
}

// policyPods makes the pods of most tests: red/web is whom policies are about.
func (c *cluster) policyPods() {
	c.t.Helper()
	c.labelled("n1", "red/web", "web")
	c.labelled("n1", "red/near", "near")
	c.labelled("n2", "red/far", "far")
	c.labelled("n1", "pink/near", "near")
	c.labelled("n2", "pink/far", "far")
	c.labelled("n2", "blue/far", "far")
}

// policiesMade tells policies with the same name apart.
var policiesMade atomic.Int64

// policy makes a NetworkPolicy, or changes it, to what its spec says in YAML, as people
// write it.
func (c *cluster) policy(name, spec string) {
	c.t.Helper()
	p := policyNamed(name)
	c.must(yaml.UnmarshalStrict([]byte(spec), &p.Spec))
	if was, there := c.api.Object("networkpolicies", p.Namespace, p.Name).(*networkingv1.NetworkPolicy); there {
		p.UID = was.UID
	} else {
		p.UID = types.UID(fmt.Sprint("policy-", policiesMade.Add(1)))
	}
	c.must(c.api.Put(p))
}

// withdraw deletes a NetworkPolicy.
func (c *cluster) withdraw(name string) {
	c.t.Helper()
	c.must(c.api.Delete(policyNamed(name)))
}

// waitSelected waits until policies are about so many pods of a node.
func (c *cluster) waitSelected(node string, pods float64) {
	c.t.Helper()
	c.eventually("pods are selected", policyTime, func() error {
		if n := c.metric(node, "k8s_ovs_policy_selected_pods"); n != pods {
			return fmt.Errorf("%v are, not %v", n, pods)
		}
		return nil
	})
}

func policyNamed(name string) *networkingv1.NetworkPolicy {
	namespace, name, _ := strings.Cut(name, "/")
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// rule says who may reach whom.
type rule func(from, to probe.Endpoint) bool

// withinTenants is what is allowed without policies.
func withinTenants(from, to probe.Endpoint) bool {
	return policyNetworks[from.Namespace] == policyNetworks[to.Namespace]
}

// and is what both rules allow.
func (r rule) and(other rule) rule {
	return func(from, to probe.Endpoint) bool { return r(from, to) && other(from, to) }
}

// toWeb is what is allowed where red/web may be reached by these pods only.
func toWeb(pods ...string) rule {
	return rule(withinTenants).and(func(from, to probe.Endpoint) bool {
		return to.String() != "red/web" || named(from, pods)
	})
}

// fromWeb is what is allowed where red/web may reach these pods only.
func fromWeb(pods ...string) rule {
	return rule(withinTenants).and(func(from, to probe.Endpoint) bool {
		return from.String() != "red/web" || named(to, pods)
	})
}

func named(e probe.Endpoint, pods []string) bool { return slices.Contains(pods, e.String()) }

// onlyApp is the spec of a policy by which pods with label app=web are reached by others
// with label app only.
func onlyApp(app string) string {
	return fmt.Sprintf(`
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: %s}}}]
`, app)
}

const denyAll = `{podSelector: {}, policyTypes: [Ingress, Egress]}`

// TestPolicies: who reaches whom by each kind of peer, on one node and from node to node, by
// all protocols.
func TestPolicies(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.requireMatrix("without policies", withinTenants)
	far := c.get("red/far").IP
	for _, p := range []struct {
		name     string
		policies map[string]string
		allowed  rule
	}{
		{"nobody", map[string]string{"red/all": denyAll}, rule(withinTenants).and(func(from, to probe.Endpoint) bool { return from.Namespace != "red" && to.Namespace != "red" })},
		{"nobody reaches", map[string]string{"red/web": `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`}, toWeb()},
		{"reaches nobody", map[string]string{"red/web": `{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}`}, fromWeb()},
		{"everybody", map[string]string{"red/web": `{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}`}, withinTenants},
		{"by a label of pods", map[string]string{"red/web": `
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{podSelector: {matchLabels: {app: far}}}]
`}, toWeb("red/far")},
		{"by a label of namespaces", map[string]string{"red/web": `
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{namespaceSelector: {matchLabels: {team: pink}}}]
`}, toWeb("pink/near", "pink/far")},
		{"by labels of both", map[string]string{"red/web": `
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{namespaceSelector: {matchLabels: {team: pink}}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [near]}]}}]
`}, toWeb("pink/far")},
		{"by addresses, with an exception", map[string]string{"red/web": fmt.Sprintf(`
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{ipBlock: {cidr: 172.11.0.0/16, except: [%s/32]}}]
`, far)}, toWeb("red/near", "pink/near", "pink/far")},
		{"by addresses, outwards", map[string]string{"red/web": fmt.Sprintf(`
podSelector: {matchLabels: {app: web}}
policyTypes: [Egress]
egress:
- to: [{ipBlock: {cidr: %s/32}}]
`, far)}, fromWeb("red/far")},
		{"what one policy allows each", map[string]string{"red/near": onlyApp("near"), "red/deny": denyAll, "red/far": `
podSelector: {}
policyTypes: [Egress]
egress:
- to: [{podSelector: {matchLabels: {app: web}}}]
`}, rule(withinTenants).and(func(from, to probe.Endpoint) bool {
			// From red only to red/web, and to that only from those near.
			return from.Namespace != "red" && to.Namespace != "red" || to.String() == "red/web" && from.Name == "near"
		})},
	} {
		for name, spec := range p.policies {
			c.policy(name, spec)
		}
		c.waitMatrix(p.name, policyTime, p.allowed)
		for name := range p.policies {
			c.withdraw(name)
		}
		c.waitMatrix(p.name+", taken away", policyTime, withinTenants)
	}
}

// TestPolicyOtherTenant: a policy that names another tenant's pods lets nobody in or out, and
// what it lets pass is dropped as another tenant's.
func TestPolicyOtherTenant(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.policy("red/web", `
podSelector: {matchLabels: {app: web}}
policyTypes: [Ingress, Egress]
ingress:
- from: [{namespaceSelector: {matchLabels: {team: blue}}}]
egress:
- to: [{namespaceSelector: {matchLabels: {team: blue}}}]
`)
	c.policy("blue/far", `{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}`)
	c.waitMatrix("only another tenant's are named", policyTime, toWeb().and(fromWeb()))
	const tenant, byPolicy = `k8s_ovs_drops_total{reason="tenant"}`, `k8s_ovs_drops_total{reason="policy-ingress"}`
	before := map[string]float64{}
	for _, name := range []string{tenant, byPolicy} {
		before[name] = c.settledMetric("n1", name)
	}
	if reached(c.get("blue/far"), "udp4", netip.AddrPortFrom(c.get("red/web").IP, 8080)) {
		t.Error("blue/far reaches red/web")
	}
	c.eventually("the drop is counted", policyTime, func() error {
		if n := c.metric("n1", tenant); n <= before[tenant] {
			return fmt.Errorf("%v were dropped as another tenant's, as before", n)
		}
		return nil
	})
	if n := c.settledMetric("n1", byPolicy); n != before[byPolicy] {
		t.Errorf("%v were dropped by policy, %v before", n, before[byPolicy])
	}
}

// settledMetric is a node's metric once it stays for longer than the agent takes to look at what the
// switch has counted.
func (l *lab) settledMetric(node, name string) float64 {
	l.t.Helper()
	const longer = 7 * time.Second
	last, since := l.metric(node, name), time.Now()
	l.eventuallyEach(200*time.Millisecond, name+" stays", time.Minute, func() error {
		if n := l.metric(node, name); n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) < longer {
			return fmt.Errorf("it is %v", last)
		}
		return nil
	})
	return last
}

// serves has a pod answer on these ports, over TCP and UDP, with what comes.
func (l *lab) serves(p netlab.Pod, ports ...uint16) {
	l.t.Helper()
	for _, number := range ports {
		at := netip.AddrPortFrom(p.IP, number).String()
		tcp, err := ns.ListenTCP(p.Sandbox(), at)
		l.must(err)
		udp, err := ns.ListenUDP(p.Sandbox(), at)
		l.must(err)
		l.t.Cleanup(func() { _, _ = tcp.Close(), udp.Close() })
		go serveConnections(tcp)
		go serveDatagrams(udp)
	}
}

func serveConnections(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			for echo := make([]byte, 100); ; {
				n, err := conn.Read(echo)
				if err != nil {
					return
				}
				if _, err := conn.Write(echo[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func serveDatagrams(conn *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteToUDPAddrPort(buf[:n], from) // a lost answer shows at the other end
	}
}

// denied is how long nobody answers who is not going to.
const denied = 400 * time.Millisecond

// reached reports whether something at an address answers a pod.
func reached(from netlab.Pod, network string, to netip.AddrPort) bool {
	conn, err := dialFrom(from, network, to)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(denied))
	if _, err := conn.Write([]byte("x")); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, 100))
	return err == nil
}

// dialFrom makes a pod's connection to an address; one of TCP in the time that a denied one takes.
func dialFrom(from netlab.Pod, network string, to netip.AddrPort) (conn net.Conn, err error) {
	if network == "tcp4" {
		return ns.DialTCP(from.Sandbox(), to.String(), denied)
	}
	err = ns.DoPath(from.Sandbox(), func() (err error) { conn, err = net.Dial(network, to.String()); return err })
	return conn, err
}

// way is a port of a pod that another one asks.
type way struct {
	from, to, network string
	port              uint16
}

// waitWays waits until just those ways are open of which this says so.
func (l *lab) waitWays(when string, open map[way]bool) {
	l.t.Helper()
	pods := map[string]netlab.Pod{}
	for w := range open {
		pods[w.from], pods[w.to] = l.get(w.from), l.get(w.to)
	}
	l.eventuallyEach(policyLooks, when, policyTime, func() error {
		var all sync.WaitGroup
		var mu sync.Mutex
		var wrong []string
		for w, want := range open {
			all.Go(func() {
				if got := reached(pods[w.from], w.network, netip.AddrPortFrom(pods[w.to].IP, w.port)); got != want {
					mu.Lock()
					defer mu.Unlock()
					wrong = append(wrong, fmt.Sprintf("%+v answers: %v", w, got))
				}
			})
		}
		all.Wait()
		if len(wrong) > 0 {
			slices.Sort(wrong)
			return fmt.Errorf("%d of %d:\n%s", len(wrong), len(open), strings.Join(wrong, "\n"))
		}
		return nil
	})
}

// portServers are three servers in red that mean different things by the port "http", and two who ask them.
func (c *cluster) portServers() {
	c.t.Helper()
	http := func(number int32, protocol corev1.Protocol) corev1.ContainerPort {
		return corev1.ContainerPort{Name: "http", ContainerPort: number, Protocol: protocol}
	}
	c.labelled("n1", "red/web", "web", http(8080, corev1.ProtocolTCP))
	c.labelled("n2", "red/other", "web", http(9090, corev1.ProtocolTCP))
	c.labelled("n2", "red/udp", "web", http(8080, corev1.ProtocolUDP))
	c.labelled("n1", "red/near", "near")
	c.labelled("n2", "pink/far", "far")
	for _, name := range []string{"red/web", "red/other", "red/udp"} {
		c.serves(c.get(name), 8080, 9090, 8100, 8101)
	}
}

// waysToServers are the ways from two pods, one of the other namespace, to all three of them.
func waysToServers(open func(w way) bool) map[way]bool {
	ways := map[way]bool{}
	for _, from := range []string{"red/near", "pink/far"} {
		for _, to := range []string{"red/web", "red/other", "red/udp"} {
			for _, network := range []string{"tcp4", "udp4"} {
				for _, number := range []uint16{8080, 9090, 8100, 8101} {
					w := way{from, to, network, number}
					ways[w] = open(w)
				}
			}
		}
	}
	return ways
}

// TestPolicyPorts: numbers, ranges and names of ports, of which pods may mean different numbers by
// the same name.
func TestPolicyPorts(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.portServers()
	each := waysToServers
	meant := func(w way) bool {
		return w == way{w.from, "red/web", "tcp4", 8080} || w == way{w.from, "red/other", "tcp4", 9090}
	}
	const web, near = "red/web", "red/near"
	for _, p := range []struct {
		name, policy, spec string
		open               func(w way) bool
	}{
		{"one number", web, `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}]}]}`,
			func(w way) bool { return w.network == "tcp4" && w.port == 8080 }},
		{"a range of UDP", web, `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{protocol: UDP, port: 8081, endPort: 8100}]}]}`,
			func(w way) bool { return w.network == "udp4" && w.port == 8100 }},
		{"all of a protocol", web, `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{protocol: UDP}]}]}`,
			func(w way) bool { return w.network == "udp4" }},
		{"a name", web, `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}`, meant},
		{"a name, for some", web, `
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{podSelector: {}}]
  ports: [{port: http}]
- from: [{namespaceSelector: {matchLabels: {team: pink}}}]
  ports: [{port: http, protocol: UDP}]
`, func(w way) bool {
			return w.from == near && meant(w) || w == way{"pink/far", "red/udp", "udp4", 8080}
		}},
		{"a name, outwards", near, `{podSelector: {matchLabels: {app: near}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}`,
			func(w way) bool { return w.from != near || meant(w) }},
		{"a name of some, outwards", near, `
podSelector: {matchLabels: {app: near}}
policyTypes: [Egress]
egress:
- to: [{podSelector: {matchLabels: {app: web}}}]
  ports: [{port: http}, {protocol: UDP, port: 8101}]
`, func(w way) bool { return w.from != near || meant(w) || w.network == "udp4" && w.port == 8101 }},
	} {
		c.policy(p.policy, p.spec)
		c.waitWays(p.name, each(p.open))
		c.withdraw(p.policy)
		c.waitWays(p.name+", taken away", each(func(way) bool { return true }))
	}
}

// TestPolicyMany: a hundred policies about one pod, each of which allows one port.
func TestPolicyMany(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	const first, many = 10000, 100
	ways := map[way]bool{}
	for i := range many + 1 {
		c.serves(c.get("red/web"), uint16(first+i))
		ways[way{"red/far", "red/web", "tcp4", uint16(first + i)}] = i < many
		if i < many {
			c.policy(fmt.Sprintf("red/p%d", i), fmt.Sprintf(`
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{podSelector: {matchLabels: {app: far}}}]
  ports: [{port: %d}]
`, first+i))
		}
	}
	ways[way{"red/near", "red/web", "tcp4", first}] = false
	c.waitWays("a hundred policies", ways)
	for i := range many / 2 {
		c.withdraw(fmt.Sprintf("red/p%d", i))
		ways[way{"red/far", "red/web", "tcp4", uint16(first + i)}] = false
	}
	c.waitWays("half of them", ways)
}
