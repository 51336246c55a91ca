package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// manyTenants is what the node has in one of the two states.
	manyTenants = 1000
	// addedCookie marks the flows that no agent made.
	addedCookie = 0xbe7c4
	// addedPort and addedValue are the first port numbers and values of registers
	// that these have.
	addedPort  = 20000
	addedValue = 0xa00000
)

// tenants compares a node that has the flows of one tenant with one that has
// those of a thousand more pods, each of its own tenant. These are the agent's
// flows for a pod with other numbers in them. They have no ports, so that
// the userspace datapath does not poll a thousand devices, which would hide what a
// packet costs. No agent runs meanwhile: it would put the flows right.
func tenants(ctx context.Context, b *bench) (err error) {
	pod, _, err := b.podFlows(ctx, "newcomer")
	if err != nil {
		return err
	}
	same, err := b.podPair(ctx, "n1")
	if err != nil {
		return err
	}
	across, err := b.podPair(ctx, "n2")
	if err != nil {
		return err
	}
	flows, err := otherTenants(texts(pod), manyTenants)
	if err != nil {
		return err
	}
	file := filepath.Join(b.lab.Dir(), "bench-tenants.txt")
	if err := os.WriteFile(file, []byte(strings.Join(flows, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	if err := b.lab.Agent("n1").Stop(); err != nil {
		return err
	}
	for _, c := range []comparison{
		{name: "tenants_same_node", title: "1,000 tenants' flows against one tenant's, same node", paths: [sides][]path{{same.path()}, {same.path()}}},
		{name: "tenants_across_nodes", title: "1,000 tenants' flows against one tenant's, two nodes", paths: [sides][]path{{across.path()}, {across.path()}}},
	} {
		c.prepare = func(ctx context.Context, side int) error { return b.tenantFlows(ctx, side == ours, file, len(flows)) }
		if err := b.compare(ctx, c); err != nil {
			return err
		}
	}
	if err := b.tenantFlows(ctx, false, file, 0); err != nil {
		return err
	}
	return b.lab.Agent("n1").Start(ctx)
}

// tenantFlows puts the flows of a file into n1's br0, or takes them out.
func (b *bench) tenantFlows(ctx context.Context, in bool, file string, n int) error {
	switchd := b.lab.OVS("n1")
	if !in {
		return b.removeAdded(ctx, "n1")
	}
	if _, err := switchd.OFCtl(ctx, "--bundle", "add-flows", "br0", file); err != nil {
		return err
	}
	conn, err := b.dialSwitch(ctx, "br0")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	have, err := conn.Flows(ctx, of.FlowFilter{Cookie: addedCookie, CookieMask: ^uint64(0)})
	if err == nil && len(have) != n {
		err = fmt.Errorf("br0 has %d flows of other tenants, want %d", len(have), n)
	}
	return err
}

var (
	cookieText = regexp.MustCompile(`cookie=0x[0-9a-f]+`)
	macText    = regexp.MustCompile(`0a:58(:[0-9a-f]{2}){4}`)
	portText   = regexp.MustCompile(`(in_port=|output:)([0-9]+)`)
	addrText   = regexp.MustCompile(`((?:nw_src|nw_dst|arp_spa)=)[0-9.]+`)
	// regText is a register that is matched or set.
	regText = regexp.MustCompile(`(reg[0-9]+=|set_field:)(0x[0-9a-f]+|[0-9]+)((?:->reg[0-9]+)?)`)
)

// otherTenants are the flows of a namespace with one pod, with everything in
// them that is this pod's or this namespace's replaced by n others'.
func otherTenants(pod []string, n int) ([]string, error) {
	all := strings.Join(pod, "\n")
	for _, part := range []*regexp.Regexp{cookieText, macText, portText, addrText, regText} {
		if !part.MatchString(all) {
			return nil, fmt.Errorf("no %s in the flows of a pod:\n%s", part, all)
		}
	}
	port, err := strconv.ParseUint(portText.FindStringSubmatch(all)[2], 10, 32)
	if err != nil {
		return nil, err
	}
	// What registers hold, but for 0 and the port: the netID, and whatever else
	// tells namespaces apart on a node.
	var values []uint64
	for _, m := range regText.FindAllStringSubmatch(all, -1) {
		v, err := strconv.ParseUint(m[2], 0, 32)
		if err == nil && v != 0 && v != port && !slices.Contains(values, v) && isRegister(m) {
			values = append(values, v)
		}
	}
	var out []string
	for i := range n {
		for _, f := range pod {
			out = append(out, otherTenant(f, i, port, values))
		}
	}
	return out, nil
}

// isRegister tells a register's value from another field that is set.
func isRegister(m []string) bool { return strings.HasPrefix(m[1], "reg") || m[3] != "" }

// otherTenant is one flow of tenant i. Its address is from the upper end of the
// network, where no node has its subnet.
func otherTenant(f string, i int, port uint64, values []uint64) string {
	addr := netip.AddrFrom4([4]byte{172, 31, byte(i >> 8), byte(i)})
	f = cookieText.ReplaceAllString(f, fmt.Sprintf("cookie=%#x", addedCookie))
	f = macText.ReplaceAllString(f, topology.MAC(addr).String())
	f = portText.ReplaceAllString(f, fmt.Sprintf("${1}%d", addedPort+i))
	f = addrText.ReplaceAllString(f, "${1}"+addr.String())
	return regText.ReplaceAllStringFunc(f, func(text string) string {
		m := regText.FindStringSubmatch(text)
		v, err := strconv.ParseUint(m[2], 0, 32)
		switch {
		case err != nil || v == 0 || !isRegister(m):
			return text
		case v == port:
			v = uint64(addedPort + i)
		default:
			v = uint64(addedValue + i*len(values) + slices.Index(values, v))
		}
		return fmt.Sprintf("%s%#x%s", m[1], v, m[3])
	})
}
