// Package plugin has the CNI commands as calls to the node agent. It reads
// what the runtime gives, sends it, and writes results in the version of the
// specification that was asked for. It never touches a device itself.
//
// Its commands run inside skel, which before them refuses missing variables, a
// missing or malformed network name and an unknown version (with codes 4, 7, 6
// and 1), and after them prints the error they return.
package plugin

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// Plugin has one method for each CNI command. All errors are *types.Error.
type Plugin struct {
	// stdout gets ADD's result and nothing else.
	stdout io.Writer
}

// New makes a plugin that prints results to stdout.
func New(stdout io.Writer) *Plugin { return &Plugin{stdout: stdout} }

// Versions of the specification that the plugin implements, and so promises to a runtime. They are not the library's own
// list, which grows with the library: a runtime would then send what nobody here carries out.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Commands are all that a runtime may send. To skel one without a function is a success.
func (p *Plugin) Commands() skel.CNIFuncs {
	return skel.CNIFuncs{Add: p.Add, Del: p.Del, Check: p.Check, GC: p.GC, Status: p.Status}
}

// PrepareEnvironment is called before skel, for two things that skel does
// otherwise.
//
// It checks CNI_CONTAINERID and CNI_IFNAME, with rules that include skel's: the
// error has to contain the variable's name (CNI specification, section "Error",
// code 4), and skel's does not.
//
// It turns off skel's comparison of CNI_NETNS with the plugin's own network
// namespace. Skel compares after the command: for ADD that is too late, the pod
// is attached and a result printed; for DEL it is wrong, because the path may by
// now be another process's (/proc/PID/ns/net), and a DEL that fails on it is
// repeated for ever. Add compares before it begins.
func PrepareEnvironment(getenv func(string) string, setenv func(key, value string) error) *types.Error {
	_ = setenv("CNI_NETNS_OVERRIDE", "1") // fails for malformed keys only
	switch cniapi.Command(getenv("CNI_COMMAND")) {
	case cniapi.Add, cniapi.Del, cniapi.Check:
	default:
		return nil
	}
	for _, v := range []struct {
		name     string
		validate func(string) error
	}{{"CNI_CONTAINERID", cniapi.ValidateContainerID}, {"CNI_IFNAME", cniapi.ValidateIfName}} {
		// That one is missing is for skel to say: it lists all that are.
		if value := getenv(v.name); value != "" {
			if err := v.validate(value); err != nil {
				return types.NewError(cniapi.CodeInvalidEnv, v.name+": "+err.Error(), "")
			}
		}
	}
	return nil
}

// Add attaches the pod and prints the result.
func (p *Plugin) Add(args *skel.CmdArgs) error {
	return guard(func() error {
		conf, req, err := load(cniapi.Add, args)
		if err != nil {
			return err
		}
		if err := checkNetns(req.Netns); err != nil {
			return err
		}
		res, err := cniapi.Call(context.Background(), conf.Socket, req)
		if err != nil {
			return err
		}
		return printResult(p.stdout, *res, conf)
	})
}

// Del detaches the pod. It needs no more than the container ID and the
// interface name, and is content when nothing is there any more.
func (p *Plugin) Del(args *skel.CmdArgs) error {
	return guard(func() error { return relay(cniapi.Del, args) })
}

// Check compares the attachment with what it should be.
func (p *Plugin) Check(args *skel.CmdArgs) error {
	return guard(func() error {
		conf, req, err := load(cniapi.Check, args)
		if err != nil {
			return err
		}
		if err := checkNetns(req.Netns); err != nil {
			return err
		}
		_, err = cniapi.Call(context.Background(), conf.Socket, req)
		return err
	})
}

// GC detaches what the runtime does not list.
func (p *Plugin) GC(args *skel.CmdArgs) error {
	return guard(func() error { return relay(cniapi.GC, args) })
}

// Status says whether ADD can be served.
func (p *Plugin) Status(args *skel.CmdArgs) error {
	return guard(func() error { return relay(cniapi.Status, args) })
}

// relay sends a command that has nothing to look at or to print here.
func relay(cmd cniapi.Command, args *skel.CmdArgs) error {
	conf, req, err := load(cmd, args)
	if err != nil {
		return err
	}
	_, err = cniapi.Call(context.Background(), conf.Socket, req)
	return err
}

// guard turns errors into the form that skel prints with their codes, and a
// panic into such an error: the runtime has to get JSON whatever happens.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = types.NewError(cniapi.CodeInternal, fmt.Sprintf("CNI plugin k8s-ovs failed: %v", p), string(debug.Stack()))
		}
	}()
	if e := cniapi.AsError(f()); e != nil {
		return types.NewError(e.Code, e.Msg, e.Details)
	}
	return nil
}
