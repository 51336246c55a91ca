package e2e

// change is something that happens to node n1. Commands run in its namespace, in a shell
// with these variables: DEV has the node's address, ADDR is that address with its
// length, PEER the address of n2, VIA the router, POD the host's end of red/a, UPLINK the way outside, SOCKET the one that the plugin
// calls, CONF the container runtime's directory of configurations. SECOND is a
// command that fails, save in the second change of a pair: the first may have done the same.
type change struct {
	name     string
	do, undo string
	// says is a part of the reason that the node must give, where it is not ready though its pods reach all; empty for any
	// reason, or none.
	says string
	// datapath is the only one where it can happen; empty for any.
	datapath string
	// needs are commands in an empty namespace that a kernel takes which has what the
	// change is made of; empty where every kernel has it.
	needs string
}

const (
	noAddress = `ip addr del $ADDR dev $DEV || $SECOND`
	address   = `ip addr replace $ADDR dev $DEV; ip route replace default via $VIA`
	// needsBridge is what tells whether the kernel has bridges.
	needsBridge = `ip link add host0 type bridge`
	// hostDevice is one that packets can be led to; upper is the last quarter of the subnet, whose
	// gateway is its first address: no pod of the lab has an address there.
	hostDevice = `ip link add host9 type bridge || $SECOND; ip link set host9 up; for i in $(seq 150); do if ip -4 -o addr show dev tun0 | grep -q inet; then break; fi; sleep 0.1; done; `
	upper      = `$(ip -4 -o addr show dev tun0 | awk '{split($4, a, "[./]"); print a[1] "." a[2] "." a[3]+3 ".0/24"}')`
	somePod    = `$(ip -o link | grep -o 'kov[0-9a-f]*' | head -n 1)`
	kill       = `kill -9 $(cat $RUN/vswitchd.pid); while kill -0 $(cat $RUN/vswitchd.pid) 2>/dev/null; do sleep 0.05; done`
)

