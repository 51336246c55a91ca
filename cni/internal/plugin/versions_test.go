package plugin

import (
	"io"
	"reflect"
	"testing"

	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"
)

// TestVersions: the plugin promises what it implements, and somebody looks when the library knows more.
func TestVersions(t *testing.T) {
	if diff := cmp.Diff(version.All.SupportedVersions(), Versions().SupportedVersions()); diff != "" {
		t.Errorf(`the CNI library and the plugin know different versions of the specification (-library +plugin):
%s
Read the new version's SPEC.md (github.com/containernetworking/cni): its commands (pkg/cniapi: Command, Request.Validate;
plugin: Commands, PrepareEnvironment, load; cniserver: Server.run, turns.take, watch), the fields of its configuration (plugin: conf)
and of its results (plugin: toResult, printResult). When all is implemented add the version to Versions, and to README.md and
docs/cni.md. TestRuntime takes the plugin through every version.`, diff)
	}
}

// TestAllCommands: skel answers a command that has no function as done.
func TestAllCommands(t *testing.T) {
	commands := reflect.ValueOf(New(io.Discard).Commands())
	for i := range commands.NumField() {
		if commands.Field(i).IsNil() {
			t.Errorf("the plugin has no function for %s: skel says to the runtime that it was done", commands.Type().Field(i).Name)
		}
	}
}
