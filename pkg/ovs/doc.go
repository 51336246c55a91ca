// Package ovs configures Open vSwitch through its database (OVSDB, RFC 7047):
// bridges, ports and their queues. It owns the connection to ovsdb-server and
// is the only user of libovsdb in the project.
//
// It never deletes and recreates what it can mend, never writes a column it was
// not asked to write, and never executes a program. Flows are not its
// business: they go over OpenFlow.
package ovs
