package ovs

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestProcessID(t *testing.T) {
	c, o, _ := start(t)
	pid, err := c.ProcessID(within(t))
	if err != nil {
		t.Fatal(err)
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.HasPrefix(string(command), "ovs-vswitchd\x00") || !strings.Contains(string(command), o.RunDir) {
		t.Errorf("process %d is %q (%v), not ovs-vswitchd in %s", pid, command, err, o.RunDir)
	}
	o.KillVswitchd()
	if pid, err := c.ProcessID(within(t)); err == nil {
		t.Errorf("dead, and it is process %d", pid)
	}
}
