// Package options turns flags, environment and a configuration file into the
// values that a program runs with: one mechanism for all programs.
//
// Every flag may also come from the environment, as K8S_OVS_ and its name in
// capitals with underscores (--etcd-cacert is K8S_OVS_ETCD_CACERT), and from a
// YAML file (--config or K8S_OVS_CONFIG) whose keys are the names of flags. The
// command line wins over the environment, the environment over the file, the
// file over the default.
//
// The package reads the environment and the files that flags name. It never
// connects to anything and knows nothing of what the values are for, save
// those of [Etcd].
package options

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/pkg/options/near"
)

// EnvPrefix begins the name of every environment variable that is read.
const EnvPrefix = "K8S_OVS_"

// ConfigFlag is the flag that names the configuration file.
const ConfigFlag = "config"

// AddConfig adds the flag that names the configuration file.
func AddConfig(fs *pflag.FlagSet) {
	fs.String(ConfigFlag, "", "YAML `file` with the values of flags; its keys are their names")
}

// Parse parses the command line of a program that takes nothing but flags, and
// resolves the flags that it did not set: see [Resolve]. The error is
// [pflag.ErrHelp] when help was asked for.
func Parse(fs *pflag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: all settings are flags", fs.Arg(0))
	}
	return Resolve(fs)
}

// EnvName is the environment variable of a flag.
func EnvName(flag string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Resolve gives each flag of fs that the command line did not set its value
// from the environment, else from the configuration file. Call it after the
// command line was parsed. Flags set so count as changed.
//
// A variable that is set but empty counts: K8S_OVS_METRICS_ADDRESS= is
// --metrics-address "". A variable that belongs to no flag of any program of k8s-ovs is
// an error: programs share an environment. What Kubernetes adds for Services is not
// looked at (K8S_OVS_CONTROLLER_SERVICE_HOST, for one called k8s-ovs-controller). A key in
// the file that belongs to no flag is an error too. others has the flags of sibling
// commands, which may stand in the file although this command has no use for them.
//
// Errors name the variable, or the file and the key.
func Resolve(fs *pflag.FlagSet, others ...*pflag.FlagSet) error {
	return resolve(fs, others, os.Environ())
}

func resolve(fs *pflag.FlagSet, others []*pflag.FlagSet, environ []string) error {
	env := environment(environ)
	if err := checkNames(env, append([]*pflag.FlagSet{fs}, others...)...); err != nil {
		return err
	}
	var failed error
	fs.VisitAll(func(f *pflag.Flag) {
		if failed != nil || f.Changed || f.Name == "help" {
			return
		}
		value, ok := env[EnvName(f.Name)]
		if !ok {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			failed = fmt.Errorf("environment variable %s: %w", EnvName(f.Name), cause(err))
		}
	})
	if failed != nil {
		return failed
	}
	path := configPath(fs)
	if path == "" {
		return nil
	}
	values, err := readFile(path)
	if err != nil {
		return err
	}
	return values.apply(fs, others)
}

// configPath is the configuration file that fs names, empty for none.
func configPath(fs *pflag.FlagSet) string {
	f := fs.Lookup(ConfigFlag)
	if f == nil {
		return ""
	}
	return f.Value.String()
}

// cause takes the words about command lines off an error of pflag: the value
// did not come from one.
func cause(err error) error {
	if invalid, ok := err.(*pflag.InvalidValueError); ok {
		return fmt.Errorf("%q: %w", invalid.GetValue(), invalid.Unwrap())
	}
	return err
}

// known is the names that a configuration file may use: those of fs and others,
// without the ones that make no sense in it.
func known(fs *pflag.FlagSet, others []*pflag.FlagSet) map[string]bool {
	names := map[string]bool{}
	for _, set := range append([]*pflag.FlagSet{fs}, others...) {
		set.VisitAll(func(f *pflag.Flag) { names[f.Name] = true })
	}
	delete(names, ConfigFlag)
	delete(names, "help")
	return names
}

// unknownKey is the error for a key that belongs to no flag.
func unknownKey(path, key string, names map[string]bool) error {
	all := make([]string, 0, len(names))
	for n := range names {
		all = append(all, n)
	}
	// People write keys with underscores or capitals, too.
	meant := strings.ToLower(strings.ReplaceAll(key, "_", "-"))
	return fmt.Errorf("configuration file %s: no flag is called %q%s", path, key, near.Phrase(meant, all))
}
