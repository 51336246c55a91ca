// Package openflow speaks OpenFlow 1.4 (wire version 0x05) with the Nicira
// extensions of Open vSwitch to one bridge, over the bridge's management socket
// (<rundir>/<bridge>.mgmt).
//
// It owns the types of flows, groups and meters, their form on the wire and
// their form as text (that of ovs-ofctl), and the connection: matching replies
// to requests, atomic ordered bundles, keepalive. What is read back from the
// switch compares equal with what was written; what it does not understand is
// kept as bytes, equal to nothing typed, so that a comparison of desired with
// actual never overlooks it.
//
// It never decides which flows there should be, and never reconnects: who holds
// a [Conn] waits on [Conn.Done] and dials again.
package openflow