var changes = []change{
	moved("a bridge of the kernel", "host0", needsBridge, `ip link add host0 type bridge; ip link set eth0 master host0`),
	moved("a bond", "bond0", `ip link add bond0 type bond mode active-backup miimon 50`, `ip link add bond0 type bond mode active-backup miimon 50; ip link set eth0 down; ip link set eth0 master bond0; ip link set eth0 up`),
	// The lab's switch knows no VLANs: what the node sends loses its tag on the way out.
	moved("a VLAN", "eth0.5", `ip link add eth0 type dummy; ip link add link eth0 name eth0.5 type vlan id 5; tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress matchall action vlan pop`, `ip link add link eth0 name eth0.5 type vlan id 5; tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress matchall action vlan pop; tc filter add dev eth0 ingress matchall action vlan push id 5`),
	{name: "the node's address taken away", do: noAddress, undo: address},
	{name: "all addresses flushed for a moment", do: "ip addr flush dev $DEV; " + address},
	{name: "no default route", do: "ip route del default || $SECOND", undo: "ip route replace default via $VIA"},
	{name: "another default gateway", do: "ip route replace default via ${VIA%.*}.77", undo: "ip route replace default via $VIA"},
	{name: "a default route over two routers, one of which is not there", says: "does not answer", do: "ip route replace default nexthop via $VIA nexthop via ${VIA%.*}.77", undo: "ip route replace default via $VIA"},
	{name: "a default route of another metric", do: "ip route replace default via $VIA metric 50; ip route del default metric 0 || $SECOND", undo: "ip route replace default via $VIA; ip route del default metric 50 || true"},
	{name: "a second address comes and goes", do: "ip addr add 198.18.0.222/32 dev $DEV; sleep 2; ip addr del 198.18.0.222/32 dev $DEV"},
	{name: "a second address", do: "ip addr add 198.18.0.223/24 dev $DEV", undo: "ip addr del 198.18.0.223/24 dev $DEV"},
	{name: "the uplink down", do: "ip link set $UPLINK down", undo: "ip link set $UPLINK up; ip route replace default via $VIA"},
	{name: "the device with the address down", do: "ip link set $DEV down", undo: "ip link set $DEV up; ip route replace default via $VIA"},
	{name: "the device with the address without ARP", says: "arp on", do: "ip link set $DEV arp off", undo: "ip link set $DEV arp on"},
	{name: "tunnels' packets dropped behind the firewall", says: "outside of the tunnels only", do: `nft "add table netdev fw; add chain netdev fw o { type filter hook egress device $UPLINK priority 0; }; add rule netdev fw o udp dport 4789 drop"`, undo: "nft delete table netdev fw || true", needs: `ip link add d0 type bridge; nft 'add table netdev fw; add chain netdev fw o { type filter hook egress device d0 priority 0; }'`},
	{name: "a wrong neighbour of the userspace datapath", do: "ovs-appctl -t $OVS_RUNDIR/ovs-vswitchd.ctl tnl/neigh/set br-phy $PEER 02:00:00:00:00:55", datapath: "netdev"},
	{name: "the tunnel's port taken out of the userspace datapath", do: outOfDatapath("netdev@ovs-netdev vxlan_sys_4789"), datapath: "netdev"},
	{name: "the uplink's port taken out of the userspace datapath", do: outOfDatapath("netdev@ovs-netdev $UPLINK"), datapath: "netdev"},
	{name: "a pod's port taken out of the userspace datapath", do: outOfDatapath("netdev@ovs-netdev " + somePod), datapath: "netdev"},
	{name: "the tunnel's port taken out of the kernel's datapath", do: outOfDatapath("system@ovs-system vxlan_sys_4789"), datapath: "system"},
	{name: "the gateway port taken out of the kernel's datapath", do: outOfDatapath("system@ovs-system tun0"), datapath: "system"},
	{name: "a pod's port taken out of the kernel's datapath", do: outOfDatapath("system@ovs-system " + somePod), datapath: "system"},
	{name: "the uplink's MTU", do: "ip link set $UPLINK mtu 1400", undo: "ip link set $UPLINK mtu 1500"},
	{name: "the uplink merges packets that it receives", do: "ethtool -K $UPLINK gro on", datapath: "netdev"},
	{name: "the uplink's hardware address", do: "ip link set $UPLINK address 02:00:00:00:00:77", datapath: "netdev"},
	{name: "the uplink renamed", do: "ip link set $UPLINK down; ip link set $UPLINK name ens9; ip link set ens9 up", undo: "ip link set ens9 down; ip link set ens9 name $UPLINK; ip link set $UPLINK up", datapath: "netdev"},
	{name: "the uplink in a bridge of the kernel", do: "ip link add host0 type bridge; ip link set host0 up; ip link set $UPLINK master host0", undo: "ip link set $UPLINK nomaster; ip link del host0", datapath: "netdev", needs: needsBridge},
	{name: "the uplink, with its address, in a bridge of the kernel", says: "is a port of host0", do: "ip link add host0 type bridge; ip link set host0 up; ip link set $UPLINK master host0", undo: "ip link set $UPLINK nomaster; ip link del host0", datapath: "system", needs: needsBridge},
	{name: "the uplink, with its address, in a bridge of Open vSwitch", says: "ovs-vsctl port-to-br", do: "ovs-vsctl add-br host3 -- add-port host3 $UPLINK", undo: "ovs-vsctl del-br host3", datapath: "system"},
	{name: "the lease renewed on the uplink", do: "ip addr add $ADDR dev $UPLINK; ip route add default via $VIA dev $UPLINK metric 9", datapath: "netdev"},
	{name: "the gateway port down", do: "ip link set tun0 down"},
	{name: "the gateway's address taken away", do: "ip addr flush dev tun0"},
	{name: "the route to the pods taken away", do: "ip route del 172.11.0.0/16 || $SECOND"},
	{name: "the gateway's MAC changed", do: "ip link set tun0 address 02:00:00:00:00:09"},
	{name: "the gateway's neighbour taken away", do: "ip neigh flush dev tun0 nud permanent"},
	{name: "the gateway port's MTU", do: "ip link set tun0 mtu 600"},
	{name: "the gateway port renamed", do: "ip link set tun0 down; ip link set tun0 name foo0; ip link set foo0 up"},
	{name: "the gateway port in a bridge of the kernel", do: "ip link add host2 type bridge; ip link set host2 up; ip link set tun0 master host2", undo: "ip link del host2", datapath: "netdev", needs: needsBridge},
	{name: "the gateway port's device deleted", do: "ip link del tun0", datapath: "netdev"},
	{name: "the gateway port in another network namespace", do: elsewhere("tun0")},
	{name: "the gateway port without a carrier", do: "ip link set tun0 carrier off", datapath: "netdev"},
	{name: "the gateway port with a queue of length 0", do: "ip link set tun0 txqueuelen 0"},
	{name: "the kernel's device of the tunnel renamed", do: "ip link set vxlan_sys_4789 down; ip link set vxlan_sys_4789 name foo1; ip link set foo1 up", datapath: "system"},
	{name: "the route to the pods replaced", do: "ip route replace 172.11.0.0/16 via $VIA || $SECOND"},
	{name: "a second route to the pods", do: "ip route add 172.11.0.0/17 via $VIA || $SECOND", undo: "ip route del 172.11.0.0/17 || true"},
	{name: "the gateway port without ARP", do: "ip link set tun0 arp off"},
	{name: "addresses of the machine's own on the gateway port", do: "ip addr add 192.0.2.9/24 dev tun0"},
	{name: "no forwarding", do: "sysctl -qw net.ipv4.ip_forward=0"},
	{name: "no forwarding by the gateway port", do: "sysctl -qw net.ipv4.conf.tun0.forwarding=0"},
	{name: "no forwarding by the uplink", do: "sysctl -qw net.ipv4.conf.$DEV.forwarding=0"},
	{name: "no forwarding by default, and ovs-vswitchd restarted", do: "sysctl -qw net.ipv4.conf.default.forwarding=0; " + kill + "; START", undo: "sysctl -qw net.ipv4.conf.default.forwarding=1"},
	{name: "strict reverse paths", do: "sysctl -qw net.ipv4.conf.all.rp_filter=1", undo: "sysctl -qw net.ipv4.conf.all.rp_filter=0"},
	{name: "another table's FORWARD policy", do: `nft 'add table ip docker; add chain ip docker f { type filter hook forward priority filter; policy drop; }'`, undo: "nft delete table ip docker || true"},
	{name: "another table drops what leaves", do: `nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 5; }; add rule inet fw f iifname tun0 drop'`, undo: "nft delete table inet fw || true"},
	{name: "another table lets only pods out", do: `nft 'add table ip docker; add chain ip docker f { type filter hook forward priority filter; policy drop; }; add rule ip docker f iifname tun0 accept'`, undo: "nft delete table ip docker || true"},
	{name: "another table drops what comes back", do: `nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 5; }; add rule inet fw f oifname tun0 drop'`, undo: "nft delete table inet fw || true"},
	{name: "another table drops answers as they come in", do: `nft "add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname $DEV ip protocol icmp drop; add rule ip fw p iifname $DEV udp dport != { 4789, 4790 } drop; add rule ip fw p iifname $DEV tcp sport < 1024 drop"`, undo: "nft delete table ip fw || true"},
	{name: "iptables' FORWARD policy", do: "iptables-legacy -P FORWARD DROP", undo: "iptables-legacy -P FORWARD ACCEPT"},
	{name: "iptables drops what comes back", do: "iptables-legacy -I FORWARD -o tun0 -j DROP", undo: "iptables-legacy -D FORWARD -o tun0 -j DROP"},
	{name: "iptables drops answers as they come in", do: "iptables-legacy -t raw -A PREROUTING -i $DEV -p icmp -j DROP; iptables-legacy -t raw -A PREROUTING -i $DEV -p udp -m multiport ! --dports 4789,4790 -j DROP; iptables-legacy -t raw -A PREROUTING -i $DEV -p tcp --sport 1:1023 -j DROP", undo: "iptables-legacy -t raw -F PREROUTING"},
	{name: "another table drops tunnels' packets that come in", says: "do not get in", do: `nft 'add table inet fw; add chain inet fw i { type filter hook input priority filter; }; add rule inet fw i udp dport 4789 drop'`, undo: "nft delete table inet fw || true", datapath: "system"},
	{name: "a firewall that lets in what it knows", says: "do not get in", do: `nft 'add table inet fw; add chain inet fw i { type filter hook input priority 10; policy drop; }; add rule inet fw i iifname { lo, tun0 } accept; add rule inet fw i ct state established,related accept; add rule inet fw i ip protocol icmp accept; add rule inet fw i tcp dport { 22, 2379, 6443 } accept'`, undo: "nft delete table inet fw || true", datapath: "system"},
	{name: "another table drops tunnels' packets that leave", says: "do not get out", do: `nft 'add table inet fw; add chain inet fw o { type filter hook output priority filter; }; add rule inet fw o udp dport 4789 drop'`, undo: "nft delete table inet fw || true", datapath: "system"},
	{name: "iptables refuses tunnels' packets", says: "do not get in", do: "iptables-legacy -A INPUT -p udp --dport 4789 -j REJECT", undo: "iptables-legacy -D INPUT -p udp --dport 4789 -j REJECT", datapath: "system"},
	{name: "another table drops what pods answer the node", says: "drops what comes in by tun0", do: `nft 'add table inet fw; add chain inet fw i { type filter hook input priority 5; }; add rule inet fw i iifname tun0 drop'`, undo: "nft delete table inet fw || true"},
	{name: "another table drops what the node sends to pods", says: "keep back what leaves by tun0", do: `nft 'add table inet fw; add chain inet fw o { type filter hook output priority 5; }; add rule inet fw o oifname tun0 drop'`, undo: "nft delete table inet fw || true"},
	{name: "another table lets pods begin nothing with the node", do: `nft 'add table inet fw; add chain inet fw i { type filter hook input priority 5; }; add rule inet fw i iifname tun0 ct state new drop'`, undo: "nft delete table inet fw || true"},
	{name: "iptables drops what pods answer the node", says: "drops what comes in by tun0", do: "iptables-legacy -I INPUT -i tun0 -j DROP", undo: "iptables-legacy -D INPUT -i tun0 -j DROP"},
	{name: "iptables drops what the node sends to pods", says: "keep back what leaves by tun0", do: "iptables-legacy -I OUTPUT -o tun0 -j DROP", undo: "iptables-legacy -D OUTPUT -o tun0 -j DROP"},
	{name: "iptables' INPUT policy", says: "drops what comes in by tun0", do: "iptables-legacy -P INPUT DROP", undo: "iptables-legacy -P INPUT ACCEPT", datapath: "netdev"},
	{name: "the route to another node refused", says: "no route to", do: "ip route add blackhole $PEER || $SECOND", undo: "ip route del blackhole $PEER || true"},
	{name: "a routing rule that refuses the other nodes", says: "no route to", do: "ip rule add to $PEER priority 40 prohibit", undo: "ip rule del priority 40"},
	{name: "the firewall flushed", do: "nft flush ruleset"},
	{name: "the agent's table deleted", do: "nft delete table ip k8s-ovs || $SECOND"},
	{name: "the agent's table asleep", do: `nft 'add table ip k8s-ovs { flags dormant; }'`},
	{name: "the table of limited connections asleep", do: `nft 'add table ip k8s-ovs-fair { flags dormant; }'`},
	{name: "IPv6 on all devices", do: "sysctl -qw net.ipv6.conf.all.disable_ipv6=0"},
	{name: "a routing rule that swallows pods' packets", do: "ip rule add iif tun0 priority 50 blackhole", undo: "ip rule del priority 50"},
	{name: "a route to the upper part of the node's pods", says: "by host9", do: hostDevice + `ip route add ` + upper + ` dev host9 || $SECOND`, undo: "ip link del host9 || true", needs: needsBridge},
	{name: "a network of the machine's own among the node's pods", says: "by host9", do: hostDevice + `ip addr add ` + upper + ` dev host9 || $SECOND`, undo: "ip link del host9 || true", needs: needsBridge},
	{name: "a routing rule for the upper part of the node's pods", says: "ip rule", do: hostDevice + `ip route add default dev host9 table 99; ip rule add to ` + upper + ` priority 50 lookup 99`, undo: "ip rule del priority 50; ip link del host9 || true", needs: needsBridge},
	{name: "the pod's host end down", do: "ip link set $POD down"},
	{name: "the pod's host end merges packets that it receives", do: "ethtool -K $POD gro on"},
	{name: "the pod's host end with another MTU", do: "ip link set $POD mtu 600"},
	{name: "the pod's host end deleted", do: "ip link del $POD"},
	{name: "the pod's host end in another namespace", do: elsewhere("$POD")},
	{name: "the pod's host end renamed", do: "ip link set $POD down; ip link set $POD name foo; ip link set foo up"},
	{name: "the pod's host end in a bridge of the kernel", do: "ip link add host1 type bridge; ip link set host1 up; ip link set $POD master host1", undo: "ip link del host1", datapath: "netdev", needs: needsBridge},
	{name: "the pod's host end forwards", do: "sysctl -qw net.ipv4.conf.$POD.forwarding=1"},
	{name: "spanning tree", do: "ovs-vsctl set bridge br0 stp_enable=true"},
	{name: "rapid spanning tree", do: "ovs-vsctl set bridge br0 rstp_enable=true"},
	{name: "OpenFlow 1.0 alone", do: "ovs-vsctl set bridge br0 protocols=OpenFlow10"},
	{name: "a limit of flows", do: "ovs-vsctl -- --id=@t create flow_table flow_limit=2 overflow_policy=evict -- set bridge br0 flow_tables:0=@t"},
	{name: "what the pod's port takes limited", do: "ovs-vsctl set interface $POD ingress_policing_rate=10 ingress_policing_burst=1"},
	{name: "packets that the pod's port takes limited", do: "ovs-vsctl set interface $POD ingress_policing_kpkts_rate=1 ingress_policing_kpkts_burst=1"},
	{name: "packets that the gateway port takes limited", do: "ovs-vsctl set interface tun0 ingress_policing_kpkts_rate=1 ingress_policing_kpkts_burst=1"},
	{name: "what the gateway port takes limited", do: "ovs-vsctl set interface tun0 ingress_policing_rate=10 ingress_policing_burst=1"},
	{name: "what the tunnel port takes limited", do: "ovs-vsctl set interface vxlan0 ingress_policing_rate=10 ingress_policing_burst=1"},
	{name: "the pod's port with a queue of Open vSwitch", do: "ovs-vsctl -- --id=@q create qos type=linux-htb other-config:max-rate=10000 -- set port $POD qos=@q"},
	{name: "the gateway port with a queue of Open vSwitch", do: "ovs-vsctl -- --id=@q create qos type=linux-htb other-config:max-rate=10000 -- set port tun0 qos=@q"},
	{name: "a queueing discipline on the pod's host end", do: "tc qdisc replace dev $POD root tbf rate 1kbit burst 1540 latency 1ms"},
	{name: "a queueing discipline on the gateway port", do: "tc qdisc replace dev tun0 root tbf rate 1kbit burst 1540 latency 1ms"},
	{name: "a queueing discipline without room on the gateway port", do: "tc qdisc replace dev tun0 root pfifo limit 0"},
	{name: "a queueing discipline on the kernel's device of the tunnel", do: "tc qdisc replace dev vxlan_sys_4789 root tbf rate 1kbit burst 1540 latency 1ms", datapath: "system"},
	{name: "the pod's port in a VLAN", do: "ovs-vsctl set port $POD tag=5"},
	{name: "the gateway port in a VLAN", do: "ovs-vsctl set port tun0 tag=5"},
	{name: "the pod's port with another number", do: "ovs-vsctl set interface $POD ofport_request=999"},
	{name: "the gateway port with another number", do: "ovs-vsctl set interface tun0 ofport_request=999"},
	{name: "somebody's port in the overlay's bridge", do: "ovs-vsctl add-port br0 stray0 -- set interface stray0 type=internal", undo: "ovs-vsctl del-port stray0"},
	{name: "somebody's port with the next pod's number", do: "ovs-vsctl add-port br0 stray0 -- set interface stray0 type=internal ofport_request=14", undo: "ovs-vsctl --if-exists del-port stray0"},
	{name: "somebody's port with the gateway port's number", do: "ovs-vsctl del-port tun0 -- add-port br0 stray0 -- set interface stray0 type=internal ofport_request=2", undo: "ovs-vsctl --if-exists del-port stray0"},
	{name: "somebody's port with the tunnel port's number", do: "ovs-vsctl del-port vxlan0 -- add-port br0 stray0 -- set interface stray0 type=internal ofport_request=1", undo: "ovs-vsctl --if-exists del-port stray0"},
	{name: "the pod's port without its name", do: "ovs-vsctl clear interface $POD external_ids"},
	{name: "the pod's port with another tenant's name", do: "ovs-vsctl set interface $POD external_ids:k8s-ovs-namespace=blue external_ids:k8s-ovs-address=172.11.0.77"},
	{name: "the overlay's bridge without its mark", do: "ovs-vsctl clear bridge br0 external_ids"},
	{name: "the overlay's bridge with another address", do: "ovs-vsctl set bridge br0 other_config:hwaddr=02:00:00:00:00:99"},
	{name: "the pod's port of another type", do: "ovs-vsctl set interface $POD type=internal"},
	{name: "the pod's port made a tunnel of VXLAN", do: "ovs-vsctl set interface $POD type=vxlan options:remote_ip=10.9.9.9"},
	{name: "the pod's port made a tunnel of GRE", do: "ovs-vsctl set interface $POD type=gre options:remote_ip=10.9.9.9"},
	{name: "the pod's port made a patch", do: "ovs-vsctl set interface $POD type=patch options:peer=x"},
	{name: "the pod's port asks for an MTU", do: "ovs-vsctl set interface $POD mtu_request=600"},
	{name: "the uplink without checksums", do: "ethtool -K $UPLINK tx off"},
	{name: "another fail mode", do: "ovs-vsctl set-fail-mode br0 standalone"},
	{name: "no fail mode", do: "ovs-vsctl del-fail-mode br0"},
	{name: "a manager of Open vSwitch outside", do: "ovs-vsctl set-manager tcp:10.0.0.5:6640", undo: "ovs-vsctl del-manager"},
	{name: "a controller of the overlay's bridge", do: "ovs-vsctl set-controller br0 tcp:10.0.0.5:6653"},
	{name: "a mirror into the pod's port", do: "ovs-vsctl -- --id=@p get port $POD -- --id=@m create mirror name=m select_all=true output_port=@p -- set bridge br0 mirrors=@m"},
	{name: "the pod's port without packets", do: "ovs-ofctl mod-port br0 $POD no-forward"},
	{name: "the tunnel port without packets", do: "ovs-ofctl mod-port br0 vxlan0 no-receive"},
	{name: "fragments dropped", do: "ovs-ofctl set-frags br0 drop"},
	{name: "all flows deleted", do: "ovs-ofctl del-flows br0"},
	{name: "the tunnel port deleted", do: "ovs-vsctl del-port vxlan0"},
	{name: "the gateway port deleted", do: "ovs-vsctl del-port tun0"},
	{name: "the pod's port deleted", do: "ovs-vsctl del-port $POD"},
	{name: "the kernel's device of the tunnel down", do: "ip link set vxlan_sys_4789 down", datapath: "system"},
	{name: "the kernel's device of the tunnel deleted", do: "ip link del vxlan_sys_4789 || $SECOND", datapath: "system"},
	{name: "the kernel's device of the tunnel with the least MTU", do: "ip link set vxlan_sys_4789 mtu 68 || $SECOND", datapath: "system"},
	{name: "the kernel's device of the tunnel without a carrier", do: "ip link set vxlan_sys_4789 protodown on", datapath: "system"},
	{name: "somebody's tunnel to another node", says: "vx9", do: "ovs-vsctl add-port br0 vx9 -- set interface vx9 type=vxlan options:remote_ip=$PEER options:key=flow", undo: "ovs-vsctl --if-exists del-port vx9"},
	{name: "a bridge of somebody's with a tunnel to another node", says: "vx9", do: "ovs-vsctl add-br br9 -- set bridge br9 datapath_type=$(ovs-vsctl get bridge br0 datapath_type) -- add-port br9 vx9 -- set interface vx9 type=vxlan options:remote_ip=$PEER options:key=flow", undo: "ovs-vsctl --if-exists del-br br9"},
	{name: "the tunnel's options changed", do: "ovs-vsctl set interface vxlan0 options:dst_port=4799 options:remote_ip=198.18.0.99"},
	{name: "the overlay's bridge deleted", do: "ovs-vsctl del-br br0"},
	{name: "the underlay's bridge deleted", do: "ovs-vsctl del-br br-phy", datapath: "netdev"},
	{name: "the underlay's bridge deleted while ovs-vswitchd is away", do: kill + "; ovs-vsctl --no-wait del-br br-phy; START", datapath: "netdev"},
	{name: "the device of the underlay's bridge deleted", do: "ip link del br-phy", datapath: "netdev"},
	{name: "the device of the underlay's bridge in another network namespace", do: elsewhere("br-phy"), datapath: "netdev"},
	{name: "the device of the underlay's bridge renamed", do: "ip link set br-phy down; ip link set br-phy name foo2", datapath: "netdev"},
	{name: "the device of the underlay's bridge without a carrier", do: "ip link set br-phy carrier off", datapath: "netdev"},
	{name: "the device of the underlay's bridge with a queue of length 0", do: "ip link set br-phy txqueuelen 0", datapath: "netdev"},
	{name: "the underlay's bridge of the kernel datapath", do: "ovs-vsctl --no-wait set bridge br-phy datapath_type=system", datapath: "netdev"},
	{name: "the uplink in a VLAN", says: "does not get out by its uplink", do: "ovs-vsctl set port $UPLINK tag=5", undo: "ovs-vsctl clear port $UPLINK tag", datapath: "netdev"},
	{name: "the uplink with some VLANs", says: "does not get out by its uplink", do: "ovs-vsctl set port $UPLINK trunks=5", undo: "ovs-vsctl clear port $UPLINK trunks", datapath: "netdev"},
	{name: "the node's address in a VLAN where nobody is", says: "nobody is heard there", do: "ovs-vsctl set port br-phy tag=5", undo: "ovs-vsctl clear port br-phy tag", datapath: "netdev"},
	{name: "a mirror into the uplink", says: "mirror", do: "ovs-vsctl -- --id=@p get port $UPLINK -- --id=@m create mirror name=m select_all=true output_port=@p -- set bridge br-phy mirrors=@m", undo: "ovs-vsctl clear bridge br-phy mirrors", datapath: "netdev"},
	{name: "a controller of the underlay's bridge", do: "ovs-vsctl set-controller br-phy tcp:10.0.0.5:6653", undo: "ovs-vsctl del-controller br-phy", datapath: "netdev"},
	{name: "a flow of the underlay's bridge that drops tunnels' packets", says: "for the node does not get to it", do: "ovs-ofctl add-flow br-phy priority=9,in_port=$UPLINK,udp,tp_dst=4789,actions=drop", undo: "ovs-ofctl del-flows br-phy in_port=$UPLINK,udp", datapath: "netdev"},
	{name: "all flows of the underlay's bridge deleted", do: "ovs-ofctl del-flows br-phy", datapath: "netdev"},
	{name: "the underlay's bridge without packets of the uplink", do: "ovs-ofctl mod-port br-phy $UPLINK no-receive", datapath: "netdev"},
	{name: "the underlay's bridge with its uplink down", do: "ovs-ofctl mod-port br-phy $UPLINK down", undo: "ovs-ofctl mod-port br-phy $UPLINK up", datapath: "netdev"},
	{name: "spanning tree in the underlay's bridge", do: "ovs-vsctl set bridge br-phy stp_enable=true", datapath: "netdev"},
	{name: "rapid spanning tree in the underlay's bridge", do: "ovs-vsctl set bridge br-phy rstp_enable=true", datapath: "netdev"},
	{name: "the uplink taken out of its bridge", do: "ovs-vsctl del-port br-phy $UPLINK", datapath: "netdev"},
	{name: "ovs-vswitchd restarted", do: kill + "; START"},
	{name: "ovs-vsctl emer-reset", do: "ovs-vsctl emer-reset"},
	{name: "the CNI socket deleted", do: "rm -f $SOCKET"},
	{name: "the CNI socket and its lock deleted", do: "rm -f $SOCKET $SOCKET.lock"},
	{
		name: "another network's CNI configuration before ours", says: "10-aaa.conflist",
		do: `echo '{"cniVersion":"1.0.0","name":"aaa","plugins":[{"type":"bridge"}]}' > $CONF/10-aaa.conflist`, undo: "rm -f $CONF/10-aaa.conflist",
	},
	{name: "our CNI configuration emptied", do: ": > $CONF/10-k8s-ovs.conflist"},
	{name: "our CNI configuration cut short", do: "echo '{' > $CONF/10-k8s-ovs.conflist"},
	{name: "our CNI configuration deleted", do: "rm -f $CONF/10-k8s-ovs.conflist"},
}

