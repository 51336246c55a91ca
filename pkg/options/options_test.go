package options

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// values is what the flags of a test program end up as.
type values struct {
	Name    string
	Count   int
	Wait    time.Duration
	Verbose bool
	List    []string
	Numbers []int
}

func flagSet(v *values) *pflag.FlagSet {
	fs := pflag.NewFlagSet("program", pflag.ContinueOnError)
	AddConfig(fs)
	fs.StringVar(&v.Name, "node-name", "default", "")
	fs.IntVar(&v.Count, "count", 1, "")
	fs.DurationVar(&v.Wait, "wait", time.Second, "")
	fs.BoolVar(&v.Verbose, "verbose", false, "")
	fs.StringSliceVar(&v.List, "list", []string{"default"}, "")
	fs.IntSliceVar(&v.Numbers, "numbers", nil, "")
	return fs
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func environ(env map[string]string) (all []string) {
	for name, value := range env {
		all = append(all, name+"="+value)
	}
	return all
}

func TestResolve(t *testing.T) {
	defaults := values{Name: "default", Count: 1, Wait: time.Second, List: []string{"default"}}
	with := func(change func(*values)) values { v := defaults; change(&v); return v }
	tests := []struct {
		name string
		args []string
		env  map[string]string
		file string
		want values
	}{
		{name: "defaults", want: defaults},
		{
			name: "file over default",
			file: "node-name: f\ncount: 10000000\nwait: 3s\nverbose: true\nlist: [a, 'b,c', '']\nnumbers: [1, 2]\n",
			want: values{Name: "f", Count: 10000000, Wait: 3 * time.Second, Verbose: true, List: []string{"a", "b,c", ""}, Numbers: []int{1, 2}},
		},
		{
			name: "environment over file",
			file: "node-name: f\ncount: 2\nlist: [f]\n",
			env:  map[string]string{"K8S_OVS_NODE_NAME": "e", "K8S_OVS_LIST": "x,y"},
			want: with(func(v *values) { v.Name, v.Count, v.List = "e", 2, []string{"x", "y"} }),
		},
		{
			name: "command line over environment and file",
			args: []string{"--node-name=c", "--list=c"},
			file: "node-name: f\nlist: [f]\ncount: 2\n",
			env:  map[string]string{"K8S_OVS_NODE_NAME": "e", "K8S_OVS_LIST": "e", "K8S_OVS_COUNT": "3"},
			want: with(func(v *values) { v.Name, v.List, v.Count = "c", []string{"c"}, 3 }),
		},
		{
			name: "the command line may set the default against the environment",
			args: []string{"--verbose=false", "--count=1"},
			env:  map[string]string{"K8S_OVS_VERBOSE": "true", "K8S_OVS_COUNT": "3"},
			want: defaults,
		},
		{
			name: "empty counts as set",
			env:  map[string]string{"K8S_OVS_NODE_NAME": ""},
			file: "node-name: f\n",
			want: with(func(v *values) { v.Name = "" }),
		},
		{
			name: "foreign variables are not ours to judge",
			env: map[string]string{
				"NODE_NAME": "x", "K8S_OVS": "x", // of others
				"K8S_OVS_CONTROLLER_SERVICE_HOST": "10.96.0.1", "K8S_OVS_SERVICE_PORT_HTTPS": "443", "K8S_OVS_X_PORT": "tcp://10.96.0.1:443",
				"K8S_OVS_X_PORT_443_TCP": "tcp://10.96.0.1:443", "K8S_OVS_X_PORT_443_TCP_ADDR": "10.96.0.1", // of Services
				"K8S_OVS_VXLAN_PORT": "4789", "K8S_OVS_TIMEOUT": "1s", "K8S_OVS_DRY_RUN": "true", // of programs beside this one
			},
			want: defaults,
		},
		{name: "one value for a list", file: "list: a,b\n", want: with(func(v *values) { v.List = []string{"a", "b"} })},
		{name: "empty file", file: "# nothing yet\n", want: defaults},
		{name: "key of a sibling command", file: "timeout: 1m\ncount: 2\n", want: with(func(v *values) { v.Count = 2 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got values
			fs := flagSet(&got)
			if tt.file != "" {
				tt.args = append(tt.args, "--config", write(t, tt.file))
			}
			if err := fs.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			sibling := pflag.NewFlagSet("sibling", pflag.ContinueOnError)
			sibling.Duration("timeout", 0, "")
			if err := resolve(fs, []*pflag.FlagSet{sibling}, environ(tt.env)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResolveErrors(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		file string
		want []string
	}{
		{"bad variable", map[string]string{"K8S_OVS_COUNT": "many"}, "", []string{"environment variable K8S_OVS_COUNT", `"many"`}},
		{"empty variable for a number", map[string]string{"K8S_OVS_COUNT": ""}, "", []string{"K8S_OVS_COUNT"}},
		{"mistyped variable", map[string]string{"K8S_OVS_NODENAME": "n1"}, "", []string{"environment variable K8S_OVS_NODENAME", `did you mean "K8S_OVS_NODE_NAME"`}},
		{"mistyped variable of another program", map[string]string{"K8S_OVS_VXLN_PORT": "4789"}, "", []string{`did you mean "K8S_OVS_VXLAN_PORT"?`}},
		{"help is no setting", map[string]string{"K8S_OVS_HELP": "x"}, "", []string{"K8S_OVS_HELP"}},
		{"file is missing", map[string]string{"K8S_OVS_CONFIG": "/nonexistent/k8s-ovs.yaml"}, "", []string{"configuration file", "/nonexistent/k8s-ovs.yaml", "no such file"}},
		{"unknown key", nil, "conut: 3\n", []string{"config.yaml", `"conut"`, `did you mean "count"?`}},
		{"underscore", nil, "node_name: x\n", []string{`"node_name"`, `did you mean "node-name"?`}},
		{"nothing near", nil, "zzzzzz: 3\n", []string{`no flag is called "zzzzzz"`}},
		{"config inside config", nil, "config: other.yaml\n", []string{`no flag is called "config"`}},
		{"key twice", nil, "count: 1\ncount: 2\n", []string{"config.yaml", "count", "already"}},
		{"bad value", nil, "wait: soon\n", []string{"config.yaml", "wait", `"soon"`}},
		{"no YAML", nil, "count: [1\n", []string{"config.yaml", "not valid YAML"}},
		{"no mapping", nil, "- count\n", []string{"config.yaml", "mapping"}},
		{"list for one", nil, "node-name: [a, b]\n", []string{"node-name", "one value"}},
		{"mapping", nil, "node-name: {a: b}\n", []string{"node-name", "not a mapping"}},
		{"null", nil, "node-name:\n", []string{"node-name", "has no value"}},
		{"number for text", nil, "node-name: 0123\n", []string{"node-name", "quotes"}},
		{"true for text", nil, "node-name: yes\n", []string{"node-name", "quotes"}},
		{"number in a list of texts", nil, "list: [a, 1]\n", []string{"list", "quotes"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got values
			fs := flagSet(&got)
			var args []string
			if tt.file != "" {
				args = []string{"--config", write(t, tt.file)}
			}
			if err := fs.Parse(args); err != nil {
				t.Fatal(err)
			}
			err := resolve(fs, nil, environ(tt.env))
			if err == nil {
				t.Fatalf("no error; values are %+v", got)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

// TestUnknownKeySetsNothing: a file that is wrong is not half used.
func TestUnknownKeySetsNothing(t *testing.T) {
	var got values
	fs := flagSet(&got)
	if err := fs.Parse([]string{"--config", write(t, "count: 7\nzzz: 1\n")}); err != nil {
		t.Fatal(err)
	}
	if err := resolve(fs, nil, nil); err == nil {
		t.Fatal("no error")
	}
	if got.Count != 1 {
		t.Errorf("count is %d, want the default 1", got.Count)
	}
}

func TestResolveReadsTheEnvironment(t *testing.T) {
	t.Setenv("K8S_OVS_COUNT", "5")
	t.Setenv("K8S_OVS_CONFIG", write(t, "node-name: f\ncount: 6\n"))
	var got values
	fs := flagSet(&got)
	if err := fs.Parse(nil); err != nil {
		t.Fatal(err)
	}
	if err := Resolve(fs); err != nil {
		t.Fatal(err)
	}
	if got.Count != 5 || got.Name != "f" {
		t.Errorf("count %d and node-name %q, want 5 and f", got.Count, got.Name)
	}
	if !fs.Changed("count") || !fs.Changed("node-name") || fs.Changed("wait") {
		t.Errorf("Changed must tell flags that were given from those that were not")
	}
}
