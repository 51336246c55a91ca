// Package netlab runs the real programs of k8s-ovs on several "nodes" of one
// machine: each node is a network namespace with an Open vSwitch of its own,
// pods are further namespaces that the CNI plugin is called for as a
// container runtime calls it, and the records are in a real etcd.
//
//	LAB-n1            LAB-n2          LAB-ctl: controller, etcd
//	OVS, agent        OVS, agent      198.18.0.250
//	eth0 198.18.0.1   eth0 198.18.0.2   eth0
//	   |                 |                |
//	   +------ LAB-underlay: bridge -----+   198.18.0.254, the default gateway;
//	                                         203.0.113.1, the world outside
//
// With [Options.Members] etcd is a cluster of its own, with a machine for each member:
// LAB-etcd-1 at 198.18.0.241, and so on.
//
// Nothing of it shows in the namespace it is started from, except one
// listener on 127.0.0.1 that leads to etcd. What it starts is marked and
// recorded below /run/netlab/LAB; nothing else is ever signalled or removed. The
// machine's own Open vSwitch is not touched.
package netlab
