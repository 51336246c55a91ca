package plugin

import (
	"bytes"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// FuzzConf gives the plugin any configuration, CNI_ARGS and netns, as skel
// would after its own checks: it must not panic, and what it sends must be valid.
func FuzzConf(f *testing.F) {
	commands := []cniapi.Command{cniapi.Add, cniapi.Del, cniapi.Check, cniapi.GC, cniapi.Status}
	for i := range commands {
		f.Add(byte(i), []byte(`{"cniVersion":"1.1.0","name":"n","socket":"/s","dns":{},"runtimeConfig":{"bandwidth":{"ingressRate":1}},"cni.dev/valid-attachments":[]}`), podArgsEnv, "/var/run/netns/x")
		f.Add(byte(i), []byte(`{"cniVersion":"0.4.0","name":"n","prevResult":{"interfaces":[{"name":"eth0"}],"ips":[{"version":"4","address":"1.2.3.4/32","interface":0}]}}`), "", "")
		f.Add(byte(i), []byte(`{"cniVersion":"1.0.0","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"::1/128","gateway":"x"},null]},"cni.dev/attachments":null}`), ";=;a=b=c", "x")
		f.Add(byte(i), []byte(`{"cniVersion":"0.2.0","prevResult":{"ip4":{"ip":"1.2.3.4/8","routes":[{"dst":"0.0.0.0/0"}]}}}`), "K8S_POD_NAME", "/\x00")
	}
	f.Fuzz(func(t *testing.T, which byte, conf []byte, args, netns string) {
		cmd := commands[int(which)%len(commands)]
		c, req, err := load(cmd, &skel.CmdArgs{ContainerID: "c1", IfName: "eth0", Netns: netns, Args: args, StdinData: conf})
		if err != nil {
			if e := cniapi.AsError(err); e.Code == cniapi.CodeInternal {
				t.Errorf("bad input is called a defect: %v", err)
			}
			return
		}
		if !strings.HasPrefix(c.Socket, "/") {
			t.Errorf("accepted socket %q", c.Socket)
		}
		if err := req.Validate(); err != nil {
			t.Errorf("load made an invalid request: %v", err)
		}
		if cmd == cniapi.Add {
			// Any version that skel lets through has a result.
			var out bytes.Buffer
			if err := printResult(&out, *result(req), c); err == nil && out.Len() == 0 {
				t.Error("no result printed")
			}
		}
	})
}
