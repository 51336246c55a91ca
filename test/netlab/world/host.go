package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// leases compares the file of addresses.
func (l *look) leases(context.Context) error {
	path := filepath.Join(l.Lab.StateDir(l.Name), "addresses.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		l.say("%s is missing", path)
		return nil
	}
	if err != nil {
		return err
	}
	var file struct {
		BootID string       `json:"bootID"`
		Subnet netip.Prefix `json:"subnet"`
		Leases []struct {
			Address      netip.Addr `json:"address"`
			ContainerID  string     `json:"containerID"`
			PodNamespace string     `json:"podNamespace"`
			PodName      string     `json:"podName"`
			Leaving      bool       `json:"leaving"`
		} `json:"leases"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		l.say("%s: %v", path, err)
		return nil
	}
	l.subnet = file.Subnet
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	if want := strings.TrimSpace(string(boot)); file.BootID != want {
		l.say("%s is of boot %s; this one is %s", path, file.BootID, want)
	}
	leased := map[string]bool{}
	for _, lease := range file.Leases {
		leased[lease.ContainerID] = true
		p, ok := l.pods[lease.ContainerID]
		switch {
		case !ok:
			l.say("address %s is leased to %s/%s (container %s, leaving: %t), which is no pod of this node", lease.Address, lease.PodNamespace, lease.PodName, lease.ContainerID, lease.Leaving)
		case lease.Address != p.IP || lease.Leaving:
			l.say("pod %s has address %s; its lease is %s (leaving: %t)", p, p.IP, lease.Address, lease.Leaving)
		}
	}
	for id, p := range l.pods {
		if !leased[id] {
			l.say("pod %s has address %s without a lease", p, p.IP)
		}
	}
	return nil
}

// files compares the state directory: what a write that broke off leaves has a hidden name.
func (l *look) files(context.Context) error {
	entries, err := os.ReadDir(l.Lab.StateDir(l.Name))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			l.say("file %s in the state directory was not written to its end", e.Name())
		}
	}
	return nil
}

// devices compares the node's network devices.
func (l *look) devices(ctx context.Context) error {
	out, err := l.Lab.NodeExec(ctx, l.Name, "ip", "-json", "-details", "link", "show")
	if err != nil {
		return err
	}
	var links []struct {
		Name string `json:"ifname"`
		Info struct {
			Kind string `json:"info_kind"`
		} `json:"linkinfo"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return err
	}
	there := map[string]bool{}
	for _, link := range links {
		there[link.Name] = true
		rest, ifb := strings.CutPrefix(link.Name, ifbPrefix)
		_, pod := l.hostIfs[link.Name]
		switch {
		case pod || l.foreign(link.Name) || link.Name == uplink || link.Name == answers:
		case link.Info.Kind == "ifb" && ifb:
			if !l.limited(hostPrefix + rest) {
				l.say("device %s is of no pod that has a limit of what it receives", link.Name)
			}
		case link.Info.Kind == "veth" || link.Info.Kind == "ifb" || strings.HasPrefix(link.Name, hostPrefix):
			l.say("device %s (%s) is no pod's", link.Name, link.Info.Kind)
		}
	}
	for hostIf, p := range l.hostIfs {
		if !there[hostIf] {
			l.say("pod %s: device %s is missing", p, hostIf)
		}
		if ifb := ifbPrefix + strings.TrimPrefix(hostIf, hostPrefix); l.limited(hostIf) && !there[ifb] {
			l.say("pod %s: device %s is missing", p, ifb)
		}
	}
	return nil
}

const (
	// The beginnings of names of pods' devices: the host's end, and the ifb beside it, which ends alike.
	hostPrefix, ifbPrefix = "kov", "koi"
	// uplink is the lab's; by answers come those to the agent's question whether pods get out.
	uplink, answers = "eth0", "k8s-ovs-answers"
)

// queues compares what leads to ifbs: a pod without a limit has nothing there. CHECK knows
// how a limit is to look.
func (l *look) queues(ctx context.Context) error {
	for hostIf, p := range l.hostIfs {
		out, err := l.Lab.NodeExec(ctx, l.Name, "tc", "filter", "show", "dev", hostIf)
		if err != nil && !strings.Contains(err.Error(), "Cannot find device") {
			return err
		}
		if leads := strings.Contains(out, ifbPrefix); leads != l.limited(hostIf) {
			l.say("pod %s: a limit of what it receives: %t; a filter on %s leads to its ifb: %t", p, l.limited(hostIf), hostIf, leads)
		}
	}
	return nil
}

