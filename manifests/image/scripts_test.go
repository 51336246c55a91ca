package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// TestAwaitRelease: Open vSwitch ends at once where no bridge has the node's address, and waits for the agent to give it back where one
// has; nor does it wait where the database does not answer.
func TestAwaitRelease(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can have a directory at /run/openvswitch that is this test's alone")
	}
	o := ovstest.Start(t)
	o.AddBridge("br-phy", "dummy")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	start := func() (ended <-chan error, said *bytes.Buffer) {
		// As its container has them: mounts of its own, and the node's directory of Open vSwitch.
		c := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-ec", "mount -t tmpfs tmpfs /run; mkdir /run/openvswitch; mount --bind "+o.RunDir+" /run/openvswitch; exec sh await-release")
		said = &bytes.Buffer{}
		c.Stdout, c.Stderr = said, said
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- c.Wait() }()
		return done, said
	}
	ended, said := start()
	if err := <-ended; err != nil {
		t.Errorf("no bridge has the node's address: %v: %s", err, said)
	}
	o.VSCtl("set", "bridge", "br-phy", "external_ids:k8s-ovs-uplink=eth0")
	ended, said = start()
	select {
	case err := <-ended:
		t.Errorf("it does not wait for the agent: %v: %s", err, said)
	case <-time.After(2 * time.Second):
		o.VSCtl("remove", "bridge", "br-phy", "external_ids", "k8s-ovs-uplink")
		if err := <-ended; err != nil {
			t.Errorf("the agent gave it back: %v: %s", err, said)
		}
	}
	o.KillOVSDB()
	ended, said = start()
	if err := <-ended; err == nil || said.Len() == 0 {
		t.Errorf("the database is away: %v: %s", err, said)
	}
}
