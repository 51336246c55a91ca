package cniapi

import (
	"fmt"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// maxIfName is IFNAMSIZ less its final NUL (linux/if.h).
	maxIfName = 15
	// maxName bounds names that end up in file names (NAME_MAX, linux/limits.h).
	maxName = 255
	// maxPath is PATH_MAX less its final NUL (linux/limits.h).
	maxPath = 4095
)

// Validate says what is wrong with the request: an *Error that names the
// variable or field as the runtime knows it. DEL asks only for what identifies
// the attachment: it has to work when everything else is lost.
func (r Request) Validate() error {
	if r.Version != Version {
		return Errorf(CodeTryAgain, "request has version %d, this side speaks %d", r.Version, Version).
			WithDetails("the CNI plugin and the agent on this node are of different releases; one is being updated, or its update failed")
	}
	switch r.Command {
	case Add:
		return firstOf(r.validateAttachment, r.requirePod, r.validateNetwork, r.Bandwidth.validate)
	case Check:
		return firstOf(r.validateAttachment, r.validatePod, r.validateNetwork, r.Bandwidth.validate, r.validatePrevResult)
	case Del:
		return firstOf(r.validateAttachment, r.validatePod)
	case GC:
		return firstOf(r.validateNetwork, r.validateValidAttachments)
	case Status:
		return nil
	}
	return Errorf(CodeInvalidEnv, "CNI_COMMAND: %q is none of ADD, DEL, CHECK, STATUS, GC", string(r.Command))
}

func firstOf(checks ...func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (r Request) validateAttachment() error {
	if err := ValidateContainerID(r.ContainerID); err != nil {
		return Errorf(CodeInvalidEnv, "CNI_CONTAINERID: %w", err)
	}
	if err := ValidateIfName(r.IfName); err != nil {
		return Errorf(CodeInvalidEnv, "CNI_IFNAME: %w", err)
	}
	if r.Command == Del && r.Netns == "" {
		return nil
	}
	if err := ValidateNetnsPath(r.Netns); err != nil {
		return Errorf(CodeInvalidEnv, "CNI_NETNS: %w", err)
	}
	return nil
}

// requirePod is validatePod where the pod must be named: a pod without a
// namespace would have no tenant.
func (r Request) requirePod() error {
	if r.PodNamespace == "" {
		return Errorf(CodeInvalidEnv, "CNI_ARGS: K8S_POD_NAMESPACE is missing").
			WithDetails("the pod's namespace decides its tenant; the runtime must pass CNI_ARGS with K8S_POD_NAMESPACE and K8S_POD_NAME")
	}
	if r.PodName == "" {
		return Errorf(CodeInvalidEnv, "CNI_ARGS: K8S_POD_NAME is missing")
	}
	return r.validatePod()
}

func (r Request) validatePod() error {
	if r.PodNamespace != "" {
		if err := topology.ValidateNamespaceName(r.PodNamespace); err != nil {
			return Errorf(CodeInvalidEnv, "CNI_ARGS: K8S_POD_NAMESPACE: %w", err)
		}
	}
	if r.PodName != "" {
		if err := ValidatePodName(r.PodName); err != nil {
			return Errorf(CodeInvalidEnv, "CNI_ARGS: K8S_POD_NAME: %w", err)
		}
	}
	if r.PodUID != "" {
		if err := validateToken(r.PodUID); err != nil {
			return Errorf(CodeInvalidEnv, "CNI_ARGS: K8S_POD_UID: %w", err)
		}
	}
	return nil
}

func (r Request) validateNetwork() error {
	if err := validateToken(r.NetworkName); err != nil {
		return Errorf(CodeInvalidConfig, "name: %w", err)
	}
	return nil
}

func (r Request) validatePrevResult() error {
	if r.PrevResult == nil {
		return Errorf(CodeInvalidConfig, "prevResult is missing: CHECK compares with what ADD returned")
	}
	for i, ip := range r.PrevResult.IPs {
		if !ip.Address.IsValid() {
			return Errorf(CodeInvalidConfig, "prevResult.ips[%d].address is missing", i)
		}
		if n := len(r.PrevResult.Interfaces); ip.Interface != nil && (*ip.Interface < 0 || *ip.Interface >= n) {
			return Errorf(CodeInvalidConfig, "prevResult.ips[%d].interface is %d; there are %d interfaces", i, *ip.Interface, n)
		}
	}
	return nil
}

// validateValidAttachments refuses a list that is absent or has gaps: what is
// not in it is taken down, so a mistake here must not pass for "none".
func (r Request) validateValidAttachments() error {
	if _, err := r.Spared(); err != nil {
		return err
	}
	for i, a := range r.ValidAttachments {
		if a.ContainerID == "" || a.IfName == "" {
			return Errorf(CodeInvalidConfig, "cni.dev/valid-attachments[%d] lacks its containerID or ifname", i)
		}
	}
	return nil
}

// Spared are the attachments that GC leaves. A request without the list is refused here too, by whoever takes down what
// is not in it: what comes without one is no GC, whoever let it through, and would take down all pods of the node.
func (r Request) Spared() (map[Attachment]bool, error) {
	if r.ValidAttachments == nil {
		return nil, Errorf(CodeInvalidConfig, "cni.dev/valid-attachments is missing").
			WithDetails("GC removes every attachment that is not in this list; an empty list must be written as []")
	}
	spared := map[Attachment]bool{}
	for _, a := range r.ValidAttachments {
		spared[a] = true
	}
	return spared, nil
}

// Sparing is the request with more attachments in its list; one without a list stays without.
func (r Request) Sparing(more []Attachment) Request {
	if r.ValidAttachments != nil {
		r.ValidAttachments = append(slices.Clone(r.ValidAttachments), more...)
	}
	return r
}

func (b *Bandwidth) validate() error {
	if b == nil {
		return nil
	}
	for _, d := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		if d.rate == 0 && d.burst != 0 {
			return Errorf(CodeInvalidConfig, "runtimeConfig.bandwidth.%sBurst is %d bits but %sRate is not set", d.name, d.burst, d.name)
		}
	}
	return nil
}

