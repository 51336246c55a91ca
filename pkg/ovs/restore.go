package ovs

import (
	"context"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// Keys of other_config of the Open_vSwitch row.
const (
	// keyRestoreWait has an ovs-vswitchd that starts leave the datapath as it finds it, until
	// flows are there again (ovs-vswitchd.conf.db(5)): what is cached goes on, and what is not
	// is dropped. Once it has read that it need not wait, it does not look again.
	keyRestoreWait = "flow-restore-wait"
	// keyRestoreOurs says that start-ovs-vswitchd has asked for that, for whom the bridge is the
	// agent's.
	keyRestoreOurs = "k8s-ovs-restoring"
)

// RestoreWait reports whether ovs-vswitchd waits for flows, and whether it is for the agent
// alone to end that. Others that may have asked for it are Open vSwitch's own scripts.
func (c *Client) RestoreWait() (waits, ours bool) {
	s, err := c.session()
	if err != nil {
		return false, false
	}
	root := s.ovs()
	if root == nil || root.OtherConfig[keyRestoreWait] != "true" {
		return false, false
	}
	return true, root.OtherConfig[keyRestoreOurs] == "true"
}

// EndRestoreWait has ovs-vswitchd forget what the datapath cached, and forward by its flows.
// It returns when the database has it; ovs-vswitchd follows as soon as it reads that.
func (c *Client) EndRestoreWait(ctx context.Context) error {
	s, err := c.session()
	if err != nil {
		return err
	}
	ops := s.endRestoreWait()
	if len(ops) == 0 {
		return nil
	}
	_, err = s.transact(ctx, "ending "+keyRestoreWait, ops)
	return err
}

// endRestoreWait is what ends it. Each transaction that adds a port has it: in the datapath a
// new port gets the number of one that is gone, and what is cached still leads there.
// ovs-vswitchd forgets that before it adds ports.
func (s *session) endRestoreWait() []ovsdb.Operation {
	root := s.ovs()
	if root == nil {
		return nil
	}
	return []ovsdb.Operation{mutate(tableOVS, root.UUID, deleteKeys("other_config", []string{keyRestoreWait, keyRestoreOurs}))}
}
