package underlay

import (
	"strings"
	"testing"
)

func TestChooseDatapath(t *testing.T) {
	both, user := []string{"netdev", "system"}, []string{"netdev"}
	tests := []struct {
		name    string
		want    string
		types   []string
		kernel  bool
		inUse   string
		choice  string
		wayOut  string // part of the error
		refused bool
	}{
		{name: "kernel preferred", want: "auto", types: both, kernel: true, choice: "system"},
		{name: "module missing", want: "auto", types: both, choice: "netdev"},
		{name: "built without", want: "auto", types: user, kernel: true, choice: "netdev"},
		{name: "empty is auto", want: "", types: both, kernel: true, choice: "system"},
		{name: "module came while pods are attached", want: "auto", types: both, kernel: true, inUse: "netdev", choice: "netdev"},
		{name: "pods in the kernel's", want: "auto", types: both, kernel: true, inUse: "system", choice: "system"},
		{name: "asked for while pods are attached", want: "system", types: both, kernel: true, inUse: "netdev", choice: "system"},
		{name: "nothing", want: "auto", refused: true, wayOut: "modprobe openvswitch"},
		{name: "netdev although system could", want: "netdev", types: both, kernel: true, choice: "netdev"},
		{name: "system", want: "system", types: both, kernel: true, choice: "system"},
		{name: "system without module", want: "system", types: both, refused: true, wayOut: "modprobe openvswitch"},
		{name: "system not built in", want: "system", types: user, kernel: true, refused: true, wayOut: "--datapath netdev"},
		{name: "netdev not built in", want: "netdev", types: []string{"system"}, kernel: true, refused: true, wayOut: "--datapath system"},
		{name: "nonsense", want: "dpdk", types: both, kernel: true, refused: true, wayOut: "auto, system, netdev"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ChooseDatapath(tt.want, tt.types, tt.kernel, tt.inUse)
			if tt.refused != (err != nil) || got != tt.choice {
				t.Fatalf("ChooseDatapath = %q, %v; want %q, refused %t", got, err, tt.choice, tt.refused)
			}
			if err != nil && !strings.Contains(err.Error(), tt.wayOut) {
				t.Errorf("error %q does not show the way out %q", err, tt.wayOut)
			}
		})
	}
}
