package pipeline

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// selectedToo is the model with one more pod, which policies select.
func selectedToo(m Model) Model {
	p := pod("172.11.0.12", 30, 101)
	p.Policy = PodPolicy{Ingress: true, Egress: true}
	m.Pods = append(m.Pods[:len(m.Pods):len(m.Pods)], p)
	return m
}

// with adds flows to those of the model and the services.
func (d *datapath) with(flows []of.Flow) *datapath {
	d.t.Helper()
	var mods []of.Mod
	for _, f := range flows {
		mods = append(mods, of.AddFlow(f))
	}
	if err := d.conn.Commit(context.Background(), mods); err != nil {
		d.t.Fatal(err)
	}
	return d
}

// maskOfMark finds the mask of ct_mark in a cached flow, where it has 32 bits.
var maskOfMark = regexp.MustCompile(`ct_mark\([^/)]*/0x([0-9a-f]{8})\)`)

// TestDatapathPolicies holds what the datapath caches otherwise, of pods that no policy
// selects, because one selects another pod; and what it caches for those that are selected.
func TestDatapathPolicies(t *testing.T) {
	var b strings.Builder
	rules := flowsOf(NewRules().Set(samplePolicies()))
	for _, proxy := range []ServiceProxy{OVS, KubeProxy} {
		without := newDatapath(t, datapathModel(proxy), datapathServices())
		with := newDatapath(t, selectedToo(datapathModel(proxy)), datapathServices()).with(rules)
		fmt.Fprintf(&b, "services by %s: what others cache besides, or otherwise\n\n", proxy)
		for _, w := range ways(proxy) {
			before := map[string]bool{}
			for _, f := range without.after(w) {
				before[f] = true
			}
			var other []string
			for _, f := range with.after(w) {
				if !before[f] {
					other = append(other, f)
				}
			}
			if len(other) > 0 {
				fmt.Fprintf(&b, "%s\n\t%s\n\n", w.name, strings.Join(other, "\n\t"))
			}
		}
		m := datapathModel(proxy)
		for i := range m.Pods {
			m.Pods[i].Policy = PodPolicy{Ingress: true, Egress: true}
		}
		judged := newDatapath(t, m, datapathServices()).with(flowsOf(NewRules().Set(peersOf(m))))
		fmt.Fprintf(&b, "services by %s: pods that policies select\n\n", proxy)
		allows, denies := 0, 0
		for _, w := range ways(proxy) {
			cached := judged.after(w)
			fmt.Fprintf(&b, "%s\n\t%s\n\n", w.name, strings.Join(cached, "\n\t"))
			for _, f := range cached {
				mark := maskOfMark.FindStringSubmatch(f)
				allow, deny := mark != nil && strings.HasPrefix(mark[1], "4"), mark != nil && strings.HasPrefix(mark[1], "8")
				switch {
				case strings.Contains(f, "ct(commit,zone=65519"):
					allows++
					if !allow || deny {
						t.Errorf("what is allowed may be changed to what is denied where it is cached: %s", f)
					}
				case strings.Contains(f, "ct_tuple4") && strings.Contains(f, "-inv+trk") && strings.HasSuffix(f, "actions:drop"):
					if deny {
						denies++
					}
					if allow == deny { // what policies allow the check of tenants may drop
						t.Errorf("what is denied may be changed to what is allowed where it is cached: %s", f)
					}
				}
			}
		}
		if allows == 0 || denies == 0 {
			t.Errorf("%d flows of what is allowed were looked at, %d of what is denied", allows, denies)
		}
	}
	golden(t, "testdata/datapath-policies.golden", b.String())
}

// peersOf lets the pods of a model, and those of a peer, meet on one port.
func peersOf(m Model) map[policy.Key]policy.Compiled {
	a := policy.Allow{Name: "peers", Ports: []policy.PortRange{{Protocol: service.UDP, First: 2000, Last: 2000}, {Protocol: service.UDP, First: 8080, Last: 8080}}}
	a.Peers.Prefixes = []netip.Prefix{prefix("172.11.4.9/32")}
	for _, p := range m.Pods {
		a.Subjects = append(a.Subjects, p.Addresses[0])
		a.Peers.Prefixes = append(a.Peers.Prefixes, host(p.Addresses[0]))
	}
	table := policy.Table{Allows: []policy.Allow{a}}
	return map[policy.Key]policy.Compiled{{Namespace: "n", Name: "peers"}: compiled(table, table)}
}

// TestDatapathFlowsPolicies: what the mixed load needs while policies are for nobody, or for
// another pod, is what it needs without them; answers of services cost a little.
func TestDatapathFlowsPolicies(t *testing.T) {
	m := datapathModel(OVS)
	m.Pods = nil
	for i := range uint32(8) {
		m.Pods = append(m.Pods, pod(fmt.Sprintf("172.11.0.%d", 2+i), 12+i, 101+i%2))
	}
	rules := flowsOf(NewRules().Set(samplePolicies()))
	load, answers := mixed(m), serviceAnswers(m)
	for name, tc := range map[string]struct {
		m              Model
		rules          []of.Flow
		mixed, answers int
	}{
		"no policies":     {m, nil, mixedFlows, answerFlows},
		"for nobody here": {m, rules, mixedFlows, answerFlows},
		"for another pod": {selectedToo(m), rules, mixedFlows, answerFlowsSelected},
	} {
		d := newDatapath(t, tc.m, datapathServices()).with(tc.rules)
		d.receive(load...)
		n := len(d.flows())
		d.forget()
		d.receive(answers...)
		if answered := len(d.flows()); n != tc.mixed || answered != tc.answers {
			t.Errorf("policies %s: %d flows are cached for the mixed load, want %d; %d for answers of services, want %d", name, n, tc.mixed, answered, tc.answers)
		}
	}
}

// What answers of services need, and what where a policy selects another pod.
const (
	answerFlows         = 58
	answerFlowsSelected = 60
)

// serviceAnswers are requests of all pods to services, and their answers.
func serviceAnswers(m Model) (packets []packet) {
	for _, p := range m.Pods {
		client := p.Addresses[0].String()
		for i := range uint16(3) {
			packets = append(packets, fromPodAt(p.Port, client, "10.96.0.10", 45000+i, 80), fromPodAt(p.Port, client, "10.96.0.11", 45000+i, 80))
			if client != "172.11.0.3" {
				packets = append(packets, fromPodAt(13, "172.11.0.3", client, 8080, 45000+i))
			}
			packets = append(packets, fromPeer("198.18.0.2", 300924, "172.11.4.9", client, 8080, 45000+i))
		}
	}
	return packets
}
