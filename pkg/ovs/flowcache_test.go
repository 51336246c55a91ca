package ovs

import "testing"

func TestParseFlowCache(t *testing.T) {
	const out = "netdev@ovs-netdev:\n  flows         : (current 3) (avg 4) (max 5) (limit 10000)\n  dump duration : 1ms\n  ufid enabled : true\n\n" +
		"system@ovs-system:\n  flows         : (current 19000) (avg 2) (max 20001) (limit 200000)\n  offloaded flows : 7\n"
	for dpif, want := range map[string]FlowCache{"netdev@ovs-netdev": {Flows: 3, Limit: 10000}, "system@ovs-system": {Flows: 19000, Limit: 200000}} {
		if got, ok := parseFlowCache(out, dpif); !ok || got != want {
			t.Errorf("%s: %+v, %t; want %+v", dpif, got, ok, want)
		}
	}
	if got, ok := parseFlowCache(out, "netdev@other"); ok {
		t.Errorf("of a datapath that is not there: %+v", got)
	}
}
