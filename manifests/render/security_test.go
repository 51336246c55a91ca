package main

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What may do more than a container that asks for nothing, and why is in its manifest.
var (
	privileged = []string{"agent", "ovsdb-server", "ovs-vswitchd"}
	asRoot     = []string{"give-data", "install-plugins"}
	added      = map[string][]corev1.Capability{"give-data": {"CHOWN", "DAC_OVERRIDE"}, "install-plugins": {"DAC_OVERRIDE"}}
)

// TestManifestsSecurityContext: no container may do more than it needs.
func TestManifestsSecurityContext(t *testing.T) {
	for _, k := range kustomizations(t) {
		for _, w := range workloads(decode(t, k)) {
			pod := w.pod.Spec.SecurityContext
			if pod == nil {
				pod = &corev1.PodSecurityContext{}
			}
			for _, c := range slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers) {
				for _, wrong := range tooMuch(c, pod, hostFolders(w.pod.Spec, c)) {
					t.Errorf("%s %s: container %s %s", k, w.name, c.Name, wrong)
				}
			}
		}
	}
}

// hostFolders reports whether the container is given folders of the node.
func hostFolders(spec corev1.PodSpec, c corev1.Container) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name && v.HostPath != nil })
	})
}

// tooMuch is what a container may do and need not, or lacks.
func tooMuch(c corev1.Container, pod *corev1.PodSecurityContext, hostFolders bool) (wrong []string) {
	own := c.SecurityContext
	if own == nil {
		return []string{"has no securityContext"}
	}
	is := func(b *bool) bool { return b != nil && *b }
	check := func(ok bool, what string) {
		if !ok {
			wrong = append(wrong, what)
		}
	}
	check(is(own.ReadOnlyRootFilesystem), "may write to its image")
	if slices.Contains(privileged, c.Name) {
		check(is(own.Privileged), "is said to be privileged and is not")
		return wrong
	}
	check(!is(own.Privileged), "is privileged")
	check(own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation, "may gain privileges")
	check(own.Capabilities != nil && slices.Equal(own.Capabilities.Drop, []corev1.Capability{"ALL"}), "keeps capabilities")
	if own.Capabilities != nil {
		check(slices.Equal(own.Capabilities.Add, added[c.Name]), "adds other capabilities than it is said to need")
	}
	nobody := is(own.RunAsNonRoot) && own.RunAsUser != nil && *own.RunAsUser > 0 && own.RunAsGroup != nil && *own.RunAsGroup > 0
	check(nobody != slices.Contains(asRoot, c.Name), "runs as root, or is said to and does not")
	seccomp, labels := own.SeccompProfile, own.SELinuxOptions
	if seccomp == nil {
		seccomp = pod.SeccompProfile
	}
	if labels == nil {
		labels = pod.SELinuxOptions
	}
	check(seccomp != nil && seccomp.Type == corev1.SeccompProfileTypeRuntimeDefault, "has no seccomp profile")
	// Of the node's folders a container_t may only use those that somebody labelled for it.
	check((labels != nil && labels.Type == "spc_t") == hostFolders, "has an SELinux type that does not fit what it mounts")
	return wrong
}