// elsewhere moves a device to a network namespace that ends with all that is in it a minute later.
func elsewhere(device string) string {
	return "unshare -n sleep 60 >/dev/null 2>&1 & while [ $(readlink /proc/$!/ns/net) = $(readlink /proc/self/ns/net) ]; do sleep 0.05; done; ip link set " + device + " netns $!"
}

// outOfDatapath takes a port out of a datapath, which ovs-vswitchd believes to have it.
func outOfDatapath(port string) string {
	return "ovs-appctl -t $OVS_RUNDIR/ovs-vswitchd.ctl dpctl/del-if " + port + " || $SECOND"
}

// moved has another device, which leads out by eth0, carry the node's address and its
// default route.
func moved(what, device, needs, make string) change {
	to := make + "; ip addr flush dev eth0; ip link set " + device + " up; ip addr add $ADDR dev " + device + "; ip route replace default via $VIA"
	back := "ip link del " + device + "; if tc qdisc show dev eth0 | grep -q clsact; then tc qdisc del dev eth0 clsact; fi; ip link set eth0 up; ip addr add $ADDR dev eth0; ip route replace default via $VIA"
	return change{name: "the node's address moved to " + what, do: to, undo: back, datapath: "system", needs: needs}
}

// moments are the changes that are undone, undone at once: what went is back before
// anybody could look.
func moments(cs []change) (out []change) {
	for _, c := range cs {
		if c.undo != "" {
			out = append(out, change{name: c.name + ", for a moment", do: c.do + "; " + c.undo, datapath: c.datapath, needs: c.needs})
		}
	}
	return out
}
