// Package nstest makes network namespaces for tests.
package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

var made atomic.Int32

// New makes a namespace that goes with the test, and returns its name.
func New(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("nstest-%d-%d", os.Getpid(), made.Add(1))
	if err := ns.Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Delete(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// Run runs a command line in a namespace, by iproute2: the second opinion. It returns
// what the command prints; one that fails ends the test.
func Run(t testing.TB, name, command string) string {
	t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", name}, strings.Fields(command)...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}