// ValidateContainerID checks id against the CNI specification (section
// "Parameters"): a letter or digit, then letters, digits, '_', '.' and '-'.
// Its length is bounded by what a file name can hold.
func ValidateContainerID(id string) error { return validateToken(id) }

// ValidateIfName checks an interface name against the CNI specification and
// the kernel (dev_valid_name, net/core/dev.c): at most 15 bytes, not "." or
// "..", no '/', ':', or space. Refused as well are '%', which the kernel takes for a
// template, "lo", which every sandbox has, and "all" and "default", which it
// has in net.ipv4.conf. The kernel would take bytes beyond ASCII; they do not
// survive JSON, so this function does not.
func ValidateIfName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("interface name is empty")
	case len(name) > maxIfName:
		return fmt.Errorf("interface name %q has %d characters; the kernel allows %d", name, len(name), maxIfName)
	case name == ".", name == "..", name == "lo", name == "all", name == "default":
		return fmt.Errorf("interface name %q is not available: choose another, such as eth0", name)
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c > '~' || c == '/' || c == ':' || c == '%' {
			return fmt.Errorf("interface name %q: %q is not allowed; use printable ASCII without space, '/', ':' and '%%'", name, name[i:i+1])
		}
	}
	return nil
}

// ValidateNetnsPath checks the form of the path to a network namespace.
// Whether it exists is the caller's to find out.
func ValidateNetnsPath(path string) error {
	switch {
	case path == "":
		return fmt.Errorf("path of the network namespace is empty")
	case path[0] != '/':
		return fmt.Errorf("path %q of the network namespace is not absolute", path)
	case len(path) > maxPath:
		return fmt.Errorf("path of the network namespace has %d bytes; the kernel allows %d", len(path), maxPath)
	case strings.IndexByte(path, 0) >= 0:
		return fmt.Errorf("path %q of the network namespace contains a NUL byte", path)
	}
	return nil
}

// ValidatePodName checks name against the form of the names that runtimes give pods:
// that of container IDs. Kubernetes' own are narrower (DNS subdomains), those of other
// clients of a runtime have capitals and underscores. Nothing is decided by the name.
func ValidatePodName(name string) error {
	if err := validateToken(name); err != nil {
		return fmt.Errorf("pod name %w", err)
	}
	return nil
}

// validateToken checks the form that the CNI specification gives to container
// IDs and network names, and that pod UIDs have.
func validateToken(s string) error {
	if s == "" {
		return fmt.Errorf("is empty")
	}
	if len(s) > maxName {
		return fmt.Errorf("%q has %d characters; at most %d are allowed", s[:32]+"...", len(s), maxName)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return fmt.Errorf("%q: %q is not allowed; use a letter or digit, then letters, digits, '_', '.', '-'", s, s[i:i+1])
		}
	}
	return nil
}
