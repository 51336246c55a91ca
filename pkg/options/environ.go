package options

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/pkg/options/near"
)

// flags are those of all programs of k8s-ovs, by program, without those that all have.
// Programs share an environment: what one does not know may be another's. Each program
// has a test that these are its flags.
var flags = map[string][]string{
	"k8s-ovs-agent": {
		"bandwidth-policy", "bridge", "cni-bin-dir", "cni-conf-dir", "cni-conf-file", "cni-conf-template", "cni-plugins-from", "cni-socket", "daemonset", "datapath", "exit-check", "log-format", "log-level", "log-policy-drops",
		"max-pods-per-namespace", "metrics-address", "mtu", "mtu-on-blackhole", "mtu-probe-interval", "mtu-probe-port", "node-connection-rate", "node-ip", "node-name", "ovs-db", "ovs-rundir", "profiling",
		"public-services", "service-connection-rate", "service-proxy", "state-dir", "tunnel-check", "uplink-rate", "version", "vtep-bridge", "vxlan-port",
	},
	"k8s-ovs-controller": {
		"agent-service-account", "certificate-lifetime", "data-dir", "embedded-etcd", "global-namespaces", "host-subnet-length", "id", "insecure-listen-http", "leader-ttl", "listen-client-cacert", "listen-client-cert",
		"listen-client-key", "listen-client-urls", "log-format", "log-level", "metrics-address", "name", "network", "node-ip", "plugin-name", "pod", "profiling",
		"service-network", "subnet-source", "version", "vxlan-port",
	},
	"netns": {"cluster-policy", "data-dir", "dry-run", "force", "no-wait", "output", "policy", "timeout", "verbose", "withdraw", "yes"},
}

// FlagsOf are the names of a program's flags, in order; the program's own test
// compares them with what it registers.
func FlagsOf(program string) []string {
	fs := pflag.NewFlagSet(program, pflag.ContinueOnError)
	AddConfig(fs)
	new(Etcd).Register(fs)
	new(Kube).Register(fs)
	names := slices.Clone(flags[program])
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	slices.Sort(names)
	return names
}

// serviceVariable matches what Kubernetes adds for a Service whose name begins with k8s-ovs:
// kubelets make such variables for each Service of a pod's namespace. A name that ends in
// _PORT is one only where its value is an address, since flags end so too.
var (
	serviceVariable = regexp.MustCompile(`^K8S_OVS_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)
	servicePort     = regexp.MustCompile(`^K8S_OVS_(.*_)?PORT=(tcp|udp|sctp)://`)
)

// environment are the variables of ours, by name. The first of a name counts, as for getenv(3).
func environment(environ []string) map[string]string {
	ours := map[string]string{}
	for _, v := range environ {
		name, value, ok := strings.Cut(v, "=")
		if _, twice := ours[name]; !ok || twice || !strings.HasPrefix(name, EnvPrefix) {
			continue
		}
		if serviceVariable.MatchString(name) || servicePort.MatchString(v) {
			continue
		}
		ours[name] = value
	}
	return ours
}

// checkNames refuses a variable that belongs to no flag, neither of these nor of any
// program: a setting that has no effect is a mistake that nobody sees.
func checkNames(env map[string]string, sets ...*pflag.FlagSet) error {
	names := map[string]bool{}
	for _, set := range sets {
		set.VisitAll(func(f *pflag.Flag) { names[EnvName(f.Name)] = true })
	}
	for program := range flags {
		for _, f := range FlagsOf(program) {
			names[EnvName(f)] = true
		}
	}
	delete(names, EnvName("help"))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if !names[name] {
			return fmt.Errorf("environment variable %s: no program of k8s-ovs has such a flag%s", name, near.Phrase(name, slices.Sorted(maps.Keys(names))))
		}
	}
	return nil
}
