package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Check compares the attachment with what it should be: sandbox, port, flows.
func (a *Attacher) Check(ctx context.Context, req cniapi.Request) error {
	end, err := a.turns.take(ctx, req.Attachment())
	if err != nil {
		return err
	}
	defer end()
	node, _, err := a.ready()
	if err != nil {
		return err
	}
	at, ok := a.find(req.Attachment())
	if !ok {
		return cniapi.Errorf(cniapi.CodeUnknownContainer, "attachment %s is not known on this node", req.Attachment())
	}
	var diff []string
	if !sameSandbox(at.Netns, req.Netns) {
		diff = append(diff, fmt.Sprintf("CNI_NETNS is %s, it was attached in %s", req.Netns, at.Netns))
	}
	diff = append(diff, previous(req.PrevResult, at)...)
	sandbox, err := a.kernel.Differences(a.wire(node, at))
	if err != nil {
		return err
	}
	diff = append(diff, sandbox...)
	if len(sandbox) == 0 {
		shaped, err := a.kernel.ShapeDifferences(a.wire(node, at))
		if err != nil {
			return err
		}
		diff = append(diff, shaped...)
	}
	port, err := a.checkPort(ctx, node, at)
	if err != nil {
		return err
	}
	diff = append(diff, port...)
	flows, err := a.flows.Check(ctx, at.Port)
	if err != nil {
		return classify(err)
	}
	diff = append(diff, flows...)
	if len(diff) > 0 {
		return cniapi.Errorf(cniapi.CodeInternal, "attachment %s is not as it should be: %s", at.Attachment, strings.Join(diff, "; ")).
			WithDetails("a plugin behind k8s-ovs in the network configuration may have done this: docs/cni.md says which go together")
	}
	return nil
}

func (a *Attacher) checkPort(ctx context.Context, node Node, at Attachment) ([]string, error) {
	ports, err := a.ports.Ports(node.Bridge)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(ports, func(p ovs.Port) bool { return p.Name == at.HostIf() })
	if i < 0 {
		return []string{fmt.Sprintf("bridge %s has no port %s", node.Bridge, at.HostIf())}, nil
	}
	var diff []string
	p := ports[i]
	if p.Ofport == 0 {
		// Just attached: ovs-vswitchd writes the number last, and before that perhaps
		// that the device, which was about to come, is not there.
		var refused *ovs.PortError
		p.Ofport, err = a.ports.WaitOfport(ctx, p.Name)
		if err != nil && !errors.As(err, &refused) {
			return nil, err
		}
		if err == nil {
			p.Error = ""
		}
	}
	if p.Error != "" {
		diff = append(diff, fmt.Sprintf("port %s: %s", p.Name, p.Error))
	}
	if p.Ofport != at.Port {
		diff = append(diff, fmt.Sprintf("port %s has number %d, not %d", p.Name, p.Ofport, at.Port))
	}
	want := at.externalIDs()
	delete(want, keyNamespaceUID) // the lease may know better
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if p.ExternalIDs[key] != want[key] {
			diff = append(diff, fmt.Sprintf("port %s: external_ids:%s is %q, not %q", p.Name, key, p.ExternalIDs[key], want[key]))
		}
	}
	if has := p.ExternalIDs[keyLimits]; has != want[keyLimits] && want[keyLimits] == "" {
		diff = append(diff, fmt.Sprintf("port %s: external_ids:%s is %q, and the pod has no limits", p.Name, keyLimits, has))
	}
	return diff, nil
}

// previous compares what the runtime remembers of ADD with what is.
func previous(prev *cniapi.PrevResult, at Attachment) []string {
	if prev == nil {
		return nil
	}
	var diff []string
	for _, f := range prev.Interfaces {
		mac, err := net.ParseMAC(f.MAC)
		if f.Name == at.IfName && f.Sandbox != "" && err == nil && !bytes.Equal(mac, at.MAC) {
			diff = append(diff, fmt.Sprintf("another plugin gave %s the hardware address %s, not the %s that belongs to its address", at.IfName, mac, at.MAC))
		}
	}
	var found []netip.Addr
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface < len(prev.Interfaces) {
			if f := prev.Interfaces[*ip.Interface]; f.Name != at.IfName || f.Sandbox == "" {
				continue // another plugin's
			}
		}
		found = append(found, ip.Address.Addr())
	}
	for _, a := range at.Addresses {
		if !slices.Contains(found, a) {
			diff = append(diff, fmt.Sprintf("prevResult does not have the address %s of %s", a, at.IfName))
		}
	}
	return diff
}

// sameSandbox reports whether both paths are of one network namespace: runtimes name it
// in several ways (/run/netns/x, /var/run/netns/x, /proc/PID/ns/net). Where one is gone
// only the text is left.
func sameSandbox(a, b string) bool {
	if a == b {
		return true
	}
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