// tables of nftables are the agent's, by family and name, with the maps in them that have pods.
var tables = map[string]string{
	"ip k8s-ovs": "", "ip6 k8s-ovs": "", "bridge k8s-ovs": "",
	"ip k8s-ovs-fair": "tenants", "ip k8s-ovs-uplink": "classes", "ip k8s-ovs-exit": "", "ip k8s-ovs-tunnels": "", "ip " + policyTable: "senders",
}

// policyTable has only pods that policies keep from something.
const policyTable = "k8s-ovs-policy"

// firewall compares the agent's tables: whose addresses they have, and which namespaces.
func (l *look) firewall(ctx context.Context) error {
	out, err := l.Lab.NodeExec(ctx, l.Name, "nft", "-j", "list", "ruleset")
	if err != nil {
		return err
	}
	var ruleset struct {
		Objects []struct {
			Table *struct{ Family, Name string } `json:"table"`
			Chain *struct{ Table, Name string }
			Map   *struct {
				Family, Table, Name string
				Elem                [][]any
			}
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &ruleset); err != nil {
		return err
	}
	namespaces := map[string]bool{}
	for _, p := range l.pods {
		namespaces[p.Namespace] = true
	}
	have := map[string]bool{}
	for _, o := range ruleset.Objects {
		switch {
		case o.Table != nil:
			table := o.Table.Family + " " + o.Table.Name
			have[table] = true
			if _, ours := tables[table]; !ours && strings.HasPrefix(o.Table.Name, "k8s-ovs") {
				l.say("firewall table %s is not known", table)
			}
		case o.Chain != nil && o.Chain.Table == "k8s-ovs-fair":
			if namespace, ok := strings.CutPrefix(o.Chain.Name, "t-"); ok && !namespaces[namespace] {
				l.say("firewall table %s: chain %s is of a namespace without pods here", o.Chain.Table, o.Chain.Name)
			}
		case o.Map != nil && tables[o.Map.Family+" "+o.Map.Table] == o.Map.Name:
			l.elements(o.Map.Table, o.Map.Elem)
		}
	}
	for _, family := range []string{"ip", "ip6", "bridge"} {
		if table := family + " k8s-ovs"; !have[table] && l.filters(ctx, family) {
			l.say("firewall table %s is missing", table)
		}
	}
	return nil
}

// filters reports whether the node's kernel has that family of tables.
func (l *look) filters(ctx context.Context, family string) bool {
	_, err := l.Lab.NodeExec(ctx, l.Name, "nft", "--check", "add", "table", family, "world-asks")
	return err == nil
}

// elements are a map's from addresses of pods.
func (l *look) elements(table string, elements [][]any) {
	has := map[netip.Addr]bool{}
	for _, e := range elements {
		address, err := netip.ParseAddr(fmt.Sprint(e[0]))
		has[address] = true
		if _, pod := l.addresses[address]; err != nil || !pod {
			l.say("firewall table %s has %v, which is no pod's address", table, e[0])
		}
	}
	for address, p := range l.addresses {
		if !has[address] && table != policyTable {
			l.say("pod %s: firewall table %s does not have its address %s", p, table, address)
		}
	}
}

// namespaces compares which network namespaces the agent holds open: none but the node's,
// but for a moment.
func (l *look) namespaces(context.Context) error {
	pid, err := l.Lab.Agent(l.Name).Program()
	if err != nil {
		return err
	}
	var own unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &own); err != nil {
		return err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return err
	}
	for _, fd := range fds {
		path := fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())
		to, err := os.Readlink(path)
		if err != nil || !slices.ContainsFunc([]string{"net:[", "/run/netns/", "/var/run/netns/"}, func(s string) bool { return strings.HasPrefix(to, s) }) {
			continue // one that was closed meanwhile too
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil && st.Ino != own.Ino {
			l.say("the agent holds network namespace %s open (descriptor %s)", to, fd.Name())
		}
	}
	return nil
}
