package topology

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// byValue compares addresses and prefixes as they are, not by their fields.
var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

const goodConfig = `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}`

func TestParseConfig(t *testing.T) {
	got, err := ParseConfig([]byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(DefaultConfig(), got, byValue); diff != "" {
		t.Errorf("the ancestor's record (-want +got):\n%s", diff)
	}
	data, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != goodConfig {
		t.Errorf("written as %s\nwant       %s", data, goodConfig)
	}
	if got.NodeBits() != 22 || got.Single() {
		t.Errorf("NodeBits %d, Single %v; want 22, false", got.NodeBits(), got.Single())
	}
}

// A record says a port or does not, and is written as it was read.
func TestConfigVXLANPort(t *testing.T) {
	said := strings.TrimSuffix(goodConfig, "}") + `,"VXLANPort":8472}`
	for record, want := range map[string]tunnel.Port{goodConfig: 0, said: 8472} {
		c, err := ParseConfig([]byte(record))
		if err != nil {
			t.Fatal(err)
		}
		if c.VXLANPort != want {
			t.Errorf("%s: port %d, want %d", record, c.VXLANPort, want)
		}
		data, err := json.Marshal(c)
		if err != nil || string(data) != record {
			t.Errorf("written as %s, %v\nwant       %s", data, err, record)
		}
	}
	for _, value := range []string{"65536", "-1", `"8472"`} {
		record := strings.Replace(said, "8472", value, 1)
		if _, err := ParseConfig([]byte(record)); err == nil || !strings.Contains(err.Error(), "VXLANPort") {
			t.Errorf("%s: error %v, want one that names the field", record, err)
		}
	}
}

// A network may have one network of each family. A record that says so is read, kept as it is,
// and refused as long as nobody serves IPv6; so is one that contradicts itself.
func TestConfigLists(t *testing.T) {
	for more, say := range map[string]string{
		`,"Networks":["172.11.0.0/16"],"ServiceNetworks":["10.96.0.0/12"]`: "",
		`,"Networks":["172.11.0.0/16","fd00:1:2::/48"]`:                    "Networks has fd00:1:2::/48: its address fd00:1:2:: is not IPv4, and this release serves no other; take it out",
		`,"ServiceNetworks":["10.96.0.0/12","fd00:9::/108"]`:               "ServiceNetworks has fd00:9::/108",
		`,"Networks":["172.12.0.0/16","fd00:1:2::/48"]`:                    "Networks: the list begins with 172.12.0.0/16 and not with 172.11.0.0/16",
		`,"Networks":["172.11.0.0/16","172.12.0.0/16"]`:                    "are not one of IPv4 and then one of IPv6",
		`,"Networks":["172.11.0.0/16","fd00:1:2::1/48"]`:                   "Networks fd00:1:2::1/48 has bits set",
		`,"Networks":["172.11.0.0/16",""]`:                                 "Networks is missing",
	} {
		record := strings.TrimSuffix(goodConfig, "}") + more + "}"
		var c Config
		if err := json.Unmarshal([]byte(record), &c); err != nil {
			t.Fatal(err)
		}
		if data, err := json.Marshal(c); err != nil || string(data) != record {
			t.Errorf("written as %s, %v\nwant       %s", data, err, record)
		}
		if _, err := ParseConfig([]byte(record)); (err == nil) != (say == "") || err != nil && !strings.Contains(err.Error(), say) {
			t.Errorf("%s: error %v, want %q", more, err, say)
		}
	}
}

// Two configurations are the same when all their fields are.
func TestConfigEqual(t *testing.T) {
	full := func() Config {
		c := DefaultConfig()
		c.VXLANPort, c.Networks, c.ServiceNetworks, c.Rest = 8472, []netip.Prefix{c.Network}, []netip.Prefix{c.ServiceNetwork}, `"Color":"red"`
		return c
	}
	if !full().Equal(full()) {
		t.Error("one is not the same as itself")
	}
	fields := reflect.TypeFor[Config]().NumField()
	for i := range fields {
		c := full()
		reflect.ValueOf(&c).Elem().Field(i).SetZero()
		if c.Equal(full()) {
			t.Errorf("another %s is not seen", reflect.TypeFor[Config]().Field(i).Name)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		say    string
	}{
		"no name":             {func(c *Config) { c.Name = "" }, "Name is empty"},
		"slash in name":       {func(c *Config) { c.Name = "a/b" }, `may not contain '/'`},
		"newline in name":     {func(c *Config) { c.Name = "a\nb" }, `may not contain '\n'`},
		"no network":          {func(c *Config) { c.Network = netip.Prefix{} }, "Network is missing"},
		"IPv6":                {func(c *Config) { c.Network = netip.MustParsePrefix("fd00::/48") }, "not IPv4"},
		"host bits in prefix": {func(c *Config) { c.Network = netip.MustParsePrefix("172.11.0.1/16") }, "did you mean 172.11.0.0/16?"},
		"everything":          {func(c *Config) { c.Network = netip.MustParsePrefix("0.0.0.0/0") }, "cannot hold"},
		"multicast":           {func(c *Config) { c.ServiceNetwork = netip.MustParsePrefix("224.0.0.0/8") }, "cannot hold"},
		"overlap":             {func(c *Config) { c.ServiceNetwork = netip.MustParsePrefix("172.11.4.0/24") }, "overlaps"},
		"one host bit":        {func(c *Config) { c.HostSubnetLength = 1 }, "is not 2 to 16"},
		"too many host bits":  {func(c *Config) { c.HostSubnetLength = 17 }, "is not 2 to 16"},
		"plugin":              {func(c *Config) { c.PluginName = "flannel" }, `"flannel" is neither`},
	} {
		t.Run(name, func(t *testing.T) {
			c := DefaultConfig()
			test.change(&c)
			if err := c.Validate(); err == nil || !strings.Contains(err.Error(), test.say) {
				t.Errorf("error %v, want one with %q", err, test.say)
			}
		})
	}
	if _, err := ParseConfig([]byte(`{"Network":5}`)); err == nil || !strings.Contains(err.Error(), "not valid JSON") {
		t.Errorf("error %v", err)
	}
	c := DefaultConfig()
	c.HostSubnetLength = 16
	if err := c.Validate(); err != nil {
		t.Errorf("one subnet for all: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte(`{"Name":"x","Network":"10.0.0.0/8","HostSubnetLength":8,"ServiceNetwork":"172.30.0.0/16","PluginName":"k8s-ovs-subnet","VXLANPort":8472}`))
	f.Add([]byte(`{"Name":"x","Network":"10.0.0.0/8","HostSubnetLength":-3}`))
	f.Add([]byte(`{"Name":"x","Network":"::/0"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			return
		}
		if c.NodeBits() < c.Network.Bits() || c.NodeBits() > 30 {
			t.Errorf("node subnets of /%d in %s", c.NodeBits(), c.Network)
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		c2, err := ParseConfig(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if !c2.Equal(c) {
			t.Errorf("%+v became %+v", c, c2)
		}
	})
}
