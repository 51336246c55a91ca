package netlab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// PodOptions is what a pod may ask for.
type PodOptions struct {
	// IngressBandwidth and EgressBandwidth limit what the pod receives and
	// sends, in bits per second; 0 is no limit.
	IngressBandwidth uint64 `json:"ingressBandwidth,omitempty"`
	EgressBandwidth  uint64 `json:"egressBandwidth,omitempty"`
	// Annotations, Labels and the ports of its container are the pod's in the API server: see [Lab.ShowPods].
	Annotations map[string]string      `json:"annotations,omitempty"`
	Labels      map[string]string      `json:"labels,omitempty"`
	Ports       []corev1.ContainerPort `json:"ports,omitempty"`
}

// Pod is a pod of the lab: a network namespace that was attached through CNI.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Node      string `json:"node"`
	// IP is not valid as long as the pod is not attached.
	IP netip.Addr `json:"ip"`
	// Netns is the name of its network namespace, as `ip netns` shows it.
	Netns string `json:"netns"`
	// ContainerID and UID are what a runtime would have: random, new each time.
	ContainerID string     `json:"containerID"`
	UID         string     `json:"uid"`
	Options     PodOptions `json:"options"`
	// Gateway, MAC and MTU are from the CNI result.
	Gateway netip.Addr `json:"gateway"`
	MAC     string     `json:"mac"`
	MTU     int        `json:"mtu"`
	// HostInterface is the node's end of its link.
	HostInterface string `json:"hostInterface"`
}

// Sandbox is the path of the pod's network namespace.
func (p Pod) Sandbox() string { return ns.Path(p.Netns) }

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// ParsePodName splits "NAMESPACE/NAME".
func ParsePodName(s string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("pod %q: write NAMESPACE/NAME", s)
	}
	return namespace, name, nil
}

// AddPod makes a pod on a node: a sandbox, and CNI ADD for it as a container
// runtime calls it. If ADD fails, DEL is called and the sandbox removed.
func (l *Lab) AddPod(ctx context.Context, node, namespace, name string, o PodOptions) (Pod, error) {
	p, err := l.NewSandbox(node, namespace, name, o)
	if err != nil {
		return Pod{}, err
	}
	result, err := l.CNIAdd(ctx, p)
	if err != nil {
		return Pod{}, l.undo(ctx, p, err)
	}
	if err := p.fill(result); err != nil {
		return Pod{}, l.undo(ctx, p, err)
	}
	err = l.update(func(s *state) error {
		known, err := s.pod(namespace, name)
		if err != nil {
			return err
		}
		*known = p
		return nil
	})
	return p, err
}

// undo removes a pod that could not be made. Its sandbox goes also when DEL
// fails: GC is for what that leaves.
func (l *Lab) undo(ctx context.Context, p Pod, why error) error {
	errs := []error{fmt.Errorf("pod %s on %s: %w", p, p.Node, why)}
	if err := l.CNIDel(context.WithoutCancel(ctx), p); err != nil {
		errs = append(errs, fmt.Errorf("and cleaning up: %w", err))
	}
	return errors.Join(append(errs, l.ForgetPod(p))...)
}

// NewSandbox makes the pod's namespace without attaching it.
func (l *Lab) NewSandbox(node, namespace, name string, o PodOptions) (Pod, error) {
	p := Pod{
		Namespace: namespace, Name: name, Node: node, Options: o,
		Netns:       fmt.Sprintf("%s-%s-%s", l.name, namespace, name),
		ContainerID: randomHex(32), // as containerd: 64 characters
		UID:         randomHex(16),
	}
	s, err := l.read()
	if err != nil {
		return Pod{}, err
	}
	if _, err := s.node(node); err != nil {
		return Pod{}, err
	}
	if _, err := s.pod(namespace, name); err == nil {
		return Pod{}, fmt.Errorf("pod %s is in lab %s already", p, l.name)
	}
	if err := ns.Create(p.Netns); err != nil {
		return Pod{}, fmt.Errorf("pod %s: %w", p, err)
	}
	err = l.update(func(s *state) error {
		s.Namespaces = append(s.Namespaces, p.Netns)
		s.Pods = append(s.Pods, p)
		return nil
	})
	if err != nil {
		return Pod{}, errors.Join(err, ns.Delete(p.Netns))
	}
	if err := l.showPod(p); err != nil {
		return Pod{}, errors.Join(err, l.ForgetPod(p))
	}
	return p, nil
}

// DeleteSandbox removes the pod's namespace and nothing else, as when a
// container dies before its DEL.
func (l *Lab) DeleteSandbox(p Pod) error { return l.deleteNetns(p.Netns) }

// DelPod detaches the pod by CNI DEL and removes its namespace. When DEL fails
// the pod stays.
func (l *Lab) DelPod(ctx context.Context, p Pod) error {
	if err := l.CNIDel(ctx, p); err != nil {
		return fmt.Errorf("pod %s on %s: %w", p, p.Node, err)
	}
	return l.ForgetPod(p)
}

// ForgetPod removes the pod's namespace and the lab's memory of it without
// calling CNI DEL: a runtime that was interrupted.
func (l *Lab) ForgetPod(p Pod) error {
	if err := ns.Delete(p.Netns); err != nil {
		return err
	}
	if l.api != nil {
		if err := l.api.Delete(p.object()); err != nil {
			return fmt.Errorf("pod %s: %w", p, err)
		}
	}
	return l.update(func(s *state) error {
		s.dropNamespace(p.Netns)
		s.Pods = slices.DeleteFunc(s.Pods, func(o Pod) bool { return o.ContainerID == p.ContainerID })
		return nil
	})
}

// Pod returns the pod of that name.
func (l *Lab) Pod(namespace, name string) (Pod, error) {
	s, err := l.read()
	if err != nil {
		return Pod{}, err
	}
	p, err := s.pod(namespace, name)
	if err != nil {
		return Pod{}, err
	}
	return *p, nil
}

// Pods returns all attached pods in the order they were made.
func (l *Lab) Pods() ([]Pod, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(s.Pods, func(p Pod) bool { return !p.IP.IsValid() }), nil
}

// fill takes over what the CNI result says of the pod.
func (p *Pod) fill(r *types100.Result) error {
	if len(r.IPs) != 1 {
		return fmt.Errorf("CNI result has %d addresses, want 1: %v", len(r.IPs), r.IPs)
	}
	ip, ok := netip.AddrFromSlice(r.IPs[0].Address.IP)
	if !ok {
		return fmt.Errorf("CNI result: address %v is none", r.IPs[0].Address)
	}
	p.IP = ip.Unmap()
	if gw, ok := netip.AddrFromSlice(r.IPs[0].Gateway); ok {
		p.Gateway = gw.Unmap()
	}
	for _, i := range r.Interfaces {
		if i.Sandbox == p.Sandbox() {
			p.MAC, p.MTU = i.Mac, i.Mtu
		} else if i.Sandbox == "" && p.HostInterface == "" {
			p.HostInterface = i.Name
		}
	}
	return nil
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
