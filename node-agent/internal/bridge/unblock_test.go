package bridge

import (
	"context"
	"errors"
	"slices"
	"testing"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// ports is a switch of which only ports matter.
type ports map[string]of.PortConfig

func (p ports) Ports(context.Context) (out []of.PortDesc, err error) {
	for name, c := range p {
		out = append(out, of.PortDesc{Name: name, Config: c})
	}
	return out, nil
}

func (p ports) SetPortConfig(_ context.Context, d of.PortDesc, config, mask of.PortConfig) error {
	if d.Name == "kovbad" {
		return errors.New("no")
	}
	p[d.Name] = p[d.Name]&^mask | config
	return nil
}

func (p ports) AcceptFragments(context.Context) (bool, error) { return true, nil }

func TestUnblock(t *testing.T) {
	sw := ports{"vxlan0": of.PortNoReceive, "vxlan1": of.PortNoForward, "vxlan9": of.PortNoForward, GatewayPort: 0, "kov1": of.PortNoForward, "kov2": 0, "eth9": of.PortNoForward, "kovbad": of.PortNoForward}
	got, err := Unblock(t.Context(), sw, []string{"vxlan0", "vxlan1"}, "kov")
	slices.Sort(got)
	if err == nil || !slices.Equal(got, []string{"IP fragments", "kov1", "vxlan0", "vxlan1"}) {
		t.Errorf("unblocked %v, %v", got, err)
	}
	if sw["kov1"] != 0 || sw["vxlan0"]|sw["vxlan1"] != 0 || sw["eth9"] == 0 || sw["vxlan9"] == 0 {
		t.Errorf("left %v", sw)
	}
}
