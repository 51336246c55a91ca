package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// powerOff takes away what does not outlive a machine, and configures the uplink as its start
// scripts do. Devices of the kernel datapath go with that alone.
const powerOff = `
ovs-dpctl del-dp ovs-system 2>/dev/null || true
for d in $(ip -o link show | sed 's/^[0-9]*: \([^:@]*\).*/\1/'); do
	case $d in lo | eth0) ;; *) ip link del $d 2>/dev/null || true ;; esac
done
nft flush ruleset
conntrack -F 2>/dev/null
tc qdisc del dev eth0 root 2>/dev/null || true
tc qdisc del dev eth0 clsact 2>/dev/null || true
sysctl -qw net.ipv4.ip_forward=0
ip addr replace %s/%d dev eth0
ip link set eth0 up
ip route replace default via %s
`

// PowerOff ends a node as a machine that is switched off, up to where it boots again and has
// started nothing: its programs, its pods with their sandboxes, devices, firewall and
// connections are gone, without a word to anybody; what is on its disk stays, and is of an
// earlier boot. The lab forgets the pods.
func (l *Lab) PowerOff(ctx context.Context, node string) error {
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	for _, program := range []string{"agent", "ovs-vswitchd", "ovsdb-server"} {
		if err := l.Process(node + "/" + program).Kill(); err != nil {
			return err
		}
	}
	pods, err := l.Pods()
	if err != nil {
		return err
	}
	for _, p := range pods {
		if p.Node == node {
			if err := l.ForgetPod(p); err != nil {
				return err
			}
		}
	}
	// It outlives no machine.
	for _, socket := range []string{l.cniSocket(node), l.metricsSocket(node)} {
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	script := fmt.Sprintf(powerOff, n.VTEP, underlay.Bits(), Gateway)
	if _, err := l.execIn(ctx, n.Netns, []string{"sh", "-ec", script}); err != nil {
		return fmt.Errorf("switch node %s off: %w", node, err)
	}
	return l.ageFiles(node)
}

// ageFiles makes the files of a node's agent those of another boot.
func (l *Lab) ageFiles(node string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(l.stateDir(node))
	if err != nil {
		return err
	}
	id := bytes.TrimSpace(boot)
	earlier := []byte(strings.Repeat("0", len(id)))
	for _, e := range entries {
		path := filepath.Join(l.stateDir(node), e.Name())
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, bytes.ReplaceAll(data, id, earlier), 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
